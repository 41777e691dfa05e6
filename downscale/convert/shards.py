"""Safetensors files: headers checked before anything is read, plain file reads, streamed writes.

Layout (safetensors format): 8 bytes little-endian header length, a JSON header, then the values at
the offsets that the header states. Mapped pages would count as resident memory, so nothing is
memory-mapped.
"""
import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {'BF16': np.dtype(ml_dtypes.bfloat16), 'F16': np.dtype(np.float16),
          'F32': np.dtype(np.float32)}
CODES = {dtype: code for code, dtype in DTYPES.items()}
# Bits of a value of the dtypes that no weight of ours has: buffers, and quantised weights.
OTHER_BITS = {'BOOL': 8, 'U8': 8, 'I8': 8, 'F8_E4M3': 8, 'F8_E5M2': 8, 'F8_E8M0': 8, 'I16': 16,
              'U16': 16, 'I32': 32, 'U32': 32, 'I64': 64, 'U64': 64, 'F64': 64, 'C64': 64,
              'F4': 4, 'F6_E2M3': 6, 'F6_E3M2': 6}
BUFFERS = {'BOOL', 'U8', 'I8', 'I16', 'U16', 'I32', 'U32', 'I64', 'U64'}
MOST_HEADER = 10 ** 8  # bytes, as in the safetensors library
ALIGNMENT = 8
WRITE_BYTES = 2 ** 18  # larger calls cost the kernel more time than they save
INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
PICKLES = ('.bin', '.pt', '.pth', '.ckpt')


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor in a file: its shape and dtype are known, its values are read on demand.

    Anything with `shape`, `dtype` and `read(start, stop)` may stand for one. `dtype` is the file's
    code where it is none of `DTYPES`; such values cannot be read.
    """
    shape: tuple[int, ...]
    dtype: np.dtype | str
    path: Path
    offset: int

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return a new array of the rows [start, stop) of axis 0 (all by default)."""
        rows, *rest = self.shape or (1,)
        stop = rows if stop is None else stop
        array = np.empty((stop - start, *rest) if self.shape else (), self.dtype)
        # pyrefly: ignore[bad-argument-type]
        buffer = memoryview(array.reshape(-1).view(np.uint8))
        begin = self.offset + start * math.prod(rest) * self.dtype.itemsize
        with open(self.path, 'rb', buffering=0) as file:
            file.seek(begin)
            done = 0
            # The kernel returns at most 2 GiB a call.
            while done < len(buffer):
                count = file.readinto(buffer[done:])
                if not count:
                    raise ValueError(f'{self.path} ended while it was read; copy it again')
                done += count
        return array


def read_json(path: Path) -> Any:
    """Return the JSON value of a file; one-line errors when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text('utf-8-sig'))
    except FileNotFoundError:
        raise FileNotFoundError(f'no {path}; give the folder of a Hugging Face model (config.json '
                                'and *.safetensors)') from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is damaged ({str(error)[:80]}); download it again') from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`, {} where there is no such file; else ValueError."""
    if not Path(path).is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f'{path} holds no JSON object; download it again')
    return value


def _once(pairs):
    """Return a dict of JSON pairs; ValueError when a name occurs twice."""
    # The parser alone would keep the last of them without a word.
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError('a name occurs twice')
    return names


def _whole(*numbers):
    """Return whether all are whole numbers from 0."""
    return all(type(number) is int and number >= 0 for number in numbers)


def read_header(path: Path) -> dict[str, Tensor]:
    """Return {name: Tensor} of one file; ValueError when its size is not what its header says.

    As the format asks, the values fill the file without holes and without overlap.
    """
    # 1. The header, whose length is not believed before it is compared with that of the file.
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        start = file.read(8)
        length = struct.unpack('<Q', start)[0] if len(start) == 8 else size
        if 8 + length > size or length > MOST_HEADER:
            raise ValueError(f'{path} is truncated or no safetensors file ({size:,} bytes); '
                             'download it again')
        try:
            header = json.loads(file.read(length), object_pairs_hook=_once)
            entries = [(name, entry['dtype'], tuple(entry['shape']), *entry['data_offsets'])
                       for name, entry in header.items() if name != '__metadata__']
            # In the order of their bytes, not of the header: only so holes and overlaps show.
            entries.sort(key=lambda entry: entry[3:])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f'{path} has a damaged header; download it again') from None
    # 2. Each tensor, in the order of their values.
    tensors = {}
    end = 0
    for name, code, shape, begin, *stop in entries:
        if not isinstance(code, str) or not _whole(*shape, begin, *stop) or len(stop) != 1 \
                or not name.isprintable():
            raise ValueError(f'{path} has a damaged header ({ascii(name[:60])}); download it again')
        bits = DTYPES[code].itemsize * 8 if code in DTYPES else OTHER_BITS.get(code)
        if bits is None:
            raise ValueError(f'{path}: {name[:60]} has the unknown dtype {code[:20]!r}; save the '
                             'model unquantised')
        if (stop[0] - begin) * 8 != math.prod(shape) * bits:
            raise ValueError(f'{path}: {name[:60]} {shape} does not fill its {stop[0] - begin} '
                             'bytes; download the file again')
        if begin != end:
            raise ValueError(f'{path}: {name[:60]} begins at byte {begin} of the values, where '
                             f'{end} was due; download the file again')
        tensors[name] = Tensor(
            shape=shape, dtype=DTYPES.get(code, code), path=Path(path), offset=8 + length + begin
        )
        end = stop[0]
    # 3. Nothing behind the last one.
    if size != 8 + length + end:
        raise ValueError(f'{path} has {size:,} bytes, its header says {8 + length + end:,}; it is '
                         'truncated: download it again')
    return tensors


def _plain(name):
    """Return whether `name` is the name of a file, without any folder."""
    return isinstance(name, str) and name.isprintable() and name == Path(name).name \
        and len(name.encode()) < 256


def _weight_map(folder):
    """Return {tensor name: file name} of the index of a folder.

    ValueError when it is no index, or names a file outside the folder.
    """
    listed = read_object(folder / INDEX).get('weight_map')
    if not isinstance(listed, dict) or not all(_plain(name) for name in listed.values()):
        raise ValueError(f'{folder / INDEX} has no weight_map of file names in its folder; '
                         'download it again')
    return listed


def shard_paths(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder.

    That is the whole one, else those of its index, else the one there is. As in transformers an
    index beside a whole file does not count. Raises FileNotFoundError when there is none, naming a
    shard that the index asks for, and ValueError when the weights are pickles, or an adapter.
    """
    folder = Path(folder)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / 'adapter_config.json').is_file():
        raise ValueError(f'{folder} holds an adapter, no model; merge it into its base model '
                         '(merge_and_unload) and save that')
    if (folder / INDEX).is_file():
        names = sorted(set(_weight_map(folder).values()))
        for name in names:
            if not (folder / name).is_file():
                raise FileNotFoundError(f'{folder / INDEX} names {name}, which is not there; '
                                        'download that shard')
        return [folder / name for name in names]
    files = sorted(folder.glob('*.safetensors'))
    if len(files) > 1:
        raise FileNotFoundError(f'{folder} has {len(files)} safetensors files and no {INDEX}; '
                                'download the index')
    if files:
        return files
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ValueError(f'{folder} has only pickled weights ({pickles[0]}), which can run code '
                         'when they are read; save the model with safe_serialization=True')
    raise FileNotFoundError(f'no *.safetensors in {folder}; download the weights of the model')


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Return {name: Tensor} of all shards of a folder, checked against its index.

    No value is read.
    """
    folder = Path(folder)
    tensors = {}
    for path in shard_paths(folder):
        tensors.update(read_header(path))
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        listed = _weight_map(folder)
        lost = sorted(name for name, shard in listed.items()
                      if name not in tensors or tensors[name].path.name != shard)
        if lost:
            raise ValueError(f'{folder / INDEX} places {lost[0]} in {listed[lost[0]]}, which does '
                             f'not hold it ({len(lost)} such names); download the shards again')
    return tensors


def size_of(row: tuple[str, np.dtype, tuple[int, ...]]) -> int:
    """Return the bytes of the values of a row (name, dtype, shape)."""
    _, dtype, shape = row
    return math.prod(shape) * dtype.itemsize


def write_tensors(path: Path, rows: Sequence[tuple[str, np.dtype, tuple[int, ...]]],
                  arrays: Iterator[np.ndarray]) -> None:
    """Write the safetensors file `path` of `rows` (name, dtype, shape), synced to disk.

    `arrays` is an iterator that gives the values of each row in turn; more may be left in it.
    """
    header = {'__metadata__': {'format': 'pt'}}
    begin = 0
    for row in rows:
        name, dtype, shape = row
        stop = begin + size_of(row)
        header[name] = {'dtype': CODES[dtype], 'shape': list(shape), 'data_offsets': [begin, stop]}
        begin = stop
    text = json.dumps(header, separators=(',', ':')).encode()
    # Spaces, so that the values begin at a multiple of 8 bytes.
    text += b' ' * (-len(text) % ALIGNMENT)
    with open(path, 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for _ in rows:
            # pyrefly: ignore[bad-argument-type]
            data = memoryview(next(arrays).reshape(-1).view(np.uint8))
            for start in range(0, len(data), WRITE_BYTES):
                file.write(data[start:start + WRITE_BYTES])
        file.flush()
        os.fsync(file.fileno())

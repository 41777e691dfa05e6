"""Safetensors files: headers checked before anything is read, plain file reads, streamed writes.

Layout (safetensors format): 8 bytes little-endian header length, a JSON header, then the values at
the offsets that the header states. Mapped pages would count as resident memory, so nothing is
memory-mapped.
"""
import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPES = {'BF16': np.dtype(ml_dtypes.bfloat16), 'F16': np.dtype(np.float16),
          'F32': np.dtype(np.float32)}
CODES = {dtype: code for code, dtype in DTYPES.items()}
ALIGNMENT = 8
WRITE_BYTES = 2 ** 18  # larger calls cost the kernel more time than they save
INDEX, SINGLE = 'model.safetensors.index.json', 'model.safetensors'
PICKLES = ('.bin', '.pt', '.pth', '.ckpt')


@dataclass(frozen=True)
class Tensor:
    """One tensor in a file: its shape and dtype are known, its values are read on demand.

    Anything with `shape`, `dtype` and `read(start, stop)` may stand for one.
    """
    shape: tuple[int, ...]
    dtype: np.dtype
    path: Path
    offset: int

    def read(self, start=0, stop=None):
        """A new array of the rows [start, stop) of axis 0 (all by default)."""
        rows, *rest = self.shape or (1,)
        stop = rows if stop is None else stop
        array = np.empty((stop - start, *rest) if self.shape else (), self.dtype)
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


def read_json(path):
    """The JSON value of a file; one-line errors when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f'no {path}; give the folder of a Hugging Face model (config.json '
                                'and *.safetensors)') from None
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}); download it again') from None


def read_header(path):
    """{name: Tensor} of one file; ValueError when its size is not what its header says."""
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        start = file.read(8)
        length = struct.unpack('<Q', start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise ValueError(f'{path} is truncated or no safetensors file ({size:,} bytes); '
                             'download it again')
        try:
            header = {name: (entry['dtype'], tuple(entry['shape']), *entry['data_offsets'])
                      for name, entry in json.loads(file.read(length)).items()
                      if name != '__metadata__'}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{path} has a damaged header; download it again') from None
    found, end = {}, 0
    for name, (code, shape, begin, stop) in header.items():
        if code not in DTYPES:
            raise ValueError(f'{path}: {name} has dtype {code}, not one of {", ".join(DTYPES)}; '
                             'save the model unquantised')
        if stop - begin != math.prod(shape) * DTYPES[code].itemsize:
            raise ValueError(f'{path}: {name} {shape} does not fill its {stop - begin} bytes; '
                             'download the file again')
        found[name] = Tensor(shape, DTYPES[code], Path(path), 8 + length + begin)
        end = max(end, stop)
    if size != 8 + length + end:
        raise ValueError(f'{path} has {size:,} bytes, its header says {8 + length + end:,}; it is '
                         'truncated: download it again')
    return found


def shard_paths(folder):
    """The safetensors files of a folder: those of its index, or the one there is.

    Raises FileNotFoundError when there is none, naming a shard that the index asks for, and
    ValueError when the weights are pickles.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX)['weight_map'].values()))
        for name in names:
            if not (folder / name).is_file():
                raise FileNotFoundError(f'{folder / INDEX} names {name}, which is not there; '
                                        'download that shard')
        return [folder / name for name in names]
    found = sorted(folder.glob('*.safetensors'))
    if len(found) > 1 and folder / SINGLE not in found:
        raise FileNotFoundError(f'{folder} has {len(found)} safetensors files and no {INDEX}; '
                                'download the index')
    if found:
        return [folder / SINGLE] if folder / SINGLE in found else found
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ValueError(f'{folder} has only pickled weights ({pickles[0]}), which can run code '
                         'when they are read; save the model with safe_serialization=True')
    raise FileNotFoundError(f'no *.safetensors in {folder}; download the weights of the model')


def open_tensors(folder):
    """{name: Tensor} of all shards of a folder, checked against its index; nothing is read."""
    folder, tensors = Path(folder), {}
    for path in shard_paths(folder):
        tensors.update(read_header(path))
    if (folder / INDEX).is_file():
        listed = read_json(folder / INDEX)['weight_map']
        lost = sorted(name for name, shard in listed.items()
                      if name not in tensors or tensors[name].path.name != shard)
        if lost:
            raise ValueError(f'{folder / INDEX} places {lost[0]} in {listed[lost[0]]}, which does '
                             f'not hold it ({len(lost)} such names); download the shards again')
    return tensors


def size_of(row):
    """Bytes of the values of a row (name, dtype, shape)."""
    _, dtype, shape = row
    return math.prod(shape) * dtype.itemsize


def write_tensors(path, rows, arrays):
    """`path` is a safetensors file of `rows` (name, dtype, shape), synced to disk.

    `arrays` is an iterator that gives the values of each row in turn; more may be left in it.
    """
    header, begin = {'__metadata__': {'format': 'pt'}}, 0
    for row in rows:
        name, dtype, shape = row
        stop = begin + size_of(row)
        header[name] = {'dtype': CODES[dtype], 'shape': list(shape), 'data_offsets': [begin, stop]}
        begin = stop
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % ALIGNMENT)
    with open(path, 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for _ in rows:
            data = memoryview(next(arrays).reshape(-1).view(np.uint8))
            for start in range(0, len(data), WRITE_BYTES):
                file.write(data[start:start + WRITE_BYTES])
        file.flush()
        os.fsync(file.fileno())

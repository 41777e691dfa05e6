"""Size and checksum of every file of a stored step, so that cut files and flipped bits are seen.

Of local files it is zlib's CRC-32: 0.26 s a GiB, in the thread that saves. A bucket keeps a
CRC-32C of its own for every object and tells it without a download. What was copied from one to the
other is compared by sizes only. Steps of earlier versions have no checksums and pass.
"""
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import fsspec
from etils import epath

from downscale.runtime.files import BUCKET, in_bucket, place, write_json

NAME = 'checksums.json'
# zlib sums without the interpreter's lock, so two threads sum two files at once.
READERS = 2
CHUNK_BYTES = 2 ** 22
_LATER = '_CHECKPOINT_METADATA'  # orbax adds the time of the commit, which comes after the sums


class Damaged(ValueError):
    """A stored step does not hold what was saved; says which file, and why."""


def write(step_folder: Path | epath.Path) -> None:
    """Write `checksums.json` of a step whose files are all there."""
    if in_bucket(step_folder):
        files = _objects(step_folder)
    else:
        # Stamps before sums: of a file that changes meanwhile the stamp no longer fits.
        stamps = _stamps(step_folder)
        sums = _sums(str(step_folder), tuple(stamps.items()))
        files = {name: [stamps[name][0], sums[name]] for name in stamps}
    write_json(place(step_folder) / NAME, {'kind': _kind(step_folder), 'files': files})


def check(step_folder: Path | epath.Path, item: str = '') -> None:
    """Raise `Damaged` where a file of a step is not what was written.

    With an `item` such as 'params/' only the files of that are checked. A local step whose files
    have not been touched is read once per process.
    """
    try:
        stored = json.loads((place(step_folder) / NAME).read_text())
        kind = stored['kind']
        wanted = stored['files']
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        raise Damaged(f'checkpoint {step_folder} is damaged: {NAME} is not readable') from None
    wanted = {name: facts for name, facts in wanted.items() if name.startswith(item)}
    files = _objects(step_folder) if in_bucket(step_folder) else _stamps(step_folder)
    # 1. Names and sizes, which cost no read and find what was cut off.
    for name, (size, _) in wanted.items():
        if name not in files:
            raise Damaged(f'checkpoint {step_folder} is damaged: {name} is missing')
        if files[name][0] != size:
            raise Damaged(f'checkpoint {step_folder} is damaged: {name} has {files[name][0]} '
                          f'bytes, {size} were saved')
    # What was copied to or from a bucket has sums of the other kind: sizes must do.
    if kind != _kind(step_folder):
        return
    # 2. Contents, where both sums are of one kind.
    sums = {name: checksum for name, (_, checksum) in files.items()}
    if not in_bucket(step_folder):
        sums = _sums(str(step_folder), tuple((name, files[name]) for name in wanted))
    for name, (_, checksum) in wanted.items():
        if sums[name] != checksum:
            raise Damaged(f'checkpoint {step_folder} is damaged: {name} has other bytes than were '
                          'saved')


def was_copied(step_folder: Path | epath.Path) -> bool:
    """Return whether a step in a bucket is a copy of one that was complete on a disk.

    Orbax marks steps that it writes into a bucket; a copy has only checksums of the kind of disks,
    which come last. A file that was not copied along is told when the step is read.
    """
    if not in_bucket(step_folder):
        return False
    try:
        return json.loads((place(step_folder) / NAME).read_text())['kind'] == 'crc32'
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


@lru_cache(64)
def _sums(step_folder, stamps):
    """Return {name: CRC-32} of local files, whose `stamps` tell when they must be read anew."""
    names = [name for name, _ in stamps]
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(lambda name: _crc32(place(step_folder) / name), names)))


def _kind(step_folder):
    return 'crc32c' if in_bucket(step_folder) else 'crc32'


def _stamps(step_folder):
    """Return {path in the step: (bytes, time of the last change)} of the files of a local step."""
    stats = {path.relative_to(step_folder).as_posix(): path.stat()
             for path in sorted(place(step_folder).rglob('*')) if path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()
            if name not in (NAME, _LATER)}


def _objects(step_folder):
    """Return {path in the step: [size, CRC-32C in base 64]} of a step in a bucket."""
    # gcsfs names objects without the scheme, `bucket/path`.
    top = str(step_folder).removeprefix(BUCKET).rstrip('/') + '/'
    listed = fsspec.filesystem('gs').find(top, detail=True)
    return {name.removeprefix(top): [int(info['size']), info.get('crc32c')]
            for name, info in listed.items()
            if name.removeprefix(top) not in (NAME, _LATER)}


def _crc32(path):
    """Return the CRC-32 of a file, read in parts of `CHUNK_BYTES`."""
    checksum = 0
    with path.open('rb', buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum

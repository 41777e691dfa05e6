"""Where files lie: in a folder, or as objects of a bucket (gs://), written whole or not at all.

A bucket knows no append, no rename and no lock. What needs them stays in a folder of this machine
that stands for the one in the bucket, its `scratch`.
"""
import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BUCKET = 'gs://'
VALUE = 'value'   # of the metadata of a JSON file in a bucket
MOST = 4_000      # letters of it; all metadata of an object together may have 8 KiB
LOCK = '.lock'
PathLike = str | os.PathLike[str]  # a path as callers give it


def in_bucket(path: PathLike) -> bool:
    """Return whether `path` is in a bucket."""
    return str(path).startswith(BUCKET)


def place(path: PathLike) -> Path:
    """Return `path` with the methods of pathlib; one in a bucket needs the extra `gcs`."""
    if not in_bucket(path):
        return Path(path)
    # 70 ms, which no command on folders should wait for.
    import fsspec
    from etils import epath

    logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # pages of each retry; it also raises
    # What other machines write would stay unseen.
    fsspec.config.conf['gcs'] = {'use_listings_cache': False, **fsspec.config.conf.get('gcs', {})}
    # pyrefly: ignore[bad-return]
    return epath.Path(path)


def absolute(path: PathLike) -> Path:
    """Return `path` from the root of its file system, or with its bucket."""
    return place(path) if in_bucket(path) else Path(path).absolute()


def scratch(path: PathLike) -> Path:
    """Return the folder of this machine that stands for `path`.

    That is `path` itself, or for a bucket one under DOWNSCALE_SCRATCH (default: the temporary
    folder).
    """
    if not in_bucket(path):
        return Path(path)
    top = os.environ.get('DOWNSCALE_SCRATCH') or Path(tempfile.gettempdir()) / 'downscale'
    return Path(top) / str(path).removeprefix(BUCKET)


def writable(folder: Path) -> bool:
    """Return whether files can be made in a local folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; folders are made."""
    path = place(path)
    if in_bucket(path):
        with naming(path):
            path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)  # its error names the folder
    with naming(path), whole(path) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def whole(path: PathLike, alone: bool = False) -> Iterator[Path]:
    """Yield a temporary path; the file or folder made there becomes the local `path` at the end.

    An error in this context removes what was made and leaves `path` as it was. A folder may take
    the place of an empty one. `alone` says that no other process writes `path`: the temporary name
    is then always the same, so that kills leave at most one behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside `path`, because a rename is atomic only within one file system.
    process = '' if alone else f'.{os.getpid()}'
    partial = path.with_name(f'.{path.name}{process}.partial')
    try:
        yield partial
        # In one step: a reader sees the old file or the new one, never a part.
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Put `path` into an OSError that is raised in this context.

    That of a write or of a flush names no file, and a user with a full disk has several.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
            error.filename2 = None
        raise


def write_json(path: PathLike, value: Any) -> None:
    """Write `value` as JSON to `path`, whole or not at all.

    In a bucket a small value stands in the object's metadata as well: whoever lists the objects has
    read it already (`launch/job_files.py`).
    """
    data = (json.dumps(value, indent=1, sort_keys=True) + '\n').encode()
    if not in_bucket(path):
        write_bytes(path, data)
        return
    short = json.dumps(value, sort_keys=True)
    place(path)   # settings of the client
    from fsspec.core import url_to_fs
    system, name = url_to_fs(str(path))
    with naming(path):
        system.pipe_file(name, data, metadata={VALUE: short} if len(short) <= MOST else None)


def read_json(path: PathLike, kind: type = dict) -> Any:
    """Return the value in `path`, a `kind`; None when there is no such file.

    ValueError in one line that names the file when it is cut, or holds something else.
    """
    try:
        data = place(path).read_bytes()
    except FileNotFoundError:
        return None
    return parse_json(data, path, kind)


def parse_json(data: str | bytes, path: PathLike, kind: type = dict) -> Any:
    """Return the value in the bytes of the file `path`, a `kind`; ValueError as of `read_json`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is damaged ({error})') from None
    if not isinstance(value, kind):
        raise ValueError(f'{path} is damaged (a {type(value).__name__}, not a {kind.__name__})')
    return value


def lock(folder: Path) -> int:
    """Lock a local folder and return the descriptor; closing it, or ending, gives the lock back.

    RuntimeError in one line when another process has it. On a file system without locks a note is
    printed, and nothing keeps two commands apart.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)
    try:
        if not _locked(handle, folder, wait=False):
            raise RuntimeError(f'{folder} is in use by another process; wait for it or stop it, '
                               'or give this run another folder')
    except BaseException:
        os.close(handle)
        raise
    return handle


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a lock of the local `folder` in this context; other processes of this machine wait.

    A process that must wait says so in a line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / '.held').open('w') as handle:
        if not _locked(handle, folder, wait=False):
            print(f'waiting for another process that prepares {folder}', file=sys.stderr)
            _locked(handle, folder, wait=True)
        yield


# What `flock` answers where there are no locks: NFS without its daemon, Lustre and FUSE where they
# are mounted without the option.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


def _locked(handle, folder, wait):
    """Lock the open file `handle` of `folder`; False when another process has the lock.

    True as well where the file system has no locks, with a note.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            error.filename = str(folder)
            raise
        print(f'note: {folder}: this file system has no locks ({error.strerror}); start no second '
              'command on it', file=sys.stderr)
    return True

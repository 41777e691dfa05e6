"""Whether what a command writes at its end can be written, asked at its start."""
import shutil
import tempfile
from pathlib import Path


def require_folder(path: Path) -> Path:
    """Return `path`; OSError in one line when it is no folder and cannot become one."""
    parent = existing(path)
    if not parent.is_dir():
        raise NotADirectoryError(f'{parent} is a file, not a folder')
    try:
        # Tried, because permissions do not tell of a read-only disk.
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise PermissionError(f'nothing can be written in {parent} ({error.strerror})') from None
    return path


def existing(path: Path) -> Path:
    """Return `path`, or its first parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def require_room(path: Path, size: int) -> None:
    """Raise OSError in one line when the disk of `path` has no room for `size` bytes."""
    free = shutil.disk_usage(existing(path.absolute())).free
    if free < size:
        raise OSError(f'{path}: {size / 2**30:.2f} GiB are to be written, and the disk has '
                      f'{free / 2**30:.2f} GiB left')

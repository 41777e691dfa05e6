"""Whether what a command writes at its end can be written, asked at its start."""
import shutil
import tempfile
from pathlib import Path


def require_folder(path: Path) -> Path:
    """Return `path`; OSError in one line when it is no folder and cannot become one."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f'{there} is a file, not a folder')
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise PermissionError(f'nothing can be written in {there} ({error.strerror})') from None
    return path


def require_room(path: Path, size: int) -> None:
    """Raise OSError in one line when the disk of `path` has no room for `size` bytes."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < size:
        raise OSError(f'{path}: {size / 2**30:.2f} GiB are to be written, and the disk has '
                      f'{free / 2**30:.2f} GiB left')

"""Folders of a study that lie elsewhere, as in a bucket: `data/` and `models/`, mounted read-only.

The environment of a job says where they come from (`VARIABLE`), and why one is not there
(`FAILURE`, by the start-up script of a TPU machine).
"""
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from downscale.runtime.files import BUCKET, PathLike, in_bucket

NAMES = ('data', 'models')
VARIABLE = 'DOWNSCALE_MOUNTS'
FAILURE = 'DOWNSCALE_MOUNT_FAILURE'
# Nothing that a list of mount options or a shell would part: the prefix becomes a word in both.
_BUCKET = re.compile(r'gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/([A-Za-z0-9._=/-]*))?')


def read_mounts(texts: Iterable[str]) -> dict[str, str]:
    """Return {name: place} of texts NAME=PLACE; ValueError in one line where one is none."""
    mounts = {}
    for text in texts:
        name, equals, where = text.partition('=')
        if not equals or not where:
            raise ValueError(f'--mount {text[:100]} must be NAME=PLACE, as data=gs://BUCKET/PREFIX')
        if name not in NAMES:
            raise ValueError(f'--mount {name[:100]}=...: no folder of that name is mounted; a '
                             f'study has {" and ".join(NAMES)}')
        if name in mounts:
            raise ValueError(f'--mount {name} is given twice')
        if in_bucket(where):
            bucket, prefix = parts_of(where)
            where = f'{BUCKET}{bucket}/{prefix}'.rstrip('/')
        mounts[name] = where
    return mounts


def parts_of(where: str) -> tuple[str, str]:
    """Return (bucket, prefix) of gs://BUCKET/PREFIX; ValueError where that is no plain name."""
    match = _BUCKET.fullmatch(where)
    prefix = (match[2] or '').strip('/') if match else ''
    if not match or any(part in ('', '.', '..') for part in prefix.split('/') if prefix):
        raise ValueError(f'--mount {where[:150]} must be gs://BUCKET/PREFIX of letters, digits and '
                         '. _ = - /')
    return match[1], prefix


def as_variable(mounts: Mapping[str, str]) -> str:
    """Return the value of `VARIABLE` for these mounts."""
    return shlex.join(f'{name}={where}' for name, where in mounts.items())


def mounted() -> dict[str, str]:
    """Return {name: place} of what is mounted for this process, {} outside such a job."""
    return read_mounts(shlex.split(os.environ.get(VARIABLE, '')))


def origin_of(path: PathLike, mounts: Mapping[str, str] | None = None) -> PathLike:
    """Return where a path of a mounted folder comes from, any other path as it is.

    `mounts` are by default those of this process. What is read once and in parts, such as weights,
    is read there and not through the mount.
    """
    if in_bucket(path):
        return path
    relative = PurePosixPath(path)
    if relative.is_absolute() and relative.is_relative_to(Path.cwd()):
        relative = relative.relative_to(Path.cwd())
    if not relative.parts or '..' in relative.parts:
        return path
    where = (mounted() if mounts is None else mounts).get(relative.parts[0])
    if where is None:
        return path
    return '/'.join([where, *relative.parts[1:]])

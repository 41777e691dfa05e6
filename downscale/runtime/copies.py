"""Copies of what lies in a bucket (gs://), for what reads folders: only what it needs travels.

    study = local_copy('gs://BUCKET/runs/smoke', matching('study.json', 'evaluations/*/*.parquet'))

The copy lies below `top()` at the path that it has in the bucket. An object is fetched when it is
not there or has changed (each change gives it another generation); what the bucket no longer holds
goes from the copy. A look at a folder costs one listing, or one for every 5,000 objects.
`PARTIAL.json` in a copied folder is the mark that it is not all: it says what was not needed and
what went while it was read. What turns out to be needed later, such as a picture that somebody
looks at, comes by `fetch`.

The client asks six times where a bucket answers 408, 429 or 5xx or breaks off, over half a minute.
"""
import base64
import contextlib
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from downscale.runtime.exits import line_of, passes, say
from downscale.runtime.files import (
    BUCKET,
    PathLike,
    held,
    in_bucket,
    place,
    read_json,
    whole,
    write_json,
)
from downscale.runtime.outputs import require_room
from downscale.runtime.setup import user_cache

MARK = 'PARTIAL.json'
READERS = 16            # objects that are fetched at once
CHUNK_BYTES = 2 ** 24   # of one request, so that little is asked again where a line breaks
ROUNDS = 3              # looks at a folder that changes while it is read
PROGRESS_SECONDS = 5
SILENCE_SECONDS = 60    # without a byte, after which a request is made anew
_NAME = re.compile('[a-z0-9][a-z0-9._-]*')  # of a bucket
_LOCK = threading.Lock()
_known = {}             # copied folder -> (its address, its objects by name)

Names = Callable[[Collection[str]], Iterable[str]]


@dataclass(frozen=True, kw_only=True)
class _Object:
    """An object: `name` below the folder that was listed, '' where it is no folder."""
    name: str
    size: int
    generation: int
    crc32c: str | None
    encoding: str

    @property
    def stamp(self):
        """The time of the last change of its copy, in ns, by which its generation is known."""
        # Generations count microseconds; others, which none has seen yet, need only be told apart.
        return self.generation * 1000 % 2 ** 63


def top() -> Path:
    """Return the folder of all copies: DOWNSCALE_COPIES, or one in the user's cache."""
    return Path(os.environ.get('DOWNSCALE_COPIES') or user_cache() / 'downscale' / 'buckets')


def matching(*patterns: str) -> Names:
    """Return a choice of names: those of any pattern of `Path.glob`, a last '**' being any rest."""
    def choose(names):
        return [name for name in names if any(_fits(name, pattern) for pattern in patterns)]
    return choose


def _fits(name, pattern):
    parts = name.split('/')
    wanted = pattern.split('/')
    if wanted[-1] == '**':
        wanted = wanted[:-1]
        parts = parts[:len(wanted)]
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def local_copy(path: PathLike, needs: Names = lambda names: ()) -> Path:
    """Return the local path that holds what `path` holds; of a bucket a copy of what is needed.

    `needs` chooses from the names below a folder, such as 'cells/w64-s0/text/DONE.json'; without it
    `path` should be an object. One line on stderr says what was fetched. FileNotFoundError,
    PermissionError, ImportError (without the extra `gcs`), RuntimeError or ValueError in one line
    where the bucket cannot be read.
    """
    if not in_bucket(path):
        return Path(path)
    address = str(path).rstrip('/')
    bucket, _, _ = address.removeprefix(BUCKET).partition('/')
    if not _NAME.fullmatch(bucket) or not _clean(address.removeprefix(BUCKET)):
        raise ValueError(f'{address} names no folder of a bucket; as gs://BUCKET/runs/NAME')
    with _LOCK, held(top() / '.locks' / bucket):
        return _copy(address, needs)


def fetch(paths: Iterable[Path]) -> None:
    """Fetch those of `paths` that a copy made by this process lacks and its bucket has."""
    wanted = {}
    for path in dict.fromkeys(paths):
        root, item = _listed(path)
        if item and not _is_there(root / item.name, item):
            wanted.setdefault(root, []).append(item)
    for root, items in wanted.items():
        address, _ = _known[root]
        bucket, _, _ = address.removeprefix(BUCKET).partition('/')
        with _LOCK, held(top() / '.locks' / bucket):
            changed = _fetch(address, root, items)
        if changed:
            raise RuntimeError(f'{address}/{changed[0]} has changed or gone since the command '
                               'began; start it again')


def is_copy(path: Path) -> bool:
    """Return whether `path` lies in a copy of a folder that this process has made."""
    return any(path.is_relative_to(root) for root in _known)


def obtainable(path: Path) -> bool:
    """Return whether a file is there, or comes by `fetch`."""
    return path.is_file() or _listed(path)[1] is not None


def gone(folder: Path) -> list[str]:
    """Return the names that went from a bucket while `folder`, a copy, was made."""
    return (read_json(folder / MARK) or {}).get('gone', [])


def named(text: str) -> str:
    """Return `text` with addresses in the place of the paths of copies."""
    return text.replace(f'{top()}/', BUCKET)


def results_beside(path: PathLike) -> Path:
    """Return the local folder for results about `path`: itself, or for a bucket one of its name.

    That one lies in the working folder.
    """
    return Path(str(path).rstrip('/').rpartition('/')[2]) if in_bucket(path) else Path(path)


def _listed(path):
    """Return (copied folder, object) of a path of a copy of this process; (None, None) of others.
    """
    for root, (_, objects) in _known.items():
        if path.is_relative_to(root) and path.relative_to(root).as_posix() in objects:
            return root, objects[path.relative_to(root).as_posix()]
    return None, None


def _copy(address, needs):
    """Bring the copy of `address` to what the bucket holds now, and return its path."""
    target = top() / address.removeprefix(BUCKET)
    asked = set()  # of all looks: what the last one no longer finds has gone meanwhile
    fetched = {}
    for _ in range(ROUNDS):
        objects = _look(address)
        _prune(target, objects)
        if not objects:
            raise FileNotFoundError(f'no {address}: the bucket has no such folder or object')
        chosen = [objects[name] for name in ([''] if '' in objects else needs(objects))]
        asked.update(item.name for item in chosen)
        lacking = [item for item in chosen if not _is_there(target / item.name, item)]
        changed = _fetch(address, target, lacking)
        fetched |= {item.name: item.size for item in lacking if item.name not in changed}
        if not changed:
            break
    else:
        raise RuntimeError(f'{address}: {len(changed)} objects changed in each of {ROUNDS} tries '
                           f'to read them, first {changed[0]}; try again when less is written')
    if '' not in objects:
        target.mkdir(parents=True, exist_ok=True)  # a command may need nothing that is there yet
        _known[target] = address, objects
        rest = {name: item for name, item in objects.items()
                if not _is_there(target / name, item)}
        _write_mark(address, target, rest, sorted(asked - set(objects)))
    if fetched:
        size = sum(fetched.values())
        rest = sum(item.size for item in objects.values()) - size
        more = f', {_shown(rest)} not needed or there already' if rest else ''
        say(f'{address}: {len(fetched)} objects, {_shown(size)} read into {target}{more}')
    return target


def _look(address):
    """Return the objects of a folder by their names below it, or the one object as ''."""
    key = address.removeprefix(BUCKET)
    with _asking(address):
        listing = _client().find(key, detail=True)
    objects = {}
    for full, facts in listing.items():
        name = full.removeprefix(key).removeprefix('/')
        # The console of the cloud makes empty objects that stand for folders.
        if full.endswith('/'):
            continue
        objects[name] = _Object(
            name=name, size=int(facts['size']), generation=int(facts['generation']),
            crc32c=facts.get('crc32c'), encoding=facts.get('contentEncoding', ''))
    return objects


def _clean(name):
    """Return whether a name is a path that stays below its folder."""
    return '\0' not in name and not {'', '.', '..'} & set(name.split('/'))


def _prune(target, objects):
    """Remove from a copy what the bucket holds no longer, or has changed."""
    if target.is_file() and not ('' in objects and _is_there(target, objects[''])):
        target.unlink()
    if target.is_dir() and '' in objects:
        shutil.rmtree(target)
    for folder, _, files in os.walk(target, topdown=False):
        for path in (Path(folder) / name for name in files):
            item = objects.get(path.relative_to(target).as_posix())
            if item is None or not _is_there(path, item):
                path.unlink()
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(folder)


def _is_there(path, item):
    """Return whether `path` is the copy of an object as it is now."""
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (stat.st_size, stat.st_mtime_ns) == (item.size, item.stamp)


def _write_mark(address, target, rest, lost):
    """Write what of the bucket the copy lacks, counted by folder; no file where it lacks nothing.
    """
    count = Counter()
    size = Counter()
    for name, item in rest.items():
        folder = '/'.join(name.split('/')[:-1][:4]) or '.'  # a step's files are told together
        count[folder] += 1
        size[folder] += item.size
    if rest or lost:
        write_json(target / MARK, {'of': address, 'gone': lost, 'not_needed': {
            folder: {'objects': count[folder], 'bytes': size[folder]} for folder in count}})


def _fetch(address, target, items):
    """Fetch objects in parallel, telling the progress; return the names of those that changed."""
    for item in items:
        if item.name and not _clean(item.name):
            raise ValueError(f'{address}/{item.name} is no name of a file; rename the object')
        if item.encoding == 'gzip':  # the client unpacks it, and neither size nor sum fits then
            raise ValueError(f'{address}/{item.name} is stored as gzip; upload it again without')
    total = sum(item.size for item in items)
    require_room(target, total)
    received = []
    with _asking(address), contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(READERS)
        stack.callback(pool.shutdown, cancel_futures=True)
        tasks = {pool.submit(_fetch_object, address, target, item, received): item.name
                 for item in items}
        waiting = set(tasks)
        while waiting:
            ended, waiting = wait(waiting, PROGRESS_SECONDS, FIRST_EXCEPTION)
            for task in ended:
                task.result()
            if waiting:
                say(f'{address}: {len(tasks) - len(waiting)} of {len(tasks)} objects, '
                    f'{_shown(sum(received))} of {_shown(total)}')
    return [name for task, name in tasks.items() if not task.result()]


def _fetch_object(address, target, item, received):
    """Fetch an object whole or not at all; False where it is no longer what was listed."""
    from google_crc32c import Checksum
    checksum = Checksum()
    source = f'{address}/{item.name}'.removeprefix(BUCKET).rstrip('/')
    try:
        with whole(target / item.name, alone=True) as partial:
            with partial.open('wb') as file:
                for start in range(0, item.size, CHUNK_BYTES):
                    end = min(start + CHUNK_BYTES, item.size)
                    data = _client().cat_file(source, start=start, end=end)
                    received.append(len(data))
                    checksum.update(data)
                    file.write(data)
                written = file.tell()
            sum64 = base64.b64encode(checksum.digest()).decode()
            # Not told by a header, since parts of two generations may follow each other.
            if written != item.size or item.crc32c not in (None, sum64):
                raise FileNotFoundError(source)
            os.utime(partial, ns=(time.time_ns(), item.stamp))
    except FileNotFoundError:
        return False
    return True


@cache
def _client() -> Any:
    """Return the client of buckets; ImportError in one line without the extra `gcs`."""
    try:
        place(BUCKET)  # its settings
        import aiohttp
        import fsspec
        # Seconds of silence count and not those of a whole request, which a slow line may need.
        silence = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=SILENCE_SECONDS)
        return fsspec.filesystem('gs', requests_timeout=silence)
    except ImportError:
        raise ImportError("to read a bucket (gs://): pip install 'downscale[gcs]'") from None


@contextlib.contextmanager
def _asking(address: str) -> Iterator[None]:
    """Turn what a bucket refuses in this context into one line."""
    try:
        yield
    except ImportError:
        raise
    except FileNotFoundError:
        bucket, _, _ = address.removeprefix(BUCKET).partition('/')
        raise FileNotFoundError(f'no bucket {BUCKET}{bucket}') from None
    except Exception as error:
        text = line_of(error)
        code = re.search(r', (40[13])$|^(Forbidden)', text)
        if code:
            raise PermissionError(
                f'{address}: the bucket answered {code[1] or 403}; whoever runs this needs the '
                'role storage.objectViewer, after gcloud auth application-default login') from None
        # Of a disk an error has a number, and so has that of a host without an address.
        remote = type(error).__module__.startswith('aiohttp.')
        if isinstance(error, OSError) and error.errno and not remote or not passes(error):
            raise
        raise RuntimeError(f'cannot read {address} now, and may later: {text}') from None


def _shown(size):
    return f'{size / 1e6:.1f} MB' if size >= 1e6 else f'{size / 1e3:.1f} kB'

"""The small files that tell how jobs stand, read one by one or all at once.

In a bucket a file costs a round trip, and a sweep of a thousand cells has some thousands of files.
`Listed` therefore lists all of them in a few requests. The list holds what `write_json` wrote, as
metadata; what it does not hold, and is new, is fetched together.
"""
from pathlib import Path
from typing import Any

from downscale.runtime.files import BUCKET, VALUE, in_bucket, parse_json, place, read_json

LOGS = '/logs/'   # of any size, and of no interest for the state of a job


class OneByOne:
    """Reads every file when it is asked for."""

    def refresh(self) -> None:
        """Forget what was read, which here is nothing."""

    def json(self, path: Path, kind: type = dict) -> Any:
        """Return the value in `path`, None when there is no such file; errors as of `read_json`."""
        return read_json(path, kind)

    def names(self, folder: Path) -> list[str]:
        """Return the names in a folder in their order, none where there is no such folder."""
        path = place(folder)
        return sorted(file.name for file in path.iterdir()) if path.is_dir() else []


class Listed(OneByOne):
    """Holds all files of the jobs of a run in a bucket, as they were at the last `refresh`."""

    def __init__(self, run: str | Path) -> None:
        self.top = str(place(run) / 'launch')
        self.files: dict[str, tuple[str, str | bytes]] = {}   # {path: (its generation, its JSON)}
        self.folders: dict[str, list[str]] = {}         # {path of a folder: names in it}
        self.refresh()

    def refresh(self) -> None:
        """List the files, and fetch those that are new or have changed."""
        from fsspec.core import url_to_fs
        system, top = url_to_fs(self.top)
        there = {}
        kept = {}
        for name, about in system.find(top, detail=True).items():
            if not name.endswith('.json') or LOGS in name:
                continue
            there[name] = str(about['generation'])
            value = about.get('metadata', {}).get(VALUE)
            if value is not None:
                kept[name] = there[name], value
            elif self.files.get(name, ('', ''))[0] == there[name]:
                kept[name] = self.files[name]
        # What has no copy in its metadata: a long value, or one that another program put there.
        new = [name for name in there if name not in kept]
        for name, fetched in (system.cat(new, on_error='return') if new else {}).items():
            if isinstance(fetched, FileNotFoundError):
                continue   # deleted since the list was made
            if isinstance(fetched, Exception):
                raise fetched
            kept[name] = there[name], fetched
        self.files = kept
        self.folders = {}
        for name in sorted(kept):
            folder, _, last = name.rpartition('/')
            self.folders.setdefault(folder, []).append(last)

    def json(self, path: Path, kind: type = dict) -> Any:
        """Return the value in `path` as it was at the last `refresh`."""
        name = str(path).removeprefix(BUCKET)
        return parse_json(self.files[name][1], path, kind) if name in self.files else None

    def names(self, folder: Path) -> list[str]:
        """Return the names in a folder as they were at the last `refresh`."""
        return self.folders.get(str(folder).removeprefix(BUCKET), [])


def files_of(run: str | Path) -> OneByOne:
    """Return a reader of the files of the jobs of a run; in a bucket it has read them all."""
    return Listed(run) if in_bucket(run) else OneByOne()

"""The replies of one evaluation, kept as they come: written by one process, or shared by several.

Each process answers its own questions on its own devices, and leaves what it has written in files
of a folder that all can reach. From these all processes read the rest, and a later attempt goes on,
with as many processes or others. No reply depends on who wrote it (see `engine.py`).
"""
import dataclasses
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from downscale.generate.engine import Engine, Stats
from downscale.generate.requests import Reply, Request
from downscale.runtime import processes
from downscale.runtime.files import read_json, write_json
from downscale.values import hash_of

KEEP_SECONDS = 60  # that a killed process loses at most
Report = Callable[[int, int], object]  # takes how many rows are done, of how many
Windows = Callable[[Iterable[Request]], Iterator[list[Request]]]


class Replies:
    """What `engine` writes, kept in `folder`, which `remove` deletes.

    `identity` is all that decides replies beside the questions, as JSON: the cell, the weights.
    """

    def __init__(self, engine: Engine, folder: Path, identity: Sequence[Any]) -> None:
        self.engine = engine
        self.folder = folder
        self.identity = list(identity)
        self.rank = jax.process_index()
        self.count = jax.process_count()
        self.counted = Stats()  # what the files hold of the figures of this engine
        self.keys = set()
        self.fresh = {}
        self.kept_at = time.monotonic()

    def write(self, name: str, asked: Sequence[tuple[Hashable, str]],
              request_of: Callable[[int], Request], windows: Windows,
              report: Report = lambda done, total: None) -> list[Reply]:
        """Return a `Reply` for every question, in order; all processes must call this.

        `asked` are (what it shows, its text) of each. Those that show the same go to one process,
        which sees it once. `request_of` makes the request of a question by its index, and `windows`
        cuts requests into lists. `report` counts the questions of this process. ValueError where
        the processes ask something else, RuntimeError where they cannot see one another's replies.
        """
        key = hash_of([self.identity, name, [[str(shown), text] for shown, text in asked]])
        if processes.once(lambda: key) != key:
            raise ValueError('this process asks other questions, or another model, than process 0; '
                             'start the same command in all')
        self.keys.add(key)
        # 1. The questions of this process, and which of them an earlier attempt has answered.
        order = {}
        for shown, _ in asked:
            order.setdefault(shown, len(order))
        share = [k for k, (shown, _) in enumerate(asked) if order[shown] % self.count == self.rank]
        there = self._read(key)
        lacking = [k for k in share if k not in there]
        # 2. The others are answered, and kept as they come.
        done = len(share) - len(lacking)
        first = 0
        for window in windows(map(request_of, lacking)):
            for index, reply in self.engine.stream(window):
                self.fresh[lacking[first + index]] = reply
                if time.monotonic() - self.kept_at > KEEP_SECONDS:
                    self._keep(key)
                done += 1
                report(done, len(share))
            first += len(window)
        self._keep(key)
        # 3. All of them, once every process is here.
        processes.wait()
        there = self._read(key)
        missing = len(set(range(len(asked))) - there.keys())
        if missing:
            raise RuntimeError(f'{missing} of {len(asked)} replies by other processes are not in '
                               f'{self.folder}; give a folder that all processes can reach')
        return [there[k] for k in range(len(asked))]

    def summary(self) -> dict[str, int | float]:
        """Return the `Stats.summary` of all processes and attempts, whose seconds add up."""
        total = dict.fromkeys(dataclasses.asdict(self.counted), 0)
        for path in self._files():
            part = read_json(path)
            for figure, value in part['stats'].items() if part['key'] in self.keys else ():
                total[figure] += value
        return Stats(**total).summary()

    def remove(self) -> None:
        """Delete what was kept; only process 0 may, once no other reads it any more."""
        if self.folder.is_dir():
            # All of it: a process that was killed while it wrote has left a partial file.
            for path in self.folder.iterdir():
                path.unlink()
        if self.folder.is_dir():  # a bucket has no empty folders
            self.folder.rmdir()

    def _keep(self, key):
        """Write what is new into a file of its own."""
        self.kept_at = time.monotonic()
        if not self.fresh:
            return
        before = dataclasses.asdict(self.counted)
        self.counted = dataclasses.replace(self.engine.stats)
        stats = {name: value - before[name]
                 for name, value in dataclasses.asdict(self.counted).items()}
        # Earlier attempts have left files of the same process, which stay.
        names = {path.name for path in self._files()}
        number = next(k for k in range(len(names) + 1) if f'{self.rank}-{k}.json' not in names)
        write_json(self.folder / f'{self.rank}-{number}.json', {
            'key': key, 'stats': stats, 'replies': {
                k: dataclasses.asdict(reply) for k, reply in self.fresh.items()}})
        self.fresh = {}

    def _read(self, key):
        """Return {index: Reply} of all that is kept of the questions `key`."""
        replies = {}
        for path in self._files():
            value = read_json(path)
            if value['key'] == key:
                for k, fields in value['replies'].items():
                    replies[int(k)] = Reply(**fields | {
                        name: tuple(fields[name]) for name in ('ids', 'costs') if name in fields})
        return replies

    def _files(self):
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir()
                if path.name.endswith('.json') and not path.name.startswith('.')]

"""Published sets -> a folder of ArrayRecord shards with a manifest; parallel, and it continues.

A source is cut into chunks of rows; each becomes one shard, its costs and a JSON file that names
what was rejected and why. A chunk is done when that JSON is there, so a killed build loses at most
the chunks it was in. Chunks, and so all bytes of the folder, do not depend on the number of
processes.
"""
import contextlib
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from downscale.data.corpora.build_settings import Settings
from downscale.data.corpora.manifest import encoder_key, mixture_json, write_manifest
from downscale.data.corpora.mixture import Mixture
from downscale.data.corpora.shards import Chunk, write
from downscale.data.corpora.sources import open_rows, under
from downscale.data.row_files import shown
from downscale.runtime.files import lock, read_json, write_json
from downscale.runtime.streams import LONGEST_ERROR

CHUNK = 4000  # rows of a shard; every shard that is read stays open

# --- the folder -------------------------------------------------------------------------------

class Build:
    """A mixture that is built into the folder `to` by `jobs` processes.

    `report(name, done, total)` is called with the rows of a source.
    """

    def __init__(
            self, mixture: Mixture, to: Path, settings: Settings, jobs: int = 1,
            report: Callable[[str, int, int], object] = lambda name, done, total: None) -> None:
        self.mixture = mixture
        self.to = Path(to)
        self.settings = settings
        self.jobs = jobs
        self.report = report
        self.tables = {}
        opened = {}  # several sources may be parts of one file
        for source in mixture.sources:
            key = source.path, source.tfds, source.split
            if key not in opened:
                opened[key] = open_rows(source, settings.root)
            under(settings.root, source.images or '.', source)
            self.tables[source.name] = opened[key]

    def run(self) -> dict[str, Any]:
        """Build, and return the manifest, which is written last; what a killed run made is used.

        ValueError when too many rows of a source are rejected, with counts by reason, and when `to`
        was begun with other settings. FileNotFoundError when a source is not there.
        """
        self.to.mkdir(parents=True, exist_ok=True)
        handle = lock(self.to)
        try:
            self._begin()
            manifest = read_json(self.to / 'manifest.json')
            shards = manifest['shards'] if manifest else []
            # A manifest is written last; only a shard that was deleted since asks for more work.
            if manifest and all((self.to / shard['file']).is_file() for shard in shards):
                return manifest
            with self._workers():
                sources = {source.name: self._source(source) for source in self.mixture.sources}
                return write_manifest(self.to, self.mixture, self.settings, sources)
        finally:
            os.close(handle)

    def _workers(self):
        """Return the pool of processes, which starts with its first task; None for one process."""
        self.pool = None
        if self.jobs == 1:
            return contextlib.nullcontext()
        # Not a fork: threads of the libraries may hold locks.
        self.pool = ProcessPoolExecutor(self.jobs, mp_context=get_context('spawn'))
        return self.pool

    def _begin(self):
        """Write `plan.json`, what is built here; ValueError where something else was begun."""
        plan = {'mixture': mixture_json(self.mixture), 'length': self.settings.length,
                'encoder': encoder_key(self.mixture, self.settings),
                'files': {name: _hash_files(table.paths) for name, table in self.tables.items()}}
        before = read_json(self.to / 'plan.json')
        if before is None and any(self.to.glob('*.arrayrecord')):
            raise ValueError(f'{self.to} holds records of something else; give an empty folder')
        if before is not None and before != plan:
            changed = ', '.join(key for key in plan if plan[key] != before.get(key))
            raise ValueError(f'{self.to} was begun with another {changed}; give another folder, '
                             'or delete this one')
        write_json(self.to / 'plan.json', plan)

    def _source(self, source):
        """Return the JSON of every shard of a source; rejected rows of a subset are replaced."""
        table = self.tables[source.name]
        all_rows = _rows_of(source, table)
        names, doubled = _names(table, all_rows)
        rows = [index for index in all_rows if index not in doubled]
        wanted = len(rows) if source.take is None else source.take
        if wanted > len(rows):
            raise ValueError(f'source {source.name}: take {wanted:,} is more than its '
                             f'{len(rows):,} rows')
        # A permutation, not a draw: rows that are rejected are replaced by the next in its order.
        if source.take is not None:
            rows = np.random.default_rng(source.seed).permutation(rows).tolist()
        shards = self._taken(source, rows, names, wanted)
        # Where no mark in the text tells which rows have pictures, those that lack one lost it.
        if not source.text_rows and any(shard['blank'] for shard in shards) \
                and any(shard['unmarked'] for shard in shards):
            shards = self._taken(source, rows, names, wanted, pictured=True)
        return {'rows': len(all_rows), 'doubled': [names[i] for i in sorted(doubled)],
                'shards': shards}

    def _taken(self, source, rows, names, wanted, pictured=False):
        """Return the JSON of the shards of the first `wanted` usable rows.

        Rows that are rejected are replaced by the next ones, which become further shards.
        """
        table = self.tables[source.name]
        shards = []
        taken = 0
        accepted = 0
        while accepted < wanted and taken < len(rows):
            # Ascending, as tables are read; which rows these are is what the permutation decides.
            chosen = sorted(rows[taken:taken + wanted - accepted])
            chunks = []
            for start in range(0, len(chosen), CHUNK):
                part = chosen[start:start + CHUNK]
                chunks.append(Chunk(
                    source=source, number=len(shards) + len(chunks), part=table.part(part),
                    names=tuple(names[index] for index in part), pictured=pictured))
            shards += self._chunks(source, chunks, shards, wanted)
            taken += len(chosen)
            accepted = sum(shard['records'] for shard in shards)
        if not accepted:
            raise ValueError(f'source {source.name} has no usable row{_reasons(shards)}')
        return shards

    def _chunks(self, source, chunks, before, wanted):
        """Return the JSON of each chunk, in order; finished ones are not made again."""
        values = {}
        todo = []
        for chunk in chunks:
            value = self._finished(chunk)
            if value is None:
                todo.append(chunk)
            else:
                values[chunk.number] = value
        rows = {chunk.number: len(chunk.names) for chunk in chunks}

        def settle(number, value):
            values[number] = value
            self._check(source, [*before, *values.values()], wanted)
            self.report(source.name, sum(rows[k] for k in values), sum(rows.values()))
        self._check(source, [*before, *values.values()], wanted)
        if self.pool is None:
            for chunk in todo:
                settle(chunk.number, self._made(chunk))
        else:
            self._in_processes(todo, settle)
        return [values[number] for number in sorted(values)]

    def _finished(self, chunk):
        """Return the JSON of a chunk that need not be made again, None of any other.

        A chunk with a rejected picture is made again: the picture may have been mended since.
        """
        value = read_json(self.to / f'{chunk.stem}.json')
        if value is None or value['rows'] != chunk.hash or 'aside' not in value \
                or not (self.to / value['file']).is_file() \
                or any('image' in reason for _, reason, _ in value['rejected']):
            return None
        return value

    def _made(self, chunk):
        return write(chunk, self.settings, self.mixture.stage, self.to)

    def _in_processes(self, todo, settle):
        """Make chunks in the pool, and call `settle` with the number and the JSON of each."""
        todo = list(reversed(todo))
        running = {}
        while todo or running:
            # Rows travel with their chunk: they are sent as they are needed, not all at once.
            while todo and len(running) < 2 * self.jobs:
                chunk = todo.pop()
                running[self.pool.submit(write, chunk, self.settings, self.mixture.stage,
                                         self.to)] = chunk.number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                settle(running.pop(future), future.result())

    def _check(self, source, shards, wanted):
        """Raise ValueError where more rows are rejected than the settings allow."""
        # Of the rows that are wanted, not of those seen so far: the first may be the worst.
        rejected = sum(len(shard['rejected']) for shard in shards)
        most = self.settings.most_rejected
        if rejected > most * wanted:
            first = next(shard['rejected'][0] for shard in shards if shard['rejected'])
            head = (f'source {shown(source.name, 30)}: {rejected} of {wanted:,} rows so far are '
                    f'rejected{_reasons(shards)}, more than {most:.1%}; first '
                    f'{shown(first[0], 20)!r}: ')
            tail = '. Mend it, or raise --most-rejected'
            raise ValueError(head + shown(first[2], LONGEST_ERROR - len(head) - len(tail)) + tail)

def _reasons(shards):
    """Return the most frequent reasons of rejected rows, ' (no answer 3)'; '' without any."""
    counts = Counter()
    for shard in shards:
        counts.update(reason for _, reason, _ in shard['rejected'])
    frequent = ', '.join(f'{name} {n}' for name, n in counts.most_common(3))
    return f' ({frequent})' if frequent else ''


def _rows_of(source, table):
    """Return the rows of a table that belong to a source."""
    if not source.only:
        return range(len(table))
    groups = [table.group(index) for index in range(len(table))]
    unknown = sorted(set(source.only) - set(groups))
    if unknown:
        raise ValueError(f'source {source.name}: no row is from {", ".join(unknown)}; there are '
                         f'{", ".join(sorted(set(groups)))}')
    return [index for index, group in enumerate(groups) if group in source.only]


def _names(table, rows):
    """Return ({row: its unique name}, rows that repeat another of the same id).

    Published sets reuse ids: a second conversation about a picture keeps its own row, as 'id#2'.
    """
    same = defaultdict(list)
    for index in rows:
        same[table.name(index)].append(index)
    # Most ids are of one row, which need not be read.
    again = []
    for shared in same.values():
        if len(shared) > 1:
            again += shared
    again.sort()
    digests = dict(zip(again, table.digests(again), strict=True))
    names = {}
    doubled = set()
    for name, shared in same.items():
        seen = set()
        # A row that is alone has no digest: None, seen once.
        for index in shared:
            if digests.get(index) in seen:
                doubled.add(index)
            seen.add(digests.get(index))
            names[index] = name if len(seen) < 2 else f'{name}#{len(seen)}'
    return names, doubled


def _hash_files(paths):
    """Return a hash of the contents of files; of a folder (TFDS), of the names and sizes in it."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_dir():
            for part in sorted(path.rglob('*')):
                digest.update(f'{part.relative_to(path)} {part.stat().st_size}\n'.encode())
        else:
            with path.open('rb') as file:
                digest.update(hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()[:32]


def build(mixture: Mixture, to: Path, settings: Settings, jobs: int = 1,
          report: Callable[[str, int, int], object] = lambda name, done, total: None
          ) -> dict[str, Any]:
    """Build `mixture` into the folder `to`, and return its manifest; see `Build.run`."""
    if not isinstance(mixture, Mixture):
        raise ValueError(f'a mixture must be a Mixture, not {type(mixture).__name__}')
    return Build(mixture, to, settings, jobs, report).run()

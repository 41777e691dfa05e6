"""Published sets -> a folder of ArrayRecord shards with a manifest; parallel, and it continues.

A source is cut into chunks of rows; each becomes one shard, its costs and a JSON file that names
what was rejected and why. A chunk is done when that JSON is there, so a killed build loses at most
the chunks it was in. Chunks, and so all bytes of the folder, do not depend on the number of
processes.
"""
import contextlib
import dataclasses
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from downscale.data.corpora.mixture import Mixture, epoch_order, key_of, per_epoch
from downscale.data.corpora.shards import Chunk, Settings, write
from downscale.data.corpora.sources import open_rows, under
from downscale.data.files import LONGEST_ERROR, shown
from downscale.runtime.files import lock, read_json, write_json

CHUNK = 4000  # rows of a shard; every shard that is read stays open
SHOWN = 20  # rejected rows that the manifest names; `rejected.jsonl` names all

# --- the folder -------------------------------------------------------------------------------

class Build:
    """A mixture to be built below `to`; `report(name, done, total)` is called with rows."""

    def __init__(
            self, mixture: Mixture, to: Path, settings: Settings, jobs: int = 1,
            report: Callable[[str, int, int], object] = lambda name, done, total: None) -> None:
        self.mixture, self.to, self.settings = mixture, Path(to), settings
        self.jobs = jobs
        self.report = report
        opened = {}  # several sources may be parts of one file
        for source in mixture.sources:
            key = source.path, source.tfds, source.split
            if key not in opened:
                opened[key] = open_rows(source, settings.root)
            under(settings.root, source.images or '.', source)
        self.tables = {source.name: opened[source.path, source.tfds, source.split]
                       for source in mixture.sources}

    def run(self) -> dict[str, Any]:
        """Return the manifest, written last; what an earlier, killed run made is used.

        ValueError when too many rows of a source are rejected, with counts by reason, and when `to`
        was begun with other settings. FileNotFoundError when a source is not there.
        """
        self.to.mkdir(parents=True, exist_ok=True)
        handle = lock(self.to)
        try:
            self._begin()
            manifest = read_json(self.to / 'manifest.json')
            if manifest and all((self.to / shard['file']).is_file()
                                for shard in manifest['shards']):
                return manifest
            with self._workers():
                return self._manifest({source.name: self._source(source)
                                       for source in self.mixture.sources})
        finally:
            os.close(handle)

    def _workers(self):
        """Return the pool of processes, which starts with its first task; None for one process."""
        self.pool = None
        if self.jobs == 1:
            return contextlib.nullcontext()
        self.pool = ProcessPoolExecutor(self.jobs, mp_context=get_context('spawn'))
        return self.pool

    def _begin(self):
        """`plan.json` says what is built here; ValueError where something else was begun."""
        plan = {'mixture': _json(self.mixture), 'length': self.settings.length,
                'encoder': self._encoder_key(),
                'files': {name: _hash_files(table.paths) for name, table in self.tables.items()}}
        before = read_json(self.to / 'plan.json')
        if before is None and any(self.to.glob('*.arrayrecord')):
            raise ValueError(f'{self.to} holds records of something else; give an empty folder')
        if before is not None and before != plan:
            changed = ', '.join(key for key in plan if plan[key] != before.get(key))
            raise ValueError(f'{self.to} was begun with another {changed}; give another folder, '
                             'or delete this one')
        write_json(self.to / 'plan.json', plan)

    def _encoder_key(self):
        encoder = self.settings.encoder(self.mixture.stage)
        return '' if encoder is None else key_of(encoder)

    def _source(self, source):
        """Return the JSON of every shard of a source; rejected rows of a subset are replaced."""
        table = self.tables[source.name]
        mine = _mine(source, table)
        names, doubled = _names(table, mine)
        rows = [index for index in mine if index not in doubled]
        wanted = len(rows) if source.take is None else source.take
        if wanted > len(rows):
            raise ValueError(f'source {source.name}: take {wanted:,} is more than its '
                             f'{len(rows):,} rows')
        if source.take is not None:
            rows = np.random.default_rng(source.seed).permutation(rows).tolist()
        shards = self._taken(source, rows, names, wanted)
        # Where no mark in the text tells which rows have pictures, those that lack one lost it.
        if not source.text_rows and any(shard['blank'] for shard in shards) \
                and any(shard['unmarked'] for shard in shards):
            shards = self._taken(source, rows, names, wanted, pictured=True)
        return {'rows': len(mine), 'doubled': [names[i] for i in sorted(doubled)],
                'shards': shards}

    def _taken(self, source, rows, names, wanted, pictured=False):
        """Return the JSON of the shards of the first `wanted` usable rows."""
        table = self.tables[source.name]
        shards = []
        taken = 0
        accepted = 0
        while accepted < wanted and taken < len(rows):
            chosen = sorted(rows[taken:taken + wanted - accepted])
            chunks = [
                Chunk(
                    source=source,
                    number=len(shards) + k,
                    names=tuple(names[i] for i in part),
                    part=table.part(part),
                    pictured=pictured,
                )
                for k, part in enumerate(_parts(chosen, CHUNK))
            ]
            shards += self._chunks(source, chunks, shards, wanted)
            taken += len(chosen)
            accepted = sum(shard['records'] for shard in shards)
        if not accepted:
            raise ValueError(f'source {source.name} has no usable row{_reasons(shards)}')
        return shards

    def _chunks(self, source, chunks, before, wanted):
        """Return the JSON of each chunk, in order; those that are there already are not made
        again.
        """
        found = {chunk.number: value for chunk in chunks
                 if (value := self._finished(chunk)) is not None}
        todo = [chunk for chunk in chunks if chunk.number not in found]
        rows = {chunk.number: len(chunk.names) for chunk in chunks}

        def settle(number, value):
            found[number] = value
            self._check(source, [*before, *found.values()], wanted)
            self.report(source.name, sum(rows[k] for k in found), sum(rows.values()))
        self._check(source, [*before, *found.values()], wanted)
        if self.pool is None:
            for chunk in todo:
                settle(chunk.number, self._made(chunk))
        else:
            self._in_processes(todo, settle)
        return [found[number] for number in sorted(found)]

    def _finished(self, chunk):
        """Return the JSON of a chunk that need not be made again; None where a picture was at
        fault, which may have been mended since.
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
        todo = list(reversed(todo))
        running = {}
        while todo or running:
            while todo and len(running) < 2 * self.jobs:  # parts are sent as they are needed
                chunk = todo.pop()
                running[self.pool.submit(write, chunk, self.settings, self.mixture.stage,
                                         self.to)] = chunk.number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                settle(running.pop(future), future.result())

    def _check(self, source, shards, wanted):
        rejected = sum(len(shard['rejected']) for shard in shards)
        most = self.settings.most_rejected
        if rejected > most * wanted:
            first = next(shard['rejected'][0] for shard in shards if shard['rejected'])
            head = (f'source {shown(source.name, 30)}: {rejected} of {wanted:,} rows so far are '
                    f'rejected{_reasons(shards)}, more than {most:.1%}; first '
                    f'{shown(first[0], 20)!r}: ')
            tail = '. Mend it, or raise --most-rejected'
            raise ValueError(head + shown(first[2], LONGEST_ERROR - len(head) - len(tail)) + tail)

    # --- the manifest ---

    def _manifest(self, done):
        counts = {name: sum(shard['records'] for shard in one['shards'])
                  for name, one in done.items()}
        order = epoch_order(self.mixture, counts)
        shards = [shard for one in done.values() for shard in one['shards'] if shard['records']]
        digest = hashlib.sha256(''.join(shard['hash'] for shard in shards).encode())
        lines = [{'source': name, 'id': row[0], 'reason': row[1], 'detail': row[2]}
                 for name, one in done.items() for row in _rejected(one)]
        (self.to / 'rejected.jsonl').write_text(''.join(
            json.dumps(line, ensure_ascii=False) + '\n' for line in lines), 'utf-8')
        value = {
            'mixture': _json(self.mixture), 'hash': digest.hexdigest()[:32],
            'encoder': self._encoder_key(), 'length': self.settings.length,
            'sources': {source.name: self._told(source, done[source.name])
                        for source in self.mixture.sources},
            'epoch': {'conversations': len(order), 'sources': per_epoch(self.mixture, counts),
                      'order': hashlib.sha256(order.tobytes()).hexdigest()[:32]},
            'shards': [{name: shard[name] for name in ('file', 'costs', 'source', 'records',
                                                       'bytes', 'hash')} for shard in shards]}
        write_json(self.to / 'manifest.json', value)
        return value

    def _told(self, source, one):
        """Return what the manifest says of a source."""
        shards = one['shards']
        rejected = _rejected(one)
        costs = np.concatenate([np.load(self.to / shard['costs']) for shard in shards])
        subset = 'all rows' if source.take is None else \
            f'the first {source.take:,} usable rows of a permutation by seed {source.seed}'
        return {
            'licence': source.licence, 'obtain': source.obtain, 'rows': one['rows'],
            'subset': subset, 'accepted': len(costs),
            'pictures': sum(shard['pictures'] for shard in shards),
            'without_picture': sum(shard['blank'] for shard in shards),
            'left_out': _summed(shard['aside'] for shard in shards),
            'bytes': sum(shard['bytes'] for shard in shards),
            'hash': hashlib.sha256(''.join(shard['hash'] for shard in shards).encode()
                                   ).hexdigest()[:32],
            'tokens': _token_statistics(costs) if self.settings.tokenizer else None,
            'rejected': dict(sorted(Counter(row[1] for row in rejected).items())),
            'rejected_first': rejected[:SHOWN]}


def _json(mixture):
    """Return the mixture as JSON; what most sources leave out is not written, as older folders had
    none.
    """
    value = json.loads(json.dumps(dataclasses.asdict(mixture)))
    for source in value['sources']:
        for name in ('ignore', 'text_rows'):
            if not source[name]:
                del source[name]
    return value


def _rejected(one):
    """Return [id, reason, detail] of every rejected row of a source."""
    return [*([name, 'duplicate', f'another row of id {name!r} is equal']
              for name in one['doubled']),
            *(row for shard in one['shards'] for row in shard['rejected'])]


def _reasons(shards):
    counts = Counter(row[1] for shard in shards for row in shard['rejected'])
    return f' ({", ".join(f"{name} {n}" for name, n in counts.most_common(3))})' if counts else ''


def _summed(counts):
    """Return counts by name of several; a column that was always empty stays, with 0."""
    total = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _parts(rows, size):
    return [rows[start:start + size] for start in range(0, len(rows), size)]


def _mine(source, table):
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
    again = sorted(index for shared in same.values() if len(shared) > 1 for index in shared)
    digests = dict(zip(again, table.digests(again), strict=True))
    names = {}
    doubled = set()
    for name, shared in same.items():
        seen = set()
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
            for one in sorted(path.rglob('*')):
                digest.update(f'{one.relative_to(path)} {one.stat().st_size}\n'.encode())
        else:
            with path.open('rb') as file:
                digest.update(hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()[:32]


def _token_statistics(costs):
    """Return sum, mean and quantiles of the tokens of a source: text, image and supervised."""
    tokens, _, shown, learnt = costs.T.astype(np.int64)
    columns = {'text': tokens - shown, 'image': shown, 'supervised': learnt, 'all': tokens}
    return {name: {'sum': int(column.sum()), 'mean': round(float(column.mean()), 1),
                   'median': float(np.median(column)), 'p95': float(np.quantile(column, 0.95)),
                   'max': int(column.max())} for name, column in columns.items()}


def build(mixture: Mixture, to: Path, settings: Settings, jobs: int = 1,
          report: Callable[[str, int, int], object] = lambda name, done, total: None
          ) -> dict[str, Any]:
    """Return the manifest of `mixture` built into the folder `to`; see `Build.run`."""
    if not isinstance(mixture, Mixture):
        raise ValueError(f'a mixture must be a Mixture, not {type(mixture).__name__}')
    return Build(mixture, to, settings, jobs, report).run()

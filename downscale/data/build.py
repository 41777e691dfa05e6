"""Published sets -> a folder of ArrayRecord shards with a manifest; parallel, and it continues.

A source is cut into chunks of rows; each becomes one shard, its costs and a JSON file that names
what was rejected and why. A chunk is done when that JSON is there, so a killed build loses at most
the chunks it was in. Chunks, and so all bytes of the folder, do not depend on the number of
processes.
"""
import dataclasses
import hashlib
import json
import os
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from downscale.data import measure
from downscale.data.chat import CHATS
from downscale.data.corpus import COSTS, Mixture, epoch_order, key_of, per_epoch
from downscale.data.sources import Rejected, Source, open_rows, pack, record_of, under
from downscale.data.tokens import Encoder, Layout, load_tokenizer
from downscale.places import lock, read_json, write_json
from downscale.sizes import SIGLIP, Pictures

CHUNK = 1000  # rows of a shard
LENGTH = 32768  # tokens of a record (arXiv 2511.17487 and its code: the tokenizer's maximum)
SHOWN = 20  # rejected rows that the manifest names; `rejected.jsonl` names all
VISION = SIGLIP['so400m-patch14-384']


@dataclass(frozen=True)
class Settings:
    """What decides a build beside the mixture and the files: where the sources lie, the tokenizer
    that counts, the most tokens of a record, and the share of a source that may be rejected."""
    root: Path
    tokenizer: Path | None = None
    length: int = LENGTH
    most_rejected: float = 0.01

    def encoder(self, stage):
        """The encoder that counts tokens as `stage` does; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        plain = stage in ('align', 'tower')
        return Encoder(load_tokenizer(self.tokenizer), CHATS['plain' if plain else 'chatml'],
                       Layout(VISION, Pictures('flat' if plain else 'anyres')))


@dataclass(frozen=True)
class _Chunk:
    """Rows of one source that become one shard."""
    source: Source
    number: int
    names: tuple[str, ...]
    part: object

    @property
    def stem(self):
        return f'{self.source.name}-{self.number:05d}'


# --- one shard --------------------------------------------------------------------------------

def _write(chunk, settings, stage, to):
    """The shard of a chunk is in `to`; returns its JSON. Runs in a process of its own."""
    encoder = settings.encoder(stage)
    folder = under(settings.root, chunk.source.images or '.', chunk.source)
    path = to / f'{chunk.stem}.arrayrecord'
    partial = path.with_name(f'.{path.name}.partial')
    rejected, ids, costs, size, pictures = [], [], [], 0, 0
    digest = hashlib.sha256()
    writer = ArrayRecordWriter(str(partial), 'group_size:1')
    for name, row in zip(chunk.names, chunk.part, strict=True):
        try:
            record = record_of(row, name, chunk.source, folder)
            costs.append(_cost(encoder, record, settings.length))
        except Rejected as error:
            rejected.append([name, error.reason, str(error)])
            continue
        data = pack(record)
        writer.write(data)
        digest.update(data)
        ids.append(name)
        size, pictures = size + len(data), pictures + len(record.talk.images)
    writer.close()
    costs_path = path.with_suffix('.npy')
    with partial.with_suffix('.npy').open('wb') as file:
        np.save(file, np.array(costs, np.int32).reshape(-1, len(COSTS)))
    os.replace(partial.with_suffix('.npy'), costs_path)
    os.replace(partial, path)
    value = {'file': path.name, 'costs': costs_path.name, 'source': chunk.source.name,
             'records': len(ids), 'pictures': pictures, 'bytes': size,
             'hash': digest.hexdigest()[:32], 'rejected': rejected}
    write_json(path.with_suffix('.json'), value)
    return value


def _cost(encoder, record, length):
    """`COSTS` of a record, zeros without an encoder; `Rejected` when it is too long."""
    if encoder is None:
        return (0,) * len(COSTS)
    found = measure.counts(encoder, record.talk, record.id)
    if found[0] > length:
        raise Rejected('too long', f'{found[0]:,} tokens are more than {length:,}')
    return found


# --- the folder -------------------------------------------------------------------------------

class Build:
    """A mixture to be built below `to`; `report(name, done, total)` is called with rows."""

    def __init__(self, mixture, to, settings, jobs=1, report=lambda name, done, total: None):
        self.mixture, self.to, self.settings = mixture, Path(to), settings
        self.jobs, self.report = jobs, report
        self.tables = {source.name: open_rows(source, settings.root) for source in mixture.sources}
        for source in mixture.sources:
            under(settings.root, source.images or '.', source)

    def run(self):
        """The manifest, written last; what an earlier, killed run made is used.

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
            done = {}
            for source in self.mixture.sources:
                done[source.name] = self._source(source)
            return self._manifest(done)
        finally:
            os.close(handle)

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
        """The JSON of every shard of a source; rejected rows of a subset are replaced."""
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
        shards, taken, accepted = [], 0, 0
        while accepted < wanted and taken < len(rows):
            chosen = sorted(rows[taken:taken + wanted - accepted])
            chunks = [_Chunk(source, len(shards) + k, tuple(names[i] for i in part),
                             table.part(part))
                      for k, part in enumerate(_parts(chosen, CHUNK))]
            shards += self._chunks(source, chunks, shards, wanted)
            taken += len(chosen)
            accepted = sum(shard['records'] for shard in shards)
        if not accepted:
            raise ValueError(f'source {source.name} has no usable row{_reasons(shards)}')
        return {'rows': len(mine), 'doubled': [names[i] for i in sorted(doubled)],
                'shards': shards}

    def _chunks(self, source, chunks, before, wanted):
        """The JSON of each chunk, in order; those that are there already are not made again."""
        found = {chunk.number: value for chunk in chunks
                 if (value := self._finished(chunk)) is not None}
        todo = [chunk for chunk in chunks if chunk.number not in found]
        rows = {chunk.number: len(chunk.names) for chunk in chunks}

        def settle(number, value):
            found[number] = value
            self._check(source, [*before, *found.values()], wanted)
            self.report(source.name, sum(rows[k] for k in found), sum(rows.values()))
        self._check(source, [*before, *found.values()], wanted)
        if self.jobs == 1 or len(todo) < 2:
            for chunk in todo:
                settle(chunk.number, self._made(chunk))
        else:
            self._in_processes(todo, settle)
        return [found[number] for number in sorted(found)]

    def _finished(self, chunk):
        """The JSON of a chunk that need not be made again; None where a picture was at fault,
        which may have been mended since."""
        value = read_json(self.to / f'{chunk.stem}.json')
        if value is None or not (self.to / value['file']).is_file() or \
                any('image' in reason for _, reason, _ in value['rejected']):
            return None
        return value

    def _made(self, chunk):
        return _write(chunk, self.settings, self.mixture.stage, self.to)

    def _in_processes(self, todo, settle):
        todo, running = list(reversed(todo)), {}
        with ProcessPoolExecutor(self.jobs, mp_context=get_context('spawn')) as pool:
            while todo or running:
                while todo and len(running) < 2 * self.jobs:  # parts are sent as they are needed
                    chunk = todo.pop()
                    running[pool.submit(_write, chunk, self.settings, self.mixture.stage,
                                        self.to)] = chunk.number
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    settle(running.pop(future), future.result())

    def _check(self, source, shards, wanted):
        rejected = sum(len(shard['rejected']) for shard in shards)
        most = self.settings.most_rejected
        if rejected > most * wanted:
            first = next(shard['rejected'][0] for shard in shards if shard['rejected'])
            raise ValueError(
                f'source {source.name}: {rejected} of {wanted:,} rows so far are rejected'
                f'{_reasons(shards)}, more than {most:.1%}; first {first[0]!r}: {first[2]}. Mend '
                'that, or raise --most-rejected; what is built is kept')

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
        """What the manifest says of a source."""
        shards, rejected = one['shards'], _rejected(one)
        costs = np.concatenate([np.load(self.to / shard['costs']) for shard in shards])
        subset = 'all rows' if source.take is None else \
            f'the first {source.take:,} usable rows of a permutation by seed {source.seed}'
        return {
            'licence': source.licence, 'obtain': source.obtain, 'rows': one['rows'],
            'subset': subset, 'accepted': len(costs),
            'pictures': sum(shard['pictures'] for shard in shards),
            'bytes': sum(shard['bytes'] for shard in shards),
            'hash': hashlib.sha256(''.join(shard['hash'] for shard in shards).encode()
                                   ).hexdigest()[:32],
            'tokens': _token_statistics(costs) if self.settings.tokenizer else None,
            'rejected': dict(sorted(Counter(row[1] for row in rejected).items())),
            'rejected_first': rejected[:SHOWN]}


def _json(mixture):
    return json.loads(json.dumps(dataclasses.asdict(mixture)))


def _rejected(one):
    """[id, reason, detail] of every rejected row of a source."""
    return [*([name, 'duplicate', f'another row of id {name!r} is equal']
              for name in one['doubled']),
            *(row for shard in one['shards'] for row in shard['rejected'])]


def _reasons(shards):
    counts = Counter(row[1] for shard in shards for row in shard['rejected'])
    return f' ({", ".join(f"{name} {n}" for name, n in counts.most_common())})' if counts else ''


def _parts(rows, size):
    return [rows[start:start + size] for start in range(0, len(rows), size)]


def _mine(source, table):
    """The rows of a table that belong to a source."""
    if not source.only:
        return range(len(table))
    groups = [table.group(index) for index in range(len(table))]
    unknown = sorted(set(source.only) - set(groups))
    if unknown:
        raise ValueError(f'source {source.name}: no row is from {", ".join(unknown)}; there are '
                         f'{", ".join(sorted(set(groups)))}')
    return [index for index, group in enumerate(groups) if group in source.only]


def _names(table, rows):
    """({row: its unique name}, rows that repeat another of the same id).

    Published sets reuse ids: a second conversation about a picture keeps its own row, as 'id#2'.
    """
    first, names, doubled = {}, {}, set()
    for index in rows:
        name = table.name(index)
        others = first.setdefault(name, [])
        if others and table.digest(index) in [table.digest(other) for other in others]:
            doubled.add(index)
        else:
            others.append(index)
        names[index] = name if len(others) < 2 else f'{name}#{len(others)}'
    return names, doubled


def _hash_files(paths):
    """A hash of the contents of files; of a folder (TFDS), of the names and sizes in it."""
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
    """Sum, mean and quantiles of the tokens of a source: text, image and supervised."""
    tokens, _, shown, learnt = costs.T.astype(np.int64)
    columns = {'text': tokens - shown, 'image': shown, 'supervised': learnt, 'all': tokens}
    return {name: {'sum': int(column.sum()), 'mean': round(float(column.mean()), 1),
                   'median': float(np.median(column)), 'p95': float(np.quantile(column, 0.95)),
                   'max': int(column.max())} for name, column in columns.items()}


def build(mixture, to, settings, jobs=1, report=lambda name, done, total: None):
    """The manifest of `mixture` built into the folder `to`; see `Build.run`."""
    if not isinstance(mixture, Mixture):
        raise ValueError(f'a mixture must be a Mixture, not {type(mixture).__name__}')
    return Build(mixture, to, settings, jobs, report).run()

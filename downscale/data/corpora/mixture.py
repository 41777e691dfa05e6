"""Mixtures of published sets, built once into ArrayRecord, and their examples in training order.

A `Mixture` is data. `build.py` makes a folder of it; `Corpus` opens that folder. Which record
stands at a position of an epoch follows from the manifest and a seed alone, so a run continues on
any number of processes with the same order.
"""
import dataclasses
import errno
import json
import sys
import threading
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from downscale.data import measure
from downscale.data.corpora.sources import Source, unpack
from downscale.data.records import Record
from downscale.data.scenes.conversations import MIXTURES
from downscale.data.tokens import Encoder, hash_of
from downscale.runtime import copies
from downscale.runtime.files import PathLike, read_json, whole
from downscale.values import Choice, Range, check

ORDERS = ('shuffled', 'listed')
COSTS = ('tokens', 'tiles', 'image tokens', 'supervised tokens')
# Files that are asked for at once: through the mount of a bucket each answer takes 30 ms and more.
READERS = 64
_opening = threading.Lock()


@dataclass(frozen=True)
class Mixture:
    """What a stage sees in an epoch: sources, each with its share, and the order.

    `stage` says how text and pictures count in the manifest: 'align' is bare captions and one tile
    a picture, any other the chat and tiling of the later stages. `order` 'shuffled' mixes all
    records anew in every epoch; 'listed' goes through the sources one after another.
    """
    name: str
    sources: tuple[Source, ...]
    _: KW_ONLY
    stage: Annotated[str, Choice(tuple(MIXTURES), 'stage')] = 'instruct'
    seed: Annotated[int, Range(0, 2 ** 32 - 1, 'seed of the order')] = 0
    order: Annotated[str, Choice(ORDERS, 'order')] = 'shuffled'

    def __post_init__(self):
        check(self)
        names = [source.name for source in self.sources]
        if not names or len(set(names)) != len(names):
            raise ValueError(f'mixture {self.name}: source names {names} must be given, each once')


def epoch_order(mixture: Mixture, counts: dict[str, int], seed: int = 0,
                epoch: int = 0) -> np.ndarray:
    """Return the record at each position of an epoch, int64 [n], numbered through the sources.

    `counts` are records by source name. A source of 2.25 epochs gives every record twice and a
    quarter of them, chosen anew in each epoch, once more.
    """
    parts = []
    first = 0
    for source in mixture.sources:
        count = counts[source.name]
        times, more = _share(source, count)
        # The name is part of the key: two sources of equal seeds choose by themselves.
        key = [mixture.seed, source.seed, zlib.crc32(source.name.encode()), seed, epoch]
        again = np.random.default_rng(key).permutation(count)[:more]
        rows = np.concatenate([np.tile(np.arange(count), times), np.sort(again)])
        parts.append(first + rows)
        first += count
    order = np.concatenate(parts).astype(np.int64)
    if mixture.order == 'listed':
        return order
    return np.random.default_rng([mixture.seed, seed, epoch]).permutation(order)


def per_epoch(mixture: Mixture, counts: dict[str, int]) -> dict[str, int]:
    """Return {source: conversations in one epoch}: what `epoch_order` gives for any seed."""
    total = {}
    for source in mixture.sources:
        times, more = _share(source, counts[source.name])
        total[source.name] = times * counts[source.name] + more
    return total


def _share(source, count):
    """Return how often an epoch has each of `count` records of a source, and how many once more."""
    times = int(source.epochs)
    return times, round((source.epochs - times) * count)


class Corpus:
    """The records of a built mixture: `len`, `record(i)`, and what each costs an encoder."""

    def __init__(self, folder: PathLike) -> None:
        """Open a built folder.

        FileNotFoundError or ValueError in one line where `folder` is no finished build.
        """
        self.folder = Path(folder)
        self.manifest = read_json(self.folder / 'manifest.json')
        if self.manifest is None:
            raise FileNotFoundError(f'no manifest.json in {folder}; build the mixture there with '
                                    '`downscale data build MIXTURE --to DIR`')
        names = [shard['file'] for shard in self.manifest['shards']]
        there = _at_once(lambda name: copies.obtainable(self.folder / name), names)
        lacking = [name for name, is_there in zip(names, there, strict=True) if not is_there]
        if lacking:
            raise FileNotFoundError(f'{folder} lacks {len(lacking)} shards (first {lacking[0]}); '
                                    'the same `downscale data build` makes them again')
        self.mixture = mixture_of(self.manifest['mixture'])
        self.counts = {name: facts['accepted']
                       for name, facts in self.manifest['sources'].items()}
        # The number of each shard's first record, and of all.
        self._firsts = np.cumsum([0, *(shard['records'] for shard in self.manifest['shards'])])
        self._opened = {}
        self._counted = {}

    def __len__(self):
        return sum(self.counts.values())

    def __getstate__(self):
        # Open files do not travel to another process.
        return self.__dict__ | {'_opened': {}}

    @property
    def hash(self) -> str:
        """The hash of every record, in order."""
        return self.manifest['hash']

    def record(self, index: int) -> Record:
        """Return the `Record` of number `index`; safe to call from several threads.

        OSError where it may be read later, ValueError in one line where it is damaged.
        """
        shard, place = self._place(index)
        try:
            with _opening:
                if shard not in self._opened:
                    self._opened[shard] = ArrayRecordDataSource([str(self._path(shard))])
            data = self._opened[shard][place]
        except RuntimeError as error:
            raise self._fault(index, str(error)) from None
        return unpack(data)

    def fetch(self, indices: Iterable[int]) -> None:
        """Fetch the shards that hold these records, where the folder is a copy without them."""
        copies.fetch(self._path(self._place(index)[0]) for index in indices)

    def _path(self, shard):
        return self.folder / self.manifest['shards'][shard]['file']

    def _place(self, index):
        """Return (number of the shard of a record, its number in the shard)."""
        shard = int(np.searchsorted(self._firsts, index, side='right')) - 1
        return shard, int(index - self._firsts[shard])

    def _fault(self, index, text):
        """Return the error that says why a record cannot be read; `text` may say nothing."""
        # 1. A shard that does not even open: because of the file system, or of what it holds.
        path = str(self._path(self._place(index)[0]))
        try:
            with open(path, 'rb') as file:
                file.read(1)
            ArrayRecordDataSource([path])
        except OSError as error:
            return error
        except RuntimeError:
            return ValueError(f'{path} is damaged; copy it anew, or delete it and let the same '
                              '`downscale data build` make it again')
        # 2. It opens, so it is this record.
        if text.startswith('Corrupted'):
            return ValueError(f'{self.folder}: record {index} is damaged; copy its shards anew')
        return OSError(errno.EIO, f'record {index} cannot be read ({text[:100]})', str(self.folder))

    @cached_property
    def starts(self) -> np.ndarray:
        """The number of each source's first record, and the number of all."""
        return np.cumsum([0, *(self.counts[source.name] for source in self.mixture.sources)])

    def costs(self, encoder: Encoder) -> np.ndarray:
        """Return the `COSTS` of every record, int32 [n, 4].

        They are those of the build where it was made with this encoder, else counted now, once, and
        kept in the folder, or in this process where the folder is read-only.
        """
        key = key_of(encoder)
        if key == self.manifest['encoder']:
            return np.concatenate(_at_once(np.load, [
                self.folder / shard['costs'] for shard in self.manifest['shards']]))
        path = self.folder / f'costs-{key}.npy'
        if key not in self._counted and path.is_file():
            self._counted[key] = np.load(path)
        # Slow, as every picture's header is read: another encoder than that of the build is rare.
        if key not in self._counted:
            self._counted[key] = self._count(encoder)
            try:
                with whole(path) as partial, partial.open('wb') as file:
                    np.save(file, self._counted[key])
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                print(f'note: {self.folder} is read-only and was built for another encoder: every '
                      f'job measures its {len(self):,} records anew; build it with the tokenizer '
                      'and the pictures of this study', file=sys.stderr)
        return self._counted[key]

    def _count(self, encoder):
        """Return the `COSTS` of every record, int32 [n, 4], measured now."""
        def measured(index):
            record = self.record(index)
            return measure.counts(encoder, record.talk, f'{record.source} {record.id}')
        return np.array(_at_once(measured, range(len(self))), np.int32).reshape(-1, len(COSTS))


def _at_once(function: Callable, values: Iterable) -> list:
    """Return [function(value)] for all values, several at once."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(function, values))


def mixture_of(value: dict[str, Any]) -> Mixture:
    """Return the `Mixture` of a manifest's dict."""
    sources = []
    for fields in value['sources']:
        lists = {'only': tuple(fields['only']), 'ignore': tuple(fields.get('ignore', ()))}
        sources.append(Source(**fields | lists))
    return Mixture(**value | {'sources': tuple(sources)})


def key_of(encoder: Encoder) -> str:
    """Return a short name for all that decides how many tokens and tiles a record takes."""
    text = json.dumps([hash_of(encoder.tokenizer), encoder.chat.hash, sorted(encoder.structure),
                       dataclasses.asdict(encoder.layout)], sort_keys=True)
    return f'{zlib.crc32(text.encode()):08x}'

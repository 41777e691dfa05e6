"""Mixtures of published sets, built once into ArrayRecord, and their examples in training order.

A `Mixture` is data. `build.py` makes a folder of it; `Corpus` opens that folder. Which record
stands at a position of an epoch follows from the manifest and a seed alone, so a run continues on
any number of processes with the same order.
"""
import dataclasses
import json
import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from downscale.data import measure
from downscale.data.buckets import in_order
from downscale.data.pipeline import Drawn, encoded
from downscale.data.sources import Source, unpack
from downscale.data.tokens import hash_of
from downscale.places import read_json

ORDERS = ('shuffled', 'listed')
COSTS = ('tokens', 'tiles', 'image tokens', 'supervised tokens')
MOST_LEFT_OUT = 0.05  # share of an epoch that may be too long for a stage's rows


@dataclass(frozen=True)
class Mixture:
    """What a stage sees in an epoch: sources, each with its share, and the order.

    `stage` says how text and pictures count in the manifest: 'align' is bare captions and one tile
    a picture, any other the chat and tiling of the later stages. `order` 'shuffled' mixes all
    records anew in every epoch; 'listed' goes through the sources one after another.
    """
    name: str
    sources: tuple[Source, ...]
    stage: str = 'instruct'
    seed: int = 0
    order: str = 'shuffled'

    def __post_init__(self):
        names = [source.name for source in self.sources]
        if not names or len(set(names)) != len(names):
            raise ValueError(f'mixture {self.name}: source names {names} must be given, each once')
        if self.order not in ORDERS:
            raise ValueError(f'mixture {self.name}: order {self.order!r} must be one of '
                             f'{", ".join(ORDERS)}')


def epoch_order(mixture, counts, seed=0, epoch=0):
    """int64 [n]: the record at each position of an epoch, numbered through the sources in order.

    `counts` are records by source name. A source of 2.25 epochs gives every record twice and a
    quarter of them, chosen anew in each epoch, once more.
    """
    parts, first = [], 0
    for source in mixture.sources:
        count, whole = counts[source.name], int(source.epochs)
        key = [mixture.seed, source.seed, zlib.crc32(source.name.encode()), seed, epoch]
        more = np.random.default_rng(key).permutation(count)[:round(
            (source.epochs - whole) * count)]
        rows = np.concatenate([np.tile(np.arange(count), whole), np.sort(more)])
        parts.append(first + rows)
        first += count
    order = np.concatenate(parts).astype(np.int64)
    if mixture.order == 'listed':
        return order
    return np.random.default_rng([mixture.seed, seed, epoch]).permutation(order)


def per_epoch(mixture, counts):
    """{source: conversations in one epoch}: what `epoch_order` gives for any seed."""
    return {source.name: int(source.epochs) * counts[source.name] + round(
        (source.epochs - int(source.epochs)) * counts[source.name]) for source in mixture.sources}


class Corpus:
    """The records of a built mixture: `len`, `record(i)`, and what each costs an encoder."""

    def __init__(self, folder):
        """FileNotFoundError or ValueError in one line where `folder` is no finished build."""
        self.folder = Path(folder)
        self.manifest = read_json(self.folder / 'manifest.json')
        if self.manifest is None:
            raise FileNotFoundError(f'no manifest.json in {folder}; build the mixture there with '
                                    '`downscale data build MIXTURE --to DIR`')
        lacking = [shard['file'] for shard in self.manifest['shards']
                   if not (self.folder / shard['file']).is_file()]
        if lacking:
            raise FileNotFoundError(f'{folder} lacks {len(lacking)} shards (first {lacking[0]}); '
                                    'the same `downscale data build` makes them again')
        self.mixture = mixture_of(self.manifest['mixture'])
        self.counts = {name: one['accepted'] for name, one in self.manifest['sources'].items()}
        self._records = None

    def __len__(self):
        return sum(self.counts.values())

    def __getstate__(self):
        return self.__dict__ | {'_records': None}

    @property
    def hash(self):
        """The hash of every record, in order."""
        return self.manifest['hash']

    def record(self, index):
        """The `Record` of number `index`; safe to call from several threads."""
        if self._records is None:
            self._records = ArrayRecordDataSource(
                [str(self.folder / shard['file']) for shard in self.manifest['shards']])
        return unpack(self._records[int(index)])

    @cached_property
    def starts(self):
        """The number of each source's first record, and the number of all."""
        return np.cumsum([0, *(self.counts[source.name] for source in self.mixture.sources)])

    def costs(self, encoder):
        """int32 [n, 4], `COSTS` of every record: those of the build where it was made with this
        encoder, else counted now, once, and kept in the folder."""
        key = key_of(encoder)
        if key == self.manifest['encoder']:
            return np.concatenate([np.load(self.folder / shard['costs'])
                                   for shard in self.manifest['shards']])
        path = self.folder / f'costs-{key}.npy'
        if not path.is_file():
            found = np.zeros((len(self), len(COSTS)), np.int32)
            for index in range(len(self)):
                record = self.record(index)
                found[index] = measure.counts(encoder, record.talk, f'{record.source} {record.id}')
            partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
            with partial.open('wb') as file:
                np.save(file, found)
            os.replace(partial, path)
        return np.load(path)


def mixture_of(value):
    """The `Mixture` of a manifest's dict."""
    return Mixture(**value | {'sources': tuple(Source(**one | {'only': tuple(one['only'])})
                                               for one in value['sources'])})


def key_of(encoder):
    """A short name for all that decides how many tokens and tiles a record takes."""
    text = json.dumps([hash_of(encoder.tokenizer), encoder.chat.hash, sorted(encoder.structure),
                       dataclasses.asdict(encoder.layout)], sort_keys=True)
    return f'{zlib.crc32(text.encode()):08x}'


class CorpusSampler:
    """Positions -> records of a corpus, as `pipeline.stream` asks for them; see `Sampler`.

    Records that no row of `shape` holds, and those without a supervised token, are left out of
    every epoch and counted in `left_out`. ValueError when that is more than a twentieth.
    """

    def __init__(self, corpus, encoder, recipe, shape, buckets=()):
        self.corpus, self.encoder, self.recipe, self.shape = corpus, encoder, recipe, shape
        self.shapes = in_order((*buckets, shape))
        self.costs = corpus.costs(encoder)
        long = (self.costs[:, 0] > shape.length) | (self.costs[:, 1] > shape.tiles)
        self.left_out = {'too long': int(long.sum()),
                         'nothing supervised': int((~long & (self.costs[:, 3] == 0)).sum())}
        self.kept = ~long & (self.costs[:, 3] > 0)
        if (~self.kept).mean() > MOST_LEFT_OUT:
            tokens, tiles = self.costs[:, :2].max(0)
            raise ValueError(
                f'{corpus.folder}: {(~self.kept).sum()} of {len(corpus)} records do not fit rows '
                f'of {shape.length} tokens and {shape.tiles} tiles, or have nothing to learn '
                f'(largest {tokens} and {tiles}); raise `length` and `tiles` of the stage, or '
                'build with another --length')

    def __len__(self):
        return len(self.order(0, 0))

    def order(self, seed, epoch):
        """The records of an epoch that are trained on, in order."""
        order = epoch_order(self.corpus.mixture, self.corpus.counts, seed, epoch)
        return order[self.kept[order]]

    def sequence(self, seed):
        """The endless sequence of `Drawn`, by position."""
        return _Sequence(self, seed)

    def sizes(self, seed):
        """int32 [n, 2]: tokens and tiles of the conversations of the first epoch, in order."""
        return self.costs[self.order(seed, 0), :2]

    def realised(self, seed):
        """{source: conversations of the first epoch}, as they come."""
        which = np.searchsorted(self.corpus.starts, self.order(seed, 0), 'right') - 1
        return {source.name: int((which == k).sum())
                for k, source in enumerate(self.corpus.mixture.sources)}

    def make(self, drawn):
        """Arrays of one conversation; the record is read here."""
        record = self.corpus.record(drawn.number)
        where = f'{record.source} {record.id}'
        drawn = dataclasses.replace(drawn, where=where, talk=record.talk)
        return encoded(drawn, self.encoder, self.recipe.loss_norm)


class _Sequence:
    """Position -> `Drawn`, from the costs alone: no record is read."""

    def __init__(self, sampler, seed):
        self.sampler, self.seed, self.epochs = sampler, seed, {}

    def __getitem__(self, position):
        # Epochs may differ in length: which records fill a part of a source changes.
        epoch = 0
        while position >= len(order := self._order(epoch)):
            position, epoch = position - len(order), epoch + 1
        number = int(order[position])
        tokens, tiles = self.sampler.costs[number, :2].tolist()
        return Drawn(f'record {number}', None, tokens, tiles, number)

    def _order(self, epoch):
        if epoch not in self.epochs:
            self.epochs[epoch] = self.sampler.order(self.seed, epoch)
        return self.epochs[epoch]


"""Mixtures of published sets, built once into ArrayRecord, and their examples in training order.

A `Mixture` is data. `build.py` makes a folder of it; `Corpus` opens that folder. Which record
stands at a position of an epoch follows from the manifest and a seed alone, so a run continues on
any number of processes with the same order.
"""
import dataclasses
import json
import os
import zlib
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
from downscale.runtime.files import PathLike, read_json
from downscale.values import Choice, Range, check

ORDERS = ('shuffled', 'listed')
COSTS = ('tokens', 'tiles', 'image tokens', 'supervised tokens')


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
    """Return int64 [n]: the record at each position of an epoch, numbered through the sources in
    order.

    `counts` are records by source name. A source of 2.25 epochs gives every record twice and a
    quarter of them, chosen anew in each epoch, once more.
    """
    parts = []
    first = 0
    for source in mixture.sources:
        count = counts[source.name]
        whole = int(source.epochs)
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


def per_epoch(mixture: Mixture, counts: dict[str, int]) -> dict[str, int]:
    """Return {source: conversations in one epoch}: what `epoch_order` gives for any seed."""
    return {source.name: int(source.epochs) * counts[source.name] + round(
        (source.epochs - int(source.epochs)) * counts[source.name]) for source in mixture.sources}


class Corpus:
    """The records of a built mixture: `len`, `record(i)`, and what each costs an encoder."""

    def __init__(self, folder: PathLike) -> None:
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
    def hash(self) -> str:
        """The hash of every record, in order."""
        return self.manifest['hash']

    def record(self, index: int) -> Record:
        """Return the `Record` of number `index`; safe to call from several threads."""
        if self._records is None:
            self._records = ArrayRecordDataSource(
                [str(self.folder / shard['file']) for shard in self.manifest['shards']])
        return unpack(self._records[int(index)])

    @cached_property
    def starts(self) -> np.ndarray:
        """The number of each source's first record, and the number of all."""
        return np.cumsum([0, *(self.counts[source.name] for source in self.mixture.sources)])

    def costs(self, encoder: Encoder) -> np.ndarray:
        """Return int32 [n, 4], `COSTS` of every record: those of the build where it was made with
        this encoder, else counted now, once, and kept in the folder.
        """
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


def mixture_of(value: dict[str, Any]) -> Mixture:
    """Return the `Mixture` of a manifest's dict."""
    sources = tuple(Source(**one | {'only': tuple(one['only']),
                                    'ignore': tuple(one.get('ignore', ()))})
                    for one in value['sources'])
    return Mixture(**value | {'sources': sources})


def key_of(encoder: Encoder) -> str:
    """Return a short name for all that decides how many tokens and tiles a record takes."""
    text = json.dumps([hash_of(encoder.tokenizer), encoder.chat.hash, sorted(encoder.structure),
                       dataclasses.asdict(encoder.layout)], sort_keys=True)
    return f'{zlib.crc32(text.encode()):08x}'

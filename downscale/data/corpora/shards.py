"""One shard of a build: rows of a source -> records, what they cost, and what was rejected."""
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from downscale.data import measure
from downscale.data.corpora.build_settings import Settings
from downscale.data.corpora.cells import Rejected
from downscale.data.corpora.columns import parts_of
from downscale.data.corpora.mixture import COSTS
from downscale.data.corpora.sources import TEXT_ROWS, Source, pack, record_from, under
from downscale.data.records import IMAGE
from downscale.runtime.files import whole, write_json


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Rows of one source that become one shard.

    `part` gives the rows of `names`, in the same order. `pictured` says that rows without a picture
    are rejected, as those of a set whose pictures no mark in the text names.
    """
    source: Source
    number: int
    names: tuple[str, ...]
    part: Iterable[Any]
    pictured: bool = False

    @property
    def hash(self) -> str:
        """A hash of which rows these are: pictures that were mended move rows between chunks."""
        lines = [*self.names]
        if self.pictured:
            lines.append('\npictured')
        return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:32]

    @property
    def stem(self) -> str:
        """How the files of the shard are called, without a suffix."""
        return f'{self.source.name}-{self.number:05d}'


def write(chunk: Chunk, settings: Settings, stage: str, to: Path) -> dict[str, Any]:
    """Write the shard of a chunk into `to`, and return its JSON; runs in a process of its own."""
    path = to / f'{chunk.stem}.arrayrecord'
    costs_path = path.with_suffix('.npy')
    costs = []
    rejected = []
    counts = Counter()
    aside = Counter()
    digest = hashlib.sha256()
    # The lock of the build keeps other processes away. The costs come before the records, and the
    # JSON, which says that the shard is done, comes last.
    with whole(path, alone=True) as partial:
        writer = ArrayRecordWriter(str(partial), 'group_size:1')
        for parts, record, cost in _usable(chunk, settings, stage, rejected):
            data = pack(record)
            writer.write(data)
            digest.update(data)
            costs.append(cost)
            aside.update(parts.aside)
            counts.update(_counts(parts, record, data))
        writer.close()
        with whole(costs_path, alone=True) as partial_costs, partial_costs.open('wb') as file:
            np.save(file, np.array(costs, np.int32).reshape(-1, len(COSTS)))
    value = {name: counts[name] for name in ('pictures', 'bytes', 'blank', 'unmarked')}
    value |= {'rows': chunk.hash, 'file': path.name, 'costs': costs_path.name,
              'source': chunk.source.name, 'records': len(costs),
              'hash': digest.hexdigest()[:32], 'rejected': rejected,
              'aside': dict(sorted(aside.items()))}
    write_json(path.with_suffix('.json'), value)
    return value


def _usable(chunk, settings, stage, rejected):
    """Yield the `Parts`, the `Record` and the costs of each usable row of a chunk.

    The others are appended to `rejected`, as [id, reason, detail].
    """
    encoder = settings.encoder(stage)
    folder = under(settings.root, chunk.source.images or '.', chunk.source)
    for name, row in zip(chunk.names, chunk.part, strict=True):
        try:
            parts = parts_of(row, chunk.source.ask, chunk.source.ignore)
            if chunk.pictured and not parts.pictures:
                raise Rejected('no picture', f'other rows of this set have one; {TEXT_ROWS}')
            record = record_from(parts, name, chunk.source, folder)
            cost = _cost(encoder, record, settings.length)
        # Any other error is a fault of ours, and ends the build.
        except Rejected as error:
            rejected.append([name, error.reason, str(error)])
        else:
            yield parts, record, cost


def _counts(parts, record, data):
    """Return what the manifest counts of a record that is stored as `data`."""
    marked = any(IMAGE in turn.text for turn in parts.turns)
    return {'pictures': len(record.talk.images), 'bytes': len(data),
            'blank': int(not parts.pictures), 'unmarked': int(bool(parts.pictures) and not marked)}


def _cost(encoder, record, length):
    """Return `COSTS` of a record, zeros without an encoder; `Rejected` when it is too long."""
    if encoder is None:
        return (0,) * len(COSTS)
    cost = measure.counts(encoder, record.talk, record.id)
    tokens = cost[0]
    if tokens > length:
        raise Rejected('too long', f'{tokens:,} tokens are more than {length:,}')
    return cost

"""One shard of a build: rows of a source -> records, what they cost, and what was rejected."""
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from downscale.data import measure
from downscale.data.chat import CHATS
from downscale.data.corpora.columns import Rejected, parts_of
from downscale.data.corpora.mixture import COSTS
from downscale.data.corpora.sources import TEXT_ROWS, Source, pack, record_from, under
from downscale.data.records import IMAGE
from downscale.data.tokens import Encoder, Layout, load_tokenizer
from downscale.runtime.files import write_json
from downscale.sizes import SIGLIP, Pictures
from downscale.stage_table import STAGES

LENGTH = 32768  # tokens of a record (arXiv 2511.17487 and its code: the tokenizer's maximum)
VISION = SIGLIP['so400m-patch14-384']


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a build beside the mixture and the files: where the sources lie, the tokenizer
    that counts, the most tokens of a record, and the share of a source that may be rejected."""
    root: Path
    tokenizer: Path | None = None
    length: int = LENGTH
    most_rejected: float = 0.01

    def encoder(self, stage: str) -> Encoder | None:
        """Return the encoder that counts tokens as `stage` does; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        plain = STAGES[stage].layout == 'flat'
        return Encoder(load_tokenizer(self.tokenizer), CHATS['plain' if plain else 'chatml'],
                       Layout(VISION, Pictures('flat' if plain else 'anyres')))


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Rows of one source that become one shard; `pictured` says that rows without a picture are
    rejected, as those of a set whose pictures no mark in the text names."""
    source: Source
    number: int
    names: tuple[str, ...]
    part: object
    pictured: bool = False

    @property
    def hash(self) -> str:
        """A hash of which rows these are: pictures that were mended move rows between chunks."""
        marks = ['\npictured'] if self.pictured else []
        return hashlib.sha256('\n'.join([*self.names, *marks]).encode()).hexdigest()[:32]

    @property
    def stem(self) -> str:
        return f'{self.source.name}-{self.number:05d}'


def write(chunk: Chunk, settings: Settings, stage: str, to: Path) -> dict[str, Any]:
    """Return the shard of a chunk is in `to`; returns its JSON. Runs in a process of its own."""
    encoder = settings.encoder(stage)
    folder = under(settings.root, chunk.source.images or '.', chunk.source)
    path = to / f'{chunk.stem}.arrayrecord'
    partial = path.with_name(f'.{path.name}.partial')
    rejected = []
    ids = []
    costs = []
    size = 0
    pictures = 0
    aside = Counter()
    blank = 0
    unmarked = 0
    digest = hashlib.sha256()
    writer = ArrayRecordWriter(str(partial), 'group_size:1')
    # pyrefly: ignore[bad-argument-type]
    for name, row in zip(chunk.names, chunk.part, strict=True):
        try:
            parts = parts_of(row, chunk.source.ask, chunk.source.ignore)
            if chunk.pictured and not parts.pictures:
                raise Rejected('no picture', f'other rows of this set have one; {TEXT_ROWS}')
            record = record_from(parts, name, chunk.source, folder)
            costs.append(_cost(encoder, record, settings.length))
        except Rejected as error:
            rejected.append([name, error.reason, str(error)])
            continue
        data = pack(record)
        writer.write(data)
        digest.update(data)
        ids.append(name)
        size = size + len(data)
        pictures = pictures + len(record.talk.images)
        aside.update(parts.aside)
        blank += not parts.pictures
        unmarked += bool(parts.pictures) and not any(IMAGE in turn.text for turn in parts.turns)
    writer.close()
    costs_path = path.with_suffix('.npy')
    with partial.with_suffix('.npy').open('wb') as file:
        np.save(file, np.array(costs, np.int32).reshape(-1, len(COSTS)))
    os.replace(partial.with_suffix('.npy'), costs_path)
    os.replace(partial, path)
    value = {'rows': chunk.hash, 'file': path.name, 'costs': costs_path.name,
             'source': chunk.source.name, 'records': len(ids), 'pictures': pictures, 'bytes': size,
             'hash': digest.hexdigest()[:32], 'rejected': rejected,
             'aside': dict(sorted(aside.items())), 'blank': blank, 'unmarked': unmarked}
    write_json(path.with_suffix('.json'), value)
    return value


def _cost(encoder, record, length):
    """Return `COSTS` of a record, zeros without an encoder; `Rejected` when it is too long."""
    if encoder is None:
        return (0,) * len(COSTS)
    found = measure.counts(encoder, record.talk, record.id)
    if found[0] > length:
        raise Rejected('too long', f'{found[0]:,} tokens are more than {length:,}')
    return found

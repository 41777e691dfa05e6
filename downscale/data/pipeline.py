"""Conversations to batches: one deterministic, packed, checkpointable grain stream.

A row holds several conversations up to the tokens and image tiles of its bucket; `segments`
numbers them from 1 (0 is padding), `positions` restart in each, and nothing attends across.

Batches are planned before they are made: every process draws every conversation, measures it
(texts and picture headers only) and packs it, so all agree on each global batch and on its bucket
without a word, for any number of them; then each decodes the pictures of its own rows. What every
process does alike costs about as much as tokenising, and grows with the global batch.
"""
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grain
import numpy as np

from downscale.data import tiling
from downscale.data.buckets import OPEN, Packer, Shape
from downscale.data.records import Conversation
from downscale.data.tokens import Encoder, Layout
from downscale.stage_table import STAGES

if TYPE_CHECKING:
    from downscale.data.scenes.conversations import Recipe


@dataclass(frozen=True)
class Share:
    """Which rows of every batch are kept: `blocks` of the `ways` equal parts along the rows."""
    ways: int = 1
    blocks: tuple[int, ...] = (0,)

    def rows(self, batch: int) -> np.ndarray:
        """Return the indices of the rows that are kept of a `batch` of rows.

        ValueError with the arithmetic when they do not divide.
        """
        if batch % self.ways:
            raise ValueError(f'global batch {batch} does not divide over {self.ways} groups of '
                             f'devices ({batch} % {self.ways} = {batch % self.ways}); the nearest '
                             f'is {max(1, round(batch / self.ways)) * self.ways}')
        return np.arange(batch).reshape(self.ways, -1)[list(self.blocks)].ravel()


# Threads that make conversations; they work side by side: Pillow lets go of the interpreter lock.
MAKERS = 16
# Threads that read records: they wait, not work. At 30 ms a record they read 1,800 a second.
READERS = 64
# Batches whose records are read ahead, as bytes: a wait of so many steps for one record is hidden.
AHEAD = 8


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A conversation before its pictures are decoded: where it is from and what it takes."""
    where: str
    talk: Conversation | None  # None: record `number` of a corpus, read before it is made
    tokens: int
    tiles: int
    number: int = -1


def shuffled(count: int, draw: Callable, seed: int) -> Any:
    """Return the endless sequence of `draw(index, rng)` over `count` examples, by position.

    Every epoch has another order.
    """
    data = grain.MapDataset.range(count).seed(seed).shuffle().repeat()
    return data.random_map(draw, seed=seed)


def encoded(drawn: Drawn, encoder: Encoder, loss_norm: str) -> dict[str, np.ndarray | None]:
    """Return arrays of one conversation, its pictures decoded and cut; any thread may make them.

    ValueError when none of its tokens is supervised.
    """
    where = drawn.where
    placed, tiles = encoder.layout.cut(drawn.talk.images, where)
    arrays = encoder.encode(drawn.talk.turns, pictures=placed)
    # Rows were planned with what the headers said; a row that overflows would be cut.
    size = len(arrays['tokens']), sum(picture.tiles for picture in placed)
    if size != (drawn.tokens, drawn.tiles):
        raise ValueError(f'{where}: (tokens, tiles) are {size}, but headers of its pictures '
                         f'tell {(drawn.tokens, drawn.tiles)}; save these pictures anew')
    supervised = arrays['weights'].sum()
    if supervised == 0:
        raise ValueError(f'{where}: none of its {size[0]} tokens is supervised; nothing to learn')
    if loss_norm == 'example':
        arrays['weights'] /= supervised
    if drawn.talk.shown:
        arrays['patches'] = _patches(drawn, encoder, int(supervised))
    return arrays | {'tiles': tiles}


def _patches(drawn, encoder, supervised):
    """Return bool [supervised, P]: the patches that show what each word of a reply tells of."""
    vision = encoder.layout.vision
    parts, boxes = zip(*drawn.talk.shown, strict=True)
    counts = [len(encoder.ids(part)) for part in parts]
    if not 0 <= supervised - sum(counts) <= 1:  # the token that ends a reply shows nothing
        raise ValueError(f'{drawn.where}: the tokenizer makes {supervised} tokens of a caption and '
                         f'{sum(counts)} of its records one by one; words must not join')
    x0, y0, x1, y1 = np.array(boxes)[:, :, None].transpose(1, 0, 2)
    side = vision.image // vision.patch
    middles = (np.arange(side) + 0.5) * vision.patch / vision.image
    y, x = np.repeat(middles, side), np.tile(middles, side)
    inside = (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    # Of a thing smaller than a patch, the nearest one.
    nearest = (np.abs(x - (x0 + x1) / 2) + np.abs(y - (y0 + y1) / 2)).argmin(1)
    inside[np.arange(len(inside)), nearest] = True
    out = np.zeros((supervised, vision.P), bool)
    # Every word of a part is told of the same thing; the token that ends the reply of nothing.
    out[:sum(counts)] = np.repeat(inside, counts, axis=0)
    return out


def packed_batch(rows: Sequence[Sequence[dict[str, Any]]], shape: Shape,
                 layout: Layout) -> dict[str, np.ndarray]:
    """Return batch arrays of `rows`, each a list of `encoded` conversations that fit in `shape`.

    An `image_index` counts the tiles of its own row. Leaves as in `stream`.
    """
    out = _empty_batch(len(rows), shape, layout)
    for row, conversations in enumerate(rows):
        start = 0
        first_tile = 0
        for number, arrays in enumerate(conversations, 1):
            stop = start + len(arrays['tokens'])
            for name in {'tokens', 'weights', 'image_weight'} & set(out):
                out[name][row, start:stop] = arrays[name]
            out['segments'][row, start:stop] = number
            out['positions'][row, start:stop] = np.arange(stop - start)
            if shape.tiles and arrays['tiles'] is not None:
                P = layout.vision.P
                index = arrays['image_index']
                moved = np.where(index >= 0, index + first_tile * P, -1)
                # The newline stands behind the features of all tile slots.
                out['image_index'][row, start:stop] = np.where(
                    index == tiling.NEWLINE, shape.tiles * P, moved)
                last_tile = first_tile + len(arrays['tiles'])
                out['tiles'][row, first_tile:last_tile] = arrays['tiles']
                first_tile = last_tile
            start = stop
    return out


def _empty_batch(count, shape, layout):
    """Return the leaves of a packed batch of `count` rows, padding everywhere."""
    def empty(kind, *axes, value=0):
        return np.full((count, shape.length, *axes), value, kind)
    out = {'tokens': empty(np.int32), 'weights': empty(np.float32), 'segments': empty(np.int32),
           'positions': empty(np.int32)}
    if shape.tiles:
        corners = tiling.corners(layout.pictures)
        out['image_index'] = empty(np.int32, corners, value=-1)
        if corners > 1:
            out['image_weight'] = empty(np.float32, corners)
        # Unused tiles are encoded, but nothing points to them.
        vision = layout.vision
        out['tiles'] = np.zeros((count, shape.tiles, vision.P, vision.Q), np.uint8)
    return out


def captioned_batch(rows: Sequence[Sequence[dict[str, Any]]], shape: Shape,
                    layout: Layout) -> dict[str, np.ndarray]:
    """Return pictures and their padded captions for the tower stage: a row is one conversation."""
    vision = layout.vision
    texts = len(rows), shape.length
    out = {'tokens': np.zeros(texts, np.int32), 'segments': np.zeros(texts, np.int32),
           'tiles': np.zeros((len(rows), vision.P, vision.Q), np.uint8)}
    for row, (arrays,) in enumerate(rows):
        # The caption alone: the tower stage learns to write it from the picture.
        tokens = arrays['tokens'][arrays['weights'] > 0]
        out['tokens'][row, :len(tokens)] = tokens
        out['segments'][row, :len(tokens)] = 1
        out['tiles'][row] = arrays['tiles'][0]
        if 'patches' in arrays:
            shown = out.setdefault('patches', np.zeros((*texts, vision.P), bool))
            shown[row, :len(tokens)] = arrays['patches']
    return out


def most_open(recipe: 'Recipe') -> int:
    """Return how many rows of a bucket are open at once: a picture and its caption are a row."""
    return 0 if STAGES[recipe.stage].rows == 'captioned' else OPEN


def epoch(sampler: Any, seed: int) -> np.ndarray:
    """Return the tokens and tiles of each conversation of the first epoch, int32 [n, 2], in order.

    ValueError for the first one that no bucket holds.
    """
    sequence = sampler.sequence(seed)
    drawn = map(sequence.__getitem__, range(sampler.count))
    return np.array([(talk.tokens, talk.tiles) for talk in drawn], np.int32)


class _Batches(grain.IterDataset):
    """The batches of one process; see `stream`."""

    def __init__(self, sampler, seed, share):
        super().__init__()
        self.sampler = sampler
        self.seed = seed
        self.share = share

    def __iter__(self):
        return _Iterator(self.sampler, self.sampler.sequence(self.seed), self.share)


class _Iterator(grain.DatasetIterator):
    """Plans global batches, reads this process's rows of them, and makes them.

    Its state is the plan's, the same in every process. The records of the next `AHEAD` batches are
    being read, and the conversations of the batch after next made, while one is packed.
    """

    def __init__(self, sampler, drawn, share):
        super().__init__()
        self.sampler = sampler
        self.drawn = drawn
        self.share = share
        self.packer = Packer(sampler.shapes, most_open(sampler.recipe))
        self.next = 0
        self.waiting = {}
        self.planned = deque()
        self.making = None
        self.state = None
        self.readers = ThreadPoolExecutor(READERS)
        # On one core a thread more is work more: conversations are made when they are packed.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        self.makers = ThreadPoolExecutor(min(MAKERS, cores)) if cores > 1 else None

    def __next__(self):
        # The state is that behind the batch that is given, not behind the one planned ahead.
        bucket, made, self.state = self.making or self._started()
        self.making = self._started()
        rows = list(map(self._finished, made))
        captioned = STAGES[self.sampler.recipe.stage].rows == 'captioned'
        make = captioned_batch if captioned else packed_batch
        return make(rows, self.sampler.shapes[bucket], self.sampler.encoder.layout)

    def _plan(self):
        """Return the next batch: number of its shape, rows being read, state behind it."""
        # Which bucket is full first follows from the conversations alone, in every process alike.
        ready = None
        while ready is None:
            drawn = self.drawn[self.next]
            self.waiting[self.next] = drawn
            ready = self.packer.add(self.next, drawn.tokens, drawn.tiles)
            self.next += 1
        bucket, batch = ready
        # Rows of other processes leave `waiting` as well.
        rows = [list(map(self.waiting.pop, positions)) for positions in batch]
        read = [self._reading(rows[row]) for row in self.share.rows(len(rows))]
        return bucket, read, {'next': self.next, **self.packer.state()}

    def _started(self):
        """Return the next batch, its rows in the making."""
        # Two for the one that is taken, until enough are planned: the first waits for few others.
        for _ in range(2 if len(self.planned) < AHEAD else 1):
            self.planned.append(self._plan())
        bucket, rows, state = self.planned.popleft()
        return bucket, list(map(self._making, rows)), state

    def _reading(self, row):
        """Return the `Drawn` of a row, being read; what holds its conversation is not."""
        return [drawn if drawn.talk else self.readers.submit(self.sampler.read, drawn)
                for drawn in row]

    def _making(self, row):
        """Return the arrays of the conversations of a row, in the making or yet to be made."""
        return [self.makers.submit(self._make, read) for read in row] if self.makers else row

    def _finished(self, row):
        """Return the arrays of the conversations of a row once they are made."""
        if self.makers is None:
            return list(map(self._make, row))
        return [made.result() for made in row]

    def _make(self, read):
        """Return the arrays of a conversation, once it is read."""
        return self.sampler.make(read.result() if isinstance(read, Future) else read)

    def close(self):
        """Stop making conversations; what is being made is dropped."""
        super().close()
        for pool in filter(None, (self.readers, self.makers)):
            pool.shutdown(wait=False, cancel_futures=True)

    def get_state(self):
        return self.state or {'next': self.next, **self.packer.state()}

    def set_state(self, state):
        # What waits is drawn again; what was planned ahead is planned again.
        self.next = state['next']
        self.planned.clear()
        self.making = None
        self.state = state
        self.waiting = {position: self.drawn[position] for position in self.packer.restore(state)}


def stream(sampler: Any, seed: int, share: Share = Share()) -> Any:
    """Return the endless grain dataset of batches, with the rows of `share`.

    `iter()` of it can be saved. Batches have the shapes of `sampler.shapes`, in an order that
    follows from the data: a batch comes when its bucket has the rows. Batch n of all processes
    together is the same for any number of them, and so is the state. Leaves of a batch: tokens,
    segments, positions int32 [B, L], weights float32 [B, L] and, where the shape has tiles, tiles
    uint8 [B, I, P, Q], image_index int32 [B, L, C] and, for C > 1, image_weight float32 [B, L, C].
    The tower stage gives tokens, segments [B, L], tiles [B, P, Q] and, where a world says what its
    words are told of, patches bool [B, L, P]. ValueError when the rows do
    not divide.
    """
    for shape in sampler.shapes:
        share.rows(shape.batch)
    # One batch ahead: parsing holds the interpreter lock, more threads would contend for it.
    return grain.experimental.ThreadPrefetchIterDataset(
        _Batches(sampler, seed, share), prefetch_buffer_size=1)

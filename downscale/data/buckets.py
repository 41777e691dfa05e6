"""Buckets: the static shapes of a stage's batches, how rows fill them, and what they waste.

A picture takes 729 to 8,765 tokens and 2 to 37 tiles (LLaVA-OneVision's tiling with SigLIP-so400m),
so that one shape for all computes mostly padding. Plain Python and numpy: no example is read here.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Annotated, Any, NamedTuple

import numpy as np

from downscale.values import Range, check

STEP = 128  # lengths of proposed buckets are multiples of it: the lanes of a TPU register
MOST_LENGTHS = 64  # lengths that a proposal tries, so that it takes seconds for any `length`
FILL = 0.9  # how full rows of mixed sizes get; measured on pictures and on texts, 0.84 to 0.98
OPEN = 16  # rows that still take conversations; more fill better, but conversations wait longer

# Of a batch; a stage declares the same.
BATCH = Annotated[int, Range(1, 2 ** 24, 'rows of a batch over all processes')]
LENGTH = Annotated[int, Range(1, 2 ** 24, 'tokens of a row')]
TILES = Annotated[int, Range(0, 2 ** 20, 'image tiles of a row')]


@dataclass(frozen=True)
class Shape:
    """The static shape of a batch: rows over all processes, tokens and image tiles per row."""
    batch: BATCH
    length: LENGTH
    tiles: TILES

    def __post_init__(self):
        check(self)

    def holds(self, tokens: int, tiles: int) -> bool:
        """Return whether a row has room for that many tokens and tiles."""
        return tokens <= self.length and tiles <= self.tiles


def smallest(shapes: Sequence[Shape], tokens: int, tiles: int) -> int | None:
    """Return the number of the first shape whose rows hold a conversation, None when none does.

    `shapes` are ordered by length, then tiles, as `in_order` gives them.
    """
    return next((k for k, shape in enumerate(shapes) if shape.holds(tokens, tiles)), None)


def in_order(shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """Return `shapes` from the smallest to the largest: by length, then by tiles."""
    return tuple(sorted(shapes, key=lambda shape: (shape.length, shape.tiles)))


class _Row(NamedTuple):
    """An open row; never changed, so that a saved state may share it."""
    tokens: int
    tiles: int
    positions: tuple[int, ...]

    def with_one(self, position: int, tokens: int, tiles: int) -> '_Row':
        """Return the row with one more conversation."""
        return _Row(self.tokens + tokens, self.tiles + tiles, (*self.positions, position))


class Packer:
    """Conversations one by one -> batches of rows of the smallest bucket that holds each.

    A conversation joins the first open row of its bucket that has room; where none has, it opens
    one, and with more than `most_open`, or a batch, open the oldest row closes (0: every row is
    one conversation). A batch is ready as soon as its bucket has enough closed rows, so how often a
    bucket comes follows from the data, and nobody has to agree on it: who adds the same
    conversations gets the same batches. None is lost or doubled; they wait in `state()`.
    """

    def __init__(self, shapes: Sequence[Shape], most_open: int = OPEN) -> None:
        self.shapes = shapes
        self.most_open = most_open
        self.open = [[] for _ in shapes]
        self.closed = [[] for _ in shapes]

    def add(self, position: int, tokens: int, tiles: int
            ) -> tuple[int, list[tuple[int, ...]]] | None:
        """Return the batch that a conversation completes, None where it completes none.

        A batch is (number of the shape, the positions of each row).
        """
        bucket = smallest(self.shapes, tokens, tiles)
        shape = self.shapes[bucket]
        rows = self.open[bucket]
        closed = self.closed[bucket]
        for number, row in enumerate(rows):
            if shape.holds(row.tokens + tokens, row.tiles + tiles):
                rows[number] = row.with_one(position, tokens, tiles)
                break
        else:
            rows.append(_Row(tokens, tiles, (position,)))
        if len(rows) > min(self.most_open, shape.batch):
            closed.append(rows.pop(0).positions)
        if len(closed) < shape.batch:
            return None
        self.closed[bucket] = []
        # pyrefly: ignore[bad-return]
        return bucket, closed

    def state(self) -> dict[str, Any]:
        """Return what waits, as JSON can hold it; a copy."""
        return {'open': list(map(list, self.open)), 'closed': list(map(list, self.closed))}

    def restore(self, state: dict[str, Any]) -> list[int]:
        """Wait for what `state` waited for, and return the positions in it."""
        self.open = [list(map(_row_of, rows)) for rows in state['open']]
        self.closed = [list(map(tuple, rows)) for rows in state['closed']]
        return waiting(state)


def _row_of(saved):
    """Return the row of a saved state, which JSON may have made lists of."""
    tokens, tiles, positions = saved
    return _Row(tokens, tiles, tuple(positions))


def waiting(state: dict[str, Any]) -> list[int]:
    """Return the positions in a `Packer.state`: those of open rows, then those of closed ones."""
    positions = []
    for _, _, of_row in chain.from_iterable(state['open']):
        positions += of_row
    for of_row in chain.from_iterable(state['closed']):
        positions += of_row
    return positions


# --- waste ------------------------------------------------------------------------------------

def padding(shapes: Sequence[Shape], sizes: np.ndarray, flops: Callable[[int, int], float],
            most_open: int = OPEN) -> dict[str, Any]:
    """Return what batches of `shapes` compute for nothing, as JSON can hold it.

    `sizes` [n, 2] are the tokens and tiles of each conversation, in the order of the stream;
    `flops(length, tiles)` those of one row. Rows are packed as training packs them; what is still
    open at the end counts as it is. Per bucket and in `total`: conversations, rows, tokens and
    tiles (used), token_waste, tile_waste and flop_waste (shares of what is computed; a
    conversation needs `flops` of its own size); per bucket the share of steps and of FLOPs.
    """
    shapes = in_order(shapes)
    rows = _packed_rows(shapes, sizes, most_open)
    # `flops` is asked once a size: conversations of one set often share theirs.
    pairs, which = np.unique(sizes, axis=0, return_inverse=True)
    bucket_of = np.array([smallest(shapes, *pair) for pair in pairs.tolist()])[which]
    needed = np.array([flops(*pair) for pair in pairs.tolist()], float)[which]
    steps = rows / [shape.batch for shape in shapes]
    computed = rows * np.array([flops(shape.length, shape.tiles) for shape in shapes], float)
    facts = []
    for k, shape in enumerate(shapes):
        inside = bucket_of == k
        wasted = _wasted(sizes[inside], needed[inside].sum(), rows[k:k + 1], shapes[k:k + 1],
                         computed[k])
        facts.append({'batch': shape.batch, 'length': shape.length, 'tiles_per_row': shape.tiles,
                      'share_of_steps': steps[k] / steps.sum(),
                      'share_of_flops': computed[k] / computed.sum(), **wasted})
    return {'buckets': facts, 'total': _wasted(sizes, needed.sum(), rows, shapes, computed.sum())}


def _packed_rows(shapes, sizes, most_open):
    """Return how many rows of each of `shapes` conversations of `sizes` take, int [K]."""
    packer = Packer(shapes, most_open)
    rows = np.zeros(len(shapes), int)
    for position, (tokens, tiles) in enumerate(sizes.tolist()):
        ready = packer.add(position, tokens, tiles)
        if ready:
            bucket, batch = ready
            rows[bucket] += len(batch)
    return rows + [len(opened) + len(closed)
                   for opened, closed in zip(packer.open, packer.closed)]


def _wasted(sizes, needed, rows, shapes, computed):
    """Return the counts and shares of waste of `rows` (of each of `shapes`) that hold `sizes`."""
    tokens, tiles = sizes.sum(0).tolist()
    count = rows.tolist()
    room = sum(n * shape.length for n, shape in zip(count, shapes))
    slots = sum(n * shape.tiles for n, shape in zip(count, shapes))
    return {'conversations': len(sizes), 'rows': sum(count), 'tokens': tokens, 'tiles': tiles,
            'token_waste': 1 - tokens / room if room else 0.0,
            'tile_waste': 1 - tiles / slots if slots else 0.0,
            'flop_waste': float(1 - needed / computed) if computed else 0.0}


# --- proposal ---------------------------------------------------------------------------------

def propose(sizes: np.ndarray, shape: Shape, count: int,
            flops: Callable[[int, int], float]) -> tuple[Shape, ...]:
    """Return the at most `count` - 1 buckets beside `shape` that give the least expected work.

    `sizes` [n, 2] are tokens and tiles of conversations, `flops(length, tiles)` those of one row.
    They come in order. Buckets are nested, each at least as long and with as many tiles as the one
    before; lengths are multiples of 128. What a conversation takes of a row is estimated by
    `shares`; `padding` counts it. Batches are multiples of `shape.batch` such that no bucket has
    more tokens or tiles in a step than `shape`. ValueError when a conversation does not fit
    `shape`.
    """
    pairs, times = np.unique(sizes, axis=0, return_counts=True)
    if not shape.holds(*pairs.max(0)):
        raise ValueError(f'conversations of up to {pairs[:, 0].max()} tokens and '
                         f'{pairs[:, 1].max()} tiles do not fit rows of {shape.length} tokens and '
                         f'{shape.tiles} tiles; raise `length` or `tiles` of the stage')
    tried = candidates(shape)
    first, later = _charges(tried, pairs, times, flops)
    # A dynamic programme over chains of buckets. `least[c]` is the least work for all that
    # candidate c holds with c as the largest bucket; one more bucket is allowed in each round, and
    # `before[round][c]` is the next smaller bucket of the best chain that ends in c.
    least = first
    before = []
    best = first[-1]
    chosen = [len(tried) - 1]
    for _ in range(count - 1):
        work = least[:, None] + later
        before.append(work.argmin(0))
        least = np.take_along_axis(work, before[-1][None], 0)[0]
        # The largest bucket is `shape`, the last candidate: its chain is read backwards.
        if least[-1] < best:
            best = least[-1]
            chosen = [len(tried) - 1]
            for step in reversed(before):
                chosen.append(step[chosen[-1]])
    return tuple(_filled(shape, *tried[k]) for k in reversed(chosen[1:]))


def candidates(shape: Shape) -> np.ndarray:
    """Return the (length, tiles) that a proposal tries, [K, 2], that of `shape` last."""
    step = STEP * -(-shape.length // (STEP * MOST_LENGTHS))
    largest = shape.length, shape.tiles
    tried = list(product(range(step, shape.length + 1, step), range(shape.tiles + 1)))
    return np.array([size for size in tried if size != largest] + [largest])


def shares(length: int, tiles: int, pairs: np.ndarray) -> np.ndarray:
    """Return the part of a row that a conversation of each of `pairs` [U, 2] should take, [U].

    It is 0 for one that does not fit. Among its equals it takes 1 / n of a row that holds n; others
    may fill the rest of a row, but for a tenth (FILL).
    """
    used = np.maximum(pairs[:, 0] / length, pairs[:, 1] / max(tiles, 1))
    used[(pairs[:, 1] > 0) & (tiles == 0)] = np.inf
    equals = np.floor(1 / used + 1e-9)  # 1 / (1 / 3) may be less than 3
    return np.where(equals > 0, np.minimum(1 / np.maximum(equals, 1), used / FILL), 0.0)


def _charges(tried, pairs, times, flops):
    """Return the work of each candidate c for the conversations that it is charged with.

    First [K], where c is the smallest bucket; then [K of p, K of c], where candidate p is the next
    smaller one and takes what it holds, inf where p is no part of c.
    """
    # Of K candidates and U pairs, [K, U]: `fits` says what holds what, `taken` is the work of that.
    fits = np.all(pairs[None] <= tried[:, None], -1)
    work = np.array([flops(*size) for size in tried.tolist()], float)
    taken = np.stack([times * shares(*size, pairs) for size in tried]) * work[:, None]
    first = taken.sum(1)
    # With p below it, c is charged only for what p does not hold.
    later = first[None] - fits.astype(float) @ taken.T
    nested = np.all(tried[:, None] <= tried[None], -1)
    np.fill_diagonal(nested, False)
    return first, np.where(nested, later, np.inf)


def _filled(shape, length, tiles):
    """Return the bucket of rows of that size with as many rows as `shape` has room for."""
    rows = min(shape.length // length, shape.tiles // tiles if tiles else shape.length)
    return Shape(shape.batch * int(rows), int(length), int(tiles))

"""How much of a stage's work is padding, counted before it trains, and which buckets would help."""
import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from downscale.accounting import train_flops
from downscale.config import Experiment
from downscale.data import buckets, pipeline
from downscale.data.scenes.sampler import Sampler
from downscale.data.tokens import hash_of as tokenizer_hash
from downscale.runtime.files import PathLike, whole
from downscale.stage_config import Stage
from downscale.values import hash_of

SHAPES = (2, 3, 4, 6)  # how many shapes a proposal may have; each is one more program to compile
WORTH = 0.01  # share of the FLOPs that one more proposal must save to be shown


def sizes(folder: PathLike, sampler: Sampler, seed: int) -> np.ndarray:
    """Return int32 [n, 2]: tokens and tiles of every conversation of the first epoch, in its order.

    They are counted once and kept in `folder`, the data set's. ValueError naming the first
    conversation that no bucket of `sampler` holds.
    """
    encoder = sampler.encoder
    recipe = dataclasses.asdict(sampler.recipe)
    if not recipe['blind']:  # what was counted before there was a choice stays counted
        del recipe['blind']
    # All that decides lengths and their order; buckets do not, so counted sizes serve any of them.
    key = hash_of([recipe, seed, sampler.count,
                   tokenizer_hash(encoder.tokenizer), encoder.chat.hash,
                   dataclasses.asdict(encoder.layout)])
    path = Path(folder) / f'sizes-{key}.npy'
    if not path.exists():
        with whole(path) as partial, partial.open('wb') as file:
            np.save(file, pipeline.epoch(sampler, seed))
    sizes = np.load(path)
    for size in np.unique(sizes, axis=0):
        if buckets.smallest(sampler.shapes, *size) is None:  # counted for larger buckets
            first = int(np.flatnonzero((sizes == size).all(1))[0])
            sampler.sequence(seed)[first]  # raises, with the name
    return sizes


def row_flops(experiment: Experiment, stage: Stage) -> Callable[[int, int], int]:
    """Return the function (length, tiles) -> FLOPs of training on one row.

    Recomputation for memory (remat) is left out, which repeats about the same share of every row.
    """
    groups = tuple(stage.trainable)

    @cache
    def flops(length, tiles):
        return train_flops(experiment.language, experiment.vision, rows=1, length=int(length),
                           tiles=int(tiles), groups=groups)['total']
    return flops


def figures(experiment: Experiment, stage: Stage, sizes: np.ndarray) -> dict[str, Any]:
    """Return `buckets.padding` of a stage whose conversations have these `sizes`.

    With buckets, `one_shape` holds the total of the same conversations in rows of the stage's own
    shape alone.
    """
    flops = row_flops(experiment, stage)
    value = {'stage': stage.name, **buckets.padding(stage.shapes, sizes, flops)}
    if stage.buckets:
        value['one_shape'] = buckets.padding((stage.shape,), sizes, flops)['total']
    return value


def lines(experiment: Experiment, stage: Stage, sizes: np.ndarray) -> Iterator[str]:
    """Yield what a person reads: the waste of a stage's shapes, and proposals that waste less."""
    value = figures(experiment, stage, sizes)
    low = sizes.min(0)
    high = sizes.max(0)
    yield (f'{stage.name}: {len(sizes)} conversations of {low[0]} to {high[0]} tokens and {low[1]} '
           f'to {high[1]} tiles')
    yield '    length  tiles  batch  conversations    rows  steps  wasted: tokens  tiles  FLOPs'
    for row in value['buckets']:
        yield (f'    {row["length"]:6d} {row["tiles_per_row"]:6d} {row["batch"]:6d} '
               f'{row["conversations"]:14d} {row["rows"]:7d} {row["share_of_steps"]:6.1%} '
               + _wasted(row))
    if 'one_shape' in value:
        yield f'    {"all":57s} {_wasted(value["total"])}'
        yield f'    {"all of them in the largest rows":57s} {_wasted(value["one_shape"])}'
    # Each proposal must beat the best before it, or ever more buckets would be listed for nothing.
    flops = row_flops(experiment, stage)
    least = value['total']['flop_waste']
    for count in SHAPES:
        proposed = buckets.propose(sizes, stage.shape, count, flops)
        total = buckets.padding((*proposed, stage.shape), sizes, flops)['total']
        if total['flop_waste'] < least - WORTH:
            least = total['flop_waste']
            rows = ', '.join(f'dict(batch={shape.batch}, length={shape.length}, '
                             f'tiles={shape.tiles})' for shape in proposed)
            yield f'  proposed, {least:.1%} of the FLOPs wasted: buckets=[{rows}]'


def _wasted(row):
    """Return the three columns of waste of a row of the table."""
    return f'{row["token_waste"]:14.1%} {row["tile_waste"]:6.1%} {row["flop_waste"]:6.1%}'

"""What every number of a study stands on: its sizes, the cells that answer, their means and draws.

A number compares groups of cells: seeds are averaged, all under the same resamples of pictures, so
that the page, the figures and report.json print the same. A part that cannot be computed raises
`Missing` with the reason. Letters of axes: B resamples, R compared groups, S seeds, G families.
"""
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from downscale.results.factors import apart
from downscale.results.study import Cell, Paired, Study, pair
from downscale.stage_table import JOINT
from downscale.statistics import bootstrap
from downscale.statistics.two_way import Seeds

MODES = {'direct': False, 'think': True}
GOLD = 'gold'   # stands where a size of perception would: the reasoner read the true text


class Missing(Exception):
    """A part of the report has no data; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """One model size with the runs (seeds) that trained it."""
    name: str
    n_total: int
    n_nonembed: int
    n_vision: int
    runs: tuple
    seeds: tuple


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A study with its sizes (small to large) and the resamples that all numbers share.

    `whole` is the study with the answers of `apart` runs, where there are any. `made` keeps what
    is made once: (value, draws) of a cell, the chance and the floor of a set of items.
    """
    study: Study
    sizes: tuple
    resamples: bootstrap.Resamples
    whole: Study | None = None
    made: dict = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number; `low` and `high` are NaN for numbers without an interval.

    `clusters` are what the interval is over: pictures, families or runs, as `method` says; from
    three `seeds` on it is over seeds too.
    """
    table: str
    setting: str
    family: str
    what: str
    value: float
    low: float = np.nan
    high: float = np.nan
    n: int = 0
    clusters: int = 0
    method: str = ''
    note: str = ''
    seeds: int = 1


def scored(study: Study, bootstraps: int = 2000, seed: int = 0) -> Scored:
    """Return the study with one resampling of all its pictures, without `apart` runs."""
    left_out = apart(study.meta)
    whole = study
    # Left out once for all, so that no number of sizes has to ask for it again.
    if left_out:
        note = (f'{len(left_out)} runs differ from others in more than size and seed and '
                f'are in no number of sizes, only in those of factors and rates: '
                f'{", ".join(sorted(left_out))}')
        hidden = study.hidden and _without(study.hidden, left_out)
        study = replace(_without(study, left_out), notes=(*study.notes, note), hidden=hidden)
    # One set of draws for every number: the difference of any two of them is then paired.
    return Scored(
        study=study,
        sizes=sizes_of(study.meta),
        resamples=bootstrap.resample(study.items['cluster_id'], bootstraps, seed),
        whole=whole,
    )


def _without(study, runs):
    """Return the study without the cells of some runs."""
    return replace(study, cells={cell: rows for cell, rows in study.cells.items()
                                 if not runs & {cell.p_run, cell.r_run}})


def sizes_of(meta: dict[str, Any]) -> tuple[Size, ...]:
    """Return the sizes by their total parameter count, of the runs that are not `apart`."""
    return sizes_among(meta, {run['run_id'] for run in meta['runs']} - apart(meta))


def sizes_among(meta: dict[str, Any], names: Collection[str]) -> tuple[Size, ...]:
    """Return the sizes by their total parameter count, of the runs of these names."""
    runs = {}
    for run in meta['runs']:
        if run['run_id'] in names:
            runs.setdefault(run['size'], []).append(run)
    return tuple(sorted(map(_size, runs.values()), key=lambda size: (size.n_total, size.name)))


def _size(runs):
    """Return the `Size` of runs that differ in their seed only."""
    first = runs[0]
    return Size(
        name=first['size'],
        n_total=first['n_total'],
        n_nonembed=first['n_nonembed'],
        n_vision=first['n_vision'],
        runs=tuple(sorted(run['run_id'] for run in runs)),
        seeds=tuple(sorted({run['seed'] for run in runs})),
    )


def with_apart(s: Scored) -> Scored:
    """Return the study with the answers of all runs; each `apart` run is a size of its own."""
    left_out = apart(s.study.meta)
    alone = [_size([run]) for run in s.study.meta['runs'] if run['run_id'] in left_out]
    return replace(s, study=s.whole or s.study, sizes=(*s.sizes, *alone))


def size_of_run(s: Scored) -> dict[str, Size]:
    """Return {run: its size}."""
    by_run = {}
    for size in s.sizes:
        by_run |= dict.fromkeys(size.runs, size)
    return by_run


def seed_of_run(s: Scored) -> dict[str, int]:
    """Return {run: its seed}."""
    return {run['run_id']: run['seed'] for run in s.study.meta['runs']}


def families(s: Scored) -> list[str]:
    """Return the families, visual ones first, as every table and figure lists them."""
    items = s.study.items
    # A family with a single visual question counts as visual.
    kinds = sorted(set(zip(items['category'], items['task'], strict=True)), reverse=True)
    visual = sorted({task for kind, task in kinds if kind == 'visual'})
    return visual + sorted({task for _, task in kinds} - set(visual))


# Which cells answer.

def joint_cells(s: Scored, size: Size, condition: str) -> list[Cell]:
    """Return the cells where the vision-language model of this size answered by itself.

    Thinking cells are used only when the study has no direct ones and no stage that gives such.
    """
    cells = [cell for cell in s.study.cells if not cell.r_run and cell.condition == condition]
    # The mode is that of the whole study: sizes in different modes would not compare.
    direct = any(not cell.thinking for cell in s.study.cells if not cell.r_run)
    # Where such answers are still to come, explained ones are not to pass for them.
    direct |= any(not set(JOINT).isdisjoint(names)
                  for names in s.study.meta.get('stages', {}).values())
    return sorted(cell for cell in cells if cell.p_run in size.runs
                  and cell.thinking == (not direct))


def explained_cells(s: Scored, size: Size, condition: str) -> list[Cell]:
    """Return the cells where a model of this size first wrote what it sees, and then answered."""
    return sorted(cell for cell in s.study.cells if not cell.r_run and cell.thinking
                  and cell.condition == condition and cell.p_run in size.runs)


def answering_sizes(s: Scored) -> list[Size]:
    """Return the sizes that answered with the picture by themselves, small to large."""
    return [size for size in s.sizes if joint_cells(s, size, 'image')]


def pair_groups(s: Scored, kind: str, thinking: bool) -> dict[tuple[str, str], list[Cell]]:
    """Return {(perception size or `GOLD`, reasoner size): cells} of one kind of text and mode."""
    sizes = size_of_run(s)
    cells = [cell for cell in s.study.cells if cell.r_run and cell.text_kind == kind
             and cell.thinking == thinking]
    groups = {}
    # Sorted, since sums over a panel are taken in the order of its pairs.
    for cell in sorted(cells):
        p_size = sizes[cell.p_run].name if cell.p_run else GOLD
        groups.setdefault((p_size, sizes[cell.r_run].name), []).append(cell)
    return groups


def by_seed(s: Scored, cells: Sequence[Cell]) -> dict[int, list[Cell]]:
    """Return {seed: its cells}; a pair has the seed of its reasoner."""
    seed_of = seed_of_run(s)
    seeded = {}
    for cell in cells:
        seeded.setdefault(seed_of[cell.r_run or cell.p_run], []).append(cell)
    return seeded


def planned_seeds(s: Scored, groups: Sequence[Sequence[Cell]]) -> int:
    """Return how many seeds the study has for each of these groups of cells, were none missing."""
    sizes = size_of_run(s)
    counts = []
    for cells in groups:
        # A pair can be had under the seeds that both of its sizes were trained with.
        runs = ({cell.p_run for cell in cells} | {cell.r_run for cell in cells}) - {''}
        counts.append(len(set.intersection(*(set(sizes[run].seeds) for run in runs))))
    return min(counts)


# What they answered, in means over families with their draws.

def means_of(s: Scored,
             groups: Sequence[Sequence[Cell]]) -> tuple[Paired, bootstrap.Means]:
    """Return the pairing and the means, a row for each, of groups of cells to compare.

    Both are over the seeds that all groups have. The draws are over pictures, and over seeds where
    `two_way.FEW_SEEDS` were planned for each. `Missing` when no seed is in all groups.
    """
    planned = planned_seeds(s, groups)
    # 1. A row for each group and seed, group by group, with the cells of that seed.
    seeded = _common_seeds(s, groups)
    seeds = len(seeded[0])
    rows = list(itertools.chain.from_iterable(seeded))
    # 2. Every cell scored on the same items, and its means made once.
    paired = pair(s.study, rows)
    _make_means(s, list(itertools.chain.from_iterable(rows)))
    value = np.stack([_mean_of_made(s, cells, 0) for cells in rows])
    draws = np.stack([_mean_of_made(s, cells, 1) for cells in rows])
    # 3. The mean over seeds, which are drawn as well where there are enough.
    block_R = _blocks(s, groups)
    over = Seeds(count=seeds, planned=planned, blocks=int(block_R.max()) + 1)
    scores = paired.scores.reshape(len(groups), seeds, -1).mean(axis=1)
    value_RSG = value.reshape(len(groups), seeds, -1)
    draws_RSBG = draws.reshape(*value_RSG.shape[:2], *draws.shape[1:])
    means = bootstrap.mean_over_seeds(_chance(s, paired), value_RSG, draws_RSBG, s.resamples, over,
                                      block_R)
    return replace(paired, scores=scores), means


def _blocks(s, groups):
    """Return the number of the block of each group of cells, from 0 on; see `two_way.Seeds`.

    Sizes are blocks of their own where the study declares `seeds_by_size`, joined by the pairs
    that two of them make: their variances are added up, each with its own degrees.
    """
    # Declared by a claim, and then for every number: a number has one interval.
    claims = s.study.meta.get('claims') or ()
    if not any(claim.get('seeds_by_size') for claim in claims):
        return np.zeros(len(groups), int)
    size_of = size_of_run(s)
    names = []
    for cells in groups:
        runs = {cell.p_run for cell in cells} | {cell.r_run for cell in cells}
        names.append({size_of[run].name for run in runs - {''}})
    # Groups that share a size share its draw: in each round they take the lowest of their numbers.
    block = list(range(len(groups)))
    for _ in groups:
        block = [min(block[other] for other in range(len(groups)) if names[other] & names[group])
                 for group in range(len(groups))]
    return np.unique(block, return_inverse=True)[1]


def _mean_of_made(s, cells, part):
    """Return the mean over cells of their values (`part` 0) or draws (1)."""
    return np.mean([s.made[cell][part] for cell in cells], axis=0)


def _common_seeds(s, groups):
    """Return, for each group, a list of its cells per seed, of the seeds that all groups have."""
    seeded = [by_seed(s, cells) for cells in groups]
    common = sorted(set.intersection(*map(set, seeded)))
    if not common:
        listed = [', '.join(map(str, sorted(group))) for group in seeded]
        raise Missing(f'no seed has all that is compared; there are seeds {" and ".join(listed)}')
    rows = []
    for group in seeded:
        rows.append([group[seed] for seed in common])
    return rows


def of_run(s: Scored, cell: Cell) -> bootstrap.Means:
    """Return the means of one run by itself, over pictures only."""
    _make_means(s, [cell])
    chance = _chance(s, pair(s.study, [[cell]]))
    value, draws = s.made[cell]
    return bootstrap.Means(groups=chance.groups, value=value[None], draws=draws[:, None],
                           n=chance.n, clusters=chance.clusters)


def each(s: Scored, groups: Sequence[Sequence[Cell]]) -> tuple[Paired, list[bootstrap.Means]]:
    """Return the pairing, and the means of each group of cells over all seeds of that group."""
    return pair(s.study, groups), [means_of(s, [cells])[1] for cells in groups]


def _make_means(s, cells):
    """Put values [G] and draws [B, G] of these cells into `s.made`."""
    # Draws take most of the time, and a cell is part of many comparisons.
    missing = [cell for cell in dict.fromkeys(cells) if cell not in s.made]
    if missing:
        paired = pair(s.study, [[cell] for cell in missing])
        means = bootstrap.group_means(paired.scores, paired.task, paired.cluster_id, s.resamples)
        for row, cell in enumerate(missing):
            s.made[cell] = means.value[row], means.draws[:, row]


def _chance(s, paired):
    """Return the mean chance by family as `Means` of one row, made once for the same items."""
    key = paired.key   # the items themselves: not all cells have the same ones
    if key not in s.made:
        s.made[key] = bootstrap.group_means(
            paired.chance, paired.task, paired.cluster_id, s.resamples
        )
    return s.made[key]


def one(means: bootstrap.Means, row: int, column: int, bounds: tuple[float, float] = (0, 1),
        minus: int | None = None) -> bootstrap.Interval:
    """Return the interval of one mean, or of its paired difference from row `minus`."""
    value = means.value[row, column]
    draws = means.draws[:, row, column]
    if minus is not None:
        value = value - means.value[minus, column]
        draws = draws - means.draws[:, minus, column]
        bounds = (-1, 1)   # of a difference of two shares
    return means.interval(value, draws, column, bounds)

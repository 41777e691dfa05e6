"""How much is lost from the largest to the smallest size, by four measures, and whether what is
lost is what relied on the picture.
"""
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm, rankdata

from downscale.analysis import floors, measures
from downscale.analysis.measures import Missing, Scored
from downscale.statistics import bootstrap

SIZE_COLUMNS = ('n_nonembed', 'n_total')  # a slope per decade moves by up to 1.3x with the choice
FEW_TASKS = 4   # a line or a rank through fewer says nothing
SPLITS = 50


@dataclass(frozen=True)
class RelianceTrend:
    """How the drop of tasks goes with their visual reliance; intervals are over tasks."""
    tasks: tuple
    reliance: np.ndarray
    drop: np.ndarray
    spearman: bootstrap.Interval
    slope: bootstrap.Interval


def drops(s: Scored, size: str = 'n_nonembed') -> dict[str, Any]:
    """Return the sizes 'large' and 'small', and 'drops': {family or 'macro': {measure: Interval}}.

    abs: accuracy of the largest size minus that of the smallest. rel: abs / accuracy of the
    largest. rel_chance: abs / (accuracy of the largest - floor). slope: accuracy gained per
    tenfold `size`, a line by least squares through all sizes. The largest is so by n_total.
    """
    if size not in SIZE_COLUMNS:
        raise ValueError(f'no size column {size!r}; there are {", ".join(SIZE_COLUMNS)}')
    have = [one for one in s.sizes if measures.joint_cells(s, one, 'image')]
    if len(have) < 2:
        raise Missing(f'a drop needs two sizes that answered with the picture, found {len(have)}')
    cells = [measures.joint_cells(s, one, 'image') for one in have]
    paired, ends, _ = measures.means_of(s, [cells[-1], cells[0]])
    floor = bootstrap.with_macro(floors.floor(s, paired).means)
    ends, line = map(bootstrap.with_macro, (ends, measures.means_of(s, cells)[1]))
    decades = np.log10([one.n_nonembed if size == 'n_nonembed' else one.n_total for one in have])
    return {'large': have[-1].name, 'small': have[0].name,
            'drops': {task: _drops_of(ends, line, floor, column, decades)
                      for column, task in enumerate(ends.groups)}}


def _drops_of(ends, line, floor, column, decades):
    """Return the measures of one family: `ends` has the largest and the smallest size, `line`
    all.
    """
    nothing = replace(floor, value=floor.value * 0, draws=floor.draws * 0)
    found = {'abs': measures.one(ends, 0, column, minus=1),
             'rel': measures.relative(ends, nothing, column),
             'rel_chance': measures.relative(ends, floor, column)}
    if np.ptp(decades) > 0:
        lever = (decades - decades.mean()) / np.sum((decades - decades.mean()) ** 2)
        found['slope'] = bootstrap.contrast(line, lever, column, (-np.inf, np.inf))
    return found


def visual_reliance(s: Scored, condition: str = 'blind') -> dict[str, Any]:
    """Return the four columns that `relation` compares, of the largest and the smallest size.

    A dict of large, without, small (scores per item), task and cluster. `without` is the largest
    size asked under `condition`.
    """
    have = [size for size in s.sizes if measures.joint_cells(s, size, 'image')]
    cells = measures.joint_cells(s, have[-1], condition) if have else []
    if len(have) < 2 or not cells:
        raise Missing(f'visual reliance needs two sizes that answered with the picture, and the '
                      f'largest under {condition}')
    paired, _, _ = measures.means_of(s, [measures.joint_cells(s, have[-1], 'image'), cells,
                                         measures.joint_cells(s, have[0], 'image')])
    return {'large': paired.scores[0], 'without': paired.scores[1], 'small': paired.scores[2],
            'task': paired.task, 'cluster': paired.cluster_id}


def relation(large: ArrayLike, without: ArrayLike, small: ArrayLike, task: ArrayLike,
             cluster: ArrayLike, split: bool = True, bootstraps: int = 2000,
             seed: int = 0) -> RelianceTrend:
    """Drop (large - small) against reliance (large - without) over tasks, as a `RelianceTrend`.

    `large` is on both axes, so that its noise alone makes a rising line. With `split` the axes
    come from disjoint halves of the pictures, which removes that; the result is the mean over
    random halves. Noise in the reliance still flattens the slope. The points of the result are
    those of all items. Interval: bootstrap over tasks.
    """
    rng = np.random.default_rng(seed)
    names, place = np.unique(np.asarray(task, dtype=str), return_inverse=True)
    relied, fell = (np.asarray(large) - np.asarray(other) for other in (without, small))
    points = [_task_means(values, place, np.ones(len(place), bool), len(names))
              for values in (relied, fell)]
    if len(names) < FEW_TASKS:
        raise Missing(f'drop against reliance needs {FEW_TASKS} tasks, found {len(names)}')
    x, y = (values[None] for values in points)
    if split:
        x, y = _halves(relied, fell, place, cluster, len(names), rng)
    picks = rng.integers(len(names), size=(bootstraps, len(names)))
    found = []
    for measure in (_spearman, _slope):
        draws = np.stack([measure(a[picks], b[picks]) for a, b in zip(x, y, strict=True)])
        found.append(_over_tasks(measure(x, y).mean(), draws.mean(axis=0), len(place),
                                 len(names)))
    found[0] = _with_small_sample(found[0])
    return RelianceTrend(tuple(names.tolist()), *points, *found)


def _with_small_sample(x):
    """Return a rank correlation whose interval holds that of Fisher's z as well.

    With the standard error of Bonett and Wright 2000 (Psychometrika 65:23): drawing few tasks
    with replacement alone is too sure.
    """
    if not np.isfinite(x.low):
        return x
    at = np.clip(x.value, -.999, .999)
    reach = norm.ppf(.975) * np.sqrt((1 + at * at / 2) / max(x.clusters - 3, 1))
    low, high = np.tanh(np.arctanh(at) + np.array([-reach, reach]))
    return replace(x, low=float(min(x.low, low)), high=float(max(x.high, high)),
                   method=f'{x.method} and Fisher z')


def reliance(s: Scored) -> dict[str, Any]:
    """Return `measures.reliance`, and 'relation': {condition: {'same items' | 'split halves':
    Relation}}.

    A condition is absent from the latter where there are too few tasks.
    """
    found = {**measures.reliance(s), 'relation': {}}
    for condition in found['conditions']:
        try:
            columns = visual_reliance(s, condition)
            found['relation'][condition] = {
                name: relation(**columns, split=split, bootstraps=len(s.resamples.weights))
                for name, split in (('same items', False), ('split halves', True))}
        except Missing:
            continue
    return found


def _over_tasks(value, draws, items, tasks):
    draws = draws[np.isfinite(draws)]  # a draw of tasks may have no spread
    low, high = np.quantile(draws, [.025, .975]) if len(draws) > 1 else (np.nan, np.nan)
    known = bootstrap.without_ends(value, items, tasks, 'none (tasks do not differ)')
    if not high - low > 1e-9:
        return known
    return replace(known, low=float(low), high=float(high),
                   method='bootstrap over tasks')


def _halves(relied, fell, place, cluster, tasks, rng):
    """Return reliance and drop [splits, tasks] from disjoint halves of the pictures, each way
    round.
    """
    clusters, picture = np.unique(np.asarray(cluster, dtype=str), return_inverse=True)
    x = []
    y = []
    for _ in range(SPLITS):
        order = rng.permutation(len(clusters))
        half = order[picture] < len(clusters) // 2
        for first in (half, ~half):
            x.append(_task_means(relied, place, first, tasks))
            y.append(_task_means(fell, place, ~first, tasks))
    x = np.stack(x)
    y = np.stack(y)
    whole = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    if not whole.any():
        raise Missing('a task has too few pictures to be split in halves')
    return x[whole], y[whole]


def _task_means(values, place, keep, tasks):
    with np.errstate(invalid='ignore'):
        return (np.bincount(place[keep], values[keep], tasks)
                / np.bincount(place[keep], minlength=tasks))


def _centred(values):
    return values - values.mean(axis=-1, keepdims=True)


def _slope(x, y):
    """Return least-squares slope along the last axis; NaN where x does not vary."""
    x = _centred(x)
    y = _centred(y)
    below = np.sum(x * x, axis=-1)
    return np.sum(x * y, axis=-1) / np.where(below > 1e-15, below, np.nan)


def _spearman(x, y):
    x, y = (_centred(rankdata(values, axis=-1)) for values in (x, y))
    below = np.sqrt(np.sum(x * x, axis=-1) * np.sum(y * y, axis=-1))
    return np.sum(x * y, axis=-1) / np.where(below > 0, below, np.nan)

"""What is lost from the largest size to the smallest, and whether it relied on the picture.

A drop is defined once, by `absolute`, `relative` and `relative_chance` of the two `Ends`: the
report, `analyze drop` and the claims read their values and intervals off these.
"""
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from downscale.analysis import floors, measures
from downscale.analysis.measures import Missing, Scored, Size
from downscale.results.study import Paired
from downscale.statistics import bootstrap, inference

SIZE_COLUMNS = ('n_nonembed', 'n_total')  # a slope per decade moves by up to 1.3x with the choice
CONDITIONS = ('blind', 'shuffled')   # without the picture, and with that of another question
FEW_TASKS = 4   # a line or a rank through fewer says nothing
SPLITS = 50
MCNEMAR = 'McNemar'
TWO_WAY = 'two-way t'


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The largest and the smallest size that answered with the picture, on the same items.

    `means` has two rows, the largest size first, and `floor` one, the best guess. The last group
    of both is the macro mean, behind the families.
    """
    large: Size
    small: Size
    paired: Paired
    means: bootstrap.Means
    floor: bootstrap.Means


@dataclass(frozen=True, kw_only=True)
class RelianceTrend:
    """How the drop of tasks goes with their visual reliance; intervals are over tasks."""
    tasks: tuple
    reliance: np.ndarray
    drop: np.ndarray
    spearman: bootstrap.Interval
    slope: bootstrap.Interval


def ends_of(s: Scored) -> Ends:
    """Return the `Ends` of a study; `Missing` with fewer than two sizes."""
    sizes = measures.answering_sizes(s)
    if len(sizes) < 2:
        raise Missing(f'a drop needs two sizes that answered with the picture, found {len(sizes)}')
    small = sizes[0]
    large = sizes[-1]
    groups = [measures.joint_cells(s, size, 'image') for size in (large, small)]
    paired, means = measures.means_of(s, groups)
    floor = bootstrap.as_fixed(floors.floor(s, paired).means, means.over)
    return Ends(large=large, small=small, paired=paired, means=bootstrap.with_macro(means),
                floor=bootstrap.with_macro(floor))


def absolute(ends: Ends, column: int) -> bootstrap.Interval:
    """Return accuracy of the largest size minus that of the smallest, in one group."""
    return measures.one(ends.means, 0, column, minus=1)


def relative(ends: Ends, column: int) -> bootstrap.Interval:
    """Return the absolute drop over the accuracy of the largest size."""
    # The accuracy itself is drawn too: it is the denominator.
    large = ends.means.value[0, column], ends.means.draws[:, 0, column]
    return _share_of(ends, column, large)


def relative_chance(ends: Ends, column: int) -> bootstrap.Interval:
    """Return the absolute drop over what the largest size is above the floor of guessing."""
    means = ends.means
    floor = ends.floor
    room = (means.value[0, column] - floor.value[0, column],
            means.draws[:, 0, column] - floor.draws[:, 0, column])
    return _share_of(ends, column, room)


def _share_of(ends, column, room):
    """Return the drop over what there was to lose, a pair (value, draws [B]).

    The interval is that of `ratio_interval`: unbounded where there may have been nothing to lose.
    """
    means = ends.means
    value = means.value[:, column]
    fall = value[0] - value[1], means.draws[:, 0, column] - means.draws[:, 1, column]
    return inference.ratio_interval(fall, room, means.n[column], means.clusters[column],
                                    over=means.over)


def by_family(s: Scored) -> dict[str, Any]:
    """Return the drops that the report shows, by family and in the macro mean, largest first.

    A dict of 'large', 'small', 'test', 'families', 'macro' and, with two families and more, 'lead':
    how much more the first family loses than the second. A family has 'p' of the `test` and
    'p_holm', adjusted over families; None where nothing tests it.
    """
    ends = ends_of(s)
    *tasks, _ = ends.means.groups
    # Over seeds the test is that of the interval. McNemar's is of right and wrong answers of one
    # seed: no family has one where some are half right.
    over = ends.means.over.shown
    tested = over or bool(np.all((ends.paired.scores == 0) | (ends.paired.scores == 1)))
    rows = {}
    for column, task in enumerate(tasks):
        rows[task] = {'absolute': absolute(ends, column),
                      'relative_chance': relative_chance(ends, column),
                      'p': _p_value(ends, column, task) if tested else None, 'p_holm': None}
    # All families are tested at once, so that the report shows adjusted p values.
    if tested:
        adjusted = inference.holm([row['p'] for row in rows.values()])
        for row, p_holm in zip(rows.values(), adjusted, strict=True):
            row['p_holm'] = float(p_holm) if np.isfinite(p_holm) else None
    order = sorted(rows, key=lambda task: (-rows[task]['absolute'].value, task))
    macro = {'absolute': absolute(ends, -1), 'relative_chance': relative_chance(ends, -1)}
    result = {'large': ends.large.name, 'small': ends.small.name, 'macro': macro,
              'test': TWO_WAY if over else MCNEMAR,
              'families': {task: rows[task] for task in order}}
    if len(order) > 1:
        result['lead'] = _lead(ends.means, *order[:2])
    return result


def _p_value(ends, column, task):
    """Return the p value of the drop of one family: over seeds, or McNemar's."""
    means = ends.means
    if means.over.shown:
        draws = means.draws[:, 0, column] - means.draws[:, 1, column]
        value = means.value[0, column] - means.value[1, column]
        return inference.p_value(value, draws, means.clusters[column], means.over)
    of_task = ends.paired.task == task
    return inference.mcnemar(*ends.paired.scores[:, of_task])


def _lead(means, first, second):
    """Return how much more the family `first` loses than `second`."""
    # The two families share pictures and draws, so that their difference has its own interval.
    columns = [means.groups.index(task) for task in (first, second)]
    falls = means.value[0, columns] - means.value[1, columns]
    draws = means.draws[:, 0, columns] - means.draws[:, 1, columns]
    clusters = bootstrap.effective(means.clusters[columns])
    return bootstrap.interval(falls[0] - falls[1], draws[:, 0] - draws[:, 1],
                              means.n[columns].sum(), clusters, bounds=(-2, 2), over=means.over)


def drop_off(s: Scored, size: str = 'n_nonembed') -> dict[str, Any]:
    """Return 'large', 'small' and 'drops': {family or 'macro': {measure: Interval}}.

    The measures are 'abs' (`absolute`), 'rel' (`relative`), 'rel_chance' (`relative_chance`) and
    'slope': accuracy gained per tenfold `size`, a line by least squares through all sizes; absent
    where sizes do not differ in it. The largest is so by n_total.
    """
    if size not in SIZE_COLUMNS:
        raise ValueError(f'no size column {size!r}; there are {", ".join(SIZE_COLUMNS)}')
    ends = ends_of(s)
    sizes = measures.answering_sizes(s)
    groups = [measures.joint_cells(s, each, 'image') for each in sizes]
    # The line is over the seeds that all sizes have; the ends may have more in common.
    line = bootstrap.with_macro(measures.means_of(s, groups)[1])
    decades = np.log10([each.n_nonembed if size == 'n_nonembed' else each.n_total
                        for each in sizes])
    by_task = {}
    for column, task in enumerate(ends.means.groups):
        by_task[task] = {'abs': absolute(ends, column), 'rel': relative(ends, column),
                         'rel_chance': relative_chance(ends, column)}
        # The slope of least squares is a weighted sum of accuracies, and so a contrast.
        if np.ptp(decades) > 0:
            lever = (decades - decades.mean()) / np.sum((decades - decades.mean()) ** 2)
            by_task[task]['slope'] = bootstrap.contrast(line, lever, column, (-np.inf, np.inf))
    return {'large': ends.large.name, 'small': ends.small.name, 'drops': by_task}


def reliance(s: Scored) -> dict[str, Any]:
    """Return what the largest size loses without its picture, and how drops go with that.

    A dict of 'large', 'conditions' {condition: {family: Interval}}, 'missing' (conditions that
    nobody was asked in), 'drop' {family: Interval}, and 'relation' {condition: {'same items' |
    'split halves': RelianceTrend}}, without a condition that has too few tasks.
    """
    result = by_family(s)
    large = next(size for size in s.sizes if size.name == result['large'])
    base = measures.joint_cells(s, large, 'image')
    lost = {}
    for condition in CONDITIONS:
        cells = measures.joint_cells(s, large, condition)
        if cells:
            _, means = measures.means_of(s, [base, cells])
            lost[condition] = {task: measures.one(means, 0, column, minus=1)
                               for column, task in enumerate(means.groups)}
    if not lost:
        raise Missing(f'no blind and no shuffled condition for the largest model ({large.name})')
    return {'large': large.name, 'conditions': lost,
            'missing': [condition for condition in CONDITIONS if condition not in lost],
            'drop': {task: row['absolute'] for task, row in result['families'].items()},
            'relation': _relations(s, lost)}


def _relations(s, conditions):
    """Return {condition: {'same items' | 'split halves': RelianceTrend}} where there is one."""
    relations = {}
    for condition in conditions:
        try:
            columns = visual_reliance(s, condition)
            # Both, because their gap shows what the noise of the largest size makes on both axes.
            relations[condition] = {
                name: relation(**columns, split=split, bootstraps=len(s.resamples.weights))
                for name, split in (('same items', False), ('split halves', True))}
        except Missing:
            continue
    return relations


def visual_reliance(s: Scored, condition: str = 'blind') -> dict[str, Any]:
    """Return the columns that `relation` compares, of the largest and the smallest size.

    A dict of large, without, small (scores per item), task and cluster. `without` is the largest
    size asked under `condition`.
    """
    sizes = measures.answering_sizes(s)
    cells = measures.joint_cells(s, sizes[-1], condition) if sizes else []
    if len(sizes) < 2 or not cells:
        raise Missing(f'visual reliance needs two sizes that answered with the picture, and the '
                      f'largest under {condition}')
    paired, _ = measures.means_of(s, [measures.joint_cells(s, sizes[-1], 'image'), cells,
                                      measures.joint_cells(s, sizes[0], 'image')])
    return {'large': paired.scores[0], 'without': paired.scores[1], 'small': paired.scores[2],
            'task': paired.task, 'cluster': paired.cluster_id}


def relation(large: ArrayLike, without: ArrayLike, small: ArrayLike, task: ArrayLike,
             cluster: ArrayLike, split: bool = True, bootstraps: int = 2000,
             seed: int = 0) -> RelianceTrend:
    """Return how the drop (large - small) goes with reliance (large - without) over tasks.

    `large`, `without` and `small` are scores, `task` and `cluster` names, each [items]. `large` is
    on both axes, so that its noise alone makes a rising line. With `split` the axes come from
    disjoint halves of the pictures, which removes that; the result is the mean over random halves.
    Noise in the reliance still flattens the slope. The points of the result are those of all items.
    Intervals are from a bootstrap over tasks. `Missing` with fewer than `FEW_TASKS` tasks.
    """
    rng = np.random.default_rng(seed)
    names, place = np.unique(np.asarray(task, dtype=str), return_inverse=True)
    count = len(names)
    relied = np.asarray(large) - np.asarray(without)
    fell = np.asarray(large) - np.asarray(small)
    every = np.ones(len(place), bool)
    reliance_T = _task_means(relied, place, every, count)
    drop_T = _task_means(fell, place, every, count)
    if count < FEW_TASKS:
        raise Missing(f'drop against reliance needs {FEW_TASKS} tasks, found {count}')
    # All items are one pair of axes, the random halves many: [1 or splits, tasks].
    axes = (reliance_T[None], drop_T[None])
    if split:
        axes = _halves(relied, fell, place, cluster, count, rng)
    # After the halves and before both measures: the order in which numbers are drawn must stay.
    picks = rng.integers(count, size=(bootstraps, count))
    spearman = _over_tasks(_spearman, axes, picks, len(place))
    slope = _over_tasks(_slope, axes, picks, len(place))
    return RelianceTrend(tasks=tuple(names.tolist()), reliance=reliance_T, drop=drop_T,
                         spearman=_with_small_sample(spearman), slope=slope)


def _with_small_sample(x):
    """Return a rank correlation whose interval covers that of Fisher's z as well.

    Drawing few tasks with replacement alone is too sure of itself. The standard error is that of
    Bonett and Wright 2000 (Psychometrika 65:23).
    """
    if not np.isfinite(x.low):
        return x
    # At +-1 the transform is infinite.
    rank = np.clip(x.value, -.999, .999)
    reach = ndtri(.975) * np.sqrt((1 + rank * rank / 2) / max(x.clusters - 3, 1))
    low, high = np.tanh(np.arctanh(rank) + np.array([-reach, reach]))
    return replace(x, low=float(min(x.low, low)), high=float(max(x.high, high)),
                   method=f'{x.method} and Fisher z')


def _over_tasks(measure, axes, picks, items):
    """Return the mean of `measure` over pairs of axes, with its interval over tasks.

    `axes` are x and y [pairs, tasks], `picks` [bootstraps, tasks] the tasks of each draw.
    """
    tasks = picks.shape[1]
    value = measure(*axes).mean()
    draws = np.stack([measure(x[picks], y[picks]) for x, y in zip(*axes, strict=True)])
    draws = draws.mean(axis=0)
    draws = draws[np.isfinite(draws)]  # a draw of tasks may have no spread
    low, high = np.quantile(draws, [.025, .975]) if len(draws) > 1 else (np.nan, np.nan)
    method = 'bootstrap over tasks'
    if not high - low > 1e-9:
        low = high = np.nan
        method = 'none (tasks do not differ)'
    return bootstrap.Interval(value=float(value), low=float(low), high=float(high), n=items,
                              clusters=tasks, method=method)


def _halves(relied, fell, place, cluster, tasks, rng):
    """Return reliance and drop [splits, tasks], each from the other half of the pictures."""
    clusters, picture = np.unique(np.asarray(cluster, dtype=str), return_inverse=True)
    reliances = []
    drops_of_halves = []
    for _ in range(SPLITS):
        order = rng.permutation(len(clusters))
        half = order[picture] < len(clusters) // 2
        for first in (half, ~half):   # each half gives the reliance once
            reliances.append(_task_means(relied, place, first, tasks))
            drops_of_halves.append(_task_means(fell, place, ~first, tasks))
    # A split is left out where a task has no picture on one side.
    x = np.stack(reliances)
    y = np.stack(drops_of_halves)
    whole = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    if not whole.any():
        raise Missing('a task has too few pictures to be split in halves')
    return x[whole], y[whole]


def _task_means(values, place, keep, tasks):
    """Return the mean of the kept values of each task; NaN where none is kept."""
    with np.errstate(invalid='ignore'):
        return (np.bincount(place[keep], values[keep], tasks)
                / np.bincount(place[keep], minlength=tasks))


def _centred(values):
    return values - values.mean(axis=-1, keepdims=True)


def _slope(x, y):
    """Return the least-squares slope along the last axis; NaN where x does not vary."""
    x = _centred(x)
    y = _centred(y)
    # Centring leaves some rounding of tasks that are alike: 1e-15 counts as none.
    below = np.sum(x * x, axis=-1)
    return np.sum(x * y, axis=-1) / np.where(below > 1e-15, below, np.nan)


def _spearman(x, y):
    """Return the rank correlation along the last axis; NaN where x or y does not vary."""
    from scipy.stats import rankdata  # half a second, which no start should wait for
    x = _centred(rankdata(x, axis=-1))
    y = _centred(rankdata(y, axis=-1))
    below = np.sqrt(np.sum(x * x, axis=-1) * np.sum(y * y, axis=-1))
    return np.sum(x * y, axis=-1) / np.where(below > 0, below, np.nan)

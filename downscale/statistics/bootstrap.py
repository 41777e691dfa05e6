"""Item-level statistics: one set of resampled pictures for all models, so that all is paired.

Questions about one picture are dependent, therefore pictures (clusters) are resampled, not
questions (Miller 2411.00640). From `FEW_SEEDS` training seeds on, intervals cover the seeds too
(`two_way`); with fewer they cover the choice of pictures only.
"""
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from downscale.statistics import proportions, two_way
from downscale.statistics.two_way import ONE_SEED, Seeds

Column = np.ndarray | Sequence  # one entry for each item, or for each group

FEW = 30  # below this many clusters percentile intervals are too narrow: join a t interval
# Fewer clusters that all agree on the sign of a difference give a sign test p above .05.
FEW_SIGNS = 6


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number, its 95 % interval, and how many items, clusters and seeds stand behind it.

    The interval covers the choice of seeds where there are `FEW_SEEDS` or more. For a mean over
    families `clusters` is the `effective` number. `error` is the standard error and `degrees` those
    of its t distribution, both NaN where the interval is of another kind.
    """
    value: float
    low: float
    high: float
    n: int
    clusters: int
    method: str
    seeds: int = 1
    error: float = np.nan
    degrees: float = np.nan

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return bool(self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Resamples:
    """How often each cluster is drawn: weights [bootstraps, clusters] for sorted `clusters`."""
    clusters: np.ndarray
    weights: np.ndarray
    seed: int | tuple = 0

    def directions(self, count: int) -> np.ndarray:
        """Return `two_way.directions` of `count` seeds; one set serves all models."""
        return two_way.directions(count, len(self.weights), self.seed)


@dataclass(frozen=True, kw_only=True)
class Means:
    """Means of models (rows) in families (groups), and the same under every resample.

    `value` is [rows, groups] and `draws` [bootstraps, rows, groups]; each group has `n` items in
    `clusters`. Where intervals cover seeds (`over`) the first axis is that of `two_way.rows`.
    """
    groups: tuple
    value: np.ndarray
    draws: np.ndarray
    n: np.ndarray
    clusters: np.ndarray
    over: Seeds = ONE_SEED

    def interval(self, value: float, draws: np.ndarray, column: int,
                 bounds: tuple[float, float] = (-np.inf, np.inf)) -> Interval:
        """Return the `interval` of a number that was made of these means in the group `column`."""
        return interval(value, draws, self.n[column], self.clusters[column], bounds=bounds,
                        over=self.over)


def resample(clusters: Column, bootstraps: int = 2000, seed: int | tuple = 0) -> Resamples:
    """Return how often each cluster is drawn in every resample, to be shared by all models."""
    names = np.unique(np.asarray(clusters, dtype=str))
    if not len(names):
        return Resamples(names, np.zeros((bootstraps, 0)), seed)
    share = np.full(len(names), 1 / len(names))
    # A multinomial is drawing with replacement of which only the counts are kept.
    weights = np.random.default_rng(seed).multinomial(len(names), share, size=bootstraps)
    return Resamples(names, weights.astype(np.float64), seed)


def group_means(values: Column, groups: Column, clusters: Column,
                resamples: Resamples) -> Means:
    """Return means of `values` [rows, items] within each group, and the same under every resample.

    A draw that holds no cluster of a group is NaN there and is left out of its interval.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))
    groups = np.asarray(groups, dtype=str)
    place = _places(clusters, resamples)
    names = np.unique(groups)
    value = []
    draws = []
    counts = []
    pictures = []
    for name in names:
        inside = groups == name
        # Sums by cluster first: a resample is then one product with the weights of clusters.
        sums_CR = np.zeros((len(resamples.clusters), len(values)))
        np.add.at(sums_CR, place[inside], values[:, inside].T)
        items_C = np.bincount(place[inside], minlength=len(resamples.clusters)).astype(float)
        # B resamples, C clusters, R rows. The mean is a ratio, as the items of a draw vary as well.
        drawn_B = resamples.weights @ items_C
        drawn_B = np.where(drawn_B > 0, drawn_B, np.nan)
        value.append(values[:, inside].mean(axis=1))
        draws.append((resamples.weights @ sums_CR) / drawn_B[:, None])
        counts.append(int(inside.sum()))
        pictures.append(int(np.count_nonzero(items_C)))
    return Means(
        groups=tuple(names),
        value=np.stack(value, 1),
        draws=np.stack(draws, 2),
        n=np.array(counts),
        clusters=np.array(pictures),
    )


def over_seeds(means: Means, count: int, resamples: Resamples, planned: int = 1) -> Means:
    """Return the mean over seeds of `means`, whose rows are those of seed one, then of seed two.

    A seed is one draw for all rows (one block).
    """
    # Rows came seed by seed, so that seeds are the slower axis of the two they are split into.
    value_SRG = means.value.reshape(count, -1, len(means.groups))
    draws_BSRG = means.draws.reshape(len(means.draws), *value_SRG.shape)
    return mean_over_seeds(means, np.moveaxis(value_SRG, 0, 1), draws_BSRG.transpose(2, 1, 0, 3),
                           resamples, Seeds(count=count, planned=planned))


def mean_over_seeds(means: Means, value_RSG: np.ndarray, draws_RSBG: np.ndarray,
                    resamples: Resamples, over: Seeds,
                    block_R: np.ndarray | None = None) -> Means:
    """Return `means` with the mean over seeds of these values and draws, and rows of `over`.

    `block_R` numbers the block of each compared group (default: one block).
    """
    value_RG = value_RSG.mean(axis=1)
    if over.shown:
        blocks = np.zeros(len(value_RG), int) if block_R is None else block_R
        draws = two_way.rows(value_RSG, draws_RSBG, resamples.directions(over.count), blocks)
    else:
        draws = np.moveaxis(draws_RSBG.mean(axis=1), 1, 0)
    return replace(means, value=value_RG, draws=draws, over=over)


def as_fixed(means: Means, over: Seeds) -> Means:
    """Return means that no seed moves with the rows of `over`, to be compared with such means."""
    return replace(means, draws=two_way.fixed(means.value, means.draws, over), over=over)


def _places(clusters, resamples):
    """Return the column of each item's cluster in the resamples."""
    clusters = np.asarray(clusters, dtype=str)
    place = np.searchsorted(resamples.clusters, clusters)
    # A name behind the last one is placed outside, hence the minimum: then it is refused.
    if np.any(resamples.clusters[np.minimum(place, len(resamples.clusters) - 1)] != clusters):
        raise ValueError('some clusters are not in the resamples')
    return place


def ratio(numerator: Column, denominator: Column, clusters: Column,
          resamples: Resamples) -> tuple[float, np.ndarray]:
    """Return the sum over the sum of two columns [items], and its draws [bootstraps].

    NaN where the denominator is zero, as in a draw that holds none of the items' clusters.
    """
    sums_C2 = np.zeros((len(resamples.clusters), 2))
    np.add.at(sums_C2, _places(clusters, resamples), np.stack([numerator, denominator], axis=1))
    drawn_B2 = resamples.weights @ sums_C2
    above, below = sums_C2.sum(axis=0)
    below_B = np.where(drawn_B2[:, 1] > 0, drawn_B2[:, 1], np.nan)
    return (float(above / below) if below > 0 else np.nan), drawn_B2[:, 0] / below_B


def effective(clusters: Column, weights: np.ndarray | float = 1.) -> int:
    """Return how many clusters the spread of a weighted sum of family means rests on.

    One more than Satterthwaite's degrees of freedom (Biometrics 2:110, 1946), as if pictures
    varied alike in every family, but with one degree less in each: a tiny family may agree by
    chance, so that with nine families of 100 pictures and one of 3 the intervals would cover 87 %.
    It lies between the clusters of the smallest and of the largest family, since families may
    share their pictures.
    """
    clusters = np.asarray(clusters, dtype=float)
    # The variance of each part of the sum, but for the variance of pictures, which they share.
    part = np.square(weights) / clusters
    degrees = part.sum() ** 2 / np.sum(part ** 2 / np.maximum(clusters - 2, 1))
    # A family with a single cluster shows no spread at all.
    most = clusters.max() if clusters.min() > 1 else 1
    return int(np.clip(degrees + 1, clusters.min(), most))


def macro(means: Means) -> Means:
    """Return the plain mean over groups as the only group: a small family counts like a large one.

    Its clusters are the `effective` number.
    """
    return replace(
        means,
        groups=('macro',),
        value=means.value.mean(axis=1, keepdims=True),
        draws=means.draws.mean(axis=2, keepdims=True),
        n=means.n.sum(keepdims=True),
        clusters=np.array([effective(means.clusters)]),
    )


def with_macro(means: Means) -> Means:
    """Return the same means, and behind the groups their plain mean as the group 'macro'."""
    whole = macro(means)
    return replace(
        means,
        groups=(*means.groups, *whole.groups),
        value=np.concatenate([means.value, whole.value], axis=-1),
        draws=np.concatenate([means.draws, whole.draws], axis=-1),
        n=np.concatenate([means.n, whole.n]),
        clusters=np.concatenate([means.clusters, whole.clusters]),
    )


def contrast(means: Means, weights: np.ndarray, column: int,
             bounds: tuple[float, float] = (-1, 1)) -> Interval:
    """Return the interval of a weighted sum of rows in one group, drawn together."""
    return means.interval(float(weights @ means.value[:, column]),
                          means.draws[:, :, column] @ weights, column, bounds)


def interval(value: float, draws: np.ndarray, n: int, clusters: int, level: float = 0.95,
             bounds: tuple[float, float] = (-np.inf, np.inf),
             over: Seeds = ONE_SEED) -> Interval:
    """Return the interval of a number from its `draws`, clipped to `bounds`.

    Over seeds it is a t interval of two-way variances. Else percentiles, below `FEW` clusters
    joined with a t interval. When nothing varies it is widened by Wilson's bound for zero events in
    `clusters` trials, so that no interval has zero width. A difference (`bounds` that begin below
    zero) of fewer than `FEW_SIGNS` clusters is as unsure as the sign test of clusters that all
    agree. One cluster gives no interval (NaN). Where several seeds were planned and one is there,
    the interval is all that `bounds` allow.
    """
    draws = np.asarray(draws)
    usable = np.isfinite(draws).sum()
    if not np.isfinite(value):
        why = 'no number'
    elif clusters < 2:
        why = f'{clusters} cluster{"" if clusters == 1 else "s"}'
    else:
        why = 'fewer than two draws' if usable < 2 else ''
    if why:
        return without_ends(value, n, clusters, f'none ({why})', over.count)
    # A single seed of several planned says nothing of their spread, so that no end is known.
    if over.wanted and not over.shown:
        method = f'unbounded: {over.count} of {over.planned} seeds'
        known = without_ends(value, n, clusters, method, over.count)
        return replace(known, low=float(bounds[0]), high=float(bounds[1]))
    # 1. What varies: seeds and pictures, or pictures alone.
    ends = _two_way_ends if over.shown else _picture_ends
    low, high, method, error, degrees = ends(value, draws, clusters, level, over)
    # 2. Nothing does: what was not seen may still happen.
    if not high - low >= 1e-9:
        margin = proportions.wilson(0, clusters, level)[1]
        low = value - margin
        high = value + margin
        error = degrees = np.nan
        method = 'Wilson bound on unseen change'
        if over.shown:
            method += f' of pictures; {over.count} seeds agree'
    # 3. Very few clusters of a difference.
    if bounds[0] < 0 and clusters < FEW_SIGNS:
        # All of `clusters` trials won: Clopper and Pearson's bound on the share that would be.
        edge = value * (2 * ((1 - level) / 2) ** (1 / clusters) - 1)
        low = min(low, edge)
        high = max(high, edge)
        error = degrees = np.nan
        method += ' and sign test'
    known = without_ends(value, n, clusters, method, over.count)
    return replace(known, low=float(max(low, bounds[0])), high=float(min(high, bounds[1])),
                   error=float(error), degrees=float(degrees))


def _two_way_ends(value, draws, clusters, level, over):
    """Return (low, high, method, error, degrees) of a number over seeds and pictures."""
    error, degrees = two_way.error(draws, over, clusters)
    reach = two_way.reach(error, degrees, level)
    method = f'two-way t over {over.count} seeds, {degrees:.0f} degrees'
    return value - reach, value + reach, method, error, degrees


def _picture_ends(value, draws, clusters, level, over):
    """Return (low, high, method, error, degrees) of a number over pictures alone."""
    from scipy import stats  # half a second, which no page without an interval should wait for
    draws = draws[np.isfinite(draws)]
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    # Bootstrap variance is short by (n - 1) / n.
    spread = draws.std() * np.sqrt(clusters / (clusters - 1))
    method = 'cluster bootstrap'
    if clusters < FEW:
        reach = stats.t.ppf(1 - tail, clusters - 1) * spread
        low, high = min(low, value - reach), max(high, value + reach)
        method += ' and t'
    return low, high, method, spread, clusters - 1


def without_ends(value: float, n: int, clusters: int, method: str, seeds: int = 1) -> Interval:
    """Return a number whose interval is not known: its ends are NaN, and `method` says why."""
    return Interval(
        value=float(value),
        low=np.nan,
        high=np.nan,
        n=int(n),
        clusters=int(clusters),
        method=method,
        seeds=seeds,
    )


def mean_ci(values: Column, clusters: Column, bootstraps: int = 2000, seed: int = 0,
            bounds: tuple[float, float] = (-np.inf, np.inf)) -> Interval:
    """Return the mean of one value per item with its clustered interval, clipped to `bounds`."""
    means = group_means(values, np.full(len(clusters), 'all'), clusters,
                        resample(clusters, bootstraps, seed))
    return interval(means.value[0, 0], means.draws[:, 0, 0], means.n[0], means.clusters[0],
                    bounds=bounds)


def paired_difference(first: Column, second: Column, clusters: Column,
                      bootstraps: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of first - second over the same items, under the same resampled clusters."""
    means = group_means([first, second], np.full(len(clusters), 'all'), clusters,
                        resample(clusters, bootstraps, seed))
    return interval(means.value[0, 0] - means.value[1, 0],
                    means.draws[:, 0, 0] - means.draws[:, 1, 0], means.n[0], means.clusters[0],
                    bounds=(-1, 1))

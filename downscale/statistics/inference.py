"""Tests, ratios, runs and power, beside the means of `bootstrap.py`, by the same resamples."""
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtr, stdtrit  # `scipy.stats` takes half a second more

from downscale.statistics import bootstrap, two_way
from downscale.statistics.two_way import FEW_SEEDS, ONE_SEED, Seeds

NEAR = 5        # a denominator closer to zero than this many standard errors needs Fieller
FEW_RUNS = FEW_SEEDS


def mcnemar(first: bootstrap.Column, second: bootstrap.Column) -> float:
    """Return the exact two-sided p that right answers move as often one way as the other.

    Items stand alone; a picture with several questions needs `bootstrap.paired_difference`.
    """
    from scipy import stats
    first = np.asarray(first) > 0.5
    second = np.asarray(second) > 0.5
    lost = int(np.sum(first & ~second))
    won = int(np.sum(~first & second))
    # Under the null a change goes either way alike; what does not change says nothing of it.
    return float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def standard_error(draws: np.ndarray, clusters: int, over: Seeds = ONE_SEED) -> float:
    """Return the standard error that the draws of a mean show; NaN with one cluster.

    Over seeds it is that of both parts (`two_way`), NaN with one seed of several planned.
    """
    if clusters < 2 or over.wanted and not over.shown:
        return np.nan
    if over.shown:
        return two_way.error(draws, over, clusters)[0]
    # the variance of a bootstrap is short by (clusters - 1) / clusters
    return float(np.nanstd(draws) * np.sqrt(clusters / (clusters - 1)))


def p_value(value: float, draws: np.ndarray, clusters: int, over: Seeds = ONE_SEED) -> float:
    """Return the two-sided p of a t test that a mean or difference is zero.

    Its degrees are those of the clusters, over seeds those of the interval: p is below .05 just
    where that leaves out zero. 1 where it is zero in every draw; NaN with one cluster or one of
    several planned seeds. Below `FEW_SIGNS` clusters it is no lower than the sign test of clusters
    that agree.
    """
    error = standard_error(draws, clusters, over)
    alike = min(1.0, 2 * .5 ** clusters)
    if error < 1e-12:  # no draw differs: as sure as that many coins that fall alike
        return alike if abs(value) > 1e-12 else 1.0
    degrees = two_way.error(draws, over, clusters)[1] if over.shown else clusters - 1
    p = 2 * stdtr(degrees, -abs(value) / error)
    return float(max(p, alike) if clusters < bootstrap.FEW_SIGNS else p)


def p_of(x: bootstrap.Interval, at: float = 0.) -> float:
    """Return the two-sided p of a t test that a number is `at`, by its own error and degrees.

    NaN where the interval is no t interval.
    """
    if not x.error > 0:
        return np.nan
    return float(2 * stdtr(x.degrees, -abs(x.value - at) / x.error))


def holm(p_values: bootstrap.Column) -> np.ndarray:
    """Return Holm's step-down adjusted p values, in the order given; NaN is no test, stays NaN."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind='stable')  # NaN comes last
    # n for the smallest p, n - 1 for the next; no later one may be below an earlier one.
    factors = np.sum(~np.isnan(p_values)) - np.arange(len(p_values))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> np.ndarray:
    """Return adjusted p values (false discovery rate), in the order given; NaN is no test, and
    stays NaN.
    """
    from scipy.stats import false_discovery_control
    adjusted = np.array(p_values, dtype=float)
    known = ~np.isnan(adjusted)
    if known.any():
        adjusted[known] = false_discovery_control(adjusted[known])
    return adjusted


def ratio_interval(top: tuple[float, np.ndarray], bottom: tuple[float, np.ndarray], n: int,
                   clusters: int, level: float = 0.95,
                   over: Seeds = ONE_SEED) -> bootstrap.Interval:
    """Return the interval of top / bottom, each a pair (value, draws) under the same resamples.

    The interval of the drawn ratios, or Fieller's where the denominator is within `NEAR` standard
    errors of zero. There the bounds are infinite when the denominator itself cannot be told from
    zero: the ratio may then be anything, as with one of several planned seeds. NaN where it is
    clearly below zero: of less than nothing there is no share.
    """
    above, above_draws = top
    below, below_draws = bottom
    pairs_N2 = np.stack([above_draws, below_draws], axis=1)
    if clusters < 2 or np.isfinite(pairs_N2).all(axis=1).sum() < 2 or not below:
        return bootstrap.without_ends(np.nan, n, clusters, 'none (no ratio)')
    value = above / below
    known = bootstrap.without_ends(value, n, clusters, 'Fieller', over.count)
    open_ended = replace(known, low=-np.inf, high=np.inf,
                         method='unbounded: the denominator may be zero')
    if over.wanted and not over.shown:
        return replace(open_ended, method=f'unbounded: {over.count} of {over.planned} seeds')
    ((v11, v12), (_, v22)), degrees = _pair_covariance(pairs_N2, clusters, over)
    reach = stdtrit(degrees, (1 + level) / 2) ** 2
    if below < 0 and below ** 2 > reach * v22:
        return bootstrap.without_ends(np.nan, n, clusters, 'none (nothing to have a share of)')
    # 1. The denominator is far from zero: as any number.
    if abs(below) > NEAR * np.sqrt(v22):
        with np.errstate(divide='ignore', invalid='ignore'):
            ratios = pairs_N2[:, 0] / pairs_N2[:, 1]
        return bootstrap.interval(value, ratios, n, clusters, level, over=over)
    # 2. Fieller: the ratios r that a t test of top - r bottom does not reject lie between the roots
    # of a quadratic; where it does not open upward, or has no roots, they are not bounded.
    # Those with r^2 room - 2 r middle + (above^2 - reach v11) <= 0.
    room = below ** 2 - reach * v22
    middle = above * below - reach * v12
    root = middle ** 2 - room * (above ** 2 - reach * v11)
    if room <= 0 or root < 0:
        return replace(open_ended, method=f'Fieller, {open_ended.method}')
    low = (middle - root ** .5) / room
    high = (middle + root ** .5) / room
    return replace(known, low=float(low), high=float(high))


def _pair_covariance(pairs_N2, clusters, over):
    """Return the covariance [2, 2] of two numbers from their draws, and its degrees of freedom."""
    if over.shown:
        total, degrees = two_way.covariance(pairs_N2, over, clusters)
        return total, degrees.min()
    pairs_N2 = pairs_N2[np.isfinite(pairs_N2).all(axis=1)]
    return np.cov(pairs_N2.T) * clusters / (clusters - 1), clusters - 1


def iqm(scores: ArrayLike) -> float:
    """Return the mean of the middle half of all scores [runs, tasks] (25 % cut off at each end)."""
    from scipy.stats import trim_mean
    return float(trim_mean(np.ravel(scores), .25))


def _drawn_runs(scores, bootstraps, rng):
    """Return [bootstraps, runs, tasks]: within every task, runs drawn with replacement."""
    runs, tasks = scores.shape
    picks = rng.integers(runs, size=(bootstraps, runs, tasks))
    # `arange` runs along the last axis: every task draws runs of its own.
    return scores[picks, np.arange(tasks)]


def _over_runs(value, draws, runs, tasks):
    """Return the percentile interval of `draws` over runs; without ends where runs show none."""
    low, high = np.quantile(draws, [.025, .975])
    known = bootstrap.without_ends(value, runs * tasks, runs, 'none (runs do not differ)')
    if runs < FEW_RUNS:
        return replace(known, method=f'none ({runs} of at least {FEW_RUNS} runs)')
    if high - low < 1e-9:
        return known
    return replace(known, low=float(low), high=float(high), method='stratified bootstrap over runs')


def iqm_interval(scores: ArrayLike, bootstraps: int = 2000, seed: int = 0) -> bootstrap.Interval:
    """Return the IQM of scores [runs, tasks] with its interval over runs; tasks count as fixed.

    NaN bounds below three runs (Agarwal et al. 2108.13264), where no spread can be seen.
    """
    from scipy.stats import trim_mean
    scores = np.asarray(scores, dtype=float)
    drawn = _drawn_runs(scores, bootstraps, np.random.default_rng(seed))
    draws = trim_mean(drawn.reshape(bootstraps, -1), .25, axis=1)
    return _over_runs(iqm(scores), draws, *scores.shape)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Return the share of scores [runs, tasks] above each threshold."""
    return (np.ravel(scores)[:, None] > np.asarray(thresholds, dtype=float)).mean(axis=0)


def better(first: ArrayLike, second: ArrayLike, bootstraps: int = 2000,
           seed: int = 0) -> bootstrap.Interval:
    """Return how likely a run of `first` beats one of `second`: mean over tasks, ties count half.

    Both are [runs, tasks] over the same tasks; `clusters` of the result is the smaller run count.
    """
    first = np.asarray(first, dtype=float)
    second = np.asarray(second, dtype=float)
    rng = np.random.default_rng(seed)

    def chance(x, y):
        # [..., runs of x, runs of y, tasks]: each run of one against each run of the other.
        x = x[..., :, None, :]
        y = y[..., None, :, :]
        return ((x > y) + .5 * (x == y)).mean(axis=(-3, -2, -1))
    draws = chance(_drawn_runs(first, bootstraps, rng), _drawn_runs(second, bootstraps, rng))
    return _over_runs(chance(first, second), draws, min(len(first), len(second)), first.shape[1])


def items_needed(difference: float, variance: float, power: float = 0.8,
                 level: float = 0.95) -> int:
    """Return how many items show a paired `difference` whose per-item `variance` is given.

    Miller 2411.00640, on power: variance is that of the difference of per-item means, so that
    repeated answers lower it. Items are independent here; with clusters multiply by the design
    effect.
    """
    z = ndtri((1 + level) / 2) + ndtri(power)
    return int(np.ceil(z * z * variance / difference ** 2))


def detectable_difference(se: float, power: float = 0.8, level: float = 0.95) -> float:
    """Return the smallest true difference that is found with `power`, given its standard error."""
    return float((ndtri((1 + level) / 2) + ndtri(power)) * se)

"""Tests, ratios, runs and power, beside the means of `bootstrap.py`, by the same resamples."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

from downscale.statistics import bootstrap

NEAR = 5        # a denominator closer to zero than this many standard errors needs Fieller
FEW_RUNS = bootstrap.FEW_SEEDS
Z = distributions.norm.ppf(.975)


def newcombe(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return Newcombe's interval (low, high) of the difference of two paired shares of right
    answers.

    Method 10 of Newcombe 1998 (Statistics in Medicine 17:2635): Wilson's limits of each share, put
    together with the correlation of the pairs. Items stand alone; a picture with several questions
    needs `stats.paired_difference`.
    """
    first = np.asarray(first) > 0.5
    second = np.asarray(second) > 0.5
    n = len(first)
    both = int(np.sum(first & second))
    neither = int(np.sum(~first & ~second))
    won = int(np.sum(first & ~second))
    lost = int(np.sum(~first & second))
    margins = float((both + won) * (lost + neither)) * float((both + lost) * (won + neither))
    product = both * neither - won * lost
    if product > 0:
        product = max(product - n / 2, 0)  # continuity; a negative correlation stays as it is
    phi = product / np.sqrt(margins) if margins else 0.0
    p = (both + won) / n
    q = (both + lost) / n
    (p_low, p_high), (q_low, q_high) = (bootstrap.wilson(k, n, level) for k in (both + won,
                                                                                both + lost))
    down, up = ((a * a - 2 * phi * a * b + b * b) ** .5 for a, b in
                ((p - p_low, q_high - q), (p_high - p, q - q_low)))
    return float(p - q - down), float(p - q + up)


def standard_error(draws: np.ndarray, clusters: int, seeds: int = 1, planned: int = 1) -> float:
    """Return the standard error that the draws of a mean (stats.Means) show; NaN with one cluster.

    Over seeds it is that of a normal variable with the same 95 % interval, NaN with one of them.
    """
    over = bootstrap.covers_seeds(seeds, planned)
    if clusters < 2 or over and seeds < 2:
        return np.nan
    if over:
        return float(np.diff(np.nanquantile(draws, [.025, .975]))[0] / (2 * Z))
    # the variance of a bootstrap is short by (clusters - 1) / clusters
    return float(np.nanstd(draws) * np.sqrt(clusters / (clusters - 1)))


def p_value(value: float, draws: np.ndarray, clusters: int, seeds: int = 1,
            planned: int = 1) -> float:
    """Return two-sided p of a t test that a mean or difference is zero, pictures moving together.

    1 where it is zero in every draw; NaN with one cluster or one of several planned seeds. Over
    seeds: twice the share of draws beyond zero, so that p is below .05 where the interval leaves
    out zero. Below `stats.FEW_SIGNS` clusters no lower than the sign test of clusters that agree.
    """
    error = standard_error(draws, clusters, seeds, planned)
    alike = min(1.0, 2 * .5 ** clusters)
    if error < 1e-12:  # no draw differs: as sure as that many coins that fall alike
        return alike if abs(value) > 1e-12 else 1.0
    if bootstrap.covers_seeds(seeds, planned):
        beyond = min(np.sum(draws <= 0), np.sum(draws >= 0))
        found = min(1, 2 * (beyond + 1) / (len(draws) + 1))
    else:
        found = 2 * distributions.t.sf(abs(value) / error, clusters - 1)
    return float(max(found, alike) if clusters < bootstrap.FEW_SIGNS else found)


def benjamini_hochberg(p_values: ArrayLike) -> np.ndarray:
    """Return adjusted p values (false discovery rate), in the order given."""
    return distributions.false_discovery_control(np.asarray(p_values, dtype=float))


def ratio_interval(top: tuple[float, np.ndarray], bottom: tuple[float, np.ndarray], n: int,
                   clusters: int, level: float = 0.95, seeds: int = 1,
                   planned: int = 1) -> bootstrap.Interval:
    """Return the interval of top / bottom, each a pair (value, draws) under the same resamples.

    Percentiles of the drawn ratios, or Fieller's interval where the denominator is within `NEAR`
    standard errors of zero. There the bounds are infinite when the denominator itself cannot be
    told from zero: the ratio may then be anything, as with one of several planned seeds. Over
    seeds, whose draws have no variance, only percentiles are taken.
    """
    (above, above_draws), (below, below_draws) = top, bottom
    pairs = np.stack([above_draws, below_draws])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if clusters < 2 or pairs.shape[1] < 2 or not below:
        return bootstrap.Interval(np.nan, np.nan, np.nan, int(n), int(clusters), 'none (no ratio)')
    scale = clusters / (clusters - 1)  # as in `standard_error`
    (v11, v12), (_, v22) = np.cov(pairs) * scale
    value = above / below
    open_ended = bootstrap.Interval(float(value), -np.inf, np.inf, int(n), int(clusters),
                                    'unbounded: the denominator may be zero', seeds)
    if bootstrap.covers_seeds(seeds, planned):
        crossed = seeds > 1 and np.mean(pairs[1] * below <= 0) > (1 - level) / 2
        return (
            open_ended
            if crossed
            else bootstrap.interval(
                value, pairs[0] / pairs[1], n, clusters, level, seeds=seeds, planned=planned
            )
        )
    if abs(below) > NEAR * np.sqrt(v22):
        return bootstrap.interval(value, pairs[0] / pairs[1], n, clusters, level, seeds=seeds)
    reach = distributions.t.ppf((1 + level) / 2, clusters - 1) ** 2
    room = below ** 2 - reach * v22
    middle = above * below - reach * v12
    root = middle ** 2 - room * (above ** 2 - reach * v11)
    if room <= 0 or root < 0:
        return dataclasses.replace(open_ended, method=f'Fieller, {open_ended.method}')
    low = (middle - root ** .5) / room
    high = (middle + root ** .5) / room
    return bootstrap.Interval(
        float(value), float(low), float(high), int(n), int(clusters), 'Fieller', seeds
    )


def iqm(scores: ArrayLike) -> float:
    """Return the mean of the middle half of all scores [runs, tasks] (25 % cut off at each end)."""
    return float(distributions.trim_mean(np.ravel(scores), .25))


def _drawn_runs(scores, bootstraps, rng):
    """Return [bootstraps, runs, tasks]: within every task, runs drawn with replacement."""
    runs, tasks = scores.shape
    picks = rng.integers(runs, size=(bootstraps, runs, tasks))
    return scores[picks, np.arange(tasks)]


def _over_runs(value, draws, runs, tasks):
    low, high = np.quantile(draws, [.025, .975])
    method = 'stratified bootstrap over runs'
    if runs < FEW_RUNS or high - low < 1e-9:
        low = high = np.nan
        method = f'none ({runs} of at least {FEW_RUNS} runs)' if runs < FEW_RUNS else \
            'none (runs do not differ)'
    return bootstrap.Interval(float(value), float(low), float(high), runs * tasks, runs, method)


def iqm_interval(scores: ArrayLike, bootstraps: int = 2000, seed: int = 0) -> bootstrap.Interval:
    """Return the IQM of scores [runs, tasks] with its interval over runs; tasks count as fixed.

    NaN bounds below three runs (Agarwal et al. 2108.13264), where no spread can be seen.
    """
    scores = np.asarray(scores, dtype=float)
    drawn = _drawn_runs(scores, bootstraps, np.random.default_rng(seed))
    draws = distributions.trim_mean(drawn.reshape(bootstraps, -1), .25, axis=1)
    return _over_runs(iqm(scores), draws, *scores.shape)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Return the share of scores [runs, tasks] above each threshold."""
    return (np.ravel(scores)[:, None] > np.asarray(thresholds, dtype=float)).mean(axis=0)


def better(first: ArrayLike, second: ArrayLike, bootstraps: int = 2000,
           seed: int = 0) -> bootstrap.Interval:
    """Return p(a run of `first` beats one of `second`), the mean over tasks, ties counting half.

    Both are [runs, tasks] over the same tasks; `clusters` of the result is the smaller run count.
    """
    first, second = (np.asarray(scores, dtype=float) for scores in (first, second))
    rng = np.random.default_rng(seed)

    def chance(x, y):
        x = x[..., :, None, :]
        y = y[..., None, :, :]
        return ((x > y) + .5 * (x == y)).mean(axis=(-3, -2, -1))
    draws = chance(_drawn_runs(first, bootstraps, rng), _drawn_runs(second, bootstraps, rng))
    return _over_runs(chance(first, second), draws, min(len(first), len(second)), first.shape[1])


def items_needed(difference: float, variance: float, power: float = 0.8,
                 level: float = 0.95) -> int:
    """Return how many items show a paired `difference` when per-item differences have this
    `variance`.

    Miller 2411.00640, on power: variance is that of the difference of per-item means, so that
    repeated answers lower it. Items are independent here; with clusters multiply by the design
    effect.
    """
    z = distributions.norm.ppf((1 + level) / 2) + distributions.norm.ppf(power)
    return int(np.ceil(z * z * variance / difference ** 2))


def detectable_difference(se: float, power: float = 0.8, level: float = 0.95) -> float:
    """Return the smallest true difference that is found with `power`, given its standard error."""
    return float((distributions.norm.ppf((1 + level) / 2) + distributions.norm.ppf(power)) * se)

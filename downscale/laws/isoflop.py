"""IsoFLOP parabolas: the best size of every compute budget, and how it grows with the budget.

Ordinary least squares of y on a quadratic in log x within each declared budget (Hoffmann et al.,
arXiv 2203.15556, section 3.2), then a line through the logs of the minima. It is biased when the
sampled sizes are off-centre or the two exponents differ: read it beside the five-parameter fit.

Intervals are from a bootstrap of residuals: every parabola keeps its sizes. Drawing rows with
replacement would leave some budgets without enough of them, and the rest not a fair sample.
"""
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit

from downscale.laws.fits import spread
from downscale.statistics.bootstrap import Interval, without_ends

PARABOLA = 3           # parameters
LINE = 2
HUGE = 700.            # logs from which exp overflows: as good as infinite, and still counted
LOST = 0.05            # share of resamples without an upward parabola


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """One budget's parabola: best x and its loss with intervals, and whether it counts.

    `state` is 'kept', or begins with 'edge' (the minimum is not enclosed by the sampled sizes) or
    'rejected' (opens downward, or too few points), with the reason. Only what is kept enters the
    line. `curvature` is the coefficient of (log x)^2.
    """
    budget: str
    compute: float
    n: int
    x: Interval
    y: Interval
    curvature: float
    state: str


@dataclass(frozen=True, kw_only=True)
class Isoflop:
    """All minima and the line log x* = exponent * log compute + log coefficient through the kept.

    `exponent` and `coefficient` are None when fewer than 4 minima are kept; `alarms` says so.
    """
    method: str
    n: int
    runs: int
    minima: tuple
    exponent: Interval | None
    coefficient: Interval | None
    draws: int
    alarms: tuple


def isoflop(x: ArrayLike, y: ArrayLike, budget: ArrayLike, *, compute: np.ndarray | None = None,
            runs: ArrayLike | None = None, draws: int = 1000, seed: int = 0) -> Isoflop:
    """Return the `Isoflop` of losses y [n] at x [n] (size or tokens), by declared `budget` ids [n].

    `compute` [n] gives the FLOPs of each row, averaged within a budget; by default the id is the
    number. Residuals are drawn by whole runs, among runs with as many rows. ValueError when no
    budget has 5 different sizes.
    """
    # 1. The rows of each budget, budgets by their compute.
    x, y, names = _checked(x, y, budget)
    compute = _compute(names, compute)
    place = {name: names == name for name in np.unique(names)}
    place = dict(sorted(place.items(), key=lambda pair: compute[pair[1]].mean()))
    log_x = np.log(x)
    runs = np.asarray(np.arange(len(x)) if runs is None else runs, dtype=str)
    # 2. A parabola in each budget, and the same under redrawn residuals.
    drawn_SN = _redrawn(log_x, y, place, runs, draws, seed)
    minima = []
    log_best = []
    for name, rows in place.items():
        minimum, drawn = _minimum(name, log_x[rows], drawn_SN[:, rows], compute[rows].mean(),
                                  runs[rows])
        minima.append(minimum)
        log_best.append(drawn)
    if all(minimum.state.startswith('rejected: too few') for minimum in minima):
        raise ValueError(f'no budget has {PARABOLA + 2} different sizes, which a parabola needs; '
                         f'the largest has {max(minimum.n for minimum in minima)} points')
    # 3. The line through the minima that count.
    count = len(np.unique(runs))
    exponent, coefficient, alarms = _line(minima, np.array(log_best), len(x), count)
    return Isoflop(
        method='OLS parabola in log x per budget, line through the logs of the minima',
        n=len(x),
        runs=count,
        minima=tuple(minima),
        exponent=exponent,
        coefficient=coefficient,
        draws=draws,
        alarms=tuple(alarms),
    )


def _checked(x, y, budget):
    """Return sizes, values and names of budgets as arrays [n].

    ValueError names the first row that is wrong.
    """
    x = np.asarray(x, float)
    y = np.asarray(y, float)
    names = np.asarray(budget).astype(str)
    if not len(x) == len(y) == len(names):
        raise ValueError(f'{len(x)} sizes, {len(y)} values and {len(names)} budgets')
    bad = ~(np.isfinite(x) & (x > 0) & np.isfinite(y))
    if np.any(bad):
        raise ValueError(f'row {int(np.argmax(bad)) + 1}: size must be positive and y finite')
    return x, y, names


def _compute(names, compute):
    """Return the FLOPs [n] of the rows: those given, or what the names of their budgets say."""
    try:
        flops = np.asarray(names if compute is None else compute).astype(float)
    except ValueError:
        raise ValueError(f'budget {str(names[0])!r} is no number of FLOPs; name the column that '
                         'holds them') from None
    if len(flops) != len(names) or not np.all(np.isfinite(flops) & (flops > 0)):
        raise ValueError('compute must be one positive number per row')
    return flops


def _redrawn(log_x, y, place, runs, draws, seed):
    """Return y [1 + draws, n]: as it is, then parabolas with residuals of other runs.

    A budget with too few sizes has no parabola, and stays as it is.
    """
    curve = y.copy()
    residual = np.zeros(len(y))
    fitted = np.zeros(len(y), bool)
    lost = 0
    for rows in place.values():
        if len(np.unique(log_x[rows])) > PARABOLA + 1:
            design = _design(log_x[rows])
            hat = design @ np.linalg.pinv(design)
            curve[rows] = hat @ y[rows]
            # A residual is short by the share of its own point in the curve.
            leverage = np.minimum(np.diag(hat), 1 - 1e-9)
            residual[rows] = (y[rows] - curve[rows]) / np.sqrt(1 - leverage)
            fitted[rows] = True
            lost += PARABOLA
    # So few residuals are too even: as much wider as the t interval is than the normal one.
    degrees = fitted.sum() - lost
    if degrees > 0:
        residual *= stdtrit(degrees, .975) / ndtri(.975)
    rng = np.random.default_rng(seed)
    drawn = np.tile(curve, (draws, 1))
    for rows_of in _alike(runs, fitted):
        # [runs, rows of a run]: a run takes all residuals of another, its budgets in their order.
        picks = rng.integers(len(rows_of), size=(draws, len(rows_of)))
        for run, rows in enumerate(rows_of):
            drawn[:, rows] += residual[rows_of[picks[:, run]]]
    return np.vstack([y, drawn])


def _alike(runs, fitted):
    """Return arrays [runs, rows] of the fitted rows of runs that have as many of them."""
    rows_of = defaultdict(list)
    for row in np.flatnonzero(fitted):
        rows_of[runs[row]].append(row)
    alike = defaultdict(list)
    for rows in rows_of.values():
        alike[len(rows)].append(rows)
    return [np.array(group) for group in alike.values()]


def _design(log_x):
    """Return columns [n, 3] of 1, z and z^2, where z is log x, centred and scaled."""
    # Logs of sizes are about 20: of these, 1, z and z^2 would be nearly one direction.
    z = (log_x - log_x.mean()) / log_x.std()
    return np.stack([np.ones_like(z), z, z * z], axis=1)


def _vertex(log_x, parabolas):
    """Return the log of the best x and the y there, NaN where the parabola opens downward."""
    constant, slope, curve = np.where(parabolas[:, 2:] > 0, parabolas, np.nan).T
    # The value there is constant - slope^2 / (4 curve), which is constant + slope z / 2.
    z = -slope / (2 * curve)
    return log_x.mean() + log_x.std() * z, constant + slope * z / 2


def _minimum(name, log_x, drawn_SN, compute, runs):
    """Return the `Minimum` of one budget and the log of its best x under every redrawn y."""
    y = drawn_SN[0]
    sizes = len(np.unique(log_x))
    blank = without_ends(np.nan, len(y), len(y), 'none')
    if sizes <= PARABOLA + 1:
        return Minimum(
            budget=name,
            compute=float(compute),
            n=len(y),
            x=blank,
            y=blank,
            curvature=np.nan,
            state=f'rejected: too few sizes ({sizes})',
        ), np.full(len(drawn_SN), np.nan)
    # The first row is the fit itself, the others are redrawn.
    parabolas = drawn_SN @ np.linalg.pinv(_design(log_x)).T
    best, lowest = _vertex(log_x, parabolas)
    curvature = float(parabolas[0, 2] / log_x.std() ** 2)
    if not curvature > 0:
        return Minimum(
            budget=name,
            compute=float(compute),
            n=len(y),
            x=blank,
            y=blank,
            curvature=curvature,
            state='rejected: opens downward',
        ), np.full(len(best), np.nan)
    # A parabola may turn upward inside though the losses still fall at the end.
    means = [y[log_x == size].mean() for size in np.unique(log_x)]
    state = 'kept'
    if not log_x.min() < best[0] < log_x.max():
        state = 'edge: the minimum is outside the sampled sizes'
    elif np.argmin(means) in (0, sizes - 1):
        state = 'edge: the lowest point is at the end of the sampled sizes'
    count = len(np.unique(runs))
    x = _interval(np.exp(np.minimum(best, HUGE)), len(y), count, positive=True)
    return Minimum(
        budget=name,
        compute=float(compute),
        n=len(y),
        x=x,
        y=_interval(lowest, len(y), count),
        curvature=curvature,
        state=state,
    ), best


def _interval(values, n, runs, positive=False):
    """Return the interval of values[0] from its resamples values[1:].

    It is not stretched here: residuals are.
    """
    return spread(values[0], values[1:], n, runs, 0, positive)


def _line(minima, log_best, n, runs):
    """Return exponent and coefficient of the line through the kept minima, and the alarms."""
    kept = np.array([minimum.state == 'kept' for minimum in minima])
    alarms = [f'budget {minimum.budget}: {minimum.state}' for minimum in minima
              if minimum.state != 'kept']
    for minimum, drawn in zip(minima, log_best):
        lost = np.mean(~np.isfinite(drawn[1:])) if len(drawn) > 1 else 0
        if minimum.state == 'kept' and lost > LOST:
            alarms.append(f'budget {minimum.budget}: {lost:.0%} of the resamples give no minimum '
                          'and are left out of its interval')
    # Two minima are always on a line, and a third alone says little of the scatter about it.
    if kept.sum() <= LINE + 1:
        alarms.append(f'no line: {kept.sum()} kept minima cannot carry its 2 parameters; at least '
                      f'{LINE + 2} are needed')
        return None, None, alarms
    log_c = np.log([minimum.compute for minimum, use in zip(minima, kept) if use])
    slope, start = _lines(log_c, log_best[kept].T)
    coefficient = _interval(np.exp(np.minimum(start, HUGE)), n, runs, positive=True)
    return _interval(slope, n, runs), coefficient, alarms


def _lines(log_c, log_best):
    """Return slopes and starts [S] of OLS lines through log_best [S, budgets]; NaN below 3 minima.

    A resample without a minimum in one budget still has a line through the others.
    """
    # Sums over what is there, since budgets without a minimum differ between resamples.
    there = np.isfinite(log_best)
    count = np.where(there.sum(axis=1) > LINE, there.sum(axis=1), np.nan)
    best = np.where(there, log_best, 0)
    mean_c = there @ log_c / count
    apart = np.where(there, log_c - mean_c[:, None], 0)
    across = np.where(np.isfinite(count), np.sum(apart ** 2, axis=1), np.nan)
    slope = np.sum(apart * best, axis=1) / across
    return slope, best.sum(axis=1) / count - slope * mean_c

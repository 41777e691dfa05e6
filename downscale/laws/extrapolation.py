"""What a fit says beyond its points: held-out larger runs, and the best split of a budget.

A good prediction is no well-identified exponent: the error can stay flat while the exponents
wander, so both are reported.
"""
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from downscale.laws.fits import Fit, fit, spread
from downscale.laws.forms import Law
from downscale.statistics.bootstrap import Interval


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """A fit of the points below a compute threshold and its errors on those at or above it.

    `error` is the mean and `largest` the largest |predicted / seen - 1|, `bias` the mean of
    predicted / seen - 1. `points` hold x, seen, predicted with its prediction interval (of one
    more run: the curve and the scatter of runs about it) and whether seen is `inside` that.
    """
    below: float
    held: int
    reach: float
    error: float
    largest: float
    bias: float
    inside: float
    points: tuple
    fit: Fit


def holdout(law: Law, x: ArrayLike, y: ArrayLike, compute: ArrayLike, below: float, *,
            runs: ArrayLike | None = None, delta: float | None = None, draws: int = 1000,
            seed: int = 0) -> HoldOut:
    """Return the `HoldOut` of `law`: fitted where compute [n] < below, compared at or above it.

    `reach` is the largest held-out compute over the largest fitted. ValueError when nothing is
    held out or the rest cannot carry the law.
    """
    x = np.asarray(x, dtype=float)
    y = np.asarray(y, dtype=float)
    compute = np.asarray(compute, dtype=float)
    if not np.all(np.isfinite(compute)):
        raise ValueError('a compute value is not finite, so its row is on neither side')
    # Strictly below: a threshold at the largest compute holds out that compute in all its seeds.
    low = compute < below
    if low.all():
        raise ValueError(f'no point has compute of {below:g} or more (largest {compute.max():g}); '
                         'lower the threshold')
    names = None if runs is None else np.asarray(runs, dtype=str)[low]
    fitted = fit(law, x[low], y[low], runs=names, delta=delta, draws=draws, seed=seed)
    seen = y[~low]
    points = []
    guesses = predict_runs(fitted, x[~low], x[low], y[low], seed)
    for where, value, guess in zip(x[~low], seen, guesses):
        inside = bool(guess.low <= value <= guess.high)
        points.append({'x': where, 'seen': value, 'predicted': guess, 'inside': inside})
    ratio = np.array([point['predicted'].value for point in points]) / seen - 1
    return HoldOut(
        below=float(below),
        held=len(seen),
        reach=float(compute.max() / compute[low].max()),
        error=float(np.mean(np.abs(ratio))),
        largest=float(np.max(np.abs(ratio))),
        bias=float(ratio.mean()),
        inside=float(np.mean([point['inside'] for point in points])),
        points=tuple(points),
        fit=fitted,
    )


def predict_runs(fitted: Fit, x: ArrayLike, x_fitted: ArrayLike, y_fitted: ArrayLike,
                 seed: int = 0) -> list[Interval]:
    """Return the law's y at inputs `x` [n] with the interval of one more run at each.

    To every resampled curve a residual of the fit is added, drawn anew; residuals are stretched
    by sqrt(n / (n - p)), for the p parameters have taken up a part of the scatter. Runs far beyond
    the fitted ones are taken to scatter as those do.
    """
    law = fitted.law
    y_fitted = np.asarray(y_fitted, dtype=float)
    residuals = law.target(y_fitted) - law.target(fitted.predict(x_fitted))
    residuals = (residuals - residuals.mean()) * np.sqrt(fitted.n / (fitted.n - len(fitted.theta)))
    rng = np.random.default_rng(seed)
    intervals = []
    for value, curve in zip(fitted.predict(x), fitted.draw(x).T, strict=True):
        drawn = law.value(law.target(curve) + rng.choice(residuals, len(curve)))
        # Not by `Fit.interval`: that stretches all of the scatter, and the residuals' is done.
        intervals.append(spread(value, drawn, fitted.n, fitted.runs, 0, True))
    return intervals


def optimum(found: Fit, budget: float, flops_per: float = 6.0) -> dict[str, Interval]:
    """Return the best split of a compute budget by a two-input fit: intervals of N*, D* and loss.

    With compute = flops_per * N * D, N* = G (budget / flops_per)^(beta / (alpha + beta)) and
    G = (alpha A / (beta B))^(1 / (alpha + beta)) (arXiv 2203.15556, equation 4). A resample
    whose exponents are not positive has no optimum and is left out.
    """
    if found.law.axes != 2:
        raise ValueError(f'the {found.form} form has one input; a budget is split between two')
    if not budget > 0:
        raise ValueError(f'budget {budget:g} must be positive')
    log_product = np.log(budget / flops_per)
    # One formula for the fit [1, 5] and for its resamples [S, 5].
    values = _split(found, found.theta[None], log_product)
    if not np.isfinite(values['N*'][0]):
        raise ValueError('the fitted exponents are not both positive, so no split is best')
    draws = _split(found, found.drawn, log_product)
    return {name: found.interval(value[0], draws[name], True) for name, value in values.items()}


def _split(found, theta, log_product):
    """Return the best N, D and the loss there [S] of vectors [S, 5]; NaN where none is best."""
    alpha = theta[:, 3]
    beta = theta[:, 4]
    # The logs of alpha A and beta B, with A and B taken from the mean inputs to inputs of 1.
    with np.errstate(invalid='ignore', divide='ignore'):
        log_a = theta[:, 1] + alpha * found.centre[0] + np.log(alpha)
        log_b = theta[:, 2] + beta * found.centre[1] + np.log(beta)
        log_n = (log_a - log_b + beta * log_product) / (alpha + beta)
    # An exponent of exactly zero has an infinite log, not NaN, and is left out here.
    log_n[(alpha <= 0) | (beta <= 0)] = np.nan
    u = np.stack([log_n, log_product - log_n], axis=1) - found.centre
    # A vector at its own input, one by one: `model` would take every vector at every input.
    loss = [np.exp(found.law.model(vector[None], where[None])[0][0, 0])
            for vector, where in zip(theta, u)]
    return {'N*': np.exp(log_n), 'D*': np.exp(log_product - log_n), 'loss': np.array(loss)}

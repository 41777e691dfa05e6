"""Reasons not to believe a fit, each one sentence; a fit without any returns none."""
import numpy as np

from downscale.laws import huber_loss
from downscale.laws.huber_loss import Problem
from downscale.statistics.bootstrap import Interval

AGREE = 1e-4      # relative difference up to which two starts reached the same objective
BETTER = 1e-6     # relative difference from which another objective is lower
FLAT = 1e-6       # decrease that a minimum may still promise, in objective units
BLURRED = 1e8     # condition from which a direction of the parameters is not identified
TOGETHER = 0.98   # correlation of the log inputs
LOST = 0.05       # share of resamples without a fit
FAR = 10          # residual over the median residual; 4.4 is usual among 250 normal ones


def lower(value: float, than: float) -> bool:
    """Return whether an objective is lower than another by more than rounding."""
    return value < than * (1 - BETTER) - FLAT


def of_descent(problem: Problem, weights: np.ndarray, theta: np.ndarray, value: float) -> list[str]:
    """Return why `theta` [p] with objective `value` is no minimum."""
    left = huber_loss.remaining(problem, weights, theta)
    if left > FLAT * max(1, value):
        return [f'not converged: the gradient still promises {left:.2g} of {value:.6g}']
    return []


def of_fit(problem: Problem, theta: np.ndarray, runs: int, draws: int, drawn: int) -> list[str]:
    """Return why the law is out of place, its parameters not identified or its resamples few."""
    reasons = list(problem.law.faults(theta, problem.target))
    size = np.abs(problem.scaled(theta[None])[0][0])
    # Below delta (`size` 1) nothing is far: the median of an exact fit is about zero.
    far = np.flatnonzero((size > FAR * np.median(size)) & (size > 1)) + 1
    if len(far):
        reasons.append(f'{len(far)} residuals are over {FAR} times the median, of rows '
                     f'{far[:10].tolist()}: look at worst={len(far)}')
    blur = huber_loss.condition(problem, theta)
    if blur > BLURRED:
        reasons.append(f'not identified: condition {blur:.1g}; quote predictions, not parameters')
    # A single input moves with nothing: the identity says so in the same form.
    together = np.corrcoef(problem.u.T) if problem.u.shape[1] > 1 else np.eye(2)
    if abs(together[0, 1]) > TOGETHER:
        reasons.append(f'the inputs move together (correlation of logs {together[0, 1]:.3f}), so '
                     'their exponents are not told apart; quote predictions, not parameters')
    # With too few runs nothing was drawn, so that no resample can be called lost.
    if draws and runs <= len(theta) + 1:
        reasons.append(f'no intervals: {runs} runs are too few to be resampled for {len(theta)} '
                     f'parameters; at least {len(theta) + 2} are needed')
    elif draws - drawn > LOST * draws:
        reasons.append(f'{draws - drawn} of {draws} resamples held too few different points and '
                     'are left out of the intervals')
    return reasons


def of_others(parameters: dict[str, Interval], cross: dict[str, float] | None,
              without: dict | None) -> list[str]:
    """Return where plain squares, or the fit without its worst points, leave the intervals."""
    reasons = []
    for other, name in ((cross, 'plain squares (variable projection)'),
                        (without and without['parameters'], 'the fit without its worst points')):
        moved = [f'{key} {known.value:.4g} to {other[key]:.4g}' for key, known in parameters.items()
                 if other and _outside(other[key], known)]
        if moved:
            reasons.append(f'{name} leaves the interval: {", ".join(moved)}')
    return reasons


def _outside(value, interval):
    """Return whether a value lies outside an interval by more than rounding."""
    margin = BETTER * abs(interval.value)
    return value < interval.low - margin or value > interval.high + margin

"""The smallest Huber sum of a law, searched from many starts or resamples at once.

The objective is the SUM over points of weight * huber(residual / delta). Divided by the number of
points and by no delta^2, it is so small that an optimiser's usual tolerances stop it where it
started.
"""
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from downscale.laws.forms import Law

# Letters of shapes in this room: S starts or resamples, n points, p parameters.
ROUNDS = 100
CHUNK = 256       # vectors at once: their gradients then stay in the cache
STUCK = 1e10      # damping above this: no step of any use makes the objective smaller
RIDGE = 1e-12
EXACT = 1e-26     # decrease still to be expected (objective units) at the reported solution
CLOSE = 1e-11     # the same for starts and resamples


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A law to be fitted to targets [n] at centred log inputs u [n, axes], Huber from `delta`."""
    law: Law
    u: np.ndarray
    target: np.ndarray
    delta: float

    def scaled(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return residuals [S, n] in units of delta, and their gradients [S, n, p]."""
        predicted, slopes = self.law.model(theta, self.u)
        return (predicted - self.target) / self.delta, slopes / self.delta


def objective(problem: Problem, weights: np.ndarray,
              theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Huber sums [S] and gradients [S, p] at parameter vectors theta [S, p]."""
    scaled, slopes = problem.scaled(theta)
    size = np.abs(scaled)
    value = np.sum(weights * np.where(size <= 1, scaled ** 2 / 2, size - 0.5), axis=1)
    gradient = np.einsum('sn,snp->sp', weights * np.clip(scaled, -1, 1), slopes)
    return value, gradient


def _curvature(problem, weights, theta):
    """Return value, gradient, and two curvatures [S, p, p]: of near points, and of a majorant.

    Beyond delta the objective is straight, so only near points curve it; the majorant (weights
    of iteratively reweighted least squares) keeps steps short where few points are near.
    """
    scaled, slopes = problem.scaled(theta)
    size = np.abs(scaled)
    value = np.sum(weights * np.where(size <= 1, scaled ** 2 / 2, size - 0.5), axis=1)
    # across [S, p, n] times weighted slopes [S, n, p]: the Gauss-Newton curvature of a vector.
    across = np.swapaxes(slopes, 1, 2)
    gradient = (across @ (weights * np.clip(scaled, -1, 1))[..., None])[..., 0]
    # Huber's second derivative is 1 within delta and 0 beyond it, that of the majorant 1 / size.
    near = (across * (weights * (size <= 1))[:, None]) @ slopes
    above = (across * (weights / np.maximum(size, 1))[:, None]) @ slopes
    return value, gradient, near, above


def _steps(gradient, near, above, damping):
    """Return steps [S, p] of the damped curvature, in no coordinate longer than 2.

    They are solved in units in which the majorant has ones on its diagonal; the ridge keeps
    directions that the points leave open from making it singular.
    """
    # A term that has vanished has no slope, and its unit must not be zero: hence 1e-300.
    unit = np.sqrt(np.maximum(np.diagonal(above, axis1=1, axis2=2), 1e-300))
    matrix = (near + damping[:, None, None] * above) / (unit[:, :, None] * unit[:, None])
    matrix += (RIDGE * (1 + damping))[:, None, None] * np.eye(len(unit[0]))
    steps = np.linalg.solve(matrix, (-gradient / unit)[..., None])[..., 0] / unit
    # Parameters are logs and exponents: 2 is a factor of 7, as far as curvature can be trusted.
    return steps * np.minimum(1, 2 / np.maximum(np.abs(steps).max(axis=1), 1e-300))[:, None]


def descend(problem: Problem, weights: np.ndarray, theta: np.ndarray,
            close: float = CLOSE) -> tuple[np.ndarray, ...]:
    """Return parameter vectors [S, p] at minima reached from `theta`, and their Huber sums [S].

    `weights` [S, n] may differ by vector: a resample is a start with weights.
    """
    parts = [_descend(problem, weights[i:i + CHUNK], theta[i:i + CHUNK], close)
             for i in range(0, len(theta), CHUNK)]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _descend(problem, weights, theta, close):
    """Return what `descend` does for one chunk of vectors: damped Newton steps, all at once."""
    # Vectors that have arrived leave `alive`: each round computes only those that still move.
    theta = problem.law.bounded(theta, problem.target)
    value, gradient, near, above = _curvature(problem, weights, theta)
    damping = np.full(len(theta), 0.1)
    alive = np.arange(len(theta))
    for _ in range(ROUNDS):
        steps = _steps(gradient[alive], near[alive], above[alive], damping[alive])
        # How far the gradient alone says that the step leads down; about zero at a minimum.
        expected = -np.einsum('sp,sp->s', steps, gradient[alive])
        moving = (expected > close) & (damping[alive] < STUCK)
        alive = alive[moving]
        steps = steps[moving]
        if not len(alive):
            break
        tried = problem.law.bounded(theta[alive] + steps, problem.target)
        there = _curvature(problem, weights[alive], tried)
        # Levenberg and Marquardt: a step that fails is tried again, shorter, with more damping.
        better = there[0] < value[alive]
        damping[alive] *= np.where(better, 0.2, 4.0)
        kept = alive[better]
        theta[kept] = tried[better]
        # A vector whose step failed keeps its gradient and curvature for the shorter try.
        for whole, new in zip((value, gradient, near, above), there, strict=True):
            whole[kept] = new[better]
    return theta, value


def polish(problem: Problem, weights: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the vector [p] of the minimum next to `theta`, and its Huber sum.

    It is as exact as floats allow.
    """
    solutions, values = descend(problem, weights[None], theta[None], EXACT)
    return solutions[0], float(values[0])


def quasi_newton(problem: Problem, weights: np.ndarray,
                 start: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the vector [p] and Huber sum that L-BFGS reaches from `start` with tight tolerances.

    It shares nothing with `descend` but the objective, so the two check each other.
    """
    def value_and_gradient(theta):
        value, gradient = objective(problem, weights, theta[None])
        return value[0], gradient[0]

    # With its own ftol of 2.2e-9 the search ends where the sum is flat, short of the minimum.
    options = {'maxiter': 5000, 'maxfun': 20000, 'ftol': 1e-14, 'gtol': 1e-9, 'maxcor': 20}
    # Its matrices are tiny: threads that wait for one another take ten times as long.
    with threadpool_limits(1, 'blas'):
        solution = minimize(value_and_gradient, start, jac=True, method='L-BFGS-B',
                            options=options)
    return problem.law.bounded(solution.x[None], problem.target)[0], float(solution.fun)


def remaining(problem: Problem, weights: np.ndarray, theta: np.ndarray) -> float:
    """Return how far the objective at `theta` [p] may still fall; 0 at a minimum.

    That is what its gradient promises of the next step.
    """
    _, gradient, _, above = _curvature(problem, weights, theta[None])
    # No near part and a damping of 1: the step of the majorant, which also sees far points.
    step = _steps(gradient, np.zeros_like(above), above, np.ones(1))
    return float(-step[0] @ gradient[0])


def condition(problem: Problem, theta: np.ndarray) -> float:
    """Return the condition of the prediction's gradients at `theta` [p], columns scaled alike."""
    slopes = problem.scaled(theta[None])[1][0]
    # Squared, as the curvature is the gradients times themselves.
    return float(np.linalg.cond(slopes / np.maximum(np.linalg.norm(slopes, axis=0), 1e-300)) ** 2)

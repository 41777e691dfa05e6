"""Fit a law of size to runs, with intervals, and say whether the numbers can be believed.

Reported is the Huber fit (Hoffmann et al., arXiv 2203.15556, section D.2: sum, not mean; delta is
always in the result). Runs are resampled, not rows: checkpoints of one run are dependent. Points
are never dropped; `worst` reports the fit without the points of highest residual beside it.
"""
import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from downscale.laws import doubts, huber_loss
from downscale.laws.forms import Law
from downscale.statistics.bootstrap import Interval, resample, without_ends

FEW_DRAWS = 40  # a 95 % interval needs one draw outside on either side
OTHERS = 2      # starts of every resample besides the best solution


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted law: each parameter and derived quantity with its interval, and the alarms.

    `covariance` is that of the resamples (coefficients as logs). `starts_agree` is the share of
    starts within 1e-4 of the best objective. `cross_check` holds the variable-projection
    parameters (plain squares). `without` holds, when asked for, the rows of highest residual
    (counted from 1) and the parameters without them. `lost` counts resamples with too few
    different points. `theta` [p] and `drawn` [resamples, p] are vectors of the `law` at log inputs
    about their mean `centre`.
    """
    form: str
    n: int
    runs: int
    method: str
    delta: float
    objective: float
    parameters: dict
    derived: dict
    covariance: dict
    cross_check: dict | None
    starts_agree: float
    draws: int
    lost: int
    without: dict | None
    alarms: tuple
    law: Law = field(repr=False)
    centre: np.ndarray = field(repr=False)
    theta: np.ndarray = field(repr=False)
    drawn: np.ndarray = field(repr=False)

    def predict(self, x: ArrayLike) -> np.ndarray:
        """Return the law's y [n] at inputs x [n] or [n, axes]."""
        return self._values(self.theta[None], x)[0]

    def predict_intervals(self, x: ArrayLike) -> list[Interval]:
        """Return the law's y at each input with the interval of the curve, not of one more run."""
        return [self.interval(value, drawn, True) for value, drawn in
                zip(self.predict(x), self.draw(x).T, strict=True)]

    def draw(self, x: ArrayLike) -> np.ndarray:
        """Return the law's y [resamples, n] at inputs x under every resample of the runs."""
        return self._values(self.drawn, x)

    def interval(self, value: float, drawn: np.ndarray, positive: bool) -> Interval:
        """Return the `Interval` of a quantity from its draws under the resamples of this fit."""
        return spread(value, drawn, self.n, self.runs, len(self.theta), positive)

    def _values(self, theta, x):
        u = np.log(_inputs(x, self.law.axes)) - self.centre
        return self.law.value(self.law.model(theta, u)[0])


def _inputs(x, axes):
    """Return inputs [n, axes] as positive floats; ValueError names the first row that is not."""
    x = np.asarray(x, dtype=float)
    x = x[:, None] if x.ndim == 1 else x
    if x.shape[1] != axes:
        raise ValueError(f'this form needs {axes} inputs per point, not {x.shape[1]}')
    bad = ~np.all(np.isfinite(x) & (x > 0), axis=1)
    if np.any(bad):
        row = int(np.argmax(bad))
        raise ValueError(f'row {row + 1}: input {x[row].tolist()} is not positive and finite; '
                         'its log is needed')
    return x


def _problem(law, x, y, delta):
    """Return what is to be minimised, and the mean logs of the inputs [axes].

    ValueError when x and y cannot carry the law.
    """
    x = _inputs(x, law.axes)
    y = np.asarray(y, dtype=float)
    need = len(law.names)
    delta = law.delta if delta is None else float(delta)
    if len(x) != len(y):
        raise ValueError(f'{len(x)} inputs but {len(y)} values')
    if not np.all(np.isfinite(y)):
        raise ValueError(f'row {int(np.argmin(np.isfinite(y))) + 1}: y is not finite; leave the '
                         'row out yourself, so that it is known')
    if not delta > 0:
        raise ValueError(f'delta {delta:g} must be positive')
    # Rows of equal inputs tell the noise, not the shape: they count as one point.
    points = len(np.unique(x, axis=0))
    if points <= need + 1:
        raise ValueError(f'{points} different points cannot carry the {need} parameters of the '
                         f'{law.name} form; at least {need + 2} are needed (several seeds of one '
                         'size are one point)')
    # Through two values of an input goes any exponent, if the floor takes up the rest.
    for axis in range(law.axes):
        if law.axes > 1 and len(np.unique(x[:, axis])) < 3:
            raise ValueError(f'input {axis + 1} has fewer than 3 different values, so its '
                             'exponent and the floor cannot be told apart; add sizes')
    centre = np.log(x).mean(axis=0)
    problem = huber_loss.Problem(law=law, u=np.log(x) - centre, target=law.target(y), delta=delta)
    return problem, centre


def spread(value: float, drawn: np.ndarray, n: int, runs: int, parameters: int,
           positive: bool) -> Interval:
    """Return the interval of a quantity from its resamples; of its log where it is `positive`.

    Percentiles, stretched about the value by sqrt(runs / (runs - parameters)): unstretched they
    are short by the share of the scatter that the fit itself explains.
    """
    drawn = np.asarray(drawn)[np.isfinite(drawn)]
    known = without_ends(value, n, runs, 'none (too few resamples)')
    if len(drawn) < FEW_DRAWS or not np.isfinite(value):
        return known
    # A coefficient varies by factors, so that its log is the symmetric quantity.
    if positive and value > 0 and np.all(drawn > 0):
        log = spread(np.log(value), np.log(drawn), n, runs, parameters, False)
        # An end whose log is beyond 709 is as good as infinite.
        with np.errstate(over='ignore'):
            low, high = np.exp([log.low, log.high])
        return replace(known, low=float(low), high=float(high), method=log.method)
    ends = np.quantile(drawn, [0.025, 0.975])
    low, high = value + math.sqrt(runs / (runs - parameters)) * (ends - value)
    # Of skewed draws the percentiles may leave out the value itself.
    return replace(known, low=float(min(low, value)), high=float(max(high, value)),
                   method='run bootstrap')


def fit(law: Law, x: ArrayLike, y: ArrayLike, *, runs: ArrayLike | None = None,
        delta: float | None = None, draws: int = 1000, seed: int = 0, worst: int = 0,
        start: dict[str, float] | None = None) -> Fit:
    """Return the best Huber fit of `law` to y [n] at inputs x [n, axes].

    A second optimiser checks it. `runs` [n] names the run of each row (default: a run per row);
    `delta` is the law's own by default; `start` (natural parameters) is tried besides the grid,
    never instead of it. With `worst` = k the result also tells the parameters without the k points
    of highest residual. ValueError when the different points are no more than the parameters + 1.
    """
    # 1. The best vector, from the grid, from plain squares and from what is given.
    problem, centre = _problem(law, x, y, delta)
    names = np.arange(len(problem.target)) if runs is None else runs
    projected = law.project(problem.u, np.asarray(y, dtype=float))
    given = projected if start is None else [law.internal(start, centre), *projected]
    theta, value, agree, alarms = _search(problem, np.ones(len(problem.target)), given, seed)
    # 2. The same under resampled runs: intervals.
    weights, count = _resamples(problem, names, len(theta), draws, seed)
    drawn = _refit(problem, weights, [theta, *projected], seed)
    counts = (len(problem.target), count, len(theta))
    parameters = _intervals(law.natural(theta, centre), law.natural(drawn, centre), counts,
                            law.positive)
    # 3. What speaks against it.
    cross = _numbers(law.natural(projected[0], centre)) if projected else None
    without = _without(problem, theta, centre, worst, seed) if worst else None
    alarms += doubts.of_fit(problem, theta, count, draws, len(drawn))
    alarms += doubts.of_others(parameters, cross, without)
    return Fit(
        form=law.name,
        n=len(problem.target),
        runs=count,
        method=f'Huber sum, residuals of {law.scale}',
        delta=problem.delta,
        objective=value,
        parameters=parameters,
        derived=_intervals(law.derived(theta), law.derived(drawn), counts, ()),
        covariance=_covariance(law, drawn, centre),
        cross_check=cross,
        starts_agree=agree,
        draws=len(drawn),
        lost=draws - len(drawn),
        without=without,
        alarms=tuple(alarms),
        law=law,
        centre=centre,
        theta=theta,
        drawn=drawn,
    )


def check(law: Law, x: ArrayLike, y: ArrayLike, parameters: dict[str, float], *,
          delta: float | None = None, seed: int = 0) -> tuple[str, ...]:
    """Return why `parameters` are no minimum of the Huber sum, as lines; () if they are one.

    They are natural parameters from elsewhere: of a published fit, or one whose optimiser may have
    stopped early.
    """
    problem, centre = _problem(law, x, y, delta)
    theta = law.internal(parameters, centre)
    weights = np.ones(len(problem.target))
    value = float(huber_loss.objective(problem, weights, theta[None])[0][0])
    best = _search(problem, weights, [theta], seed)[1]
    reasons = doubts.of_descent(problem, weights, theta, value)
    if doubts.lower(best, value):
        reasons.append(f'another start is better: {best:.8g} instead of {value:.8g}')
    return tuple(reasons)


def _search(problem, weights, given, seed):
    """Return (best vector, its Huber sum, share of starts that agree, alarms).

    Starts are those of the grid and the `given` vectors.
    """
    starts = np.stack([*given, *problem.law.grid(problem.u, problem.target)])
    theta, values = huber_loss.descend(problem, np.tile(weights, (len(starts), 1)), starts)
    best = np.argmin(values)
    # `FLAT` besides the share: the objective of an exact fit is about zero.
    agree = float(np.mean(values <= values[best] * (1 + doubts.AGREE) + doubts.FLAT))
    solution, value = huber_loss.polish(problem, weights, theta[best])
    rng = np.random.default_rng(seed)
    alarms = []
    # The second optimiser starts nearby, from plain squares (of a law without, where the caller
    # said), and anywhere.
    for restart in (solution + 0.3 * rng.standard_normal(len(solution)), *given[-1:],
                    starts[rng.integers(len(starts))]):
        other, reached = huber_loss.quasi_newton(problem, weights, restart)
        if doubts.lower(reached, value):
            alarms.append(f'a restart was better: {reached:.8g} instead of {value:.8g}')
            solution, value = huber_loss.polish(problem, weights, other)
    return solution, value, agree, alarms + doubts.of_descent(problem, weights, solution, value)


def _resamples(problem, names, parameters, draws, seed):
    """Return weights [S, n] of the rows under resampled runs, and the number of runs.

    Resamples that cannot carry the law are left out.
    """
    names = np.asarray(names, dtype=str)
    if len(names) != len(problem.target):
        raise ValueError(f'{len(names)} run names but {len(problem.target)} rows')
    clusters, place = np.unique(names, return_inverse=True)
    # A resample holds about 63 % of the runs: of so few, most could not carry the law.
    if len(clusters) <= parameters + 1:
        return np.zeros((0, len(names))), len(clusters)
    weights = resample(names, draws, seed).weights[:, place]
    points = np.unique(problem.u, axis=0, return_inverse=True)[1].ravel()
    # Which of the different points a resample holds: [S, points].
    seen = weights @ (points[:, None] == np.arange(points.max() + 1)) > 0
    return weights[seen.sum(axis=1) > parameters], len(clusters)


def _refit(problem, weights, starts, seed):
    """Return the best vector [S, p] of every resample, from `starts` and perturbed ones."""
    best = starts[0]
    rng = np.random.default_rng(seed)
    # The minimum of a resample may be another one: the best of several starts counts.
    while len(starts) < 1 + OTHERS:
        starts = [*starts, best + 0.3 * rng.standard_normal(len(best))]
    if not len(weights):
        return np.zeros((0, len(best)))
    tries = [huber_loss.descend(problem, weights, np.tile(start, (len(weights), 1)))
             for start in starts]
    first = np.argmin([values for _, values in tries], axis=0)
    return np.stack([theta for theta, _ in tries])[first, np.arange(len(weights))]


def _without(problem, theta, centre, worst, seed):
    """Return the `worst` rows of highest residual, and the parameters fitted without them."""
    size = np.abs(problem.scaled(theta[None])[0][0])
    rows = np.sort(np.argsort(-size, kind='stable')[:worst])
    # Left out by weight, so that inputs keep their mean and vectors their meaning.
    weights = np.ones(len(size))
    weights[rows] = 0
    left = len(np.unique(problem.u[weights > 0], axis=0))
    if left <= len(theta) + 1:
        raise ValueError(f'without {worst} points only {left} different ones are left for '
                         f'{len(theta)} parameters; ask for fewer')
    solution, value, _, alarms = _search(problem, weights, [theta], seed)
    return {'rows': [int(row) + 1 for row in rows],
            'residuals': [float(residual) * problem.delta for residual in size[rows]],
            'parameters': _numbers(problem.law.natural(solution, centre)), 'objective': value,
            'alarms': alarms}


def _numbers(natural):
    """Return the numbers of natural parameters, of which each holds one."""
    return {name: float(value[0]) for name, value in natural.items()}


def _intervals(values, drawn, counts, positive):
    """Return {name: Interval} of quantities; `counts` are those of points, runs and parameters."""
    return {name: spread(values[name][0], drawn[name], *counts, name in positive)
            for name in values}


def _covariance(law, drawn, centre):
    """Return names and covariance matrix of the natural parameters over the resamples."""
    natural = law.natural(drawn, centre)
    names = [f'log {name}' if name in law.positive else name for name in natural]
    if len(drawn) < 2:
        return {'names': names, 'matrix': None}
    columns = [np.log(column) if name in law.positive else column
               for name, column in natural.items()]
    return {'names': names, 'matrix': np.cov(columns)}

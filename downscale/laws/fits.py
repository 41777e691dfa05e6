"""Fit a law of size to runs, with intervals, and say whether the numbers can be believed.

Reported is the Huber fit (Hoffmann et al., arXiv 2203.15556, section D.2: sum, not mean; delta is
always in the result). Runs are resampled, not rows: checkpoints of one run are dependent. Points
are never dropped; `worst` reports the fit without the points of highest residual beside it.
"""
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from downscale.laws import descent, doubts
from downscale.laws.forms import Law
from downscale.statistics.bootstrap import Interval, resample

FEW_DRAWS = 40  # a 95 % interval needs one draw outside on either side
OTHERS = 2      # starts of every resample besides the best solution


class Jsonable:
    """A frozen result that turns itself into plain JSON values."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are printed, as dicts, lists and numbers; what is not finite is
        None.
        """
        # pyrefly: ignore[bad-argument-type]
        return plain({f.name: getattr(self, f.name) for f in fields(self) if f.repr})


def plain(value: Any) -> Any:
    """Return `value` as dicts, lists and numbers for JSON; what is not finite is None."""
    if isinstance(value, Jsonable):
        return value.to_dict()
    if is_dataclass(value):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Fit(Jsonable):
    """A fitted law: each parameter and derived quantity with its interval, and the alarms.

    `covariance` is that of the resamples (coefficients as logs). `starts_agree` is the share of
    starts within 1e-4 of the best objective. `cross_check` holds the variable-projection
    parameters (plain squares). `without` holds, when asked for, the rows of highest residual
    (counted from 1) and the parameters without them. `lost` counts resamples with too few
    different points.
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
        """Return the law's y at each input with its interval: of the curve, not of one more run."""
        return [self.interval(value, drawn, True) for value, drawn in
                zip(self.predict(x), self._values(self.drawn, x).T, strict=True)]

    def interval(self, value: float, drawn: np.ndarray, positive: bool) -> Interval:
        """Return the `Interval` of a quantity from its value and its draws under this fit's
        resamples.
        """
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
    """Return what is to be minimised, and the mean logs; ValueError when x, y cannot carry the
    law.
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
    points = len(np.unique(x, axis=0))
    if points <= need + 1:
        raise ValueError(f'{points} different points cannot carry the {need} parameters of the '
                         f'{law.name} form; at least {need + 2} are needed (several seeds of one '
                         'size are one point)')
    for axis in range(law.axes):
        if law.axes > 1 and len(np.unique(x[:, axis])) < 3:
            raise ValueError(f'input {axis + 1} has fewer than 3 different values, so its '
                             'exponent and the floor cannot be told apart; add sizes')
    centre = np.log(x).mean(axis=0)
    return descent.Problem(law=law, u=np.log(x) - centre, target=law.target(y), delta=delta), centre


def spread(value: float, drawn: np.ndarray, n: int, runs: int, parameters: int,
           positive: bool) -> Interval:
    """Return the interval of a quantity from its resamples; of its log if it is `positive` by
    nature.

    Percentiles, stretched about the value by sqrt(runs / (runs - parameters)): unstretched they
    are short by the share of the scatter that the fit itself explains.
    """
    drawn = np.asarray(drawn)[np.isfinite(drawn)]
    if len(drawn) < FEW_DRAWS or not np.isfinite(value):
        return Interval(float(value), np.nan, np.nan, n, runs, 'none (too few resamples)')
    if positive and value > 0 and np.all(drawn > 0):
        log = spread(np.log(value), np.log(drawn), n, runs, parameters, False)
        with np.errstate(over='ignore'):
            low, high = np.exp([log.low, log.high])
        return Interval(float(value), float(low), float(high), n, runs, log.method)
    ends = np.quantile(drawn, [0.025, 0.975])
    low, high = value + math.sqrt(runs / (runs - parameters)) * (ends - value)
    return Interval(float(value), float(min(low, value)), float(max(high, value)), n, runs,
                    'run bootstrap')


def fit(law: Law, x: ArrayLike, y: ArrayLike, *, runs: ArrayLike | None = None,
        delta: float | None = None, draws: int = 1000, seed: int = 0, worst: int = 0,
        start: dict[str, float] | None = None) -> Fit:
    """Return the best Huber fit of `law` to y [n] at inputs x [n, axes], checked by a second
    optimiser.

    `runs` [n] names the run of each row (default: a run per row); `delta` is the law's own by
    default; `start` (natural parameters) is tried besides the grid, never instead of it. With
    `worst` = k the result also tells the parameters without the k points of highest residual.
    ValueError when the different points are no more than the parameters + 1.
    """
    problem, centre = _problem(law, x, y, delta)
    names = np.arange(len(problem.target)) if runs is None else runs
    projected = law.project(problem.u, np.asarray(y, dtype=float))
    given = projected if start is None else [law.internal(start, centre), *projected]
    theta, value, agree, alarms = _search(problem, np.ones(len(problem.target)), given, seed)
    weights, count = _resamples(problem, names, len(theta), draws, seed)
    drawn = _refit(problem, weights, [theta, *projected], seed)
    bound = (len(problem.target), count, len(theta))
    parameters = _intervals(law.natural(theta, centre), law.natural(drawn, centre), bound,
                            law.positive)
    cross = _numbers(law.natural(projected[0], centre)) if projected else None
    without = _without(problem, theta, centre, worst, seed) if worst else None
    alarms += doubts.of_fit(problem, theta, count, draws, len(drawn))
    alarms += doubts.of_others(parameters, cross, without)
    return Fit(law.name, *bound[:2], f'Huber sum, residuals of {law.scale}', problem.delta, value,
               parameters, _intervals(law.derived(theta), law.derived(drawn), bound, ()),
               _covariance(law, drawn, centre), cross, agree, len(drawn), draws - len(drawn),
               without, tuple(alarms), law, centre, theta, drawn)


def check(law: Law, x: ArrayLike, y: ArrayLike, parameters: dict[str, float], *,
          delta: float | None = None, seed: int = 0) -> tuple[str, ...]:
    """Why `parameters` (natural, from elsewhere) are no minimum of the Huber sum; () if they are.

    For a published fit, or one whose optimiser may have stopped early.
    """
    problem, centre = _problem(law, x, y, delta)
    theta = law.internal(parameters, centre)
    weights = np.ones(len(problem.target))
    value = float(descent.objective(problem, weights, theta[None])[0][0])
    best = _search(problem, weights, [theta], seed)[1]
    found = doubts.of_descent(problem, weights, theta, value)
    if doubts.lower(best, value):
        found.append(f'another start is better: {best:.8g} instead of {value:.8g}')
    return tuple(found)


def _search(problem, weights, given, seed):
    """Return the best vector from the grid and `given`, its Huber sum, share of starts, and
    alarms.
    """
    starts = np.stack([*given, *problem.law.grid(problem.u, problem.target)])
    theta, values = descent.descend(problem, np.tile(weights, (len(starts), 1)), starts)
    best = np.argmin(values)
    agree = float(np.mean(values <= values[best] * (1 + doubts.AGREE) + doubts.FLAT))
    found, value = descent.polish(problem, weights, theta[best])
    rng = np.random.default_rng(seed)
    alarms = []
    for restart in (found + 0.3 * rng.standard_normal(len(found)), *given[-1:],
                    starts[rng.integers(len(starts))]):
        other, reached = descent.quasi_newton(problem, weights, restart)
        if doubts.lower(reached, value):
            alarms.append(f'a restart was better: {reached:.8g} instead of {value:.8g}')
            found, value = descent.polish(problem, weights, other)
    return found, value, agree, alarms + doubts.of_descent(problem, weights, found, value)


def _resamples(problem, names, parameters, draws, seed):
    """Return weights [S, n] of the rows under resampled runs that can carry the law; number of
    runs.
    """
    names = np.asarray(names, dtype=str)
    if len(names) != len(problem.target):
        raise ValueError(f'{len(names)} run names but {len(problem.target)} rows')
    clusters, place = np.unique(names, return_inverse=True)
    if len(clusters) <= parameters + 1:
        return np.zeros((0, len(names))), len(clusters)
    weights = resample(names, draws, seed).weights[:, place]
    points = np.unique(problem.u, axis=0, return_inverse=True)[1].ravel()
    seen = weights @ (points[:, None] == np.arange(points.max() + 1)) > 0
    return weights[seen.sum(axis=1) > parameters], len(clusters)


def _refit(problem, weights, starts, seed):
    """Return the best vector [S, p] of every resample, from `starts` and perturbed ones."""
    best = starts[0]
    rng = np.random.default_rng(seed)
    while len(starts) < 1 + OTHERS:
        starts = [*starts, best + 0.3 * rng.standard_normal(len(best))]
    if not len(weights):
        return np.zeros((0, len(best)))
    tries = [descent.descend(problem, weights, np.tile(start, (len(weights), 1)))
             for start in starts]
    first = np.argmin([values for _, values in tries], axis=0)
    return np.stack([theta for theta, _ in tries])[first, np.arange(len(weights))]


def _without(problem, theta, centre, worst, seed):
    """Return the `worst` rows of highest residual, and the parameters fitted without them."""
    size = np.abs(problem.scaled(theta[None])[0][0])
    rows = np.sort(np.argsort(-size, kind='stable')[:worst])
    weights = np.ones(len(size))
    weights[rows] = 0
    left = len(np.unique(problem.u[weights > 0], axis=0))
    if left <= len(theta) + 1:
        raise ValueError(f'without {worst} points only {left} different ones are left for '
                         f'{len(theta)} parameters; ask for fewer')
    found, value, _, alarms = _search(problem, weights, [theta], seed)
    return {'rows': [int(row) + 1 for row in rows],
            'residuals': [float(one) * problem.delta for one in size[rows]],
            'parameters': _numbers(problem.law.natural(found, centre)), 'objective': value,
            'alarms': alarms}


def _numbers(natural):
    return {name: float(value[0]) for name, value in natural.items()}


def _intervals(values, drawn, bound, positive):
    return {name: spread(values[name][0], drawn[name], *bound, name in positive)
            for name in values}


def _covariance(law, drawn, centre):
    """Return names and covariance matrix of the natural parameters over the resamples."""
    natural = law.natural(drawn, centre)
    names = [f'log {name}' if name in law.positive else name for name in natural]
    if len(drawn) < 2:
        return {'names': names, 'matrix': None}
    columns = [np.log(one) if name in law.positive else one for name, one in natural.items()]
    return {'names': names, 'matrix': np.cov(columns)}

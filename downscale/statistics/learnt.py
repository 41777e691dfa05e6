"""Skills that are there or not: how probably a run learns one, and at which step it appears.

The mean of runs of which some have a skill and others do not is a number that no run has, and no t
interval of few such runs covers it (it does in 66 % of studies with five seeds). What can be told
is the share of runs that learn it. A run has learnt a family of questions where its accuracy is
nearer to 1 than to the floor of guessing.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from downscale.statistics.bootstrap import Interval


def has_learnt(accuracy: float, floor: float) -> bool:
    """Return whether an accuracy is above the middle between the floor of guessing and 1."""
    return bool(accuracy > (1 + floor) / 2)


def probability(learnt: int, runs: int, level: float = .95) -> Interval:
    """Return P(a run learns it) with Jeffreys' interval, the quantiles of a Beta distribution.

    Where no run or every run has learnt it the interval reaches 0 or 1 (Brown, Cai and DasGupta
    2001, Statistical Science 16:101). ValueError without runs.
    """
    from scipy.special import betaincinv
    if not 0 <= learnt <= runs or not runs:
        raise ValueError(f'{learnt} of {runs} runs have learnt it')
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    low, high = betaincinv(learnt + .5, runs - learnt + .5, tails)
    return Interval(value=learnt / runs, low=float(low) if learnt else 0.,
                    high=float(high) if learnt < runs else 1., n=runs, clusters=runs,
                    method='Beta (Jeffreys)', seeds=runs)


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """When a skill appears: `steps` with its interval, and the bracket (last without, first with)
    of every run; 0 where it was there at the first look, infinite where it never was.
    """
    steps: Interval
    brackets: tuple


def appearance(steps: Sequence[float], learnt: np.ndarray, level: float = .95) -> Appearance:
    """Return at which step a skill appears, from looks at `steps` [T], learnt [runs, T] or not.

    A run has it from the first look on at and after which it is always there. The interval is a t
    interval of the logs of the middles of the brackets, never narrower than the mean bracket. Where
    a run was outside all looks, or there is one, it is what all brackets span (to 0 or infinity).
    ValueError unless steps ascend.
    """
    from scipy.special import stdtrit
    steps = np.asarray(steps, dtype=float)
    learnt = np.atleast_2d(np.asarray(learnt, dtype=bool))
    if not (np.all(np.diff(steps) > 0) and steps[0] > 0 and learnt.shape[1] == len(steps)):
        raise ValueError('steps must ascend from above 0, with one look of every run at each')
    # 1. The look from which a run has it for good: one behind the last without.
    after = np.where(learnt.all(axis=1), 0, len(steps) - np.argmin(learnt[:, ::-1], axis=1))
    edges = np.concatenate([[0.], steps, [np.inf]])
    last, first = edges[after], edges[after + 1]
    # 2. The mean of the logs of the middles; where a run was outside all looks, what is known.
    runs = len(after)
    value = float(np.median(first))
    low, high, method = float(last.min()), float(first.max()), 'range of the brackets'
    if runs > 1 and np.all(last > 0) and np.all(np.isfinite(first)):
        logs = (np.log(last) + np.log(first)) / 2
        reach = stdtrit(runs - 1, (1 + level) / 2) * logs.std(ddof=1) / np.sqrt(runs)
        reach = max(reach, float(np.mean(np.log(first / last))) / 2)
        value = float(np.exp(logs.mean()))
        low, high = float(value * np.exp(-reach)), float(value * np.exp(reach))
        method = f't of log steps over {runs} runs'
    x = Interval(value=value, low=low, high=high, n=len(steps), clusters=runs, method=method,
                 seeds=runs)
    return Appearance(steps=x, brackets=tuple(zip(last.tolist(), first.tolist(), strict=True)))

"""Whose fault a drop is: exact shares of two to five factors, and the items behind them.

Each factor is small (0) or large (1); values and answers are arrays with one axis of length two
per factor.
"""
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from downscale.statistics import bootstrap

MOST = 5        # factors: 2^5 corners
SCALES = ('accuracy', 'log-odds')   # they differ near ceilings
CLASSES = ('perception loss', 'reasoning loss', 'both', 'lost only when both are small',
           'recovered', 'right everywhere', 'right only in a mixed pair', 'wrong everywhere')


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The total from all small to all large, each factor's share of it, and all interactions.

    `shares` add up to `total`. `interactions` maps tuples of factors to what only they do together
    (2x2: LL - LS - SL + SS). `flagged` are those larger than half the interval of a share of one
    of their factors: there the shares depend on the order in which factors are changed.
    """
    total: bootstrap.Interval
    shares: dict
    interactions: dict
    flagged: tuple


def shapley(values: np.ndarray, factors: int) -> np.ndarray:
    """Return the Shapley shares [factors, ...] of values [2, ..., 2, ...].

    They sum to all large - all small: each is the mean over all orders in which the factors may
    become large, exactly (2^factors corners).
    """
    _check(values, factors)
    shares = []
    for factor in range(factors):
        step = np.diff(values, axis=factor).squeeze(factor)
        share = 0.0
        for others in itertools.product((0, 1), repeat=factors - 1):
            # The share of all orders in which just those of the others became large before it.
            before = sum(others)
            weight = (math.factorial(before) * math.factorial(factors - 1 - before)
                      / math.factorial(factors))
            share = share + weight * step[others]
        shares.append(share)
    return np.stack(shares)


def interactions(values: np.ndarray, factors: int) -> dict[tuple[int, ...], np.ndarray]:
    """Return what factors do only together: {places of two or more factors: effect}.

    It is what is left of their effect, against the corner where all factors are small, when all
    that fewer of them do is taken away.
    """
    _check(values, factors)
    effects = {}
    for order in range(2, factors + 1):
        for group in itertools.combinations(range(factors), order):
            # Factors outside the group stay small; each difference removes an axis of the group.
            corner = [slice(None) if place in group else 0 for place in range(factors)]
            part = values[tuple(corner)]
            for _ in group:
                part = np.diff(part, axis=0)[0]
            effects[group] = part
    return effects


def _check(values, factors):
    """Raise ValueError unless the first axes of `values` are as many factors of two levels."""
    if not 2 <= factors <= MOST or values.shape[:factors] != (2,) * factors:
        raise ValueError(f'an attribution takes 2 to {MOST} factors with two levels each, '
                         f'not {factors} factors of shape {values.shape[:factors]}')


def log_odds(means: bootstrap.Means) -> bootstrap.Means:
    """Return the same means as log-odds.

    Half an item is added on both sides, so that those of 0 and 1 are finite.
    """
    def logit(share):
        # a draw over seeds may leave 0..1
        right = np.clip(share, 0, 1) * means.n + .5
        return np.log(right / (means.n + 1 - right))
    return replace(means, value=logit(means.value), draws=logit(means.draws))


def attribute(means: bootstrap.Means, names: Sequence[str],
              scale: str = 'accuracy') -> dict[str, Shares]:
    """Return {family and 'macro': Shares} of means whose rows are the corners in binary order.

    Row 0 has all factors `names` small, the last row all large; the last factor changes fastest.
    On 'log-odds' the macro mean is that of the families' log-odds. ValueError for other rows.
    """
    if len(means.value) != 2 ** len(names):
        raise ValueError(f'{len(means.value)} corners are not those of {len(names)} factors with '
                         f'two levels each, {2 ** len(names)}')
    means = bootstrap.with_macro(log_odds(means) if scale == 'log-odds' else means)
    return {task: _shares(means, column, names, scale) for column, task in enumerate(means.groups)}


def _shares(means, column, names, scale):
    """Return the `Shares` of one group of means whose rows are the corners in binary order."""
    factors = len(names)
    # The value stands in front of its draws, so that both take the same differences.
    table = np.concatenate([means.value[None, :, column], means.draws[:, :, column]])
    table = table.T.reshape(*(2,) * factors, -1)
    shares = {}
    for name, part in zip(names, shapley(table, factors), strict=True):
        shares[name] = _interval(means, part, column, scale)
    together = {}
    for places, part in interactions(table, factors).items():
        group = tuple(names[place] for place in places)
        together[group] = _interval(means, part, column, scale)
    flagged = []
    for group, effect in together.items():
        if any(abs(effect.value) > shares[name].half for name in group):
            flagged.append(group)
    total = table[(1,) * factors] - table[(0,) * factors]
    return Shares(
        total=_interval(means, total, column, scale),
        shares=shares,
        interactions=together,
        flagged=tuple(flagged),
    )


def _interval(means, part, column, scale):
    """Return the interval of `part` [1 + bootstraps], a value in front of its draws."""
    if scale == 'accuracy':
        return means.interval(part[0], part[1:], column, (-2, 2))
    draws = part[np.isfinite(part)]
    if np.ptp(draws) < 1e-9:  # the bound for unseen change is one of shares, not of log-odds
        return bootstrap.without_ends(part[0], means.n[column], means.clusters[column],
                                      'none (draws agree)', means.over.count)
    return means.interval(part[0], part[1:], column)


def class_of(large: int, small_p: int, small_r: int, small: int) -> str:
    """Return the class of an item by which pairs had it right, of `CLASSES`.

    The pairs are both large, perception small, reasoner small, both small.
    """
    if large and not small_p:
        return 'perception loss' if small_r else 'both'
    if large and not small_r:
        return 'reasoning loss'
    if large:
        return 'right everywhere' if small else 'lost only when both are small'
    if small:
        return 'recovered'
    return 'right only in a mixed pair' if small_p or small_r else 'wrong everywhere'


def partition(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (weight, change) [classes, items] of answers [perception 2, reasoner 2, items].

    Weights of an item sum to 1 over `CLASSES`: one class where answers are right or wrong, a share
    of each where they are means of repeats, which are taken as independent between pairs. Changes
    are what a class adds to large - small: summed over classes, exactly that of the item.
    """
    corners = np.asarray(corners, dtype=float)
    weight, change = (np.zeros((len(CLASSES), corners.shape[-1])) for _ in range(2))
    right = (corners[1, 1], corners[0, 1], corners[1, 0], corners[0, 0])
    for pattern in itertools.product((1, 0), repeat=4):
        # The probability of this pattern; without repeats it is 1 for one pattern and 0 for others.
        mass = np.prod([y if hit else 1 - y for y, hit in zip(right, pattern, strict=True)], axis=0)
        row = CLASSES.index(class_of(*pattern))
        weight[row] += mass
        change[row] += mass * (pattern[0] - pattern[3])
    return weight, change

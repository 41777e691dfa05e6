"""Intervals over seeds and pictures: their parts are those that were planted, and they cover.

Coverage is held from both sides: an interval that is too wide hides what a study has found.
"""
import functools

import numpy as np
import pytest
from scipy.special import expit

from downscale.statistics import bootstrap, two_way
from downscale.statistics.two_way import Seeds

STUDIES, PICTURES, FAMILIES, DRAWS = 300, 64, 6, 200
TASK = np.tile([f'f{k}' for k in range(FAMILIES)], PICTURES)
CLUSTER = np.repeat(np.arange(PICTURES), FAMILIES)
CENTRE = {'small': -.5, 'large': 1.5}
LEARNT = {'small': .3, 'large': .8}
SPREAD = {'quiet seeds': .05, 'noisy seeds': .5, 'learnt or not': 0.}
RANGE = .92, .98


def _luck(rng):
    return (.8 * rng.standard_normal((PICTURES, 1))
            + .6 * rng.standard_normal((PICTURES, FAMILIES)))


def _shares(rng, regime, size, luck):
    """How probably one run is right, [pictures, families]."""
    if regime == 'learnt or not':
        there = rng.random(FAMILIES) < LEARNT[size]
        return expit(np.where(there, 3, -.8) + luck)
    seed = SPREAD[regime] * (rng.standard_normal() + rng.standard_normal(FAMILIES))
    return .25 + .75 * expit(CENTRE[size] + seed + luck)


def _true_share(regime, size):
    """The mean over pictures, runs and answers, which no study sees."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    sd = np.sqrt(.8 ** 2 + .6 ** 2 + 2 * SPREAD[regime] ** 2)

    def mean(centre):
        return float(expit(centre + sd * nodes) @ weights / weights.sum())
    if regime == 'learnt or not':
        return LEARNT[size] * mean(3) + (1 - LEARNT[size]) * mean(-.8)
    return .25 + .75 * mean(CENTRE[size])


def _study(rng, regime, seeds, blocks):
    """The means of one study: two sizes, large first, with the mean over families as the last."""
    luck = _luck(rng)
    rows = np.array([rng.random((PICTURES, FAMILIES)) < _shares(rng, regime, size, luck)
                     for size in ('large', 'small') for _ in range(seeds)])
    resamples = bootstrap.resample(CLUSTER, DRAWS, int(rng.integers(2 ** 31)))
    means = bootstrap.group_means(rows.reshape(len(rows), -1), TASK, CLUSTER, resamples)
    value_RSG = means.value.reshape(2, seeds, -1)
    draws_RSBG = np.moveaxis(means.draws.reshape(DRAWS, 2, seeds, -1), 0, 2)
    over = Seeds(count=seeds, planned=seeds, blocks=blocks)
    return bootstrap.with_macro(bootstrap.mean_over_seeds(
        means, value_RSG, draws_RSBG, resamples, over, np.arange(2) % blocks))


@functools.cache
def misses(regime, seeds, blocks):
    """{number: how far its value is from the truth, in halves of its interval, [studies]}."""
    large, small = (_true_share(regime, size) for size in ('large', 'small'))
    missed = {}
    rng = np.random.default_rng(0)
    for _ in range(STUDIES):
        means = _study(rng, regime, seeds, blocks)
        for column, of_what in ((-1, ''), *((column, ' of a family') for column in range(3))):
            drop = bootstrap.contrast(means, np.array([1, -1]), column)
            x = means.interval(means.value[0, column], means.draws[:, 0, column], column)
            missed.setdefault(f'drop{of_what}', []).append(abs(drop.value - large + small)
                                                           / drop.half)
            missed.setdefault(f'accuracy{of_what}', []).append(abs(x.value - large) / x.half)
    return {name: np.array(of_number) for name, of_number in missed.items()}


def coverage(regime, seeds, blocks=1, wider=1.):
    """{number: share of studies whose interval holds the truth}, intervals `wider` by a factor."""
    return {name: float(np.mean(missed <= wider))
            for name, missed in misses(regime, seeds, blocks).items()}


REGIMES = [('quiet seeds', 3, 1), ('noisy seeds', 3, 1), ('noisy seeds', 5, 2),
           ('learnt or not', 5, 1)]


@pytest.mark.parametrize(('regime', 'seeds', 'blocks'), REGIMES)
def test_intervals_over_seeds_cover_what_they_say_and_no_more(regime, seeds, blocks):
    found = coverage(regime, seeds, blocks)
    # One family that some seeds learn and others do not: no t interval covers its mean, which is
    # why the report has P(learnt) for it (`learnt.py`).
    if regime == 'learnt or not':
        assert found.pop('accuracy of a family') < .8
    for name, share in found.items():
        assert RANGE[0] <= share <= RANGE[1], (name, found)


@pytest.mark.parametrize(('regime', 'seeds', 'blocks'), REGIMES)
def test_intervals_that_are_too_wide_or_too_narrow_are_found_out(regime, seeds, blocks):
    """By one of the numbers at least: the tails of two degrees hide what is half as wide again."""
    assert max(coverage(regime, seeds, blocks, wider=1.5).values()) > RANGE[1]
    narrow = coverage(regime, seeds, blocks, wider=.75)
    del narrow['accuracy of a family']
    assert min(narrow.values()) < RANGE[0]


def test_each_part_of_the_variance_is_the_one_that_was_planted():
    rng, seeds, of_seed, of_picture, of_both = np.random.default_rng(1), 5, .3, .2, .4
    over, found = Seeds(count=seeds, planned=seeds), []
    for trial in range(400):
        rows = (of_seed * rng.standard_normal((seeds, 1)) + of_picture * rng.standard_normal(40)
                + of_both * rng.standard_normal((seeds, 40)))
        resamples = bootstrap.resample(np.arange(40), 100, trial)
        means = bootstrap.over_seeds(bootstrap.group_means(rows, np.full(40, 'a'), np.arange(40),
                                                           resamples), seeds, resamples)
        found.append(two_way.error(means.draws[:, 0, 0], over, 40)[0] ** 2)
    truth = of_seed ** 2 / seeds + of_picture ** 2 / 40 + of_both ** 2 / seeds / 40
    assert np.mean(found) == pytest.approx(truth, rel=.08)


def test_degrees_lie_between_those_of_seeds_and_those_of_pictures():
    rng, degrees = np.random.default_rng(2), {}
    for noise in (0., 3.):
        rows = rng.standard_normal(50) + noise * rng.standard_normal((4, 1))
        resamples = bootstrap.resample(np.arange(50), 400)
        means = bootstrap.over_seeds(bootstrap.group_means(rows, np.full(50, 'a'), np.arange(50),
                                                           resamples), 4, resamples)
        degrees[noise] = two_way.error(means.draws[:, 0, 0], means.over, 50)[1]
    assert degrees[0.] == pytest.approx(49) and 3 <= degrees[3.] < 3.5


def test_nearly_all_of_a_number_that_no_seed_moves_is_of_pictures():
    resamples = bootstrap.resample(np.arange(50), 400)
    means = bootstrap.group_means(np.arange(50) / 50, np.full(50, 'a'), np.arange(50), resamples)
    fixed = bootstrap.as_fixed(means, Seeds(count=3, planned=3))
    plain = means.interval(means.value[0, 0], means.draws[:, 0, 0], 0)
    x = fixed.interval(means.value[0, 0], fixed.draws[:, 0, 0], 0)
    assert x.half == pytest.approx(plain.half, rel=.1) and '49 degrees' in x.method
    assert bootstrap.as_fixed(means, Seeds(count=2, planned=2)).draws is means.draws


def test_draws_over_both_scatter_as_seeds_and_pictures_do():
    values = np.array([.2, .5, .35])[:, None] + np.zeros(60)
    resamples = bootstrap.resample(np.arange(60), 20_000)
    means = bootstrap.over_seeds(bootstrap.group_means(values, np.full(60, 'a'), np.arange(60),
                                                       resamples), 3, resamples)
    draws = two_way.sample(means.draws[:, 0, 0], means.over)
    x = means.interval(.35, means.draws[:, 0, 0], 0)
    low, high = np.quantile(draws, [.025, .975])
    assert len(draws) == 20_000
    assert (low, high) == pytest.approx((x.low, x.high), abs=.02)

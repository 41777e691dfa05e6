"""Ratios, runs, tests and power (analysis reference, R12, R14 and section 5)."""
import numpy as np
import pytest
from scipy.stats import norm

from downscale.statistics import bootstrap, inference, proportions

PICTURES, QUESTIONS = 60, 4
CLUSTERS = np.repeat(np.arange(PICTURES), QUESTIONS)


def _pair(rng, first, second, copied=.5):
    """Right answers of two models at these rates; within a picture, luck is often shared."""
    luck = rng.random((PICTURES, QUESTIONS))
    luck = np.where(rng.random((PICTURES, 1)) < copied, luck[:, :1], luck).ravel()
    other = np.where(rng.random(luck.shape) < .5, luck, rng.random(luck.shape))
    return (luck < first).astype(float), (other < second).astype(float)


def _counts(both, first, second, neither):
    table = [both, first, second, neither]
    return np.repeat([1, 1, 0, 0], table), np.repeat([1, 0, 1, 0], table)


def test_newcombe_matches_published_examples():
    # Newcombe 1998, Stat Med 17:2635, method 10; Fagerland et al. 2014 (airway reactivity)
    assert proportions.newcombe(*_counts(36, 12, 2, 0)) == pytest.approx((.0569, .3404), abs=1e-4)
    assert proportions.newcombe(*_counts(1, 1, 7, 12)) == pytest.approx((-.507, -.026), abs=1e-3)


def test_newcombe_has_width_when_nothing_differs_and_turns_with_the_models():
    low, high = proportions.newcombe(*_counts(30, 0, 0, 0))
    assert low < 0 < high
    first, second = _counts(10, 9, 2, 5)
    low, high = proportions.newcombe(first, second)
    assert proportions.newcombe(second, first) == pytest.approx((-high, -low))


def test_paired_clustered_intervals_cover_as_often_as_they_say():
    rng, hits, naive = np.random.default_rng(1), 0, 0
    for trial in range(300):
        first, second = _pair(rng, .7, .5)
        found = bootstrap.paired_difference(first, second, CLUSTERS, bootstraps=400, seed=trial)
        hits += found.low <= .2 <= found.high
        reach = norm.ppf(.975) * (first - second).std() / np.sqrt(len(first))
        naive += abs(found.value - .2) <= reach
    assert .90 <= hits / 300 <= .98
    assert naive < hits   # pictures count: as if questions were alone, it would cover less


@pytest.mark.parametrize('chance', [0., .6])
def test_intervals_of_a_ratio_cover_near_and_far_from_a_zero_denominator(chance):
    rng, hits, fieller = np.random.default_rng(2), 0, 0
    for trial in range(300):
        first, second = _pair(rng, .7, .5)
        means = bootstrap.group_means([first, second], np.full(len(first), 'a'), CLUSTERS,
                                      bootstrap.resample(CLUSTERS, 400, trial))
        value, draws = means.value[:, 0], means.draws[:, :, 0]
        found = inference.ratio_interval((value[0] - value[1], draws[:, 0] - draws[:, 1]),
                                         (value[0] - chance, draws[:, 0] - chance),
                                         len(first), PICTURES)
        hits += found.low <= .2 / (.7 - chance) <= found.high
        fieller += 'Fieller' in found.method
    assert .90 <= hits / 300 <= .98
    assert fieller < 30 if not chance else fieller > 270


def test_a_ratio_over_what_may_be_zero_is_unbounded_and_says_so():
    draws = np.random.default_rng(3).normal(size=(2, 500))
    found = inference.ratio_interval((.5, .5 + .1 * draws[0]), (.05, .05 + .1 * draws[1]), 90, 90)
    assert (found.low, found.high) == (-np.inf, np.inf)
    assert 'unbounded' in found.method
    assert not found.clear
    assert np.isnan(inference.ratio_interval((.5, draws[0]), (0., draws[1]), 90, 90).value)


def test_of_less_than_nothing_there_is_no_share():
    """As of a family in which the largest size is clearly below a guess."""
    draws = np.random.default_rng(3).normal(size=(2, 500))
    top = .2, .2 + .03 * draws[0]
    found = inference.ratio_interval(top, (-.3, -.3 + .03 * draws[1]), 90, 90)
    assert np.isnan([found.value, found.low, found.high]).all() and 'nothing' in found.method
    # Perhaps below is perhaps above.
    assert inference.ratio_interval(top, (-.03, -.03 + .03 * draws[1]), 90, 90).high == np.inf


def test_p_values_of_no_effect_are_even_although_pictures_are_shared():
    rng, small = np.random.default_rng(4), 0
    for trial in range(300):
        first, second = _pair(rng, .5, .5, copied=1.)
        means = bootstrap.group_means([first - second], np.full(len(first), 'a'), CLUSTERS,
                                      bootstrap.resample(CLUSTERS, 400, trial))
        small += inference.p_value(means.value[0, 0], means.draws[:, 0, 0], PICTURES) < .05
    assert .02 <= small / 300 <= .09


def test_p_values_without_any_spread_count_the_pictures():
    assert inference.p_value(0., np.zeros(9), 20) == 1
    assert inference.p_value(1., np.ones(9), 4) == .125
    assert np.isnan(inference.p_value(1., np.ones(9), 1))


def test_benjamini_hochberg_steps_up_and_keeps_the_order():
    np.testing.assert_allclose(inference.benjamini_hochberg([.01, .04, .03, .005]),
                               [.02, .04, .04, .02])


def test_what_was_not_tested_counts_as_no_test():
    some = [.01, np.nan, .03, np.nan]
    np.testing.assert_allclose(inference.benjamini_hochberg(some), [.02, np.nan, .03, np.nan])
    np.testing.assert_allclose(inference.holm(some), [.02, np.nan, .03, np.nan])
    assert np.isnan(inference.benjamini_hochberg([np.nan])).all()
    draws = np.linspace(-.1, .9, 200)
    known = inference.p_value(.4, draws, 50)
    assert inference.p_value(.4, np.append(draws, [np.nan] * 800), 50) == known


def test_the_iqm_is_the_mean_of_the_middle_half():
    scores = np.arange(12).reshape(3, 4) / 11
    assert inference.iqm(scores) == pytest.approx(.5, abs=1e-15)
    scores[0, 0], scores[2, 3] = -100, 100   # neither tail counts
    assert inference.iqm(scores) == pytest.approx(.5, abs=1e-15)


def test_runs_give_an_interval_from_three_on_and_never_one_of_no_width():
    scores = np.random.default_rng(5).random((5, 4))
    found = inference.iqm_interval(scores, bootstraps=300)
    assert found.low < found.value < found.high
    assert found == inference.iqm_interval(scores, bootstraps=300)
    for few in (scores[:2], np.ones((5, 4))):
        assert np.isnan(inference.iqm_interval(few, bootstraps=50).low)
    assert '2 of at least 3 runs' in inference.iqm_interval(scores[:2], bootstraps=50).method


def test_runs_are_drawn_within_their_task():
    scores = np.tile([0., 1.], (4, 1)) + [[0, 0], [.01, .01], [.02, .02], [.03, .03]]
    found = inference.iqm_interval(scores, bootstraps=300)
    assert found.high - found.low < .03   # tasks far apart stay as often in every draw


def test_the_chance_to_be_better_counts_pairs_of_runs_and_ties_by_half():
    found = inference.better([[1., 0], [2, 0], [3, 0]], [[0., 0], [2, 0], [9, 0]], bootstraps=50)
    assert found.value == pytest.approx(np.mean([(1 + 1.5 + 2) / 9, .5]))
    assert inference.better([[5.]] * 3, [[1.]] * 3, bootstraps=50).value == 1


def test_a_performance_profile_falls_from_one_to_zero():
    shares = inference.performance_profile([[.2, .4], [.6, .8]], [0, .3, .6, 1])
    np.testing.assert_allclose(shares, [1, .75, .25, 0])


def test_three_points_need_969_items():
    assert inference.items_needed(.03, 1 / 9) == 969
    assert inference.detectable_difference(np.sqrt(1 / 9 / 969)) == pytest.approx(.03, abs=1e-6)


def test_power_is_what_it_says():
    rng, n = np.random.default_rng(6), inference.items_needed(.1, .25)
    found = rng.normal(.1, .5, size=(4000, n))
    hits = np.abs(found.mean(axis=1)) / (found.std(axis=1) / np.sqrt(n)) > norm.ppf(.975)
    assert hits.mean() == pytest.approx(.8, abs=.025)

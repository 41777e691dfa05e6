"""Intervals over training seeds: three seeds count as three, pictures and seeds together."""
import numpy as np
import pytest
from scipy.stats import binom, t

from downscale.analysis import drops, measures, synth
from downscale.analysis.planted.study import Planted
from downscale.statistics import bootstrap, inference

PICTURES = np.arange(60)


def test_the_mean_of_three_seeds_has_the_t_interval_of_three_numbers():
    """Pictures that all agree leave only the seeds."""
    values = np.array([.2, .5, .35])
    rows = np.repeat(values[:, None], len(PICTURES), axis=1)
    resamples = bootstrap.resample(PICTURES, 40_000)
    means = bootstrap.over_seeds(
        bootstrap.group_means(rows, np.full(60, 'a'), PICTURES, resamples), 3, resamples
    )
    x = bootstrap.interval(means.value[0, 0], means.draws[:, 0, 0], 60, 60, seeds=means.seeds)
    reach = t.ppf(.975, 2) * values.std(ddof=1) / np.sqrt(3)
    assert x.value == pytest.approx(.35) and x.seeds == 3 and 't over 3 seeds' in x.method
    assert (x.high - x.low) / 2 == pytest.approx(reach, rel=.06)
    # seeds that agree add nothing, and two seeds say nothing of their spread
    same = bootstrap.over_seeds(bootstrap.group_means(rows * 0 + .3, np.full(60, 'a'), PICTURES,
                                                      resamples), 3, resamples)
    np.testing.assert_allclose(same.draws, .3)
    two = bootstrap.over_seeds(
        bootstrap.group_means(rows[:2], np.full(60, 'a'), PICTURES, resamples), 2, resamples
    )
    np.testing.assert_allclose(two.draws, .35)


def test_differences_within_seeds_are_paired_by_seed():
    """Seeds that move both sizes alike leave their difference alone."""
    resamples = bootstrap.resample(PICTURES, 500)
    shift = np.array([-.2, 0, .3])[:, None, None]
    rows = np.broadcast_to(np.array([.6, .4])[:, None] + shift, (3, 2, 1)).repeat(60, axis=2)
    means = bootstrap.over_seeds(
        bootstrap.group_means(rows.reshape(6, 60), np.full(60, 'a'), PICTURES, resamples),
        3,
        resamples,
    )
    assert means.draws[:, 0].std() > .1
    np.testing.assert_allclose(means.draws[:, 0] - means.draws[:, 1], .2)


def test_the_same_seeds_are_drawn_alike_for_all_and_others_when_asked():
    first, again, other = (
        bootstrap.resample(PICTURES, 50, seed).over_seeds(3) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(first.sum(axis=1), 1)


@pytest.mark.parametrize('spread', [0., .8])
def test_intervals_over_three_seeds_hold_the_truth(spread):
    hits, trials = 0, 60
    for trial in range(trials):
        made = synth(trial, sizes=2, seeds=3, items=320, planted=Planted(seed=spread), full=False)
        s = measures.scored(made.study, 300, trial)
        found = drops.by_family(s)['macro']['absolute']
        hits += found.low <= np.mean(list(made.truth['drop'].values())) <= found.high
    assert binom.ppf(.002, trials, .95) <= hits
    assert found.seeds == 3


def test_cells_are_compared_over_the_seeds_that_all_have_and_intervals_do_not_narrow():
    made = synth(0, sizes=2, seeds=3, items=160)
    s = measures.scored(made.study, 100)
    small, large = (measures.joint_cells(s, size, 'image') for size in s.sizes)
    width = 0
    for groups, seeds in (([small, large], 3), ([small, large[:2]], 2), ([small, large[:1]], 1)):
        paired, means = measures.means_of(s, groups)
        x = measures.one(bootstrap.macro(means), 0, 0, minus=1)
        assert means.seeds == x.seeds == seeds and f'{seeds} ' in x.method
        common = [measures.means_of(s, [[a], [b]])[1] for a, b in zip(*groups, strict=False)]
        assert x.value == pytest.approx(np.mean([(m.value[0] - m.value[1]).mean() for m in common]))
        assert paired.scores.shape == (2, 160) and x.high - x.low > width
        width = x.high - x.low
    assert (x.low, x.high) == (-1, 1) and not x.clear
    with pytest.raises(measures.Missing, match='no seed has all that is compared; there are seeds'):
        measures.means_of(s, [small[:1], large[1:]])
    assert 'seeds' not in measures.one(measures.of_run(s, small[0]), 0, 0).method


def test_p_values_and_ratios_over_seeds_agree_with_their_intervals():
    rng = np.random.default_rng(0)
    draws = .3 + .1 * rng.standard_t(2, 4000)
    low, high = np.quantile(draws, [.025, .975])
    assert (inference.p_value(.3, draws, 60, 3) < .05) == (low > 0 or high < 0)
    assert inference.standard_error(draws, 60, 3) == pytest.approx((high - low) / (2 * 1.96),
                                                                   rel=1e-3)
    ratio = inference.ratio_interval((.2, .2 + 0 * draws), (1., 1 + .05 * draws), 100, 60, seeds=3)
    assert .19 < ratio.low < ratio.high < .21 and ratio.seeds == 3
    wild = inference.ratio_interval((.2, draws), (.1, draws - .2), 100, 60, seeds=3)
    assert np.isinf([wild.low, wild.high]).all()

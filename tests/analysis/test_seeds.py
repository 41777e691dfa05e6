"""Intervals over training seeds: three seeds count as three, pictures and seeds together."""
import numpy as np
import pytest
from scipy.stats import binom, t

from downscale.analysis import drops, measures, synth
from downscale.analysis.planted.study import Planted
from downscale.statistics import bootstrap, inference, two_way

PICTURES = np.arange(60)


def test_the_mean_of_three_seeds_has_the_t_interval_of_three_numbers():
    """Pictures that all agree leave only the seeds."""
    values = np.array([.2, .5, .35])
    rows = np.repeat(values[:, None], len(PICTURES), axis=1)
    resamples = bootstrap.resample(PICTURES, 400)
    means = bootstrap.over_seeds(
        bootstrap.group_means(rows, np.full(60, 'a'), PICTURES, resamples), 3, resamples
    )
    x = bootstrap.interval(means.value[0, 0], means.draws[:, 0, 0], 60, 60, over=means.over)
    reach = t.ppf(.975, 2) * values.std(ddof=1) / np.sqrt(3)
    assert x.value == pytest.approx(.35) and x.seeds == 3
    assert x.method == 'two-way t over 3 seeds, 2 degrees'
    assert (x.high - x.low) / 2 == pytest.approx(reach, rel=1e-6)
    # seeds that agree add nothing, and two seeds say nothing of their spread
    same = bootstrap.over_seeds(bootstrap.group_means(rows * 0 + .3, np.full(60, 'a'), PICTURES,
                                                      resamples), 3, resamples)
    x = bootstrap.interval(.3, same.draws[:, 0, 0], 60, 60, over=same.over)
    assert x.method == 'Wilson bound on unseen change of pictures; 3 seeds agree'
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
    assert two_way.error(means.draws[:, 0, 0], means.over, 60)[0] > .1
    np.testing.assert_allclose(means.draws[:, 0] - means.draws[:, 1], .2)


def test_intervals_over_three_seeds_hold_what_is_planted_in_a_study():
    """A study from its tables on; how often they hold it says `statistics/test_two_way.py`."""
    hits, trials = 0, 16
    for trial in range(trials):
        made = synth(trial, sizes=2, seeds=3, items=320, planted=Planted(seed=.4), full=False)
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
        assert means.over.count == x.seeds == seeds and f'{seeds} ' in x.method
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
    resamples = bootstrap.resample(PICTURES, 400)
    for effect in np.linspace(0, .4, 9):
        rows = rng.random((6, 60)) < .5 + effect * np.tile([1, 0], 3)[:, None]
        means = bootstrap.over_seeds(bootstrap.group_means(rows, np.full(60, 'a'), PICTURES,
                                                           resamples), 3, resamples)
        x = measures.one(means, 0, 0, minus=1)
        gap = means.draws[:, 0, 0] - means.draws[:, 1, 0]
        assert (inference.p_value(x.value, gap, 60, means.over) < .05) == x.clear
        # a ratio over what hardly varies is the difference itself
        one = means.value[0, 0] * 0 + 1, means.draws[:, 0, 0] * 0 + 1
        ratio = inference.ratio_interval((x.value, gap), one, 60, 60, over=means.over)
        assert (ratio.low, ratio.high) == pytest.approx((x.low, x.high))
        assert ratio.seeds == 3
        nearly = inference.ratio_interval((x.value, gap), (.02, gap - x.value + .02), 60, 60,
                                          over=means.over)
        assert np.isinf([nearly.low, nearly.high]).all() and 'Fieller' in nearly.method


def test_sizes_are_blocks_of_their_own_where_the_study_says_so():
    made = synth(0, sizes=3, seeds=3, items=160, full=False)
    intervals = {}
    for declared in (False, True):
        made.study.meta['claims'] = [{'seeds_by_size': declared}]
        s = measures.scored(made.study, 200)
        ends = [measures.joint_cells(s, size, 'image') for size in (s.sizes[-1], s.sizes[0])]
        means = measures.means_of(s, ends)[1]
        assert means.over.blocks == 1 + declared
        intervals[declared] = measures.one(bootstrap.macro(means), 0, 0, minus=1)
        # a pair joins its two sizes, and with them all that has either
        pairs = measures.pair_groups(s, 'extraction', True)
        joined = pairs[s.sizes[0].name, s.sizes[-1].name]
        assert measures.means_of(s, [*ends, joined])[1].over.blocks == 1
        # one size alone is one block, and its number does not hang on what is declared
        alone = measures.one(bootstrap.macro(measures.means_of(s, ends[:1])[1]), 0, 0)
        intervals[declared, 'alone'] = alone
    assert intervals[False].value == intervals[True].value
    assert intervals[False].half != intervals[True].half
    assert intervals[False, 'alone'] == intervals[True, 'alone']

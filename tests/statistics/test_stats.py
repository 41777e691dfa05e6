"""Clustered and paired statistics (analysis reference, R10 and section 5)."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from downscale.statistics import bootstrap, inference, proportions

PICTURES, QUESTIONS = 200, 5
CLUSTERS = np.repeat(np.arange(PICTURES), QUESTIONS)


def _answers(rng, copied, rate=.5):
    """Answers of one picture are copies of each other with probability `copied`."""
    own = rng.random((PICTURES, QUESTIONS)) < rate
    same = rng.random((PICTURES, 1)) < copied
    return np.where(same, own[:, :1], own).ravel().astype(float)


def clustered_se(values, clusters):
    """Standard error of the mean when the items of one cluster move together (Miller, eq. 4)."""
    values = np.asarray(values, dtype=float)
    _, place = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sums = np.bincount(place, values - values.mean())
    if len(sums) < 2:
        return np.nan
    return float(np.sqrt(np.sum(sums ** 2) * len(sums) / (len(sums) - 1)) / len(values))


@pytest.mark.parametrize('copied', [0, .3, 1])
def test_clustered_se_grows_as_questions_of_a_picture_copy_each_other(copied):
    rng, squares = np.random.default_rng(1), []
    for _ in range(400):
        values = _answers(rng, copied)
        naive = values.std(ddof=1) / np.sqrt(len(values))
        squares.append((clustered_se(values, CLUSTERS) ** 2, naive ** 2))
    clustered, naive = np.mean(squares, axis=0)
    assert np.sqrt(clustered / naive) == pytest.approx(np.sqrt(1 + 4 * copied), rel=.03)


def test_the_bootstrap_interval_agrees_with_the_clustered_standard_error():
    values = _answers(np.random.default_rng(2), .5)
    found = bootstrap.mean_ci(values, CLUSTERS, bootstraps=4000)
    reach = norm.ppf(.975) * clustered_se(values, CLUSTERS)
    assert found.half == pytest.approx(reach, rel=.06)
    assert (found.n, found.clusters) == (1000, 200)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng, hits = np.random.default_rng(3), 0
    for trial in range(200):
        found = bootstrap.mean_ci(_answers(rng, .5, .3), CLUSTERS, bootstraps=300, seed=trial)
        hits += found.low <= .3 <= found.high
    assert 180 <= hits <= 199


def test_a_paired_interval_is_narrower_than_an_unpaired_one_on_correlated_answers():
    rng = np.random.default_rng(4)
    first = _answers(rng, .5)
    second = np.where(rng.random(1000) < .9, first, 0.)
    paired = bootstrap.paired_difference(first, second, CLUSTERS)
    alone = [bootstrap.mean_ci(values, CLUSTERS).half for values in (first, second)]
    assert paired.half < .6 * np.hypot(*alone)
    assert paired.clear


def test_equal_rows_move_together_under_every_resample():
    values = _answers(np.random.default_rng(5), .3)
    means = bootstrap.group_means([values, values], np.full(1000, 'a'), CLUSTERS,
                                  bootstrap.resample(CLUSTERS, 100))
    np.testing.assert_array_equal(means.draws[:, 0], means.draws[:, 1])
    assert means.draws.std() > 0


def test_the_macro_mean_is_the_plain_mean_over_families_of_unequal_size():
    groups = np.array(['a'] * 900 + ['b'] * 100)
    means = bootstrap.group_means(np.where(groups == 'a', 1., 0.), groups, CLUSTERS,
                                  bootstrap.resample(CLUSTERS, 50))
    whole = bootstrap.macro(means)
    assert whole.value[0, 0] == .5
    np.testing.assert_allclose(whole.draws[:, 0, 0], .5)


def test_a_ratio_of_sums_is_the_mean_where_every_item_weighs_the_same():
    values, resamples = _answers(np.random.default_rng(6), .5), bootstrap.resample(CLUSTERS, 80)
    means = bootstrap.group_means(values, np.full(1000, 'a'), CLUSTERS, resamples)
    value, draws = bootstrap.ratio(values / 3, np.full(1000, 1 / 3), CLUSTERS, resamples)
    assert value == pytest.approx(means.value[0, 0])
    np.testing.assert_allclose(draws, means.draws[:, 0, 0])


def test_a_ratio_draws_numerator_and_denominator_together_and_is_nan_without_any():
    kept = np.random.default_rng(7).random(1000) < .5
    value, draws = bootstrap.ratio(
        0.25 * kept, 1.0 * kept, CLUSTERS, bootstrap.resample(CLUSTERS, 50)
    )
    assert value == .25
    np.testing.assert_allclose(draws, .25)
    none = bootstrap.ratio(0. * kept, 0. * kept, CLUSTERS, bootstrap.resample(CLUSTERS, 50))
    assert np.isnan(none[0]) and np.isnan(none[1]).all()
    rare, draws = bootstrap.ratio([1., 0], [1., 0], ['a', 'b'], bootstrap.resample(['a', 'b'], 50))
    assert rare == 1 and np.isnan(draws).any() and (draws[np.isfinite(draws)] == 1).all()
    with pytest.raises(ValueError, match='clusters are not in the resamples'):
        bootstrap.ratio([1.], [1.], ['x'], bootstrap.resample(['a'], 5))


@pytest.mark.parametrize('clusters', [2, 5, 200])
def test_no_interval_has_zero_width_when_all_answers_agree(clusters):
    ones, names = np.ones(clusters), np.arange(clusters)
    found = bootstrap.mean_ci(ones, names, bootstraps=200, bounds=(0, 1))
    assert found.high == 1
    assert found.low == pytest.approx(proportions.wilson(clusters, clusters)[0])
    change = bootstrap.paired_difference(ones, ones, names, bootstraps=200)
    assert change.low < 0 < change.high


def test_one_cluster_gives_no_interval():
    found = bootstrap.mean_ci([1., 0.], ['a', 'a'], bootstraps=50)
    assert np.isnan(found.low)
    assert not found.clear
    assert found.method == 'none (1 cluster)'


@pytest.mark.parametrize(('value', 'draws', 'clusters', 'why'), [
    (.5, [.4, .6], 1, '1 cluster'), (np.nan, [.4, .6], 9, 'no number'),
    (.5, [np.nan, .6], 9, 'fewer than two draws'), (.5, [.4, .6], 0, '0 clusters')])
def test_no_interval_says_its_own_reason(value, draws, clusters, why):
    found = bootstrap.interval(value, draws, 20, clusters)
    assert found.method == f'none ({why})' and np.isnan(found.low)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12), st.booleans())
def test_a_paired_difference_is_as_clear_as_its_own_test(values, alike):
    """Fewer than six pictures are never clear, and p and interval of few agree on that."""
    values = np.array([values[0]] * len(values) if alike else values)
    names = np.arange(len(values))
    means = bootstrap.group_means([values, values * 0], np.full(len(names), 'a'), names,
                                  bootstrap.resample(names, 200))
    draws = means.draws[:, 0, 0]
    found = bootstrap.interval(values.mean(), draws, len(names), len(names), bounds=(-1, 1))
    p = inference.p_value(values.mean(), draws, len(names))
    assert found.low <= found.value + 1e-9 and found.value <= found.high + 1e-9
    if len(names) < bootstrap.FEW_SIGNS:
        assert not found.clear and p > .05
    elif found.clear:
        assert p < .06


def test_three_agreeing_pictures_are_not_clear_and_six_are():
    for count, clear in ((3, False), (5, False), (6, True)):
        ones, names = np.ones(count), np.arange(count)
        found = bootstrap.paired_difference(ones, ones * 0, names, bootstraps=100)
        assert found.clear == clear and found.high == 1
    assert .2 < bootstrap.mean_ci(np.ones(3), np.arange(3), 100, bounds=(0, 1)).low < 1


def test_few_clusters_widen_the_interval():
    values, names = np.array([0., 1., 1., 0., 1.]), np.arange(5)
    found = bootstrap.mean_ci(values, names)
    assert found.half > 1.96 * clustered_se(values, names) * 1.3
    assert 't' in found.method


def test_wilson_matches_the_published_example():
    # Newcombe 1998, table I: 81 of 263, method 3
    assert proportions.wilson(81, 263) == pytest.approx((.2553, .3662), abs=1e-4)
    assert proportions.wilson(0, 20)[0] == 0


def test_mcnemar_is_the_exact_binomial_of_the_discordant_pairs():
    first = np.array([1] * 8 + [0] * 1 + [1] * 5)
    second = np.array([0] * 8 + [1] * 1 + [1] * 5)
    assert inference.mcnemar(first, second) == pytest.approx(2 * (1 + 9) / 2 ** 9)
    assert inference.mcnemar(first, first) == 1


def test_holm_steps_down_and_keeps_the_order():
    np.testing.assert_allclose(inference.holm([.01, .04, .03, .005]), [.03, .06, .06, .02])
    assert inference.holm([.9, .8]).max() == 1


def test_the_p_of_an_interval_is_below_5_per_cent_just_where_it_leaves_a_number_out():
    rng = np.random.default_rng(3)
    hits = rng.random((1, 400)) < .6
    names = np.arange(400)
    means = bootstrap.group_means(hits, np.zeros(400, int), names,
                                  bootstrap.resample(names, 4000))
    x = bootstrap.interval(means.value[0, 0], means.draws[:, 0, 0], 400, 400)
    assert inference.p_of(x, x.low - .01) < .05 < inference.p_of(x, x.low + .01)
    assert inference.p_of(x, x.value) == 1
    alike = bootstrap.interval(1., np.ones(50), 50, 50)  # nothing varies: no t interval
    assert np.isnan(inference.p_of(alike, .5))


def test_a_small_family_weighs_by_its_share_of_the_variance_and_intervals_cover():
    assert bootstrap.effective([100] * 9) == 100
    assert bootstrap.effective([100] * 9 + [10]) == 29
    assert bootstrap.effective([100, 1]) == 1
    # a family that hardly weighs does not set the number
    assert bootstrap.effective([100, 5], [1, .01]) > 90
    sizes, hits, halves = [100] * 9 + [5], 0, []
    groups = np.repeat([f'g{k}' for k in range(10)], sizes)
    rng, names = np.random.default_rng(8), np.arange(sum(sizes))
    for trial in range(100):
        means = bootstrap.macro(bootstrap.group_means([rng.random(len(names)) < .5], groups, names,
                                                      bootstrap.resample(names, 200, trial)))
        x = bootstrap.interval(
            means.value[0, 0], means.draws[:, 0, 0], means.n[0], means.clusters[0]
        )
        hits += x.low <= .5 <= x.high
        halves.append(x.half)
    assert hits >= 88 and np.mean(halves) < .078   # .084 with the number of the smallest

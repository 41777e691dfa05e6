"""Shares of factors and items by class (analysis reference, R11 and section 5)."""
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from downscale.statistics import bootstrap
from downscale.statistics.shapley import (
    CLASSES,
    attribute,
    class_of,
    interactions,
    log_odds,
    partition,
    shapley,
)

SIDES = ('perception', 'reasoner')
REFERENCE = np.array([[.40, .50], [.52, .66]])   # [perception, reasoner]


def _means(rows, groups, clusters, seed=0, bootstraps=400):
    return bootstrap.group_means(
        rows, groups, clusters, bootstrap.resample(clusters, bootstraps, seed)
    )


def test_two_factors_share_a_drop_as_the_reference_says():
    np.testing.assert_allclose(shapley(REFERENCE, 2), [.14, .12], atol=1e-15)
    assert shapley(REFERENCE, 2).sum() == pytest.approx(.26, abs=1e-15)
    assert interactions(REFERENCE, 2)[0, 1] == pytest.approx(.04, abs=1e-15)


@given(st.integers(2, 5), st.integers(0, 10_000))
def test_shares_are_efficient_symmetric_and_means_over_all_orders(factors, seed):
    values = np.random.default_rng(seed).normal(size=(2,) * factors)
    shares = shapley(values, factors)
    assert shares.sum() == pytest.approx(values[(1,) * factors] - values[(0,) * factors])
    orders, by_hand = list(itertools.permutations(range(factors))), np.zeros(factors)
    for order in orders:
        corner = [0] * factors
        for factor in order:
            before = values[tuple(corner)]
            corner[factor] = 1
            by_hand[factor] += (values[tuple(corner)] - before) / len(orders)
    np.testing.assert_allclose(shares, by_hand, atol=1e-12)
    turned = shapley(np.moveaxis(values, 0, -1), factors)
    np.testing.assert_allclose(turned, np.roll(shares, -1), atol=1e-12)


@given(st.integers(2, 5), st.integers(0, 10_000))
def test_factors_that_only_add_up_have_their_own_effect_and_no_interaction(factors, seed):
    effects = np.random.default_rng(seed).normal(size=factors)
    corners = np.array(list(itertools.product((0, 1), repeat=factors)))
    values = (corners @ effects).reshape((2,) * factors)
    np.testing.assert_allclose(shapley(values, factors), effects, atol=1e-12)
    found = interactions(values, factors)
    assert len(found) == 2 ** factors - factors - 1
    np.testing.assert_allclose(list(found.values()), 0, atol=1e-12)
    values[(1,) * factors] += 1   # what only all together do is shared by all alike
    np.testing.assert_allclose(shapley(values, factors), effects + 1 / factors, atol=1e-12)
    found = interactions(values, factors)
    assert found.pop(tuple(range(factors))) == pytest.approx(1)
    np.testing.assert_allclose(list(found.values()), 0, atol=1e-12)


def test_more_than_five_factors_or_three_levels_are_refused():
    for values, factors in ((np.zeros((2,) * 6), 6), (np.zeros((2, 3)), 2), (np.zeros(2), 1)):
        with pytest.raises(ValueError, match='2 to 5 factors with two levels'):
            shapley(values, factors)


def _answers(rng, pictures=80, questions=3, effects=(.1, .2), joint=.1):
    """Answers at the four corners: the planted accuracies, luck shared by corners and pictures."""
    rates = [.4 + effects[0] * p + effects[1] * r + joint * p * r for p in (0, 1) for r in (0, 1)]
    luck = rng.random((pictures, questions))
    luck = np.where(rng.random((pictures, 1)) < .4, luck[:, :1], luck).ravel()
    own = rng.random((4, len(luck)))
    luck = np.where(rng.random((4, len(luck))) < .6, luck, own)
    return (luck < np.array(rates)[:, None]).astype(float), np.repeat(np.arange(pictures),
                                                                     questions)


def test_intervals_of_shares_and_interaction_cover_what_was_planted():
    truth = {'perception': .15, 'reasoner': .25, 'both': .1, 'total': .4}
    rng, hits, trials = np.random.default_rng(1), dict.fromkeys(truth, 0), 250
    for trial in range(trials):
        answers, clusters = _answers(rng)
        found = attribute(_means(answers, np.full(240, 'a'), clusters, trial), SIDES)['macro']
        parts = {**found.shares, 'both': found.interactions[SIDES], 'total': found.total}
        for name, x in parts.items():
            hits[name] += x.low <= truth[name] <= x.high
    assert all(.90 <= count / trials <= .98 for count in hits.values()), hits


@pytest.mark.parametrize(('joint', 'flagged'), [(.3, (SIDES,)), (-.02, ()), (0., ())])
def test_an_interaction_is_always_given_and_flagged_when_it_is_larger_than_an_interval(
        joint, flagged):
    luck = np.tile((np.arange(100) + .5) / 100, 2)   # evenly spaced: accuracies are exact
    rates = np.array([.3, .4, .5, .6 + joint])
    means = _means(luck < rates[:, None], np.full(200, 'a'), np.arange(200), bootstraps=1000)
    found = attribute(means, SIDES)['a']
    assert found.interactions[SIDES].value == pytest.approx(joint)
    assert found.interactions[SIDES].low < joint < found.interactions[SIDES].high
    assert found.flagged == flagged
    assert sum(x.value for x in found.shares.values()) == pytest.approx(found.total.value)


def test_the_macro_share_is_the_plain_mean_over_families_on_both_scales():
    answers, clusters = _answers(np.random.default_rng(3))
    groups = np.where(np.arange(240) % 3 == 0, 'a', 'b')   # 80 and 160 items
    for scale in ('accuracy', 'log-odds'):
        found = attribute(_means(answers, groups, clusters), SIDES, scale)
        for side in SIDES:
            assert found['macro'].shares[side].value == pytest.approx(np.mean(
                [found[task].shares[side].value for task in 'ab']))


def test_log_odds_are_finite_at_none_and_all_and_tell_ceilings_from_accuracy():
    values = np.array([[0.], [1.], [.5], [.9], [.99]])
    means = bootstrap.Means(groups=('a',), value=values, draws=values[None],
                            n=np.array([1000]), clusters=np.array([50]))
    found = log_odds(means).value[:, 0]
    assert np.isfinite(found).all() and found[2] == 0 and found[0] == -found[1]
    assert found[4] - found[3] > found[3] - found[2] > 0


def test_answers_that_never_vary_have_no_interval_on_the_log_odds_scale():
    clusters = np.arange(40)
    means = _means(np.ones((4, 40)), np.full(40, 'a'), clusters)
    found = attribute(means, SIDES, 'log-odds')['a']
    assert found.total.value == 0 and np.isnan(found.total.low)


right_or_wrong = arrays(float, st.tuples(st.just(2), st.just(2), st.integers(1, 40)),
                        elements=st.sampled_from([0., 1.]))
shares_of_repeats = arrays(float, st.tuples(st.just(2), st.just(2), st.integers(1, 20)),
                           elements=st.sampled_from([0., .25, .5, 1.]))


@given(right_or_wrong)
def test_every_item_has_one_class_and_classes_add_up_to_the_drop_exactly(corners):
    weight, change = partition(corners)
    assert set(np.unique(weight)) <= {0., 1.}
    np.testing.assert_array_equal(weight.sum(axis=0), 1)
    np.testing.assert_array_equal(change.sum(axis=0), corners[1, 1] - corners[0, 0])
    assert change.sum() == corners[1, 1].sum() - corners[0, 0].sum()


@given(right_or_wrong)
def test_classes_follow_the_rules_of_the_reference(corners):
    weight = dict(zip(CLASSES, partition(corners)[0], strict=True))
    (small, small_p), (small_r, large) = corners.astype(bool)   # corners[p, r]
    p_rule, r_rule = large & ~small_p, large & ~small_r
    for name, rule in (('perception loss', p_rule & ~r_rule), ('reasoning loss', r_rule & ~p_rule),
                       ('both', p_rule & r_rule), ('recovered', ~large & small),
                       ('wrong everywhere', ~corners.astype(bool).any(axis=(0, 1))),
                       ('right everywhere', corners.astype(bool).all(axis=(0, 1))),
                       ('lost only when both are small', large & small_p & small_r & ~small)):
        np.testing.assert_array_equal(weight[name], rule, err_msg=name)


@given(shares_of_repeats)
def test_repeats_split_an_item_between_classes_and_still_add_up(corners):
    weight, change = partition(corners)
    np.testing.assert_allclose(weight.sum(axis=0), 1, atol=1e-12)
    np.testing.assert_allclose(change.sum(axis=0), corners[1, 1] - corners[0, 0], atol=1e-12)


def test_all_sixteen_patterns_have_a_known_class():
    found = {class_of(*pattern) for pattern in itertools.product((0, 1), repeat=4)}
    assert found == set(CLASSES)

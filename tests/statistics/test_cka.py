"""Unbiased linear CKA (analysis reference, R13)."""
import numpy as np
import pytest

from downscale.statistics.similarity import _hsic, _kernels, cka, knn_overlap

ITEMS = 256


def _features(seed, width):
    return np.random.default_rng(seed).normal(size=(ITEMS, width))


def test_rotation_scale_and_shift_change_nothing():
    first = _features(1, 64)
    turn = np.linalg.qr(_features(2, 64)[:64])[0]
    assert cka(first, 3 * first @ turn + 5) == pytest.approx(1, abs=1e-9)


def test_independent_features_are_not_alike_however_wide():
    first, second = _features(3, 1024), _features(4, 2048)
    assert cka(first, second) == pytest.approx(0, abs=.02)
    k, m = (x @ x.T for x in (first - first.mean(0), second - second.mean(0)))
    assert np.sum(k * m) / np.linalg.norm(k) / np.linalg.norm(m) > .8   # the biased estimate


def test_a_shared_part_shows_and_the_order_of_sides_does_not_matter():
    shared = _features(5, 32)
    first, second = shared + _features(6, 32), shared + _features(7, 32)
    assert .15 < cka(first, second) < .4    # the share of the variance, squared: 1/4
    assert cka(first, second) == pytest.approx(cka(second, first))


def test_the_estimate_is_unbiased_over_few_items():
    rng = np.random.default_rng(8)
    found = [_hsic(*_kernels(rng.normal(size=(6, 3)), rng.normal(size=(6, 3))))
             for _ in range(4000)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    assert np.min(found) < 0


@pytest.mark.filterwarnings('error')
def test_a_side_that_does_not_vary_gives_nan_and_no_warning():
    assert np.isnan(cka(_features(9, 4), np.full((ITEMS, 3), .1)))
    assert np.isnan(cka(np.zeros((ITEMS, 3)), _features(9, 4)))
    for items in range(4, 40):   # all are equally alike: the own term is rounding of either sign
        assert np.isnan(cka(np.eye(items), _features(11, 4)[:items]))


def test_items_must_be_the_same_and_at_least_four():
    with pytest.raises(ValueError, match='found 3 and 3'):
        cka(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match='found 5 and 6'):
        cka(np.ones((5, 2)), np.ones((6, 2)))


def test_neighbours_are_shared_up_to_rotation_and_by_chance_without_any_relation():
    first = _features(8, 16)
    turn = np.linalg.qr(_features(9, 16)[:16])[0]
    assert knn_overlap(first, 2 * first @ turn + 3) == 1
    chance = 10 / (ITEMS - 1)
    assert knn_overlap(first, _features(10, 512)) == pytest.approx(chance, abs=.02)
    noisy = first + .5 * _features(11, 16)
    assert 5 * chance < knn_overlap(first, noisy) < .9


def test_neighbours_need_more_items_than_are_counted_and_features_that_vary():
    with pytest.raises(ValueError, match='11 or more items on both sides, found 10 and 10'):
        knn_overlap(np.eye(10), np.eye(10))
    assert np.isnan(knn_overlap(np.ones((20, 3)), _features(12, 3)[:20]))

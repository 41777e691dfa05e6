"""Unbiased linear CKA (analysis reference, R13)."""
import numpy as np
import pytest

from downscale.analysis.cka import cka, hsic

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
    found = [hsic(rng.normal(size=(6, 3)), rng.normal(size=(6, 3))) for _ in range(4000)]
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
        hsic(np.ones((5, 2)), np.ones((6, 2)))

"""Weights of few bits lie on their grid, near what they were, and take the bytes that are said."""
import math

import jax
import ml_dtypes
import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from downscale.accounting import parameters, stored_bytes
from downscale.model.init import init_params
from downscale.shrink.quantise import check_group, on_grid, quantise, upper_bfloat16
from downscale.sizes import QWEN2, QWEN3, LanguageConfig


def groups(matrix, group):
    return matrix.reshape(-1, group, matrix.shape[-1])


@pytest.mark.parametrize('bits', [8, 4])
@pytest.mark.parametrize('spread', [1e-30, 1e-3, 1, 1e30])
def test_no_value_moves_by_more_than_half_a_scale_and_none_is_cut_off(bits, spread):
    rng = np.random.default_rng(0)
    matrix = (rng.standard_normal((64, 24)) * spread).astype(np.float32)
    matrix[:16, 3] = 0
    made = on_grid(matrix, bits, 16)
    largest = 2 ** (bits - 1) - 1
    most = np.abs(groups(matrix, 16)).max(1, keepdims=True).astype(np.float64)
    scale = upper_bfloat16((most / largest).astype(np.float32)).astype(np.float64)
    # The scale is one of 16 bits, and at most a step of those above what is needed.
    assert (scale >= most / largest * (1 - 1e-6)).all()
    assert (scale <= most / largest * (1 + 2 ** -7)).all()
    error = np.abs(groups(made.astype(np.float64) - matrix, 16))
    assert (error <= scale / 2 * (1 + 1e-6)).all() and error.max() > 0
    whole = np.divide(groups(made.astype(np.float64), 16), scale, where=scale > 0,
                      out=np.zeros((4, 16, 24)))
    np.testing.assert_allclose(whole, np.rint(whole), atol=1e-4)
    assert np.abs(whole).max() == pytest.approx(largest)
    assert not made[:16, 3].any()


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (8, 2), elements=st.floats(-1e6, 1e6, width=32)), st.sampled_from([8, 4]))
def test_what_is_on_the_grid_stays_there(matrix, bits):
    made = on_grid(matrix, bits, 4)
    again = on_grid(made, bits, 4)
    step = np.abs(groups(made, 4)).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    assert (np.abs(groups(again - made, 4)) <= step / 2 * (1 + 2 ** -6) + 1e-30).all()
    levels = [len(np.unique(column)) for column in np.abs(groups(made, 4)).swapaxes(1, 2).reshape(
        -1, 4)]
    assert max(levels) <= 2 ** (bits - 1)


def test_integers_that_fit_come_back_as_they_are():
    """A group whose largest value is 7 of 4 bits, or 127 of 8, has a scale of 1 and is exact."""
    for bits, largest in ((4, 7), (8, 127)):
        matrix = np.tile(np.arange(-largest, largest + 1, dtype=np.float32), 2)[:, None]
        matrix = np.concatenate([matrix, np.full((2, 1), largest, np.float32)])
        np.testing.assert_array_equal(on_grid(matrix, bits, len(matrix)), matrix)


def test_a_scale_is_the_next_bfloat16_above():
    x = np.float32([0, 1, 1.0001, 3.14159, 1e-20])
    made = upper_bfloat16(x)
    np.testing.assert_array_equal(made, made.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert (made >= x).all() and made[0] == 0 and made[1] == 1
    below = np.nextafter(made[2:].astype(ml_dtypes.bfloat16), ml_dtypes.bfloat16(0))
    assert (below.astype(np.float32) < x[2:]).all()


def test_gains_and_biases_stay_and_every_matrix_is_grouped_along_what_it_reads():
    model = small.model(2).clone(language=LanguageConfig(
        N=2, D=32, H=2, K=1, E=16, F=48, V=40, qk_norm=True, qkv_bias=True, tie=False))
    params = jax.tree.map(np.array, init_params(model, 0, ('language',)))['language']
    made = quantise(params, 4, 16)
    flat = jax.tree_util.tree_leaves_with_path(made)
    changed = set()
    for (path, after), before in zip(flat, jax.tree.leaves(params), strict=True):
        if not np.array_equal(after, before):
            changed.add(str(path[-1].key))
    assert changed == {'q_DHE', 'k_DKE', 'v_DKE', 'o_HED', 'gate_DF', 'up_DF', 'down_FD',
                       'embedding_VD', 'head_DV'}
    # A large value makes the scale of its group large, and of no other: that is where groups lie.
    for name, place, same in (
            ('q_DHE', (0, 3, 1, 2), (0, slice(0, 16), 1, 2)),
            ('o_HED', (1, 1, 3, 5), (1, 1, slice(0, 16), 5)),
            ('embedding_VD', (7, 20), (7, slice(16, 32)))):
        other = jax.tree.map(np.array, params)
        holder = other if name == 'embedding_VD' else other['blocks']['attention']
        holder[name][place] = 1e3
        holder = quantise(other, 4, 16)
        holder = holder if name == 'embedding_VD' else holder['blocks']['attention']
        plain = made if name == 'embedding_VD' else made['blocks']['attention']
        moved = np.argwhere(holder[name] != plain[name])
        mask = np.zeros(holder[name].shape, bool)
        mask[same] = True
        assert len(moved) > 4 and mask[tuple(moved.T)].all()


def test_bytes_by_hand():
    tiny = LanguageConfig(N=1, D=4, H=2, K=1, E=2, F=6, V=10)
    # q 16, k 8, v 8, o 16, gate, up and down 24 each, embedding 40; three gains of 4.
    matrices, gains = 16 + 8 + 8 + 16 + 3 * 24 + 40, 12
    assert sum(parameters(tiny).values()) == matrices + gains
    assert stored_bytes(tiny) == 2 * (matrices + gains)
    assert stored_bytes(tiny, 8, 2) == matrices + 2 * matrices // 2 + 2 * gains
    assert stored_bytes(tiny, 4, 2) == matrices // 2 + 2 * matrices // 2 + 2 * gains


@pytest.mark.parametrize('language', [*QWEN3.values(), *QWEN2.values()])
def test_bytes_count_the_leaves_that_are_quantised(language):
    """From the tree of the model itself: every matrix by its inputs, everything else as floats."""
    shapes = jax.eval_shape(lambda: small.model().clone(language=language).init(
        jax.random.key(0), *[np.zeros((1, 2), np.int32)] * 3))['params']['language']
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = str(path[-1].key)
        count = math.prod(leaf.shape)
        plain = name.partition('_')[0] in ('q', 'k') and 'scale' in name or 'bias' in name \
            or name == 'scale_D'
        total += 2 * count if plain else count // 2 + 2 * count // 64
    assert stored_bytes(language, 4, 64) == total
    check_group(language, 4, 64)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_refused(value):
    matrix = np.ones((4, 1), np.float32)
    matrix[2] = value
    with pytest.raises(ValueError, match='no finite number'):
        on_grid(matrix, 8, 4)

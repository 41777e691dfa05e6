"""What the decoder, the tower and the splice must hold, whatever the values of the parameters."""
from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from downscale.generate import forward
from downscale.model.cache import attend_blocks, cut, edges, empty_cache, flattened, ladder
from downscale.model.init import abstract_params, init_params
from downscale.model.layers import attend, rotary, rotate
from downscale.model.vlm import Vlm, splice
from downscale.sizes import MICRO, QWEN3, LanguageConfig, VisionConfig, scale

SMALL = LanguageConfig(N=2, D=32, H=4, K=2, E=8, F=48, V=64, theta=1e4)
TOWER = VisionConfig(layers=2, W=16, H=2, F=32, patch=2, image=4)
MODEL = Vlm(SMALL, TOWER)
B, L, TILES = 3, 12, 2
PATCHES = TOWER.P
NEWLINE = PATCHES * TILES
POSITIONS_BL = np.tile(np.arange(L, dtype=np.int32), (B, 1))
ONES_BL = np.ones((B, L), np.int32)
TOKENS_BL = np.random.default_rng(0).integers(0, SMALL.V, (B, L), dtype=np.int32)
CLOSE = {'rtol': 1e-4, 'atol': 1e-5}  # float32, two layers, logits of size 1


@lru_cache
def program(model):
    """`model.apply` under jit, compiled once per model and shape."""
    def apply(params, tokens_BL, positions_BL, segments_BL, tiles=None, index_BLC=None,
              weight_BLC=None):
        return model.apply({'params': params}, tokens_BL, positions_BL, segments_BL, tiles,
                           index_BLC, weight_BLC)
    return jax.jit(apply)


@pytest.fixture(scope='module')
def params():
    return init_params(MODEL, 0)


def text(params, tokens_BL, segments_BL=ONES_BL, positions_BL=POSITIONS_BL, model=MODEL):
    """Logits without images."""
    return np.asarray(program(model)({'language': params['language']}, tokens_BL, positions_BL,
                                     segments_BL))


def changed(tokens_BL, *places):
    """`tokens_BL` with another token at each (row, position)."""
    tokens_BL = tokens_BL.copy()
    for place in places:
        tokens_BL[place] = (tokens_BL[place] + 1) % SMALL.V
    return tokens_BL


def test_a_token_cannot_see_the_future(params):
    before = text(params, TOKENS_BL)
    after = text(params, changed(TOKENS_BL, (0, 5)))
    np.testing.assert_array_equal(before[0, :5], after[0, :5])
    np.testing.assert_array_equal(before[1:], after[1:])
    assert np.all(np.any(before[0, 5:] != after[0, 5:], axis=-1))


def test_segments_do_not_see_each_other_nor_padding(params):
    segments_BL = ONES_BL.copy()
    segments_BL[:, 5:10], segments_BL[:, 10:] = 2, 0
    before = text(params, TOKENS_BL, segments_BL)
    after = text(params, changed(TOKENS_BL, (0, 2), (1, 7), (2, 11)), segments_BL)
    np.testing.assert_array_equal(before[0, 5:10], after[0, 5:10])
    assert np.all(np.any(before[0, 2:5] != after[0, 2:5], axis=-1))
    np.testing.assert_array_equal(before[1, :5], after[1, :5])
    np.testing.assert_array_equal(before[2, :10], after[2, :10])
    # A packed segment is what it is alone at the start of a row.
    alone = np.roll(TOKENS_BL, -5, axis=1)
    positions_BL = np.tile(np.r_[0:5, 0:5, 0:2].astype(np.int32), (B, 1))
    packed = text(params, TOKENS_BL, segments_BL, positions_BL)
    np.testing.assert_allclose(packed[:, 5:10], text(params, alone)[:, :5], **CLOSE)


def test_cached_decoding_with_ragged_rows_equals_the_full_forward(params):
    """Across the end of a block, of which each row crosses it at another step."""
    full, lengths_B = text(params, TOKENS_BL), np.array([3, 7, 5], np.int32)
    rows, ends = np.arange(B), (6, 9, L)
    layers = jax.device_put(forward.unstack({'language': params['language']}, 'float32'))

    @jax.jit
    def read(tokens_BL):
        x_BLD = forward.embed(MODEL, layers, tokens_BL)
        x_BLD, kept = forward.read(MODEL, layers, x_BLD, ends)
        k, v = ([tuple(layer[part][j] for layer in kept) for j in range(3)] for part in (0, 1))
        return forward.logits(MODEL, layers, x_BLD), k, v

    # Right padding: what a short row writes beyond its end must never be read.
    logits, k, v = read(np.where(POSITIONS_BL[:, :7] < lengths_B[:, None], TOKENS_BL[:, :7], 63))
    assert logits.shape == (B, 7, SMALL.V)
    np.testing.assert_allclose(np.asarray(logits)[rows, lengths_B - 1], full[rows, lengths_B - 1],
                               **CLOSE)
    step = jax.jit(lambda *args: forward.step(MODEL, layers, *args))
    for at_B in (lengths_B + n for n in range(5)):
        logits, k, v = step(TOKENS_BL[rows, at_B], at_B, k, v)
        np.testing.assert_allclose(logits, full[rows, at_B], **CLOSE)


def test_a_flat_cache_is_filled_like_one_in_blocks_whatever_stands_before(params):
    """On a TPU queries attend for some after the others, here in two parts, over all keys at once.
    """
    length = 2 * forward.QUERIES
    layers = jax.device_put(forward.unstack({'language': params['language']}, 'float32'))
    draw = np.random.default_rng(2)
    tokens_BL = draw.integers(0, SMALL.V, (2, length), dtype=np.int32)
    draws = draw.standard_normal((SMALL.N, 2, 2, SMALL.K, 8, SMALL.E)).astype(np.float32)
    # Per layer (k blocks, v blocks) of a prefix of eight positions, of which few count.
    prefix = [([k.swapaxes(2, 3)], [v]) for k, v in draws]

    def read(model, before_B=None):
        x_BLD = forward.embed(model, layers, tokens_BL)
        return jax.jit(lambda x_BLD: forward.read(
            model, layers, x_BLD, (length, length + 8), prefix if before_B is not None else None,
            before_B))(x_BLD)

    for before_B in (None, np.array([0, 5], np.int32)):
        x_BLD, blocks = read(MODEL, before_B)
        flat_x_BLD, flat_blocks = read(MODEL.clone(attention='splash'), before_B)
        np.testing.assert_allclose(flat_x_BLD, x_BLD, **CLOSE)
        for (k, v), (flat_k, flat_v) in zip(blocks, flat_blocks, strict=True):
            for at, size in enumerate((length, 8)):
                assert flat_k[at].shape == (2, size, SMALL.K * SMALL.E)
                expected_k, expected_v = flattened(k[at], v[at])
                np.testing.assert_allclose(flat_k[at], expected_k, **CLOSE)
                np.testing.assert_allclose(flat_v[at], expected_v, **CLOSE)


def test_a_block_that_nothing_has_reached_changes_no_bit(params):
    """Else a reply would depend on how much cache others need."""
    draw = np.random.default_rng(5)
    q_BLHE, k_BKES, v_BKSE = (draw.standard_normal(shape).astype(np.float32) for shape in
                              ((2, 1, 6, 4), (2, 3, 4, 12), (2, 3, 12, 4)))
    positions_BL = np.array([[3], [7]])

    def mixed(ends):
        return np.asarray(attend_blocks(q_BLHE, *cut(k_BKES, v_BKSE, ends), positions_BL))
    np.testing.assert_array_equal(mixed((8,)), mixed((8, 12)))
    assert np.abs(mixed((8,)) - mixed((4,)))[1].min() > 1e-3  # the second row looks beyond 4


def test_the_ladder_holds_what_is_asked_and_blocks_end_on_it():
    assert [ladder(n) for n in (1, 16, 17, 64, 65, 129, 193, 257, 385, 513)] == [
        16, 16, 32, 64, 96, 192, 256, 384, 512, 768]
    for n in range(1, 3000, 7):
        assert n <= ladder(n) <= max(16, 2 * n) and (n <= 64 or ladder(n) < 1.51 * n)
        assert edges(n)[-1] == max(64, ladder(n)) and edges(n)[:-1] == tuple(
            end for end in edges(3000) if end < edges(n)[-1])
    k, v = empty_cache(SMALL, 2, edges(100))
    assert [leaf[1].shape for leaf in k] == [(2, 2, 8, 32)] * 4
    assert [leaf[1].shape for leaf in v] == [(2, 2, 32, 8)] * 4


@pytest.fixture(scope='module')
def pictures():
    """(tiles, index): row 0 is text, row 1 has one image and a newline, row 2 has two images."""
    index_BLC = np.full((B, L, 1), -1, np.int32)
    index_BLC[1, 1:1 + PATCHES, 0], index_BLC[1, 1 + PATCHES] = np.arange(PATCHES), NEWLINE
    index_BLC[2, 2:2 + 2 * PATCHES, 0] = np.arange(2 * PATCHES)
    tiles = np.random.default_rng(1).uniform(-1, 1, (B, TILES, PATCHES, TOWER.Q))
    tiles[0], tiles[1, 1] = 0, 0
    return tiles.astype(np.float32), index_BLC


def seen(params, tiles, index_BLC, tokens_BL=TOKENS_BL, rows=slice(None)):
    """Logits with images, of all rows in one batch or of some."""
    return np.asarray(program(MODEL)(params, tokens_BL[rows], POSITIONS_BL[rows], ONES_BL[rows],
                                     tiles[rows], index_BLC[rows]))


def test_rows_with_and_without_images_equal_themselves_alone(params, pictures):
    together = seen(params, *pictures)
    for row in range(B):
        alone = seen(params, *pictures, rows=slice(row, row + 1))
        np.testing.assert_allclose(together[row], alone[0], **CLOSE)
    words = text(params, TOKENS_BL)
    np.testing.assert_allclose(together[0], words[0], **CLOSE)
    assert np.abs(together[1:, 2:] - words[1:, 2:]).max() > 0.1


def test_unused_tiles_cannot_influence_and_used_ones_do(params, pictures):
    tiles, index_BLC = pictures
    before, tiles = seen(params, tiles, index_BLC), tiles.copy()
    tiles[0], tiles[1, 1] = np.nan, 1e3
    np.testing.assert_array_equal(before, seen(params, tiles, index_BLC))
    tiles[2, 1, 2] += 1
    after = seen(params, tiles, index_BLC)
    np.testing.assert_array_equal(before[:2], after[:2])
    # The tower lets every patch of a tile see every other, so the tile's first token differs.
    np.testing.assert_array_equal(before[2, :2 + PATCHES], after[2, :2 + PATCHES])
    assert np.all(np.any(before[2, 2 + PATCHES:] != after[2, 2 + PATCHES:], axis=-1))


def test_image_tokens_replace_the_embedding_of_their_place(params, pictures):
    before = seen(params, *pictures)
    after = seen(params, *pictures, changed(TOKENS_BL, (1, 1), (1, 1 + PATCHES), (2, 9)))
    np.testing.assert_array_equal(before, after)


def test_the_newline_stands_where_the_index_is_beyond_the_last_patch(params, pictures):
    tiles, index_BLC = pictures
    before, at, token = seen(params, tiles, index_BLC), 1 + PATCHES, 17
    embedding_VD = params['language']['embedding_VD']
    as_word = seen({**params, 'image_newline_D': embedding_VD[token]}, tiles, index_BLC)
    np.testing.assert_array_equal(before[[0, 2]], as_word[[0, 2]])
    np.testing.assert_array_equal(before[1, :at], as_word[1, :at])
    assert np.all(np.any(before[1, at:] != as_word[1, at:], axis=-1))
    tokens_BL, index_BLC = TOKENS_BL.copy(), index_BLC.copy()
    tokens_BL[1, at], index_BLC[1, at] = token, -1
    np.testing.assert_array_equal(as_word, seen(params, tiles, index_BLC, tokens_BL))


@pytest.fixture(scope='module')
def mixes():
    """(features, index, weights) of tokens that mix four features each."""
    draw = np.random.default_rng(3)
    weights = draw.uniform(0, 1, (2, 5, 4)).astype(np.float32)
    return (draw.standard_normal((2, 9, 6)).astype(np.float32),
            draw.integers(0, 9, (2, 5, 4), dtype=np.int32), weights)


def test_a_token_of_several_corners_is_the_weighted_sum_of_their_features(mixes):
    features_BLD, index_BLC, weight_BLC = mixes
    found = np.asarray(splice(features_BLD, index_BLC, weight_BLC))
    for b in range(2):
        for place in range(5):
            wanted = sum(weight_BLC[b, place, c] * features_BLD[b, index_BLC[b, place, c]]
                         for c in range(4))
            np.testing.assert_allclose(found[b, place], wanted, rtol=1e-5, atol=1e-6)


def test_the_sum_over_corners_is_rounded_once(mixes):
    features_BLD, index_BLC, weight_BLC = mixes
    features_BLD = jnp.asarray(features_BLD, jnp.bfloat16)
    found = splice(features_BLD, index_BLC, weight_BLC)
    exact = splice(features_BLD.astype(jnp.float32), index_BLC, weight_BLC)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_one_corner_with_all_the_weight_is_the_feature_itself(params, pictures):
    """The shape of a batch of tiled pictures gives whole features bit for bit."""
    tiles, index_BLC = pictures
    four_BLC = np.where(np.arange(4) == 0, index_BLC, np.maximum(index_BLC, 0))
    first_BLC = np.broadcast_to(np.float32([1, 0, 0, 0]), (B, L, 4))
    found = program(MODEL)(params, TOKENS_BL, POSITIONS_BL, ONES_BL, tiles, four_BLC, first_BLC)
    np.testing.assert_array_equal(seen(params, tiles, index_BLC), found)
    swapped = program(MODEL)(params, TOKENS_BL, POSITIONS_BL, ONES_BL, tiles, four_BLC,
                             0.5 * first_BLC)
    assert np.abs(np.asarray(swapped)[1:] - found[1:]).max() > 0.01
    np.testing.assert_array_equal(swapped[0], found[0])


def test_corners_without_weights_are_refused(mixes):
    with pytest.raises(ValueError, match='mixes 4 features, but there is no image_weight'):
        splice(*mixes[:2])


def test_remat_and_unrolling_leave_the_gradients_alone(params, pictures):
    def grads(model):
        def loss(params):
            logits_BLV = model.apply({'params': params}, TOKENS_BL, POSITIONS_BL, ONES_BL,
                                        *pictures)
            return jnp.mean(jax.nn.log_softmax(logits_BLV)[:, :, 3])
        # Compiling is most of this test, so LLVM is asked not to optimise.
        return jax.jit(jax.grad(loss), compiler_options={
            'xla_backend_optimization_level': 0})(params)

    plain = grads(MODEL)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain))
    for other in (replace(MODEL, remat='full'), replace(MODEL, unroll=2)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
                     plain, grads(other))


def test_grouped_heads_equal_explicit_repetition():
    draw = np.random.default_rng(2)
    q_BLHE, k_BSKE, v_BSKE = (draw.standard_normal((2, 5, heads, 4)).astype(np.float32)
                              for heads in (6, 2, 2))
    mask_BLS = np.tril(np.ones((2, 5, 5), bool))
    expected = np.zeros((2, 5, 6, 4), np.float32)
    for b, i, h in np.ndindex(2, 5, 6):
        keys, values = k_BSKE[b, :i + 1, h // 3], v_BSKE[b, :i + 1, h // 3]
        weights = np.exp(keys @ q_BLHE[b, i, h] / 2)
        expected[b, i, h] = weights @ values / weights.sum()
    np.testing.assert_allclose(attend(q_BLHE, k_BSKE, v_BSKE, mask_BLS), expected, **CLOSE)
    blind = attend(q_BLHE, k_BSKE, v_BSKE, np.zeros_like(mask_BLS))
    np.testing.assert_allclose(blind[0, 0, 0], v_BSKE[0, :, 0].mean(0), **CLOSE)


@pytest.mark.parametrize('mask_shape', [(2, 5, 7), (1, 1, 7)], ids=['own', 'shared'])
def test_the_gradient_of_attention_is_that_of_its_formula(mask_shape):
    draw = np.random.default_rng(4)
    q_BLHE, k_BSKE, v_BSKE, pull_BLHE = (draw.standard_normal((2, length, heads, 4), np.float32)
                                         for length, heads in ((5, 6), (7, 2), (7, 2), (5, 6)))
    mask_BLS = draw.random(mask_shape) < 0.6
    mask_BLS[:, 0] &= mask_shape[1] == 1  # a query that sees nothing moves nothing but the values

    def formula(q_BLHE, k_BSKE, v_BSKE, mask_BLS):
        k_BSHE, v_BSHE = (jnp.repeat(x, 3, axis=2) for x in (k_BSKE, v_BSKE))
        scores_BHLS = jnp.einsum('BLHE,BSHE->BHLS', q_BLHE, k_BSHE) / 2
        weights_BHLS = jax.nn.softmax(jnp.where(mask_BLS[:, None], scores_BHLS, -1e30))
        return jnp.einsum('BHLS,BSHE->BLHE', weights_BHLS, v_BSHE)

    def grads(function):
        return jax.grad(lambda *qkv: (function(*qkv, mask_BLS) * pull_BLHE).sum(), (0, 1, 2))(
            q_BLHE, k_BSKE, v_BSKE)
    for ours, theirs in zip(grads(attend), grads(formula), strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_rotary_products_depend_on_the_distance_alone():
    draw = np.random.default_rng(3)
    query, key = (draw.standard_normal((1, 1, 1, 8)).astype(np.float32) for _ in range(2))

    def turned(x, position):
        return np.asarray(rotate(x, *rotary(np.array([[position]]), 8, 1e4)))

    def product(i, j):
        return float((turned(query, i) * turned(key, j)).sum())
    np.testing.assert_array_equal(turned(query, 0), query)
    np.testing.assert_allclose(np.linalg.norm(turned(query, 9)), np.linalg.norm(query), rtol=1e-6)
    for i, j in ((3, 1), (20, 11), (7, 7)):
        assert product(i, j) == pytest.approx(product(i + 30, j + 30), abs=1e-4)
    assert abs(product(3, 1) - product(3, 2)) > 1e-2
    assert abs(product(3, 1) - product(1, 3)) > 1e-2


def names(tree):
    return {jax.tree_util.keystr(path): leaf.shape
            for path, leaf in jax.tree.leaves_with_path(tree)}


VARIANTS = {'tie': ({'tie': False}, {'head_DV'}),
            'qk_norm': ({'qk_norm': True}, {'q_scale_E', 'k_scale_E'}),
            'qkv_bias': ({'qkv_bias': True}, {'q_bias_HE', 'k_bias_KE', 'v_bias_KE'}),
            'free head width': ({'E': 12}, {'q_DHE', 'k_DKE', 'v_DKE', 'o_HED'})}


@pytest.mark.parametrize(('change', 'leaves'), VARIANTS.values(), ids=VARIANTS.keys())
def test_every_switch_of_the_decoder_runs_and_changes_the_output(change, leaves, params):
    other = Vlm(replace(SMALL, **change), TOWER)
    tree = init_params(other, 0, ('language',))
    differ = set(names(tree).items()) ^ set(names({'language': params['language']}).items())
    assert {path.rpartition("['")[2].rstrip("']") for path, _ in differ} == leaves

    # Biases start at 0: each new leaf must matter once it moves.
    before = text(tree, TOKENS_BL, model=other)
    assert np.isfinite(before).all()
    if 'bias' not in ''.join(leaves):
        assert np.abs(before - text(params, TOKENS_BL)).max() > 1e-3
    draw = np.random.default_rng(4)
    for leaf in leaves:
        moved = jax.tree_util.tree_map_with_path(
            lambda path, x: x + draw.standard_normal(x.shape, np.float32)
            if path[-1].key == leaf else x, tree)
        assert np.abs(before - text(moved, TOKENS_BL, model=other)).max() > 1e-3, leaf


def test_impossible_heads_raise_with_the_arithmetic():
    with pytest.raises(ValueError, match=r'6 query heads .*\(6 % 4 = 2\)'):
        replace(SMALL, H=6, K=4)
    with pytest.raises(ValueError, match='head width 7 is odd'):
        replace(SMALL, E=7)
    with pytest.raises(ValueError, match=r'10 is not divisible by 3 heads \(10 % 3 = 1\)'):
        replace(TOWER, W=10, H=3)
    with pytest.raises(ValueError, match=r'H \(query heads\) = 16 \* 1000 / 1024 = 15.625 .*'
                                         'nearest width is 1024'):
        scale(QWEN3['0.6b'], 1000)
    with pytest.raises(ValueError, match='at least 1'):
        scale(QWEN3['0.6b'], depth=0)
    half = scale(QWEN3['0.6b'], 512, 3)
    assert (half.H, half.K, half.E, half.F, half.N) == (8, 4, 128, 1536, 3)


def test_the_start_of_a_group_depends_on_nothing_else(params):
    for part in params:
        if part != 'image_newline_D':
            jax.tree.map(np.testing.assert_array_equal, params[part],
                         init_params(MODEL, 0, (part,))[part])
    np.testing.assert_array_equal(params['tower']['position_PW'], init_params(
        Vlm(MICRO['w32d2'], TOWER), 0)['tower']['position_PW'])
    assert names(abstract_params(MODEL)) == names(params)
    other = init_params(MODEL, 1)['language']['blocks']['mlp']
    mlp = params['language']['blocks']['mlp']
    assert np.any(mlp['gate_DF'] != other['gate_DF']) and np.any(mlp['gate_DF'] != mlp['up_DF'])


# The inputs that one output of a kernel sums over; an embedding row has length 1 on average.
FAN_IN = {'DHE': 'D', 'DKE': 'D', 'HED': 'HE', 'DF': 'D', 'FD': 'F', 'DV': 'D', 'VD': 'D',
          'QW': 'Q', 'WHE': 'W', 'HEW': 'HE', 'WF': 'W', 'FW': 'F', 'WD': 'W', 'DD': 'D'}


def test_gains_start_at_one_biases_at_zero_and_kernels_at_their_fan_in():
    language = replace(SMALL, tie=False, qk_norm=True, qkv_bias=True, H=8)
    for group in ('language', 'tower', 'connector'):
        config = TOWER if group == 'tower' else language
        sizes = {**vars(language), 'W': TOWER.W, **vars(config), 'Q': TOWER.Q, 'E': config.E}
        tree = init_params(Vlm(language, TOWER), 0, (group,))
        for path, leaf in jax.tree.leaves_with_path(tree):
            stem, _, axes = path[-1].key.rpartition('_')
            if stem.endswith(('scale', 'bias')):
                np.testing.assert_array_equal(leaf, float(stem.endswith('scale')))
                continue
            expected = 0.02 if stem == 'position' else np.prod(
                [sizes[letter] for letter in FAN_IN[axes]]) ** -0.5
            # Five standard errors of a standard deviation and of a mean.
            assert abs(leaf.std() / expected - 1) < 5 / (2 * leaf.size) ** 0.5, path
            assert abs(leaf.mean()) < 5 * expected / leaf.size ** 0.5, path

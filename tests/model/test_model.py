"""What the model family promises whatever its values are."""
import jax
import numpy as np
import pytest

from downscale.generate import forward
from downscale.model.cache import edges
from downscale.model.init import init_params
from downscale.model.vision import Tower, scaled
from downscale.model.vlm import Vlm
from downscale.sizes import MICRO, LanguageConfig, VisionConfig, scale

VISION = VisionConfig(layers=1, W=16, H=2, F=24, patch=2, image=4)
MODEL = Vlm(scale(MICRO['w64d2'], 32, vocabulary=64), VISION)
PARAMS = jax.device_put(init_params(MODEL, 0))
apply = jax.jit(lambda *args, **named: MODEL.apply({'params': PARAMS}, *args, **named))
L = 12


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 64, (3, L)).astype(np.int32)
    positions = np.tile(np.arange(L, dtype=np.int32), (3, 1))
    tiles = rng.uniform(-1, 1, (3, 2, VISION.P, VISION.Q)).astype(np.float32)
    index = np.full((3, L, 1), -1, np.int32)
    index[1, 1:5, 0] = np.arange(4)  # one picture
    index[2, 1:9, 0], index[2, 9] = np.arange(8), 8  # two pictures and a newline
    return tokens, positions, np.ones((3, L), np.int32), tiles, index


def test_a_tower_sees_bytes_as_their_values_between_minus_one_and_one():
    pixels = np.random.default_rng(0).integers(0, 256, (2, VISION.P, VISION.Q), np.uint8)
    assert scaled(np.array([0, 255], np.uint8)).tolist() == [-1, 1]
    features, again = (Tower(VISION).apply({'params': PARAMS['tower']}, x)
                       for x in (pixels, pixels.astype(np.float32) / 127.5 - 1))
    np.testing.assert_allclose(features, again, atol=1e-6)


def test_a_token_cannot_see_the_future(batch):
    tokens, positions, segments, tiles, index = batch
    changed = tokens.copy()
    changed[0, 7] += 1
    before, after = (np.asarray(apply(t, positions, segments, tiles, index))
                     for t in (tokens, changed % 64))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.any(before[0, 7:] != after[0, 7:])


def test_segments_do_not_see_each_other(batch):
    tokens, positions, segments, tiles, index = batch
    segments[:, 6:] = 2
    changed = tokens.copy()
    changed[0, 2] = (changed[0, 2] + 1) % 64
    before, after = (np.asarray(apply(t, positions, segments, tiles, index))
                     for t in (tokens, changed))
    np.testing.assert_array_equal(before[0, 6:], after[0, 6:])
    assert np.any(before[0, 2:6] != after[0, 2:6])


def test_a_tile_that_nothing_points_to_cannot_be_seen_and_one_that_is_can(batch):
    tokens, positions, segments, tiles, index = batch
    changed = tiles.copy()
    changed[1, 1] += 1
    changed[2, 1] += 1
    before, after = (np.asarray(apply(tokens, positions, segments, t, index))
                     for t in (tiles, changed))
    np.testing.assert_array_equal(before[:2], after[:2])
    assert np.any(before[2] != after[2])


def test_rows_of_one_batch_answer_as_they_do_with_other_rows(batch):
    together = np.asarray(apply(*batch))
    swapped = np.asarray(apply(*(x[::-1] for x in batch)))[::-1]
    np.testing.assert_allclose(together, swapped, rtol=1e-5, atol=1e-5)


def test_decoding_with_a_cache_equals_the_whole_pass_for_ragged_rows(batch):
    tokens, positions, segments, tiles, index = batch
    whole = np.asarray(apply(tokens, positions, segments, tiles, index))
    params = jax.device_put(forward.unstack(PARAMS, 'float32'))
    lengths, ends = np.array([5, 7, 10]), edges(L)

    @jax.jit
    def read(tokens):
        features = jax.vmap(lambda tile: forward.see(MODEL, params, tile), 1, 1)(tiles)
        x = forward.embed(MODEL, params, tokens)
        x = forward.show(MODEL, params, x, features.reshape(3, -1, x.shape[2]), index, None)
        x, kept = forward.read(MODEL, params, x, ends)
        k, v = ([tuple(layer[part][0] for layer in kept)] for part in (0, 1))
        return forward.logits(MODEL, params, x), k, v

    filled, k, v = read(np.where(positions < lengths[:, None], tokens, 0))
    rows = np.arange(3)
    np.testing.assert_allclose(np.asarray(filled)[rows, lengths - 1], whole[rows, lengths - 1],
                               rtol=1e-4, atol=1e-4)
    step, _, _ = jax.jit(lambda *args: forward.step(MODEL, params, *args))(
        tokens[rows, lengths], lengths, k, v)
    np.testing.assert_allclose(step, whole[rows, lengths], rtol=1e-4, atol=1e-4)


def test_a_group_starts_from_the_same_values_whatever_is_made_beside_it():
    alone = init_params(MODEL, 0, ('language',))['language']
    jax.tree.map(np.testing.assert_array_equal, alone, PARAMS['language'])


def test_impossible_head_counts_show_the_arithmetic():
    with pytest.raises(ValueError, match=r'6 % 4 = 2'):
        LanguageConfig(N=1, D=32, H=6, K=4, E=8, F=64, V=64)
    with pytest.raises(ValueError, match='nearest width is'):
        scale(MICRO['w64d2'], 40)

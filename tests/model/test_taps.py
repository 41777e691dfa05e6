"""What taps read of a pass, and that looking changes nothing."""
from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from downscale.generate import forward
from downscale.model.init import init_params
from downscale.model.language import Block, causal_mask
from downscale.model.layers import attend, rotary
from downscale.model.taps import SITES, Taps
from downscale.model.vlm import Vlm
from downscale.sizes import LanguageConfig, VisionConfig

CFG = LanguageConfig(N=3, D=32, H=4, K=2, E=8, F=48, V=64, theta=1e4)
TOWER = VisionConfig(layers=1, W=16, H=2, F=32, patch=2, image=4)
MODEL = Vlm(CFG, TOWER)
B, L, TILES, P = 2, 12, 2, TOWER.P
ANSWER_B = np.array([11, 9])
CLOSE = {'rtol': 1e-5, 'atol': 1e-5}


@pytest.fixture(scope='module')
def params():
    return init_params(MODEL, 0)


@pytest.fixture(scope='module')
def batch():
    """(tokens, positions, segments, tiles, index): row 0 shows one tile and the newline, row 1 two
    tiles without the first patch."""
    draw = np.random.default_rng(0)
    index_BLC = np.full((B, L, 1), -1, np.int32)
    index_BLC[0, 1:1 + P, 0], index_BLC[0, 1 + P] = np.arange(P), P * TILES
    index_BLC[1, 1:2 * P, 0] = np.arange(1, 2 * P)
    tiles = draw.uniform(-1, 1, (B, TILES, P, TOWER.Q)).astype(np.float32)
    positions_BL = np.tile(np.arange(L, dtype=np.int32), (B, 1))
    return (draw.integers(0, CFG.V, (B, L), dtype=np.int32), positions_BL,
            np.ones((B, L), np.int32), tiles, index_BLC)


@lru_cache
def program(model, tapped=True):
    def apply(params, batch, cut_N):
        taps = Taps(answer_B=jnp.asarray(ANSWER_B), cut_N=cut_N) if tapped else None
        return model.apply({'params': params}, *batch, taps=taps)
    return small.quick(apply)


def tapped(params, batch, cut=(False,) * CFG.N, model=MODEL):
    return jax.tree.map(np.asarray, program(model)(params, batch, np.array(cut)))


def test_a_pass_with_taps_has_the_very_logits_of_one_without(params, batch):
    plain = program(MODEL, tapped=False)(params, batch, np.zeros(CFG.N, bool))
    np.testing.assert_array_equal(tapped(params, batch)[0], plain)


def test_what_is_read_has_a_name_a_layer_and_no_tokens(params, batch):
    seen = tapped(params, batch)[1]
    assert set(seen) == set(SITES) and all(x.dtype == np.float32 for x in seen.values())
    assert seen['vision'].shape == (B, TOWER.W) and seen['connector'].shape == (B, CFG.D)
    assert seen['image'].shape == seen['answer'].shape == (CFG.N + 1, B, CFG.D)


def test_scanned_layers_and_unrolled_rematerialised_ones_are_read_alike(params, batch):
    other = replace(MODEL, unroll=CFG.N, remat='full')
    one, other = tapped(params, batch), tapped(params, batch, model=other)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **CLOSE), one, other)


def test_taps_hold_what_layers_applied_one_by_one_compute(params, batch):
    tokens_BL, positions_BL, segments_BL, tiles, index_BLC = batch
    shown = index_BLC[:, :, 0] >= 0
    mask_BLS = causal_mask(segments_BL)

    def one_by_one(params):
        features_BJD = forward.see(MODEL, params, tiles.reshape(B * TILES, P, -1))
        features_BJD = features_BJD.reshape(B, TILES * P, CFG.D)
        states = [forward.show(MODEL, params, forward.embed(MODEL, params, tokens_BL),
                               features_BJD, index_BLC, None)]
        for layer in forward.unstack(params, 'float32')['language']['blocks']:
            states.append(Block(CFG, MODEL.rules).apply(
                {'params': layer}, states[-1], rotary(positions_BL, CFG.E, CFG.theta),
                lambda q, k, v: (attend(q, k, v, mask_BLS), None))[0])
        return features_BJD, states

    features_BJD, states = jax.tree.map(np.asarray, small.quick(one_by_one)(params))
    seen = tapped(params, batch)[1]
    for n, state in enumerate(states):
        for b in range(B):
            np.testing.assert_allclose(seen['image'][n, b], state[b, shown[b]].mean(0), **CLOSE)
            np.testing.assert_allclose(seen['answer'][n, b], state[b, ANSWER_B[b]], **CLOSE)
    np.testing.assert_allclose(seen['connector'][0], features_BJD[0, :P].mean(0), **CLOSE)
    np.testing.assert_allclose(seen['connector'][1], features_BJD[1, 1:].mean(0), **CLOSE)


def test_text_that_is_cut_off_everywhere_cannot_tell_pictures_apart(params, batch):
    *words, tiles, index_BLC = batch
    other = (*words, tiles[::-1].copy(), index_BLC)
    text = index_BLC[:, :, 0] < 0
    open_, closed = ([tapped(params, one, (cut,) * CFG.N)[0][text] for one in (batch, other)]
                     for cut in (False, True))
    np.testing.assert_array_equal(*closed)
    assert np.abs(open_[0] - open_[1]).max() > 1e-3 and np.abs(open_[0] - closed[0]).max() > 1e-3


def test_a_cut_changes_nothing_below_it_and_no_image_token(params, batch):
    whole, cut = (tapped(params, batch, cut)[1] for cut in ((False,) * 3, (False, True, False)))
    np.testing.assert_array_equal(whole['image'], cut['image'])
    np.testing.assert_array_equal(whole['answer'][:2], cut['answer'][:2])
    assert np.all(np.any(whole['answer'][2:] != cut['answer'][2:], axis=-1))


def test_taps_without_pictures_are_refused(params, batch):
    with pytest.raises(ValueError, match='give tiles'):
        MODEL.apply({'params': params}, *batch[:3],
                    taps=Taps(answer_B=ANSWER_B, cut_N=np.zeros(3, bool)))

"""What makes a row independent of its company: sums in one order, and row counts that keep it."""
from dataclasses import replace

import jax
import numpy as np
import plain_loop
import pytest
from plain_loop import LETTERS, asked

from downscale.generate import alike as module
from downscale.generate.alike import alike
from downscale.generate.engine import Engine
from downscale.model.layers import product, rms_norm, total

pytestmark = pytest.mark.usefixtures('optimised')


@pytest.mark.parametrize('terms, outputs', [(64, 640), (576, 512), (960, 320), (2560, 128)])
def test_rows_that_are_said_to_be_alike_are_bit_for_bit_wherever_they_stand(terms, outputs):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((144, terms), np.float32)
    w = rng.standard_normal((outputs, terms), np.float32)
    multiplied = jax.jit(lambda x, w: product('BD,DF->BF', x, w.T, exact=True, few=True))
    usual = np.concatenate([np.asarray(multiplied(part, w)) for part in np.split(x, 9)])
    np.testing.assert_allclose(usual, x @ w.T, rtol=1e-4, atol=1e-3)
    for wanted in (1, 3, 8, 13, 16, 20, 32, 100):
        rows = alike(((terms, outputs),), wanted)
        assert 2 <= rows <= 144
        np.testing.assert_array_equal(np.asarray(multiplied(x[:rows], w)), usual[:rows])


@pytest.mark.parametrize('length', [64, 96, 128, 192, 256, 384])
def test_tokens_of_a_prompt_are_summed_alike_however_many_prompts_are_read(length):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, length, 96), np.float32)
    w = rng.standard_normal((3, 32, 96), np.float32)
    multiplied = jax.jit(lambda x, w: product('BLD,DHE->BLHE', x, w.transpose(2, 0, 1), exact=True))
    together = np.asarray(multiplied(x, w))
    for k in range(4):
        np.testing.assert_array_equal(np.asarray(multiplied(x[k:k + 1], w))[0], together[k])


@pytest.mark.parametrize('subscripts, x, w', [
    ('BLD,DHE->BLHE', (3, 1, 32), (32, 2, 8)), ('BLHE,HED->BLD', (3, 1, 2, 8), (2, 8, 32)),
    ('BD,DF->BF', (3, 32), (32, 24)), ('BLD,VD->BLV', (3, 1, 32), (40, 32))])
def test_a_product_is_that_of_einsum_whichever_way_it_is_computed(subscripts, x, w):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(x, np.float32)
    w = rng.standard_normal(w, np.float32)
    for few in (False, True):
        found = jax.jit(product, static_argnums=(0, 3, 4))(subscripts, x, w, True, few)
        np.testing.assert_allclose(found, np.einsum(subscripts, x, w), rtol=1e-5, atol=1e-5)


def test_the_nearest_rows_above_are_taken_else_the_most_there_are(monkeypatch):
    known = {1: {2, 16, 36}, 2: {*range(2, 65)}, 3: {16}}
    monkeypatch.setattr(module, '_summed_alike',
                        lambda terms, outputs, count: count in known[terms])
    assert [alike(((2, 1), (2, 5)), wanted) for wanted in (1, 13, 64, 99)] == [2, 13, 64, 64]
    assert [alike(((1, 1), (2, 9)), wanted) for wanted in (1, 3, 17, 99)] == [2, 16, 36, 36]
    assert [alike(((1, 1), (3, 9)), wanted) for wanted in (1, 99)] == [16, 16]


def test_an_engine_keeps_to_the_rows_that_are_alike(monkeypatch):
    for slots, alike_rows, usable in ((1, 4, 1), (9, 9, 9), (100, 24, 24)):
        monkeypatch.setattr('downscale.generate.engine.alike', lambda products, wanted: alike_rows)
        engine = Engine(plain_loop.MODEL, plain_loop.params(), LETTERS, slots)
        assert (engine.usable, engine.per_lane) == (usable, alike_rows)


def test_a_total_is_the_sum_whatever_the_number_of_rows():
    x = np.random.default_rng(0).standard_normal((64, 577)).astype(np.float32)
    wanted = np.asarray(jax.jit(total)(x))
    np.testing.assert_allclose(wanted, x.astype(np.float64).sum(-1), atol=1e-4)
    norm = jax.jit(lambda x: rms_norm(x, np.float32(2), 1e-5, exact=True))
    normed = np.asarray(norm(x))
    np.testing.assert_allclose(normed, rms_norm(x, np.float32(2), 1e-5), rtol=1e-5)
    for rows in (1, 2, 3, 5, 8, 13, 32):
        np.testing.assert_array_equal(jax.jit(total)(x[:rows]), wanted[:rows])
        np.testing.assert_array_equal(norm(x[:rows]), normed[:rows])


def test_the_nats_of_a_target_do_not_depend_on_what_else_is_asked():
    request, = asked((3,), 2)
    request = replace(request, target=(9, 8, 7))
    company = [replace(other, target=tuple(range(7, 47))) for other in asked((2, 4, 5), 2)]
    engine = Engine(plain_loop.MODEL, plain_loop.params(), LETTERS, 4)
    alone, = engine.write([request])
    beside, *_ = engine.write([request, *company])
    assert alone.nll == beside.nll and beside == alone

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
from downscale.model.layers import rms_norm, total

pytestmark = pytest.mark.usefixtures('optimised')


@pytest.mark.parametrize('terms, outputs', [(64, 640), (576, 512), (960, 320)])
def test_products_of_the_rows_that_are_said_to_be_alike_are_bit_for_bit(terms, outputs):
    fewest, most = alike(((terms, outputs),), 128)
    assert 2 <= fewest <= 16 and (most is None or 16 <= most < 128)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((128, terms), np.float32)
    w = rng.standard_normal((terms, outputs), np.float32)
    product = jax.jit(lambda x, w: x @ w)
    wanted = np.asarray(product(x[:16], w))
    counts = {fewest, 8, 12, 13, 16, 24, 32, most or 128}
    for count in sorted(n for n in counts if fewest <= n <= (most or 128)):
        found = np.asarray(product(x[:count], w))
        np.testing.assert_array_equal(found[:16], wanted[:count])


def test_the_narrowest_range_of_all_products_counts(monkeypatch):
    known = {1: (2, None), 2: (8, 48), 3: (4, 32)}
    monkeypatch.setattr(module, '_alike', lambda terms, outputs, counts: known[terms])
    assert alike(((1, 1), (1, 5)), 99) == (2, None) and alike(((1, 1), (2, 9)), 99) == (8, 48)
    assert alike(((3, 1), (2, 1), (1, 1)), 99) == (8, 32)


def test_an_engine_keeps_to_the_rows_that_are_alike(monkeypatch):
    monkeypatch.setattr('downscale.generate.engine.alike', lambda products, wanted: (4, 24))
    for slots, usable, rows in ((1, 1, 4), (9, 9, 9), (100, 24, 24)):
        engine = Engine(plain_loop.MODEL, plain_loop.params(), LETTERS, slots)
        assert (engine.usable, engine.per_lane) == (usable, rows)


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

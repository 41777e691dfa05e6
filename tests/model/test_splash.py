"""The TPU kernel for attention (interpreted) computes what plain attention computes."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from downscale.model import splash
from downscale.model.language import causal_mask
from downscale.model.layers import attend
from downscale.sharding import mesh

B, L, H, K, E = 2, 256, 4, 2, 128


@pytest.fixture(scope='module')
def rows():
    """Queries, keys, values and two packed segments a row, the last tokens padding."""
    draw = np.random.default_rng(0)
    q, k, v = (draw.standard_normal((B, L, heads, E), np.float32) for heads in (H, K, K))
    segments_BL = np.ones((B, L), np.int32)
    segments_BL[0, 100:], segments_BL[1, 31:], segments_BL[:, 240:] = 2, 2, 0
    return q, k, v, segments_BL


def test_the_kernel_gives_the_values_and_gradients_of_plain_attention(rows):
    q, k, v, segments_BL = rows
    live = (segments_BL > 0)[:, :, None, None]  # what padding reads is nobody's business

    def plain(q, k, v):
        return jnp.where(live, attend(q, k, v, causal_mask(segments_BL)), 0)

    def kernel(q, k, v):
        return jnp.where(live, splash.attend_packed(q, k, v, segments_BL, interpret=True), 0)

    np.testing.assert_allclose(kernel(q, k, v), plain(q, k, v), atol=2e-5)
    towards = np.random.default_rng(1).standard_normal(q.shape, np.float32)
    slopes = [jax.grad(lambda *qkv, how=how: (how(*qkv) * towards).sum(), (0, 1, 2))(q, k, v)
              for how in (kernel, plain)]
    for name, found, expected in zip('qkv', *slopes, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=name)


def test_heads_and_rows_may_be_split_over_devices(rows):
    q, k, v, segments_BL = rows
    alone = splash.attend_packed(q, k, v, segments_BL, interpret=True)
    with jax.set_mesh(mesh(data=2, tensor=2)):
        split = jax.jit(lambda *x: splash.attend_packed(*x, interpret=True))(*rows)
    np.testing.assert_allclose(split, alone, atol=1e-6)


def test_shapes_that_the_kernel_does_not_take_are_known():
    assert splash.fits(256, 128) and splash.fits(9216, 128)
    assert not splash.fits(250, 128) and not splash.fits(256, 64)

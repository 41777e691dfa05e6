"""The parts of a decoder block: RMSNorm, rotary positions, grouped-query attention, gated MLP."""
import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from downscale.model.init import SHAPE_ONLY, weight
from downscale.sharding import Rules, constrain
from downscale.sizes import LanguageConfig


def total(x: jax.Array) -> jax.Array:
    """Return the sum over the last axis, added up in one fixed order.

    `sum` adds in an order that depends on how many rows there are and on what it is compiled with;
    element by element the order is ours. Not on a TPU, whose products promise none either: there it
    would cost a fifth of a step.
    """
    return jax.lax.platform_dependent(x, tpu=lambda x: x.sum(-1), default=_by_halves)


def _by_halves(x):
    """Return the sum over the last axis, halves added to one another."""
    while x.shape[-1] > 1:
        if x.shape[-1] % 2:
            x = jnp.concatenate([x, jnp.zeros_like(x[..., :1])], axis=-1)
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def product(subscripts: str, x: jax.Array, w: jax.Array, exact: bool = False, few: bool = False,
            dtype: DTypeLike | None = None) -> jax.Array:
    """Return the product of tokens `x` and the weight `w`, as `einsum(subscripts, x, w)` does.

    Where it is `exact` a CPU multiplies matrices. `few` tokens it multiplies the other way round,
    as w times x: that reads a weight whose inputs lie last in memory (`forward.unstack`) once and
    in order, and takes a quarter less time for 8 or 16 tokens.
    """
    def as_asked(x, w):
        return jnp.einsum(subscripts, x, w, preferred_element_type=dtype)

    def as_matrices(x, w):
        _, w_axes, out_axes = re.split(',|->', subscripts)
        outputs = ''.join(filter(out_axes.__contains__, w_axes))
        inputs = w_axes.translate(dict.fromkeys(map(ord, outputs)))
        # Over two axes of inputs einsum sums in an order for which XLA copies the weight each time.
        w = w.transpose([w_axes.index(axis) for axis in outputs + inputs])
        shape = x.shape[:x.ndim - len(inputs)] + w.shape[:len(outputs)]
        w_FD = w.reshape(math.prod(w.shape[:len(outputs)]), -1)
        x_BD = x.reshape(-1, w_FD.shape[1])
        if few:
            out_FB = jnp.einsum('FD,BD->FB', w_FD, x_BD, preferred_element_type=dtype)
            # Without a barrier XLA would see that this is x times w, and compute that.
            return jax.lax.optimization_barrier(out_FB).T.reshape(shape)
        out_BF = jnp.einsum('BD,FD->BF', x_BD, w_FD, preferred_element_type=dtype)
        return out_BF.reshape(shape)

    if not exact:
        return as_asked(x, w)
    return jax.lax.platform_dependent(x, w, cpu=as_matrices, default=as_asked)


def rms_norm(x: jax.Array, scale_E: jax.Array, eps: float, exact: bool = False) -> jax.Array:
    """Return `x` scaled to unit root mean square over its last axis, in float32; the dtype is kept.

    `exact` makes a row independent of how many there are (see `total`), which takes longer.
    """
    wide = x.astype(jnp.float32)
    square = wide * wide
    mean = total(square)[..., None] / x.shape[-1] if exact else square.mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean + eps) * scale_E).astype(x.dtype)


class RmsNorm(nn.Module):
    """RMSNorm over the width D with a learned gain."""
    eps: float
    exact: bool = False

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        scale_D = self.param('scale_D', SHAPE_ONLY, (x_BLD.shape[-1],))
        return rms_norm(x_BLD, scale_D, self.eps, self.exact)


def rotary(positions_BL: jax.Array, width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Return the cosine and sine [B, L, 1, width / 2] of rotary positions, float32.

    Pairs are the first and the second half of a head (see `rotate`), as in Llama and Qwen.
    """
    inverse_E = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = positions_BL[:, :, None, None].astype(jnp.float32) * inverse_E
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Return `x` [B, L, heads, E] turned by its position; the two halves of E form the pairs."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(q_BLHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array,
           mask_BLS: jax.Array) -> jax.Array:
    """Return softmax attention [B, L, H, E].

    H / K query heads share a key/value head, none is repeated. A row whose mask is all False
    (padding) averages the values instead of giving NaN.
    """
    B, L, H, E = q_BLHE.shape
    K = k_BSKE.shape[2]
    # The M = (H / K) L queries of a key head side by side: both products are plain batched ones.
    q_BKME = (q_BLHE * E ** -0.5).swapaxes(1, 2).reshape(B, K, H // K * L, E)
    out_BKME = _attend(q_BKME, k_BSKE.swapaxes(1, 2), v_BSKE.swapaxes(1, 2), mask_BLS)
    return out_BKME.reshape(B, H, L, E).swapaxes(1, 2)


def _masked(x_BKMS, mask_BLS, value):
    """Return `x_BKMS` where a query may look, `value` elsewhere."""
    B, K, M, S = x_BKMS.shape
    x_BKGLS = x_BKMS.reshape(B, K, M // mask_BLS.shape[1], -1, S)
    return jnp.where(mask_BLS[:, None, None], x_BKGLS, value).reshape(B, K, M, S)


@jax.custom_vjp
def _attend(q_BKME, k_BKSE, v_BKSE, mask_BLS):
    return _attend_forward(q_BKME, k_BKSE, v_BKSE, mask_BLS)[0]


def _attend_forward(q_BKME, k_BKSE, v_BKSE, mask_BLS):
    scores_BKMS = jnp.einsum('BKME,BKSE->BKMS', q_BKME, k_BKSE, preferred_element_type=jnp.float32)
    # -1e30, not -inf: a row that sees nothing would be inf - inf = NaN, and spoil gradients of all.
    weights_BKMS = jax.nn.softmax(_masked(scores_BKMS, mask_BLS, -1e30)).astype(v_BKSE.dtype)
    out_BKME = jnp.einsum('BKMS,BKSE->BKME', weights_BKMS, v_BKSE)
    return out_BKME, (q_BKME, k_BKSE, v_BKSE, mask_BLS, weights_BKMS)


def _attend_backward(saved, out_grad_BKME):
    """Return the textbook gradient, by hand: XLA's CPU code for the derived one is half as fast."""
    q_BKME, k_BKSE, v_BKSE, mask_BLS, weights_BKMS = saved
    grad_BKMS = jnp.einsum('BKME,BKSE->BKMS', out_grad_BKME, v_BKSE,
                           preferred_element_type=jnp.float32)
    # Softmax: d score = weight x (d weight - the mean of d weight under the weights).
    # On a CPU element by element: its code for short sums takes seven times as long as a product.
    mean_BKM1 = jax.lax.platform_dependent(
        weights_BKMS * grad_BKMS, cpu=lambda x: _by_halves(x)[..., None],
        default=lambda x: x.sum(-1, keepdims=True))
    grad_BKMS = _masked(weights_BKMS * (grad_BKMS - mean_BKM1), mask_BLS, 0).astype(q_BKME.dtype)
    return (jnp.einsum('BKMS,BKSE->BKME', grad_BKMS, k_BKSE),
            jnp.einsum('BKMS,BKME->BKSE', grad_BKMS, q_BKME),
            jnp.einsum('BKMS,BKME->BKSE', weights_BKMS, out_grad_BKME), None)


_attend.defvjp(_attend_forward, _attend_backward)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, optional qk-norm and qkv bias.

    `mix(q_BLHE, k_BLKE, v_BLKE)` attends and returns (mixed [B, L, H, E], what to keep): the caller
    knows the mask, and the cache where there is one. Returns (output [B, L, D], what was kept).
    """
    cfg: LanguageConfig
    rules: Rules
    exact: bool = False

    @nn.compact
    def __call__(self, x_BLD: jax.Array, turn: tuple[jax.Array, jax.Array],
                 mix: Callable) -> tuple[jax.Array, Any]:
        c = self.cfg
        dtype = x_BLD.dtype
        q_DHE = weight(self, 'q_DHE', (c.D, c.H, c.E), dtype)
        k_DKE = weight(self, 'k_DKE', (c.D, c.K, c.E), dtype)
        v_DKE = weight(self, 'v_DKE', (c.D, c.K, c.E), dtype)
        o_HED = weight(self, 'o_HED', (c.H, c.E, c.D), dtype)
        few = x_BLD.shape[1] == 1  # a step of decoding
        q_BLHE = product('BLD,DHE->BLHE', x_BLD, q_DHE, self.exact, few)
        k_BLKE = product('BLD,DKE->BLKE', x_BLD, k_DKE, self.exact, few)
        v_BLKE = product('BLD,DKE->BLKE', x_BLD, v_DKE, self.exact, few)
        if c.qkv_bias:
            q_BLHE += weight(self, 'q_bias_HE', (c.H, c.E), dtype)
            k_BLKE += weight(self, 'k_bias_KE', (c.K, c.E), dtype)
            v_BLKE += weight(self, 'v_bias_KE', (c.K, c.E), dtype)
        # Before the rotation, as in Qwen3: one gain serves all heads and positions.
        if c.qk_norm:
            q_scale_E = self.param('q_scale_E', SHAPE_ONLY, (c.E,))
            k_scale_E = self.param('k_scale_E', SHAPE_ONLY, (c.E,))
            q_BLHE = rms_norm(q_BLHE, q_scale_E, c.eps, self.exact)
            k_BLKE = rms_norm(k_BLKE, k_scale_E, c.eps, self.exact)
        q_BLHE = constrain(rotate(q_BLHE, *turn), 'BLHE', self.rules)
        k_BLKE = constrain(rotate(k_BLKE, *turn), 'BLKE', self.rules)
        out_BLHE, kept = mix(q_BLHE, k_BLKE, v_BLKE)
        return product('BLHE,HED->BLD', out_BLHE, o_HED, self.exact, few), kept


class Mlp(nn.Module):
    """The gated MLP (SwiGLU): width D to F and back."""
    cfg: LanguageConfig
    rules: Rules
    exact: bool = False

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        c = self.cfg
        dtype = x_BLD.dtype
        gate_DF = weight(self, 'gate_DF', (c.D, c.F), dtype)
        up_DF = weight(self, 'up_DF', (c.D, c.F), dtype)
        down_FD = weight(self, 'down_FD', (c.F, c.D), dtype)
        # Over one axis of tokens, B: on CPU the gradient is twice as fast so.
        x_BD = x_BLD.reshape(-1, c.D)
        few = x_BLD.shape[1] == 1
        open_BF = nn.silu(product('BD,DF->BF', x_BD, gate_DF, self.exact, few))
        up_BF = product('BD,DF->BF', x_BD, up_DF, self.exact, few)
        hidden_BF = constrain(open_BF * up_BF, 'BF', self.rules)
        return product('BF,FD->BD', hidden_BF, down_FD, self.exact, few).reshape(x_BLD.shape)

"""The vision tower with SigLIP's shape.

The feature is the output of the last block that is run, without a final norm and without a
class token (arXiv 2511.17487 drops the last block of its SigLIP: that is `VisionConfig.layers`).
"""
import flax.linen as nn
import jax
import jax.numpy as jnp

from downscale.model.init import SHAPE_ONLY, weight
from downscale.model.layers import attend
from downscale.model.remat import rematerialised
from downscale.sharding import Rules, constrain
from downscale.sizes import VisionConfig


class LayerNorm(nn.Module):
    """LayerNorm over W with gain and bias, computed in float32."""
    eps: float

    @nn.compact
    def __call__(self, x_BPW: jax.Array) -> jax.Array:
        W = x_BPW.shape[-1]
        wide = x_BPW.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
        scale_W = self.param('scale_W', SHAPE_ONLY, (W,))
        bias_W = self.param('bias_W', SHAPE_ONLY, (W,))
        return (wide * scale_W + bias_W).astype(x_BPW.dtype)


class VisionBlock(nn.Module):
    """One pre-norm block: attention over all patches, then a GELU MLP."""
    cfg: VisionConfig
    rules: Rules

    @nn.compact
    def __call__(self, x_BPW: jax.Array, _: None) -> tuple[jax.Array, None]:
        # The scan over blocks hands over nothing else.
        c = self.cfg
        dtype = x_BPW.dtype
        normed_BPW = LayerNorm(c.eps, name='attention_norm')(x_BPW)

        def heads(name):
            kernel_WHE = weight(self, f'{name}_WHE', (c.W, c.H, c.E), dtype)
            bias_HE = weight(self, f'{name}_bias_HE', (c.H, c.E), dtype)
            return jnp.einsum('BPW,WHE->BPHE', normed_BPW, kernel_WHE) + bias_HE

        everywhere_BLS = jnp.ones((1, 1, x_BPW.shape[1]), bool)
        out_BPHE = attend(heads('q'), heads('k'), heads('v'), everywhere_BLS)
        o_HEW = weight(self, 'o_HEW', (c.H, c.E, c.W), dtype)
        o_bias_W = weight(self, 'o_bias_W', (c.W,), dtype)
        x_BPW = x_BPW + jnp.einsum('BPHE,HEW->BPW', out_BPHE, o_HEW) + o_bias_W

        normed_BPW = LayerNorm(c.eps, name='mlp_norm')(x_BPW)
        up_WF = weight(self, 'up_WF', (c.W, c.F), dtype)
        up_bias_F = weight(self, 'up_bias_F', (c.F,), dtype)
        down_FW = weight(self, 'down_FW', (c.F, c.W), dtype)
        down_bias_W = weight(self, 'down_bias_W', (c.W,), dtype)
        hidden_BPF = jnp.einsum('BPW,WF->BPF', normed_BPW, up_WF) + up_bias_F
        hidden_BPF = nn.gelu(hidden_BPF, approximate=True)
        x_BPW = x_BPW + jnp.einsum('BPF,FW->BPW', hidden_BPF, down_FW) + down_bias_W
        return constrain(x_BPW, 'BPW', self.rules), None


def scaled(patches: jax.Array) -> jax.Array:
    """Return uint8 pixels as float32 in [-1, 1], as SigLIP has them; floats stay as they are."""
    return patches.astype(jnp.float32) / 127.5 - 1 if patches.dtype == jnp.uint8 else patches


class Tower(nn.Module):
    """Patches [B, P, Q], pixels as `scaled` takes them -> features [B, P, W].

    Pixels travel to the device as bytes: a row of 37 tiles of 384 is 16 MB, in float32 63.
    """
    cfg: VisionConfig
    rules: Rules = Rules()
    dtype: str = 'float32'
    remat: str = 'none'
    unroll: int = 1

    @nn.compact
    def __call__(self, patches_BPQ: jax.Array) -> jax.Array:
        c = self.cfg
        patch_QW = weight(self, 'patch_QW', (c.Q, c.W), self.dtype)
        patch_bias_W = weight(self, 'patch_bias_W', (c.W,), self.dtype)
        position_PW = weight(self, 'position_PW', (c.P, c.W), self.dtype)
        # A convolution whose stride is its kernel is one product over the values of a patch.
        x_BPW = jnp.einsum('BPQ,QW->BPW', scaled(patches_BPQ).astype(self.dtype), patch_QW)
        x_BPW = x_BPW + patch_bias_W + position_PW
        blocks = nn.scan(rematerialised(VisionBlock, self.remat), variable_axes={'params': 0},
                         split_rngs={'params': True}, length=c.layers,
                         unroll=min(self.unroll, c.layers))
        x_BPW, _ = blocks(c, self.rules, name='blocks')(x_BPW, None)
        return x_BPW



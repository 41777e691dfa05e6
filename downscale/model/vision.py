"""The vision tower with SigLIP's shape, and the connector to the decoder's width.

The feature is the output of the last block that is run, without a final norm and without a
class token (arXiv 2511.17487 drops the last block of its SigLIP: that is `VisionConfig.layers`).
"""
import flax.linen as nn
import jax
import jax.numpy as jnp

from downscale.model.init import SHAPE_ONLY
from downscale.model.layers import attend
from downscale.sharding import Rules, constrain
from downscale.sizes import VisionConfig


class LayerNorm(nn.Module):
    """LayerNorm over W with gain and bias, computed in float32."""
    eps: float

    @nn.compact
    def __call__(self, x_BPW):
        W = x_BPW.shape[-1]
        wide = x_BPW.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
        scale_W = self.param('scale_W', SHAPE_ONLY, (W,))
        bias_W = self.param('bias_W', SHAPE_ONLY, (W,))
        return (wide * scale_W + bias_W).astype(x_BPW.dtype)


class VisionBlock(nn.Module):
    """One pre-norm block: attention over all patches (or those of `mask_BPP`), then a GELU MLP."""
    cfg: VisionConfig
    rules: Rules

    @nn.compact
    def __call__(self, x_BPW, mask_BPP=None):
        c, dtype = self.cfg, x_BPW.dtype
        normed_BPW = LayerNorm(c.eps, name='attention_norm')(x_BPW)

        def heads(name):
            kernel_WHE = self.param(f'{name}_WHE', SHAPE_ONLY, (c.W, c.H, c.E)).astype(dtype)
            bias_HE = self.param(f'{name}_bias_HE', SHAPE_ONLY, (c.H, c.E)).astype(dtype)
            return jnp.einsum('BPW,WHE->BPHE', normed_BPW, kernel_WHE) + bias_HE

        P = x_BPW.shape[1]
        if mask_BPP is None:
            mask_BPP = jnp.ones((1, 1, P), bool)
        out_BPHE = attend(heads('q'), heads('k'), heads('v'), mask_BPP)
        o_HEW = self.param('o_HEW', SHAPE_ONLY, (c.H, c.E, c.W)).astype(dtype)
        o_bias_W = self.param('o_bias_W', SHAPE_ONLY, (c.W,)).astype(dtype)
        x_BPW = x_BPW + jnp.einsum('BPHE,HEW->BPW', out_BPHE, o_HEW) + o_bias_W

        normed_BPW = LayerNorm(c.eps, name='mlp_norm')(x_BPW)
        up_WF = self.param('up_WF', SHAPE_ONLY, (c.W, c.F)).astype(dtype)
        up_bias_F = self.param('up_bias_F', SHAPE_ONLY, (c.F,)).astype(dtype)
        down_FW = self.param('down_FW', SHAPE_ONLY, (c.F, c.W)).astype(dtype)
        down_bias_W = self.param('down_bias_W', SHAPE_ONLY, (c.W,)).astype(dtype)
        hidden_BPF = jnp.einsum('BPW,WF->BPF', normed_BPW, up_WF) + up_bias_F
        hidden_BPF = nn.gelu(hidden_BPF, approximate=True)
        x_BPW = x_BPW + jnp.einsum('BPF,FW->BPW', hidden_BPF, down_FW) + down_bias_W
        return constrain(x_BPW, 'BPW', self.rules), None


class Tower(nn.Module):
    """Patches [B, P, Q], values in [-1, 1] -> features [B, P, W]."""
    cfg: VisionConfig
    rules: Rules = Rules()
    dtype: str = 'float32'
    remat: bool = False
    unroll: int = 1

    @nn.compact
    def __call__(self, patches_BPQ):
        c = self.cfg
        patch_QW = self.param('patch_QW', SHAPE_ONLY, (c.Q, c.W)).astype(self.dtype)
        patch_bias_W = self.param('patch_bias_W', SHAPE_ONLY, (c.W,)).astype(self.dtype)
        position_PW = self.param('position_PW', SHAPE_ONLY, (c.P, c.W)).astype(self.dtype)
        x_BPW = jnp.einsum('BPQ,QW->BPW', patches_BPQ.astype(self.dtype), patch_QW)
        x_BPW = x_BPW + patch_bias_W + position_PW
        block = nn.remat(VisionBlock, prevent_cse=False) if self.remat else VisionBlock
        blocks = nn.scan(block, variable_axes={'params': 0}, split_rngs={'params': True},
                         length=c.layers, unroll=min(self.unroll, c.layers))
        x_BPW, _ = blocks(c, self.rules, name='blocks')(x_BPW, None)
        return x_BPW


class Connector(nn.Module):
    """Features [B, P, W] -> decoder width [B, P, D]: linear, exact GELU, linear."""
    width: int
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x_BPW):
        W, D = x_BPW.shape[-1], self.width
        first_WD = self.param('first_WD', SHAPE_ONLY, (W, D)).astype(self.dtype)
        first_bias_D = self.param('first_bias_D', SHAPE_ONLY, (D,)).astype(self.dtype)
        second_DD = self.param('second_DD', SHAPE_ONLY, (D, D)).astype(self.dtype)
        second_bias_D = self.param('second_bias_D', SHAPE_ONLY, (D,)).astype(self.dtype)
        x_BPD = nn.gelu(jnp.einsum('BPW,WD->BPD', x_BPW, first_WD) + first_bias_D,
                        approximate=False)
        return x_BPD @ second_DD + second_bias_D

"""The decoder: Qwen3, Qwen2 and Llama/SmolLM2 are rows of one table (`sizes.py`)."""
import flax.linen as nn
import jax.numpy as jnp

from downscale.model.init import SHAPE_ONLY
from downscale.model.layers import Attention, Mlp, RmsNorm, rotary
from downscale.sharding import Rules, constrain
from downscale.sizes import LanguageConfig


def causal_mask(segments_BL):
    """[B, L, L] mask: a token sees itself and earlier tokens of its own segment; 0 is padding."""
    L = segments_BL.shape[1]
    same_BLS = segments_BL[:, :, None] == segments_BL[:, None, :]
    return same_BLS & (segments_BL > 0)[:, None, :] & jnp.tril(jnp.ones((L, L), bool))


def cache_mask(positions_BL, length):
    """[B, L, S] mask over a cache of `length` S: a query sees every position up to its own."""
    return jnp.arange(length)[None, None, :] <= positions_BL[:, :, None]


class Block(nn.Module):
    """One pre-norm decoder block, in the form that `nn.scan` wants: (carry, cache) -> same."""
    cfg: LanguageConfig
    rules: Rules

    @nn.compact
    def __call__(self, x_BLD, cache, turn, mask_BLS, positions_BL):
        c = self.cfg
        normed_BLD = RmsNorm(c.eps, name='attention_norm')(x_BLD)
        mixed_BLD, cache = Attention(c, self.rules, name='attention')(
            normed_BLD, turn, mask_BLS, cache, positions_BL)
        x_BLD = x_BLD + mixed_BLD
        x_BLD = x_BLD + Mlp(c, self.rules, name='mlp')(RmsNorm(c.eps, name='mlp_norm')(x_BLD))
        return constrain(x_BLD, 'BLD', self.rules), cache


class Language(nn.Module):
    """Tokens [B, L] -> (logits [B, L, V] in float32, cache or None).

    `image_BLD` replaces the embedding where `image_mask_BL` is True. Attention follows
    `segments_BL` without a cache, and the positions with one (`cache.py`). `last_B` asks for the
    logits of one position per row only: [B, 1, V]. `unroll` trades compile time for CPU speed.
    """
    cfg: LanguageConfig
    rules: Rules = Rules()
    dtype: str = 'float32'
    remat: bool = False
    unroll: int = 1

    @nn.compact
    def __call__(self, tokens_BL, positions_BL, segments_BL=None, cache=None,
                 image_BLD=None, image_mask_BL=None, last_B=None):
        c = self.cfg
        embedding_VD = self.param('embedding_VD', SHAPE_ONLY, (c.V, c.D)).astype(self.dtype)
        x_BLD = embedding_VD[tokens_BL]
        if image_BLD is not None:
            x_BLD = jnp.where(image_mask_BL[:, :, None], image_BLD.astype(self.dtype), x_BLD)
        x_BLD = constrain(x_BLD, 'BLD', self.rules)
        if cache is None:
            mask_BLS = causal_mask(segments_BL)
        else:
            mask_BLS = cache_mask(positions_BL, cache[0].shape[2])
        turn = rotary(positions_BL, c.E, c.theta)
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        blocks = nn.scan(block, variable_axes={'params': 0}, split_rngs={'params': True},
                         in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
                         length=c.N, unroll=min(self.unroll, c.N))
        x_BLD, cache = blocks(c, self.rules, name='blocks')(
            x_BLD, cache, turn, mask_BLS, positions_BL)
        x_BLD = RmsNorm(c.eps, name='final_norm')(x_BLD)
        if last_B is not None:
            x_BLD = jnp.take_along_axis(x_BLD, last_B[:, None, None], axis=1)
        if c.tie:
            logits_BLV = jnp.einsum('BLD,VD->BLV', x_BLD, embedding_VD,
                                    preferred_element_type=jnp.float32)
        else:
            head_DV = self.param('head_DV', SHAPE_ONLY, (c.D, c.V)).astype(self.dtype)
            logits_BLV = jnp.einsum('BLD,DV->BLV', x_BLD, head_DV,
                                    preferred_element_type=jnp.float32)
        return constrain(logits_BLV, 'BLV', self.rules), cache

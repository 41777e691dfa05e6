"""The decoder: Qwen3, Qwen2 and Llama/SmolLM2 are rows of one table (`sizes.py`)."""
import flax.linen as nn
import jax.numpy as jnp

from downscale.model.init import SHAPE_ONLY
from downscale.model.layers import Attention, Mlp, RmsNorm, attend, rotary
from downscale.sharding import Rules, constrain
from downscale.sizes import LanguageConfig


def causal_mask(segments_BL):
    """[B, L, L] mask: a token sees itself and earlier tokens of its own segment; 0 is padding."""
    L = segments_BL.shape[1]
    same_BLS = segments_BL[:, :, None] == segments_BL[:, None, :]
    return same_BLS & (segments_BL > 0)[:, None, :] & jnp.tril(jnp.ones((L, L), bool))


class Block(nn.Module):
    """One pre-norm decoder block; `mix` and what is returned beside x are those of `Attention`.

    `exact` sums norms in a fixed order, so that a row does not depend on how many there are.
    """
    cfg: LanguageConfig
    rules: Rules
    exact: bool = False

    @nn.compact
    def __call__(self, x_BLD, turn, mix):
        c = self.cfg
        normed_BLD = RmsNorm(c.eps, self.exact, name='attention_norm')(x_BLD)
        attention = Attention(c, self.rules, self.exact, name='attention')
        mixed_BLD, kept = attention(normed_BLD, turn, mix)
        x_BLD = x_BLD + mixed_BLD
        normed_BLD = RmsNorm(c.eps, self.exact, name='mlp_norm')(x_BLD)
        x_BLD = x_BLD + Mlp(c, self.rules, name='mlp')(normed_BLD)
        return constrain(x_BLD, 'BLD', self.rules), kept


def whole_text(block, x_BLD, turn, mask_BLS):
    """One step of the scan over layers: `block` where every key is a token of this very call."""
    x_BLD, _ = block(x_BLD, turn, lambda *qkv: (attend(*qkv, mask_BLS), None))
    return x_BLD, None


def score(x_BLD, table, tied):
    """Logits [B, L, V], float32, by the embedding [V, D] where `tied`, else by the head [D, V]."""
    table = table.astype(x_BLD.dtype)
    if tied:
        return jnp.einsum('BLD,VD->BLV', x_BLD, table, preferred_element_type=jnp.float32)
    return jnp.einsum('BLD,DV->BLV', x_BLD, table, preferred_element_type=jnp.float32)


class Language(nn.Module):
    """Tokens [B, L] -> logits [B, L, V] in float32.

    `image_BLD` replaces the embedding where `image_mask_BL` is True; attention follows
    `segments_BL`. `unroll` trades compile time for CPU speed. Writing token by token is the
    business of `generate/`, which applies the same blocks with a cache.
    """
    cfg: LanguageConfig
    rules: Rules = Rules()
    dtype: str = 'float32'
    remat: bool = False
    unroll: int = 1

    @nn.compact
    def __call__(self, tokens_BL, positions_BL, segments_BL, image_BLD=None, image_mask_BL=None):
        c = self.cfg
        embedding_VD = self.param('embedding_VD', SHAPE_ONLY, (c.V, c.D))
        x_BLD = embedding_VD[tokens_BL].astype(self.dtype)
        if image_BLD is not None:
            x_BLD = jnp.where(image_mask_BL[:, :, None], image_BLD.astype(self.dtype), x_BLD)
        x_BLD = constrain(x_BLD, 'BLD', self.rules)
        layer = nn.remat(whole_text, prevent_cse=False) if self.remat else whole_text
        blocks = nn.scan(layer, variable_axes={'params': 0}, split_rngs={'params': True},
                         in_axes=(nn.broadcast, nn.broadcast), length=c.N,
                         unroll=min(self.unroll, c.N))
        x_BLD, _ = blocks(Block(c, self.rules, name='blocks'), x_BLD,
                          rotary(positions_BL, c.E, c.theta), causal_mask(segments_BL))
        x_BLD = RmsNorm(c.eps, name='final_norm')(x_BLD)
        table = embedding_VD if c.tie else self.param('head_DV', SHAPE_ONLY, (c.D, c.V))
        return constrain(score(x_BLD, table, c.tie), 'BLV', self.rules)

"""The image-text pair model that pretrains a tower with the sigmoid loss of SigLIP.

Only the tower is kept afterwards; text encoder and pooling belong to this stage alone.
Source: arXiv 2303.15343; the text encoder is as wide and deep as the tower.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp

from downscale.model.init import SHAPE_ONLY, weight
from downscale.model.vision import LayerNorm, Tower, VisionBlock
from downscale.mup import BASE
from downscale.sharding import Rules, of_all_devices
from downscale.sizes import VisionConfig

MOST_TEXT = 128


def normalised(x):
    """Rows of unit length."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


class TextEncoder(nn.Module):
    """Tokens [B, L] -> text features [B, W], the mean over the tokens that are not padding."""
    cfg: VisionConfig
    vocabulary: int
    rules: Rules = Rules()

    @nn.compact
    def __call__(self, tokens_BL, segments_BL):
        c = self.cfg
        embedding_VW = weight(self, 'embedding_VW', (self.vocabulary, c.W), 'float32')
        position_LW = weight(self, 'position_LW', (MOST_TEXT, c.W), 'float32')
        L = tokens_BL.shape[1]
        x_BLW = embedding_VW[tokens_BL] + position_LW[:L]
        blocks = nn.scan(VisionBlock, variable_axes={'params': 0}, split_rngs={'params': True},
                         in_axes=nn.broadcast, length=c.layers)
        mask_BLS = jnp.broadcast_to((segments_BL > 0)[:, None, :], (len(tokens_BL), L, L))
        x_BLW, _ = blocks(c, self.rules, name='blocks')(x_BLW, mask_BLS)
        x_BLW = LayerNorm(c.eps, name='final_norm')(x_BLW)
        live_BL = (segments_BL > 0)[:, :, None]
        return (x_BLW * live_BL).sum(1) / jnp.maximum(live_BL.sum(1), 1)


class PairModel(nn.Module):
    """Tiles [B, P, Q] and texts [B, L] -> logits [B, B]: row image, column text.

    Inside the train step the rows are those of one device, the columns the texts of all.
    """
    vision: VisionConfig
    vocabulary: int
    rules: Rules = Rules()
    unroll: int = 1
    growth = BASE  # no field: the tower has one size, whatever that of the language model

    @nn.compact
    def __call__(self, tiles_BPQ, tokens_BL, segments_BL):
        W = self.vision.W
        x_BPW = Tower(self.vision, self.rules, unroll=self.unroll, name='tower')(tiles_BPQ)
        # Each patch votes with its own projection before pooling, so that the feature of the last
        # block, which the connector will read, has to carry the content itself.
        pool_WW = weight(self, 'pool_WW', (W, W), 'float32')
        image_BW = normalised(nn.gelu(LayerNorm(1e-6, name='pool_norm')(x_BPW) @ pool_WW).mean(1))
        text_BW = normalised(TextEncoder(self.vision, self.vocabulary, self.rules,
                                         name='text')(tokens_BL, segments_BL))
        scale_W = self.param('logit_scale_W', SHAPE_ONLY, (1,))
        bias_W = self.param('logit_bias_W', SHAPE_ONLY, (1,))
        return image_BW @ of_all_devices(text_BW).T * jnp.exp(scale_W) + bias_W


def abstract_pair_params(model):
    """ShapeDtypeStructs of a pair model's parameters."""
    vision = model.vision
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.eval_shape(lambda: model.init(
        jax.random.key(0), jnp.zeros((1, vision.P, vision.Q)), tokens, tokens))['params']

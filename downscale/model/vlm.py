"""The vision-language model: tower, connector and decoder, spliced by index with static shapes.

`image_index_BLC` says, for every token, which of the row's image features replace it: -1 for
text, p + P * i for patch p of tile i, and P * I for the learned `image_newline`. With C > 1 a token
is the sum of C features weighted by `image_weight_BLC`, which is how pictures of many tiles are
reduced. Text-only rows, rows with one image and rows with several pass through the same program;
unused tiles are zeros that nothing points to.
"""
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from downscale.model.connector import Connector
from downscale.model.init import SHAPE_ONLY
from downscale.model.language import Language
from downscale.model.taps import Taps
from downscale.model.vision import Tower
from downscale.sharding import Rules, constrain
from downscale.sizes import BASE, Growth, LanguageConfig, VisionConfig


def splice(features_BLD: jax.Array, image_index_BLC: jax.Array,
           image_weight_BLC: jax.Array | None = None) -> jax.Array:
    """Return the features [B, L, D] that image tokens show; text positions hold feature 0.

    `features_BLD` lists all features of a row; C is 1 where no weights are given. Weighted sums are
    taken in float32. Corners are gathered one after another: no [B, L, C, D] exists.
    """
    C = image_index_BLC.shape[2]

    def corner(c):
        return jnp.take_along_axis(
            features_BLD, jnp.maximum(image_index_BLC[:, :, c], 0)[:, :, None], axis=1)
    if image_weight_BLC is None:
        if C != 1:
            raise ValueError(f'an image token mixes {C} features, but there is no image_weight')
        return corner(0)
    mixed_BLD = sum(corner(c) * image_weight_BLC[:, :, c, None] for c in range(C))
    return mixed_BLD.astype(features_BLD.dtype)


class Vlm(nn.Module):
    """Tokens [B, L] and tiles [B, I, P, Q] (or None: text only) -> logits [B, L, V].

    The parameter tree has the groups `language`, `tower`, `connector` and, with `newline`,
    `image_newline_D`; a text-only model is the same module without tiles, whose tree holds
    `language` alone. `attention`, `growth`, `finish` and `taps` are those of `Language`; of taps
    the tower and the connector are read as well.
    """
    language: LanguageConfig
    vision: VisionConfig
    rules: Rules = Rules()
    dtype: str = 'float32'
    remat: str = 'none'
    unroll: int = 1
    newline: bool = True
    attention: str = 'xla'
    growth: Growth = BASE

    @nn.compact
    def __call__(self, tokens_BL: jax.Array, positions_BL: jax.Array, segments_BL: jax.Array,
                 tiles_BIPQ: jax.Array | None = None, image_index_BLC: jax.Array | None = None,
                 image_weight_BLC: jax.Array | None = None,
                 finish: Callable[[jax.Array, jax.Array], Any] | None = None,
                 taps: Taps | None = None) -> Any:
        decoder = Language(self.language, self.rules, self.dtype, self.remat, self.unroll,
                           self.attention, self.growth, name='language')
        if tiles_BIPQ is None:
            return decoder(tokens_BL, positions_BL, segments_BL, finish=finish, taps=taps)
        B, I, P, Q = tiles_BIPQ.shape
        tower = Tower(self.vision, self.rules, self.dtype, self.remat, self.unroll, name='tower')
        # Tiles do not see one another: those of all rows are one batch of the tower.
        features_BPW = tower(tiles_BIPQ.reshape(B * I, P, Q))
        edits = taps and taps.edits
        if edits:
            features_BPW = edits.of_patches(features_BPW, edits.vision_BJ)
        width = self.language.D
        features_BPD = Connector(width, self.rules, self.dtype, name='connector')(features_BPW)
        if edits:
            features_BPD = edits.of_patches(features_BPD, edits.connector_BJ)
        features_BLD = features_BPD.reshape(B, I * P, width)
        # Behind all patches, at P * I, where `image_index_BLC` looks for it.
        if self.newline:
            newline_D = self.param('image_newline_D', SHAPE_ONLY, (width,)).astype(self.dtype)
            features_BLD = jnp.concatenate(
                [features_BLD, jnp.broadcast_to(newline_D, (B, 1, width))], axis=1)
        # pyrefly: ignore[bad-argument-type]
        image_BLD = splice(features_BLD, image_index_BLC, image_weight_BLC)
        image_BLD = constrain(image_BLD, 'BLD', self.rules)
        out = decoder(tokens_BL, positions_BL, segments_BL, image_BLD,
                      image_index_BLC[:, :, 0] >= 0, finish, taps)
        if not taps:
            return out
        # pyrefly: ignore[bad-argument-type]
        return out[0], taps.features(features_BPW, features_BPD, image_index_BLC) | out[1]

"""The model that pretrains a tower: which words does the caption of a picture hold?

Every patch scores every word, and a word of the caption has to be told by one patch at least; where
a world says what each word is told of, by the patches of that thing on average. Without this a
tower of the cluttered world learns colours and no more: most words are in most captions. After 800
steps with it a thing's words are told right for colour 0.99, place 0.96, size 0.84, shape 0.36, and
without it 0.97, 0.15, 0.49 (a guess), 0.12.
Only the tower is kept afterwards; the scores belong to this stage alone. Sources: captions as
labels, arXiv 2411.03313; the largest score of all patches is multiple-instance learning. A sigmoid
loss over pairs of pictures and texts (SigLIP, arXiv 2303.15343) did not teach a small tower to
read: batches of 32 are told apart by shapes and colours alone, and after 1,500 of its steps
(texts of two fields) a linear probe of a thing's own patch found 0.24 of eight characters, after
1,000 of these 0.88.
"""
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from downscale.model.init import weight
from downscale.model.vision import LayerNorm, Tower
from downscale.sharding import Rules
from downscale.sizes import BASE, VisionConfig


class WordModel(nn.Module):
    """Tiles [B, P, Q] -> logits [B, V]: does the caption hold the word?

    With `patches` [B, L, P], those that show what each word tells of: logits [B, L, V] of it.
    For small vocabularies: [B, P, V] are in memory.
    """
    vision: VisionConfig
    vocabulary: int
    rules: Rules = Rules()
    unroll: int = 1
    growth = BASE  # no field: the tower has one size, whatever that of the language model

    @nn.compact
    def __call__(self, tiles_BPQ: jax.Array, patches_BLP: jax.Array | None = None) -> jax.Array:
        x_BPW = Tower(self.vision, self.rules, unroll=self.unroll, name='tower')(tiles_BPQ)
        x_BPW = LayerNorm(self.vision.eps, name='word_norm')(x_BPW)
        word_WV = weight(self, 'word_WV', (self.vision.W, self.vocabulary), 'float32')
        word_bias_V = weight(self, 'word_bias_V', (self.vocabulary,), 'float32')
        if patches_BLP is not None:
            # The mean sends the gradient of a word to every patch of its thing, large or small.
            share_BLP = patches_BLP / jnp.maximum(patches_BLP.sum(-1, keepdims=True), 1)
            x_BLW = jnp.einsum('BLP,BPW->BLW', share_BLP, x_BPW)
            return jnp.einsum('BLW,WV->BLV', x_BLW, word_WV) + word_bias_V
        # The maximum over patches sends the gradient of a word to the one patch that tells it best.
        return jnp.einsum('BPW,WV->BPV', x_BPW, word_WV).max(1) + word_bias_V


def abstract_word_params(model: WordModel) -> dict[str, Any]:
    """Return ShapeDtypeStructs of a word model's parameters."""
    vision = model.vision
    return jax.eval_shape(lambda: model.init(
        jax.random.key(0), jnp.zeros((1, vision.P, vision.Q))))['params']

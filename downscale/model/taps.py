"""What is read of a pass beside its logits: means and single tokens, taken on the device.

No [B, L, D] leaves it. What is read has a name, one of `SITES`; 'image' and 'answer' are read
before the first block and behind every block.
"""
from dataclasses import dataclass

import jax
import jax.numpy as jnp

SITES = ('vision', 'connector', 'image', 'answer')


@dataclass(frozen=True)
class Taps:
    """What to read: `answer_B` is the position of each row's last prompt token.

    In layers where `cut_N` is True text sees no pictures; other attention stays as it is.
    """
    answer_B: jax.Array
    cut_N: jax.Array

    def reader(self, image_BL: jax.Array | None) -> 'Reader':
        """Return the `Reader` of rows with image tokens where `image_BL`; ValueError for None."""
        if image_BL is None:
            raise ValueError('taps read how pictures are seen; give tiles, or no taps')
        return Reader(image_BL, self.answer_B)

    def features(self, features_BPW: jax.Array, features_BPD: jax.Array,
                 index_BLC: jax.Array) -> dict[str, jax.Array]:
        """Return 'vision' [B, W] and 'connector' [B, D], means over patches that tokens show."""
        B = len(index_BLC)
        J = features_BPW.shape[0] * features_BPW.shape[1] // len(index_BLC)
        flat_BL = jnp.where(index_BLC < 0, J + 1, index_BLC).reshape(B, -1)
        # The newline is feature J, and no patch.
        shown_BJ = jnp.zeros((B, J + 2)).at[jnp.arange(B)[:, None], flat_BL].set(1)[:, :J]
        return {name: _mean(x.reshape(B, J, -1), shown_BJ)
                for name, x in (('vision', features_BPW), ('connector', features_BPD))}


@dataclass(frozen=True)
class Reader:
    """Reads x [B, L, D] of one layer: the mean of its image tokens, and the answer position."""
    image_BL: jax.Array
    answer_B: jax.Array

    @property
    def pictures_BLS(self) -> jax.Array:
        """The mask that is True where a token of text looks at one of a picture."""
        return ~self.image_BL[:, :, None] & self.image_BL[:, None, :]

    def __call__(self, x_BLD: jax.Array) -> dict[str, jax.Array]:
        answer_BD = jnp.take_along_axis(x_BLD, self.answer_B[:, None, None], axis=1)[:, 0]
        return {'image': _mean(x_BLD, self.image_BL), 'answer': answer_BD.astype(jnp.float32)}

    def layers(self, begun_BLD: jax.Array, seen: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return 'image' and 'answer' [N + 1, B, D], of `begun_BLD` and of `seen` in each layer."""
        return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]),
                            self(begun_BLD), seen)


def _mean(x, weight):
    """Return the mean over the middle axis of x [B, any, width], float32, by weights [B, any]."""
    total = (x.astype(jnp.float32) * weight[:, :, None]).sum(axis=1)
    return total / jnp.maximum(weight.sum(axis=1), 1)[:, None]

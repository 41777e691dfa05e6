"""What is read of a pass beside its logits, and what is replaced in it, on the device.

No [B, L, D] leaves it. What is read has a name: those of `SITES` always; 'own patches', 'own
connected' and 'own tokens' where a part of the picture is asked for. 'image', 'answer' and 'own
tokens' are read before the first block and behind every block.
"""
from dataclasses import dataclass

import jax
import jax.numpy as jnp

SITES = ('vision', 'connector', 'image', 'answer')


@dataclass(frozen=True, kw_only=True)
class Edits:
    """What rows of a pass take over from others of the same pass: row b from row `give_B[b]`.

    True marks what is taken over: patches of the tower or of the connector [B, J], and states of
    tokens [N + 1, B, L], before the first block and behind every block. None leaves all as it is.
    """
    give_B: jax.Array
    vision_BJ: jax.Array | None = None
    connector_BJ: jax.Array | None = None
    states_NBL: jax.Array | None = None

    def taken(self, x_BMD: jax.Array, where_BM: jax.Array | None) -> jax.Array:
        """Return x with what is True in `where_BM` taken from the giving row."""
        if where_BM is None:
            return x_BMD
        return jnp.where(where_BM[:, :, None], x_BMD[self.give_B], x_BMD)

    def of_patches(self, features_BPW: jax.Array, where_BJ: jax.Array | None) -> jax.Array:
        """Return features [B * I, P, W] of tiles with patches taken over."""
        if where_BJ is None:
            return features_BPW
        flat = features_BPW.reshape(*where_BJ.shape, -1)
        return self.taken(flat, where_BJ).reshape(features_BPW.shape)


@dataclass(frozen=True, kw_only=True)
class Taps:
    """What to read: `answer_B` is the position of each row's last prompt token.

    In layers where `cut_N` is True text sees no pictures; other attention stays as it is. `own_BOJ`
    and `own_BOL` are the patches of all tiles, and the tokens, of O parts of each picture: the
    means over each are read too. `edits` says what is replaced (see `Edits`).
    """
    answer_B: jax.Array
    cut_N: jax.Array
    own_BOJ: jax.Array | None = None
    own_BOL: jax.Array | None = None
    edits: Edits | None = None

    def reader(self, image_BL: jax.Array | None) -> 'Reader':
        """Return the `Reader` of rows with image tokens where `image_BL`; ValueError for None."""
        if image_BL is None:
            raise ValueError('taps read how pictures are seen; give tiles, or no taps')
        return Reader(image_BL=image_BL, answer_B=self.answer_B, own_BOL=self.own_BOL,
                      edits=self.edits)

    @property
    def scanned(self) -> tuple[jax.Array, jax.Array | None]:
        """What each layer gets: whether it is cut, and which states behind it are taken over."""
        states_NBL = self.edits and self.edits.states_NBL
        return self.cut_N, None if states_NBL is None else states_NBL[1:]

    def features(self, features_BPW: jax.Array, features_BPD: jax.Array,
                 index_BLC: jax.Array) -> dict[str, jax.Array]:
        """Return 'vision' [B, W] and 'connector' [B, D], means over patches that tokens show."""
        B = len(index_BLC)
        J = features_BPW.shape[0] * features_BPW.shape[1] // len(index_BLC)
        flat_BL = jnp.where(index_BLC < 0, J + 1, index_BLC).reshape(B, -1)
        # The newline is feature J, and no patch.
        shown_BJ = jnp.zeros((B, J + 2)).at[jnp.arange(B)[:, None], flat_BL].set(1)[:, :J]
        found = {name: _mean(x.reshape(B, J, -1), shown_BJ)
                 for name, x in (('vision', features_BPW), ('connector', features_BPD))}
        if self.own_BOJ is not None:
            found |= {name: _means(x.reshape(B, J, -1), self.own_BOJ) for name, x in
                      (('own patches', features_BPW), ('own connected', features_BPD))}
        return found


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads x [B, L, D] of one layer: the mean of its image tokens, and the answer position.

    Before that it takes over what `edits` says.
    """
    image_BL: jax.Array
    answer_B: jax.Array
    own_BOL: jax.Array | None = None
    edits: Edits | None = None

    def edited(self, x_BLD: jax.Array, where_BL: jax.Array | None) -> jax.Array:
        """Return x with what is True in `where_BL` taken from the giving row."""
        return x_BLD if self.edits is None else self.edits.taken(x_BLD, where_BL)

    def begun(self, x_BLD: jax.Array) -> jax.Array:
        """Return what goes into the first block."""
        states_NBL = self.edits and self.edits.states_NBL
        return x_BLD if states_NBL is None else self.edited(x_BLD, states_NBL[0])

    @property
    def pictures_BLS(self) -> jax.Array:
        """The mask that is True where a token of text looks at one of a picture."""
        return ~self.image_BL[:, :, None] & self.image_BL[:, None, :]

    def __call__(self, x_BLD: jax.Array) -> dict[str, jax.Array]:
        answer_BD = jnp.take_along_axis(x_BLD, self.answer_B[:, None, None], axis=1)[:, 0]
        found = {'image': _mean(x_BLD, self.image_BL), 'answer': answer_BD.astype(jnp.float32)}
        if self.own_BOL is not None:
            found['own tokens'] = _means(x_BLD, self.own_BOL)
        return found

    def layers(self, begun_BLD: jax.Array, seen: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return what is read [N + 1, B, ...] of `begun_BLD` and of `seen` in each layer."""
        return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]),
                            self(begun_BLD), seen)


def _mean(x, weight):
    """Return the mean over the middle axis of x [B, any, width], float32, by weights [B, any]."""
    total = (x.astype(jnp.float32) * weight[:, :, None]).sum(axis=1)
    return total / jnp.maximum(weight.sum(axis=1), 1)[:, None]


def _means(x, weight):
    """Return a mean as in `_mean` for each of O weights [B, O, any]: [B, O, width]."""
    return jax.vmap(_mean, (None, 1), 1)(x, weight)

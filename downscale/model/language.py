"""The decoder: Qwen3, Qwen2 and Llama/SmolLM2 are rows of one table (`sizes.py`)."""
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from downscale.model import splash
from downscale.model.attention import attend_fused
from downscale.model.init import share
from downscale.model.layers import Attention, Mlp, RmsNorm, attend, product, rotary
from downscale.model.remat import rematerialised
from downscale.model.taps import Reader, Taps
from downscale.mup import times
from downscale.sharding import Rules, constrain, gather, shares, whole
from downscale.sizes import BASE, Growth, LanguageConfig


def causal_mask(segments_BL: jax.Array) -> jax.Array:
    """Return the mask [B, L, L] by which a token sees its own segment up to itself.

    Segment 0 is padding, which nothing sees.
    """
    L = segments_BL.shape[1]
    same_BLS = segments_BL[:, :, None] == segments_BL[:, None, :]
    # Rows are packed: several conversations lie behind one another, each a segment from 1 on.
    return same_BLS & (segments_BL > 0)[:, None, :] & jnp.tril(jnp.ones((L, L), bool))


class Block(nn.Module):
    """One pre-norm decoder block; `mix` and what is returned beside x are those of `Attention`.

    `exact` sums norms in a fixed order, so that a row does not depend on how many there are.
    `growth` is what muP says of the branches (see `mup.py`).
    """
    cfg: LanguageConfig
    rules: Rules
    exact: bool = False
    growth: Growth = BASE

    @nn.compact
    def __call__(self, x_BLD: jax.Array, turn: tuple[jax.Array, jax.Array],
                 mix: Callable) -> tuple[jax.Array, Any]:
        c = self.cfg
        normed_BLD = RmsNorm(c.eps, self.exact, name='attention_norm')(x_BLD)
        attention = Attention(c, self.rules, self.exact, name='attention')
        mixed_BLD, kept = attention(normed_BLD, turn, mix)
        x_BLD = x_BLD + times(mixed_BLD, self.growth.residual)
        normed_BLD = RmsNorm(c.eps, self.exact, name='mlp_norm')(x_BLD)
        hidden_BLD = Mlp(c, self.rules, self.exact, name='mlp')(normed_BLD)
        x_BLD = x_BLD + times(hidden_BLD, self.growth.residual)
        return constrain(x_BLD, 'BLD', self.rules), kept


def whole_text(block: Block, x_BLD: jax.Array, scanned: tuple[jax.Array, Any] | None,
               turn: tuple[jax.Array, jax.Array], mask: jax.Array, attend_by: Callable = attend,
               read: Reader | None = None) -> tuple[jax.Array, dict[str, jax.Array] | None]:
    """Return (x, what was read) of one layer; the body of the scan over layers, without a cache.

    All keys are tokens of this call. `mask` is what `attend_by` takes beside them: [B, L, S], or
    segments [B, L] for the TPU kernel. With `read` (a `Reader`) `scanned` says whether text sees no
    pictures in this layer and which states behind it are replaced, and what it reads comes back
    beside x.
    """
    if read is not None:
        # An intervention, for probes: what happens when no information crosses over in this layer.
        # pyrefly: ignore[not-iterable]
        cut, swapped_BL = scanned
        mask = mask & ~(cut & read.pictures_BLS)

    def mix(q_BLHE, k_BLKE, v_BLKE):
        return attend_by(q_BLHE, k_BLKE, v_BLKE, mask), None

    x_BLD, _ = block(x_BLD, turn, mix)
    if read is None:
        return x_BLD, None
    x_BLD = read.edited(x_BLD, swapped_BL)
    return x_BLD, read(x_BLD)


def look_up(share_VD: jax.Array, tokens_BL: jax.Array, shape: tuple[int, int],
            rules: Rules) -> jax.Array:
    """Return embeddings [B, L, D] of tokens, from the share of the table [V, D] that is at hand.

    Each device looks up the tokens of all for its columns; what travels is the result, not the
    table.
    """
    _, names = shares('VD', shape, rules)
    if not names:
        return share_VD[tokens_BL]
    # All tokens with some columns are traded for own tokens with all columns.
    x_BLD = share_VD[gather(tokens_BL, 0, names)]
    return jax.lax.all_to_all(x_BLD, names, split_axis=0, concat_axis=2, tiled=True)


def score(x_BLD: jax.Array, table: jax.Array, tied: bool, exact: bool = False) -> jax.Array:
    """Return the logits [B, L, V], float32.

    `table` is the embedding [V, D] where `tied`, else the head [D, V]; `exact` as in `product`.
    """
    return product('BLD,VD->BLV' if tied else 'BLD,DV->BLV', x_BLD, table.astype(x_BLD.dtype),
                   exact, few=x_BLD.shape[1] == 1, dtype=jnp.float32)


class Language(nn.Module):
    """Tokens [B, L] -> logits [B, L, V] in float32.

    `image_BLD` replaces the embedding where `image_mask_BL` is True; attention follows
    `segments_BL`. `unroll` trades compile time for CPU speed; `attention` is the program that
    computes it (see `attention.py`): one that cannot raises ValueError. `finish(x_BLD, share)`,
    where given, replaces the logits: it gets what left the last norm and the share of the head that
    is at hand, as [V, D]. With `taps` (see `taps.py`) the result is (that, what was read of every
    layer). Writing token by token is the business of `generate/`, which applies the same blocks
    with a cache.
    """
    cfg: LanguageConfig
    rules: Rules = Rules()
    dtype: str = 'float32'
    remat: str = 'none'
    unroll: int = 1
    attention: str = 'xla'
    growth: Growth = BASE

    @nn.compact
    def __call__(self, tokens_BL: jax.Array, positions_BL: jax.Array, segments_BL: jax.Array,
                 image_BLD: jax.Array | None = None, image_mask_BL: jax.Array | None = None,
                 finish: Callable[[jax.Array, jax.Array], Any] | None = None,
                 taps: Taps | None = None) -> Any:
        c = self.cfg
        embedding_VD = share(self, 'embedding_VD', (c.V, c.D))
        x_BLD = look_up(embedding_VD, tokens_BL, (c.V, c.D), self.rules).astype(self.dtype)
        x_BLD = times(x_BLD, self.growth.input)
        if image_BLD is not None:
            x_BLD = jnp.where(image_mask_BL[:, :, None], image_BLD.astype(self.dtype), x_BLD)
        x_BLD = constrain(x_BLD, 'BLD', self.rules)
        read = taps and taps.reader(image_mask_BL)
        attend_by, mask = self._attention(segments_BL, taps)
        # One layer is compiled and run N times, its weights stacked along N; what taps do in it is
        # scanned with them, angles and mask are the same for all.
        # pyrefly: ignore[bad-argument-type]
        blocks = nn.scan(rematerialised(partial(whole_text, attend_by=attend_by, read=read),
                                        self.remat),
                         variable_axes={'params': 0}, split_rngs={'params': True},
                         in_axes=(0, nn.broadcast, nn.broadcast), length=c.N,
                         unroll=min(self.unroll, c.N))
        begun_BLD = x_BLD = read.begun(x_BLD) if read else x_BLD
        x_BLD, seen = blocks(Block(c, self.rules, growth=self.growth, name='blocks'), x_BLD,
                             taps and taps.scanned, rotary(positions_BL, c.E, c.theta), mask)
        x_BLD = times(RmsNorm(c.eps, name='final_norm')(x_BLD), self.growth.output)
        name, shape = ('embedding_VD', (c.V, c.D)) if c.tie else ('head_DV', (c.D, c.V))
        table = embedding_VD if c.tie else share(self, name, shape)
        # The loss travels down the model as `finish`: it sees hidden states and computes logits a
        # few at a time, for [B, L, V] would be the largest array of a training step.
        if finish is not None:
            out = finish(x_BLD, table if c.tie else table.T)
        else:
            table = whole(table, name[-2:], shape, self.rules)
            out = constrain(score(x_BLD, table, c.tie), 'BLV', self.rules)
        return (out, read.layers(begun_BLD, seen)) if taps else out

    def _attention(self, segments_BL, taps):
        """Return (the function that attends, the mask that it takes)."""
        if self.attention == 'xla':
            return attend, causal_mask(segments_BL)
        if self.attention == 'cudnn':
            # Padding, segment 0, becomes a segment as well: a query that sees nothing would have a
            # softmax over differences of the most negative number, which cuDNN does not promise.
            return attend_fused, causal_mask(segments_BL + 1)
        L = segments_BL.shape[1]
        # Taps change the mask by layer, and this kernel knows segments alone.
        if self.attention != 'splash' or taps or not splash.fits(L, self.cfg.E):
            raise ValueError(f'attention {self.attention!r} cannot be for rows of {L} tokens, '
                             f'heads of width {self.cfg.E}{" and taps" if taps else ""}')
        return splash.attend_packed, segments_BL

"""The key/value cache: per layer, blocks along S, of which a program takes as many as are in use.

A step pays for the blocks that it is given, not for those that are allocated, and a row's numbers
do not depend on how many that are: sums run block by block, and a masked key adds an exact zero.
"""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from downscale.model.layers import total
from downscale.sizes import LanguageConfig

Layers = tuple[jax.Array, ...]  # one block of the cache, an array a layer


def ladder(n: int, least: int = 16) -> int:
    """Return the smallest static size of 16, 32, 64, 96, 128, 192, 256, 384 ... that holds `n`.

    Short sizes are few, since each is a program to compile; of a long one a third may be padding.
    """
    size = least
    while size < n:
        # From 64 on there is a size halfway to the next power of two: x 3/2, then x 4/3.
        growth = 4 / 3
        if size < 64:
            growth = 2
        elif size & (size - 1) == 0:
            growth = 3 / 2
        size = round(size * growth)
    return size


def edges(capacity: int) -> tuple[int, ...]:
    """Return the ends of blocks that hold `capacity` tokens together: 32, 64, 96, 128, 192 ...

    There are at least two: XLA rounds the softmax of a single block otherwise.
    """
    found = [32, 64]
    while found[-1] < capacity:
        found.append(ladder(found[-1] + 1))
    return tuple(found)


def kept_axes(attention: str) -> tuple[str, str]:
    """Return the axes of keys and of values between programs; within one they are BKES and BKSE.

    With 'splash' (on a TPU) positions come before heads, as the compiler wants a cache that is
    written position by position: another order would be copied at both ends of every call. The
    price is padding where a device has fewer than four KV heads, or heads less than 128 wide.
    """
    return ('BSKE', 'BSKE') if attention == 'splash' else ('BKES', 'BKSE')


def empty_cache(cfg: LanguageConfig, rows: int, ends: Sequence[int], dtype: DTypeLike = 'float32'
                ) -> tuple[list[Layers], list[Layers]]:
    """Return (k, v) of zeros: for each block up to `ends` a tuple of layers.

    Those of k are [B, K, E, S], those of v [B, K, S, E]: with S last in keys, queries meet them in
    one plain product.
    """
    sizes = [end - start for start, end in zip((0, *ends), ends)]
    k = [tuple(jnp.zeros((rows, cfg.K, cfg.E, size), dtype) for _ in range(cfg.N))
         for size in sizes]
    v = [tuple(jnp.zeros((rows, cfg.K, size, cfg.E), dtype) for _ in range(cfg.N))
         for size in sizes]
    return k, v


def cut(k_BKES: jax.Array, v_BKSE: jax.Array,
        ends: Sequence[int]) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return keys and values by position as the blocks that end at `ends`."""
    starts = (0, *ends[:-1])
    return ([k_BKES[..., start:end] for start, end in zip(starts, ends)],
            [v_BKSE[:, :, start:end] for start, end in zip(starts, ends)])


def remember(k_blocks: Sequence[jax.Array], v_blocks: Sequence[jax.Array], k_BKE: jax.Array,
             v_BKE: jax.Array, positions_B: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return the blocks of one layer with the key and value of each row written at its position."""
    rows = jnp.arange(len(positions_B))
    start = 0
    ks = []
    vs = []
    for k_BKES, v_BKSE in zip(k_blocks, v_blocks, strict=True):
        size = v_BKSE.shape[2]
        # A position of another block becomes one that no block has; negative ones would wrap.
        # Every block is written to, so that one program serves rows wherever they stand.
        at_B = jnp.where(positions_B >= start, positions_B - start, size)
        ks.append(k_BKES.at[rows, :, :, at_B].set(k_BKE.astype(k_BKES.dtype), mode='drop'))
        vs.append(v_BKSE.at[rows, :, at_B].set(v_BKE.astype(v_BKSE.dtype), mode='drop'))
        start += size
    return ks, vs


def attend_blocks(q_BLHE: jax.Array, k_blocks: Sequence[jax.Array], v_blocks: Sequence[jax.Array],
                  positions_BL: jax.Array) -> jax.Array:
    """Return attention [B, L, H, E] of queries at their positions over every key up to their own.

    H / K query heads share a key/value head, none is repeated. Sums are float32.
    """
    B, L, H, E = q_BLHE.shape
    K = v_blocks[0].shape[1]
    # The M = (H / K) L queries of a key head side by side: both products are plain batched ones.
    q_BKME = (q_BLHE * E ** -0.5).swapaxes(1, 2).reshape(B, K, H // K * L, E)
    start = 0
    scores = []
    for k_BKES in k_blocks:
        score_BKMS = jnp.einsum('BKME,BKES->BKMS', q_BKME, k_BKES.astype(q_BKME.dtype),
                                preferred_element_type=jnp.float32)
        # A key lies at its position, so this hides the future and what is not written yet.
        seen_BLS = start + jnp.arange(k_BKES.shape[3]) <= positions_BL[:, :, None]
        scores.append(jnp.where(jnp.tile(seen_BLS[:, None], (1, 1, H // K, 1)), score_BKMS, -1e30))
        start += k_BKES.shape[3]
    # The largest score is that over all blocks, so that their weights are on one scale; then each
    # block is added by itself, in order: how many there are changes no sum.
    most_BKM = jnp.max(jnp.stack([score_BKMS.max(-1) for score_BKMS in scores]), 0)
    total_BKM = 0
    out_BKME = 0
    for score_BKMS, v_BKSE in zip(scores, v_blocks, strict=True):
        weights_BKMS = jnp.exp(score_BKMS - most_BKM[..., None])
        total_BKM += total(weights_BKMS)
        out_BKME += jnp.einsum('BKMS,BKSE->BKME', weights_BKMS.astype(q_BKME.dtype),
                               v_BKSE.astype(q_BKME.dtype), preferred_element_type=jnp.float32)
    out_BKME = (out_BKME / total_BKM[..., None]).astype(q_BLHE.dtype)
    return out_BKME.reshape(B, H, L, E).swapaxes(1, 2)

"""The key/value cache: per layer, blocks along S, of which a program takes as many as are in use.

A step pays for the blocks that it is given, not for those that are allocated, and a row's numbers
do not depend on how many that are: sums run block by block, and a masked key adds an exact zero.
"""
import jax.numpy as jnp


def ladder(n, least=16):
    """The smallest static size of 16, 32, 48, 64, 96, 128, 192, 256, 384 ... that holds `n`."""
    size = least
    while size < n:
        # Sizes 2^k and 3 * 2^(k - 1) in turn: at most a third of a long prompt is padding.
        size = size * 2 if size < 32 else size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def edges(capacity, least=64):
    """Where blocks end: every size of the ladder from `least` until `capacity` tokens fit."""
    found = [least]
    while found[-1] < capacity:
        found.append(ladder(found[-1] + 1, least))
    return tuple(found)


def empty_cache(cfg, rows, ends, dtype='float32'):
    """(k, v): for each block up to `ends` a tuple over layers of zeros, k [B, K, E, S] and
    v [B, K, S, E]. Keys lie with S last: queries meet them in one plain product."""
    sizes = [end - start for start, end in zip((0, *ends), ends)]
    k = [tuple(jnp.zeros((rows, cfg.K, cfg.E, size), dtype) for _ in range(cfg.N))
         for size in sizes]
    v = [tuple(jnp.zeros((rows, cfg.K, size, cfg.E), dtype) for _ in range(cfg.N))
         for size in sizes]
    return k, v


def remember(k_blocks, v_blocks, k_BKE, v_BKE, positions_B):
    """The blocks of one layer with the key and value of each row written at its position."""
    rows, start, ks, vs = jnp.arange(len(positions_B)), 0, [], []
    for k_BKES, v_BKSE in zip(k_blocks, v_blocks, strict=True):
        size = v_BKSE.shape[2]
        # A position of another block becomes one that no block has; negative ones would wrap.
        at_B = jnp.where(positions_B >= start, positions_B - start, size)
        ks.append(k_BKES.at[rows, :, :, at_B].set(k_BKE.astype(k_BKES.dtype), mode='drop'))
        vs.append(v_BKSE.at[rows, :, at_B].set(v_BKE.astype(v_BKSE.dtype), mode='drop'))
        start += size
    return ks, vs


def attend_cached(q_BLHE, k_blocks, v_blocks, positions_B):
    """Attention [B, 1, H, E] of one query per row over every key up to its position, itself
    included; grouped, so that no key is repeated."""
    B, _, H, E = q_BLHE.shape
    K = v_blocks[0].shape[1]
    q_BKGE = (q_BLHE * E ** -0.5).reshape(B, K, H // K, E)
    start, scores = 0, []
    for k_BKES in k_blocks:
        score_BKGS = jnp.einsum('BKGE,BKES->BKGS', q_BKGE, k_BKES.astype(q_BKGE.dtype),
                                preferred_element_type=jnp.float32)
        seen_BS = start + jnp.arange(k_BKES.shape[3]) <= positions_B[:, None]
        scores.append(jnp.where(seen_BS[:, None, None], score_BKGS, -1e30))
        start += k_BKES.shape[3]
    most_BKG = jnp.max(jnp.stack([score_BKGS.max(-1) for score_BKGS in scores]), 0)
    total_BKG, out_BKGE = 0, 0
    for score_BKGS, v_BKSE in zip(scores, v_blocks, strict=True):
        weights_BKGS = jnp.exp(score_BKGS - most_BKG[..., None])
        total_BKG += weights_BKGS.sum(-1)
        out_BKGE += jnp.einsum('BKGS,BKSE->BKGE', weights_BKGS.astype(q_BKGE.dtype),
                               v_BKSE.astype(q_BKGE.dtype), preferred_element_type=jnp.float32)
    return (out_BKGE / total_BKG[..., None]).astype(q_BLHE.dtype).reshape(B, 1, H, E)

"""The key/value cache: per layer, blocks along S, of which a program takes as many as are in use.

A step pays for the blocks that it is given, not for those that are allocated, and a row's numbers
do not depend on how many that are: sums run block by block, and a masked key adds an exact zero.
"""
import operator
from collections.abc import Sequence
from functools import reduce

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


def is_flat(attention: str) -> bool:
    """Return whether blocks are kept flat, [B, S, F] with the K heads of width E side by side in F.

    With 'splash' (on a TPU) they are: its compiler wants a cache that is written position by
    position, reads whole rows of registers from it, and pads no heads.
    """
    return attention == 'splash'


def flattened(k_BKES: jax.Array, v_BKSE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return keys and values by position as [B, S, F], with the K heads side by side in F."""
    B, _, S, _ = v_BKSE.shape
    return (k_BKES.transpose(0, 3, 1, 2).reshape(B, S, -1),
            v_BKSE.transpose(0, 2, 1, 3).reshape(B, S, -1))


def opened(k: list[Layers], v: list[Layers], K: int) -> tuple[list[Layers], list[Layers]]:
    """Return flat blocks of a cache as `empty_cache` makes it by default."""
    def split(axes):
        return lambda leaf: leaf.reshape(*leaf.shape[:2], K, -1).transpose(axes)
    return jax.tree.map(split((0, 2, 3, 1)), k), jax.tree.map(split((0, 2, 1, 3)), v)


def empty_cache(cfg: LanguageConfig, rows: int, ends: Sequence[int], dtype: DTypeLike = 'float32',
                flat: bool = False) -> tuple[list[Layers], list[Layers]]:
    """Return (k, v) of zeros: for each block up to `ends` a tuple of layers.

    Those of k are [B, K, E, S], those of v [B, K, S, E]: with S last in keys, queries meet them in
    one plain product. `flat` ones are [B, S, K E] both.
    """
    sizes = [end - start for start, end in zip((0, *ends), ends)]
    if flat:
        shapes = [(rows, size, cfg.K * cfg.E) for size in sizes]
        k, v = ([tuple(jnp.zeros(shape, dtype) for _ in range(cfg.N)) for shape in shapes]
                for _ in range(2))
        return k, v
    k = [tuple(jnp.zeros((rows, cfg.K, cfg.E, size), dtype) for _ in range(cfg.N))
         for size in sizes]
    v = [tuple(jnp.zeros((rows, cfg.K, size, cfg.E), dtype) for _ in range(cfg.N))
         for size in sizes]
    return k, v


def cut(k: jax.Array, v: jax.Array,
        ends: Sequence[int]) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return keys and values by position, flat or not, as the blocks that end at `ends`."""
    k_axis, v_axis = (1, 1) if v.ndim == 3 else (3, 2)
    spans = list(zip((0, *ends), ends))
    return ([jax.lax.slice_in_dim(k, *span, axis=k_axis) for span in spans],
            [jax.lax.slice_in_dim(v, *span, axis=v_axis) for span in spans])


def remember(k_blocks: Sequence[jax.Array], v_blocks: Sequence[jax.Array], k_BKE: jax.Array,
             v_BKE: jax.Array, positions_B: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return the blocks of one layer with the key and value of each row written at its position."""
    rows = jnp.arange(len(positions_B))
    start = 0
    ks = []
    vs = []
    for k, v in zip(k_blocks, v_blocks, strict=True):
        flat = v.ndim == 3
        size = v.shape[1 if flat else 2]
        # A position of another block becomes one that no block has; negative ones would wrap.
        # Every block is written to, so that one program serves rows wherever they stand.
        at_B = jnp.where(positions_B >= start, positions_B - start, size)
        if flat:
            k_new, v_new = (new.reshape(len(rows), -1) for new in (k_BKE, v_BKE))
            places = (rows, at_B), (rows, at_B)
        else:
            k_new, v_new = k_BKE, v_BKE
            places = (rows, slice(None), slice(None), at_B), (rows, slice(None), at_B)
        ks.append(k.at[places[0]].set(k_new.astype(k.dtype), mode='drop'))
        vs.append(v.at[places[1]].set(v_new.astype(v.dtype), mode='drop'))
        start += size
    return ks, vs


def attend_next(q_B1HE: jax.Array, k_BKE: jax.Array, v_BKE: jax.Array,
                k_blocks: Sequence[jax.Array], v_blocks: Sequence[jax.Array],
                positions_B: jax.Array) -> tuple[jax.Array, tuple[list[jax.Array], ...]]:
    """Return (attention [B, 1, H, E] of one more token of each row, the blocks with it: k, v)."""
    if v_blocks[0].ndim == 4:
        blocks = remember(k_blocks, v_blocks, k_BKE, v_BKE, positions_B)
        return attend_blocks(q_B1HE, *blocks, positions_B[:, None]), blocks
    # Flat blocks are read before they are written, and the new token is a block of its own. Were
    # they written first, a TPU would fetch most of them, write into what was fetched, and store all
    # of it again: twice the traffic, which the compiler's estimate of cycles does not see.
    new = [part.reshape(len(part), 1, -1).astype(v_blocks[0].dtype) for part in (k_BKE, v_BKE)]
    out_B1HE = attend_blocks(q_B1HE, k_blocks, v_blocks, positions_B[:, None] - 1, new)
    # Nothing else says that reading comes first, and the other order would copy the cache.
    out_B1HE, k_BKE, v_BKE = jax.lax.optimization_barrier((out_B1HE, k_BKE, v_BKE))
    return out_B1HE, remember(k_blocks, v_blocks, k_BKE, v_BKE, positions_B)


def attend_blocks(q_BLHE: jax.Array, k_blocks: Sequence[jax.Array], v_blocks: Sequence[jax.Array],
                  positions_BL: jax.Array, new: Sequence[jax.Array] = ()) -> jax.Array:
    """Return attention [B, L, H, E] of queries at their positions over every key up to their own.

    H / K query heads share a key/value head, none is repeated. Sums are float32. Flat blocks are
    for one query a row. `new` is one more block, (keys, values), of which queries see all.
    """
    B, L, H, E = q_BLHE.shape
    products = _FlatProducts if v_blocks[0].ndim == 3 else _Products
    products = products(q_BLHE * E ** -0.5, v_blocks[0])
    start = 0
    scores = []
    for k in k_blocks:
        score = products.scores(k)  # [..., S]
        S = score.shape[-1]
        # A key lies at its position, so this hides the future and what is not written yet.
        seen_BLS = start + jnp.arange(S) <= positions_BL[:, :, None]
        scores.append(jnp.where(products.seen(seen_BLS), score, -1e30))
        start += S
    if new:
        scores.append(products.scores(new[0]))
        v_blocks = [*v_blocks, new[1]]
    # The largest score is that over all blocks, so that their weights are on one scale; then each
    # block is added by itself, in order: how many there are changes no sum.
    most = jnp.max(jnp.stack([score.max(-1) for score in scores]), 0)
    weight = 0
    out = 0
    for score, v in zip(scores, v_blocks, strict=True):
        weights = jnp.exp(score - most[..., None])
        weight += total(weights)
        out += products.values(weights, v)
    out = products.own(out) / weight[..., None]
    return out.astype(q_BLHE.dtype).reshape(B, H, L, E).swapaxes(1, 2)


class _Products:
    """The products of queries [B, L, H, E] with blocks [B, K, E, S] and [B, K, S, E].

    The M = (H / K) L queries of a key head lie side by side: both products are plain batched ones.
    """

    def __init__(self, q_BLHE, v_BKSE):
        B, L, H, E = q_BLHE.shape
        self.shared = H // v_BKSE.shape[1]
        self.q_BKME = q_BLHE.swapaxes(1, 2).reshape(B, H // self.shared, self.shared * L, E)

    def scores(self, k_BKES):
        return jnp.einsum('BKME,BKES->BKMS', self.q_BKME, k_BKES.astype(self.q_BKME.dtype),
                          preferred_element_type=jnp.float32)

    def seen(self, seen_BLS):
        return jnp.tile(seen_BLS[:, None], (1, 1, self.shared, 1))

    def values(self, weights_BKMS, v_BKSE):
        return jnp.einsum('BKMS,BKSE->BKME', weights_BKMS.astype(self.q_BKME.dtype),
                          v_BKSE.astype(self.q_BKME.dtype), preferred_element_type=jnp.float32)

    def own(self, out_BKME):
        return out_BKME


class _FlatProducts:
    """The products of queries [B, 1, H, E] with flat blocks [B, S, F].

    Each query stands in the columns of its own key head, among zeros, and meets all heads at once:
    so many products with zero cost a TPU less than heads that have to be picked out of its
    registers. G devices that share the heads do so each with its own.
    """

    def __init__(self, q_B1HE, v_BSF):
        B, _, H, E = q_B1HE.shape
        current = jax.sharding.get_abstract_mesh()
        G = 1 if current.empty else current.shape['tensor']
        self.J = v_BSF.shape[2] // E // G   # key heads of a device, which share its M query heads
        M = H // G
        self.own_MF = jnp.arange(M)[:, None] * self.J // M == jnp.arange(self.J * E) // E
        q_BGMF = jnp.tile(q_B1HE.reshape(B, G, M, E), self.J)
        self.q_BGMF = jnp.where(self.own_MF, q_BGMF, 0)

    def _split(self, block_BSF):
        B, S, F = block_BSF.shape
        return block_BSF.reshape(B, S, self.q_BGMF.shape[1], -1).astype(self.q_BGMF.dtype)

    def scores(self, k_BSF):
        score_BGMS = jnp.einsum('BGMF,BSGF->BGMS', self.q_BGMF, self._split(k_BSF),
                                preferred_element_type=jnp.float32)
        # All heads in one axis: the last two fill registers.
        return score_BGMS.reshape(score_BGMS.shape[0], -1, score_BGMS.shape[3])

    def seen(self, seen_B1S):
        return seen_B1S

    def values(self, weights_BHS, v_BSF):
        weights_BGMS = weights_BHS.reshape(*self.q_BGMF.shape[:3], -1)
        return jnp.einsum('BGMS,BSGF->BGMF', weights_BGMS.astype(self.q_BGMF.dtype),
                          self._split(v_BSF), preferred_element_type=jnp.float32)

    def own(self, out_BGMF):
        # All but one of the J that are added up are zero, so nothing is rounded. Each fills whole
        # registers: an axis of its own for them would have to be picked out.
        parts = jnp.split(jnp.where(self.own_MF, out_BGMF, 0), self.J, axis=-1)
        own_BGME = reduce(operator.add, parts)
        return own_BGME.reshape(len(own_BGME), -1, own_BGME.shape[-1])

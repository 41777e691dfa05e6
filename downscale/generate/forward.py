"""The decoder applied layer by layer, with what each layer has to remember.

The layers lie apart here, not stacked: on CPU a slice of a stacked weight is a copy, which would
double the memory that a step reads.
"""
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from downscale.letters import axes_of
from downscale.model.cache import (
    attend_blocks,
    attend_next,
    cut,
    flattened,
    is_flat,
)
from downscale.model.connector import Connector
from downscale.model.language import Block, score
from downscale.model.layers import rms_norm, rotary
from downscale.model.vision import Tower
from downscale.model.vlm import Vlm, splice
from downscale.mup import times
from downscale.sharding import constrain

QUERIES = 256  # that a TPU attends for at once while it reads
# Names of weights, and those that they have where inputs lie last in memory (`layers.product`).
TURNED = {'q_DHE': 'q_HED', 'k_DKE': 'k_KED', 'v_DKE': 'v_KED', 'o_HED': 'o_DHE',
          'gate_DF': 'gate_FD', 'up_DF': 'up_FD', 'down_FD': 'down_DF', 'head_DV': 'head_VD'}


def unstack(params: dict[str, Any], dtype: DTypeLike, turned: bool = False) -> dict[str, Any]:
    """Return `params` for this module: `language.blocks` as a tuple of layers, matrices in `dtype`.

    Gains stay as they are stored: norms are computed in float32. Layers of numpy arrays are views,
    but not where weights are `turned`, their inputs put last.
    """
    def typed(path, leaf):
        gain = 'scale' in str(path[-1].key)
        return leaf if gain else leaf.astype(dtype, copy=False)

    params = jax.tree_util.tree_map_with_path(typed, params)
    if 'language' not in params:
        return params
    blocks = params['language']['blocks']
    layers = len(jax.tree.leaves(blocks)[0])
    apart = tuple(jax.tree.map(lambda leaf: leaf[n], blocks) for n in range(layers))
    language = {**params['language'], 'blocks': apart}
    if turned:
        language = jax.tree.map(np.ascontiguousarray, _renamed(language, TURNED))
    return {**params, 'language': language}


def _renamed(tree, names):
    """Return a tree in which weights of `names` have the new ones, and their axes in that order."""
    if not isinstance(tree, dict):
        return tree if not isinstance(tree, tuple) else tuple(_renamed(x, names) for x in tree)
    found = {}
    for name, value in tree.items():
        new = names.get(name, name)
        if new != name:
            axes, wanted = axes_of(name), axes_of(new)
            value = value.transpose([axes.index(axis) for axis in wanted])
        found[new] = _renamed(value, names)
    return found


def _named(language):
    """Return the parameters of a decoder, or of one layer, under the names that modules know.

    Weights that are turned become views: XLA takes them as they lie.
    """
    return _renamed(language, {new: name for name, new in TURNED.items()})


def embed(model: Vlm, params: dict[str, Any], tokens_BL: jax.Array) -> jax.Array:
    """Return the embeddings [B, L, D] of text, with which the decoder begins."""
    x_BLD = params['language']['embedding_VD'][tokens_BL].astype(model.dtype)
    return constrain(times(x_BLD, model.growth.input), 'BLD', model.rules)


def through_blocks(model: Vlm, params: dict[str, Any], x_BLD: jax.Array, positions_BL: jax.Array,
                   mixes: Iterable[Callable]) -> tuple[jax.Array, list]:
    """Return (x after all blocks, what the mix of each layer kept); `mixes` has one a layer.

    A mix takes queries, keys and values and returns (attention's output, what to keep).
    """
    cfg = model.language
    kept = []
    # The module of training, applied to one layer's weights at a time; `exact` fixes its sums.
    block = Block(cfg, model.rules, exact=True, growth=model.growth)
    turn = rotary(positions_BL, cfg.E, cfg.theta)
    for layer, mix in zip(params['language']['blocks'], mixes, strict=True):
        x_BLD, new = block.apply({'params': _named(layer)}, x_BLD, turn, mix)
        kept.append(new)
    return x_BLD, kept


def logits(model: Vlm, params: dict[str, Any], x_BLD: jax.Array) -> jax.Array:
    """Return the logits [B, L, V], float32, for `x_BLD` as the last block returns it."""
    language = _named({**params['language'], 'blocks': ()})
    cfg = model.language
    x_BLD = rms_norm(x_BLD, language['final_norm']['scale_D'], cfg.eps, exact=True)
    x_BLD = times(x_BLD, model.growth.output)
    table = language['embedding_VD' if cfg.tie else 'head_DV']
    return constrain(score(x_BLD, table, cfg.tie, exact=True), 'BLV', model.rules)


def see(model: Vlm, params: dict[str, Any], tiles_BPQ: jax.Array) -> jax.Array:
    """Return features [B, P, D] of one tile per row, at the decoder's width."""
    tower = Tower(model.vision, model.rules, model.dtype, unroll=model.unroll)
    features_BPW = tower.apply({'params': params['tower']}, tiles_BPQ)
    connector = Connector(model.language.D, model.rules, model.dtype)
    # pyrefly: ignore[bad-return]
    return connector.apply({'params': params['connector']}, features_BPW)


def show(model: Vlm, params: dict[str, Any], x_BLD: jax.Array, features_BID: jax.Array,
         image_index_BLC: jax.Array, image_weight_BLC: jax.Array | None) -> jax.Array:
    """Return `x_BLD` with image features in the places of image tokens.

    The feature behind those of the last tile is the newline, where the model has one.
    """
    # One for each row: an index names features of its own row.
    if model.newline:
        newline_D = params['image_newline_D'].astype(model.dtype)
        last_B1D = jnp.broadcast_to(newline_D, (len(x_BLD), 1, len(newline_D)))
        features_BID = jnp.concatenate([features_BID, last_B1D], axis=1)
    image_BLD = splice(features_BID, image_index_BLC, image_weight_BLC)
    return jnp.where(image_index_BLC[:, :, :1] >= 0, image_BLD, x_BLD)


def read(model: Vlm, params: dict[str, Any], x_BLD: jax.Array, ends: Sequence[int],
         prefix: list | None = None, before_B: jax.Array | None = None) -> tuple[jax.Array, list]:
    """Return (x after all blocks, per layer the cache blocks (k, v) up to `ends` of its tokens).

    Rows continue a `prefix` (per layer (k blocks, v blocks), never flat, of which the first
    `before_B` tokens of each row count), or begin at position 0. What is returned is flat where the
    cache of the model is.
    """
    B, L, _ = x_BLD.shape
    positions_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
    # Positions go on behind a prefix, as they would in one text.
    if prefix is not None:
        positions_BL = positions_BL + before_B[:, None]

    def mix_of(n):
        prefix_k, prefix_v = prefix[n] if prefix else (None, None)

        def mix(q_BLHE, k_BLKE, v_BLKE):
            # The cache keeps positions last in keys and before E in values (`empty_cache`).
            k_BKES = k_BLKE.transpose(0, 2, 3, 1)
            v_BKSE = v_BLKE.transpose(0, 2, 1, 3)
            k_BKES = _placed(k_BKES, 3, ends[-1], prefix_k, before_B)
            v_BKSE = _placed(v_BKSE, 2, ends[-1], prefix_v, before_B)
            if is_flat(model.attention):
                # Flat as a whole: for each block alone the same would be so many more programs.
                blocks = cut(*flattened(k_BKES, v_BKSE), ends)
                return _attend_parts(q_BLHE, k_BKES, v_BKSE, positions_BL), blocks
            blocks = cut(k_BKES, v_BKSE, ends)
            return attend_blocks(q_BLHE, *blocks, positions_BL), blocks
        return mix

    return through_blocks(model, params, x_BLD, positions_BL,
                          [mix_of(n) for n in range(model.language.N)])


def _attend_parts(q_BLHE, k_BKES, v_BKSE, positions_BL):
    """Return what `attend_blocks` does of one block, for some queries after the others.

    A TPU promises no order of sums that the blocks of the cache could keep, and its compiler makes
    the products of each block and layer anew: with 12 blocks they were most of what it did.
    """
    L = q_BLHE.shape[1]
    part = math.gcd(L, QUERIES)

    def split(x):
        return x.reshape(len(x), L // part, part, *x.shape[2:]).swapaxes(0, 1)
    # The scores of all queries at once would be the largest array of the program.
    out = jax.lax.map(lambda x: attend_blocks(x[0], [k_BKES], [v_BKSE], x[1]),
                      (split(q_BLHE), split(positions_BL)))
    return out.swapaxes(0, 1).reshape(q_BLHE.shape)


def _placed(new, axis, size, prefix_blocks, before_B):
    """Return `new` [B, K, ...] in room for `size` tokens along `axis`, the position.

    Each row stands behind the `before_B` tokens of its prefix, or at 0 without `prefix_blocks`.
    """
    begin = jnp.concatenate(prefix_blocks, axis) if prefix_blocks else new
    # As long as the last block ends: what is cut from it has a static size.
    room = [(0, 0)] * begin.ndim
    room[axis] = (0, size - begin.shape[axis])
    begin = jnp.pad(begin, room)
    if not prefix_blocks:
        return begin
    # A row without pictures stands at 0, over the prefix of its lane, which does not count for it.
    return jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1))(
        begin, new.astype(begin.dtype), before_B)


def by_layer(k: list, v: list) -> list:
    """Return [(k blocks, v blocks) of each layer] of a cache, lists of blocks of layers."""
    return list(zip(zip(*k), zip(*v), strict=True))


def by_block(layers: list) -> tuple[list, list]:
    """Return (k, v), lists of blocks of layers, from [(k blocks, v blocks) of each layer]."""
    k_layers, v_layers = zip(*layers)
    return list(zip(*k_layers)), list(zip(*v_layers))


def step(model: Vlm, params: dict[str, Any], token_B: jax.Array, positions_B: jax.Array, k: list,
         v: list) -> tuple[jax.Array, list, list]:
    """Return (logits [B, V] behind one more token of each row, the cache with it: k, v).

    `k` and `v` are those of `cache.empty_cache`; the token is written at `positions_B`.
    """
    def mix_of(k_blocks, v_blocks):
        def mix(q_BLHE, k_BLKE, v_BLKE):
            return attend_next(q_BLHE, k_BLKE[:, 0], v_BLKE[:, 0], k_blocks, v_blocks, positions_B)
        return mix

    x_BLD = embed(model, params, token_B[:, None])
    mixes = [mix_of(*blocks) for blocks in by_layer(k, v)]
    x_BLD, kept = through_blocks(model, params, x_BLD, positions_B[:, None], mixes)
    k, v = by_block(kept)
    return logits(model, params, x_BLD)[:, 0], k, v

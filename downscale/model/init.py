"""Starting values of parameters, read off their names: the modules declare shapes only.

A leaf's values depend on the seed and on the leaf's own path, so they are the same on every
backend, for every mesh and whatever else is made beside it.
"""
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from downscale.letters import axes_of
from downscale.mup import multipliers
from downscale.sharding import leaf_axes, share_shape, whole
from downscale.sizes import BASE, Growth

if TYPE_CHECKING:
    from downscale.model.vlm import Vlm

# Modules pass this to `self.param`: `init_params` replaces what it makes.
SHAPE_ONLY = nn.initializers.zeros
PARTS = ('language', 'tower', 'connector', 'image_newline_D')


def share(module: nn.Module, name: str, shape: Sequence[int]) -> jax.Array:
    """Return the parameter `name` of `module`, or this device's share of it (`sharding.py`)."""
    return module.param(name, SHAPE_ONLY, share_shape(axes_of(name), shape, module.rules))


def weight(module: nn.Module, name: str, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
    """Return the whole parameter `name` of `module` as `dtype`, gathered in the train step."""
    return whole(share(module, name, shape).astype(dtype), axes_of(name), shape, module.rules)


def start_value(path: tuple, leaf: Any) -> tuple[float, float]:
    """Return (mean, std) of a leaf. Kernels have variance 1 / fan-in; gains are 1 and biases 0.

    The published decoders start from std 0.02, which is this at width 2,500; at width 64 it would
    leave the blocks silent next to the embedding. The first of the named axes is the input, both
    H and E where heads are read; the axis N of the scan over layers is none.
    """
    name = str(path[-1].key)
    stem = name.rpartition('_')[0]
    axes = leaf_axes(path, leaf).lstrip('N')
    shape = leaf.shape[len(leaf.shape) - len(axes):]
    if stem.endswith('scale'):
        return 1.0, 0.0
    if stem.endswith('bias'):
        return 0.0, 0.0
    # SigLIP's learned positions; they are added to patches, so no fan-in says how large they are.
    if stem == 'position':
        return 0.0, 0.02
    if stem in ('embedding', 'image_newline'):
        return 0.0, shape[-1] ** -0.5
    # An output projection such as o_HED sums over heads and their width: both are its fan-in.
    inputs = math.prod(shape[:2]) if axes.startswith('HE') else shape[0]
    return 0.0, inputs ** -0.5


def init_tree(abstract: dict[str, Any], seed: int, growth: Growth = BASE) -> dict[str, Any]:
    """Return float32 numpy values for a tree of ShapeDtypeStructs by group, drawn from `seed`."""
    def one(path, leaf, factor):
        mean, std = start_value(path, leaf)
        where = zlib.crc32(jax.tree_util.keystr(path).encode())
        if not std:
            return np.full(leaf.shape, mean, np.float32)
        # Named by seed and path, so that no draw depends on what is drawn before it.
        draw = np.random.Generator(np.random.Philox([seed, where])).standard_normal(
            leaf.shape, np.float32)
        return draw * np.float32(std * factor)
    return jax.tree_util.tree_map_with_path(one, abstract, multipliers(abstract, growth).init)


@lru_cache
def abstract_params(model: 'Vlm', parts: tuple[str, ...] = PARTS) -> dict[str, Any]:
    """Return ShapeDtypeStructs of the named groups of a `Vlm`, without computing anything."""
    tokens = np.zeros((1, 2), np.int32)
    shown = ()
    if set(parts) != {'language'}:
        # Flax makes only what a call uses: one tile, shown nowhere (index -1), brings in the tower.
        tiles = np.zeros((1, 1, model.vision.P, model.vision.Q), np.float32)
        shown = tiles, tokens[:, :, None] - 1

    def init():
        return model.init(jax.random.key(0), tokens, tokens, tokens, *shown)

    tree = jax.eval_shape(init)['params']
    return {name: tree[name] for name in parts}


def init_params(model: 'Vlm', seed: int, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Return fresh values of the named groups of a `Vlm`, as numpy."""
    # pyrefly: ignore[bad-argument-type]
    return init_tree(abstract_params(model, tuple(parts)), seed, model.growth)

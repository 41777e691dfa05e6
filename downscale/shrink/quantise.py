"""Weights of fewer bits: symmetric integers with a scale for each group of inputs, as floats.

Values stay floats that lie on the grid of the integers ("fake" quantisation), so that any program
computes with them; `accounting.stored_bytes` says what storage would need. A group is `group`
successive inputs of one output. Its scale is a bfloat16 and the smallest one by which the largest
value of the group still is an integer of `bits` bits, so that nothing is cut off and no value
moves by more than half a scale. Matrices of the decoder are quantised, embedding and head among
them; gains and biases are not.
"""
import math
from typing import Any

import jax
import numpy as np

from downscale.letters import axes_of
from downscale.sizes import LanguageConfig

BITS = (8, 4)


def check_group(language: LanguageConfig, bits: int, group: int) -> None:
    """Raise ValueError, naming the nearest size, where groups do not divide all inputs."""
    if bits not in BITS:
        raise ValueError(f'{bits} bits: give {" or ".join(map(str, BITS))}')
    c = language
    inputs = {'the width': c.D, 'all heads': c.H * c.E, 'hidden units': c.F}
    common = math.gcd(*inputs.values())
    for what, count in inputs.items():
        if group < 1 or count % group:
            best = max(size for size in range(1, common + 1)
                       if not common % size and size <= max(group, 1))
            raise ValueError(f'a group of {group} inputs does not divide {what} of {count}; '
                             f'{best} divides all matrices of this model')


def quantise(params: dict[str, Any], bits: int, group: int) -> dict[str, Any]:
    """Return the group `language` of a model with its matrices on the grid, as float32 arrays."""
    def leaf_of(path, leaf):
        name = str(path[-1].key)
        stem, _, axes = name.rpartition('_')
        if len(axes_of(name)) < 2 or stem.endswith(('scale', 'bias')):
            return leaf
        leaf = np.asarray(leaf)
        # Layers lie along a leading axis N, which the name does not have.
        stacked = leaf.shape[:leaf.ndim - len(axes)]
        # An embedding reads its width where it is the head; all others read their first axis, or
        # two where heads are read.
        if stem == 'embedding':
            return on_grid(leaf.swapaxes(-1, -2), bits, group).swapaxes(-1, -2)
        inputs = math.prod(leaf.shape[len(stacked):][:2 if axes.startswith('HE') else 1])
        matrix = leaf.reshape(*stacked, inputs, -1)
        return on_grid(matrix, bits, group).reshape(leaf.shape)
    return jax.tree_util.tree_map_with_path(leaf_of, params)


def on_grid(matrix: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Return `matrix` [..., inputs, outputs] with each value a whole multiple of its group's scale.

    ValueError where a value is no number.
    """
    values = np.asarray(matrix, np.float32)
    if not np.isfinite(values).all():
        raise ValueError('a weight is no finite number, and has no scale')
    largest = 2 ** (bits - 1) - 1
    parts = values.reshape(*values.shape[:-2], -1, group, values.shape[-1])
    scale = upper_bfloat16(np.abs(parts).max(-2, keepdims=True) / np.float32(largest))
    whole = np.rint(np.divide(parts, scale, out=np.zeros_like(parts), where=scale > 0))
    # A quotient of float32 may round past the last integer.
    return (np.clip(whole, -largest, largest) * scale).reshape(values.shape)


def upper_bfloat16(x: np.ndarray) -> np.ndarray:
    """Return the least bfloat16 that is not below each float32 of `x`, which is not negative."""
    # A bfloat16 is the upper half of a float32, and positive floats are in the order of their bits.
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)

"""What a train step carries: arrays only, in one nested dict.

`{'step': int32, 'params': {group: tree}, 'opt_state': optax state of the trainable groups}`.
"""
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from downscale.train.optimizer import group_of, transform

if TYPE_CHECKING:
    from downscale.config import Optimizer


def split(params: dict[str, Any],
          trainable: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (trainable part, frozen part) of a parameter dict, by learning-rate group."""
    # Only the moving part has moments: a frozen tower costs its weights and no more.
    moving = {k: v for k, v in params.items() if group_of(k) in trainable}
    return moving, {k: v for k, v in params.items() if k not in moving}


def new_state(params: dict[str, Any], optimizer: 'Optimizer',
              trainable: Collection[str]) -> dict[str, Any]:
    """Return the state at step 0.

    Raises ValueError when a trainable group is absent from `params`.
    """
    moving, _ = split(params, trainable)
    missing = sorted(set(trainable) - {group_of(name) for name in moving})
    if missing:
        raise ValueError(f'trainable groups {missing} are not in the parameters '
                         f'({sorted(params)}); fix the stage\'s `trainable` or its parents')
    return {'step': jnp.zeros((), jnp.int32), 'params': params,
            'opt_state': transform(optimizer).init(moving)}


@partial(jax.jit, static_argnames='trainable')
def bits(params: dict[str, Any], trainable: tuple[str, ...]) -> dict[str, jax.Array]:
    """Return {group: uint32} of the trainable groups: the sum of the bits of all their weights.

    Whole numbers add up to the same on every mesh, and a weight that moves changes its sum.
    """
    moving, _ = split(params, trainable)
    sums = dict.fromkeys(trainable, jnp.uint32(0))
    for name, tree in moving.items():
        for leaf in jax.tree.leaves(tree):
            # Bits and not values: a sum modulo 2^32 is the same in any order.
            width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
            words = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
            sums[group_of(name)] += words.sum(dtype=jnp.uint32)
    return sums


def unmoved(before: dict[str, int], params: dict[str, Any]) -> list[str]:
    """Return the groups whose weights training has not changed.

    `before` is what `bits` gave at the start of the stage, as plain numbers.
    """
    after = bits(params, tuple(before))
    return [group for group, total in before.items() if int(after[group]) == total]


def abstract(state: Any, shards: Any) -> Any:
    """Return ShapeDtypeStructs of `state` with their shardings, for compiling and restoring."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                        state, shards)

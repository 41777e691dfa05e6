"""What a train step carries: arrays only, in one nested dict.

`{'step': int32, 'params': {group: tree}, 'opt_state': optax state of the trainable groups}`.
"""
import jax
import jax.numpy as jnp

from downscale.sharding import shardings
from downscale.train.optimizer import group_of, transform


def split(params, trainable):
    """(trainable part, frozen part) of a parameter dict, by learning-rate group."""
    moving = {k: v for k, v in params.items() if group_of(k) in trainable}
    return moving, {k: v for k, v in params.items() if k not in moving}


def new_state(params, optimizer, trainable):
    """The state at step 0. Raises ValueError when a trainable group is absent from `params`."""
    moving, _ = split(params, trainable)
    missing = sorted(set(trainable) - {group_of(name) for name in moving})
    if missing:
        raise ValueError(f'trainable groups {missing} are not in the parameters '
                         f'({sorted(params)}); fix the stage\'s `trainable` or its parents')
    return {'step': jnp.zeros((), jnp.int32), 'params': params,
            'opt_state': transform(optimizer).init(moving)}


def state_shardings(state, mesh, rules):
    """The sharding of every leaf; the optimiser's trees end in the same names as the params."""
    return shardings(state, mesh, rules)


def abstract(state, shards):
    """ShapeDtypeStructs of `state` with their shardings, for compiling and restoring."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                        state, shards)

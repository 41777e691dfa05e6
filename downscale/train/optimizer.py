"""AdamW with a learning rate per parameter group, chosen on the host.

The rates enter the compiled step as numbers, so stages that differ only in their schedule share
one program.
"""
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import optax

from downscale.mup import multipliers, times
from downscale.sizes import BASE, Growth

if TYPE_CHECKING:
    from downscale.config import Optimizer

# `image_newline` learns with the decoder, as in the reference recipe; what only the tower's
# own stage has learns with it.
_GROUP = {'image_newline_D': 'language', 'word_norm': 'tower', 'word_WV': 'tower',
          'word_bias_V': 'tower'}


def group_of(name: str) -> str:
    """Return the learning-rate group of a top-level name of the parameter tree."""
    return _GROUP.get(name, name)


@lru_cache
def transform(optimizer: 'Optimizer', growth: Growth = BASE) -> optax.GradientTransformation:
    """Return the optax transform whose updates are still to be scaled by minus the learning rate.

    `growth` sets epsilon and decay of each leaf; the state has the same leaves for any.
    """
    def decayed(params):
        # Matrices decay; gains, biases and single vectors do not.
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: not str(path[-1].key).rpartition('_')[0].endswith(
                ('scale', 'bias', 'newline')), params)
    clip = optax.identity() if optimizer.clip is None else \
        optax.clip_by_global_norm(optimizer.clip)
    decay = optax.add_decayed_weights(optimizer.weight_decay, mask=decayed)

    def clipped(grads, state, params=None):
        # Adam of g / k with epsilon is Adam of g with k * epsilon, but optax has one for all.
        grads, state = clip.update(grads, state, params)
        return jax.tree.map(lambda g, k: times(g, 1 / k), grads,
                            multipliers(grads, growth).eps), state

    def with_decay(updates, state, params):
        return decay.update(updates, state, jax.tree.map(
            times, params, multipliers(params, growth).decay))

    return optax.chain(
        # pyrefly: ignore[bad-argument-type]
        optax.GradientTransformation(clip.init, clipped),
        optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps,
                            mu_dtype=optimizer.first_moment),
        # pyrefly: ignore[bad-argument-type]
        optax.GradientTransformation(decay.init, with_decay))


def scaled(updates: dict[str, Any], rates: dict[str, Any], growth: Growth = BASE) -> dict[str, Any]:
    """Return `updates` times minus the rate of each leaf's group, times what `growth` makes of it.

    `rates` maps group names to numbers.
    """
    factors = multipliers(updates, growth).rate
    return {name: jax.tree.map(lambda u, factor: times(-rates[group_of(name)], factor) * u, tree,
                               factors[name])
            for name, tree in updates.items()}

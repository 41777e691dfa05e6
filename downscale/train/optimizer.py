"""AdamW with a learning rate per parameter group, chosen on the host.

The rates enter the compiled step as numbers, so stages that differ only in their schedule share
one program.
"""
import math
from dataclasses import dataclass
from functools import lru_cache

import jax
import optax

from downscale.mup import BASE, multipliers, times

GROUPS = ('tower', 'connector', 'language')


@dataclass(frozen=True)
class Optimizer:
    """AdamW after global-norm clipping; `accumulate` micro-batches make one step.

    `first_moment` is the dtype of Adam's mean of gradients; bfloat16 saves 2 bytes a parameter.
    """
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    accumulate: int = 1
    first_moment: str = 'float32'

    def __post_init__(self):
        if self.first_moment not in ('float32', 'bfloat16'):
            raise ValueError(f"first_moment {self.first_moment!r} must be 'float32' or 'bfloat16'")


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over a share of the steps, then cosine to `final` of the peak rate."""
    steps: int
    warmup: float = 0.03
    final: float = 0.0

    def factor(self, step):
        """Share of the peak rate at `step` (0-based), in (0, 1]."""
        warmup = max(1, round(self.warmup * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


# `image_newline` learns with the decoder, as in the reference recipe; what only the tower's
# own stage has learns with it.
_GROUP = {'image_newline_D': 'language', 'word_norm': 'tower', 'word_WV': 'tower',
          'word_bias_V': 'tower'}


def group_of(name):
    """The learning-rate group of a top-level name of the parameter tree."""
    return _GROUP.get(name, name)


@lru_cache
def transform(optimizer, growth=BASE):
    """The optax transform whose updates are still to be scaled by minus the learning rate.

    `growth` sets epsilon and decay of each leaf; the state has the same leaves for any.
    """
    def decayed(params):
        # Matrices decay; gains, biases and single vectors do not.
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: not str(path[-1].key).rpartition('_')[0].endswith(
                ('scale', 'bias', 'newline')), params)
    clip = optax.clip_by_global_norm(optimizer.clip)
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
        optax.GradientTransformation(clip.init, clipped),
        optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps,
                            mu_dtype=optimizer.first_moment),
        optax.GradientTransformation(decay.init, with_decay))


def scaled(updates, rates, growth=BASE):
    """`updates` times minus the rate of each leaf's group, times what `growth` makes of it.

    `rates` maps group names to numbers.
    """
    factors = multipliers(updates, growth).rate
    return {name: jax.tree.map(lambda u, factor: times(-rates[group_of(name)], factor) * u, tree,
                               factors[name])
            for name, tree in updates.items()}

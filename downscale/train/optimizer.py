"""AdamW with a learning rate per parameter group, chosen on the host.

The rates enter the compiled step as numbers, so stages that differ only in their schedule share
one program.
"""
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import jax
import optax

from downscale.mup import multipliers, times
from downscale.sizes import BASE
from downscale.values import COUNT, Choice, Range, check

GROUPS = ('tower', 'connector', 'language')
# Of a stage; 1 is more likely meant as one step than as all of them.
WARMUP = Annotated[float, Range(0, 1, 'the share of the steps in which the rate climbs, 0.03 for 3 '
                                'per cent; not a number of steps', without=(1,))]
FINAL = Annotated[float, Range(0, 1, 'the share of the peak rate that the last step has')]


@dataclass(frozen=True)
class Optimizer:
    """AdamW after clipping by the global norm; `accumulate` micro-batches make one step.

    `first_moment` is the dtype of Adam's mean of gradients; bfloat16 saves 2 bytes a parameter.
    """
    b1: Annotated[float, Range(0, 1, 'share of its mean of gradients that a step keeps',
                               without=(1,))] = 0.9
    b2: Annotated[float, Range(0, 1, 'share of its mean of squares that a step keeps',
                               without=(1,))] = 0.95
    eps: Annotated[float, Range(0, 1, 'what is added to the root of the squares',
                                without=(0,))] = 1e-8
    weight_decay: Annotated[float, Range(0, 10, 'share of a weight that a rate of 1 takes off'
                                         )] = 0.0
    clip: Annotated[float | None, Range(0, 1e12, 'the norm that gradients are cut to; None is no '
                                        'clipping', without=(0,))] = 1.0
    accumulate: Annotated[int, Range(1, 2 ** 20, 'micro-batches of a step')] = 1
    first_moment: Annotated[str, Choice(('float32', 'bfloat16'), 'first_moment')] = 'float32'

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over a share of the steps, then cosine to `final` of the peak rate."""
    steps: Annotated[int, Range(1, COUNT, 'steps of the stage')]
    warmup: Annotated[float, Range(0, 1, 'the share of the steps in which the rate climbs')] = 0.03
    final: FINAL = 0.0

    def __post_init__(self):
        check(self)

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

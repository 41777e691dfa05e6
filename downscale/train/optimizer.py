"""AdamW with a learning rate per parameter group, chosen on the host.

The rates enter the compiled step as numbers, so stages that differ only in their schedule share
one program.
"""
import math
from dataclasses import dataclass
from functools import lru_cache

import jax
import optax

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


# `image_newline` learns with the decoder, as in the reference recipe; what only the contrastive
# stage has learns with the tower.
_GROUP = {'image_newline_D': 'language', 'text': 'tower', 'pool_WW': 'tower',
          'pool_norm': 'tower', 'logit_scale_W': 'tower', 'logit_bias_W': 'tower'}


def group_of(name):
    """The learning-rate group of a top-level name of the parameter tree."""
    return _GROUP.get(name, name)


@lru_cache
def transform(optimizer):
    """The optax transform whose updates are still to be scaled by minus the learning rate."""
    def decayed(params):
        # Matrices decay; gains, biases and single vectors do not.
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: not str(path[-1].key).rpartition('_')[0].endswith(
                ('scale', 'bias', 'newline')), params)
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip),
        optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps,
                            mu_dtype=optimizer.first_moment),
        optax.add_decayed_weights(optimizer.weight_decay, mask=decayed))


def scaled(updates, rates):
    """`updates` times minus the rate of each leaf's group; `rates` maps group names to numbers."""
    return {name: jax.tree.map(lambda u: -rates[group_of(name)] * u, tree)
            for name, tree in updates.items()}

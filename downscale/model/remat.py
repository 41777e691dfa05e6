"""What a block keeps for the backward pass: the policies of rematerialisation, by name."""
from collections.abc import Callable

import flax.linen as nn
import jax

# By the names of `config.REMAT`: 'none' keeps everything, 'dots' the products with weights, 'full'
# a block's input alone.
POLICIES = {'none': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
            'full': jax.checkpoint_policies.nothing_saveable}


def rematerialised(layer: Callable, name: str) -> Callable:
    """Return `layer`, a module or a function of one, under the policy called `name`."""
    if name == 'none':
        return layer
    return nn.remat(layer, prevent_cse=False, policy=POLICIES[name])

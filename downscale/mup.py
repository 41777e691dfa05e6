"""muP for the width and CompleteP for the depth: hyperparameters tuned at a base size fit others.

A leaf's role is read off its name: the axes D, F, H and K grow with the language model, all others
(vocabulary, patches, the width of a head, the scan over layers) do not. For models that are trained
from random initialisation; a vision tower has one size and keeps its base values.
Sources: Yang et al., arXiv 2203.03466, table 8; Dey et al., arXiv 2505.01618, table 1 (alpha = 1).
Attention needs no factor of its own: all sizes of a family share the width of a head, so 1 / E and
1 / sqrt(E) differ by what is 1 at the base. The connector is our extension: its first layer reads
the tower, which does not grow, and so behaves as an embedding does.
"""
from dataclasses import dataclass

import jax

from downscale.letters import axes_of
from downscale.sizes import Growth

GROWING = frozenset('DFHK')
# What grows with the language model; everything else belongs to the tower and its word model.
_GROUPS = ('language', 'connector', 'image_newline_D')
_FIXED = ('tower', 'word_norm', 'word_WV', 'word_bias_V')


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """Trees of one float for each parameter, by which the values of the base are multiplied.

    They are the standard deviation at the start, learning rate, weight decay and Adam's epsilon.
    """
    init: dict
    rate: dict
    decay: dict
    eps: dict


def role_of(path: tuple) -> str:
    """Return 'embed', 'hidden', 'norm', 'bias', 'readout', 'connector_in' or 'frozen', of one leaf.

    `path` is its key path in a parameter dict by group. ValueError for a leaf that has no role.
    """
    group = str(path[0].key)
    name = str(path[-1].key)
    stem = name.rpartition('_')[0]
    # Without the N of the scan, which the leaf has and its name has not.
    axes = axes_of(name)
    if group in _FIXED:
        return 'frozen'
    if group in _GROUPS and axes:
        for end, role in (('scale', 'norm'), ('bias', 'bias'), ('newline', 'embed')):
            if stem.endswith(end):
                return role
        # A kernel's first axis is what it reads, the rest what it writes (`model/init.py`).
        reads = axes[0] in GROWING
        writes = bool(GROWING & set(axes[1:]))
        if reads:
            return 'hidden' if writes else 'readout'
        if writes:
            return 'connector_in' if group == 'connector' else 'embed'
    raise ValueError(f'parameter {jax.tree_util.keystr(path, simple=True, separator="/")} has no '
                     'role: name it after the rules of `mup.role_of`, or add it there')


def roles(params: dict) -> dict:
    """Return the role of every leaf of a parameter dict, as a tree like it."""
    return jax.tree_util.tree_map_with_path(lambda path, _: role_of(path), params)


def multipliers(params: dict, growth: Growth) -> Multipliers:
    """Return the `Multipliers` of a parameter dict; all are 1 at the base.

    `init` is relative to `model/init.py`, whose kernels have variance 1 / fan-in, as muP wants for
    hidden ones; embedding and head keep the base's variance at every width. Decay is multiplied by
    the rate afterwards, so their product stays. Gradients shrink by m, in the blocks by m * l, and
    epsilon with them.
    """
    # The letters of the papers: m_N, how many times wider; m_L, how many times deeper.
    m = growth.width
    l = growth.depth

    def tree(rule):
        return jax.tree_util.tree_map_with_path(lambda path, _: rule(role_of(path), path), params)

    def eps(role, path):
        if role == 'frozen':
            return 1.0
        in_block = any(str(part.key) == 'blocks' for part in path)
        return 1 / (m * l) if in_block else 1 / m

    # x sqrt(m) undoes the 1 / fan-in of the head, and of the embedding, whose std is D^-1/2.
    init = tree(lambda role, _: m ** 0.5 if role in ('embed', 'readout') else 1.0)
    # Adam moves each weight equally far, so a sum over m times more of them moves m times more.
    rate = tree(lambda role, _: 1 / m if role == 'hidden' else 1.0)
    decay = tree(lambda role, _: m if role == 'hidden' else 1.0)
    return Multipliers(init=init, rate=rate, decay=decay, eps=tree(eps))


def times(x: jax.Array, factor: float) -> jax.Array:
    """Return `x * factor` in the dtype of `x`; a factor of 1 leaves no trace in the program."""
    return x if factor == 1 else x * factor

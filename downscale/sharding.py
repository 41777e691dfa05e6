"""Where each axis lives on the mesh, read off the names of arrays.

Rules are a frozen value that is passed in, never ambient: a letter without a rule is an error,
and the rules are part of every jit key because they are part of the module that holds them.
"""
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from downscale import letters

MESH_AXES = ('data', 'fsdp', 'tensor')


@dataclass(frozen=True)
class Rules:
    """For each axis letter the mesh axes that split it; None keeps it whole.

    Parameters and activations have a table each: D is split for weights, not for activations.
    """
    params: tuple = (
        ('D', 'fsdp'), ('W', 'fsdp'), ('F', 'tensor'), ('H', 'tensor'), ('K', 'tensor'),
        ('V', 'tensor'), ('E', None), ('N', None), ('P', None), ('Q', None), ('L', None))
    activations: tuple = (
        ('B', ('data', 'fsdp')), ('I', None), ('L', None), ('S', None), ('D', None),
        ('F', 'tensor'), ('H', 'tensor'), ('K', 'tensor'), ('G', None), ('V', 'tensor'),
        ('E', None), ('N', None), ('P', None), ('Q', None), ('W', None))


def mesh(data=-1, fsdp=1, tensor=1, devices=None):
    """A mesh over `devices` (all by default); one size may be -1 and takes what is left.

    Raises ValueError with the arithmetic when the sizes do not multiply to the device count.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    known = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) == 1 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if -1 in sizes or int(np.prod(sizes)) != len(devices):
        raise ValueError(f'mesh {dict(zip(MESH_AXES, (data, fsdp, tensor)))} does not fit '
                         f'{len(devices)} devices; the sizes must multiply to {len(devices)}')
    grid = np.asarray(devices).reshape(sizes)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def spec(axes, table):
    """The PartitionSpec of an array whose axes are the letters `axes`, after `table`.

    A letter without a rule raises KeyError; a mesh axis is used once, by the first letter.
    """
    table, used, parts = dict(table), set(), []
    for letter in axes:
        if letter not in table:
            raise KeyError(f'axis letter {letter!r} of {axes!r} has no sharding rule')
        rule = table[letter]
        names = (rule,) if isinstance(rule, str) else tuple(rule or ())
        names = tuple(name for name in names if name not in used)
        used.update(names)
        parts.append(names if len(names) > 1 else names[0] if names else None)
    return PartitionSpec(*parts)


def constrain(x, axes, rules):
    """`x` with the sharding of its axes fixed; nothing to do where the mesh has one device."""
    current = jax.sharding.get_abstract_mesh()
    if current.empty or current.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, rules.activations))


def leaf_axes(path, leaf):
    """The axis letters of one leaf of a parameter or optimiser tree, from its own name.

    The scan over layers puts N in front. Counters and other unnamed scalars give ''.
    """
    name = next((str(part.key) for part in reversed(path)
                 if isinstance(part, jax.tree_util.DictKey)), '')
    axes = letters.axes_of(name) if leaf.ndim else ''
    if leaf.ndim == len(axes) + 1:
        axes = 'N' + axes
    if leaf.ndim != len(axes):
        raise ValueError(f'{jax.tree_util.keystr(path)}: shape {leaf.shape} has {leaf.ndim} axes, '
                         f'its name says {axes!r}')
    return axes


def shardings(tree, target, rules):
    """The NamedSharding on mesh `target` of every leaf of `tree`, read off the leaf's own name.

    Raises ValueError, with the arithmetic, where a mesh axis does not divide a parameter's axis.
    """
    def one(path, leaf):
        axes = leaf_axes(path, leaf)
        parts = spec(axes, rules.params)
        for letter, size, names in zip(axes, leaf.shape, parts):
            names = (names,) if isinstance(names, str) else names or ()
            ways = int(np.prod([target.shape[name] for name in names]))
            if size % ways:
                raise ValueError(f'{jax.tree_util.keystr(path)}: axis {letter} of {size} does not '
                                 f'divide over {ways} devices of mesh axes {names} '
                                 f'({size} % {ways} = {size % ways})')
        return NamedSharding(target, parts)
    return jax.tree_util.tree_map_with_path(one, tree)


def batch_sharding(target, rules):
    """The sharding of a batch whose leaves all begin with axis B."""
    return NamedSharding(target, spec('B', rules.activations))

"""Where each axis lives on the mesh, read off the names of arrays.

Rules are a frozen value that is passed in, never ambient: a letter without a rule is an error,
and the rules are part of every jit key because they are part of the module that holds them.

Decoding leaves collectives to the partitioner. The train step states its own: it runs per device
(`jax.shard_map` over the batch axes, see `train/step.py`), where a module holds a share of each
weight and `whole` gathers it. `fsdp` is two mesh axes, since a sum that is scattered over one ring
of chips is a reduce-scatter, and over two at once an all-reduce of everything (libtpu 0.0.52).
"""
import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from downscale import letters
from downscale.runtime.setup import SLICES

# Slices lie along `data`, the first: between them are the slowest wires.
MESH_AXES = ('data', 'fsdp', 'fsdp_ring', 'tensor')
BATCH_AXES = MESH_AXES[:3]
FSDP = ('fsdp', 'fsdp_ring')
# Bytes below which XLA gathers two axes as a sum (see `gather`).
SMALL_BYTES = 2 ** 24


@dataclass(frozen=True)
class Rules:
    """For each axis letter the mesh axes that split it; None keeps it whole.

    Parameters and activations have a table each: D is split for weights, not for activations.
    """
    params: tuple = (
        ('D', FSDP), ('W', FSDP), ('F', 'tensor'), ('H', 'tensor'), ('K', 'tensor'),
        ('V', 'tensor'), ('E', None), ('N', None), ('P', None), ('Q', None), ('L', None))
    activations: tuple = (
        ('B', BATCH_AXES), ('I', None), ('L', None), ('S', None), ('D', None),
        ('F', 'tensor'), ('H', 'tensor'), ('K', 'tensor'), ('G', None), ('V', 'tensor'),
        ('E', None), ('N', None), ('P', None), ('Q', None), ('W', None))


def mesh(data: int = -1, fsdp: int = 1, tensor: int = 1,
         devices: Sequence[jax.Device] | None = None, ring: int = 0) -> Mesh:
    """Return a mesh over `devices` (all by default); one size may be -1 and takes what is left.

    `ring` is how many of the `fsdp` devices lie on one ring of chips; 0 reads it off the chips.
    Several slices lie along `data`. Raises ValueError with the arithmetic when the sizes do not
    multiply to the device count, or `data` to the slices.
    """
    # 1. What is left for the size that may be -1.
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if -1 in sizes or math.prod(sizes) != len(devices):
        asked = dict(zip(('data', 'fsdp', 'tensor'), (data, fsdp, tensor)))
        raise ValueError(f'mesh {asked} does not fit '
                         f'{len(devices)} devices; the sizes must multiply to {len(devices)}')
    data, fsdp, tensor = sizes
    # 2. `fsdp` is split into rings of chips, see the head of this file.
    ring = ring or _ring(devices, fsdp)
    if fsdp % ring:
        raise ValueError(f'fsdp {fsdp} does not divide into rings of {ring} '
                         f'({fsdp} % {ring} = {fsdp % ring})')
    grid = _arranged(devices, (data, fsdp // ring, ring, tensor))
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _ring(devices, fsdp):
    """Return the longest side of the chips' torus that divides `fsdp`.

    Away from TPUs there is no torus, and all of `fsdp` is one ring.
    """
    if devices[0].platform != 'tpu':
        return fsdp
    sides = np.max([device.coords for device in devices], axis=0) + 1
    return max((int(side) for side in sides if fsdp % side == 0), default=1)


def _arranged(devices, sizes):
    """Return the devices as a grid whose axes follow the wires, slices along the first one."""
    slices = len(set(map(_slice_of, devices)))
    if sizes[0] % slices:
        raise ValueError(f'data {sizes[0]} does not divide over {slices} slices '
                         f'({sizes[0]} % {slices} = {sizes[0] % slices})')
    if devices[0].platform != 'tpu':
        # The processes of a slice follow one another, and with them their devices.
        return np.asarray(devices).reshape(sizes)
    if slices == 1:
        # Neighbours on an axis are wired; a side of the torus may be split over two axes.
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(
        (sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1), devices,
        allow_split_physical_axes=True)


def _slice_of(device):
    """Return the number of the slice that a device is in.

    Only TPUs know it. Elsewhere the processes are shared out in order over as many slices as the
    environment names: that is how a mesh of several is tried out.
    """
    if device.platform == 'tpu':
        return getattr(device, 'slice_index', 0)
    return device.process_index * int(os.environ.get(SLICES, 1)) // jax.process_count()


def batch_ways(target: Mesh) -> int:
    """Return over how many shares the rows of a batch are split on mesh `target`."""
    return math.prod(target.shape[name] for name in BATCH_AXES)


def spec(axes: str, table: Iterable[tuple[str, str | tuple[str, ...] | None]]) -> PartitionSpec:
    """Return the PartitionSpec of an array whose axes are the letters `axes`, after `table`.

    A letter without a rule raises KeyError; a mesh axis is used once, by the first letter.
    """
    table = dict(table)
    used = set()
    parts = []
    for letter in axes:
        if letter not in table:
            raise KeyError(f'axis letter {letter!r} of {axes!r} has no sharding rule')
        # Of a square kernel such as `second_DD` the first D is split, the other stays whole.
        names = tuple(name for name in _names(table[letter]) if name not in used)
        used.update(names)
        parts.append(_part(names))
    return PartitionSpec(*parts)


def _names(part):
    """Return the mesh axes of one part of a PartitionSpec."""
    return (part,) if isinstance(part, str) else tuple(part or ())


def _part(names):
    """Return a part of a PartitionSpec as JAX writes it: None, one name, or a tuple of several."""
    if len(names) > 1:
        return names
    return names[0] if names else None


def param_spec(axes: str, shape: Sequence[int], target: Mesh | AbstractMesh, rules: Rules,
               where: str = '') -> PartitionSpec:
    """Return the PartitionSpec of a parameter on mesh `target`.

    A vector stays whole: gathering it costs more than keeping it. Where all of `fsdp` does not
    divide an axis (1,152 of SigLIP over 256), one ring does. Raises ValueError with the arithmetic
    where nothing does.
    """
    if len(axes.lstrip('N')) < 2:
        return PartitionSpec(*[None] * len(axes))
    parts = []
    for letter, size, part in zip(axes, shape, spec(axes, rules.params)):
        # Mesh axes of one device split nothing, and are left out.
        names = tuple(name for name in _names(part) if target.shape[name] > 1)
        split = math.prod(target.shape[name] for name in names)
        # `fsdp` is dropped first: `fsdp_ring`, one ring of chips, is what stays.
        while size % math.prod(target.shape[name] for name in names) and len(names) > 1:
            names = names[1:]
        ways = math.prod(target.shape[name] for name in names)
        if size % ways:
            raise ValueError(f'{where}: axis {letter} of {size} does not divide over {split} '
                             f'devices of mesh axes {_names(part)} '
                             f'({size} % {split} = {size % split})')
        parts.append(_part(names))
    return PartitionSpec(*parts)


def by_hand() -> Collection[str]:
    """Return the mesh axes that `jax.shard_map` handles: their collectives are written out."""
    current = jax.sharding.get_abstract_mesh()
    return () if current.empty else current.manual_axes


def constrain(x: jax.Array, axes: str, rules: Rules) -> jax.Array:
    """Return `x` with the sharding of its axes fixed; `x` itself where the mesh has one device."""
    current = jax.sharding.get_abstract_mesh()
    manual = by_hand()
    # Axes that `shard_map` handles are cut already: a constraint may name the others only.
    if current.empty or math.prod(
            size for name, size in current.shape.items() if name not in manual) == 1:
        return x
    parts = []
    for part in spec(axes, rules.activations):
        names = tuple(name for name in _names(part) if name not in manual)
        parts.append(names or None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))


def own_heads(attend: Callable, axis: int) -> Callable:
    """Return `attend` run by hand on the rows and heads of each device: no kernel can be split.

    It takes queries, keys and values, whose heads lie along `axis` (rows along 0), and a mask by
    rows; without a mesh it is `attend` itself.
    """
    current = jax.sharding.get_abstract_mesh()
    if current.empty:
        return attend
    rest = tuple(name for name in current.axis_names if name not in by_hand())
    rows = tuple(name for name in rest if name in BATCH_AXES) or None
    heads = PartitionSpec(rows, *[None] * (axis - 1), 'tensor')
    return jax.shard_map(attend, in_specs=(heads, heads, heads, PartitionSpec(rows)),
                         out_specs=heads, axis_names=set(rest), check_vma=False)


def shares(axes: str, shape: Sequence[int], rules: Rules) -> tuple[tuple[str, ...], ...]:
    """Return, for each axis of a parameter, the mesh axes that split it by hand; () elsewhere."""
    current = jax.sharding.get_abstract_mesh()
    manual = by_hand()
    if not manual:
        return ((),) * len(shape)
    split = []
    for part in param_spec(axes, shape, current, rules):
        split.append(tuple(name for name in _names(part) if name in manual))
    return tuple(split)


def share_shape(axes: str, shape: Sequence[int], rules: Rules) -> tuple[int, ...]:
    """Return the shape of the part of a parameter at hand: the whole outside `jax.shard_map`."""
    mesh_shape = jax.sharding.get_abstract_mesh().shape
    sizes = []
    for size, names in zip(shape, shares(axes, shape, rules)):
        ways = math.prod(mesh_shape[name] for name in names)
        sizes.append(size // ways)
    return tuple(sizes)


def whole(share: jax.Array, axes: str, shape: Sequence[int], rules: Rules) -> jax.Array:
    """Return the parameter of which `share` is at hand, gathered.

    Its gradient goes back in shares.
    """
    for axis, names in enumerate(shares(axes, shape, rules)):
        share = gather(share, axis, names) if names else share
    return share


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(share: jax.Array, axis: int, names: tuple[str, ...]) -> jax.Array:
    """Return an array whole along `axis`, from its shares over the mesh axes `names`.

    Shares are in the order of these axes, the first of them varying slowest.
    """
    # In front the shares are contiguous; elsewhere XLA copies the whole once more.
    share = jnp.moveaxis(share, axis, 0)
    current = jax.sharding.get_abstract_mesh()
    size = share.size * share.dtype.itemsize * math.prod(current.shape[name] for name in names)
    # XLA sums what is small and comes from two axes at once, which moves twice the bytes.
    for part in [(name,) for name in reversed(names)] if size < SMALL_BYTES else [names]:
        share = jax.lax.all_gather(share, part, axis=0, tiled=True)
    return jnp.moveaxis(share, 0, axis)


def _scatter(axis, names, _, grad):
    grad = jnp.moveaxis(grad, axis, 0)
    # The way back of `gather`: a gradient is summed over devices and each keeps its own share.
    # One axis at a time, slowest first, as `gather` lines shares up.
    for name in names:
        grad = jax.lax.psum_scatter(grad, name, scatter_dimension=0, tiled=True)
    return (jnp.moveaxis(grad, 0, axis),)


gather.defvjp(lambda share, axis, names: (gather(share, axis, names), None), _scatter)


def leaf_axes(path: tuple, leaf: Any) -> str:
    """Return the axis letters of one leaf of a parameter or optimiser tree, from its own name.

    The scan over layers puts N in front. Counters and other unnamed scalars give ''.
    """
    name = next((str(part.key) for part in reversed(path)
                 if isinstance(part, jax.tree_util.DictKey)), '')
    # A scalar such as a count has no axes, whatever its name.
    axes = letters.axes_of(name) if leaf.ndim else ''
    if leaf.ndim == len(axes) + 1:
        axes = 'N' + axes
    if leaf.ndim != len(axes):
        raise ValueError(f'{jax.tree_util.keystr(path)}: shape {leaf.shape} has {leaf.ndim} axes, '
                         f'its name says {axes!r}')
    return axes


def specs(tree: Any, target: Mesh | AbstractMesh, rules: Rules) -> Any:
    """Return the PartitionSpec on mesh `target` of every leaf, read off the leaf's own name."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: param_spec(
        leaf_axes(path, leaf), leaf.shape, target, rules, jax.tree_util.keystr(path)), tree)


def shardings(tree: Any, target: Mesh, rules: Rules) -> Any:
    """Return the NamedSharding on mesh `target` of every leaf, read off the leaf's own name.

    A train state may be given too: the optimiser's trees end in the names of the parameters.
    Raises ValueError, with the arithmetic, where a mesh axis does not divide a parameter's axis.
    """
    return jax.tree.map(lambda parts: NamedSharding(target, parts), specs(tree, target, rules),
                        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def batch_sharding(target: Mesh, rules: Rules) -> NamedSharding:
    """Return the sharding of a batch whose leaves all begin with axis B."""
    return NamedSharding(target, spec('B', rules.activations))

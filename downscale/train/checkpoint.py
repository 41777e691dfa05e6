"""Checkpoints through orbax: atomic, asynchronous, and strict about what they are loaded into.

One step holds the items `params` (by group), `train` (step and optimiser state), `data` (position
of the input stream) and `meta` (JSON). `experiment.json` lies beside the steps, so an analysis can
rebuild the model from the folder alone.
"""
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging

from downscale.places import absolute, write_json

MOST_SHOWN = 10
READERS = 2
WRITE_BYTES = 2 ** 18  # one call for 32 MiB costs the kernel three times the time


class _Manager(ocp.CheckpointManager):

    def reached_preemption(self, step):
        """No: JAX compares the last question of each process, and only the train loop's are alike.
        """
        del step
        return False


def open_manager(folder, keep=2, every=1000):
    """A checkpoint manager on `folder/checkpoints` that saves each `every` steps, keeps `keep`."""
    options = ocp.CheckpointManagerOptions(
        save_interval_steps=every, max_to_keep=keep, enable_async_checkpointing=True)
    # Weights do not compress: 7 % fewer bytes for twice the processor time of a save.
    handlers = {name: ocp.PyTreeCheckpointHandler(use_compression=False)
                for name in ('params', 'train')}
    handlers |= {name: ocp.JsonCheckpointHandler() for name in ('data', 'meta')}
    return _Manager(absolute(folder) / 'checkpoints', options=options,
                    item_handlers=handlers)


def save(manager, state, stream, meta, force=False):
    """Start saving `state` and the position of `stream`; ready after `wait_until_finished`."""
    train = {name: tree for name, tree in state.items() if name != 'params'}
    step = int(state['step'])
    if manager.latest_step() == step:
        return
    manager.save(step, force=force, args=ocp.args.Composite(
        params=ocp.args.PyTreeSave(state['params']), train=ocp.args.PyTreeSave(train),
        data=ocp.args.JsonSave(stream.get_state()), meta=ocp.args.JsonSave(meta)))


def restore(manager, target, stream):
    """The newest complete state, put where `target` (ShapeDtypeStructs) says, `stream` moved along.

    Returns (state, meta), or (None, None) when no complete checkpoint exists; half-written ones
    are ignored. Raises ValueError listing the leaves when the checkpoint is of another model.
    """
    step = manager.latest_step()
    if step is None:
        return None, None
    compare(stored_leaves(manager.directory / str(step)), target['params'], manager.directory)
    train = {name: tree for name, tree in target.items() if name != 'params'}
    found = manager.restore(step, args=ocp.args.Composite(
        params=_restoring(target['params']), train=_restoring(train),
        data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore()))
    # Every process is at the same place of the same stream, so one position serves any number.
    stream.set_state(found['data'])
    return {'params': found['params'], **found['train']}, found['meta']


def latest(folder):
    """The folder of the newest complete step; FileNotFoundError with advice when there is none."""
    step = committed(folder)
    if step is None:
        raise FileNotFoundError(f'no complete checkpoint in {folder}/checkpoints; run or resume '
                                'that stage first')
    return absolute(folder) / 'checkpoints' / str(step)


def committed(folder):
    """The newest complete step under `folder`, None when there is none."""
    return max(ocp.utils.checkpoint_steps(absolute(folder) / 'checkpoints'), default=None)


def stored_leaves(step_folder):
    """{path: (shape, dtype)} of the stored parameters, without reading them."""
    metadata = ocp.PyTreeCheckpointHandler().metadata(absolute(step_folder) / 'params')
    tree = getattr(metadata, 'tree', metadata)
    return {jax.tree_util.keystr(p, simple=True, separator='/'): (tuple(m.shape), str(m.dtype))
            for p, m in jax.tree_util.tree_leaves_with_path(tree)}


def compare(stored, target, where, dtypes=None):
    """Raise ValueError listing missing, unexpected and mis-shaped leaves; silent when equal.

    orbax alone lets a checkpoint of fewer layers pass into a deeper model. `dtypes` {path: dtype}
    are compared where they are given.
    """
    wanted = {jax.tree_util.keystr(p, simple=True, separator='/'): tuple(leaf.shape)
              for p, leaf in jax.tree_util.tree_leaves_with_path(target)}
    problems = [f'missing {name} {wanted[name]}' for name in sorted(wanted.keys() - stored.keys())]
    problems += [f'unexpected {name} {stored[name][0]}'
                 for name in sorted(stored.keys() - wanted.keys())]
    problems += [f'{name}: stored {stored[name][0]}, model {wanted[name]}'
                 for name in sorted(wanted.keys() & stored.keys())
                 if stored[name][0] != wanted[name]]
    problems += [f'{name}: stored as {stored[name][1]}, model {dtype}'
                 for name, dtype in sorted((dtypes or {}).items()) if stored[name][1] != dtype]
    if problems:
        shown = '; '.join(problems[:MOST_SHOWN])
        more = f'; and {len(problems) - MOST_SHOWN} more' if len(problems) > MOST_SHOWN else ''
        raise ValueError(f'{where}: {len(problems)} leaves do not match the model: {shown}{more}. '
                         'Use the size that the checkpoint was trained with')


def load_params(folder, target, groups=None):
    """Parameters of the newest step under `folder`, only the `groups` named (all by default).

    `target` is the tree of ShapeDtypeStructs of those groups; leaves with a sharding go to their
    devices, others come back as numpy. Raises ValueError listing the leaves that do not match.
    """
    step_folder = latest(folder)
    target = {name: target[name] for name in groups or target}
    stored = stored_leaves(step_folder)
    compare({name: leaf for name, leaf in stored.items() if name.split('/')[0] in target},
            target, step_folder)

    return _restore(step_folder, target)


def _restoring(target, partial=False):
    """What tells orbax to read the leaves of `target`, or only those of a larger tree."""
    def how(leaf):
        if getattr(leaf, 'sharding', None) is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype,
                                    global_shape=leaf.shape)
    return ocp.args.PyTreeRestore(item=target, restore_args=jax.tree.map(how, target),
                                  partial_restore=partial)


def _restore(step_folder, target):
    """The leaves of `target` from a step, on their devices where they have a sharding."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(absolute(step_folder) / 'params',
                                    args=_restoring(target, partial=True))


class _Lazy:
    """A leaf that is written in parts; the type is what orbax finds its handler by."""

    def __init__(self, leaf):
        self.leaf, self.shape, self.dtype = leaf, tuple(leaf.shape), np.dtype(leaf.dtype)

    def write(self, folder, corner):
        """Write the chunk at `corner` of the grid as zarr 2 keeps it: its values, padded."""
        chunk = self.leaf.chunk
        part = self.leaf.read(tuple(slice(at * step, min(at * step + step, size)) for at, step, size
                                    in zip(corner, chunk, self.shape)))
        if part.shape != tuple(chunk):
            part = np.pad(part, [(0, step - size) for step, size in zip(chunk, part.shape)])
        path = os.path.join(folder, '.'.join(map(str, corner)))
        data = memoryview(part.reshape(-1).view(np.uint8))
        with open(path, 'wb', buffering=0) as file:
            for start in range(0, len(data), WRITE_BYTES):
                file.write(data[start:start + WRITE_BYTES])
        return path


class _LazyHandler(ocp.type_handlers.NumpyHandler):
    """Writes numpy's layout without ever holding a leaf: read, write and free chunk by chunk.

    tensorstore writes the description of an array; its own way with values copies each of them into
    fresh pages first, and takes three times as long.
    """

    async def serialize(self, values, infos, args=None):
        self._chunks = []
        await self._background_serialize(values, infos, args or [ocp.SaveArgs()] * len(values))
        with ThreadPoolExecutor(READERS) as pool:
            for path in pool.map(lambda chunk: _Lazy.write(*chunk), self._chunks):
                # Synced here while the next are read and turned: half the time of one by one.
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        return []

    async def _open_and_write(self, value, tspec, ts_context):
        spec = {**tspec, 'metadata': {**tspec['metadata'], 'chunks': value.leaf.chunk}}
        await tensorstore.open(tensorstore.Spec(spec), create=True, open=True, context=ts_context)
        grid = product(*(range(-(-size // step)) for size, step
                         in zip(value.shape, value.leaf.chunk)))
        self._chunks += [(value, tspec['kvstore']['path'], corner) for corner in grid]


def save_leaves(folder, leaves, meta, step=0):
    """Step `step` of `folder` holds `leaves` as its parameters, in their own dtypes, and `meta`.

    `leaves` is a nested dict; a leaf has `shape`, `dtype`, `chunk` (a shape) and `read(index)`, and
    is never held as a whole. Raises FileExistsError when the step is there already.
    """
    path = absolute(folder) / 'checkpoints' / str(step)
    if path.exists():
        raise FileExistsError(f'{path} is there already; give another folder or remove it')
    partial = path.with_name(f'.{step}.{os.getpid()}.partial')
    registry = ocp.type_handlers.create_type_handler_registry((_Lazy, _LazyHandler()))
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # orbax warns that there is no shard database to merge
    try:
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False,
                                              type_handler_registry=registry)
        (partial / 'params').mkdir(parents=True)
        handler.save(partial / 'params',
                     args=ocp.args.PyTreeSave(jax.tree.map(_Lazy, leaves)))
        handler.close()
        write_json(partial / 'meta' / 'metadata', meta)
        os.replace(partial, path)
    finally:
        logging.set_verbosity(verbosity)
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class StoredLeaf:
    """A leaf of a stored step: `shape` and `dtype` now, its values on `read`."""
    step_folder: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self):
        """The leaf as a numpy array; nothing else of the step is read."""
        leaf = jax.ShapeDtypeStruct(self.shape, self.dtype)
        for key in reversed(self.name.split('/')):
            leaf = {key: leaf}
        return jax.tree.leaves(_restore(self.step_folder, leaf))[0]


def open_leaves(folder):
    """The nested dict of `StoredLeaf` of the newest step under `folder`; nothing is read."""
    step_folder, tree = latest(folder), {}
    for name, (shape, dtype) in stored_leaves(step_folder).items():
        node = tree
        *path, last = name.split('/')
        for key in path:
            node = node.setdefault(key, {})
        node[last] = StoredLeaf(step_folder, name, shape, np.dtype(dtype))
    return tree


def place(leaves, shardings):
    """`leaves` as jax arrays with these shardings, read leaf by leaf and only what is held here.

    A leaf has `shape`, `dtype` and `read(index)`; the two trees are alike.
    """
    return jax.tree.map(lambda leaf, sharding: jax.make_array_from_callback(
        leaf.shape, sharding, leaf.read), leaves, shardings)

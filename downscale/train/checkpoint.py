"""Checkpoints through orbax: atomic, asynchronous, and strict about what they are loaded into.

One step holds the items `params` (by group), `train` (step and optimiser state), `data` (position
of the input stream) and `meta` (JSON). `experiment.json` lies beside the steps, so an analysis can
rebuild the model from the folder alone.
"""
import json
import os
from pathlib import Path

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

MOST_SHOWN = 10


def write_json(path, value):
    """Write `value` as JSON to `path`, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    partial.write_text(json.dumps(value, indent=1, sort_keys=True) + '\n')
    os.replace(partial, path)


def open_manager(folder, keep=2, every=1000):
    """A checkpoint manager on `folder/checkpoints` that saves each `every` steps, keeps `keep`."""
    options = ocp.CheckpointManagerOptions(
        save_interval_steps=every, max_to_keep=keep, enable_async_checkpointing=True)
    return ocp.CheckpointManager(Path(folder).absolute() / 'checkpoints', options=options,
                                 item_names=('params', 'train', 'data', 'meta'))


def save(manager, state, stream, meta, force=False):
    """Start saving `state` and the position of `stream`; ready after `wait_until_finished`."""
    train = {name: tree for name, tree in state.items() if name != 'params'}
    step = int(state['step'])
    if manager.latest_step() == step:
        return
    manager.save(step, force=force, args=ocp.args.Composite(
        params=ocp.args.StandardSave(state['params']), train=ocp.args.StandardSave(train),
        data=grain.checkpoint.CheckpointSave(stream), meta=ocp.args.JsonSave(meta)))


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
        params=ocp.args.StandardRestore(target['params']),
        train=ocp.args.StandardRestore(train),
        data=grain.checkpoint.CheckpointRestore(stream), meta=ocp.args.JsonRestore()))
    return {'params': found['params'], **found['train']}, found['meta']


def latest(folder):
    """The folder of the newest complete step; FileNotFoundError with advice when there is none."""
    steps = sorted((int(path.name), path) for path in Path(folder, 'checkpoints').glob('*')
                   if path.name.isdigit())
    if not steps:
        raise FileNotFoundError(f'no complete checkpoint in {folder}/checkpoints; run or resume '
                                'that stage first')
    return steps[-1][1]


def stored_leaves(step_folder):
    """{path: (shape, dtype)} of the stored parameters, without reading them."""
    path = Path(step_folder) / 'params'
    metadata = ocp.PyTreeCheckpointHandler().metadata(path.absolute())
    tree = getattr(metadata, 'tree', metadata)
    return {jax.tree_util.keystr(p, simple=True, separator='/'): (tuple(m.shape), str(m.dtype))
            for p, m in jax.tree_util.tree_leaves_with_path(tree)}


def compare(stored, target, where):
    """Raise ValueError listing missing, unexpected and mis-shaped leaves; silent when equal.

    orbax alone lets a checkpoint of fewer layers pass into a deeper model.
    """
    wanted = {jax.tree_util.keystr(p, simple=True, separator='/'): tuple(leaf.shape)
              for p, leaf in jax.tree_util.tree_leaves_with_path(target)}
    problems = [f'missing {name} {wanted[name]}' for name in sorted(wanted.keys() - stored.keys())]
    problems += [f'unexpected {name} {stored[name][0]}'
                 for name in sorted(stored.keys() - wanted.keys())]
    problems += [f'{name}: stored {stored[name][0]}, model {wanted[name]}'
                 for name in sorted(wanted.keys() & stored.keys())
                 if stored[name][0] != wanted[name]]
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

    def how(leaf):
        if getattr(leaf, 'sharding', None) is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype,
                                    global_shape=leaf.shape)

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(
            (Path(step_folder) / 'params').absolute(), args=ocp.args.PyTreeRestore(
                item=target, restore_args=jax.tree.map(how, target), partial_restore=True))

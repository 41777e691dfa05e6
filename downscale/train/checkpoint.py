"""Checkpoints through orbax: atomic, asynchronous, and strict about what they are loaded into.

One step holds the items `params` (by group), `train` (step and optimiser state), `data` (position
of the input stream) and `meta` (JSON), and in `checksums.json` the size and checksum of every file,
which are compared before a step is used. `experiment.json` lies beside the steps, so an analysis
can rebuild the model from the folder alone.
"""
import contextlib
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from downscale.runtime import processes
from downscale.runtime.exits import CRASHED, Failed, line_of, passes, say
from downscale.runtime.files import PathLike, absolute, in_bucket
from downscale.train import checksums

MOST_SHOWN = 10  # leaves that a message names
STEP = re.compile('0|[1-9][0-9]*')  # the name of a step's folder


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which also writes checksums before a step counts as complete.

    Its errors are a line each: what prevents a save is no fault of the settings, and may pass.
    """
    saving = None  # the step that is being saved

    def reached_preemption(self, step):
        """Return False: the answers of all processes are compared in the loop alone."""
        del step
        return False

    def save(self, step, *args, **options):
        self.wait_until_finished()  # before `saving` is that of the next
        self.saving = step
        with _saving(self.directory / str(step)):
            return super().save(step, *args, **options)

    def wait_until_finished(self):
        with _saving(self.directory / str(self.saving)):
            super().wait_until_finished()

    def close(self):
        with _saving(self.directory / str(self.saving)):
            super().close()

    def sum_up(self):
        """Write the checksums of the step being saved, whose files are all there."""
        if processes.first():
            folder = self.directory / str(self.saving)
            if not in_bucket(folder):  # orbax renames it next
                folder = self.directory / f'{self.saving}.orbax-checkpoint-tmp'
            checksums.write(folder)


@contextlib.contextmanager
def _saving(path):
    """Turn what orbax raises while it saves `path` into one line."""
    try:
        yield
    except Failed:
        raise
    except Exception as error:
        raise Failed(f'cannot save checkpoint {_about(path, error)}', CRASHED) from None


def _about(path, error):
    """Return an error as a line that names `path` once."""
    line = line_of(error)
    return line if line.startswith(str(path)) else f'{path}: {line}'


class _Steps(ocp.path.step.NameFormat):
    """The steps of a folder as `steps` finds them, for orbax."""

    def build_name(self, step):
        return str(step)

    def find_all(self, base_path):
        return (ocp.path.step.Metadata(step=step, path=path)
                for step, path in _steps_in(base_path).items())

    def find_step(self, base_path, step):
        complete = _steps_in(base_path)
        if step not in complete:
            raise ValueError(f'no complete step {step} in {base_path}')
        return ocp.path.step.Metadata(step=step, path=complete[step])


def open_manager(folder: PathLike, keep: int = 2, every: int = 1000,
                 kept: Sequence[int] = ()) -> ocp.CheckpointManager:
    """Return a manager of `folder/checkpoints`, which keeps the last `keep` of its steps.

    The steps `kept` stay beside them. It saves each `every` steps unless it is forced to.
    """
    _hush()
    options = ocp.CheckpointManagerOptions(
        save_interval_steps=every, enable_async_checkpointing=True, step_name_format=_Steps(),
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep),
                                                            policies.CustomSteps(kept)]),
        # Called once all files are written, before orbax marks the step as complete.
        async_options=ocp.AsyncOptions(post_finalization_callback=lambda: manager.sum_up()))
    # Weights do not compress: 7 % fewer bytes for twice the processor time of a save.
    handlers = {name: ocp.PyTreeCheckpointHandler(use_compression=False)
                for name in ('params', 'train')}
    handlers |= {name: ocp.JsonCheckpointHandler() for name in ('data', 'meta')}
    manager = _Manager(absolute(folder) / 'checkpoints', options=options,
                       item_handlers=handlers)
    return manager


def save(manager: ocp.CheckpointManager, state: Any, stream: Any, meta: dict[str, Any],
         force: bool = False) -> None:
    """Start saving `state` and the position of `stream`; ready after `wait_until_finished`."""
    # Parameters are an item of their own, so that an analysis reads them without the moments.
    train = {name: tree for name, tree in state.items() if name != 'params'}
    step = int(state['step'])
    if manager.latest_step() == step:
        return
    manager.save(step, force=force, args=ocp.args.Composite(
        params=ocp.args.PyTreeSave(state['params']), train=ocp.args.PyTreeSave(train),
        data=ocp.args.JsonSave(stream.get_state()), meta=ocp.args.JsonSave(meta)))


def restore(manager: ocp.CheckpointManager, target: Any,
            stream: Any) -> tuple[Any, Any]:
    """Return (state, meta) of the newest complete step, or (None, None) without one.

    The state lies where `target` (ShapeDtypeStructs) says, and `stream` is moved to its place.
    Half-written steps are ignored. A damaged one is said, renamed and passed over for the one
    before; where there is none, `checksums.Damaged` is raised. Raises ValueError listing the leaves
    when the checkpoint is of another model.
    """
    step = manager.latest_step()
    if step is None:
        return None, None
    path = manager.directory / str(step)
    # Process 0 decides for all: with two opinions about a step they would restore different ones.
    why = processes.once(lambda: _damage(path))
    if why is None:
        compare(stored_leaves(path), target['params'], manager.directory)
        try:
            return _restore_step(manager, step, target, stream)
        except checksums.Damaged as error:
            if processes.several():
                raise  # the others may have read theirs
            why = str(error)
    before = [other for other in manager.all_steps() if other < step]
    if not before:
        raise checksums.Damaged(f'{why}; there is no step before it: delete '
                                f'{manager.directory} to begin anew')
    if processes.first():
        say(f'{why}; going on from step {max(before)}')
    processes.once(lambda: _set_aside(path))
    manager.reload()
    return restore(manager, target, stream)


def _damage(step_folder):
    """Return what is wrong with a step, None where nothing is."""
    try:
        checksums.check(step_folder)
        stored_leaves(step_folder)
    except checksums.Damaged as error:
        return str(error)


def _set_aside(step_folder):
    """Rename a damaged step to what no reader takes for one."""
    # A name that `STEP` does not match, so that a person may still look at what is left of it.
    aside = step_folder.with_name(f'{step_folder.name}.damaged')
    if aside.exists():
        aside.rmtree()
    step_folder.rename(aside)


def _restore_step(manager, step, target, stream):
    """Return (state, meta) of a step that is whole, and move `stream` to its place."""
    train = {name: tree for name, tree in target.items() if name != 'params'}
    with reading(manager.directory / str(step)):
        restored = manager.restore(step, args=ocp.args.Composite(
            params=_restoring(target['params']), train=_restoring(train),
            data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore()))
    # Every process is at the same place of the same stream, so one position serves any number.
    stream.set_state(restored['data'])
    return {'params': restored['params'], **restored['train']}, restored['meta']


@contextlib.contextmanager
def reading(step_folder: PathLike) -> Iterator[None]:
    """Turn what orbax raises in this context into one line.

    It is `checksums.Damaged`, or `exits.Failed` where the same may be read later.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError:  # of a device
        raise
    except Exception as error:
        if passes(error):
            raise Failed(f'cannot read checkpoint {_about(step_folder, error)}', CRASHED) from None
        # The innermost knows most: orbax wraps what tensorstore says in pages.
        while error.__cause__ is not None:
            error = error.__cause__
        line = line_of(error).removeprefix(f'{step_folder}: ')
        raise checksums.Damaged(f'checkpoint {step_folder} is damaged: {line}') from None


@cache
def _hush():
    """Silence orbax, asyncio and tensorstore, which print in pages what they raise as well."""
    absl_logging.get_absl_logger().addFilter(_is_foreign)
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)
    hook = sys.unraisablehook

    def print_unless_late(unraisable):
        # What tensorstore still has to tell orbax after another write has failed.
        if str(unraisable.exc_value) != 'Event loop is closed':
            hook(unraisable)
    sys.unraisablehook = print_unless_late


def _is_foreign(record):
    return '/orbax/' not in record.pathname


def latest(folder: PathLike) -> epath.Path:
    """Return the folder of the newest complete step; FileNotFoundError when there is none.

    In a bucket also one that was copied there when it was complete.
    """
    complete = _steps_in(absolute(folder) / 'checkpoints', checksums.was_copied)
    if not complete:
        raise FileNotFoundError(f'no complete checkpoint in {folder}/checkpoints; run or resume '
                                'that stage first')
    return complete[max(complete)]


def committed(folder: PathLike) -> int | None:
    """Return the newest complete step under `folder`, None when there is none."""
    return max(steps(folder), default=None)


def steps(folder: PathLike) -> dict[int, epath.Path]:
    """Return {step: its folder} of the complete steps under `folder`, in their order.

    Whatever else lies beside them is no concern of any reader.
    """
    return _steps_in(absolute(folder) / 'checkpoints')


def _steps_in(path, counts=lambda step_folder: False):
    """Return {step: its folder} of the steps that are complete, or of which `counts` is true."""
    path = epath.Path(path)
    if not path.exists():
        return {}
    named = {int(child.name): child for child in path.iterdir() if STEP.fullmatch(child.name)}
    return {step: named[step] for step in sorted(named) if named[step].is_dir()
            and (ocp.utils.is_checkpoint_finalized(named[step]) or counts(named[step]))}


def stored_leaves(step_folder: epath.Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return {path: (shape, dtype)} of the stored parameters, without reading them."""
    with reading(step_folder):
        # pyrefly: ignore[bad-argument-type]
        metadata = ocp.PyTreeCheckpointHandler().metadata(absolute(step_folder) / 'params')
    tree = getattr(metadata, 'tree', metadata)
    return {jax.tree_util.keystr(p, simple=True, separator='/'): (tuple(m.shape), str(m.dtype))
            for p, m in jax.tree_util.tree_leaves_with_path(tree)}


def compare(stored: dict[str, tuple[tuple[int, ...], str]], target: Any, where: PathLike,
            dtypes: dict[str, str] | None = None) -> None:
    """Raise ValueError listing missing, unexpected and mis-shaped leaves; silent when equal.

    orbax alone lets a checkpoint of fewer layers pass into a deeper model. `dtypes` {path: dtype}
    are compared where they are given.
    """
    wanted = {jax.tree_util.keystr(p, simple=True, separator='/'): tuple(leaf.shape)
              for p, leaf in jax.tree_util.tree_leaves_with_path(target)}
    missing = sorted(wanted.keys() - stored.keys())
    unexpected = sorted(stored.keys() - wanted.keys())
    problems = [f'missing {name} {wanted[name]}' for name in missing]
    problems += [f'unexpected {name} {stored[name][0]}' for name in unexpected]
    for name in sorted(wanted.keys() & stored.keys()):
        if stored[name][0] != wanted[name]:
            problems.append(f'{name}: stored {stored[name][0]}, model {wanted[name]}')
    for name, dtype in sorted((dtypes or {}).items()):
        if stored[name][1] != dtype:
            problems.append(f'{name}: stored as {stored[name][1]}, model {dtype}')
    if problems:
        shown = '; '.join(problems[:MOST_SHOWN])
        more = f'; and {len(problems) - MOST_SHOWN} more' if len(problems) > MOST_SHOWN else ''
        raise ValueError(f'{where}: {len(problems)} leaves do not match the model: {shown}{more}. '
                         'Use the size that the checkpoint was trained with')


def load_params(folder: PathLike, target: dict[str, Any],
                groups: Iterable[str] | None = None) -> dict[str, Any]:
    """Return parameters of the newest step under `folder`, of all groups or only of `groups`.

    `target` is the tree of ShapeDtypeStructs of those groups; leaves with a sharding go to their
    devices, others come back as numpy. Raises ValueError listing the leaves that do not match.
    """
    step_folder = latest(folder)
    target = {name: target[name] for name in groups or target}
    stored = stored_leaves(step_folder)
    # Groups that were not asked for, such as the tower of a text-only reader, may be stored too.
    compare({name: leaf for name, leaf in stored.items() if name.split('/')[0] in target},
            target, step_folder)
    return read_leaves(step_folder, target)


def _restoring(target, partial=False):
    """Return orbax's arguments for reading `target`; `partial` where more than that is stored."""
    def how(leaf):
        # numpy where no device is meant: exports and analysis must not fill an accelerator.
        if getattr(leaf, 'sharding', None) is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype,
                                    global_shape=leaf.shape)
    return ocp.args.PyTreeRestore(item=target, restore_args=jax.tree.map(how, target),
                                  partial_restore=partial)


def read_leaves(step_folder: Any, target: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves of `target` from a step, on their devices where they have a sharding."""
    checksums.check(step_folder, 'params/')
    # By its name alone: that the step is complete is known, and a copy in a bucket lacks the mark.
    by_name = ocp.path.atomicity.AtomicRenameTemporaryPath
    with reading(step_folder), ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(), temporary_path_class=by_name) as checkpointer:
        return checkpointer.restore(absolute(step_folder) / 'params',
                                    args=_restoring(target, partial=True))

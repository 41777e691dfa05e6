"""The one train loop: restore, step, log, save. It reads aloud.

Metrics of step n are read after step n + 1 is dispatched, so the device never waits for the host.
`metrics.jsonl` holds only numbers that a rerun repeats bit by bit; speeds, and the share of time
that went into waiting for input, go to `timing.jsonl`.
"""
import contextlib
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from downscale.data.pipeline import Share
from downscale.runtime import exits, processes
from downscale.runtime.files import lock, scratch
from downscale.runtime.memory import give_back
from downscale.sharding import Rules, batch_sharding, shardings
from downscale.train import checkpoint
from downscale.train.log import Log
from downscale.train.run import StageRun
from downscale.train.state import abstract, bits, new_state, unmoved
from downscale.train.step import compiled_step


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Hold `folder` for this run, however many processes it has.

    RuntimeError in one line when another run holds it.
    """
    handle = processes.once(lambda: lock(scratch(folder)))
    try:
        yield
    finally:
        if processes.first():
            os.close(handle)


def share(mesh: Mesh, rules: Rules) -> Share:
    """Return the `Share` of every batch that the devices of this process hold.

    With an axis such as `tensor` across processes several of them hold the same rows.
    """
    devices = mesh.size
    # A pretended batch with one row for each device tells which blocks of rows are held here.
    parts = batch_sharding(mesh, rules).addressable_devices_indices_map((devices,))
    starts = sorted({part.start or 0 for part, in parts.values()})
    each = batch_sharding(mesh, rules).shard_shape((devices,))[0]
    return Share(devices // each, tuple(start // each for start in starts))


def train(folder: Path, run: StageRun, params: Callable[[], dict[str, Any]], stream: Iterator,
          report: Callable[[int, dict[str, Any]], object] = lambda step, metrics: None
          ) -> dict[str, Any]:
    """Train for `run.schedule.steps` steps and return the final parameters.

    `params()` gives fresh or inherited parameters, as numpy or on their devices; it is called only
    when there is no checkpoint under `folder`, or where `run.shapes` are not given. `stream` is a
    checkpointable iterator of this process' `share` of the batches. Process 0 alone writes metrics.

    Raises FloatingPointError on a non-finite loss and ValueError on a batch without supervised
    tokens, with the step. After a step of which `run.stop(step)` is true, in all processes, that
    step is saved and `exits.Preempted` raised.
    """
    steps = run.schedule.steps
    rules = run.model.rules
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(run.mesh))
        # Closing waits for a save in flight, also when a step raises.
        manager = stack.enter_context(
            contextlib.closing(
                checkpoint.open_manager(folder, every=run.save_every, kept=run.kept)))
        state, meta = start(manager, run, params, stream)
        step_fn, taught = _step_of(run)
        first = int(state['step'])
        rows = share(run.mesh, rules)
        log = stack.enter_context(contextlib.closing(Log(
            folder, first, meta['tokens'], run.tracker, meta.get('bits'), run.ideal, run.shares)))
        stack.enter_context(processes.stepping())
        pending = None
        for step in range(first, steps):
            batch = log.timed(run.fed(stream, state['params']))
            check_supervised(run.loss, step, batch)
            factor = run.schedule.factor(step)
            rates = {group: jnp.float32(factor * rate) for group, rate in run.rates.items()}
            batch = on_devices(batch, rows, run.mesh, rules)
            read = tokens_of(batch['segments'])  # before the step, whose time it hides in
            state, metrics = step_fn(state, batch, rates, *taught)
            # Only now, with the next step under way, wait for the metrics of the one before.
            if pending:
                report(*log.write(*pending))
            if step == first + 1:  # the first step compiled
                give_back()
            pending = (step, read, factor, metrics | run.told)
            # The last step is saved below; a stop that comes with it has nothing left to stop.
            # `run.stop` comes before the `and`: all processes meet in it, so none may leave it out.
            last = step + 1 == steps
            stopped = run.stop(step + 1) and not last
            if stopped or (run.saves(step + 1) and not last):
                report(*log.write(*pending))
                pending = None
                _save(manager, state, stream, log)
            if stopped:
                manager.wait_until_finished()
                raise exits.Preempted(f'stopped by SIGTERM: step {step + 1} of {steps} is saved')
        if pending:
            report(*log.write(*pending, unmoved(log.bits, state['params'])))
        _save(manager, state, stream, log)
        manager.wait_until_finished()
    return state['params']


def _step_of(run):
    """Return (the compiled step, what it takes besides: the frozen parameters of a teacher)."""
    step_fn = compiled_step(run.model, run.loss, run.optimizer, run.trainable, run.mesh,
                            tuple(sorted(run.attention.items())), run.teacher)
    # Beside the state and never in it: no checkpoint holds them.
    return step_fn, () if run.teacher is None else (run.teacher_params(),)


def check_supervised(loss: str, step: int, batch: dict[str, Any]) -> None:
    """Raise ValueError with the step where a batch of a stage of tokens has nothing to learn."""
    if loss == 'tokens' and not batch['weights'].any():
        raise ValueError(f'step {step}: no token of the batch {batch["tokens"].shape} is '
                         'supervised; check `length` and the stage\'s data')


@jax.jit
def tokens_of(segments_BL: jax.Array) -> jax.Array:
    """Return how many tokens of a global batch are no padding."""
    return (segments_BL > 0).sum()


def start(manager: Any, run: StageRun, params: Callable[[], dict[str, Any]],
          stream: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (state, what is saved beside it) of the newest checkpoint, or of step 0.

    Beside the state are the tokens seen, and the `bits` of the weights that the stage began with.
    """
    fresh = manager.latest_step() is None
    values = params() if fresh else run.shapes or jax.eval_shape(params)
    # Shapes alone: no moment of the optimiser is ever made on the host.
    shape = jax.eval_shape(lambda tree: new_state(tree, run.optimizer, run.trainable), values)
    shards = shardings(shape, run.mesh, run.model.rules)
    if fresh:
        placed = on_mesh(values, shards['params'])
        state = _new_state_on(run.optimizer, run.trainable, run.mesh, run.model.rules)(placed)
        sums = jax.device_get(bits(state['params'], run.trainable))
        return state, {'tokens': 0, 'bits': {group: int(sums[group]) for group in run.trainable}}
    return checkpoint.restore(manager, abstract(shape, shards), stream)


def on_mesh(params: dict[str, Any], where: Any) -> Any:
    """Return parameters, as numpy or on devices, where their shardings say."""
    return jax.tree.map(_placed, params, where)


def _placed(leaf, sharding):
    """Return a leaf on its devices, where a checkpoint may have been read to already."""
    if isinstance(leaf, jax.Array):
        return leaf
    # A callback, so that a device reads its own part of the leaf and no more.
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


@lru_cache
def _new_state_on(optimizer, trainable, mesh, rules):
    """Return `new_state` under jit: no device ever holds the whole of an optimiser's moments."""
    def make(params):
        state = new_state(params, optimizer, trainable)
        return jax.lax.with_sharding_constraint(state, shardings(state, mesh, rules))
    return jax.jit(make, donate_argnums=0)


def _save(manager, state, stream, log):
    """Save the state and the place in the stream; the rows of the log are uploaded first."""
    log.upload()  # before the step is there to be resumed from
    checkpoint.save(manager, state, stream, log.meta, force=True)


def on_devices(batch, rows_of, mesh, rules):
    """Return the global batch of which `batch` holds the rows of the share `rows_of`."""
    sharding = batch_sharding(mesh, rules)
    count = len(rows_of.blocks)

    def place(array):
        rows = len(array) // count
        blocks = dict(zip(rows_of.blocks, array.reshape(count, rows, *array.shape[1:])))
        return jax.make_array_from_callback(
            (rows * rows_of.ways, *array.shape[1:]), sharding,
            lambda index: blocks[(index[0].start or 0) // rows])
    return {name: place(array) for name, array in batch.items()}

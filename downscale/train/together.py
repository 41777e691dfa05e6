"""Several runs of one program, trained as one: cells of a sweep that differ in seeds and rates.

Parameters, moments and rates of all are stacked along a first axis, and one compiled step moves
them: `train_step` under `jax.vmap`. Each run keeps what it has alone (folder, data order,
checkpoints, metrics), so that it continues alone or in any company. Runs at one place of one stream
share its batches: to make a batch for small models costs as much as half a step.
"""
import contextlib
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from downscale.runtime import exits, processes
from downscale.train import checkpoint
from downscale.train.log import Log
from downscale.train.loop import check_supervised, start
from downscale.train.run import StageRun
from downscale.train.state import unmoved
from downscale.train.step import train_step

if TYPE_CHECKING:
    from downscale.config import Optimizer


@dataclass(frozen=True, kw_only=True)
class CellRun:
    """What one of the runs has of its own; `params` and `report` are those of `loop.train`.

    `rates` take the place of those of the `StageRun` that all share. `stream()` opens a
    checkpointable iterator of batches; runs of equal `data` have the same one.
    """
    folder: Path
    params: Callable
    rates: dict[str, float]
    data: Hashable
    stream: Callable
    report: Callable


class _Position:
    """Where the newest checkpoint of a run has left its stream, which others may read as well."""
    state = None

    def set_state(self, state):
        self.state = state


class _Lane:
    """A run with its open files and its state at the start; `error` ends it, not the others.

    `opened` {(data, step): stream} are those of lanes before: lanes at one place share one.
    """

    def __init__(self, run, shared, closing, opened):
        self.run = run
        self.error = None
        self.position = _Position()
        self.manager = closing(checkpoint.open_manager(run.folder, every=shared.save_every,
                                                       kept=shared.kept))
        self.state, meta = start(self.manager, shared, run.params, self.position)
        self.step = int(self.state['step'])
        # Equal data up to an equal step means the same place of the same stream.
        place = run.data, self.step
        if place not in opened:
            stream = closing(run.stream())
            if self.position.state is not None:
                stream.set_state(self.position.state)
            opened[place] = stream
        self.stream = opened[place]
        self.log = closing(Log(run.folder, self.step, meta['tokens'], shared.tracker,
                               meta.get('bits')))

    def write(self, step, read, factor, metrics, still=()):
        """Log a finished step; a loss that is not finite becomes the lane's error."""
        if self.error is None:
            try:
                self.run.report(*self.log.write(step, read, factor, metrics, still))
            except FloatingPointError as error:
                self.error = error

    def save(self, state):
        """Start saving `state`, which must be logged."""
        self.position.state = self.stream.get_state()
        self.log.upload()
        checkpoint.save(self.manager, state, self.stream, self.log.meta, force=True)


class _Group:
    """The lanes that still go on, their stacked state, and the step that is not logged yet."""

    def __init__(self, lanes, shared):
        self.step_fn = compiled_cells(shared.model, shared.loss, shared.optimizer,
                                      shared.trainable)
        self.trainable = shared.trainable
        self.schedule = shared.schedule
        self.loss = shared.loss
        self.live = list(lanes)
        self.pending = None
        # Each lane's own copy is let go below, or memory would hold the states twice.
        self.state = _stack([lane.state for lane in lanes])
        shards = jax.tree.map(lambda leaf: leaf.sharding, lanes[0].state)
        self.pick = jax.jit(_at, out_shardings=shards)  # as the state of a run that is alone
        for lane in lanes:
            lane.state = None
        self.drop()

    def drop(self):
        """Take the lanes that have ended out of the stack."""
        # A smaller stack is another program: each time costs a compilation.
        keep = [at for at, lane in enumerate(self.live)
                if lane.error is None and lane.step < self.schedule.steps]
        if len(keep) < len(self.live):
            self.live = [self.live[at] for at in keep]
            self.state = _at(self.state, np.array(keep)) if keep else None

    def advance(self):
        """Dispatch one step of every lane, and log the one before."""
        # 1. Batches first: a lane whose data end leaves before the step.
        batches = self._read()
        self.drop()
        if not self.live:
            return
        # 2. Each distinct batch travels to the device once; `which` tells every lane its own.
        streams = list(dict.fromkeys(lane.stream for lane in self.live))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves),
                               *[batches[stream] for stream in streams])
        which = np.array([streams.index(lane.stream) for lane in self.live], np.int32)
        # 3. Lanes may stand at different steps, after a restart that found some behind others.
        factors = [self.schedule.factor(lane.step) for lane in self.live]
        rates = {}
        for group in self.trainable:
            peaks = [lane.run.rates[group] for lane in self.live]
            rates[group] = np.array([factor * peak for factor, peak in zip(factors, peaks)],
                                    np.float32)
        # 4. Dispatch, and only then wait for the metrics of the step before (as `loop.train` does).
        self.state, metrics = self.step_fn(self.state, stacked, which, rates)
        self.settle()
        reads = [(batches[lane.stream]['segments'] > 0).sum() for lane in self.live]
        self.pending = [*zip(self.live, [lane.step for lane in self.live], reads, factors)], metrics
        for lane in self.live:
            lane.step += 1

    def _read(self):
        """Return {stream: its next batch}; where that fails, its lanes have an error."""
        batches = {}
        began = time.perf_counter()
        for lane in self.live:
            try:
                if lane.stream not in batches:
                    batches[lane.stream] = next(lane.stream)
                check_supervised(self.loss, lane.step, batches[lane.stream])
            except Exception as error:  # the data of one stream must not end the others
                lane.error = error
        for lane in self.live:
            lane.log.waited += time.perf_counter() - began
        return batches

    def settle(self):
        """Log the last step; waits for the device."""
        if self.pending:
            rows, metrics = self.pending
            metrics = jax.device_get(metrics)
            for at, (lane, *row) in enumerate(rows):
                lane.log.cells = len(rows)
                values = {name: values[at] for name, values in metrics.items()}
                # A lane that ends is settled before it leaves the stack, so `at` is its place.
                ended = lane.step == self.schedule.steps
                still = unmoved(lane.log.bits, _at(self.state['params'], at)) if ended else ()
                lane.write(*row, values, still)
            self.pending = None

    def save(self, shared, stopped):
        """Save the lanes for which it is time, or all when `stopped`; what has ended leaves."""
        due = [at for at, lane in enumerate(self.live) if stopped or shared.saves(lane.step)
               or lane.step == self.schedule.steps]
        # Its rows must be in the log that is uploaded with a checkpoint.
        if due:
            self.settle()
        for at in due:
            if self.live[at].error is None:
                self.live[at].save(self.pick(self.state, at))
        self.drop()


def train(runs: Sequence[CellRun], shared: StageRun) -> dict[Path, tuple[Exception | None, Any]]:
    """Train all `runs` to the end of their schedule, as `loop.train` would each of them.

    Returns {folder: (error, position of its stream)}; the error, None where all went well, is of
    the start, of a loss that is not finite or of the data, and the others are not touched by it.
    Numbers differ from those of `loop.train` by rounding, as stacked products add in another order.
    The mesh of `shared` must have one device. SIGTERM saves all.
    """
    with contextlib.ExitStack() as stack:
        def closing(thing):
            return stack.enter_context(contextlib.closing(thing))

        stack.enter_context(jax.set_mesh(shared.mesh))
        lanes = []
        opened = {}
        failed: dict[Path, tuple[Exception | None, Any]] = {}
        for run in runs:
            try:
                lanes.append(_Lane(run, shared, closing, opened))
            except Exception as error:  # a damaged checkpoint or parent must not end the others
                failed[run.folder] = error, None
        if not lanes:
            return failed
        group = _Group(lanes, shared)
        stack.enter_context(processes.stepping())
        while group.live:
            group.advance()
            steps = [lane.step for lane in group.live]
            stopped = bool(steps) and shared.stop(max(steps))
            group.save(shared, stopped)
            if stopped and group.live:
                for lane in group.live:
                    lane.manager.wait_until_finished()
                raise exits.Preempted(f'stopped by SIGTERM: {len(group.live)} runs are saved at '
                                      f'step {max(steps)} of {shared.schedule.steps}')
    return failed | {lane.run.folder: (lane.error, lane.position.state) for lane in lanes}


@lru_cache
def compiled_cells(model: Any, loss: str, optimizer: 'Optimizer',
                   trainable: tuple[str, ...]) -> Callable:
    """Return `train_step` of C runs under jit, with the stacked state donated.

    Takes (state [C, ...], batches [U, ...] of U streams, int32 [C] which of them each run reads,
    {group: float32 [C]} rates) and returns (state, metrics [C]). Attention is not the TPU kernel,
    which takes no heads as narrow as those of models that are worth stacking.
    """
    def step(state, batches, which, rates):
        # Picked on the device: lanes of one stream share the batch that travels there.
        def step_of_run(state, stream, rates):
            batch = jax.tree.map(lambda leaf: leaf[stream], batches)
            return train_step(state, batch, rates, model=model, loss=loss, optimizer=optimizer,
                              trainable=trainable)
        return jax.vmap(step_of_run)(state, which, rates)

    return jax.jit(step, donate_argnums=0)


@jax.jit
def _stack(states):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@jax.jit
def _at(state, places):
    """Return the part of a stacked state at one place, or at several."""
    return jax.tree.map(lambda leaf: leaf[places], state)

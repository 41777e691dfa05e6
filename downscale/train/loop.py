"""The one train loop: restore, step, log, save. It reads aloud.

Metrics of step n are read after step n + 1 is dispatched, so the device never waits for the host.
`metrics.jsonl` holds only numbers that a rerun repeats bit by bit; speeds, and the share of time
that went into waiting for input, go to `timing.jsonl`.
"""
import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from downscale.data.pipeline import Share
from downscale.results.curves import lost_rows, row_of
from downscale.runtime import exits, processes
from downscale.runtime.files import in_bucket, lock, naming, place, scratch, write_bytes
from downscale.runtime.memory import give_back
from downscale.runtime.peers import say
from downscale.sharding import Rules, batch_sharding, shardings
from downscale.train import checkpoint
from downscale.train.state import abstract, bits, new_state, unmoved
from downscale.train.step import compiled_step
from downscale.train.trackers import Tracker

if TYPE_CHECKING:
    from downscale.config import Optimizer, Schedule

LOG_EVERY = 10


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
    parts = batch_sharding(mesh, rules).addressable_devices_indices_map((devices,))
    starts = sorted({part.start or 0 for part, in parts.values()})
    each = batch_sharding(mesh, rules).shard_shape((devices,))[0]
    return Share(devices // each, tuple(start // each for start in starts))


def train(folder: Path, model: Any, loss: str, optimizer: 'Optimizer', trainable: tuple[str, ...],
          rates: dict[str, float], schedule: 'Schedule', mesh: Mesh,
          params: Callable[[], dict[str, Any]], stream: Iterator, save_every: int,
          report: Callable[[int, dict[str, Any]], object] = lambda step, metrics: None,
          stop: Callable[[int], bool] = processes.stop, shapes: dict[str, Any] | None = None,
          tracker: str = 'none') -> dict[str, Any]:
    """Train for `schedule.steps` steps and return the final parameters.

    After a step of which `stop(step)` is true, in all processes, it is saved and `exits.Preempted`
    raised.

    `params()` gives fresh or inherited parameters as numpy; it is called only when there is no
    checkpoint under `folder`, or where their `shapes` are not given. `stream` is a checkpointable
    iterator of this process' `share` of the batches. `tracker` is a key of `trackers.WRITERS`.
    Raises FloatingPointError on a non-finite loss and ValueError on a batch without supervised
    tokens, with the step. Process 0 alone writes metrics.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        # Closing waits for a save in flight, also when a step raises.
        manager = stack.enter_context(
            contextlib.closing(checkpoint.open_manager(folder, every=save_every)))
        state, meta = start(manager, params, shapes, optimizer, trainable, mesh, model.rules,
                             stream)
        step_fn = compiled_step(model, loss, optimizer, trainable, mesh)
        first = int(state['step'])
        mine = share(mesh, model.rules)
        log = stack.enter_context(contextlib.closing(Log(
            folder, first, meta['tokens'], tracker, meta.get('bits'))))
        stack.enter_context(processes.stepping())
        pending = None
        for step in range(first, schedule.steps):
            batch = log.timed(stream)
            check_supervised(loss, step, batch)
            factor = schedule.factor(step)
            now = {group: jnp.float32(factor * rate) for group, rate in rates.items()}
            batch = _on_devices(batch, mine, mesh, model.rules)
            read = tokens_of(batch['segments'])  # before the step, whose time it hides in
            state, metrics = step_fn(state, batch, now)
            if pending:
                report(*log.write(*pending))
            if step == first + 1:  # the first step compiled
                give_back()
            pending = (step, read, factor, metrics)
            stopped = stop(step + 1) and step + 1 < schedule.steps
            if stopped or ((step + 1) % save_every == 0 and step + 1 < schedule.steps):
                report(*log.write(*pending))
                pending = None
                _save(manager, state, stream, log)
            if stopped:
                manager.wait_until_finished()
                raise exits.Preempted(f'stopped by SIGTERM: step {step + 1} of {schedule.steps} is '
                                      'saved')
        if pending:
            report(*log.write(*pending, unmoved(log.bits, state['params'])))
        _save(manager, state, stream, log)
        manager.wait_until_finished()
    return state['params']


def check_supervised(loss: str, step: int, batch: dict[str, Any]) -> None:
    """Raise ValueError with the step where a batch of a stage of tokens has nothing to learn."""
    if loss == 'tokens' and not batch['weights'].any():
        raise ValueError(f'step {step}: no token of the batch {batch["tokens"].shape} is '
                         'supervised; check `length` and the stage\'s data')


@jax.jit
def tokens_of(segments_BL: jax.Array) -> jax.Array:
    """Return how many tokens of a global batch are no padding."""
    return (segments_BL > 0).sum()


def start(manager: Any, params: Callable[[], dict[str, Any]], shapes: dict[str, Any] | None,
          optimizer: 'Optimizer', trainable: tuple[str, ...], mesh: Mesh, rules: Rules,
          stream: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (state, what is saved beside it) of the newest checkpoint, or of step 0 with
    `params()`.

    Beside the state are the tokens seen, and the `bits` of the weights that the stage began with.
    """
    fresh = manager.latest_step() is None
    values = params() if fresh else shapes or jax.eval_shape(params)
    shape = jax.eval_shape(lambda: new_state(values, optimizer, trainable))
    shards = shardings(shape, mesh, rules)
    if fresh:
        placed = jax.tree.map(lambda leaf, sharding: jax.make_array_from_callback(
            leaf.shape, sharding, lambda index: leaf[index]), values, shards['params'])
        state = _new_state_on(optimizer, trainable, mesh, rules)(placed)
        sums = jax.device_get(bits(state['params'], trainable))
        return state, {'tokens': 0, 'bits': {group: int(sums[group]) for group in trainable}}
    return checkpoint.restore(manager, abstract(shape, shards), stream)


@lru_cache
def _new_state_on(optimizer, trainable, mesh, rules):
    """Return `new_state` under jit: no device ever holds the whole of an optimiser's moments."""
    def make(params):
        state = new_state(params, optimizer, trainable)
        return jax.lax.with_sharding_constraint(state, shardings(state, mesh, rules))
    return jax.jit(make, donate_argnums=0)


def _save(manager, state, stream, log):
    log.upload()  # before the step is there to be resumed from
    checkpoint.save(manager, state, stream, log.meta, force=True)


def _on_devices(batch, mine, mesh, rules):
    """Return the global batch of which `batch` holds the rows of the share `mine`."""
    sharding = batch_sharding(mesh, rules)
    held = len(mine.blocks)

    def place(array):
        rows = len(array) // held
        blocks = dict(zip(mine.blocks, array.reshape(held, rows, *array.shape[1:])))
        return jax.make_array_from_callback(
            (rows * mine.ways, *array.shape[1:]), sharding,
            lambda index: blocks[(index[0].start or 0) // rows])
    return {name: place(array) for name, array in batch.items()}


class Log:
    """`metrics.jsonl` and `timing.jsonl`; on resume, rows past the checkpoint are dropped.

    Every process reads the metrics, and fails where they are not finite; process 0 writes them, and
    to a tracker. A row of `timing.jsonl` says when its session `began` (Unix time) and how many
    `cells` shared the program, and thus its `seconds` since then.
    """

    def __init__(self, folder: Path, first: int, tokens: int, tracker: str,
                 bits: dict[str, int] | None = None) -> None:
        self.tokens = self.before = tokens
        self.bits = bits or {}  # checkpoints from before there were any have none
        self.waited, self.cells, self.session = 0.0, 1, round(time.time(), 3)
        self.began, self.files = time.perf_counter(), contextlib.ExitStack()
        paths = [Path(os.devnull)] * 2
        self.copies = {}
        if processes.first():
            paths = [scratch(folder) / name for name in ('metrics.jsonl', 'timing.jsonl')]
            if in_bucket(folder):
                self.copies = {path: place(folder) / path.name for path in paths}
                _fetch(self.copies)
            _cut(paths[0], first)
        self.tracker = Tracker(tracker if processes.first() else 'none', scratch(folder), first)
        self.files.callback(self.tracker.close)
        if self.copies and self.tracker.path:
            path = self.tracker.path
            self.copies[path] = place(folder) / path.parent.name / path.name
        self.metrics, self.timing = (self.files.enter_context(path.open('a')) for path in paths)

    def timed(self, stream: Iterator) -> Any:
        """Return the next batch; what it took counts as waiting for input."""
        begin = time.perf_counter()
        batch = next(stream)
        self.waited += time.perf_counter() - begin
        return batch

    @property
    def meta(self) -> dict[str, Any]:
        """What a checkpoint holds beside the state."""
        return {'tokens': self.tokens} | ({'bits': self.bits} if self.bits else {})

    def write(self, step: int, read: float, factor: float, metrics: dict[str, Any],
              still: Collection[str] = ()) -> tuple[int, dict[str, Any]]:
        """Append the row of a finished step; returns (steps done, row). Waits for the device.

        `still` are groups that the whole stage has not moved: said, and in the row of its end.
        """
        row = {name: float(np.asarray(value)) for name, value in metrics.items()}
        if not math.isfinite(row['loss']) or not math.isfinite(row['grad_norm']):
            raise FloatingPointError(
                f'step {step}: loss {row["loss"]}, gradient norm {row["grad_norm"]}; lower the '
                'learning rate or look at the data of this step')
        self.tokens += int(read)
        row = {'tokens': self.tokens, 'lr_factor': factor, **row}
        self.tracker.write(step + 1, row)
        row = {'step': step + 1, **row, **({'unmoved': still} if still else {})}
        if still and processes.first():
            say(f'{self.metrics.name}: training moved no weight of {", ".join(still)}; look at its '
                'rate, at `clip`, and whether the data reach it')
        _append(self.metrics, row)
        if (step + 1) % LOG_EVERY == 0:
            seconds = time.perf_counter() - self.began
            speed = {'tokens_per_s': (self.tokens - self.before) / seconds,
                     'input_share': self.waited / seconds}
            self.tracker.write(step + 1, speed)
            _append(self.timing, {
                'step': step + 1, 'began': self.session, 'seconds': round(seconds, 3),
                'cells': self.cells, **speed})
        return step + 1, row

    def upload(self) -> None:
        """The rows are in the run folder, also when that is in a bucket."""
        if self.copies:
            self.tracker.flush()
        for path, copy in self.copies.items():
            write_bytes(copy, path.read_bytes())

    def close(self) -> None:
        with naming(self.metrics.name):  # what could not be written is tried once more
            self.files.close()


def _append(file, row):
    """Add a row to an open file now."""
    with naming(file.name):
        file.write(json.dumps(row) + '\n')
        file.flush()


def _fetch(copies):
    """Go on with the rows that another machine may have written."""
    for path, copy in copies.items():
        path.write_bytes(copy.read_bytes() if copy.exists() else b'')


def _cut(path, first):
    """Keep the rows of `path` up to step `first`; a torn last line goes as well. What else is
    missing is said."""
    kept = []
    steps = []
    for line in path.read_text().splitlines() if path.exists() else ():
        row = row_of(line)
        if row and row['step'] <= first:
            kept.append(line)
            steps.append(row['step'])
    write_bytes(path, ''.join(f'{line}\n' for line in kept).encode())
    if lost := lost_rows(steps, first):
        say(f'{path} {lost}: it was cut or changed; training goes on, its curve keeps the gap')

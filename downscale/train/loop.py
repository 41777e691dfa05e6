"""The one train loop: restore, step, log, save. It reads aloud.

Metrics of step n are read after step n + 1 is dispatched, so the device never waits for the host.
`metrics.jsonl` holds only numbers that a rerun repeats bit by bit; speeds go to `timing.jsonl`.
"""
import contextlib
import fcntl
import json
import math
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from downscale.memory import give_back
from downscale.sharding import batch_sharding
from downscale.train import checkpoint
from downscale.train.state import abstract, new_state, state_shardings
from downscale.train.step import compiled_step

LOG_EVERY = 10


@contextlib.contextmanager
def only_process(folder):
    """Hold `folder` for this process; RuntimeError in one line when another one holds it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    handle = os.open(Path(folder) / '.lock', os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise RuntimeError(f'{folder} is in use by another process; wait for it or stop it, or '
                           'give this run another folder') from None
    try:
        yield
    finally:
        os.close(handle)


def train(folder, model, loss, optimizer, trainable, rates, schedule, mesh, params, stream,
          save_every, report=lambda step, metrics: None):
    """Train for `schedule.steps` steps and return the final parameters.

    `params()` gives fresh or inherited parameters; it is called only when there is no checkpoint
    under `folder`. `stream` is a checkpointable iterator of batches. Raises FloatingPointError on a
    non-finite loss and ValueError on a batch without supervised tokens, with the step.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        # Closing waits for a save in flight, also when a step raises.
        manager = stack.enter_context(
            contextlib.closing(checkpoint.open_manager(folder, every=save_every)))
        state = _start(manager, params, optimizer, trainable, mesh, model.rules, stream)
        step_fn = compiled_step(model, loss, optimizer, trainable, mesh)
        first = int(state['step'])
        log = stack.enter_context(contextlib.closing(_Log(folder, first)))
        pending, tokens = None, log.tokens
        for step in range(first, schedule.steps):
            batch = next(stream)
            if loss == 'tokens' and not batch['weights'].any():
                raise ValueError(f'step {step}: no token of the batch {batch["tokens"].shape} is '
                                 'supervised; check `length` and the stage\'s data')
            tokens += int((batch['segments'] > 0).sum())
            factor = schedule.factor(step)
            now = {group: jnp.float32(factor * rate) for group, rate in rates.items()}
            state, metrics = step_fn(state, _on_devices(batch, mesh, model.rules), now)
            if pending:
                report(*log.write(*pending))
            if step == first + 1:  # the first step compiled
                give_back()
            pending = (step, tokens, factor, metrics)
            if (step + 1) % save_every == 0 and step + 1 < schedule.steps:
                report(*log.write(*pending))
                pending = None
                _save(manager, state, stream, tokens)
        if pending:
            report(*log.write(*pending))
        _save(manager, state, stream, tokens)
        manager.wait_until_finished()
    return state['params']


def _start(manager, params, optimizer, trainable, mesh, rules, stream):
    """The newest checkpointed state, or step 0 with `params()`, sharded over the mesh."""
    fresh = jax.eval_shape(lambda: new_state(params(), optimizer, trainable)) \
        if manager.latest_step() is not None else new_state(params(), optimizer, trainable)
    shards = state_shardings(fresh, mesh, rules)
    if manager.latest_step() is None:
        return jax.device_put(fresh, shards)
    state, _ = checkpoint.restore(manager, abstract(fresh, shards), stream)
    return state


def _save(manager, state, stream, tokens):
    checkpoint.save(manager, state, stream, {'tokens': tokens}, force=True)


def _on_devices(batch, mesh, rules):
    sharding = batch_sharding(mesh, rules)
    return {name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()}


class _Log:
    """`metrics.jsonl` and `timing.jsonl`; on resume, rows past the checkpoint are dropped."""

    def __init__(self, folder, first):
        self.path = Path(folder) / 'metrics.jsonl'
        kept, self.tokens = [], 0
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # a torn last line
                    row = json.loads(line)
                    if row['step'] <= first:
                        kept.append(line)
                        self.tokens = row['tokens']
        self.path.write_text(''.join(f'{line}\n' for line in kept))
        self.metrics = self.path.open('a')
        self.timing = self.path.with_name('timing.jsonl').open('a')
        self.began, self.before = time.perf_counter(), self.tokens

    def write(self, step, tokens, factor, metrics):
        """Append the row of a finished step; returns (steps done, row). Waits for the device."""
        row = {name: float(np.asarray(value)) for name, value in metrics.items()}
        if not math.isfinite(row['loss']) or not math.isfinite(row['grad_norm']):
            raise FloatingPointError(
                f'step {step}: loss {row["loss"]}, gradient norm {row["grad_norm"]}; lower the '
                'learning rate or look at the data of this step')
        row = {'step': step + 1, 'tokens': tokens, 'lr_factor': factor, **row}
        self.metrics.write(json.dumps(row) + '\n')
        self.metrics.flush()
        if (step + 1) % LOG_EVERY == 0:
            seconds = time.perf_counter() - self.began
            self.timing.write(json.dumps({'step': step + 1, 'seconds': round(seconds, 3),
                                          'tokens_per_s': (tokens - self.before) / seconds}) + '\n')
            self.timing.flush()
        return step + 1, row

    def close(self):
        self.metrics.close()
        self.timing.close()

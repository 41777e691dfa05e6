"""What process 0 writes of an attempt: its `attempts/NNN.json`, `progress.json` and a marker."""
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from downscale.launch import state
from downscale.launch.spec import Spec, steps_of
from downscale.runtime import exits, processes
from downscale.runtime.files import place, read_json, write_json
from downscale.stages.folders import folder_of, is_done
from downscale.study.tasks import Task
from downscale.train.checkpoint import committed


class AttemptRecord:
    """What the job's folder says of this attempt; only process 0 writes, others only count."""

    def __init__(self, spec: Spec, began: float) -> None:
        self.spec = spec
        self.folder = state.folder_of(spec.run, spec)
        # Reports must not wait for a slow bucket, so values and files have a lock each. Where both
        # are taken, `writing` comes first.
        self.lock = threading.RLock()
        self.writing = threading.RLock()
        self.closed = False
        self.tasks = []
        self.before = 0  # steps of the other tasks
        self.marks = None  # (seconds, tokens) of the first report of a task
        self.path = None
        self.progress = None
        self.value = {'spec': spec.hash, 'began': began, 'ended': None, 'exit': None, 'reason': '',
                      'task': None, 'first_step': 0, 'last_step': 0, 'steps_lost': 0,
                      'restore_s': 0.0, 'compile_s': 0.0, 'steps_s': 0.0, 'seen': began,
                      'processes': None, 'devices': None, 'host': socket.gethostname()}

    def open(self) -> bool:
        """Give the attempt a number, and return whether there is anything to do.

        `exits.Failed` when attempts keep crashing without a newer checkpoint.
        """
        if state.ended(self.spec.run, self.spec, 'DONE.json'):
            return False
        # That it is started again means that the marker is of another spec, or a person's wish.
        (self.folder / 'FATAL.json').unlink(missing_ok=True)
        # A new number for each attempt: the files of earlier ones are what is counted against it.
        attempts = state.attempts(self.folder)
        self.value['attempt'] = attempts[-1]['attempt'] + 1 if attempts else 0
        self.path = self.folder / 'attempts' / f'{self.value["attempt"]:03d}.json'
        if attempts:
            step = attempts[-1]['last_step']
            self.value |= {'first_step': step, 'last_step': step}
        self.write()
        if attempts and attempts[-1]['exit'] is not None:  # else `plan` will know how far it came
            self._refuse_hopeless(attempts)
        return True

    def plan(self, tasks: Sequence[Task]) -> None:
        """Set the tasks of the job and the step that it goes on from.

        `exits.Failed` when attempts keep crashing without a newer checkpoint.
        """
        # Steps on disk, not those that were reported: the last attempt may have died amid them.
        step = sum(self._committed(task) for task in tasks)
        old = read_json(self.folder / 'progress.json')
        with self.writing, self.lock:
            self.tasks = tasks
            self.value |= {'first_step': step, 'last_step': step, 'devices': jax.device_count(),
                           'processes': jax.process_count()}
            saved = old['checkpoint_time'] if old and old['committed'] == step else None
            self.progress = {
                'task': None, 'step': 0, 'total': None, 'job_step': step,
                'job_total': sum(map(steps_of, tasks)), 'loss': None,
                'tokens_per_s': None, 'committed': step, 'checkpoint_time': saved}
        if self.path:
            # The attempt before is put right first: by it one sees whether another makes sense.
            self._amend(step)
            self.write()
            self._refuse_hopeless(state.attempts(self.folder)[:-1])

    def begin(self, task: Task) -> None:
        """Note that `task` is what is worked on."""
        # Outside the lock, as it looks into folders that may be in a bucket.
        before = sum(self._committed(other) for other in self.tasks if other != task)
        with self.lock:
            self.before = before
            self.marks = None
            self.value['task'] = task.name
            self.progress |= {'task': task.name, 'step': 0, 'total': None, 'loss': None,
                              'tokens_per_s': None}

    def report(self, step: int, total: int, row: Mapping[str, Any] | None = None) -> None:
        """Note that `step` of `total` of the task is done; `row` are metrics of a train step."""
        now = time.time()
        with self.lock:
            self.progress |= {'step': step, 'total': total}
            tokens = row['tokens'] if row else 0
            # Tokens count from the first report on: the time before went into compiling.
            if self.marks is None:
                self.marks = (now, tokens)
                self.last = now
            # Time between reports is time of steps, so saving and reading count with them.
            self.value['steps_s'] += now - self.last
            self.last = now
            if row:
                self.progress |= {'job_step': self.before + step, 'loss': row['loss']}
                if now > self.marks[0]:
                    self.progress['tokens_per_s'] = (tokens - self.marks[1]) / (now - self.marks[0])

    def listen(self, event: str, duration_secs: float, **_: Any) -> None:
        """Count the seconds that JAX and orbax report for compiling and restoring."""
        name = {'/jax/core/compile/backend_compile_duration': 'compile_s',
                '/jax/orbax/read/total_duration_secs': 'restore_s'}.get(event)
        if name:
            self.value[name] += duration_secs

    def write(self) -> None:
        """Write how things stand into the files."""
        with self.writing:
            if self.path is None or self.closed or not processes.first():
                return
            # What may wait for a bucket comes before the lock that reports wait for.
            step = sum(self._committed(task) for task in self.tasks)
            now = time.time()
            with self.lock:
                self.value['seen'] = now
                if self.progress:
                    if step > self.progress['committed']:
                        self.progress |= {'committed': step, 'checkpoint_time': now}
                    self.progress['job_step'] = max(self.progress['job_step'], step)
                    self.value |= {'last_step': step,
                                   'steps_lost': self.progress['job_step'] - step}
                value = dict(self.value)
                progress = self.progress and self.progress | {'time': now}
            if progress:
                write_json(self.folder / 'progress.json', progress)
            write_json(self.path, value)

    def close(self, code: int, text: str) -> None:
        """Write that the attempt has ended with an exit code, and a marker where the job has."""
        with self.writing:
            if self.path is None or self.closed or not processes.first():
                return
            self.value |= {'ended': time.time(), 'exit': code, 'reason': text}
            self.write()
            self.closed = True
            # The marker last: whoever sees it finds the attempt complete.
            marker = {exits.DONE: 'DONE.json', exits.FATAL: 'FATAL.json'}.get(code)
            if marker:
                write_json(self.folder / marker, {
                    'spec': self.spec.hash, 'time': time.time(), 'reason': text, 'exit': code,
                    'steps': self.value['last_step'], 'attempts': self.value['attempt'] + 1})

    def _refuse_hopeless(self, attempts):
        reason = state.hopeless(state.counting(self.spec, attempts))
        if reason:
            raise exits.Failed(reason, exits.FATAL)

    def _committed(self, task):
        """Return the steps of a task that a checkpoint holds."""
        if task.kind == 'evaluate':
            folder = place(self.spec.run) / 'evaluations' / f'{task.stage}-{task.experiment.name}'
            return int(is_done(folder, task.experiment))
        folder = folder_of(self.spec.run, task.experiment, task.stage)
        return committed(folder) or 0

    def _amend(self, step):
        """Write how many steps the attempt before lost, which it could not when it was killed."""
        if not self.value['attempt']:
            return
        path = self.folder / 'attempts' / f'{self.value["attempt"] - 1:03d}.json'
        old = read_json(path)
        if old['exit'] is None:
            reached = old['last_step'] + old['steps_lost']
            write_json(path, old | {'last_step': step, 'steps_lost': max(reached - step, 0),
                                    'reason': 'killed without a word, or its machine is gone'})

"""A whole study: every stage and evaluation of every cell, in parallel processes, resumable.

The run folder is the truth. A task is finished when its DONE.json carries its cell's hash, so the
same command continues after any interruption and does nothing when all is done.
"""
import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from downscale.config import Experiment
from downscale.runtime.exits import line_of, passes
from downscale.runtime.files import place, read_json, write_json
from downscale.runtime.memory import give_back
from downscale.runtime.progress import progress_bars
from downscale.study import power
from downscale.study.preparation import prepare
from downscale.study.tasks import Task, tasks_of, urgency, writers_of


def run_task(study: str | Path, task: Task, writers: Any, report: Callable[[int, int, str], object],
             tracker: str = 'tensorboard') -> None:
    """Run one task in this process; `report(done, total, text)` is called as it goes."""
    from downscale.evaluate.run import evaluate
    from downscale.policy import training
    if task.kind == 'train':
        total = task.experiment.stage(task.stage).steps
        training.train_stage(study, task.experiment, task.stage, lambda step, row: report(
            step, total, f'loss {row["loss"]:.3f}'), tracker)
    else:
        evaluate(study, task.experiment, task.stage, writers,
                 lambda done, total: report(done, total, ''))


# --- worker processes -------------------------------------------------------------------------

_queue = None


def _start_worker(queue, cores, cache):
    """Pin this worker, share compiled programs, and end with the parent."""
    global _queue
    _queue = queue
    core = cores.get()
    if core is not None:
        with contextlib.suppress(AttributeError, OSError):  # not on every system
            os.sched_setaffinity(0, {core})
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)  # the parent was killed; a worker left behind would hold run folders

    threading.Thread(target=watch, daemon=True).start()
    use_cache(cache)


def use_cache(folder: Path | str) -> None:
    """Keep compiled programs in `folder` across processes and runs.

    Where it cannot be written they are compiled again, without a warning for each. On several CPU
    devices they are always compiled again.
    """
    import jax
    # Collectives of a program that XLA:CPU has read, and not compiled, run in no order: one device
    # waits in an all-gather and another in a reduce-scatter for ever, or they meet in a wrong one.
    if jax.default_backend() == 'cpu' and jax.device_count() > 1:
        # Whatever JAX_COMPILATION_CACHE_DIR says.
        jax.config.update('jax_enable_compilation_cache', False)
        return
    warnings.filterwarnings('ignore', 'Error (reading|writing) persistent compilation cache')
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


@contextlib.contextmanager
def worker_pool(jobs: int, cache: Path | str) -> Iterator[tuple[Any, Any]]:
    """Open (pool of `jobs` workers, queue of what they report) until this context ends.

    Each worker has a core of its own, where there are enough.
    """
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    cores = context.Queue()
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
    for job in range(jobs):
        cores.put(usable[job] if jobs > 1 and jobs <= len(usable) else None)
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (queue, cores, str(cache)))
    try:
        # A terminal sends Ctrl-C to all; it is for this process alone, which ends the others. What
        # is blocked now stays so in what is started now.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        started = pool.submit(os.getpid)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        started.result()
        yield pool, queue
    except BaseException:
        for child in multiprocessing.active_children():
            child.kill()  # what is not saved is made again, bit by bit
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def check_devices(experiments: Sequence[Experiment], together: int) -> list[str]:
    """Return what to say of the devices, such as the attention that they compute.

    ValueError when a mesh, a batch or what is asked for does not fit them.
    """
    from downscale.stages import attention, training
    for cell in experiments if together > 1 else ():
        training.one_device(cell)
    return list(attention.lines(experiments, together))


def label(tasks: Sequence[Task]) -> str:
    """Return the name by which a progress bar shows tasks that run together."""
    return tasks[0].name + (f' and {len(tasks) - 1} more' if len(tasks) > 1 else '')


def _in_worker(study, tasks, writers, tracker):
    """Run one task, or several that share a program; return {task name: reason} of failed ones."""
    last = [0.0]
    name = label(tasks)
    failed = {}

    def report(done, total, text):
        if time.monotonic() - last[0] > 0.3 or done == total:
            last[0] = time.monotonic()
            _queue.put((name, done, total, text))

    if len(tasks) == 1:
        run_task(study, tasks[0], writers, report, tracker)
    else:
        from downscale.stages import training
        total = tasks[0].experiment.stage(tasks[0].stage).steps
        errors = training.train_together(
            study, [task.experiment for task in tasks], tasks[0].stage,
            lambda cell, step, row: report(step, total, f'loss {row["loss"]:.3f}'), tracker)
        failed = {task.name: _reason(errors[task.experiment.name]) for task in tasks
                  if task.experiment.name in errors}
    give_back()
    return failed


def _reason(error):
    """Return an error as one line: its first, or path and cause where a disk or bucket failed."""
    if passes(error):
        return line_of(error)
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def run(study: Path, name: str, experiments: Sequence[Experiment], jobs: int, cache: Path | str,
        quiet: bool = False, claims: Any = None, together: int = 1,
        tracker: str = 'tensorboard') -> float:
    """Finish every task of the study and return the seconds that it took.

    RuntimeError, after the rest is done, names the tasks that failed. `jobs` worker processes share
    the machine's cores, one each; `cache` holds compiled programs. Up to `together` cells that
    share a program are trained in one (see `stages.training.program_of`).
    """
    study = Path(study)
    from downscale.train.loop import only_process
    with worker_pool(jobs, cache) as (pool, queue):
        begun = time.time()
        tasks = tasks_of(experiments)
        # By a worker: a TPU belongs to the first process that looks at it.
        for line in pool.submit(check_devices, experiments, together).result():
            print(line)
        with only_process(study):
            prepare(study, name, experiments, quiet, claims)
            # Before the run, and not when it goes on: what is found already is in the report.
            if not any(study.glob('evaluations/*/DONE.json')):
                for line in power.lines(read_json(place(study) / 'study.json')):
                    print(line)
            with progress_bars(quiet) as bars:
                bars.tasks = len(tasks)
                failed = Queue(study, tasks, experiments, jobs, together, tracker).run(
                    pool, queue, bars)
        if failed:
            # None stands for those that wait for a failed task: they are counted, the causes named.
            causes = {task: why for task, why in failed.items() if why is not None}
            lines = '; '.join(f'{task}: {why}' for task, why in causes.items())
            raise RuntimeError(f'{len(causes)} of {len(tasks)} tasks failed ({lines}) and '
                               f'{len(failed) - len(causes)} wait for them; once that is mended, '
                               'the same command goes on')
    return time.time() - begun


class Queue:
    """The tasks of a study, run as their needs finish, most urgent first."""

    def __init__(self, study, tasks, experiments, jobs, together, tracker):
        self.study = study
        self.experiments = experiments
        self.tracker = tracker
        self.jobs = jobs
        self.together = together
        self.programs = {task.name: self._program(task) for task in tasks}
        order = urgency(tasks)
        self.waiting = sorted(tasks, key=lambda task: -order[task.name])
        self.done = set()
        self.failed = {}
        self.running = {}

    def run(self, pool: Any, queue: Any, bars: Any) -> dict[str, str | None]:
        """Run all tasks; return {task that failed: reason}, None for those that wait for it."""
        while self.waiting or self.running:
            # 1. Give tasks to idle workers.
            for tasks in self.next():
                if len(tasks) > 1:
                    bars.note(f'together: {", ".join(task.name for task in tasks)}')
                reads = (tasks[0].kind, tasks[0].stage) == ('evaluate', 'reason')
                writers = writers_of(tasks[0].experiment, self.experiments) if reads else {}
                self.running[pool.submit(_in_worker, self.study, tasks, writers,
                                         self.tracker)] = tasks
            # 2. Wait for one to end, but show what all report meanwhile.
            finished, _ = wait(self.running, timeout=0.5, return_when=FIRST_COMPLETED)
            at_work = {label(tasks) for tasks in self.running.values()}
            while not queue.empty():
                heard = queue.get()
                if heard[0] in at_work:  # the last word of a task may come after its end
                    bars(*heard)
            # 3. Note how they ended, which may let others begin.
            for future in finished:
                self._settle(future, bars)
        return self.failed

    def next(self) -> list[list[Task]]:
        """Return what to start now, a list of tasks for each worker, and take it off `waiting`."""
        started = []
        # 1. Tasks that need a failed one never start; they are in order, so one pass is enough.
        for task in self.waiting if self.failed else ():
            if not self.failed.keys().isdisjoint(task.needs):
                self.failed[task.name] = None
        self.waiting = [task for task in self.waiting if task.name not in self.failed]
        # 2. The most urgent task goes first, with others that share its program.
        ready = [task for task in self.waiting if self.done.issuperset(task.needs)]
        while ready and (idle := self.jobs - len(self.running) - len(started)) > 0:
            alike = [task for task in ready
                     if self.programs[task.name] == self.programs[ready[0].name]]
            # A worker takes its share only, so that none stands idle.
            share = math.ceil(len(alike) / idle)
            taken = alike[:min(self.together, share)]
            started.append(taken)
            ready = [task for task in ready if task not in taken]
            self.waiting = [task for task in self.waiting if task not in taken]
        return started

    def _program(self, task):
        """Return what a task shares with those that it can be trained with; else its name."""
        from downscale.stages.training import program_of
        same = self.together > 1 and task.kind == 'train' and program_of(task.experiment,
                                                                         task.stage)
        return same or task.name

    def _settle(self, future, bars):
        """Note how tasks ended: in `done`, or in `failed` and in their FATAL.json."""
        tasks = self.running.pop(future)
        bars.remove(label(tasks))
        try:
            failed = future.result()
        except BrokenProcessPool:
            raise RuntimeError(f'a worker died during {label(tasks)} (out of memory?); the same '
                               'command continues, with fewer --jobs if memory is short') from None
        except Exception as error:  # any failure of one task must not stop the others
            failed = dict.fromkeys([task.name for task in tasks], _reason(error))
        for task in tasks:
            if task.name not in failed:
                self.done.add(task.name)
                bars.finished(task.name)
                continue
            if task.kind == 'train':
                with contextlib.suppress(OSError):  # the line below says as much on a full disk
                    write_json(self.study / 'cells' / task.experiment.name / task.stage
                               / 'FATAL.json', {'reason': failed[task.name]})
            bars.note(f'failed: {task.name}: {failed[task.name]}')
        self.failed |= failed

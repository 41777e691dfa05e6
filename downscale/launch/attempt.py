"""One attempt at a job: its tasks that are not done, one after the other.

It ends by `exits.TABLE`; what happened is in the job's folder (`state.py`).
"""
import contextlib
import os
import signal
import threading
import time
import traceback
from pathlib import Path

import jax

from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.launch import state
from downscale.launch.record import AttemptRecord
from downscale.launch.spec import processes_of, steps_of
from downscale.policy import training
from downscale.runtime import exits, processes
from downscale.runtime.files import held, in_bucket, place, read_json, scratch, write_bytes
from downscale.runtime.memory import keep_freed_memory
from downscale.stages import attention, preflight
from downscale.stages.inputs import prepare
from downscale.study import preparation, workers
from downscale.study.preparation import budgets_of, registered
from downscale.study.tasks import tasks_of, writers_of
from downscale.values import hash_of

# A file of a disk costs nothing to write again; each write to a bucket is a request that is paid.
TICK_SECONDS = 1
BUCKET_TICK_SECONDS = 15
LAUNCHER = 'DOWNSCALE_LAUNCHER'  # process id of a local supervisor, without which work ends


def tick(record: AttemptRecord, over: threading.Event) -> None:
    """Keep the files up to date until `over`, and end this process when its launcher has ended."""
    launcher = os.environ.get(LAUNCHER)
    failed = False
    every = BUCKET_TICK_SECONDS if in_bucket(record.spec.run) else TICK_SECONDS
    while not over.wait(every):
        # An orphan gets another parent. The signal saves a step, as a preemption does.
        if launcher and os.getppid() != int(launcher):
            launcher = None
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            record.write()
            failed = False
        except Exception as error:  # a bucket may be out of reach, or a disk full, for a while
            if not failed:
                _say(f'cannot write {record.path}, and will again: {exits.line_of(error)}')
            failed = True


def _say(text):
    """Print a line on stderr, unless the disk of the log is full."""
    with contextlib.suppress(OSError):
        exits.say(text)


def work(record: AttemptRecord) -> None:
    """Do the tasks of the job; whatever prevents it is raised."""
    spec = record.spec
    # 1. This machine is the one that was asked for.
    count, each = processes_of(spec.topology)
    if jax.device_count() != count * each:
        raise exits.Failed(f'{spec.topology} has {count * each} devices, here are '
                           f'{jax.device_count()} ({jax.process_count()} processes)',
                           exits.MISMATCH)
    # Before the study file, which may look into a mounted folder.
    preflight.check_mounts()
    # 2. The study file still makes the cell that was submitted.
    study_config, sweep = file.load_study(spec.config, spec.overrides)
    # Where the program runs is decided by the environment of the job, not by the study file.
    with study_config.unlocked():
        del study_config['platform']
    cells = cells_of(study_config, sweep)
    cell = file.find_cell(cells, spec.cell)
    if cell.hash != spec.experiment:
        raise ValueError(f'{spec.config} makes another cell {spec.cell} now ({cell.hash}) than was '
                         f'submitted ({spec.experiment}); submit it again')
    # Tasks are found by name: the spec holds no code, and the file makes the same ones here.
    by_name = {task.name: task for task in tasks_of(cells)}
    tasks = [by_name[name] for name in spec.tasks]
    record.plan(tasks)
    # 3. Data and the description of the study are there.
    for line in list(attention.lines([cell])):
        if processes.first():
            _say(line)
    preflight.check(cell)
    workers.use_cache(os.environ.get('JAX_COMPILATION_CACHE_DIR')
                      or place(spec.run) / 'launch' / 'cache')
    if in_bucket(spec.run):  # every machine makes its own copy, at the same time
        with held(scratch(spec.run)):
            prepare(spec.run, cell, among=cells)
    elif (cell.world, cell.data) != (cells[0].world, cells[0].data):  # a level of its own
        processes.once(lambda: str(prepare(spec.run, cell, among=cells)))
    # One process writes what describes the study, from the data that all have now.
    processes.once(lambda: _prepare(spec.run, study_config.study, cells,
                                     file.claims_of(study_config)))
    # 4. The tasks, in order; each goes on where an earlier attempt was.
    writers = writers_of(cell, cells)
    for task in tasks:
        record.begin(task)
        if task.kind == 'evaluate':
            workers.run_task(spec.run, task, writers,
                             lambda done, total, text: record.report(done, total))
        else:
            training.train_stage(spec.run, cell, task.stage, lambda step, row: record.report(
                step, steps_of(task), row))
    processes.once(lambda: record.close(exits.DONE, ''))


def _prepare(run, name, cells, claims):
    """Bring the study's data to this machine, and write its description into the run folder."""
    with held(scratch(run)):
        prepare(run, cells[0], among=cells)
        made = scratch(run) / 'tokenizer.json'
        if in_bucket(run) and made.is_file():  # whoever loads a model from the bucket needs it
            write_bytes(place(run) / made.name, made.read_bytes())
        described = read_json(place(run) / 'study.json') or {}
        wanted = {'config_hash': hash_of([cell.hash for cell in cells]),
                  'claims': registered(run, claims).get('claims'), 'budgets': budgets_of(cells)}
        # Once is enough: other jobs of the study find it as it should be.
        if any(described.get(name) != value for name, value in wanted.items()):
            preparation.prepare(run, name, cells, quiet=True, claims=claims)


def close(record: AttemptRecord, code: int, text: str) -> None:
    """Write how the attempt ended; where that is not possible, a line and the exit code say it."""
    try:
        record.close(code, text)
    except Exception as error:
        if not exits.passes(error):
            raise
        _say(f'cannot write {record.path}: {exits.line_of(error)}')


def run(path: str | Path) -> int:
    """Make one attempt at the job of a `spec.json`, in this process, and return the exit code."""
    over = threading.Event()
    if file.on_cpu():
        keep_freed_memory()
    try:
        # The record lives before the others are joined: waiting for them is a part of the attempt.
        record = AttemptRecord(state.load_spec(path), time.time())
        jax.monitoring.register_event_duration_secs_listener(record.listen)
        threading.Thread(target=tick, args=(record, over), daemon=True).start()
        with processes.joined(lambda code, text: close(record, code, text)):
            if processes.once(record.open):
                work(record)
    except exits.Preempted as error:
        _say(f'{error}; a restart continues')
        return exits.PREEMPTED
    # From a terminal: whoever pressed the keys needs no line.
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except Exception as error:
        code = exits.code_of(error)
        # Only a fault of the program wants a traceback; all else is said in one line.
        if code == exits.CRASHED and not isinstance(error, exits.Failed) \
                and not exits.passes(error):
            _say(traceback.format_exc().rstrip())
        _say(f'error: {exits.line_of(error)}')
        return code
    finally:
        over.set()
    return exits.DONE

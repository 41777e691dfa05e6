"""The loop that keeps a sweep going on any backend: look, decide (`watch.py`), act.

A backend has `poll` (seconds), `observe(specs)`, `create(spec, zone)`, `delete(name, zone)` and
`close()`. What is created is noted in the job's `tries.json` first, so whoever goes on knows of it.
"""
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from downscale.launch import state, watch
from downscale.launch.job_files import OneByOne, files_of
from downscale.launch.spec import Spec
from downscale.runtime.exits import line_of, passes
from downscale.runtime.files import lock, scratch, write_json

Note = Callable[[str], object]  # takes a line for a person
Show = Callable[[list[state.Job]], object]


class Backend(Protocol):
    """Where jobs run. RuntimeError or an OSError that passes means: ask again later."""
    poll: float  # seconds between two looks

    def observe(self, specs: Sequence[Spec]) -> list[watch.Observed]:
        """Return every resource of the run folder of `specs`."""

    def create(self, spec: Spec, zone: str) -> None:
        """Start a job; ValueError when another one has its name."""

    def delete(self, name: str, zone: str) -> None:
        """Stop a job by its name; it may take a while to save."""

    def close(self) -> None:
        """End what cannot run without a watcher."""


@dataclasses.dataclass(kw_only=True)
class Memory:
    """What a watcher knows beside the files.

    `lines` is {what: the line noted of it last}, `stamps` those of life, `tries` {path: rows}
    that a full disk or a bucket out of reach did not take, and `files` what the jobs have written,
    as it was at the last look.
    """
    lines: dict[str, str] = dataclasses.field(default_factory=dict)
    stamps: state.Stamps = dataclasses.field(default_factory=state.Stamps)
    tries: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    files: OneByOne | None = None


def run(backend: Backend, specs: Sequence[Spec], policy: watch.Policy, note: Note = print,
        show: Show = lambda jobs: None) -> list[state.Job]:
    """Run a sweep until every job is done or cannot go on, or the money is spent.

    Returns the jobs as they ended. One line is noted per action, and `show` gets the jobs in each
    round. A full disk, or a bucket or cloud out of reach, is tried again. SIGTERM and Ctrl-C end
    the loop, `close` the backend and note what still runs there; the same call continues.
    RuntimeError when another process of this machine watches this study.
    """
    study = specs[0].run
    memory = Memory()
    with _watching(study):
        try:
            actions = step(backend, specs, policy, note, memory, show)
            while not watch.finished(actions):
                time.sleep(backend.poll)
                try:
                    actions = step(backend, specs, policy, note, memory, show)
                except Exception as error:
                    # The first look may fail for good (a wrong name); later ones only for a while.
                    if not isinstance(error, RuntimeError) and not passes(error):
                        raise
                    _once(memory, 'look', f'cannot look, and will again: {line_of(error)}', note)
            # With the stamps of this process: without them `read` would wait and look twice.
            jobs = _look(specs, time.time(), memory, policy)
            return [_ended(job, actions) for job in jobs]
        except KeyboardInterrupt:
            # Closed first, so that what is noted as left is what really stays.
            backend.close()
            _note_left(backend, specs, note)
            raise
        finally:
            backend.close()


def _ended(job, actions):
    """Return a job as failed when it is given up, whatever its files say.

    On a full disk they still say that it runs.
    """
    for action in actions:
        if isinstance(action, watch.GiveUp) and action.key == job.key and job.state == 'running':
            return dataclasses.replace(job, state='failed', reason=action.why)
    return job


def _note_left(backend, specs, note):
    """Note what goes on without a watcher, and what it costs."""
    try:
        observed = backend.observe(specs)
    except Exception as error:
        note(f'what still runs is not known: {line_of(error)}')
        return
    by_name = {spec.name: spec for spec in specs}
    left = []
    hourly = 0.0
    for resource in observed:
        if resource.name in by_name and resource.state in ('pending', 'running'):
            chips, usd = state.chips_of(by_name[resource.name])
            left.append(f'{by_name[resource.name].key} ({resource.state}, {chips} chips)')
            # What waits for machines costs nothing yet.
            if resource.state == 'running':
                hourly += chips * (usd or 0.0)
    if left:
        note(f'nobody watches now, but these go on and cost up to {hourly:.2f} $ an hour '
             f'(estimate), until `launch cancel` or `launch watch`: {", ".join(left)}')


def step(backend: Backend, specs: Sequence[Spec], policy: watch.Policy, note: Note = print,
         memory: Memory | None = None, show: Show = lambda jobs: None) -> list[watch.Action]:
    """Look, decide and act once; return the actions. What `memory` holds is not noted again."""
    memory = memory or Memory()
    actions = decide(backend, specs, policy, show, memory)
    memory.lines.pop('look', None)
    by_key = {spec.key: spec for spec in specs}
    by_name = {spec.name: spec for spec in specs}
    for action in actions:
        _execute(backend, action, by_key, by_name, memory, note)
    return actions


def decide(backend: Backend, specs: Sequence[Spec], policy: watch.Policy,
           show: Show = lambda jobs: None, memory: Memory | None = None) -> list[watch.Action]:
    """Return the actions that are due now."""
    memory = memory or Memory()
    # Resources first: whatever has ended there has written its files by then.
    observed = backend.observe(specs)
    now = time.time()
    jobs = _look(specs, now, memory, policy)
    show(jobs)
    return watch.reconcile(desired_of(specs, jobs, memory), observed, now, policy)


def _look(specs, now, memory, policy):
    """Return the jobs as their files tell them now; `memory` keeps the files."""
    if memory.files is None:
        memory.files = files_of(specs[0].run)
    else:
        memory.files.refresh()
    return state.read(specs[0].run, specs, now, memory.stamps, memory.files, stale=policy.stale)


def desired_of(specs: Sequence[Spec], jobs: Sequence[state.Job],
               memory: Memory) -> list[watch.Desired]:
    """Return the `watch.Desired` of each spec, from what the run folder says of it."""
    return [_desired(spec, job, memory) for spec, job in zip(specs, jobs, strict=True)]


def _desired(spec, job, memory):
    # Those of this spec since the last `resume`: a person's wish is a new beginning.
    files = memory.files or files_of(spec.run)
    attempts = state.counting(spec, state.attempts(state.folder_of(spec.run, spec), files), files)
    tries = tuple(watch.Try(row['at'], row['code'])
                  for row in state.counting(spec, _tries(spec, memory, files), files))
    chips, usd = state.chips_of(spec)
    return watch.Desired(
        key=spec.key,
        name=spec.name,
        hash=spec.hash,
        state=job.state,
        needs=spec.needs,
        chips=chips,
        usd=job.usd or 0.0,
        usd_per_hour=chips * (usd or 0.0),
        attempts=tuple(map(_attempt_of, attempts)),
        tries=tries,
        hopeless=state.hopeless(attempts),
    )


def _attempt_of(row):
    return watch.Attempt(
        began=row['began'],
        ended=row['ended'] or row['seen'],
        code=row['exit'],
        gained=row['last_step'] > row['first_step'],
    )


def _execute(backend, action, by_key, by_name, memory, note):
    """Do one action; what waits, stops or is left alone is only noted."""
    match action:
        case watch.Create(key, zone):
            spec = by_key[key]
            now = time.time()
            # The try is on file before the resource is there: whoever goes on must know of it.
            row = {'spec': spec.hash, 'at': now, 'zone': zone, 'code': None}
            _write_tries(spec, [*_tries(spec, memory, state.ONE_BY_ONE), row], memory, note)
            _act(f'{key}: started' + (f' in {zone}' if zone else ''), note,
                     lambda: backend.create(spec, zone))
        case watch.Delete(name=name, zone=zone, why=why, code=code):
            spec = by_name[name]
            tries = _tries(spec, memory, state.ONE_BY_ONE)
            # A program that ended too early to write left its code with the resource alone.
            if code is not None and tries:
                _write_tries(spec, [*tries[:-1], tries[-1] | {'code': code}], memory, note)
            memory.lines[spec.key] = f'{spec.key}: {why}'
            _act(memory.lines[spec.key], note, lambda: backend.delete(name, zone))
        case watch.Wait(key, why, until) if until:
            _once(memory, key, f'{key}: {why}; again at {time.ctime(until)}', note)
        case watch.GiveUp(key, why):
            _once(memory, key, f'{key}: {why}', note)
        case watch.Stop(why):
            _once(memory, 'stop', why, note)
        case watch.Orphan(name, zone):
            _once(memory, name, f'{name} in {zone} belongs to no job of this study; gc deletes it',
                  note)


def _act(text, note, act):
    """Note `text` and act; a backend that cannot be reached is asked again in the next round."""
    note(text)
    try:
        act()
    except Exception as error:
        if not isinstance(error, RuntimeError) and not passes(error):
            raise
        note(f'{text.partition(": ")[0]}: {line_of(error)}')


def _once(memory, key, text, note):
    """Note `text`, unless it is what was noted of `key` last."""
    if memory.lines.get(key) != text:
        memory.lines[key] = text
        note(text)


def _path(spec):
    return state.folder_of(spec.run, spec) / 'tries.json'


def _tries(spec, memory, files):
    path = _path(spec)
    return memory.tries[str(path)] if str(path) in memory.tries else files.json(path, list) or []


def _write_tries(spec, tries, memory, note):
    """Write the tries of a job into its folder, or keep them in mind where that fails.

    A job must not be started again and again because its disk is full.
    """
    path = _path(spec)
    try:
        write_json(path, tries)
        memory.tries.pop(str(path), None)
    except Exception as error:
        if not passes(error):
            raise
        # In mind until a later write takes them along.
        memory.tries[str(path)] = tries
        _once(memory, 'write', f'cannot write, and goes on: {line_of(error)}', note)


@contextlib.contextmanager
def _watching(study):
    """Be the only process of this machine that watches a study; let SIGTERM interrupt it."""
    handle = lock(scratch(study) / 'launch')
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        os.close(handle)


def _interrupt(*_):
    raise KeyboardInterrupt

"""The loop that keeps a sweep going on any backend: look, decide (`watch.py`), act.

A backend has `poll` (seconds), `observe(specs)`, `create(spec, zone)`, `delete(name, zone)` and
`close()`. What is created is noted in the job's `tries.json` first, so whoever goes on knows of it.
"""
import contextlib
import os
import signal
import time

from downscale.launch import state, watch
from downscale.places import lock, read_json, scratch, write_json


def run(backend, specs, policy, note=print, show=lambda jobs: None):
    """No job of a sweep can go on: each is done, given up, or needs such a one, or the money is
    spent. Returns `state.read` of them.

    One line is noted per action, and `show` gets the jobs in each round. SIGTERM and Ctrl-C end
    the loop and `close` the backend; the same call continues. RuntimeError when another process of
    this machine watches this study.
    """
    study, told = specs[0].run, {}
    with _watching(study):
        try:
            actions = step(backend, specs, policy, note, told, show)
            while not watch.finished(actions):
                time.sleep(backend.poll)
                try:
                    actions = step(backend, specs, policy, note, told, show)
                except RuntimeError as error:  # it is asked again
                    _once(told, 'look', f'cannot look: {error}', note)
            return state.read(study, specs, time.time())
        finally:
            backend.close()


def step(backend, specs, policy, note=print, told=None, show=lambda jobs: None):
    """Look, decide and act once; returns the actions. What is in `told` is not noted again."""
    told = {} if told is None else told
    actions = decide(backend, specs, policy, show)
    told.pop('look', None)
    by_key = {spec.key: spec for spec in specs}
    by_name = {spec.name: spec for spec in specs}
    for action in actions:
        _execute(backend, action, by_key, by_name, told, note)
    return actions


def decide(backend, specs, policy, show=lambda jobs: None):
    """The actions that are due now."""
    # Resources first: what has ended there has written its files.
    observed, now = backend.observe(specs), time.time()
    jobs = state.read(specs[0].run, specs, now)
    show(jobs)
    return watch.reconcile(desired_of(specs, jobs), observed, now, policy)


def desired_of(specs, jobs):
    """The `watch.Desired` of each spec, from what the run folder says of it."""
    found = []
    for spec, job in zip(specs, jobs, strict=True):
        rows = state.counting(spec, state.attempts(state.folder_of(spec.run, spec)))
        chips, usd = state.chips_of(spec)
        found.append(watch.Desired(
            spec.key, spec.name, spec.hash, job.state, spec.needs, chips, job.usd or 0.0,
            chips * (usd or 0.0), tuple(watch.Attempt(
                row['began'], row['ended'] or row['seen'], row['exit'],
                row['last_step'] > row['first_step']) for row in rows),
            tuple(watch.Try(row['at'], row['code'])
                  for row in state.counting(spec, _tries(spec))), state.hopeless(rows)))
    return found


def _execute(backend, action, by_key, by_name, told, note):
    match action:
        case watch.Create(key, zone):
            spec, now = by_key[key], time.time()
            _write_tries(spec, [*_tries(spec), {'spec': spec.hash, 'at': now, 'zone': zone,
                                                'code': None}])
            _attempt(f'{key}: started' + (f' in {zone}' if zone else ''), note,
                     lambda: backend.create(spec, zone))
        case watch.Delete(name, zone, why, code):
            spec = by_name[name]
            tries = _tries(spec)
            if code is not None and tries:
                _write_tries(spec, [*tries[:-1], tries[-1] | {'code': code}])
            told[spec.key] = f'{spec.key}: {why}'
            _attempt(told[spec.key], note, lambda: backend.delete(name, zone))
        case watch.Wait(key, why, until) if until:
            _once(told, key, f'{key}: {why}; again at {time.ctime(until)}', note)
        case watch.GiveUp(key, why):
            _once(told, key, f'{key}: {why}', note)
        case watch.Stop(why):
            _once(told, 'stop', why, note)
        case watch.Orphan(name, zone):
            _once(told, name, f'{name} in {zone} belongs to no job of this study; gc deletes it',
                  note)


def _attempt(text, note, act):
    """Note `text` and act; a backend that cannot be reached is asked again in the next round."""
    note(text)
    try:
        act()
    except RuntimeError as error:
        note(f'{text.partition(": ")[0]}: {error}')


def _once(told, key, text, note):
    if told.get(key) != text:
        told[key] = text
        note(text)


def _path(spec):
    return state.folder_of(spec.run, spec) / 'tries.json'


def _tries(spec):
    return read_json(_path(spec), list) or []


def _write_tries(spec, tries):
    write_json(_path(spec), tries)


@contextlib.contextmanager
def _watching(study):
    """In this context this process is the only one that watches a study, and SIGTERM interrupts.
    """
    handle = lock(scratch(study) / 'launch')
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        os.close(handle)


def _interrupt(*_):
    raise KeyboardInterrupt


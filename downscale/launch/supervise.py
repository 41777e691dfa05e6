"""The loop that keeps a sweep going on any backend: look, decide (`watch.py`), act.

A backend has `poll` (seconds), `observe(specs)`, `create(spec, zone)`, `delete(name, zone)` and
`close()`. What is created is noted in the job's `tries.json` first, so whoever goes on knows of it.
"""
import contextlib
import os
import signal
import time

from downscale.launch import state, watch
from downscale.places import LOCK, lock, read_json, scratch, write_json


def run(backend, specs, policy, note=print):
    """No job of a sweep can go on: each is done, given up, or needs such a one, or the money is
    spent. Returns `state.read` of them.

    One line is noted per action. SIGTERM and Ctrl-C end the loop and `close` the backend; the same
    call continues. RuntimeError when another process watches this study.
    """
    by_key = {spec.key: spec for spec in specs}
    key_of = {spec.name: spec.key for spec in specs}
    study, told = specs[0].run, {}
    with _watching(study):
        try:
            for spec in specs:
                state.save_spec(spec)
            observed = backend.observe(specs)
            while True:
                # Resources first: what has ended there has written its files.
                now = time.time()
                actions = watch.reconcile(desired_of(specs, now), observed, now, policy)
                for action in actions:
                    _execute(backend, action, by_key, key_of, told, note)
                if watch.finished(actions):
                    return state.read(study, specs, time.time())
                time.sleep(backend.poll)
                observed = _observe(backend, specs, note)
        finally:
            backend.close()


def desired_of(specs, now):
    """The `watch.Desired` of each spec, from the run folder at the unix time `now`."""
    found = []
    for spec, job in zip(specs, state.read(specs[0].run, specs, now), strict=True):
        rows = [row for row in state.attempts(state.folder_of(spec.run, spec))
                if row['spec'] == spec.hash]
        chips, usd = state.chips_of(spec)
        found.append(watch.Desired(
            spec.key, spec.name, spec.hash, job.state, spec.needs, chips, job.usd or 0.0,
            chips * (usd or 0.0), tuple(watch.Attempt(
                row['began'], row['ended'] or row['seen'], row['exit'],
                row['last_step'] > row['first_step']) for row in rows),
            tuple(watch.Try(row['at'], row['code']) for row in _tries(spec)
                  if row['spec'] == spec.hash), state.hopeless(rows)))
    return found


def _observe(backend, specs, note):
    """What the backend shows; while it cannot be reached it is asked again."""
    while True:
        try:
            return backend.observe(specs)
        except RuntimeError as error:
            note(f'cannot look: {error}')
            time.sleep(backend.poll)


def _execute(backend, action, by_key, key_of, told, note):
    match action:
        case watch.Create(key, zone):
            spec, now = by_key[key], time.time()
            _write_tries(spec, [*_tries(spec), {'spec': spec.hash, 'at': now, 'zone': zone,
                                                'code': None}])
            _attempt(f'{key}: started' + (f' in {zone}' if zone else ''), note,
                     lambda: backend.create(spec, zone))
        case watch.Delete(name, zone, why, code):
            spec = by_key[key_of[name]]
            tries = _tries(spec)
            if code is not None and tries:
                _write_tries(spec, [*tries[:-1], tries[-1] | {'code': code}])
            _attempt(f'{spec.key}: {why}', note, lambda: backend.delete(name, zone))
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
    return read_json(_path(spec)) or []


def _write_tries(spec, tries):
    write_json(_path(spec), tries)


@contextlib.contextmanager
def _watching(study):
    """In this context this process is the only one that watches a study, and SIGTERM interrupts.
    """
    handle = lock(scratch(study) / 'launch')
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        os.close(handle)


def _interrupt(*_):
    raise KeyboardInterrupt


def stop(study):
    """Tell the process that watches this study here to stop; returns whether there is one."""
    folder = scratch(study) / 'launch'
    try:
        os.close(lock(folder))
    except RuntimeError:
        os.kill(int((folder / LOCK).read_text()), signal.SIGTERM)
        return True
    return False

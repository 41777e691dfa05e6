"""A sweep on this machine, whose jobs are stubs, runs to its end by the watcher's decisions."""
import dataclasses
import errno
import os
import subprocess
import sys
import threading
import time

import pytest
from roots import HELPERS
from waiting import LIMIT, wait_until

from downscale.launch import state, supervise
from downscale.launch.backends import local
from downscale.launch.spec import Spec
from downscale.launch.watch import Observed, Policy
from downscale.runtime import exits

STUB = HELPERS / 'stub_job.py'


def spec_of(run, cell, needs=()):
    return Spec(sweep='s', cell=cell, part='train', config='x.py', overrides=(), experiment='h',
                tasks=(), needs=needs, steps=1, topology='cpu:1x1', image=None, commit='none',
                run=str(run))


def commands(whats):
    return lambda spec, mounts=(): [([
        sys.executable, str(STUB), str(state.folder_of(spec.run, spec)), spec.hash,
        *whats[spec.cell].split()], {})]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(local, 'POLL_SECONDS', 0.05)
    monkeypatch.setattr(local.LocalBackend, 'poll', 0.05)


def test_a_fatal_job_stops_what_needs_it_and_a_killed_one_starts_again(tmp_path, monkeypatch):
    bad, good = spec_of(tmp_path, 'bad'), spec_of(tmp_path, 'good')
    after, never = (spec_of(tmp_path, name, (need.key,)) for name, need in (
        ('after', good), ('never', bad)))
    monkeypatch.setattr(local, 'commands', commands(
        {'bad': 'fatal', 'good': 'kill 42 done', 'after': 'done', 'never': 'done'}))
    said = []
    jobs = local.run([never, after, bad, good], 1, note=said.append)
    assert [job.state for job in jobs] == ['waiting', 'done', 'fatal', 'done']
    assert [line for line in said if line.startswith(('good', 'after'))] == [
        'good/train: started', 'good/train: crashed (exit code -9)', 'good/train: started',
        'good/train: preempted, saved (exit code 42)', 'good/train: started',
        'good/train: done (exit code 0)', 'after/train: started', 'after/train: done (exit code 0)']
    assert said.count('never/train: needs bad/train, which will not be done') == 1
    assert len(state.attempts(state.folder_of(tmp_path, good))) == 3
    again = []
    local.run([never, after, bad, good], 1, note=again.append)
    assert sorted(again) == ['bad/train: fatal',
                             'never/train: needs bad/train, which will not be done']
    state.resume(bad, time.time())
    monkeypatch.setattr(local, 'commands', commands({'bad': 'done', 'never': 'done'}))
    assert [job.state for job in local.run([never, after, bad, good], 1)] == ['done'] * 4


def test_a_cancelled_job_is_asked_to_save_and_starts_when_it_is_resumed(tmp_path, monkeypatch):
    spec, said = spec_of(tmp_path, 'a'), []
    monkeypatch.setattr(local, 'commands', commands({'a': 'wait done'}))

    def cancel():
        wait_until(lambda: state.attempts(state.folder_of(tmp_path, spec)))
        state.cancel(spec, time.time())
    threading.Thread(target=cancel).start()
    assert [job.state for job in local.run([spec], 1, note=said.append)] == ['cancelled']
    assert said == ['a/train: started', 'a/train: cancelled']
    exit_of = [row['exit'] for row in state.attempts(state.folder_of(tmp_path, spec))]
    assert exit_of == [exits.PREEMPTED]
    state.resume(spec, time.time())
    monkeypatch.setattr(local, 'commands', commands({'a': 'done'}))
    assert [job.state for job in local.run([spec], 1)] == ['done']


def test_a_job_that_dies_before_it_can_say_so_is_not_started_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(local, 'commands', lambda spec, mounts=(): [
        ([sys.executable, '-c', f'exit({exits.FATAL})'], {})])
    said = []
    local.run([spec_of(tmp_path, 'a')], 1, note=said.append)
    assert said[2:] == ['a/train: ended with exit code 64 before it could say why; see logs']


def test_a_watcher_outlives_a_full_disk_and_starts_no_job_for_ever(tmp_path, monkeypatch):
    """The second of three writes of `tries.json` onwards finds no room; jobs crash for it."""
    spec, said, written = spec_of(tmp_path, 'a'), [], []

    def full(path, value):
        written.append(path.name)
        raise OSError(errno.ENOSPC, 'No space left on device', str(path))
    monkeypatch.setattr(supervise, 'write_json', full)
    monkeypatch.setattr(local, 'commands', lambda spec, mounts=(): [
        ([sys.executable, '-c', f'exit({exits.CRASHED})'], {})])
    monkeypatch.setattr(local, 'policy', lambda *_: Policy(max_parallel=1, base=0.01, grace=0.1))
    job, = local.run([spec], 1, note=said.append)
    assert said.count('a/train: started') == 4 and 'a/train: crashed 4 times; see logs' in said
    full_lines = [line for line in said if 'No space left' in line]
    assert len(full_lines) == 1 and 'tries.json' in full_lines[0]
    assert len(written) == 8 and job.state == 'missing'


class Unreachable(local.LocalBackend):
    """A cloud whose looks fail a few times, each in another way."""
    errors = ()

    def observe(self, specs):
        if self.errors:
            raise self.errors.pop(0)
        return super().observe(specs)


def test_a_watcher_outlives_a_bucket_that_refuses(tmp_path, monkeypatch):
    backend, said = Unreachable(), []
    monkeypatch.setattr(local, 'commands', commands({'a': 'wait done'}))

    def show(jobs):
        if jobs[0].state == 'running' and not backend.errors and not said[1:]:
            client = type('HttpError', (Exception,), {'__module__': 'gcsfs.retry'})
            backend.errors = [client('503'), OSError('Forbidden: b'), RuntimeError('gcloud')] * 2
    spec = spec_of(tmp_path, 'a')

    def note(line):
        said.append(line)
        if sum(line.startswith('cannot look') for line in said) == 6:
            state.cancel(spec, time.time())
    jobs = supervise.run(backend, [spec], local.policy(1), note, show)
    assert [job.state for job in jobs] == ['cancelled']
    assert len([line for line in said if line.startswith('cannot look, and will again: ')]) == 6


class Cloud:
    """A backend on which one job runs, another waits and a third has gone; Ctrl-C comes."""
    poll = 0

    def observe(self, specs):
        states = zip(specs, ('running', 'pending', 'deleting'))
        return [
            Observed(name=spec.name, hash=spec.hash, state=said, since=time.time())
            for spec, said in states
        ]

    def create(self, spec, zone):
        raise KeyboardInterrupt

    def delete(self, name, zone):
        raise AssertionError(name)

    def close(self):
        """Nothing ends with the watcher."""


def test_ctrl_c_says_what_goes_on_without_a_watcher_and_what_it_costs(tmp_path):
    specs = [dataclasses.replace(spec_of(tmp_path, name), topology='v5e:4x4') for name in 'abcd']
    said = []
    with pytest.raises(KeyboardInterrupt):
        supervise.run(Cloud(), specs, Policy(max_parallel=9), said.append)
    assert said[-1] == (
        'nobody watches now, but these go on and cost up to 19.20 $ an hour (estimate), until '
        '`launch cancel` or `launch watch`: a/train (running, 16 chips), b/train (pending, 16 '
        'chips)')


SUPERVISOR = '''
import os, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
import test_supervise
from downscale.launch.backends import local
local.commands = test_supervise.commands({'a': 'wait done'})
local.run([test_supervise.spec_of(sys.argv[2], 'a')], 1)
'''


def test_sigterm_ends_the_loop_and_lets_its_jobs_save(tmp_path):
    argv = [sys.executable, '-c', SUPERVISOR, os.pathsep.join(sys.path), str(tmp_path)]
    watcher = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    folder = state.folder_of(tmp_path, spec_of(tmp_path, 'a'))
    try:
        wait_until(lambda: state.attempts(folder))
        with pytest.raises(RuntimeError, match='in use by another process'):
            local.run([spec_of(tmp_path, 'a')], 1)
        watcher.terminate()
        assert watcher.wait(LIMIT) != 0
    finally:
        watcher.kill()
    assert [row['exit'] for row in state.attempts(folder)] == [exits.PREEMPTED]

"""Jobs of this machine go on, give up or wait for one another, and end with their supervisor."""
import dataclasses
import shutil
import subprocess
import sys
import time

import pytest
from compiling import xla_flags
from local_jobs import SILENCE, STUDY, attempt, logs, spec_of, told
from roots import ROOT
from waiting import wait_until

from downscale.launch import state
from downscale.launch.backends import local
from downscale.runtime import exits
from downscale.runtime.files import write_json


@pytest.fixture(scope='module')
def study_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('study') / 'tiny.py'
    path.write_text(STUDY)
    return path


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in SILENCE.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_a_second_stage_goes_on_and_its_evaluation_is_a_job_of_one_or_two(study_file, tmp_path):
    train = spec_of(f'{study_file}:reason', tmp_path / 'run')
    train = dataclasses.replace(train, tasks=(*train.tasks, f'{train.cell}/reason'), steps=80)
    assert attempt(train, '1,SIGTERM,52', tmp_path / 'before') == exits.PREEMPTED, logs(train)
    assert attempt(train) == exits.DONE, logs(train, 1)
    first, second = told(train)
    assert first[:2] == (exits.PREEMPTED, 0) and 52 < first[2] < 80
    assert second == (exits.DONE, first[2], 80, 0)
    spec = dataclasses.replace(train, part='reason', tasks=(f'evaluate reason {train.cell}',),
                               needs=(train.key,), steps=1, topology='cpu:1x1')
    assert attempt(spec, '0,early,0', tmp_path / 'once') == exits.PREEMPTED, logs(spec)
    assert attempt(spec) == exits.DONE, logs(spec, 1)
    assert told(spec) == [(exits.PREEMPTED, 0, 0, 0), (exits.DONE, 0, 1, 0)]
    assert (tmp_path / 'run' / 'evaluations' / f'reason-{train.cell}' / 'items.parquet').exists()
    table = tmp_path / 'run' / 'evaluations' / f'reason-{train.cell}' / 'items.parquet'
    rows = table.read_bytes()
    shutil.rmtree(table.parent)
    two = dataclasses.replace(spec, topology='cpu:2x1')
    assert attempt(two) == exits.DONE, logs(two, 2)
    assert table.read_bytes() == rows and told(two)[2:] == [(exits.DONE, 0, 1, 0)]


# --- jobs that must not run again -------------------------------------------------------------

def test_other_devices_than_expected_are_a_mismatch(study_file, tmp_path, monkeypatch):
    spec = spec_of(study_file, tmp_path / 'run', 'cpu:1x4')
    commands = local.commands(spec)
    commands[0][1]['XLA_FLAGS'] = xla_flags(2)
    monkeypatch.setattr(local, 'commands', lambda spec, mounts=(): commands)
    assert attempt(spec) == exits.MISMATCH
    assert logs(spec) == [['error: cpu:1x4 has 4 devices, here are 2 (1 processes)']]
    job, = state.read(spec.run, [spec], time.time())
    assert (job.state, job.attempt) == ('failed', 0) and 'here are 2' in job.reason


@pytest.mark.parametrize('change, message', [
    ({'experiment': 'other'}, 'makes another cell w64d1-s0 now'),
    ({'cell': 'w64d9-s0'}, "unknown cell 'w64d9-s0'"), ({'config': 'no.py'}, 'no study file no.py'),
    ({'overrides': ('stages.text.batch=6',)}, 'stage text: global batch 6 does not divide')])
def test_what_a_second_try_cannot_mend_is_fatal(study_file, tmp_path, change, message):
    run = tmp_path / 'run'
    spec = spec_of(study_file, run, 'cpu:1x4', change.get('overrides', ()))
    spec = dataclasses.replace(spec, **change)
    assert attempt(spec) == exits.FATAL, logs(spec)
    (line,), = logs(spec)
    assert line.startswith('error: ') and message in line
    job, = state.read(spec.run, [spec], time.time())
    assert (job.state, job.reason) == ('fatal', line.removeprefix('error: '))


def test_a_job_that_crashes_without_progress_gives_up(study_file, tmp_path):
    spec = spec_of(study_file, tmp_path / 'run', 'cpu:1x1')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'data').touch()  # no folder can be made there: not the job's fault
    for number in range(state.CRASHES):
        assert attempt(spec) == exits.CRASHED, logs(spec, number)
    assert attempt(spec) == exits.FATAL
    job, = state.read(spec.run, [spec], time.time())
    assert job.state == 'fatal' and '3 attempts in a row ended without a newer' in job.reason
    (tmp_path / 'run' / 'data').unlink()  # somebody has seen to it, and submits again
    assert attempt(spec) == exits.DONE, logs(spec, 4)
    assert state.read(spec.run, [spec], time.time())[0].state == 'done'
    assert attempt(spec) == exits.DONE and len(told(spec)) == 5  # nothing was left to do


def test_a_job_that_is_killed_without_progress_gives_up(study_file, tmp_path):
    spec = spec_of(study_file, tmp_path / 'run', 'cpu:1x1')
    for number in range(state.KILLS):
        write_json(state.folder_of(spec.run, spec) / 'attempts' / f'{number:03d}.json', {
            'attempt': number, 'spec': spec.hash, 'exit': None, 'reason': '', 'first_step': 0,
            'last_step': 0, 'steps_lost': 7, 'steps_s': 1.0, 'began': 0.0, 'ended': None,
            'seen': 9.0})
    assert attempt(spec) == exits.FATAL, logs(spec, state.KILLS)
    job, = state.read(spec.run, [spec], time.time())
    assert job.state == 'fatal' and 'killed without a word' in job.reason


# --- a sweep ----------------------------------------------------------------------------------

@pytest.mark.slow
def test_a_sweep_keeps_its_order_and_restarts_what_was_killed(study_file, tmp_path, monkeypatch):
    first = spec_of(study_file, tmp_path / 'run', 'cpu:1x1')
    second = dataclasses.replace(spec_of(study_file, tmp_path / 'run', 'cpu:1x1', which=1),
                                 needs=(first.key,))
    monkeypatch.setenv('HARM', f'0,SIGKILL,14,{tmp_path / "once"}')
    said = []
    jobs = local.run([second, first], 2, note=said.append)
    assert [job.state for job in jobs] == ['done', 'done'] and jobs[1].attempt == 1
    # A job is done by its files, a moment before its process has ended. What was killed before it
    # could tell of its step is a try in vain, until the next attempt knows better.
    said = [line for line in said if 'again at' not in line]
    assert said[:3] == [f'{first.key}: started', f'{first.key}: crashed (exit code -9)',
                        f'{first.key}: started']
    assert set(said[3:5]) == {f'{first.key}: done (exit code 0)', f'{second.key}: started'}
    assert said[5:] == [f'{second.key}: done (exit code 0)']
    assert 0 < jobs[1].goodput < 1 and jobs[1].lost <= 4 and jobs[1].chip_hours > 0


def test_a_job_without_restarts_left_holds_up_what_needs_it(study_file, tmp_path, monkeypatch):
    first = spec_of(study_file, tmp_path / 'run', 'cpu:1x1')
    second = dataclasses.replace(spec_of(study_file, tmp_path / 'run', 'cpu:1x1', which=1),
                                 needs=(first.key,))
    monkeypatch.setattr(local, 'commands', lambda spec, mounts=(): [
        ([sys.executable, '-c', 'exit(9)'], {})])
    said = []
    jobs = local.run([first, second], 2, crashes=1, note=said.append)
    assert [job.state for job in jobs] == ['missing', 'waiting']
    assert [line for line in said if 'again at' not in line] == [
        f'{first.key}: started', f'{first.key}: crashed (exit code 9)'] * 2 + [
        f'{first.key}: crashed 2 times; see logs',
        f'{second.key}: needs {first.key}, which will not be done']


SUPERVISOR = """
import sys
from downscale.launch import state
from downscale.launch.backends import local
local.run([state.load_spec(path) for path in sys.argv[1:]], 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize('end', ['killed', 'stopped'])
def test_jobs_save_and_end_with_their_supervisor(study_file, tmp_path, end):
    spec = spec_of(study_file, tmp_path / 'run', 'cpu:1x1', ('stages.text.steps=100000',))
    supervisor = subprocess.Popen([sys.executable, '-c', SUPERVISOR, str(state.save_spec(spec))],
                                  cwd=ROOT, stderr=subprocess.DEVNULL)
    folder = state.folder_of(spec.run, spec)

    def last(name):
        found = state.attempts(folder)
        return found[-1][name] if found else None
    try:
        wait_until(lambda: last('last_step'))
        if end == 'killed':
            supervisor.kill()
        else:
            supervisor.terminate()
        wait_until(lambda: last('exit') is not None)
    finally:
        supervisor.kill()
    assert last('exit') == exits.PREEMPTED and last('steps_lost') == 0


@pytest.mark.parametrize('asked', ['cuda', 'cuda,cpu', 'tpu'])
def test_an_accelerator_that_is_asked_for_is_not_left_out_silently(monkeypatch, asked):
    monkeypatch.setenv('JAX_PLATFORMS', asked)
    with pytest.raises(ValueError, match=f'JAX_PLATFORMS={asked}, but .* run on its CPU'):
        local.LocalBackend()
    monkeypatch.setenv('JAX_PLATFORMS', '')
    local.LocalBackend()

"""A job that loses processes ends with a line each, and goes on to the same result, bit by bit."""
import dataclasses
import subprocess
import sys
import time

import pytest
from local_jobs import (
    SILENCE,
    STUDY,
    assert_same_run,
    attempt,
    logs,
    run_of,
    spec_of,
    told,
)
from roots import ROOT
from waiting import wait_until

from downscale.launch import state
from downscale.launch.backends import local
from downscale.runtime import exits
from downscale.runtime.files import write_json
from downscale.train import checkpoint


@pytest.fixture(scope='module')
def study_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('study') / 'tiny.py'
    path.write_text(STUDY)
    return path


@pytest.fixture(autouse=True)
def environment(monkeypatch, study_file):
    for name, value in SILENCE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(study_file.parent / 'cache'))


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, study_file):
    """The run folder of a job of two processes that nobody disturbed."""
    run = tmp_path_factory.mktemp('undisturbed')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAX_COMPILATION_CACHE_DIR', str(study_file.parent / 'cache'))
        spec = spec_of(study_file, run)
        assert attempt(spec) == exits.DONE, logs(spec)
    return run


# --- lost processes ---------------------------------------------------------------------------

@pytest.mark.slow
def test_sigterm_to_one_saves_the_same_step_in_all(undisturbed, study_file, tmp_path):
    spec = spec_of(study_file, tmp_path / 'run')
    once = tmp_path / 'once'
    assert attempt(spec, '1,SIGTERM,12', once) == exits.PREEMPTED, logs(spec)
    (code, first, step, lost), = told(spec)
    assert (code, first, lost) == (exits.PREEMPTED, 0, 0) and 12 < step < 40
    for said in logs(spec):
        assert said == [f'stopped by SIGTERM: step {step} of 40 is saved; a restart continues']
    # Were orbax to ask JAX as well, the processes might compare different questions.
    assert 'sync point' not in local.logs(spec, 0).read_text()
    assert attempt(spec) == exits.DONE, logs(spec, 1)
    assert local.logs(spec, 1) == local.log_of(spec, 1, 1)
    assert told(spec)[1:] == [(exits.DONE, step, 40, 0)]
    assert_same_run(undisturbed, spec.run)


def test_sigterm_before_there_is_work_ends_all_at_once(study_file, tmp_path):
    spec = spec_of(study_file, tmp_path / 'run')
    assert attempt(spec, '1,early,0', tmp_path / 'once') == exits.PREEMPTED, logs(spec)
    assert told(spec) == [(exits.PREEMPTED, 0, 0, 0)]
    for line, in logs(spec):
        assert line.startswith('stopped by SIGTERM, with nothing to save')


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
def test_a_killed_process_ends_the_others_and_a_restart_goes_on(
        undisturbed, study_file, tmp_path, rank):
    """Process 0 is also the coordinator, of which JAX itself would say pages."""
    spec = spec_of(study_file, tmp_path / 'run')
    once = tmp_path / 'once'
    code = attempt(spec, f'{rank},SIGKILL,14', once)
    assert exits.ending(code).restart == 'counted', logs(spec)
    assert local.logs(spec, 1 - rank).stat().st_mtime - once.stat().st_mtime < 10
    said, = logs(spec)[1 - rank]
    assert said.startswith('error: process 1 has gone: no sign of it for 4 s' if rank else
                           'error: lost the coordinator in process 0'), said
    assert attempt(spec) == exits.DONE, logs(spec, 1)
    first, second = told(spec)
    assert first[2] == 10 and first[3] <= 4 and second == (exits.DONE, 10, 40, 0)
    assert first[0] == (exits.LOST if rank else None)
    assert_same_run(undisturbed, spec.run)


@pytest.mark.slow
def test_a_kill_during_a_save_leaves_the_step_before(undisturbed, study_file, tmp_path):
    spec = spec_of(study_file, tmp_path / 'run')
    assert attempt(spec, '0,commit,20', tmp_path / 'once') != exits.DONE
    assert (tmp_path / 'once').exists() and checkpoint.committed(run_of(spec.run)) == 10
    assert attempt(spec) == exits.DONE, logs(spec, 1)
    assert told(spec)[1] == (exits.DONE, 10, 40, 0)
    assert_same_run(undisturbed, spec.run)


@pytest.mark.slow
def test_a_second_stage_goes_on_and_its_evaluation_is_a_job_of_one_process(study_file, tmp_path):
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
    two = dataclasses.replace(spec, topology='cpu:2x1', cell=train.cell, part='write')
    assert attempt(two) == exits.FATAL
    assert 'the work of one process' in logs(two)[0][0]


# --- jobs that must not run again -------------------------------------------------------------

def test_other_devices_than_expected_are_a_mismatch(study_file, tmp_path, monkeypatch):
    spec = spec_of(study_file, tmp_path / 'run', 'cpu:1x4')
    commands = local.commands(spec)
    commands[0][1]['XLA_FLAGS'] = '--xla_force_host_platform_device_count=2'
    monkeypatch.setattr(local, 'commands', lambda spec: commands)
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


# --- a run folder in a bucket -----------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize('harm, committed', [
    ('1,SIGTERM,12', None), ('0,commit,20', 10)])
def test_a_run_in_a_bucket_goes_on_from_another_machine(
        undisturbed, study_file, tmp_path, monkeypatch, bucket, harm, committed):
    spec = spec_of(study_file, f'{bucket}/{harm.replace(",", "-")}')
    monkeypatch.setenv('DOWNSCALE_SCRATCH', str(tmp_path / 'one'))
    code = attempt(spec, harm, tmp_path / 'once')
    assert exits.ending(code).restart == ('counted' if committed else 'free'), logs(spec)
    step = checkpoint.committed(str(run_of(spec.run)))
    assert step == committed or (committed is None and 12 < step < 40)
    monkeypatch.setenv('DOWNSCALE_SCRATCH', str(tmp_path / 'other'))
    assert attempt(spec) == exits.DONE, logs(spec, 1)
    assert told(spec)[1] == (exits.DONE, step, 40, 0)
    assert_same_run(undisturbed, spec.run)
    assert state.read(spec.run, [spec], time.time())[0].state == 'done'


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
    monkeypatch.setattr(local, 'commands', lambda spec: [([sys.executable, '-c', 'exit(9)'], {})])
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

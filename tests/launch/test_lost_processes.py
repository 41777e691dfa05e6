"""A job that loses processes ends with a line each, and goes on to the same result, bit by bit."""
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

from downscale.launch import state
from downscale.launch.backends import local
from downscale.runtime import exits
from downscale.train import checkpoint


@pytest.fixture(scope='module')
def study_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('study') / 'tiny.py'
    path.write_text(STUDY)
    return path


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in SILENCE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, study_file):
    """The run folder of a job of two processes that nobody disturbed."""
    run = tmp_path_factory.mktemp('undisturbed')
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
    said, = logs(spec)[1 - rank]
    # Process 0 counts to 4 s by itself; on a busy machine JAX may be the first to tell it, at 8 s.
    assert said.startswith('error: process 1 has gone: no sign of it for ' if rank else
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

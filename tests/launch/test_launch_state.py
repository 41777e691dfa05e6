"""What a run folder tells of its jobs, exit codes, and files that are whole or not there."""
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from roots import ROOT
from waiting import LIMIT

from downscale.launch import state
from downscale.launch.backends import gke
from downscale.launch.spec import Spec
from downscale.runtime import exits, files, processes
from downscale.train.checksums import Damaged

SPEC = Spec(sweep='tiny', cell='w64d1-s0', part='train', config='tiny.py', overrides=(),
            experiment='abc', tasks=('w64d1-s0/text',), needs=(), steps=100, topology='v5e:2x2',
            image=None, commit='none', run='run')
ATTEMPT = {'spec': SPEC.hash, 'began': 1000.0, 'ended': None, 'exit': None, 'reason': '',
           'first_step': 0, 'last_step': 0, 'steps_lost': 0, 'steps_s': 0.0, 'seen': 1000.0}


def spec_in(tmp_path, **changes):
    return dataclasses.replace(SPEC, run=str(tmp_path), **changes)


def tell(spec, attempts=(), progress=None, **markers):
    """The folder of a job, with these files."""
    folder = state.folder_of(spec.run, spec)
    for number, attempt in enumerate(attempts):
        files.write_json(folder / 'attempts' / f'{number:03d}.json', {
            **ATTEMPT, 'spec': spec.hash, 'attempt': number, **attempt})
    if progress:
        files.write_json(folder / 'progress.json', progress)
    for name, value in markers.items():
        files.write_json(folder / f'{name}.json', {'spec': spec.hash, **value})


def test_a_spec_comes_back_and_a_changed_one_is_refused(tmp_path):
    spec = spec_in(tmp_path)
    path = state.save_spec(spec)
    assert state.load_spec(path) == spec
    for change in ({'steps': 7}, {'hash': 'other'}):
        files.write_json(path, json.loads(path.read_text()) | change)
        with pytest.raises(ValueError, match='submit the job again') as error:
            state.load_spec(path)
        assert '\n' not in str(error.value)
        state.save_spec(spec)
    with pytest.raises(ValueError, match='no spec.json of a launch'):
        state.load_spec(tmp_path / 'nothing.json')


def test_states_follow_from_the_files(tmp_path):
    spec = spec_in(tmp_path)
    after = dataclasses.replace(spec, part='reason', needs=(spec.key,))

    def states(now=1000.0):
        return [(job.state, job.reason) for job in state.read(tmp_path, [spec, after], now)]
    waits = ('waiting', f'needs {spec.key}')
    assert states() == [('missing', ''), waits]
    tell(spec, [{}])
    assert states(1000 + state.STALE_SECONDS) == [('running', ''), waits]
    tell(spec, [{'ended': 1010.0, 'exit': 42, 'reason': 'stopped'}])
    assert states() == [('failed', 'stopped'), waits]
    tell(spec, FATAL={'reason': 'no such key'})
    assert states() == [('fatal', 'no such key'), waits]
    tell(spec, DONE={})
    assert states() == [('done', ''), ('missing', '')]
    changed = dataclasses.replace(spec, steps=200)  # done is only what this spec asks for
    assert state.read(tmp_path, [changed], 0)[0].state == 'missing'


def test_what_runs_again_says_how_the_attempt_before_ended(tmp_path):
    spec = spec_in(tmp_path)
    ended = {'ended': 1100.0, 'exit': 42, 'last_step': 20, 'steps_lost': 5}
    for reason, told in (('preempted', 'preempted'), ('', 'killed without a word')):
        tell(spec, [ended | {'reason': reason}, {'began': 1200.0, 'seen': 1300.0}])
        job, = state.read(tmp_path, [spec], 1301.0)
        assert (job.state, job.reason) == ('running',
                                           f'attempt 0: {told}, at step 20, 5 steps lost')


def test_what_was_asked_for_and_has_not_begun_says_when_and_where(tmp_path):
    spec = spec_in(tmp_path)

    def reason():
        job, = state.read(tmp_path, [spec], 1000.0)
        assert job.state == 'missing'
        return job.reason
    path = state.folder_of(tmp_path, spec) / 'tries.json'
    row = {'spec': spec.hash, 'at': 900.0, 'zone': None, 'code': None}
    files.write_json(path, [row | {'spec': 'another'}])
    assert reason() == ''
    files.write_json(path, [row])
    assert reason() == f'asked for {spec.name} at {time.ctime(900)}; none has begun it'
    files.write_json(path, [row, row | {'at': 950.0, 'zone': 'us-b'}])
    assert reason() == (f'asked for {spec.name} in us-b at {time.ctime(950)}, the 2. time; '
                        'none has begun it')


def test_a_job_is_stale_when_its_stamp_stands_still_whatever_the_clocks_say(tmp_path):
    spec, clock = spec_in(tmp_path), [0.0]
    stamps = state.Stamps(lambda: clock[0])

    def now(unix, seconds, seen):
        clock[0] = seconds
        tell(spec, [{'seen': seen}])
        return state.read(tmp_path, [spec], unix, stamps)[0].state
    assert now(1e9, 0, 1000.0) == 'running'  # years behind the watcher
    assert now(0.0, state.STALE_SECONDS - 1, 1000.0) == 'running'
    assert now(1000.0, state.STALE_SECONDS, 1000.0) == 'stale'  # at the very time of the watcher
    assert now(1e9, state.STALE_SECONDS + 1, 1001.0) == 'running'
    assert now(1e9, 2 * state.STALE_SECONDS, 1001.0) == 'running'
    assert now(1e9, 2 * state.STALE_SECONDS + 1, 1001.0) == 'stale'


@pytest.mark.parametrize('skew', [-7200, 7200])
@pytest.mark.parametrize('moves', [True, False])
def test_a_single_look_at_an_old_stamp_waits_for_a_new_one(tmp_path, monkeypatch, skew, moves):
    spec = spec_in(tmp_path)
    tell(spec, [{'seen': 1000.0}])
    monkeypatch.setattr(state, 'LOOK_SECONDS', 0.05)

    def sleep(seconds):
        threading.Event().wait(seconds)
        tell(spec, [{'seen': 1000.0 + moves}])
    monkeypatch.setattr(state.time, 'sleep', sleep)
    job, = state.read(tmp_path, [spec], 1000.0 + skew)
    assert job.state == ('running' if moves else 'stale')
    assert moves or job.reason.startswith('no sign of life since ')


def test_cost_goodput_and_time_left_come_from_all_attempts(tmp_path):
    spec = spec_in(tmp_path)
    tell(spec, [
        {'ended': 1100.0, 'exit': 1, 'last_step': 20, 'steps_lost': 5, 'steps_s': 50.0},
        {'began': 1200.0, 'seen': 1300.0, 'first_step': 20, 'last_step': 50, 'steps_lost': 0,
         'steps_s': 60.0}],
        {'task': 'w64d1-s0/text', 'job_step': 50, 'job_total': 100, 'checkpoint_time': 1290.0,
         'tokens_per_s': 7.0})
    job, = state.read(tmp_path, [spec], 1301.0)
    assert (job.attempt, job.step, job.total, job.age, job.lost) == (1, 50, 100, 11, 5)
    assert job.chip_hours == pytest.approx(4 * 200 / 3600)
    assert job.usd == pytest.approx(1.2 * job.chip_hours)
    assert job.eta == pytest.approx(50 * 110 / 55)
    assert job.goodput == pytest.approx((50 * 20 / 25 + 60) / 200)


@pytest.mark.parametrize('rows, gives_up', [
    ([(1, 0, 0)] * 3, True), ([(1, 0, 0)] * 2, False), ([(None, 0, 0)] * 9, False),
    ([(None, 0, 0), (70, 0, 0)] * 5, True),
    ([(1, 0, 0), (1, 0, 9), (1, 9, 9), (1, 9, 9)], False),
    ([(1, 0, 9), (1, 9, 9), (69, 9, 9), (134, 9, 9)], True),
    ([(1, 0, 0), (42, 0, 0), (1, 0, 0), (42, 0, 0), (1, 0, 0)], True),
    ([(42, 0, 0)] * 9, False), ([(1, 0, 0)] * 3 + [(64, 0, 0), (1, 0, 0)], False)])
def test_only_crashes_in_a_row_without_progress_give_up(rows, gives_up):
    found = [{'exit': code, 'first_step': first, 'last_step': last, 'reason': 'why'}
             for code, first, last in rows]
    assert bool(state.hopeless(found)) == gives_up


@pytest.mark.parametrize('error, code', [
    (ValueError('a key'), 64), (FloatingPointError('loss nan'), 64), (RuntimeError('?'), 1),
    (RuntimeError('RESOURCE_EXHAUSTED: out of memory'), 64), (OSError('disk'), 1),
    (exits.Failed('other devices', 69), 69), (exits.Preempted('saved'), 42),
    (KeyboardInterrupt(), 130)])
def test_every_error_has_an_exit_code(error, code):
    assert exits.code_of(error) == code
    assert (exits.ending(code).restart == 'never') == (code == 64)


FULL = ('RESOURCE_EXHAUSTED: Error writing "step/0" in OCDBT database at local file '
        '"/r/checkpoints/8.orbax-checkpoint-tmp/train/": Failed writing: '
        '"/r/checkpoints/8.orbax-checkpoint-tmp/d/e"'
        ": Failed to write 17539 bytes to file 21: No space left on device [os_error_code='28']")
REFUSED = ("{status}: Error writing gs://b/r/checkpoints/8/params/_sharding: refused "
           "[http_response_body='x'] [http_response_code='{code}']")


@pytest.mark.parametrize('error, line', [
    (ValueError(FULL), '/r/checkpoints/8: No space left on device'),
    (ValueError(REFUSED.format(status='PERMISSION_DENIED', code=401)),
     'gs://b/r/checkpoints/8: the bucket answered 401 (refused)'),
    (ValueError(REFUSED.format(status='UNAVAILABLE', code=503)),
     'gs://b/r/checkpoints/8: the bucket answered 503 (refused)'),
    (ValueError(REFUSED.format(status='FAILED_PRECONDITION', code=412)),
     'gs://b/r/checkpoints/8: the bucket answered 412 (refused)'),
    *((OSError(number, os.strerror(number), '/r/x'),
       f"[Errno {int(number)}] {os.strerror(number)}: '/r/x'")
      for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS)),
    (OSError('Forbidden: https://storage.googleapis.com/b\nno access'),
     'Forbidden: https://storage.googleapis.com/b no access')])
def test_what_a_disk_or_a_bucket_refuses_is_tried_again_and_told_in_a_line(error, line):
    wrapped = Exception('pages')
    wrapped.__cause__ = error
    assert exits.passes(error) and exits.passes(wrapped)
    assert exits.code_of(error) == exits.code_of(wrapped) == exits.CRASHED
    assert exits.line_of(error) == line


@pytest.mark.parametrize('error', [
    FileNotFoundError('no mixture at x'), FileNotFoundError(errno.ENOENT, 'No such file', 'x'),
    ValueError('OUT_OF_RANGE: Requested byte range [65536, 77824) is not valid'),
    ValueError(REFUSED.format(status='NOT_FOUND', code=404)), ValueError('K: no such key'),
    Damaged('checkpoint 8 is damaged')])
def test_what_is_wrong_or_missing_is_not_tried_again(error):
    assert not exits.passes(error) and exits.code_of(error) == exits.FATAL


def test_a_client_library_that_cannot_reach_its_bucket_may_reach_it_later():
    error = type('HttpError', (Exception,), {'__module__': 'gcsfs.retry'})('refused')
    assert exits.passes(error) and exits.code_of(error) == exits.CRASHED


@pytest.mark.parametrize('value', ['0', '-3', 'soon', '1.5'])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(monkeypatch, value):
    monkeypatch.setenv('DOWNSCALE_HEARTBEAT_SECONDS', value)
    with (pytest.raises(ValueError, match=f'DOWNSCALE_HEARTBEAT_SECONDS={value} must be a whole'),
          processes.joined()):
        raise AssertionError('joined')


LONE = """
import os, signal
from downscale.runtime import processes
with processes.joined(lambda code, text: print(code, text, flush=True)):
    os.kill(os.getpid(), signal.SIGTERM)
    print('not stopped')
"""


def test_sigterm_stops_a_lone_process_at_once_where_nothing_is_to_save():
    done = subprocess.run([sys.executable, '-c', LONE], text=True, capture_output=True,
                          timeout=LIMIT, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (exits.PREEMPTED, '42 stopped by SIGTERM\n')
    assert done.stderr == 'stopped by SIGTERM, with nothing to save\n'


def test_sigterm_waits_for_the_end_of_a_step():
    with processes.joined(), processes.stepping():
        assert not processes.stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert processes.stop(2)
    assert not processes.stop(3)  # what follows in this process was not meant


def test_a_bucket_has_a_scratch_folder_and_a_folder_is_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv('DOWNSCALE_SCRATCH', str(tmp_path))
    assert files.scratch('gs://bucket/study') == tmp_path / 'bucket' / 'study'
    assert files.scratch(tmp_path / 'study') == tmp_path / 'study'
    assert str(files.place('gs://bucket/study') / 'DONE.json') == 'gs://bucket/study/DONE.json'
    assert files.read_json(tmp_path / 'nothing.json') is None


def test_two_processes_do_not_hold_a_folder_and_a_file_system_without_locks_is_told_of(
        monkeypatch, tmp_path, capsys):
    handle = files.lock(tmp_path)
    with pytest.raises(RuntimeError, match='in use by another process'):
        files.lock(tmp_path)
    os.close(handle)
    for number, says in ((errno.ENOSYS, True), (errno.EOPNOTSUPP, True), (errno.EIO, False)):
        def refuse(*_, number=number):
            raise OSError(number, os.strerror(number))
        monkeypatch.setattr(files.fcntl, 'flock', refuse)
        if says:
            os.close(files.lock(tmp_path))
            with files.held(tmp_path):
                pass
            assert capsys.readouterr().err.count(f'{tmp_path}: this file system has no locks') == 2
        else:
            with pytest.raises(OSError, match=str(tmp_path)):
                files.lock(tmp_path)


def test_a_write_that_fails_names_its_file_and_leaves_nothing(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/a/b.json'"):
        files.write_json(tmp_path / 'a' / 'b.json', 1)
    assert not list((tmp_path / 'a').iterdir())


def test_the_guide_has_every_exit_code_and_what_follows():
    guide = (ROOT / 'docs' / 'tutorials' / 'cloud_tpu.md').read_text()
    head = '| exit code | meaning | then |\n|---|---|---|\n'
    lines = guide.partition(head)[2].partition('\n\n')[0].splitlines()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    *known, other = [(code, meaning) for code, meaning, _ in rows]
    assert known == [(str(code), exits.TABLE[code].meaning) for code in exits.TABLE]
    assert other == ('other', exits.ending(exits.CRASHED).meaning)
    follows = {'none': 'nothing', 'free': 'starts again, as often', 'never': 'never',
               'counted': 'starts again, counted'}
    for code, _, then in rows:
        restart = exits.ending(exits.CRASHED if code == 'other' else int(code)).restart
        assert then.startswith(follows[restart]), code
    assert f'counted ends restart a job {gke.CRASHES} times' in guide

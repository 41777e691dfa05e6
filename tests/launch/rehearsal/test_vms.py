"""Rehearsals on machines: gcloud, the API that it asks, and start-up scripts that run."""
import os
import shutil
from pathlib import Path

import pytest
from fake_compute import gcloud_folder
from local_jobs import STUDY

from downscale.commands import main
from downscale.launch.backends import gcloud, mig, sweep
from downscale.launch.rehearsal import on_vms, rehearse, results
from downscale.planner import pool

pytestmark = pytest.mark.skipif(
    not shutil.which('gcloud'), reason='NOT TESTED: gcloud is missing, so no rehearsal of machines '
    'is')
# A cell of one stage, whose study file reads what is mounted.
ONE = (STUDY.partition('def harm')[0] + "Path('data/list.txt').read_text()\n").replace(
    "('w64d1', 'w64d2')", "('w64d1',)")
SCRIPT = sweep.SCRIPT.read_text()
# A slice of two machines, and a machine alone.
PLACES = {'mig': 'v6e:2x4', 'tpuvm': 'v5e:2x2'}


def clone(folder, patch):
    """`folder` is as a clone: an image, a study, a start-up script, and a bucket's data."""
    for name, text in {
            'experiments/tiny.py': ONE, 'data/list.txt': 'one', 'launch/startup.sh': SCRIPT,
            'bin/.keep': '', 'launch/Dockerfile': 'FROM python:3.12\nWORKDIR /downscale\n'
            'COPY experiments experiments\nENTRYPOINT ["python", "-m", "downscale.launch.entry"]\n'
            }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    patch.chdir(folder)
    patch.setenv('PATH', f'{gcloud_folder(folder / "bin")}{os.pathsep}{os.environ["PATH"]}')
    patch.setattr(sweep, 'SCRIPT', folder / 'launch' / 'startup.sh')
    for backend in (on_vms.RehearsedGroups, on_vms.RehearsedQueue):
        patch.setattr(backend, 'poll', 8.0)
    patch.setattr(on_vms, 'STALE_SECONDS', 40.0)
    for name in ('JAX_PLATFORMS', *pool.ENVIRONMENT):  # a command may set them
        patch.setenv(name, os.environ.get(name, ''))
    return folder


def sent(backend, place=None):
    return ['experiments/tiny.py', '--backend', backend, '--topology', place or PLACES[backend],
            '--mount', 'data=gs://research/sets']


def planned(backend, place=None):
    return rehearse.plan(main.parser().parse_args(['launch', 'rehearse', *sent(backend, place)]))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return clone(tmp_path, monkeypatch)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """A function that returns (folder, outcome) of the run of a backend that nobody disturbed."""
    outcomes = {}

    def run(backend):
        if backend not in outcomes:
            with pytest.MonkeyPatch.context() as patch:
                folder = clone(tmp_path_factory.mktemp(backend), patch)
                outcomes[backend] = folder, rehearse.run(
                    planned(backend), (), folder / 'out', print, lambda jobs: None)
        return outcomes[backend]
    return run


# --- runs to the end ----------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize('backend', PLACES)
def test_the_requests_of_a_sweep_run_to_their_end_and_leave_nothing(undisturbed, backend):
    folder, outcome = undisturbed(backend)
    assert outcome.findings == [] and outcome.injected == []
    job, = outcome.jobs.values()
    assert (job.state, job.step) == ('done', 6)
    (work,), = outcome.works.values()
    count = {'mig': 2, 'tpuvm': 1}[backend]
    assert [end.code for end in work.rounds[0].ends] == [0] * count
    said = [path.read_text() for path in sorted((folder / 'out' / 'logs').iterdir())]
    assert len(said) == count
    if backend == 'mig':  # each found the other, by the number that it was given
        assert {'process 0 of 2', 'process 1 of 2'} == {
            f'process {rank} of 2' for rank in (0, 1) for text in said
            if f'process {rank} of 2' in text}


@pytest.mark.slow
@pytest.mark.parametrize(('backend', 'injection', 'codes'), [
    ('mig', 'evict', [42, 42]), ('tpuvm', 'quota', [42]), ('tpuvm', 'sigkill', [137]),
    ('tpuvm', 'restart', [137])])
def test_a_job_that_was_disturbed_has_the_result_of_one_that_was_not(
        undisturbed, folder, backend, injection, codes):
    _, before = undisturbed(backend)
    said = []
    outcome = rehearse.run(planned(backend), (injection,), folder / 'out', said.append,
                           lambda jobs: None)
    assert outcome.findings == []
    (name, key), = outcome.injected
    assert name == injection and outcome.jobs[key].state == 'done'
    assert results.unequal(before.digests, outcome.digests) == []
    first, second = next(iter(outcome.works.values()))
    assert [end.code for end in first.rounds[0].ends] == codes
    assert [end.code for end in second.rounds[0].ends] == [0] * len(codes)
    # Each request that lost its machines was deleted and made again, by what the API showed of it.
    words = {'evict': '1 of its 2 machines are gone', 'sigkill': 'no sign of life'}
    assert any(words.get(injection, 'suspended') in line for line in said), said
    assert sum('started in' in line for line in said) == 2


# --- what is wrong with a script or a request ---------------------------------------------------

def unmounted(text):
    return text.replace('volumes+=("--volume=$root/$name:/downscale/$name:ro")', ':')


def swallowed(text):
    return unmounted(text).replace('exit "$code"', 'exit 0')


def without_devices(text):
    return text.replace('--privileged ', '')


def wrong_flag(text):
    return text.replace('docker run --rm', 'docker run --rm --gpus=all')


def no_login(text):
    return text.replace('gcloud auth configure-docker', 'true')


def no_header(text):
    return text.replace("--header 'Metadata-Flavor: Google' ", '')


def other_bucket(text):
    return text.replace('--only-dir="${prefix#/}"', '--only-dir=others')


def beyond(text):
    return f'{text.partition("python=(")[0]}curl https://example.com/install.sh | bash; exit 7\n'


def misspelt(text):
    return text.replace('downscale.launch.entry', 'downscale.launch.entri')


def empty(text):
    return '#!/bin/bash\n'


@pytest.mark.parametrize(('broken', 'message'), [
    (unmounted, 'nothing is in data/, where gs://research/sets should be mounted'),
    (swallowed, 'the code was swallowed'), (without_devices, 'has 4 devices, here are 1'),
    (wrong_flag, 'unrecognized arguments: --gpus=all'),
    (no_login, 'denied: nobody has logged in to IMAGE'), (no_header, 'wants the header'),
    (other_bucket, 'could not mount: gcsfuse cannot mount data=gs://research/sets (Error: gs://'),
    (beyond, 'could not resolve https://example.com/install.sh'),
    (misspelt, 'No module named downscale.launch.entri'), (empty, 'the code was swallowed')],
    ids=lambda value: getattr(value, '__name__', ''))
def test_a_start_up_script_that_was_broken_by_hand_is_caught(folder, broken, message):
    (folder / 'launch' / 'startup.sh').write_text(broken(SCRIPT))
    assert broken(SCRIPT) != SCRIPT
    outcome = rehearse.run(planned('tpuvm'), (), folder / 'out', print, lambda jobs: None)
    assert any(message in line for line in outcome.findings), outcome.findings
    assert not any(job.state == 'done' for job in outcome.jobs.values())


@pytest.mark.parametrize(('backend', 'before', 'after', 'message'), [
    ('tpuvm', 'downscale-spec=gs', 'downscale-speck=gs', 'no downscale-spec in the metadata'),
    ('tpuvm', 'downscale-image=IMAGE', 'downscale-image=OTHER', 'there is no image OTHER'),
    ('tpuvm', 'v5litepod-4', 'v5litepod-3', 'refuses it: Accelerator type v5litepod-3 is not'),
    ('tpuvm', 'tpuv5-lite', 'tpuv5', 'refuses it: Runtime version v2-alpha-tpuv5 is not for'),
    ('tpuvm', '=gs://research/sets', '=gs://research/others', 'could not mount: gcsfuse cannot'),
    ('tpuvm', '--spot', '--spots', 'unrecognized arguments: --spots'),
    ('tpuvm', 'gcloud compute', 'gcloud storage', 'no command of `launch plan`'),
    ('mig', '--maintenance-policy=TERMINATE', '--maintenance-policy=MIGRATE', 'must be TERMINATE'),
    ('mig', '--size=2', '--size=1', 'refuses it: 1 machines are no 2x4'),
    ('mig', ' --scopes=cloud-platform', '', 'the scopes of this machine hold no')])
def test_a_request_that_was_broken_by_hand_is_caught(
        folder, capsys, backend, before, after, message):
    plan = ['launch', 'plan', *sent(backend), '--dry-run', '--no-fit', '--out', 'plan', '--zone',
            'us-east5-a']
    assert main.main(plan) == 0
    path, = (folder / 'plan').glob('*.sh')
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    capsys.readouterr()
    assert main.main(['launch', 'rehearse', *sent(backend), '--zone', 'us-east5-a', '--quiet',
                      '--manifests', 'plan']) == 1
    said = capsys.readouterr().out
    assert message in ' '.join(line for line in said.splitlines() if line.startswith('FOUND: '))
    assert 'by hand' in said


def test_a_script_that_never_starts_its_program_is_caught(folder, monkeypatch):
    monkeypatch.setattr(on_vms, 'START_SECONDS', 3.0)
    (folder / 'launch' / 'startup.sh').write_text('echo "waits for a lock"; sleep 1000\n')
    outcome = rehearse.run(planned('tpuvm'), (), folder / 'out', print, lambda jobs: None)
    assert any('no program had begun: waits for a lock' in line for line in outcome.findings)


def deaf(text):
    return text.replace("trap 'kill -TERM \"$program\"' TERM INT", '')


def no_upload(text):
    return text.replace('gcloud storage cp --quiet "$log" "$target"', 'true')


def wrong_number(text):
    return text.replace('host-$worker-', 'host-7-')


@pytest.mark.slow
@pytest.mark.parametrize(('broken', 'injections', 'message'), [
    (deaf, ('evict',), 'ended with exit code 143 and not 42; SIGTERM did not reach it'),
    (no_upload, (), 'the log of process 0 is not in logs/'),
    (wrong_number, (), 'the log of process 0 is not in logs/')],
    ids=lambda value: getattr(value, '__name__', ''))
def test_what_only_the_end_of_a_job_shows_is_caught_then(folder, broken, injections, message):
    (folder / 'launch' / 'startup.sh').write_text(broken(SCRIPT))
    assert broken(SCRIPT) != SCRIPT
    outcome = rehearse.run(planned('tpuvm'), injections, folder / 'out', print, lambda jobs: None)
    assert any(message in line for line in outcome.findings), outcome.findings


class Careless(on_vms.RehearsedGroups):
    """A watcher that deletes groups alone, and looks past what is left of them."""

    def observe(self, specs):
        return [seen for seen in super().observe(specs) if 'without its group' not in seen.message]

    def delete(self, name, zone):
        gcloud.call(mig.delete_commands(name, zone)[0])


@pytest.mark.slow
def test_what_nobody_deletes_is_named(folder, monkeypatch):
    monkeypatch.setattr(on_vms, 'RehearsedGroups', Careless)
    outcome = rehearse.run(planned('mig', place='v6e:1x1'), (), folder / 'out', print,
                           lambda jobs: None)
    assert outcome.findings == ['w64d1-s0/train: done, and its template is left over: nothing '
                                'deletes it']


def test_without_gcloud_it_is_refused_in_one_line(folder, monkeypatch, capsys):
    monkeypatch.setenv('PATH', str(Path('/nowhere')))
    assert main.main(['launch', 'rehearse', *sent('mig'), '--quiet']) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].endswith('there is no gcloud; install the Google Cloud CLI to rehearse '
                             '--backend mig')


def test_nothing_of_a_person_s_gcloud_is_asked(folder, monkeypatch):
    from downscale.launch.rehearsal import sandbox
    monkeypatch.setenv('CLOUDSDK_ACTIVE_CONFIG_NAME', 'mine')
    with sandbox.gcloud('TPU', 'http://127.0.0.1:1/', folder):
        asked = {name for name in os.environ if name.startswith('CLOUDSDK_')}
        assert 'CLOUDSDK_ACTIVE_CONFIG_NAME' not in asked
        assert os.environ['CLOUDSDK_CONFIG'] == str(folder / 'gcloud')
    assert os.environ['CLOUDSDK_ACTIVE_CONFIG_NAME'] == 'mine'
    assert 'CLOUDSDK_CONFIG' not in os.environ

"""A rehearsal through the console: kubectl, a bucket server, and pods that are processes."""
import json
import os
import shutil

import pytest
import yaml
from local_jobs import STUDY

from downscale.commands import main
from downscale.launch.rehearsal import on_gke, rehearse
from downscale.planner import pool

pytestmark = pytest.mark.skipif(
    not shutil.which('kubectl'), reason='NOT TESTED: kubectl is missing, so no rehearsal is')
# A cell of one stage, whose study file reads what is mounted; and two.
TWO = STUDY.partition('def harm')[0] + "Path('data/list.txt').read_text()\n"
ONE = TWO.replace("('w64d1', 'w64d2')", "('w64d1',)")
MOUNT = {'name': 'data', 'mountPath': '/downscale/data', 'readOnly': True}
VOLUME = {'name': 'data', 'csi': {'driver': 'gcsfuse.csi.storage.gke.io', 'volumeAttributes': {
    'bucketName': 'research', 'mountOptions': 'implicit-dirs,only-dir:sets'}}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as a clone has it: an image, a study, and what stands for a bucket."""
    for name, text in {
            'experiments/tiny.py': ONE, 'data/list.txt': 'one', 'launch/Dockerfile':
            'FROM python:3.12\nWORKDIR /downscale\nCOPY experiments experiments\n'}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / 'launch' / 'clusters').mkdir()
    shutil.copy(rehearse.sandbox.QUEUES.absolute(), tmp_path / 'launch' / 'clusters')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(on_gke.RehearsalBackend, 'poll', 0.3)
    for name in ('JAX_PLATFORMS', *pool.ENVIRONMENT):  # a command may set them
        monkeypatch.setenv(name, os.environ.get(name, ''))
    return tmp_path


SENT = ('experiments/tiny.py', '--topology', 'v5e:2x2', '--queue', 'tpu', '--json')


@pytest.fixture
def edited(folder):
    """A function that writes the manifests into `plan` and lets `change` edit each."""
    def edit(change):
        assert main.main(['launch', 'plan', *SENT, '--dry-run', '--no-fit', '--out', 'plan']) == 0
        for path in (folder / 'plan').glob('*.yaml'):
            manifest = yaml.safe_load(path.read_text())
            pod = pod_of(manifest)
            pod['volumes'] = [VOLUME]
            pod['containers'][0]['volumeMounts'] = [MOUNT]
            change(manifest)
            path.write_text(yaml.safe_dump(manifest))
    return edit


@pytest.fixture
def rehearsed(edited, capsys):
    """A function that rehearses manifests which `change` has edited."""
    def run(change=lambda manifest: None, *rest):
        edited(change)
        capsys.readouterr()
        code = main.main(['launch', 'rehearse', *SENT, '--manifests', 'plan', '--quiet', *rest])
        said = capsys.readouterr()
        assert said.out, said.err
        found = json.loads(said.out)
        assert code == bool(found['findings'])
        return found
    return run


def pod_of(manifest):
    return manifest['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']


def main_of(manifest):
    return pod_of(manifest)['containers'][0]


def test_a_sweep_that_is_evicted_and_killed_has_the_results_of_one_that_is_not(rehearsed, folder):
    (folder / 'experiments/tiny.py').write_text(TWO)
    found = rehearsed(lambda manifest: None, '--inject', 'evict,sigkill')
    assert found['findings'] == []
    assert sorted(name for name, _ in found['injected']) == ['evict', 'sigkill']
    jobs = found['jobs']
    assert [job['state'] for job in jobs] == ['done', 'done'] and all(job['same'] for job in jobs)
    assert [job['saved'] for job in jobs] == [6, 6] and all(job['attempts'] == 2 for job in jobs)
    assert {job['ended'][0] for job in jobs} == {'evict 42', 'sigkill 137'}
    assert [job['at_risk'] for job in jobs] == ['10 of 40 steps'] * 2
    assert set(found['settings']) == {'stages.text.steps', 'stages.text.save_every'}
    assert (folder / 'runs/tiny/rehearsal/rehearsal.json').exists()


def test_a_job_whose_quota_is_taken_goes_on_to_the_same_result(rehearsed):
    found = rehearsed(lambda manifest: None, '--inject', 'quota')
    assert found['findings'] == []
    assert [name for name, _ in found['injected']] == ['quota']
    job, = found['jobs']
    assert job['state'] == 'done' and job['same'] and job['saved'] == 6
    assert job['ended'][0] == 'quota 42' and job['attempts'] == 2


def label_too_long(manifest):
    manifest['spec']['replicatedJobs'][0]['template']['spec']['template']['metadata']['labels'][
        'downscale.dev/cell'] = 'x' * 64


def misspelt_field(manifest):
    manifest['spec']['failurePolicy']['maxRestart'] = 3


def volume_missing(manifest):
    del pod_of(manifest)['volumes']


def mount_missing(manifest):
    del main_of(manifest)['volumeMounts']


def wrong_environment(manifest):
    main_of(manifest)['env'].append({'name': 'DOWNSCALE_HEARTBEAT_SECONDS', 'value': 'soon'})


def wrong_command(manifest):
    main_of(manifest)['command'][2] = 'downscale.launch.entri'


def wrong_queue(manifest):
    manifest['metadata']['labels']['kueue.x-k8s.io/queue-name'] = 'tpus'


def wrong_chips(manifest):
    main_of(manifest)['resources']['limits']['google.com/tpu'] = 8


def toleration_missing(manifest):
    pod_of(manifest)['tolerations'].pop()


def wrong_image(manifest):
    main_of(manifest)['image'] = 'other@sha256:' + '1' * 64


def no_restarts(manifest):
    manifest['spec']['failurePolicy']['maxRestarts'] = 0


def wrong_code(manifest):
    manifest['spec']['replicatedJobs'][0]['template']['spec']['podFailurePolicy']['rules'][1][
        'onExitCodes']['values'] = [43]


@pytest.mark.parametrize(('broken', 'message'), [
    (label_too_long, 'is no label value'), (misspelt_field, "'maxRestart' was unexpected"),
    (volume_missing, "there is no volume 'data'"), (mount_missing, 'exit code 64 (fatal'),
    (wrong_environment, 'DOWNSCALE_HEARTBEAT_SECONDS=soon'),
    (wrong_command, "No module named downscale.launch.entri"),
    (wrong_queue, 'LocalQueue tpus does not exist'), (wrong_chips, 'a node of v5e:2x2 has 4'),
    (toleration_missing, 'the taint cloud.google.com/gke-spot'),
    (wrong_image, 'there is no image other@'), (no_restarts, 'one crash ends the job'),
    (wrong_code, 'exit code 42 leads to RestartJobSet,')],
    ids=lambda value: getattr(value, '__name__', ''))
def test_a_manifest_that_was_broken_by_hand_is_caught(rehearsed, broken, message):
    found = rehearsed(broken)
    assert any(message in line for line in found['findings']), found['findings']
    assert not any(job['state'] == 'done' for job in found['jobs'])


def exit_code_swallowed(manifest):
    words = ' '.join(main_of(manifest)['command'])
    main_of(manifest)['command'] = ['bash', '-c', f'trap "kill -TERM \\$p" TERM; {words} & p=$!; '
                                    'wait $p; wait $p; exit 0']


def no_grace(manifest):
    pod_of(manifest)['terminationGracePeriodSeconds'] = 0


@pytest.mark.parametrize(('broken', 'message'), [
    (exit_code_swallowed, 'the code was swallowed'), (no_grace, 'its grace of 0 s is too short')])
def test_what_only_an_eviction_shows_is_caught_by_one(edited, folder, broken, message):
    edited(broken)
    args = main.parser().parse_args(['launch', 'rehearse', *SENT])
    planned = rehearse.plan(args, folder / 'plan')
    outcome = rehearse.run(planned, ('evict',), folder / 'out', print, lambda jobs: None)
    assert any(message in line for line in outcome.findings), outcome.findings

"""`downscale launch`: what each verb does to a run folder, to a cloud of this machine, and says."""
import json
import os
import shutil
import subprocess
import time

import pytest
from local_jobs import STUDY

from downscale.commands import launch, launch_verbs, main
from downscale.launch import board, state, supervise
from downscale.launch.backends import local, sweep
from downscale.launch.spec import Spec
from downscale.planner import fit, pool
from downscale.runtime.files import write_json

IMAGE = f'europe-docker.pkg.dev/p/d/d@sha256:{"a" * 64}'
TPU = ('--backend', 'tpuvm', '--topology', 'v5e:4x4', '--zone', 'z0', '--no-fit', '--allow-dirty')
needs_gcloud = pytest.mark.skipif(
    not shutil.which('gcloud'), reason='NOT TESTED: gcloud is missing, so the TPU VM route is not')
needs_kubectl = pytest.mark.skipif(
    not shutil.which('kubectl'), reason='NOT TESTED: kubectl is missing, so the GKE route is not')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a study of two cells of one job each, as the current one."""
    (tmp_path / 'experiments').mkdir()
    (tmp_path / 'experiments' / 'tiny.py').write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    for name in ('JAX_PLATFORMS', *pool.ENVIRONMENT):  # a command may set them
        monkeypatch.setenv(name, os.environ.get(name, ''))
    return tmp_path


@pytest.fixture
def launched(folder, capsys):
    """A function that runs a verb: (exit code, what --json printed, or the error line)."""
    def run(verb, *rest, code=0):
        capsys.readouterr()
        found = main.main(['launch', verb, 'experiments/tiny.py', '--json', *map(str, rest)])
        said = capsys.readouterr()
        assert found == code, said
        if not said.out:
            line = said.err.splitlines()[-1]
            assert line.startswith('error: '), said
            return line
        return json.loads(said.out)
    return run


def states(found):
    return {job['key']: job['state'] for job in found['jobs']}


def test_every_verb_has_an_example_that_parses_and_a_summary():
    assert set(launch.LAUNCH_EXAMPLES) == set(launch.SUMMARY) == set(launch_verbs.VERBS)
    for verb, example in launch.LAUNCH_EXAMPLES.items():
        args = main.parser().parse_args(example.split()[1:])
        assert args.run is launch.run and args.verb == verb


# --- on this machine --------------------------------------------------------------------------

@pytest.mark.slow
def test_a_local_sweep_is_submitted_seen_and_done(launched, folder, capsys):
    assert states(launched('status')) == dict.fromkeys(
        ('w64d1-s0/train', 'w64d2-s0/train'), 'missing')
    assert states(launched('submit', '--cell', 'w64d2-s0', '--max-parallel', 2)) == {
        'w64d2-s0/train': 'done'}
    found = launched('status', '--only', 'done,failed')
    job, = found['jobs']
    assert (job['key'], job['step'], job['total'], job['attempt']) == (
        'w64d2-s0/train', 40, 40, 0) and job['usd'] is None and 0 < job['goodput'] <= 1
    # Another submit finds it done, and starts only the other.
    launched('submit')
    assert [len(state.attempts(folder / 'runs/tiny/launch' / cell / 'train'))
            for cell in ('w64d1-s0', 'w64d2-s0')] == [1, 1]
    log = launched('logs', '--cell', 'w64d2-s0')['w64d2-s0/train']
    assert log['log'].endswith('000-0.log')
    cost = launched('cost')
    assert set(cost['cells']) == {'w64d1-s0', 'w64d2-s0'} and cost['chip_hours'] > 0
    assert main.main(['launch', 'status', 'experiments/tiny.py']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ['job', 'state', 'attempt']
    assert lines[-1].startswith('2 jobs: 2 done; ')


def test_what_was_cancelled_starts_only_after_resume(launched, folder, monkeypatch):
    started = []

    class Group(local.Group):
        def __init__(self, spec, mounts=()):
            self.spec, self.processes = spec, []
            started.append(spec.key)
            write_json(state.folder_of(spec.run, spec) / 'DONE.json', {'spec': spec.hash})

        def code(self):
            return 0
    monkeypatch.setattr(local, 'Group', Group)
    launched('submit', '--cell', 'w64d1-s0', '--topology', 'cpu:2x1')
    assert started == ['w64d1-s0/train']
    assert launched('cancel') == {'cancelled': [], 'deleted': []}
    spec = state.load_spec(folder / 'runs/tiny/launch/w64d1-s0/train/spec.json')
    assert spec.topology == 'cpu:2x1'
    (folder / 'runs/tiny/launch/w64d1-s0/train/DONE.json').unlink()
    assert launched('cancel', '--dry-run')['cancelled'] == ['w64d1-s0/train']
    assert launched('cancel')['cancelled'] == ['w64d1-s0/train']
    assert states(launched('submit', '--cell', 'w64d1-s0', code=1)) == {
        'w64d1-s0/train': 'cancelled'
    }
    assert started == ['w64d1-s0/train']
    # The settings of the last submit hold: it is the same job.
    assert states(launched('resume', '--only', 'cancelled')) == {'w64d1-s0/train': 'done'}
    assert started == 2 * ['w64d1-s0/train']


def test_a_job_is_submitted_with_what_it_needs(launched, folder):
    (folder / 'experiments' / 'tiny.py').write_text(STUDY.replace("('text',", "('text', 'reason',"))
    found = launched('submit', '--dry-run', '--cell', 'w64d2-s0', '--only', 'waiting')
    assert [(act['action'], act['key']) for act in found['actions']] == [
        ('Create', 'w64d2-s0/train'), ('Wait', 'w64d2-s0/reason')]


def test_a_job_that_runs_as_it_was_is_not_replaced(launched, folder):
    launched('submit', '--dry-run')
    assert not (folder / 'runs').exists()
    now = time.time()
    assert [act['action'] for act in launched('submit', '--dry-run')['actions']][0] == 'Create'
    spec = sweep.open_sweep(main.parser().parse_args(
        ['launch', 'submit', 'experiments/tiny.py'])).planned[0]
    state.save_spec(spec)
    write_json(state.folder_of(spec.run, spec) / 'attempts' / '000.json', {
        'attempt': 0, 'spec': spec.hash, 'began': now, 'seen': now, 'ended': None, 'exit': None,
        'reason': '', 'first_step': 0, 'last_step': 0, 'steps_lost': 0, 'steps_s': 0.0})
    line = launched('submit', '--set', 'stages.text.steps=50', code=1)
    assert 'w64d1-s0/train runs as it was before' in line and 'cancel it first' in line


def test_files_that_differ_from_the_commit_are_refused(launched, folder):
    subprocess.run(['git', 'init', '-q'], check=True)
    assert 'experiments/ differ from the commit' in launched('submit', '--dry-run', code=1)
    assert launched('submit', '--dry-run', '--allow-dirty')['actions']


@pytest.mark.parametrize(('argv', 'message'), [
    (['--cell', 'w64d3-s0'], "no cell 'w64d3-s0'; did you mean 'w64d"),
    (['--only', 'lost'], '--only lost: a job is waiting, missing'),
    (['--topology', 'v5e:4x4', '--backend', 'local'],
     'is not for --backend local; it runs cpu:PxD'),
    (['--topology', 'v5e:4x5'], 'v5e:4x5'),
    (['--zone', 'z'], '--zone is not for --backend local, but for tpuvm'),
    (['--max-parallel', '0'], '--max-parallel 0 must be above 0'),
    (['--backend', 'gke'], 'say on which slices'),
    (['--topology', 'v5e:4x4'], 'which --backend gke cannot reach; give a folder of a bucket'),
    (['--topology', 'v5e:4x4', '--run', 'gs://runs/x', '--image', 'name:tag'],
     'name an image by its digest'),
    (['--backend', 'tpuvm', '--topology', 'v5e:4x4', '--run', 'gs://runs/x', '--image', IMAGE],
     'needs --zone; v5e is in us-central1-a, us-south1-a'),
    (['--backend', 'mig', '--topology', 'v5e:4x4'], 'v5e not by mig: use gke, or tpuvm (legacy)'),
    (['--backend', 'mig', '--topology', '2xv6e:4x4'], 'is one slice; use --backend gke'),
    (['--backend', 'mig', '--topology', 'v6e:4x5'], 'known of v6e are v6e:1x1'),
    (['--backend', 'mig', '--topology', 'v6e:2x2', '--zone', 'z0'],
     '--zone z0 is no zone of Compute Engine, as us-east5-a is one'),
    (['--backend', 'mig', '--topology', 'v6e:2x2', '--capacity', 'reserved'],
     '--capacity reserved and --reservation NAME go together on --backend mig'),
    (['--backend', 'gke', '--topology', 'v6e:2x2', '--reservation', 'x'],
     '--capacity reserved and --reservation NAME go together on --backend gke'),
    (['--backend', 'mig', '--topology', 'v6e:2x2', '--capacity', 'flex-start',
      '--max-run-duration', '7d1s'], '7d1s: flex-start machines run from 10m to 7d'),
    (['--backend', 'mig', '--topology', 'v6e:2x2', '--max-run-duration', '1d'],
     '--max-run-duration goes with --capacity flex-start'),
    (['--backend', 'gke', '--topology', 'v6e:2x2', '--max-run-duration', '1d'],
     '--max-run-duration is not for --backend gke, but for mig'),
    (['--backend', 'mig', '--topology', 'v6e:2x2', '--valid-for', 'long'],
     "'long' is no duration; write 7d"),
    (['--backend', 'tpuvm', '--topology', 'v6e:2x2', '--capacity', 'flex-start'],
     'is not for --backend tpuvm (legacy), but for gke and mig')])
def test_a_mistake_is_one_line_before_anything_starts(launched, folder, monkeypatch, argv, message):
    monkeypatch.setattr(sweep, 'read_json', lambda path: None)  # no bucket is asked
    assert message in launched('submit', '--dry-run', *argv, code=1)


def test_only_studies_of_the_image_go_to_the_cloud(folder, capsys):
    shutil.copy('experiments/tiny.py', 'mine.py')
    assert main.main(['launch', 'plan', 'mine.py', '--topology', 'v5e:4x4', '--dry-run']) == 1
    assert 'mine.py is not in the image' in capsys.readouterr().err


# --- before anything is sent ------------------------------------------------------------------

def test_a_plan_writes_every_command_without_a_network(launched, folder):
    found = launched('plan', '--backend', 'tpuvm', '--topology', 'v5e:4x4', '--dry-run', '--no-fit',
                   '--out', 'plan')
    assert [job['job'] for job in found['jobs']] == ['w64d1-s0/train', 'w64d2-s0/train']
    assert {job['chips'] for job in found['jobs']} == {16} and 'not checked' in found['fit']
    text = (folder / found['jobs'][0]['file']).read_text()
    assert text.startswith('gcloud compute tpus queued-resources create --quiet')
    assert 'gs://BUCKET/tiny/launch/w64d1-s0/train/spec.json' in text
    assert json.loads((folder / 'plan' / 'plan.json').read_text()) == found
    local_ = launched('plan', '--dry-run', '--topology', 'cpu:2x1', '--out', 'here')
    assert len((folder / local_['jobs'][0]['file']).read_text().splitlines()) == 2


@pytest.mark.parametrize(('argv', 'hours'), [
    (('mig', '--capacity', 'flex-start'), 168), (('gke', '--capacity', 'flex-start'), 168),
    (('mig', '--capacity', 'flex-start', '--max-run-duration', '1d12h'), 36), (('mig',), None)])
def test_a_plan_says_how_long_machines_run(launched, folder, argv, hours):
    found = launched('plan', '--topology', 'v6e:4x4', '--dry-run', '--no-fit', '--out', 'plan',
                     '--backend', *argv)
    assert found['max_run_hours'] == hours
    text = (folder / found['jobs'][0]['file']).read_text()
    if argv[0] == 'mig':
        assert [line.split()[:4] for line in text.splitlines()] == [
            ['gcloud', 'compute', 'instance-templates', 'create'],
            ['gcloud', 'compute', 'resource-policies', 'create'],
            ['gcloud', 'compute', 'instance-groups', 'managed']]
    assert ('FLEX_START' in text or 'gke-flex-start' in text) == (hours is not None)


def test_a_plan_of_queued_resources_says_that_they_are_legacy(folder, capsys):
    argv = ['launch', 'plan', 'experiments/tiny.py', '--topology', 'v6e:4x4', '--dry-run',
            '--no-fit', '--out', 'plan', '--backend']
    for backend, count in (('tpuvm', 1), ('mig', 0)):
        assert main.main([*argv, backend]) == 0
        assert capsys.readouterr().out.count('queued resources, which are legacy') == count


def test_a_job_that_takes_longer_than_its_machines_run_is_told_of():
    spec = Spec(sweep='s', cell='a', part='train', config='x.py', overrides=(), experiment='h',
                tasks=(), needs=(), steps=1, topology='v6e:4x4', image=None, commit='none',
                run='gs://r/x')
    cell = fit.CellFit(fits=True, hbm_gib=1.0, hbm_limit_gib=2.0, chip_hours=(1.0, 16 * 90.0),
                       usd=None)
    week = board.run_time_lines([spec], {'a': cell}, 168 * 3600)
    assert len(week) == 1 and 'at most 168 hours' in week[0]
    assert board.run_time_lines([spec], {'a': cell}, 36 * 3600)[1] == (
        'a/train takes up to 90 hours, so machines 3 times')
    assert board.run_time_lines([spec], {'a': cell}, None) == []


def test_what_does_not_fit_or_costs_too_much_is_not_started(launched, monkeypatch, bucket):
    one = fit.CellFit(
        fits=True, hbm_gib=3.0, hbm_limit_gib=15.75, chip_hours=(1.0, 2.0), usd=(10.0, 20.0)
    )
    fits = {'w64d1-s0': one, 'w64d2-s0': one}
    monkeypatch.setattr(fit, 'check', lambda *rest: fits)
    monkeypatch.setattr(supervise, 'decide', lambda *rest: [])
    argv = ['--dry-run', '--run', f'{bucket}/unfit', '--image', IMAGE, *TPU]
    argv.remove('--no-fit')
    line = launched('submit', *argv, '--max-usd', 39, code=1)
    assert 'may cost up to 40.00 dollars (estimate), over --max-usd 39' in line
    assert launched('submit', *argv, '--max-usd', 41) == {'actions': []}
    fits['w64d2-s0'] = fit.CellFit(
        fits=False,
        hbm_gib=20.0,
        hbm_limit_gib=15.75,
        chip_hours=None,
        usd=None,
        remark='w64d2-s0/text does not fit',
    )
    assert 'w64d2-s0/text does not fit; see: downscale plan' in launched('submit', *argv, code=1)
    assert launched('submit', *argv, '--cell', 'w64d1-s0') == {'actions': []}


def test_the_fit_of_a_cell_is_that_of_its_worst_program():
    row = dict(fits=True, hbm_gib=2.0, hbm_limit_gib=15.75, chip_hours=[1.0, 2.0], usd=[3.0, 4.0],
               error=None, proposal=None)
    rows = [{**row, 'name': 'a/align'}, {**row, 'name': 'a/extract', 'hbm_gib': 5.0},
            {**row, 'name': 'a/extract', 'chip_hours': [2.0, 5.0]},
            {**row, 'name': 'b/align', 'fits': False, 'usd': None,
             'proposal': {'change': '1 row a chip'}}, {**row, 'name': 'b/extract', 'usd': None}]
    found = fit.of_cells({'cells': rows})
    assert found['a'] == fit.CellFit(
        fits=True, hbm_gib=5.0, hbm_limit_gib=15.75, chip_hours=(2.0, 7.0), usd=(6.0, 8.0)
    )
    assert found['b'] == fit.CellFit(
        fits=False,
        hbm_gib=2.0,
        hbm_limit_gib=15.75,
        chip_hours=(2.0, 4.0),
        usd=None,
        remark='b/align does not fit; with 1 row a chip it does',
    )


def test_manifests_are_valid_before_there_is_a_cluster(launched, folder):
    argv = ('--topology', 'v5e:4x4')
    assert launched('validate', *argv) == {'jobs': 2, 'problems': []}
    job, _ = launched('plan', *argv, '--dry-run', '--no-fit')['jobs']
    assert job['file'].endswith('.yaml') and 'kind: JobSet' in (folder / job['file']).read_text()
    found = launched('validate', '--topology', 'v5p:1x1x1', code=1)
    assert len(found['problems']) == 2 and 'no machine of 1 v5p chip' in found['problems'][0]


# --- in the cloud -----------------------------------------------------------------------------

def test_a_tree_that_git_refuses_to_read_counts_as_changed(folder, launched, monkeypatch):
    bin_folder = folder / 'bin'
    bin_folder.mkdir()
    (bin_folder / 'git').write_text('#!/bin/sh\necho "fatal: detected dubious ownership in '
                                    'repository at /x" >&2\nexit 128\n')
    (bin_folder / 'git').chmod(0o755)
    monkeypatch.setenv('PATH', str(bin_folder))
    for said in ('git refuses: detected dubious ownership in repository', 'git is not installed'):
        line = launched('submit', '--topology', 'cpu:1x1', '--run', folder / 'run', code=1)
        assert said in line and 'say --allow-dirty' in line and not (folder / 'run').exists()
        (bin_folder / 'git').unlink(missing_ok=True)
    launched(
        'submit', '--topology', 'cpu:1x1', '--run', folder / 'run', '--allow-dirty', '--dry-run'
    )


@needs_gcloud
def test_machines_are_asked_for_once_watched_cancelled_and_collected(launched, api, bucket):
    run = f'{bucket}/command'
    argv = ['--run', run, '--image', IMAGE, '--max-parallel', 1, *TPU]
    assert len(launched('validate', *argv[:4], *TPU[:6])['problems']) == 0
    assert states(launched('submit', *argv)) == dict.fromkeys(
        ('w64d1-s0/train', 'w64d2-s0/train'), 'missing')
    launched('submit', *argv)
    first, = [name for _, _, name, *_ in api.made()]
    # From now on the run folder knows the backend.
    actions = launched('watch', '--run', run, '--dry-run')['actions']
    assert [act['action'] for act in actions] == ['Hold', 'Wait']
    assert launched('cost', '--run', run)['max_usd'] is None
    found = launched('cancel', '--run', run, '--cell', 'w64d1-s0')
    assert found['deleted'] == [f'w64d1-s0/train: {first} deleted'] and len(api.deleted()) == 1
    # What another version of the study left behind is told of, then deleted.
    api.resources.clear()
    launched('resume', '--cell', 'w64d1-s0', '--run', run, '--no-fit', '--allow-dirty')
    (state.place(run) / 'launch/w64d1-s0/train/spec.json').unlink()
    assert launched('gc', '--run', run, '--dry-run') == {'would_be_deleted': [first]}
    assert len(api.deleted()) == 1
    assert launched('gc', '--run', run) == {'deleted': [first]} and len(api.deleted()) == 2


@pytest.mark.slow
@needs_gcloud
def test_groups_are_asked_for_once_watched_cancelled_and_collected(launched, compute, bucket):
    run = f'{bucket}/groups'
    launched('submit', '--run', run, '--image', IMAGE, '--max-parallel', 1, '--backend', 'mig',
             '--topology', 'v6e:2x2', '--zone', 'us-east5-a', '--capacity', 'flex-start',
             '--no-fit', '--allow-dirty')
    (first, zone), = compute.made()
    assert zone == 'us-east5-a'
    compute.start(first)
    actions = launched('watch', '--run', run, '--dry-run')['actions']
    assert [(act['action'], act['why']) for act in actions] == [
        ('Hold', 'running'), ('Wait', '1 jobs hold 4 chips')]
    log = launched('logs', '--run', run, code=1)
    assert 'no such job has begun' in log
    (state.place(run) / 'launch/w64d1-s0/train/spec.json').unlink()
    assert launched('gc', '--run', run) == {'deleted': [first]}
    assert not compute.things
    # Another capacity forgets how long flex-start ones run.
    actions = launched('submit', '--run', run, '--capacity', 'spot', '--no-fit', '--allow-dirty',
                       '--dry-run')['actions']
    # It is created, or waits where the last try was less than a minute ago.
    assert actions[0]['key'] == 'w64d1-s0/train' and actions[0]['action'] in ('Create', 'Wait')


@needs_kubectl
def test_job_sets_are_made_once_watched_cancelled_and_collected(launched, cluster, bucket):
    run = f'{bucket}/job-sets'
    argv = ['--run', run, '--topology', 'v5e:4x4', '--image', IMAGE, '--no-fit', '--allow-dirty',
            '--max-parallel', 1, '--queue', 'tpu']
    launched('submit', *argv)
    launched('submit', *argv)
    first, = cluster.made()
    labels = cluster.objects[first]['metadata']['labels']
    assert labels['kueue.x-k8s.io/queue-name'] == 'tpu'
    assert [act['action'] for act in launched('watch', '--run', run, '--dry-run')['actions']] == [
        'Hold', 'Wait']
    cluster.add_pod(first, 0, 'step 5\n')
    assert launched('cancel', '--run', run)['deleted'] == [f'w64d1-s0/train: {first} deleted']
    assert not cluster.objects
    launched('resume', '--run', run, '--no-fit', '--allow-dirty', '--cell', 'w64d1-s0')
    assert set(cluster.objects) == {first}
    (state.place(run) / 'launch/w64d1-s0/train/spec.json').unlink()
    assert launched('gc', '--run', run) == {'deleted': [first]} and not cluster.objects
    assert launched('gc', '--run', run) == {'deleted': []}


@pytest.mark.parametrize('verb', ['launch status experiments/smoke.py --run', 'report'])
@pytest.mark.parametrize('folder', [
    'a\nb', 'a\rb', 'a\0b', 'a*b', 'a?b', 'a#1', 'a[b]', '../a', 'a/./b', 'a//b', 'q' * 1100,
    'ä' * 360])
def test_a_path_that_no_bucket_can_hold_is_refused_in_one_line(capsys, verb, folder):
    with pytest.raises(SystemExit) as ended:
        main.main([*verb.split(), f'gs://bucket/{folder}'])
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and 'error: argument ' in line and len(line) <= 300
    assert ('700 bytes' if len(folder) > 20 else 'a path in a bucket has no') in line


@pytest.mark.parametrize('folder', [
    'gs://b', 'gs://b/', 'gs://BUCKET/a/', 'gs://b/größe ,x|y;z', "gs://b/a'b", 'gs://b/..a/b.',
    'gs://b/' + 'q' * 600])
def test_a_path_that_a_bucket_can_hold_is_taken_as_it_stands(folder):
    argv = ['launch', 'status', 'experiments/smoke.py', '--run', folder]
    assert main.parser().parse_args(argv).folder == folder

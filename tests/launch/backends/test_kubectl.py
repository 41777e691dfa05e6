"""JobSets through the real kubectl, against an API server of this process."""
import dataclasses
import itertools
import shutil
import time

import pytest
from jax._src.clusters.cloud_tpu_cluster import GkeTpuCluster
from test_jobset import spec_of as cloud_spec

from downscale.launch import state, supervise
from downscale.launch.backends import gke
from downscale.launch.spec import processes_of
from downscale.launch.watch import Create, GiveUp, Hold, Policy
from downscale.runtime.files import write_json

pytestmark = pytest.mark.skipif(
    not shutil.which('kubectl'), reason='NOT TESTED: kubectl is missing, so the GKE route is not')


@pytest.fixture(autouse=True)
def runs_of_this_machine(monkeypatch):
    monkeypatch.setattr(gke, 'in_bucket', lambda path: True)


@pytest.fixture
def backend():
    return gke.GkeBackend(gke.GkeOptions(namespace='research'))


def spec_of(folder, **fields):
    return cloud_spec(run=str(folder / 'run'), **fields)


def finish(spec):
    write_json(state.folder_of(spec.run, spec) / 'DONE.json', {'spec': spec.hash})


def test_what_is_created_is_listed_and_deleted_and_nothing_else(cluster, backend, tmp_path):
    spec = spec_of(tmp_path)
    other = spec_of(tmp_path / 'other')
    assert backend.observe([spec]) == []
    before = time.time() - 1
    backend.create(spec, '')
    backend.create(other, '')
    assert set(cluster.objects) == {spec.name, other.name}
    found, = backend.observe([spec])
    assert (found.name, found.hash, found.state, found.restarts) == (
        spec.name, spec.hash, 'pending', True) and found.since >= before
    backend.delete(spec.name, '')
    backend.delete(spec.name, '')  # what is gone is no error
    assert set(cluster.objects) == {other.name}


def test_a_job_set_that_is_there_is_left_alone_and_another_spec_is_refused(
        cluster, backend, tmp_path):
    spec = spec_of(tmp_path)
    backend.create(spec, '')
    backend.create(spec, '')
    assert cluster.made() == [spec.name]
    cluster.objects[spec.name]['metadata']['labels']['downscale.dev/spec'] = 'another'
    with pytest.raises(ValueError, match=f'is there for spec another, not {spec.hash}; cancel'):
        backend.create(spec, '')


def test_what_the_cluster_refuses_is_one_line(cluster, backend, tmp_path, monkeypatch):
    monkeypatch.setattr(gke, 'CRASHES', 'three')
    with pytest.raises(RuntimeError, match='^kubectl create: .*maxRestarts') as error:
        backend.create(spec_of(tmp_path), '')
    assert '\n' not in str(error.value) and not cluster.objects


@pytest.mark.parametrize(('status', 'expected', 'message'), [
    ({}, 'pending', ''),
    ({'conditions': [{'type': 'Suspended', 'status': 'True', 'message': 'in the queue'}]},
     'pending', 'in the queue'),
    ({'replicatedJobsStatus': [{'name': 'slice', 'ready': 1}]}, 'running', ''),
    ({'conditions': [{'type': 'Completed', 'status': 'True'}]}, 'ended', ''),
    ({'conditions': [{'type': 'Failed', 'status': 'True', 'message': 'code 64'}]}, 'failed',
     'code 64'),
    ({'conditions': [{'type': 'Suspended', 'status': 'False', 'message': 'resumed'}]}, 'pending',
     '')])
def test_states_of_a_job_set_are_told_apart(cluster, backend, tmp_path, status, expected, message):
    spec = spec_of(tmp_path)
    backend.create(spec, '')
    cluster.set(spec.name, **status)
    found, = backend.observe([spec])
    assert (found.state, found.message) == (expected, message)


def test_a_sweep_of_two_jobs_goes_to_its_end(cluster, backend, tmp_path):
    train = spec_of(tmp_path)
    reason = dataclasses.replace(train, part='reason', needs=(train.key,), topology='v5e:2x2')
    said, rounds = [], []

    def act(jobs):
        """What the cluster does between two rounds."""
        rounds.append([job.state for job in jobs])
        for spec in (train, reason):
            if spec.name in cluster.objects and len(rounds) % 2:
                finish(spec)
                cluster.set(spec.name, conditions=[{'type': 'Completed', 'status': 'True'}])
    jobs = supervise.run(backend, [train, reason], Policy(max_parallel=2, base=0), said.append, act)
    assert [job.state for job in jobs] == ['done', 'done'] and not cluster.objects
    assert cluster.made() == [train.name, reason.name]
    assert said == ['0.6b-s0/train: started', '0.6b-s0/train: done (exit code 0)',
                    '0.6b-s0/reason: started', '0.6b-s0/reason: done (exit code 0)']


def test_a_job_set_that_failed_for_good_is_deleted_and_its_job_given_up(
        cluster, backend, tmp_path):
    spec, policy = spec_of(tmp_path), Policy(max_parallel=1)
    state.save_spec(spec)
    assert supervise.step(backend, [spec], policy, [].append) == [Create(spec.key, '')]
    cluster.set(spec.name, replicatedJobsStatus=[{'name': 'slice', 'ready': 1}])
    assert supervise.decide(backend, [spec], policy) == [Hold(spec.key, 'running')]
    write_json(state.folder_of(spec.run, spec) / 'FATAL.json', {
        'spec': spec.hash, 'reason': 'no such file', 'exit': 64, 'time': time.time()})
    cluster.set(spec.name, conditions=[{'type': 'Failed', 'status': 'True', 'message': 'x'}])
    supervise.step(backend, [spec], policy, [].append)
    assert not cluster.objects
    assert supervise.decide(backend, [spec], policy) == [GiveUp(spec.key, 'fatal')]


def test_the_log_of_a_process_is_that_of_its_pod(cluster, backend, tmp_path):
    spec = spec_of(tmp_path)
    backend.create(spec, '')
    cluster.add_pod(spec.name, 1, 'step 5\nstep 6\n')
    assert backend.log(spec, 1) == 'step 5\nstep 6\n'
    assert 'step' not in backend.log(spec, 0)


def test_the_log_of_a_process_of_several_slices_is_that_which_jax_numbers_so(
        cluster, backend, tmp_path, monkeypatch):
    spec = dataclasses.replace(spec_of(tmp_path), topology='2xv5e:4x4')
    backend.create(spec, '')
    for replica, worker in itertools.product(range(2), range(4)):
        cluster.add_pod(spec.name, worker, f'slice {replica}, worker {worker}\n', replica)
        # What GKE gives to that pod, and what JAX makes of it.
        for name, value in {
                'MEGASCALE_NUM_SLICES': '2', 'MEGASCALE_SLICE_ID': replica,
                'TPU_WORKER_ID': worker, 'TPU_WORKER_HOSTNAMES': 'a,b,c,d'}.items():
            monkeypatch.setenv(name, str(value))
        assert GkeTpuCluster.get_process_count() == processes_of(spec.topology)[0] == 8
        process = GkeTpuCluster.get_process_id()
        assert backend.log(spec, process) == f'slice {replica}, worker {worker}\n'


def test_the_log_of_a_process_is_that_of_its_container(backend, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(backend, '_call', lambda rest: asked.append(rest) or '')
    # Two processes a machine: the fourth is the second container of the second pod.
    spec = dataclasses.replace(spec_of(tmp_path), topology='tpu7x:2x2x2')
    for process, container, pod in ((0, 'main', 0), (3, 'main-1', 1)):
        backend.log(spec, process)
        assert f'--container={container}' in asked[-1]
        assert asked[-1][-1].endswith(f'job-completion-index={pod}')


def test_without_kubectl_it_says_what_to_install(cluster, backend, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ValueError, match='there is no kubectl'):
        backend.observe([spec_of(tmp_path)])

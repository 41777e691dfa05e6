"""A pod is a process that has what its manifest says, and ends as a container does."""
import signal
import sys

import pytest
from waiting import wait_until

from downscale.launch.rehearsal.machines.container import Image
from downscale.launch.rehearsal.pods import Pod, environment

DOCKERFILE = '''FROM python:3.12-slim
WORKDIR /image
COPY one.txt ./
COPY sets experiments/sets
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ('one.txt', 'sets/two.txt', 'data/three.txt', 'launch/Dockerfile'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(DOCKERFILE if name.endswith('file') else name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def started(folder):
    """A function that starts a pod with a command; all are killed in the end."""
    pods = []

    def start(*command, volumes=(), mounts=(), **variables):
        template = {'spec': {'volumes': list(volumes), 'containers': [{
            'name': 'main', 'command': list(command), 'volumeMounts': list(mounts),
            'env': [{'name': name, 'value': value} for name, value in variables.items()],
            'resources': {'limits': {'google.com/tpu': 4}}}]}}
        pods.append(Pod(f'pod{len(pods)}', template, folder / 'out' / 'pods' / f'pod{len(pods)}',
                        Image()))
        pods[-1].start(environment(template, (0, 1), (1, 2), ['a', 'b'], 999))
        return pods[-1]
    yield start
    for pod in pods:
        pod.kill()


def ended(pod):
    wait_until(pod.poll)
    return pod.poll().code, pod.log.read_text()


def volume(**source):
    return {'name': 'data', **source}


BUCKET = volume(csi={'driver': 'gcsfuse.csi.storage.gke.io', 'volumeAttributes': {
    'bucketName': 'b', 'mountOptions': 'implicit-dirs,only-dir:sets/x'}})


def test_a_pod_sees_its_manifest_its_image_and_nothing_of_this_process(started, monkeypatch):
    monkeypatch.setenv('SECRET', 'of this process')
    words = 'pwd; ls -R . | cat; cat one.txt; echo; env'
    code, text = ended(started('bash', '-c', words, OWN='here'))
    assert code == 0
    assert text.splitlines()[0].endswith('/pod0/image') and 'two.txt' not in text.split('\n')[1]
    assert 'SECRET' not in text and 'three.txt' not in text
    assert {'OWN=here', 'TPU_WORKER_ID=1', 'TPU_WORKER_HOSTNAMES=a,b', 'JAX_PLATFORMS=cpu',
            'JAX_PROCESS_ID=1', 'JAX_NUM_PROCESSES=2'} <= set(text.splitlines())
    assert 'XLA_FLAGS=' in text and '--xla_force_host_platform_device_count=4\n' in text


def test_python_of_the_image_is_the_one_of_this_process(started):
    code, text = ended(started('python', '-c', 'import sys; print(sys.executable); exit(42)'))
    assert code == 42 and text.strip() == sys.executable


def test_a_mount_is_found_by_relative_and_absolute_paths_and_by_its_bucket(started):
    pod = started('bash', '-c', 'cat data/*.txt; cat /image/data/*.txt; echo $FROM',
                  volumes=[BUCKET], mounts=[{'name': 'data', 'mountPath': '/image/data'}],
                  FROM='data=gs://b/sets/x')
    code, text = ended(pod)
    assert code == 0 and text.startswith(2 * 'data/three.txt')
    assert text.strip().endswith('/pod0/image/data') and 'gs://' not in text


def test_without_its_mount_a_path_leads_nowhere(started):
    code, text = ended(started('bash', '-c', 'cat data/three.txt', volumes=[BUCKET]))
    assert code == 1 and 'No such file' in text


@pytest.mark.parametrize(('source', 'path', 'message'), [
    ({'hostPath': {'path': '/etc'}}, '/image/data', 'a rehearsal has no hostPath'),
    ({'csi': {'driver': 'x'}}, '/image/elsewhere', 'no folder elsewhere here'),
    ({'emptyDir': {}}, '/image/experiments/sets/x', 'lies in what the image')])
def test_a_volume_that_nothing_stands_for_is_named(started, folder, source, path, message):
    with pytest.raises(ValueError, match=message):
        started('true', volumes=[volume(**source)], mounts=[{'name': 'data', 'mountPath': path}])
    assert [path.name for path in (folder / 'sets').iterdir()] == ['two.txt']


def test_nothing_is_linked_outside_the_root(started, folder):
    pod = started('true', volumes=[volume(emptyDir={})],
                  mounts=[{'name': 'data', 'mountPath': '/../../../escaped'}])
    assert (pod.root / 'escaped').is_symlink()
    assert not (folder / 'escaped').is_symlink()


WAIT = 'trap "exit 42" TERM; touch $PWD/began; while true; do sleep 0.05; done'


@pytest.mark.parametrize(('script', 'grace', 'code'), [
    (WAIT, 60, 42), (WAIT.replace('"exit 42"', '""'), 0.2, 137), (WAIT, 0, 137)])
def test_a_pod_has_its_grace_and_no_more(started, script, grace, code):
    pod = started('bash', '-c', script)
    wait_until((pod.root / 'image' / 'began').exists)
    pod.evict(grace)
    assert ended(pod)[0] == code and pod.poll().evicted


def test_what_a_container_has_started_ends_with_it(started):
    pod = started('bash', '-c', 'sleep 1000 & echo $!')
    code, text = ended(pod)
    assert code == 0

    def gone():
        try:
            with open(f'/proc/{int(text)}/stat') as file:
                return file.read().split()[2] == 'Z'
        except FileNotFoundError:
            return True
    wait_until(gone)


def test_a_signal_is_an_exit_code_as_kubernetes_shows_it(started):
    pod = started('bash', '-c', 'kill -SEGV $$')
    assert ended(pod)[0] == 128 + signal.SIGSEGV
    assert ended(started('no-such-program'))[0] == 128


@pytest.mark.parametrize(('line', 'words'), [
    ('', []), ('ENTRYPOINT ["python", "-m", "x"]', ['python', '-m', 'x']),
    ('ENTRYPOINT python -m x', ['/bin/sh', '-c', 'python -m x'])])
def test_an_image_has_the_entrypoint_that_docker_reads(folder, line, words):
    (folder / 'launch/Dockerfile').write_text(f'{DOCKERFILE}{line}\n')
    assert Image().entrypoint == words


def test_an_image_that_copies_what_is_not_here_is_refused(folder):
    (folder / 'launch/Dockerfile').write_text('FROM x\nCOPY nothing nothing\n')
    with pytest.raises(ValueError, match='copies nothing, and there is none here'):
        Image()
    (folder / 'launch/Dockerfile').write_text('FROM x\nCOPY --from=y a b\n')
    with pytest.raises(ValueError, match='reads COPY SOURCE'):
        Image()

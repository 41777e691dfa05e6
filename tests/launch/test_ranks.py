"""Which process of a slice this is: what JAX itself finds from what a machine or pod is told."""
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from jax._src.clusters import cloud_tpu_cluster

HOSTS = ('job-1a2b', 'job-9z8y')


@pytest.fixture
def told(monkeypatch):
    """A function that sets what a machine of a group reads from its metadata."""
    values = {}

    class Metadata(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            name = self.path.rpartition('/')[2]
            data = values.get(name, '').encode()
            self.send_response(200 if name in values else 404)
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)
    server = ThreadingHTTPServer(('127.0.0.1', 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('GCE_METADATA_IP', f'127.0.0.1:{server.server_port}')
    for name in ('TPU_SKIP_MDS_QUERY', 'MEGASCALE_NUM_SLICES', 'MEGASCALE_SLICE_ID'):
        monkeypatch.delenv(name, raising=False)
    yield values.update
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize('worker', [0, 1])
def test_machines_of_a_group_find_each_other(told, monkeypatch, worker):
    # Compute Engine names machines where the Cloud TPU API gave name, number and address.
    monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
    told({'agent-worker-number': str(worker), 'worker-network-endpoints': ','.join(HOSTS),
          'tpu-env': f"TPU_WORKER_ID: '{worker}'\nTOPOLOGY: '2x4'\n"})
    cluster = cloud_tpu_cluster.GceTpuCluster
    assert cluster.is_env_present()
    assert (cluster.get_process_count(), cluster.get_process_id()) == (2, worker)
    assert cluster._get_worker_list_in_slice() == list(HOSTS)


@pytest.mark.parametrize('rank', range(4))
def test_two_containers_of_a_machine_are_two_processes(told, monkeypatch, rank):
    monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
    monkeypatch.setenv('TPU_WORKER_ID', str(rank))
    monkeypatch.setenv('TPU_PROCESS_ADDRESSES', ','.join(
        f'{host}:{port}' for host in HOSTS for port in (8471, 8472)))
    told({'tpu-env': ''})
    cluster = cloud_tpu_cluster.GkeTpuCluster
    assert cluster.is_env_present()
    assert (cluster.get_process_count(), cluster.get_process_id()) == (4, rank)

"""Queued resources through the real gcloud, against an API of this process."""
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial

import pytest
from waiting import LIMIT, wait_until

from downscale.launch import state, supervise
from downscale.launch.backends import gcloud, tpuvm
from downscale.launch.spec import Spec
from downscale.launch.watch import Policy
from downscale.runtime.files import write_json

needs_gcloud = pytest.mark.skipif(
    not shutil.which('gcloud'), reason='NOT TESTED: gcloud is missing, so the TPU VM route is not')


def spec_of(folder, topology='v5e:4x4', **fields):
    return Spec(sweep='My Sweep', cell='w64d2-s0', part='train', config='x.py', overrides=(),
                experiment='h', tasks=(), needs=(), steps=1, topology=topology, image=None,
                commit='none', run=str(folder / 'run'), **fields)


def backend_of(folder, zones=('z0', 'z1')):
    script = folder / 'startup.sh'
    script.write_text('#!/bin/bash\n')
    return tpuvm.TpuvmBackend(tpuvm.QueuedOptions(zones=zones, script=str(script), valid_for='6h'))


def finish(spec):
    write_json(state.folder_of(spec.run, spec) / 'DONE.json', {'spec': spec.hash})


def test_a_command_names_slices_and_refuses_what_the_tpu_api_lacks(tmp_path):
    options = tpuvm.QueuedOptions(zones=('z0',), script='s.sh', kind='reserved', internal_ips=True)
    spec = spec_of(tmp_path, '2xv5p:2x2x2')
    argv = tpuvm.create_command(spec, options, 'z0')
    assert {'--node-count=2', f'--node-prefix={spec.name}', '--accelerator-type=v5p-16',
            '--reserved', '--internal-ips', '--runtime-version=v2-alpha-tpuv5'} <= set(argv)
    assert not [word for word in argv if 'downscale-mounts' in word]
    mounted = dataclasses.replace(options, cache_gib=3, mounts=('data=gs://bucket/x',
                                                                'models=gs://other'))
    metadata, = (word for word in tpuvm.create_command(spec, mounted, 'z0')
                 if word.startswith('--metadata='))
    assert metadata.endswith(',downscale-mounts=data=gs://bucket/x models=gs://other,'
                             'downscale-cache-gib=3')
    with pytest.raises(ValueError, match='tpu7x is not in the Cloud TPU API'):
        tpuvm.create_command(spec_of(tmp_path, 'tpu7x:2x2x1'), options, 'z0')


@needs_gcloud
def test_submitting_twice_asks_once_and_cancelling_leaves_nothing(api, tmp_path):
    backend, spec = backend_of(tmp_path), spec_of(tmp_path)
    step = partial(
        supervise.step, backend, [spec], Policy(max_parallel=1, zones=('z0', 'z1')), [].append
    )
    step()
    step()
    assert [call[1:3] for call in api.made()] == [('z0', spec.name)]
    backend.create(spec, 'z0')  # as one that had not yet seen it would
    assert len(api.resources) == 1
    value, = api.resources.values()
    node, = value['tpu']['nodeSpec']
    assert node['node']['acceleratorType'] == 'v5litepod-16' and 'spot' in value
    assert node['node']['metadata']['startup-script'] == '#!/bin/bash\n'
    assert node['node']['labels'] == gcloud.labels(spec)
    node['node']['labels']['downscale-spec'] = 'other'
    with pytest.raises(ValueError, match='is there for spec other'):
        backend.create(spec, 'z0')
    node['node']['labels']['downscale-spec'] = spec.hash
    state.cancel(spec, time.time())
    step()
    assert not api.resources
    step()
    assert len(api.made()) == 3  # two of them refused
    assert 'force' in api.deleted()[0][3]


@needs_gcloud
@pytest.mark.parametrize('name', ['a,b', 'a,b|c;d', "it's $(x) & 'y'", 'ü=^,^', 'x~,~y'])
def test_whatever_a_folder_is_called_gcloud_passes_it_on(api, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    spec = dataclasses.replace(spec_of(folder), cell='w32d2-s0-language0.001', sweep='Ünï, é')
    backend_of(folder).create(spec, 'z0')
    value, = api.resources.values()
    node = value['tpu']['nodeSpec'][0]['node']
    assert node['metadata']['downscale-spec'] == str(state.folder_of(spec.run, spec) / 'spec.json')
    assert node['metadata']['startup-script'] == '#!/bin/bash\n'
    assert node['labels'] == gcloud.labels(spec)
    assert all(re.fullmatch('[a-z0-9_-]{1,63}', part) for part in node['labels'].values())


def test_a_folder_that_gcloud_could_not_part_is_refused(tmp_path):
    spec = dataclasses.replace(spec_of(tmp_path), run=gcloud.SEPARATORS)
    with pytest.raises(ValueError, match='give --run another name') as error:
        tpuvm.create_command(spec, tpuvm.QueuedOptions(zones=('z0',), script='s.sh'), 'z0')
    assert '\n' not in str(error.value)


@needs_gcloud
def test_errors_of_gcloud_are_one_line(api, tmp_path):
    with pytest.raises(RuntimeError) as error:
        gcloud.call(tpuvm.describe_command('nothing', 'z0'))
    assert 'NOT_FOUND' in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(RuntimeError, match='unrecognized arguments'):
        gcloud.call([*tpuvm.list_command('z0'), '--wrong'])
    backend_of(tmp_path).delete('nothing', 'z0')


@needs_gcloud
def test_the_loop_moves_on_from_suspension_and_tells_of_quota(api, tmp_path):
    spec, said = spec_of(tmp_path), []
    fates = iter(['refused', 'FAILED', 'SUSPENDED', 'ACTIVE'])

    class Fated(tpuvm.TpuvmBackend):
        def create(self, spec, zone):
            fate = next(fates)
            api.refuse = 'Quota A exceeded' if fate == 'refused' else None
            super().create(spec, zone)
            api.set(spec.name, fate, 'Quota B exceeded' if fate == 'FAILED' else '')
            if fate == 'ACTIVE':
                finish(spec)
    supervise.run(Fated(backend_of(tmp_path).options), [spec],
                  Policy(max_parallel=1, base=0.1, zones=('z0', 'z1'), grace=0), said.append)
    assert not api.resources
    assert [call[1] for call in api.made()] == ['z0', 'z1', 'z0', 'z1']
    told = [line.partition(': ')[2] for line in said if 'again at' not in line]
    assert 'Quota A exceeded' in told.pop(1)
    assert told == ['started in z0', 'started in z1', 'failed: Quota B exceeded', 'started in z0',
                    'suspended', 'started in z1', 'done']


WATCHER = '''
import os, signal, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
from pathlib import Path
import test_queued
from downscale.launch import supervise
from downscale.launch.backends import gcloud, tpuvm
from downscale.launch.watch import Policy
tpuvm.TpuvmBackend.poll = 0.1
if sys.argv[3] == 'die':
    delete = tpuvm.TpuvmBackend.delete
    def deadly(self, name, zone):
        delete(self, name, zone)
        os.kill(os.getpid(), signal.SIGKILL)
    tpuvm.TpuvmBackend.delete = deadly
folder = Path(sys.argv[2])
supervise.run(test_queued.backend_of(folder, ('z0',)), [test_queued.spec_of(folder)],
              Policy(max_parallel=1, base=0.1, zones=('z0',), grace=0))
'''


@needs_gcloud
def test_a_watcher_killed_between_delete_and_create_goes_on_when_restarted(api, tmp_path):
    spec = spec_of(tmp_path)
    supervise.step(backend_of(tmp_path, ('z0',)), [spec], Policy(max_parallel=1, zones=('z0',)))
    api.set(spec.name, 'FAILED', 'no capacity')
    argv = [sys.executable, '-c', WATCHER, os.pathsep.join(sys.path), str(tmp_path)]
    assert subprocess.run([*argv, 'die'], timeout=LIMIT).returncode == -9
    assert not api.resources
    watcher = subprocess.Popen([*argv, 'live'])
    try:
        wait_until(lambda: api.resources)
        finish(spec)
        assert watcher.wait(LIMIT) == 0
    finally:
        watcher.kill()
    assert not api.resources and len(api.made()) == 2

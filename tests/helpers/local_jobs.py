"""A small study whose processes can be harmed at a given step, as jobs of this machine."""
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from waiting import LIMIT

from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.launch import state
from downscale.launch.backends import local
from downscale.launch.spec import Spec, processes_of
from downscale.runtime.files import place
from downscale.train import checkpoint

# The study file is run in every process of a job. In the first attempt, process RANK of HARM does
# something to itself when it has read the batch of a step, while it saves one, or before all.
STUDY = '''
import os, signal
from pathlib import Path
from ml_collections import ConfigDict

def get_config(arg=''):
    rates = dict(language=3e-3, tower=3e-3)
    common = dict(batch=4, length=176, rates=rates, steps=40, save_every=10)
    return ConfigDict(dict(
        study='tiny', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=1, W=32, H=2, F=64, patch=20, image=40),
        world=dict(grid=2, min_objects=2, max_objects=3, n_facts=8),
        data=dict(train=24, validation=4, test=6), evaluation=dict(scenes=4, pictures=2),
        stages={name: dict(tiles=0, **common) for name in ('text', *filter(None, [arg]))}))

def sweep(arg=''):
    return [dict(size=size, seed=0) for size in ('w64d1', 'w64d2')]

def harm(rank, what, step, once):
    from downscale.train import loop
    from jax._src.distributed import global_state
    if Path(once).exists() or os.environ.get('JAX_PROCESS_ID', '0') != rank:
        return
    def act():
        Path(once).touch()
        number = {'commit': signal.SIGKILL, 'early': signal.SIGTERM}.get(what)
        os.kill(os.getpid(), number or getattr(signal, what))
        if global_state.client and what in ('SIGTERM', 'early'):
            global_state.client.blocking_key_value_get('RECEIVED_PREEMPTION_NOTICE', 60000)
    if what == 'early':
        return act()
    if what == 'commit':  # a step is complete once its folder is renamed, in a bucket once it has
        rename = os.rename                     # a file that says so
        def dying_rename(source, target, **options):
            return act() if str(target).endswith(f'checkpoints/{step}') else rename(
                source, target, **options)
        os.rename = dying_rename
        from etils.epath import gpath
        write = gpath._GPath.write_text
        def dying_write(path, *text, **options):
            return act() if str(path).endswith(f'/{step}/commit_success.txt') else write(
                path, *text, **options)
        gpath._GPath.write_text = dying_write
        return
    place, save, calls, managers = loop.on_devices, loop._save, [], []
    def saving(manager, *rest):
        managers.append(manager)
        save(manager, *rest)
    def on_devices(*args):
        calls.append(1)
        if len(calls) == int(step) + 1:
            managers[-1].wait_until_finished()  # what came before is safe, and the steps are quick
            act()
        return place(*args)
    loop._save = saving
    loop.on_devices = on_devices

if os.environ.get('HARM'):
    harm(*os.environ['HARM'].split(','))
'''
SILENCE = {'DOWNSCALE_HEARTBEAT_SECONDS': '8', 'DOWNSCALE_INITIALIZATION_SECONDS': '60'}


def spec_of(study_file, run, topology='cpu:2x1', overrides=(), which=0):
    study_config, sweep = file.load_study(study_file, overrides)
    with study_config.unlocked():
        del study_config['platform']
    cell = cells_of(study_config, sweep)[which]
    return Spec(sweep='tiny', cell=cell.name, part='train', config=str(study_file),
                overrides=tuple(overrides), experiment=cell.hash, tasks=(f'{cell.name}/text',),
                needs=(), steps=40, topology=topology, image=None, commit='none', run=str(run))


def attempt(spec, harm=None, once=''):
    """The exit code of one attempt, disturbed as `harm` says unless the file `once` is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HARM', f'{harm},{once}' if harm else '')
        group = local.Group(spec)
        try:
            return group.wait(LIMIT)
        finally:
            group.signal(signal.SIGKILL)


def logs(spec, number=0):
    """What each process said, without the few lines of the libraries below JAX."""
    found = []
    for rank in range(processes_of(spec.topology)[0]):
        lines = local.log_of(spec, number, rank).read_text().splitlines()
        assert len(lines) < 16, lines  # else there are pages, of JAX or of Python
        found.append([line for line in lines if line.startswith(('error: ', 'stopped by '))])
    return found


def told(spec):
    """(exit, first step, last step, steps lost) of every attempt."""
    return [tuple(row[name] for name in ('exit', 'first_step', 'last_step', 'steps_lost'))
            for row in state.attempts(state.folder_of(spec.run, spec))]


def run_of(run):
    return place(run) / 'cells' / 'w64d1-s0' / 'text'


def assert_same_run(one, other):
    """The same rows, and the same bits of parameters, optimiser and data position."""
    assert (run_of(one) / 'metrics.jsonl').read_text() == (
        run_of(other) / 'metrics.jsonl').read_text()
    steps = [checkpoint.latest(str(run_of(run))) for run in (one, other)]
    for part in ('data', 'meta'):
        (text, again) = [(step / part / 'metadata').read_text() for step in steps]
        assert text == again
    for part in ('params', 'train'):
        leaves, again = (leaves_of(step / part) for step in steps)
        assert leaves.keys() == again.keys()
        for name, leaf in leaves.items():
            assert leaf.tobytes() == again[name].tobytes(), name


def leaves_of(path):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                            checkpointer.metadata(path).item_metadata.tree)
        found = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=tree))
    return {jax.tree_util.keystr(name): leaf
            for name, leaf in jax.tree_util.tree_leaves_with_path(found)}

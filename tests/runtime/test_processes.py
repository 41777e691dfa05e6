"""Two real processes, joined over gloo: they train what one trains, and they end together."""
import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from compiling import xla_flags
from roots import ROOT
from waiting import LIMIT

from downscale.commands import main
from downscale.config import MeshSize
from downscale.data.pipeline import Share
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.policy import training
from downscale.runtime import processes
from downscale.sharding import Rules, mesh
from downscale.stages.inputs import prepare
from downscale.train import lazy_leaves, loop

STUDY = '''
from ml_collections import ConfigDict

def get_config(arg=''):
    rates = dict(language=3e-3, tower=3e-3)
    common = dict(batch=8, length=112, rates=rates, steps=6, save_every=2)
    return ConfigDict(dict(
        study='tiny', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=1, W=32, H=2, F=64, patch=20, image=40),
        world=dict(grid=2, min_objects=2, max_objects=3, n_facts=8),
        data=dict(train=24, validation=4, test=6, similarity_share=0.0),
        optimizer=dict(eps=1e-5),  # with less, Adam makes steps of what is rounding alone
        stages=dict(
            text=dict(tiles=0, **common), tower=dict(tiles=1, **common),
            perceive=dict(tiles=1, parents={}, warmup=0.0, trainable=('language',),
                          **common | dict(batch=32, length=64, rates=dict(language=3e-3)),
                          policy=dict(group=8, write=6, answer=2, kl=0.1, reasoners=('text',))))))

def sweep(arg=''):
    return [dict(size='w64d1', seed=0)]
'''
STAGES = {'text': 'w64d1-s0', 'tower': 'tower-s0', 'perceive': 'w64d1-s0'}
# One process of two raises in its third step, while the other waits for its part of the sum.
BROKEN = '''
import sys
from downscale.commands import main
from downscale.train import loop
place, calls = loop.on_devices, []
def broken(*args):
    calls.append(1)
    if len(calls) == 3:
        raise ValueError('a damaged picture')
    return place(*args)
if {process} == {index}:
    loop.on_devices = broken
sys.exit(main.main(sys.argv[1:]))
'''


@pytest.fixture(scope='module')
def study_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('study') / 'tiny.py'
    path.write_text(STUDY)
    return path


@pytest.fixture(scope='module')
def cells(study_file):
    study_config, sweep = file.load_study(study_file, ())
    with study_config.unlocked():
        del study_config['platform']
    return {cell.name: cell for cell in cells_of(study_config, sweep)}


@pytest.fixture(scope='module')
def alone(tmp_path_factory, cells):
    """A study whose stages this process has trained on its four devices."""
    folder = tmp_path_factory.mktemp('alone')
    prepare(folder, cells['w64d1-s0'])
    for stage, cell in STAGES.items():
        training.train_stage(folder, cells[cell], stage)
    return folder


@pytest.fixture(scope='module')
def together(tmp_path_factory, study_file):
    """A study whose stages two processes have trained on two devices each, and what they said."""
    folder = tmp_path_factory.mktemp('together')
    return folder, {stage: both(study_file, folder, stage) for stage in STAGES}


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def both(study_file, folder, stage, *more, code=None):
    """[(exit code, stdout, stderr)] of two processes that run `downscale train` together."""
    port, found = free_port(), []
    for index in range(2):
        program = ['-c', code.format(process=index, index='{index}')] if code else [
            '-m', 'downscale.commands.main']
        environment = {
            **os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
            'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(index),
            'XLA_FLAGS': xla_flags(2),
}
        found.append(subprocess.Popen(
            [sys.executable, *program, 'train', str(study_file), '--out', str(folder), '--cell',
             STAGES[stage], '--stage', stage, '--quiet', *more], cwd=ROOT, env=environment,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        said = [process.communicate(timeout=LIMIT) for process in found]
    finally:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return [(process.returncode, *texts) for process, texts in zip(found, said)]


def lines(text):
    """The lines of a process without the first, which names it, and those of gloo, whose threads
    tear one another's."""
    return [line for line in text.splitlines()
            if not any(word in line for word in ('Gloo', 'peer ranks', ', coordinator 127.'))]


def run_of(study, stage):
    return Path(study) / 'cells' / STAGES[stage] / stage


def rows(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def assert_same_run(one, other):
    """Same data in the same order, same losses and parameters, and each step written once."""
    one_rows, other_rows = rows(one), rows(other)
    assert [row['step'] for row in one_rows] == [row['step'] for row in other_rows]
    for a, b in zip(one_rows, other_rows):
        assert (a['tokens'], a['weight']) == (b['tokens'], b['weight'])
        np.testing.assert_allclose(a['loss'], b['loss'], rtol=1e-5)
        np.testing.assert_allclose(a['grad_norm'], b['grad_norm'], rtol=1e-5)
    leaves = jax.tree_util.tree_leaves_with_path(lazy_leaves.open_leaves(one))
    for (path, a), b in zip(leaves, jax.tree.leaves(lazy_leaves.open_leaves(other)), strict=True):
        name = jax.tree_util.keystr(path)
        if 'k_bias' not in name:  # a bias of all keys cancels: its gradient is rounding alone
            a, b = a.read(), b.read()
            assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max(), name


@pytest.mark.slow
@pytest.mark.parametrize('stage', STAGES)
def test_two_processes_train_what_one_trains(alone, together, stage):
    """The tower stage has a batch and a loss of its own; what `perceive` writes is each its own."""
    (first, _), (second, _) = [(code, err) for code, _, err in together[1][stage]]
    assert (first, second) == (0, 0), together[1][stage]
    assert_same_run(run_of(alone, stage), run_of(together[0], stage))


@pytest.mark.slow
def test_only_process_0_speaks_and_writes(alone, together):
    folder, said = together
    for stage, ((_, first, _), (_, second, _)) in said.items():
        *attention, last = lines(first)
        assert (last, lines(second)) == (f'checkpoints: {run_of(folder, stage)}', [])
        assert all(line.startswith('attention: xla ') for line in attention)
        names = sorted(path.name for path in run_of(folder, stage).iterdir())
        assert names == sorted(path.name for path in run_of(alone, stage).iterdir())
        assert json.loads((run_of(folder, stage) / 'DONE.json').read_text())['steps'] == 6


def unfinished(study, to, stage):
    """A copy of a finished study whose stage ended with step 4."""
    shutil.copytree(study, to)
    shutil.rmtree(run_of(to, stage) / 'checkpoints' / '6')
    (run_of(to, stage) / 'DONE.json').unlink()
    return to


@pytest.mark.slow
def test_two_processes_continue_on_another_mesh_what_one_began(alone, study_file, tmp_path):
    folder = unfinished(alone, tmp_path / 'study', 'text')
    said = both(study_file, folder, 'text', '--set', 'mesh.data=1', '--set', 'mesh.tensor=2',
                '--set', 'mesh.fsdp=2')
    assert [code for code, *_ in said] == [0, 0], said
    assert_same_run(run_of(alone, 'text'), run_of(folder, 'text'))


@pytest.mark.slow
def test_one_process_continues_on_another_mesh_what_two_began(alone, together, cells, tmp_path):
    folder = unfinished(together[0], tmp_path / 'study', 'text')
    cell = dataclasses.replace(cells['w64d1-s0'], mesh=MeshSize(2, 2))
    seen = []
    training.train_stage(folder, cell, 'text', lambda step, row: seen.append(step))
    assert seen == [5, 6]
    assert_same_run(run_of(alone, 'text'), run_of(folder, 'text'))


def errors(said):
    return [(code, lines(err)) for code, _, err in said]


@pytest.mark.slow
@pytest.mark.parametrize('index', [0, 1])
def test_an_error_in_one_process_ends_both_with_a_line_each(alone, study_file, tmp_path, index):
    folder = tmp_path / 'study'
    shutil.copytree(alone, folder)
    shutil.rmtree(run_of(folder, 'text'))
    found = errors(both(study_file, folder, 'text',
                        code=BROKEN.replace('{index}', str(index))))
    assert found[index] == (64, ['error: a damaged picture'])
    assert found[1 - index] == (64, [f'error: process {index}: a damaged picture'])
    assert not (run_of(folder, 'text') / 'DONE.json').exists()


@pytest.mark.slow
def test_a_folder_in_use_is_refused_to_all_processes(alone, study_file, tmp_path):
    folder = unfinished(alone, tmp_path / 'study', 'text')
    with loop.only_process(run_of(folder, 'text')):
        found = errors(both(study_file, folder, 'text'))
    assert [code for code, _ in found] == [1, 1]
    (first,), (second,) = (lines for _, lines in found)
    assert 'in use by another process' in first and 'error: process 0: ' in second


# --- without other processes ------------------------------------------------------------------

def test_a_lone_process_joins_nobody(monkeypatch):
    for name in processes.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with processes.joined():
        assert not jax.distributed.is_initialized()
        assert processes.first() and processes.once(lambda: [1]) == [1]
        processes.wait()


@pytest.mark.parametrize('values, message', [
    (('h:1', '2', ''), 'JAX_NUM_PROCESSES without JAX_PROCESS_ID: give all three'),
    (('', '', '1'), 'JAX_PROCESS_ID without JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES'),
    (('host', '2', '0'), "'host' must be HOST:PORT"), (('h:1', '2', '2'), 'number from 0 to'),
    (('h:1', '2', '-1'), 'number from 0 to'), (('h:1', 'two', '0'), 'number from 0 to'),
    (('h:1', '4', '0', '3'), 'MEGASCALE_NUM_SLICES=3 must divide JAX_NUM_PROCESSES=4'),
    (('h:1', '4', '0', 'x'), 'MEGASCALE_NUM_SLICES=x must divide')])
def test_an_environment_that_makes_no_sense_is_refused(monkeypatch, values, message):
    for name, value in zip((*processes.VARIABLES, processes.SLICES), values):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message) as error, processes.joined():
        raise AssertionError('joined')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('index', [0, 1])
def test_a_process_that_waits_in_vain_for_the_others_says_so(index):
    environment = {**os.environ, 'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{free_port()}',
                   'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(index),
                   'DOWNSCALE_INITIALIZATION_SECONDS': '2'}
    done = subprocess.run(
        [sys.executable, '-c', 'from downscale.runtime import processes\n'
         'with processes.joined(): pass'],
        cwd=ROOT, env=environment, text=True, capture_output=True, timeout=LIMIT, check=False)
    assert done.returncode == 1
    assert [line[:41] for line in done.stderr.splitlines()] == [
        'error: not all processes have come togeth']


def test_a_study_refuses_several_processes(monkeypatch, capsys, study_file, tmp_path):
    for name, value in zip(processes.VARIABLES, ('h:1', '2', '0')):
        monkeypatch.setenv(name, value)
    assert main.main(['study', str(study_file), '--out', str(tmp_path / 'run')]) == 1
    assert capsys.readouterr().err.startswith('error: only `downscale train` and `downscale eval')


@pytest.mark.parametrize('setting, message', [
    ('mesh.fsdp=3', 'does not fit 4 devices; the sizes must multiply to 4'),
    ('stages.text.batch=6', 'stage text: global batch 6 does not divide over 4 groups')])
def test_what_does_not_fit_the_devices_is_refused_before_data_is_built(
        capsys, study_file, tmp_path, setting, message):
    where = [str(study_file), '--out', str(tmp_path / 'run'), '--set', setting]
    for command, code in ((['train', *where, '--cell', 'w64d1-s0', '--stage', 'text'], 64),
                          (['study', *where], 1)):
        assert main.main(command) == code
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
        assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('sizes, ways', [((4, 1, 1), 4), ((1, 2, 2), 2), ((1, 1, 4), 1)])
def test_rows_are_shared_out_by_the_axes_that_split_a_batch(sizes, ways):
    assert loop.share(mesh(*sizes), Rules()) == Share(ways, tuple(range(ways)))

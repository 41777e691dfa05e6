"""Forks: what leaves a trunk ends as if trained alone, and is killed without a trace."""
import dataclasses
import shutil

import jax
import numpy as np
import pytest
from roots import ROOT

from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.runtime.files import write_bytes
from downscale.sharding import mesh
from downscale.stages import forks, training
from downscale.stages.folders import folder_of
from downscale.stages.inputs import prepare
from downscale.stages.loading import load
from downscale.study.tasks import tasks_of
from downscale.train import checkpoint

FORKED = ('stages.text.forks=(5, 10)', 'stages.text.decay=0.4', 'stages.text.steps=20',
          'stages.text.save_every=2', 'stages.text.batch=8', 'stages.text.turns=3',
          'data.train=8', 'data.validation=1', 'data.test=1')


def cells(*overrides, sweep=({'size': 'w32d2', 'seed': 0},)):
    study_config, _ = file.load_study(str(ROOT / 'tests/data/three_sizes.py'), overrides)
    with study_config.unlocked():
        del study_config['platform']
    return {cell.name: cell for cell in cells_of(study_config, sweep)}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """A folder where the trunk is trained, and its cells."""
    folder, made = tmp_path_factory.mktemp('forks'), cells(*FORKED)
    prepare(folder, made['w32d2-s0'])
    training.train_stage(folder, made['w32d2-s0'], 'text')
    return folder, made


def params(folder):
    return {jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(load(folder)[1])}


def assert_alike(folder, other):
    """Weights and curves are the same, bit by bit."""
    one, two = params(folder), params(other)
    assert one.keys() == two.keys() and len(one) > 5
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, two[name], err_msg=name)
    assert (folder / 'metrics.jsonl').read_bytes() == (other / 'metrics.jsonl').read_bytes()


def alone(fork):
    """The cell of a fork as a study would have it that trains it from the start."""
    stage = dataclasses.replace(fork.stage('text'), trunk='')
    return dataclasses.replace(fork, name='alone', stages=(stage,))


@pytest.mark.parametrize('together', [False, True])
def test_a_fork_ends_as_a_run_of_its_steps_from_the_start(study, tmp_path, monkeypatch, together):
    folder, made = study
    fork = made['w32d2-s0-steps10']
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    if together:
        # Cells are stacked on one device: the trunk as well, for its bits depend on the mesh.
        monkeypatch.setattr(training, 'one_device', lambda cell: mesh(devices=jax.devices()[:1]))
        trunk = made['w32d2-s0']
        shutil.rmtree(folder_of(tmp_path, trunk, 'text'))
        for cell in (trunk, fork, alone(fork)):
            assert training.train_together(tmp_path, [cell], 'text') == {}
    else:
        training.train_stage(tmp_path, fork, 'text')
        training.train_stage(tmp_path, alone(fork), 'text')
    assert_alike(folder_of(tmp_path, fork, 'text'), folder_of(tmp_path, alone(fork), 'text'))
    timed = (folder_of(tmp_path, fork, 'text') / 'timing.jsonl').read_text().splitlines()
    assert len(timed) == 1  # of step 10: the steps of the trunk were not taken again


@pytest.mark.parametrize('moment', ['nothing copied', 'half copied', 'some steps taken'])
def test_a_fork_that_was_killed_goes_on_to_the_same_end(study, tmp_path, monkeypatch, moment):
    folder, made = study
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    fork = made['w32d2-s0-steps10']
    own = folder_of(tmp_path, fork, 'text')
    if moment == 'half copied':
        written = []

        def killed(path, data):
            if len(written) == 4:
                raise KeyboardInterrupt
            written.append(path)
            write_bytes(path, data)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(forks, 'write_bytes', killed)
            training.train_stage(tmp_path, fork, 'text')
        assert written[-1].is_file() and not list(checkpoint.steps(own))
    if moment == 'some steps taken':
        def stopped(step, row):
            if step == 9:
                raise KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt):
            training.train_stage(tmp_path, fork, 'text', stopped)
        assert list(checkpoint.steps(own)) == [6, 8]
    training.train_stage(tmp_path, fork, 'text')
    training.train_stage(tmp_path, alone(fork), 'text')
    assert_alike(own, folder_of(tmp_path, alone(fork), 'text'))


def test_a_trunk_keeps_the_checkpoints_that_its_forks_need_and_no_other_but_the_last(study):
    folder, made = study
    # 5 steps of which 2 fall leave at 3, 10 at 6; every second step is saved on the way.
    assert list(checkpoint.steps(folder_of(folder, made['w32d2-s0'], 'text'))) == [3, 6, 18, 20]


def test_a_trunk_has_a_constant_rate_where_forks_leave_it(study):
    stage = study[1]['w32d2-s0'].stage('text')
    fork = study[1]['w32d2-s0-steps10'].stage('text')
    rate, own = stage.schedule.factor, fork.schedule.factor
    assert [rate(step) for step in range(6)] == [own(step) for step in range(6)] == [1] * 6
    assert [rate(step) for step in range(12)] == [1] * 12 and rate(12) == 1 > rate(13)
    falls = [own(step) for step in range(6, 10)]
    assert np.diff(falls) == pytest.approx([-0.9 / 4] * 3) and falls[0] == 1


def test_a_trunk_without_the_checkpoint_of_a_fork_is_named(study, tmp_path):
    folder, made = study
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    step = folder_of(tmp_path, made['w32d2-s0'], 'text') / 'checkpoints' / '6'
    largest = max((path for path in step.rglob('*') if path.is_file()),
                  key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r'checkpoints/6 is damaged: .* bytes'):
        training.train_stage(tmp_path, made['w32d2-s0-steps10'], 'text')
    shutil.rmtree(step)
    with pytest.raises(FileNotFoundError, match='no complete checkpoint 6 in .*w32d2-s0/text'):
        training.train_stage(tmp_path, made['w32d2-s0-steps10'], 'text')


def test_a_fork_has_what_starts_from_its_stage_and_takes_the_rest_from_its_trunk():
    made = cells('stages.align.forks=[5]', 'stages.align.decay=0.2')
    fork = made['w32d2-s0-steps5']
    assert [stage.name for stage in fork.stages] == ['align', 'instruct', 'caption', 'extract']
    assert fork.stage('align').parents == {'language': '/w32d2-s0/text', 'tower': 'tower/tower'}
    assert set(fork.stage('instruct').parents.values()) == {'align'}
    needs = {task.name: task.needs for task in tasks_of(tuple(made.values()))}
    assert needs['w32d2-s0-steps5/align'] == ('w32d2-s0/text', 'tower-s0/tower', 'w32d2-s0/align')
    assert needs['w32d2-s0-steps5/instruct'] == ('w32d2-s0-steps5/align',)
    assert 'evaluate caption w32d2-s0-steps5' in needs['evaluate reason w32d2-s0']
    assert 'evaluate reason w32d2-s0-steps5' not in needs  # nothing of it has changed


@pytest.mark.parametrize('overrides, message', [
    (['forks=[5]'], r'forks leave a constant rate; give `decay`'),
    (['forks=[20]', 'decay=.2', 'steps=20'], 'a fork of 20 steps does not end before the stage'),
    (['forks=[1]', 'decay=.2', 'steps=20', 'warmup=.5'],
     'the fork of 1 steps leaves at step 0, while the rate climbs until 10; lower `warmup`'),
    (['forks=[5, 5]', 'decay=.2'], 'forks has 5 2 times; keep one'),
    (['forks=[11, 12]', 'decay=.95', 'warmup=0.'],
     r'two of the forks \[11, 12\] leave at one step; keep one'),
    (['forks=[0]', 'decay=.2'], r'forks\[0\] = 0 must be at least 1'),
    (['forks=5', 'decay=.2'], 'forks must be a list, not 5'),
    (['decay=1.0'], 'decay = 1.0 must be'),
    (['decay=.9', 'warmup=.5'], 'the rate climbs in 60 and falls behind 12'),
    (["trunk='w32d2-s0'"], 'stages.text.trunk is for the cells that `forks` makes'),
    (['fork=[5]'], "unknown key 'fork'; did you mean 'forks'"),
])
def test_forks_that_cannot_be_are_refused_in_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        cells(*[f'stages.text.{override}' for override in overrides])
    assert '\n' not in str(error.value) and len(str(error.value)) <= 300


def test_forks_of_two_stages_of_the_tower_or_beside_an_equal_cell_are_refused():
    forks = [f'stages.{name}.{key}' for name in ('text', 'align')
             for key in ('forks=[10]', 'decay=0.2')]
    with pytest.raises(ValueError, match='w32d2-s0: stages text and align have forks'):
        cells(*forks)
    with pytest.raises(ValueError, match=r'stages.tower.forks: all cells of a seed share'):
        cells('stages.tower.forks=[5]', 'stages.tower.decay=0.2')
    point = {'size': 'w32d2', 'seed': 0}
    with pytest.raises(ValueError, match='two cells would be called w32d2-s0-steps10: one is a'):
        cells(*forks[:2], sweep=[point, {**point, 'stages.align.steps': 10}])


def test_a_stage_without_forks_has_the_hash_that_it_had():
    plain = cells()['w32d2-s0']
    # As it was before there were forks: finished runs are found by it.
    assert plain.hash == '26278309798b' == cells('stages.text.forks=()')['w32d2-s0'].hash
    assert plain.hash != cells('stages.text.decay=0.2')['w32d2-s0'].hash

"""Cells in one program: each ends as it does alone, whatever happens to the others."""
import contextlib
import dataclasses
import json
import shutil
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
import small
from waiting import wait_until

from downscale import config
from downscale.config import Optimizer
from downscale.data.buckets import Shape
from downscale.runtime import exits
from downscale.schedule import Schedule
from downscale.sharding import mesh
from downscale.sizes import Parametrisation
from downscale.stage_config import Stage
from downscale.stages import start, training
from downscale.stages.inputs import prepare
from downscale.stages.models import model_of
from downscale.stages.start import start_params, start_shapes
from downscale.train import checkpoint, log, together
from downscale.train.run import StageRun

# Code that LLVM has not optimised rounds stacked products otherwise under jaxlib 0.12: 5e-7 of the
# largest gradient of a leaf, of which Adam made 6e-5 of the largest weight where a gradient was
# next to nothing. As users compile, gradients are equal to the bit there.
pytestmark = pytest.mark.usefixtures('optimised')

STEPS, EVERY = 6, 2
# Stacked products add in another order, and Adam divides what that rounds by small moments. Seen
# after six steps: 2e-7 of losses and norms, 5e-7 of the largest weight of a leaf.
LOSS, WEIGHT = 2e-6, 5e-6


def stage(rate=3e-3, **changes):
    return Stage(
        name='text',
        steps=STEPS,
        batch=8,
        length=176,
        tiles=0,
        rates={'language': rate},
        trainable=('language',),
        parents={},
        save_every=EVERY,
        **changes,
    )


def cell(number, seed, rate=3e-3, **changes):
    """A cell of width 32; `number` names it."""
    return config.Experiment(
        name=f'cell{number}',
        size='w32d1',
        seed=seed,
        language=small.language(),
        vision=small.VISION,
        world=small.WORLD,
        stages=(stage(rate),),
        **changes,
    )


CELLS = (cell(0, 0, 1e-3), cell(1, 0, 1e-2), cell(2, 1, 3e-3))
SHAPES = start_shapes(CELLS[0], CELLS[0].stage('text'))


@pytest.fixture
def study(tmp_path):
    """A study folder whose data and tokenizer are there."""
    return prepared(tmp_path / 'study')


def prepared(folder):
    return Path(shutil.copytree(made(), folder))


@cache
def made():
    folder = Path(small._folder.name) / 'together'
    prepare(folder, dataclasses.replace(CELLS[0], data=config.Data(train=24, validation=2, test=2)))
    return folder


def devices(count):
    return mesh(devices=jax.devices()[:count])


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    """The tests have four devices; stacks live on one."""
    monkeypatch.setattr(start, 'mesh', lambda *sizes: devices(1))


MUP = tuple(
    dataclasses.replace(
        one, parametrisation=Parametrisation(kind='mup', base_width=64, base_depth=2)
    )
    for one in CELLS[:2]
)


@cache
def alone(mup=False):
    """A study folder in which the cells were trained one after another."""
    folder = prepared(Path(small._folder.name) / f'alone{mup}')
    for one in MUP if mup else CELLS:
        training.train_stage(folder, one, 'text')
    return folder


def rows(folder, one):
    path = folder / 'cells' / one.name / 'text' / 'metrics.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder, one):
    """Names of what a cell has left, but for those that hold times."""
    top = folder / 'cells' / one.name / 'text'
    return {path.relative_to(top).as_posix() for path in top.rglob('*')
            if path.is_file() and 'tensorboard' not in path.parts and 'ocdbt' not in str(path)
            and '/d/' not in str(path)}


def weights(folder, one):
    tree = checkpoint.load_params(folder / 'cells' / one.name / 'text',
                                  start_shapes(one, one.stage('text')))
    return {jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_alike(folder, cells=CELLS, other=None):
    """The cells have left what they leave alone: data to the bit, numbers but for rounding."""
    other = other or alone()
    for one in cells:
        assert files(folder, one) == files(other, one)
        for mine, theirs in zip(rows(folder, one), rows(other, one), strict=True):
            exact = ('step', 'tokens', 'lr_factor', 'weight')
            assert [mine[key] for key in exact] == [theirs[key] for key in exact]
            for key in ('loss', 'grad_norm'):
                np.testing.assert_allclose(mine[key], theirs[key], rtol=LOSS, err_msg=key)
        found, wanted = weights(folder, one), weights(other, one)
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], rtol=0, err_msg=name,
                                       atol=WEIGHT * np.abs(wanted[name]).max())
        for name in (f'checkpoints/{STEPS}/data/metadata', 'DONE.json', 'experiment.json'):
            paths = [top / 'cells' / one.name / 'text' / name for top in (folder, other)]
            assert len({path.read_bytes() for path in paths}) == 1, name


def test_cells_that_are_trained_together_end_as_they_do_alone(study):
    seen = []
    assert training.train_together(study, CELLS, 'text', lambda one, step, row: seen.append(
        (one.name, step, row['loss']))) == {}
    assert_alike(study)
    assert [(name, step) for name, step, _ in seen] == [
        (one.name, step) for step in range(1, STEPS + 1) for one in CELLS]
    last = {name: loss for name, _, loss in seen}
    assert len(set(last.values())) == 3  # seeds and rates do make a difference
    before = {path: path.stat().st_mtime_ns for path in study.rglob('*') if path.is_file()}
    training.train_together(study, CELLS, 'text', lambda *row: 1 / 0)  # all are done
    assert before == {path: path.stat().st_mtime_ns for path in study.rglob('*') if path.is_file()}


def test_under_mup_each_cell_keeps_its_rates(study):
    training.train_together(study, MUP, 'text')
    assert_alike(study, MUP, alone(mup=True))
    plain, wide = rows(alone(), CELLS[1])[-1], rows(study, MUP[1])[-1]
    assert abs(plain['loss'] - wide['loss']) > 100 * LOSS


class Stop(Exception):
    """What a test stops a run with."""


def stopped_at(study, step, cells=CELLS):
    """Train `cells` together until `step` is logged, with what was due before it saved."""
    def report(one, done, row):
        if done == step and one is cells[-1]:
            for other in cells:
                saved = study / 'cells' / other.name / 'text' / 'checkpoints' / str(
                    (step - 1) // EVERY * EVERY)
                wait_until(saved.is_dir)
            raise Stop
    with pytest.raises(Stop):
        training.train_together(study, cells, 'text', report)


def test_stopped_cells_go_on_together_and_one_of_them_alone(study):
    stopped_at(study, 3)
    training.train_stage(study, CELLS[1], 'text')
    seen = []
    training.train_together(study, CELLS, 'text', lambda one, step, row: seen.append(
        (one.name, step)))
    assert seen == [(name, step) for step in range(EVERY + 1, STEPS + 1)
                    for name in ('cell0', 'cell2')]
    assert_alike(study)


def test_cells_at_different_steps_go_on_together(study):
    """One of two cells of the same seed is ahead: they share no batch any more."""
    def report(step, row):
        if step == 5:
            raise Stop
    with pytest.raises(Stop):
        training.train_stage(study, CELLS[0], 'text', report)
    seen = []
    training.train_together(study, CELLS, 'text', lambda one, step, row: seen.append(
        (one.name, step)))
    assert [step for name, step in seen if name == 'cell0'] == list(range(
        rows_before(seen), STEPS + 1))
    assert [step for name, step in seen if name == 'cell1'] == list(range(1, STEPS + 1))
    assert_alike(study)


def rows_before(seen):
    """The first step that cell0 has trained here: behind checkpoint 2 or 4, by the time it had."""
    first = next(step for name, step in seen if name == 'cell0')
    assert first in (3, 5)
    return first


def test_one_cell_that_diverges_does_not_touch_the_others(study, monkeypatch):
    start = start_params

    def broken(study, one, stage):
        params = start(study, one, stage)
        if one.name == 'cell1':
            params['language']['embedding_VD'][:] = np.nan
        return params
    wanted = alone()
    monkeypatch.setattr(training, 'start_params', broken)
    failed = training.train_together(study, CELLS, 'text')
    assert list(failed) == ['cell1'] and 'step 0: loss nan' in str(failed['cell1'])
    assert_alike(study, (CELLS[0], CELLS[2]), wanted)
    folder = study / 'cells' / 'cell1' / 'text'
    assert not (folder / 'DONE.json').exists() and not list(folder.glob('checkpoints/[0-9]*'))


def test_a_folder_of_another_cell_fails_that_cell_only(study):
    other = dataclasses.replace(CELLS[1], unroll=2)
    config.save(other, study / 'cells' / 'cell1' / 'text')
    failed = training.train_together(study, CELLS, 'text')
    assert list(failed) == ['cell1'] and 'other settings (unroll)' in str(failed['cell1'])
    assert_alike(study, (CELLS[0], CELLS[2]), alone())


def test_a_damaged_checkpoint_fails_its_own_cell_only(study):
    stopped_at(study, 3)
    for path in (study / 'cells' / 'cell0' / 'text' / 'checkpoints').rglob('*'):
        if path.is_file():
            path.write_bytes(b'')
    failed = training.train_together(study, CELLS, 'text')
    assert list(failed) == ['cell0']
    assert_alike(study, CELLS[1:])
    assert list(training.train_together(study, CELLS[:2], 'text')) == ['cell0']


def test_a_stream_that_cannot_go_on_fails_its_own_run_only(tmp_path):
    asked = runs(tmp_path, [batches(), batches()])
    ended = train([dataclasses.replace(asked[0], stream=lambda: 1 / 0), asked[1]])
    assert [str(error) for error, _ in ended.values()] == ['division by zero', 'None']


def runs(folder, streams):
    """A `together.CellRun` for each stream, with the model of the cells."""
    params = start.init_tree(SHAPES, 0)
    return [
        together.CellRun(
            folder=folder / str(at),
            params=lambda: params,
            rates={'language': 3e-3},
            data=at,
            stream=lambda made=made: made,
            report=lambda step, row: None,
        )
        for at, made in enumerate(streams)
    ]


def train(asked, **changes):
    shared = StageRun(model=model_of(CELLS[0], 'text'), loss='tokens', optimizer=Optimizer(),
                      trainable=('language',), rates={}, schedule=Schedule(steps=4),
                      mesh=devices(1), save_every=100, shapes=SHAPES, **changes)
    return together.train(asked, shared)


def batches():
    return small.batches('text', length=176, tiles=0)


def test_runs_that_move_nothing_say_so_and_the_others_do_not(tmp_path, capfd):
    one, other = runs(tmp_path, [batches(), batches()])
    train([one, dataclasses.replace(other, rates={'language': 1e-30})])
    ends = [json.loads((tmp_path / name / 'metrics.jsonl').read_text().splitlines()[-1])
            for name in '01']
    assert [end.get('unmoved') for end in ends] == [None, ['language']]
    assert 'moved no weight of language' in capfd.readouterr().err


class Faulty:
    """A stream that fails behind its second batch."""

    def __init__(self):
        self.stream, self.left = batches(), 2

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise ValueError('a damaged record')
        return next(self.stream)

    def close(self):
        self.stream.close()


def test_data_that_fail_end_their_own_run_only(tmp_path):
    ended = train(runs(tmp_path, [batches(), Faulty(), batches()]))
    assert [str(error) for error, _ in ended.values()] == ['None', 'a damaged record', 'None']
    steps = [[json.loads(line)['step'] for line in (tmp_path / str(at) / 'metrics.jsonl').open()]
             for at in range(3)]
    assert steps == [[1, 2, 3, 4], [1], [1, 2, 3, 4]]
    assert [checkpoint.committed(tmp_path / str(at)) for at in range(3)] == [4, None, 4]


def test_times_say_how_many_runs_shared_the_program(tmp_path, monkeypatch):
    monkeypatch.setattr(log, 'LOG_EVERY', 1)
    train(runs(tmp_path, [batches(), Faulty()]))
    rows = [json.loads(line) for line in (tmp_path / '0' / 'timing.jsonl').open()]
    assert [row['cells'] for row in rows] == [2, 2, 1, 1]
    assert len({row['began'] for row in rows}) == 1
    with contextlib.closing(log.Log(tmp_path / '0', 4, 0, 'none')) as later:
        assert later.session > rows[0]['began']


def test_sigterm_saves_all_of_them(tmp_path):
    asked = runs(tmp_path, [batches(), batches()])
    with pytest.raises(exits.Preempted, match='2 runs are saved at step 3 of 4'):
        train(asked, stop=lambda step: step == 3)
    assert [checkpoint.committed(tmp_path / str(at)) for at in range(2)] == [3, 3]


# --- which cells go together ------------------------------------------------------------------

@pytest.mark.parametrize('changes, same', [
    (dict(seed=7), True), (dict(name='x'), True), (dict(stages=(stage(1.0),)), True),
    (dict(stages=(stage(warmup=0.5),)), False), (dict(optimizer=Optimizer(b1=0.5)), False),
    (dict(language=small.language(2)), False), (dict(remat='full'), False),
    (dict(parametrisation=Parametrisation(kind='mup', base_width=64, base_depth=2)), False),
])
def test_cells_share_a_program_when_they_differ_in_name_seed_and_rates_only(changes, same):
    other = dataclasses.replace(CELLS[0], **changes)
    programs = training.program_of(CELLS[0], 'text'), training.program_of(other, 'text')
    assert (programs[0] == programs[1]) is same


def test_cells_with_buckets_are_not_stacked():
    shapes = (Shape(8, 48, 0),)
    assert training.program_of(dataclasses.replace(CELLS[0], stages=(stage(buckets=shapes),)),
                               'text') is None


def test_a_mesh_of_several_devices_is_refused(monkeypatch):
    monkeypatch.setattr(start, 'mesh', lambda *sizes: devices(2))
    with pytest.raises(ValueError, match='on one device, and the mesh of cell0 has 2'):
        training.one_device(CELLS[0])

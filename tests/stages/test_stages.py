"""A stage's folder: which cell may continue in it."""
import dataclasses
import json
from functools import cache

import pytest
from roots import ROOT

from downscale import config
from downscale.data.buckets import Shape
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.runtime.files import write_json
from downscale.stages import training
from downscale.stages.folders import refuse_other
from downscale.stages.inputs import prepare


@cache
def smoke():
    study_config, sweep = file.load_study(str(ROOT / 'tests/data/three_sizes.py'), ())
    with study_config.unlocked():
        del study_config['platform']
    return cells_of(study_config, sweep)


@pytest.mark.parametrize('cell', smoke(), ids=lambda cell: cell.name)
def test_a_cell_may_continue_in_its_own_folder(tmp_path, cell):
    """What was saved equals what is asked for, in whatever order a mapping was written."""
    config.save(cell, tmp_path)
    refuse_other(tmp_path, cell)


def test_another_cell_may_not_and_hears_what_differs(tmp_path):
    cell = smoke()[-1]
    config.save(cell, tmp_path)
    other = dataclasses.replace(cell, seed=cell.seed + 1, unroll=cell.unroll + 1)
    with pytest.raises(ValueError, match=r'other settings \(seed, unroll\)'):
        refuse_other(tmp_path, other)


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """A folder with eight training examples, and a cell of it whose captions have two buckets."""
    folder, cell = tmp_path_factory.mktemp('study'), smoke()[-1]
    caption = dataclasses.replace(cell.stage('caption'), buckets=(Shape(32, 64, 1),))
    cell = dataclasses.replace(cell, data=config.Data(train=8, validation=1, test=1),
                               stages=(cell.stage('text'), caption))
    prepare(folder, cell)
    return folder, cell


def test_a_stage_counts_its_padding_and_closes_its_stream(study, monkeypatch):
    given = []
    monkeypatch.setattr(training.loop, 'train', lambda *args, **named: given.extend(
        [args[3], {next(args[3])['tokens'].shape for _ in range(20)}]))
    folder, cell = study
    training.train_stage(folder, cell, 'caption')
    stream, shapes = given
    assert shapes == {(32, 64), (16, 128)}
    with pytest.raises(ValueError, match='closed'):
        next(stream)
    written = json.loads((folder / f'cells/{cell.name}/caption/padding.json').read_text())
    assert [row['length'] for row in written['buckets']] == [64, 128]
    assert written['total']['conversations'] == written['one_shape']['conversations'] == 8
    text = list(training.padding_lines(folder, cell))
    assert [line for line in text if ' 8 conversations of ' in line] == [
        line for line in text if line.startswith(('text', 'caption'))]
    assert sum('in the largest rows' in line for line in text) == 1


def test_a_conversation_without_room_is_named_before_training_starts(study, monkeypatch):
    monkeypatch.setattr(training.loop, 'train', None)
    folder, cell = study
    cramped = dataclasses.replace(cell.stage('caption'), name='extract', length=40, buckets=())
    cell = dataclasses.replace(cell, stages=(cramped,))
    with pytest.raises(ValueError, match=r'extract example \d: .* do not fit a row of 40 tokens'):
        training.train_stage(folder, cell, 'extract')


@pytest.mark.parametrize('train', [
    lambda folder, cell: training.train_stage(folder, cell, 'text'),
    lambda folder, cell: training.train_together(folder, [cell], 'text')])
def test_a_stage_that_is_done_does_not_say_that_it_failed(tmp_path, train):
    cell = smoke()[-1]
    folder = tmp_path / 'cells' / cell.name / 'text'
    write_json(folder / 'DONE.json', {'hash': cell.hash})
    write_json(folder / 'FATAL.json', {'reason': 'the one beside it ran out of memory'})
    train(tmp_path, cell)
    assert [path.name for path in folder.iterdir()] == ['DONE.json']

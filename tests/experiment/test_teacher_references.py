"""Teachers: what a study file may name, what is refused in one line, and who waits for whom."""
import dataclasses
import json
from pathlib import Path

import pytest
import small
from roots import ROOT

from downscale import config
from downscale.experiment import file, teachers
from downscale.experiment.expansion import cells_of
from downscale.experiment.factors import factors_of
from downscale.launch.spec import specs_of
from downscale.runtime.files import write_json
from downscale.stages import inputs, preflight
from downscale.stages.teachers import folder_of
from downscale.stages.training import program_of, train_together
from downscale.study.tasks import tasks_of

SMALL, LARGE = {'size': 'w32d2', 'seed': 0}, {'size': 'w64d2', 'seed': 0}
TAUGHT = {**SMALL, 'stages.extract.teacher': 'w64d2/extract'}


def cells(*points, overrides=()):
    study_config, _ = file.load_study(str(ROOT / 'tests/data/three_sizes.py'), overrides)
    with study_config.unlocked():
        del study_config['platform']
    return {cell.name: cell for cell in cells_of(study_config, points)}


def student(made):
    return next(cell for cell in made.values() if any(stage.teacher for stage in cell.stages))


# --- what may be named ------------------------------------------------------------------------

@pytest.mark.parametrize(('reference', 'wanted'), [
    ('w64d2/extract', 'w64d2-s0/extract'), ('w64d2-s0/caption', 'w64d2-s0/caption'),
    ('/w64d2-s0/caption', 'w64d2-s0/caption'),
    ('instruct', 'w32d2-s0-teacherinstruct/instruct')])
def test_a_teacher_is_of_each_seed_of_one_cell_or_of_this_one(reference, wanted):
    made = cells({**SMALL, 'stages.extract.teacher': reference}, LARGE)
    cell = student(made)
    assert teachers.stage_of(cell, cell.stage('extract')) == wanted
    assert folder_of('s', cell, cell.stage('extract')) == Path('s/cells') / wanted


def test_each_seed_has_its_own_teacher():
    made = cells(*({**point, 'seed': seed} for point in (TAUGHT, LARGE) for seed in (0, 1)))
    taught = [cell for cell in made.values() if any(stage.teacher for stage in cell.stages)]
    assert [teachers.stage_of(cell, cell.stage('extract')) for cell in taught] == [
        'w64d2-s0/extract', 'w64d2-s1/extract']


def imported(folder, **changes):
    """A model of the study's vocabulary in a folder, as `downscale import` leaves one."""
    cell = cells(LARGE)['w64d2-s0']
    values = {'name': 'brought', 'stages': (), **changes}
    config.save(dataclasses.replace(cell, **values), folder)
    write_json(folder / 'DONE.json', {})
    return folder


def test_a_folder_of_a_model_is_a_teacher_and_is_looked_at_before_any_work(tmp_path):
    folder = imported(tmp_path / 'brought')
    made = cells({**SMALL, 'stages.extract.teacher': str(folder)})
    cell = student(made)
    assert teachers.stage_of(cell, cell.stage('extract')) is None
    assert folder_of('s', cell, cell.stage('extract')) == str(folder)
    with pytest.raises(FileNotFoundError, match='no complete checkpoint in .*brought'):
        preflight.check(cell)


# --- what is refused --------------------------------------------------------------------------

@pytest.mark.parametrize(('point', 'words'), [
    ({'stages.extract.teacher': 'w64d2/extarct'},
     "stage extract: unknown teacher 'w64d2/extarct'; did you mean 'w64d2/extract'?"),
    ({'stages.extract.teacher': 'w46d2/extract'},
     "stage extract: unknown teacher 'w46d2/extract'; did you mean 'w64d2/extract'?"),
    ({'stages.extract.teacher': 'w64d2-s1/extract'},
     "unknown teacher 'w64d2-s1/extract'; did you mean 'w64d2/extract'?"),
    ({'stages.extract.teacher': 'gs://bucket/model'}, 'is in a bucket; mount that, or copy'),
    ({'stages.extract.teacher': 'models/none'}, "unknown teacher 'models/none'; "),
    ({'stages.extract.teacher': '/extract'}, "unknown teacher '/extract'; did you mean '"),
    ({'stages.extract.teachr': 'w64d2/extract'}, "'stages.extract.teachr': unknown key 'teachr'; "
     "did you mean 'teacher'?"),
    ({'stages.extract.teacher': 'extract'}, 'is itself; give the teacher in the points of sweep()'),
    ({'stages.caption.teacher': 'extract'}, "teacher 'extract' is trained after it; give the"),
    ({'stages.extract.teacher': 'w64d2/text'},
     "its teacher 'w64d2/text' cannot see, and this stage has pictures"),
    ({'stages.extract.teacher': 'w64d2/reason'}, 'cannot see, and this stage has pictures'),
    ({'stages.extract.teacher': 'w64d2/align'}, 'knows no newline between rows of patches'),
    ({'stages.extract.teacher': 'tower/tower'}, 'has no distribution over the next token'),
    ({'stages.extract.distil': .5}, 'distil = 0.5 is the share of a loss that comes from a'),
    ({'stages.extract.teacher': 'w64d2/extract', 'stages.extract.distil': 1.5},
     'must be at least 0 and at most 1: share of the loss'),
    ({'stages.extract.teacher': 7}, 'must be of type str')])
def test_a_teacher_that_cannot_be_is_refused_in_one_line(point, words):
    with pytest.raises(ValueError) as error:
        cells({**SMALL, **point}, LARGE)
    assert words in str(error.value)
    assert len(str(error.value)) <= 300 and '\n' not in str(error.value)


def test_the_tower_learns_words_and_has_no_teacher():
    with pytest.raises(ValueError, match='stage tower learns no distribution over the next token'):
        cells(SMALL, LARGE, overrides=('stages.tower.teacher=w64d2/extract',))


def test_a_teacher_for_all_cells_would_be_its_own():
    with pytest.raises(ValueError, match="^w64d2-s0, stage extract: its teacher 'w64d2/extract' is "
                       'itself; give the teacher in the points'):
        cells(SMALL, LARGE, overrides=('stages.extract.teacher=w64d2/extract',))


def test_cells_that_would_wait_for_one_another_are_named():
    """A job trains a whole cell, so that stages of two cells cannot take turns."""
    with pytest.raises(ValueError, match='^cells wait for one another, through parents, '
                       'teachers or reasoners: (w32d2-s0, w64d2-s0, w32d2-s0|w64d2-s0, w32d2-s0, '
                       'w64d2-s0); leave out one$'):
        cells(SMALL, LARGE, overrides=('stages.caption.teacher=/w64d2-s0/instruct',
                                       'stages.extract.teacher=/w32d2-s0/caption'))


@pytest.mark.parametrize(('changes', 'words'), [
    ({'language': dataclasses.replace(small.language(2), V=300)},
     'has another vocabulary, of 300 rows and not 320; both must have one tokenizer'),
    ({'vision': None}, 'cannot see, and this stage has pictures'),
    ({'language': None}, 'has no distribution over the next token'),
    ({'vision': small.VISION}, 'sees 4 patches of 1200 numbers in a tile, and this stage has 16')])
def test_a_model_that_does_not_fit_is_refused_before_any_work(tmp_path, changes, words):
    if changes.get('language', 0) is None:
        changes = {**changes, 'parametrisation': config.Parametrisation()}
    folder = imported(tmp_path / 'brought', **changes)
    with pytest.raises(ValueError) as error:
        cells({**SMALL, 'stages.extract.teacher': str(folder)})
    assert words in str(error.value)


def test_a_teacher_of_another_tokenizer_is_refused_when_the_study_is_prepared(tmp_path):
    folder = imported(tmp_path / 'brought')
    made = cells({**SMALL, 'stages.extract.teacher': str(folder)}, overrides=(
        'data.train=8', 'data.validation=1', 'data.test=1'))
    inputs.prepare(tmp_path / 'study', student(made))
    own = json.loads((tmp_path / 'study/tokenizer.json').read_text())
    (folder / 'tokenizer.json').write_text(json.dumps(own))
    inputs.prepare(tmp_path / 'study', student(made), among=made.values())
    words = own['model']['vocab']
    one, other, *_ = words
    words[one], words[other] = words[other], words[one]
    (folder / 'tokenizer.json').write_text(json.dumps(own))
    with pytest.raises(ValueError, match='^w32d2-s0.*, stage extract: its teacher .* has another '
                       'tokenizer, .*brought/tokenizer.json, than '):
        inputs.prepare(tmp_path / 'study', student(made), among=made.values())


# --- hashes, tasks and jobs -------------------------------------------------------------------

def test_cells_without_a_teacher_keep_their_hash_and_their_file(tmp_path):
    """As `experiment.json` and the hash were before there were teachers."""
    cell = cells(SMALL)['w32d2-s0']
    config.save(cell, tmp_path)
    text = (tmp_path / 'experiment.json').read_text()
    assert 'teacher' not in text and 'distil' not in text
    assert config.load(tmp_path) == cell
    taught = student(cells(TAUGHT, LARGE))
    half = student(cells({**TAUGHT, 'stages.extract.distil': .5}, LARGE))
    assert len({cell.hash, dataclasses.replace(taught, name=cell.name).hash,
                dataclasses.replace(half, name=cell.name).hash}) == 3
    config.save(half, tmp_path)
    assert config.load(tmp_path) == half


def test_a_stage_waits_for_its_teacher_wherever_that_stands_in_the_sweep():
    made = cells(TAUGHT, LARGE)
    tasks = tasks_of(list(made.values()))
    seen = set()
    for task in tasks:
        assert seen.issuperset(task.needs), task.name
        seen.add(task.name)
    needs = {task.name: task.needs for task in tasks}
    name = student(made).name
    assert 'w64d2-s0/extract' in needs[f'{name}/extract']
    assert 'w64d2-s0/extract' not in needs[f'{name}/caption']
    jobs = {spec.key: spec for spec in specs_of('s', 'f', (), tasks, 'cpu:1x1', None, '', 'run')}
    assert 'w64d2-s0/train' in jobs[f'{name}/train'].needs
    assert list(jobs).index('w64d2-s0/train') < list(jobs).index(f'{name}/train')


def test_cells_without_teachers_stay_in_their_order():
    made = list(cells(SMALL, LARGE).values())
    assert teachers.in_order(made) == made
    assert teachers.in_order(made[::-1])[0].name == 'tower-s0'


def test_a_fork_learns_from_the_stage_of_its_trunk():
    made = cells({**SMALL, 'stages.extract.teacher': 'instruct'}, overrides=(
        'stages.extract.forks=(5,)', 'stages.extract.decay=0.4'))
    fork = next(cell for name, cell in made.items() if name.endswith('steps5'))
    assert teachers.stage_of(fork, fork.stage('extract')) == 'w32d2-s0-teacherinstruct/instruct'


def test_a_stage_with_a_teacher_shares_no_program():
    made = cells(TAUGHT, LARGE)
    assert program_of(student(made), 'extract') is None
    assert program_of(student(made), 'caption') is not None
    with pytest.raises(ValueError, match='stage extract has a teacher; its cells are trained one'):
        train_together('s', [student(made)], 'extract')


def test_who_teaches_and_how_much_is_one_factor():
    made = cells(SMALL, TAUGHT, {**TAUGHT, 'stages.extract.distil': .5}, LARGE)
    levels = factors_of(list(made.values()))
    assert list(levels) == ['stages.extract.teacher']
    assert list(levels['stages.extract.teacher'].values()) == [
        'none', 'w64d2/extract', '0.5 x w64d2/extract', 'none']
    assert factors_of(list(cells(SMALL, LARGE).values())) == {}

"""Factors as cells have them: what differs within a size, forks included."""
import pytest
from cells import resolve
from roots import ROOT

from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.experiment.factors import factors_of
from downscale.experiment.sweeps import axis, product, union, zipped
from downscale.stages.folders import folder_of
from downscale.study.tasks import tasks_of, writers_of

SIZES = axis('size', ['w32d2', 'w64d2'])


def found(sweep, *overrides):
    study_config, _ = file.load_study(str(ROOT / 'tests/data/three_sizes.py'), overrides)
    with study_config.unlocked():
        del study_config['platform']
    return factors_of(cells_of(study_config, product(sweep, axis('seed', [0, 1]))))


def test_a_study_of_sizes_and_seeds_has_no_factor():
    assert factors_of(resolve(str(ROOT / 'tests/data/three_sizes.py'))) == {}


def test_what_differs_within_a_size_is_a_factor_and_what_goes_with_the_size_is_none():
    zipped_steps = zipped(SIZES, axis('stages.text.steps', [50, 100]))
    assert found(zipped_steps) == {}
    levels = found(product(zipped_steps, axis('stages.text.turns', [2, 4])))
    assert list(levels) == ['stages.text.turns']
    assert set(levels['stages.text.turns'].values()) == {2, 4}
    assert len(levels['stages.text.turns']) == 8


@pytest.mark.parametrize('key, values', [
    ('stages.text.rates.language', [1e-3, 2e-3]), ('stages.text.save_every', [10, 20]),
    ('mesh.data', [-1, 1]), ('remat', ['none', 'full'])])
def test_rates_and_what_decides_only_where_or_how_a_stage_runs_are_no_factors(key, values):
    assert found(product(SIZES, axis(key, values))) == {}


def test_a_share_of_replay_is_a_factor_by_the_stage_that_is_replayed():
    levels = found(product(SIZES, axis('stages.reason.replay', [{'text': 0.1}, {'text': 0.2}])))
    assert set(levels) == {'stages.reason.replay.text'}


def test_a_fork_is_a_level_of_the_steps_of_its_stage_and_of_nothing_else():
    levels = found(SIZES, 'stages.align.forks=[5, 10]', 'stages.align.decay=0.2')
    assert list(levels) == ['stages.align.steps']
    of = levels['stages.align.steps']
    assert (of['w32d2-s0'], of['w32d2-s0-steps5'], of['w64d2-s1-steps10']) == (15, 5, 10)


def test_a_fork_is_at_the_levels_of_its_trunk():
    point = axis('stages.text.steps', [50, 100])
    levels = found(product(axis('size', ['w32d2']), point),
                   'stages.align.forks=[5]', 'stages.align.decay=0.2')
    assert levels['stages.text.steps']['w32d2-s0-steps50-steps5'] == 50
    assert levels['stages.align.steps']['w32d2-s0-steps50-steps5'] == 5


def test_cells_of_a_budget_have_no_factor():
    steps = zipped(axis('size', ['w32d2', 'w32d2'][:1]), axis('stages.text.steps', [50]))
    more = zipped(axis('size', ['w32d2']), axis('stages.text.steps', [100]))
    assert found(product(union(steps, more), axis('budget', ['1e9']))) == {}


def made(sweep):
    study_config, _ = file.load_study(str(ROOT / 'tests/data/three_sizes.py'), ())
    with study_config.unlocked():
        del study_config['platform']
    return {cell.name: cell for cell in cells_of(study_config, sweep)}


@pytest.mark.parametrize('key, value', [('world.n_facts', 8), ('data.train', 40),
                                        ('vision.patch', 16)])
def test_cells_that_see_otherwise_have_a_tower_of_their_own(key, value):
    plain = product(SIZES, axis('seed', [0]))
    cells = made(union(plain, product(plain, axis(key, [value]))))
    word = f'{key.partition(".")[2]}{value}'
    assert list(cells)[:2] == ['tower-s0', f'tower-s0-{word}'] and len(cells) == 6
    tower = cells[f'tower-s0-{word}']
    for size in ('w32d2', 'w64d2'):
        parents = cells[f'{size}-s0-{word}'].stage('align').parents
        assert parents == {'language': 'text', 'tower': f'/tower-s0-{word}/tower'}
        assert cells[f'{size}-s0'].stage('align').parents['tower'] == 'tower/tower'
        other = cells[f'{size}-s0-{word}']
        assert (other.world, other.data, other.vision) == (tower.world, tower.data, tower.vision)
    needs = {task.name: task.needs for task in tasks_of(tuple(cells.values()))}
    assert f'tower-s0-{word}/tower' in needs[f'w32d2-s0-{word}/align']
    assert made(plain)['tower-s0'].hash == cells['tower-s0'].hash


def test_readers_read_what_was_written_about_their_own_questions():
    plain = product(SIZES, axis('seed', [0]))
    cells = made(union(plain, product(plain, axis('world.n_facts', [8])),
                       product(plain, axis('evaluation.write', [32]))))
    for name, cell in cells.items():
        for writers in writers_of(cell, tuple(cells.values())).values():
            words = {writer.name.partition('-s0')[2] for writer in writers}
            assert cell.is_shared or words == {name.partition('-s0')[2]}


def test_cells_that_are_only_asked_otherwise_train_nothing_and_wait_for_those_that_do():
    plain = product(SIZES, axis('seed', [0]))
    thoughts = product(plain, axis('evaluation.think', [8, 16]))
    cells = made(union(thoughts, plain))
    assert [cell.trained_as for cell in cells.values()] == ['', '', '', *[
        'w32d2-s0'] * 2, *['w64d2-s0'] * 2]
    tasks = {task.name: task for task in tasks_of(tuple(cells.values()))}
    assert not [name for name, task in tasks.items() if task.kind == 'train'
                and task.experiment.trained_as]
    assert tasks['evaluate joint w32d2-s0-think8'].needs == ('w32d2-s0/instruct',)
    assert folder_of('s', cells['w32d2-s0-think8'], 'text').as_posix() == 's/cells/w32d2-s0/text'
    # Without a plain cell the first of those that train alike does.
    only = made(thoughts)
    assert only['w32d2-s0-think8'].trained_as == ''
    assert only['w32d2-s0-think16'].trained_as == 'w32d2-s0-think8'
    # What also trains otherwise is no such cell.
    turns = made(union(plain, product(plain, axis('evaluation.think', [8]),
                                      axis('stages.text.turns', [2]))))
    assert not any(cell.trained_as for cell in turns.values())


def test_a_fork_that_is_asked_otherwise_asks_what_the_fork_trains():
    study_config, _ = file.load_study(str(ROOT / 'tests/data/three_sizes.py'), [
        'stages.align.forks=[5]', 'stages.align.decay=0.2'])
    with study_config.unlocked():
        del study_config['platform']
    point = {'size': 'w32d2', 'seed': 0}
    cells = {cell.name: cell for cell in cells_of(study_config, [
        point, {**point, 'evaluation.think': 8}])}
    assert cells['w32d2-s0-think8-steps5'].trained_as == 'w32d2-s0-steps5'
    levels = factors_of(tuple(cells.values()))
    assert levels['evaluation.think']['w32d2-s0-think8-steps5'] == 8
    assert levels['stages.align.steps']['w32d2-s0-think8-steps5'] == 5

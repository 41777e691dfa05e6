"""Sweeps: what combinations give, what is refused, and that cells differ by what a point says."""
from dataclasses import replace
from pathlib import Path

import pytest

from downscale import experiment, stages, study, study_files
from downscale.places import read_json
from downscale.sweeps import axis, product, union, zipped

SMOKE = str(Path(__file__).parents[1] / 'experiments' / 'smoke.py')
RATE = 'stages.text.rates.language'
SIZES, SEEDS = axis('size', ['w32d2', 'w64d2']), axis('seed', [0, 1])


def cells_of(sweep):
    config, _ = study_files.load_study(SMOKE, ())
    with config.unlocked():
        del config['platform']
    return experiment.cells(config, sweep)


def test_a_product_has_every_combination_and_the_last_varies_fastest():
    assert product(SIZES, SEEDS) == [
        {'size': 'w32d2', 'seed': 0}, {'size': 'w32d2', 'seed': 1},
        {'size': 'w64d2', 'seed': 0}, {'size': 'w64d2', 'seed': 1}]
    assert product(SIZES, []) == [] and product(SIZES) == SIZES


def test_zipped_sweeps_go_in_step():
    assert zipped(SIZES, SEEDS) == [{'size': 'w32d2', 'seed': 0}, {'size': 'w64d2', 'seed': 1}]


def test_a_union_keeps_the_order():
    assert union(SIZES, axis('size', ['w64d4'])) == axis('size', ['w32d2', 'w64d2', 'w64d4'])


def test_one_value_of_a_key_may_come_from_two_sweeps():
    both = product(axis('size', ['w32d2']), product(axis('size', ['w32d2']), SEEDS))
    assert both == product(axis('size', ['w32d2']), SEEDS)


@pytest.mark.parametrize('combined, message', [
    (lambda: product(SIZES, SIZES), "cannot have size 'w32d2' and 'w64d2'"),
    (lambda: zipped(SIZES, axis('size', ['w64d2', 'w32d2'])), 'cannot have size'),
    (lambda: zipped(SIZES, axis('seed', [0, 1, 2])), r'one length, not of \[2, 3\]'),
    (lambda: union(SIZES, axis('size', ['w64d2'])), "the point {'size': 'w64d2'} twice"),
    (lambda: axis('seed', [1, 1]), 'twice'),
])
def test_what_cannot_be_combined_is_refused_in_one_line(combined, message):
    with pytest.raises(ValueError, match=message) as error:
        combined()
    assert '\n' not in str(error.value)


def test_a_point_changes_its_own_cell_only_and_names_it():
    one = product(axis('size', ['w32d2']), axis('seed', [0]))
    both = zipped(axis(RATE, [1e-3, 1e-2]), axis('stages.reason.rates.language', [1e-3, 1e-2]),
                  axis('optimizer.weight_decay', [0.0, 0.1]))
    slow, fast, plain = cells_of(union(product(one, both), one))[1:]
    assert [cell.name for cell in (plain, slow, fast)] == [
        'w32d2-s0', 'w32d2-s0-language0.001-weight_decay0.0',
        'w32d2-s0-language0.01-weight_decay0.1']
    rates = [[cell.stage(name).rates['language'] for name in ('text', 'reason', 'instruct')]
             for cell in (plain, slow, fast)]
    assert rates == [[4e-3] * 3, [1e-3, 1e-3, 4e-3], [1e-2, 1e-2, 4e-3]]
    assert [cell.optimizer.weight_decay for cell in (plain, slow, fast)] == [0, 0, 0.1]
    assert len({cell.hash for cell in (plain, slow, fast)}) == 3


def test_the_tower_of_a_seed_is_untouched_by_what_its_cells_change():
    point = {'size': 'w32d2', 'seed': 0}
    assert cells_of([point])[0].hash == cells_of([{**point, 'optimizer.b1': 0.5}])[0].hash


@pytest.mark.parametrize('point, message', [
    ({'stages.text.rates.langage': 1e-3}, "unknown key 'langage'; did you mean 'language'"),
    ({'stages.txt.rates.language': 1e-3}, "unknown key 'txt'; did you mean 'text'"),
    ({'optimiser.b1': 0.9}, "unknown key 'optimiser.b1'; did you mean 'optimizer'"),
    ({'optimizer.b3': 0.9}, "unknown key 'b3'; did you mean"),
    ({'data.train': 10}, "unknown key 'data.train'.*data, questions and tower are one for all"),
    ({'stages.tower.steps': 3}, 'share the tower'),
    ({'stages': ('txt',)}, "unknown stage 'txt'; did you mean 'text'"),
    ({'stages.text.steps': 'many'}, "steps = 'many' must be of type int"),
    ({'sed': 1}, "unknown key 'sed'; did you mean 'seed'"),
])
def test_a_wrong_key_of_a_point_is_named_with_the_nearest(point, message):
    with pytest.raises(ValueError, match=message) as error:
        cells_of([{'size': 'w32d2', 'seed': 0, **point}])
    assert '\n' not in str(error.value)


def test_a_point_without_size_or_seed_and_cells_of_one_name_are_refused():
    with pytest.raises(ValueError, match='has no size and no seed'):
        cells_of([{RATE: 1e-3}])
    both = [{'size': 'w32d2', 'seed': 0, f'stages.{stage}.steps': 3} for stage in ('text', 'align')]
    with pytest.raises(ValueError, match='two cells would be called w32d2-s0-steps3'):
        cells_of(both)


def test_study_json_says_what_a_run_changes():
    one, changed = [{'size': 'w32d2', 'seed': 0, **more} for more in ({}, {RATE: 1e-3})]
    assert [study._run_row(cell)['changes'] for cell in cells_of([one, changed])[1:]] == [
        '', 'language0.001']


def test_a_budget_is_a_label_that_study_json_keeps(tmp_path):
    """It changes neither the name nor the hash of a cell, and a run goes on under another."""
    plain, = cells_of([{'size': 'w32d2', 'seed': 0}])[1:]
    steps = zipped(axis('size', ['w32d2', 'w64d2']), axis('stages.text.steps', [40, 20]))
    point = product(steps, axis('seed', [0]), axis('budget', ['1e10']))
    small, large = cells_of(point)[1:]
    assert (small.name, large.name) == ('w32d2-s0-steps40', 'w64d2-s0-steps20')
    assert cells_of([{'size': 'w32d2', 'seed': 0, 'budget': '1e9'}])[1].hash == plain.hash
    experiment.save(plain, tmp_path)
    stages.refuse_other(tmp_path, replace(plain, budget='1e9'))
    study.prepare(tmp_path / 'run', 'tiny', [plain, small, large], True)
    assert read_json(tmp_path / 'run' / 'study.json')['budgets'] == {
        small.name: '1e10', large.name: '1e10'}

"""Factors as cells have them: what differs within a size, forks included."""
import pytest
from cells import resolve
from roots import ROOT

from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.experiment.factors import factors_of
from downscale.experiment.sweeps import axis, product, union, zipped

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

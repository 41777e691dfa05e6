"""One rule chooses the learning rate of every size, and says when the grid was too narrow."""
import dataclasses
import math

import pytest

from downscale.laws.learning_rates import RateRun, choose, choose_all, moved


def runs(*losses, seeds=(0, 1)):
    """Runs at 1e-3, 2e-3, 4e-3 ... whose loss differs a little between seeds."""
    return [RateRun(1e-3 * 2 ** k, seed, loss + 0.01 * seed)
            for k, loss in enumerate(losses) for seed in seeds]


def test_the_lowest_mean_over_seeds_wins_in_any_order():
    given = [RateRun(1e-3, 0, 1.0), RateRun(1e-3, 1, 3.0), RateRun(2e-3, 0, 1.5),
             RateRun(2e-3, 1, 1.7), RateRun(4e-3, 0, 2.0), RateRun(4e-3, 1, 2.0)]
    # The best single run is at 1e-3.
    for order in (given, given[::-1]):
        found = choose(order)
        assert (found.lr, found.edge, found.place) == (2e-3, '', 1)
        assert found.loss == pytest.approx(1.6)
        assert [lr for lr, _ in found.grid] == [1e-3, 2e-3, 4e-3]


def test_of_equal_rates_the_smaller_is_chosen():
    assert choose(runs(3, 1, 1, 3)).lr == 2e-3


@pytest.mark.parametrize('losses, edge', [((1, 2, 3), 'lowest'), ((3, 2, 1), 'highest'),
                                          ((2, 1, 3), ''), ((1,), 'lowest')])
def test_a_best_rate_at_the_end_of_the_grid_is_an_alarm(losses, edge):
    choices, alarms = choose_all({'w32': runs(*losses)})
    assert choices['w32'].edge == edge and len(alarms) == bool(edge)
    if edge:
        assert alarms[0].startswith('w32: lr ') and edge in alarms[0]


@pytest.mark.parametrize('lost', [math.nan, math.inf])
def test_a_rate_at_which_one_seed_diverged_is_never_chosen(lost):
    given = [*runs(2, 1, 3), RateRun(8e-3, 0, 0.1), RateRun(8e-3, 1, lost)]
    found = choose(given)
    assert found.lr == 2e-3 and found.grid[-1] == (8e-3, math.inf)
    with pytest.raises(ValueError, match='every rate of .* diverged; sweep lower ones'):
        choose(runs(lost, lost))


def test_rates_with_other_seeds_or_a_run_twice_are_refused():
    with pytest.raises(ValueError, match=r'w64: lr 0.002 has seeds \[0\], lr 0.001 \[0, 1\]'):
        choose_all({'w32': runs(1, 2), 'w64': runs(1, 2)[:-1]})
    with pytest.raises(ValueError, match='lr 0.001 has two runs of seed 0'):
        choose([*runs(1, 2), RateRun(1e-3, 0, 5)])
    with pytest.raises(ValueError, match='no runs'):
        choose([])


def test_a_move_is_counted_in_steps_of_the_grid():
    choices, _ = choose_all({32: runs(2, 1, 3, 4), 64: runs(3, 2, 1, 4), 128: runs(2, 1, 3, 4)})
    assert moved(choices) == 1 and moved({32: choices[32]}) == 0
    choices[256] = dataclasses.replace(choices[32], grid=choices[32].grid[:-1])
    with pytest.raises(ValueError, match='2 different grids'):
        moved(choices)

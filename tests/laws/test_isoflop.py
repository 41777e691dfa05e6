"""IsoFLOP parabolas (analysis reference, section 2.2): planted minima, edges, budgets by id."""
import json

import numpy as np
import pytest
from law_points import BUDGETS, planted

from downscale.laws.isoflop import isoflop
from downscale.output.plain import plain


def test_planted_minima_and_their_exponent_are_recovered():
    found = isoflop(*planted(), draws=100)
    assert [one.x.value for one in found.minima] == pytest.approx(
        [0.1 * compute ** 0.5 for compute in BUDGETS])
    assert [one.y.value for one in found.minima] == pytest.approx([2.5] * 5)
    assert [one.state for one in found.minima] == ['kept'] * 5
    assert (found.exponent.value, found.coefficient.value) == pytest.approx((0.5, 0.1))
    assert not found.alarms


def test_intervals_cover_the_exponent_and_the_minima_and_no_more():
    held, trials = {'exponent': [], 'minimum': []}, 300
    for trial in range(trials):
        found = isoflop(*planted(noise=0.01, seed=trial), draws=200, seed=trial)
        one = found.exponent
        assert 0.002 < one.half < 0.1 and not found.alarms
        held['exponent'].append(abs(one.value - .5) / one.half)
        best = np.log(.1 * BUDGETS[2] ** .5)
        low, high = np.log([found.minima[2].x.low, found.minima[2].x.high])
        held['minimum'].append(abs((low + high) / 2 - best) / (high - low) * 2)
    for name, off in held.items():
        assert .92 <= np.mean(np.array(off) <= 1) <= .98, name
        assert np.mean(np.array(off) <= 1.5) > .98 and np.mean(np.array(off) <= .75) < .92


def test_no_resample_loses_its_minimum_where_the_parabola_is_clear():
    """Five sizes, drawn with replacement, would be fewer than four in a quarter of the draws."""
    found = isoflop(*planted(noise=0.01, sizes=5), draws=400)
    assert not found.alarms and all(np.isfinite(one.x.low) for one in found.minima)
    loud = isoflop(*planted(noise=0.3, sizes=5, seed=3), draws=400)
    assert any('of the resamples give no minimum' in alarm for alarm in loud.alarms)


def test_a_minimum_at_the_edge_is_flagged_and_left_out_of_the_line():
    found = isoflop(*planted(shifts=(1, 1, 1, 1, 8)), draws=60)
    assert found.minima[4].state == 'edge: the minimum is outside the sampled sizes'
    assert any(alarm.startswith('budget 1e+20: edge') for alarm in found.alarms)
    assert found.exponent.value == pytest.approx(0.5)
    lowest_at_end = isoflop(*planted(shifts=(1, 1, 1, 1, 4.5)), draws=60).minima[4]
    assert lowest_at_end.state == 'edge: the lowest point is at the end of the sampled sizes'


def test_a_parabola_that_opens_downward_is_rejected():
    x, y, budget = planted()
    y[:9] = 5 - y[:9]
    found = isoflop(x, y, budget, draws=60)
    assert found.minima[0].state == 'rejected: opens downward'
    assert found.minima[0].curvature < 0 and np.isnan(found.minima[0].x.value)
    assert found.exponent.value == pytest.approx(0.5)


def test_few_kept_minima_carry_no_line():
    found = isoflop(*planted(shifts=(8, 8, 1, 1, 1)), draws=60)
    assert found.exponent is None
    assert found.alarms[-1].startswith('no line: 3 kept minima')
    assert json.loads(json.dumps(plain(found), allow_nan=False))['exponent'] is None


def test_few_sizes_are_refused():
    with pytest.raises(ValueError, match='no budget has 5 different sizes'):
        isoflop(*planted(sizes=4))
    x, y, budget = planted()
    found = isoflop(x[5:], y[5:], budget[5:], draws=60)
    assert found.minima[0].state == 'rejected: too few sizes (4)'


def test_rows_are_grouped_by_the_declared_budget_and_not_by_its_size():
    x, y, budget = planted()
    near = np.where(budget == 1e19, 1.2e18, budget)  # beside 1e18, and not the same
    assert len(isoflop(x, y, near, draws=0).minima) == 5
    names = np.array([f'b{np.log10(one):.1f}' for one in budget])
    spent = budget * np.tile(np.linspace(0.98, 1.02, 9), 5)
    found = isoflop(x, y, names, compute=spent, draws=60)
    assert len(found.minima) == 5 and found.exponent.value == pytest.approx(0.5)
    with pytest.raises(ValueError, match="budget 'b18.0' is no number of FLOPs"):
        isoflop(x, y, names)


def test_runs_that_reach_several_budgets_are_resampled_whole():
    data = planted(noise=0.01)
    runs = np.tile([f'size{i}' for i in range(9)], 5)
    found = isoflop(*data, runs=runs, draws=300)
    assert found.runs == 9
    assert plain(found) == plain(isoflop(*data, runs=runs, draws=300))
    assert found.exponent.half != isoflop(*data, draws=300).exponent.half

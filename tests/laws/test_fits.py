"""Scaling fits (analysis reference, section 2, R8 and R9): recovery, coverage, alarms, refusals."""
import json

import numpy as np
import pytest
from law_points import LOSS, TRUE, X
from scipy.optimize import minimize, minimize_scalar

from downscale.laws import doubts, fits, huber_loss
from downscale.laws.extrapolation import holdout, optimum
from downscale.laws.forms import CHINCHILLA, POWER, Additive, Saturating
from downscale.output.plain import plain

WRONG = {'E': 1.65, 'A': 2e4, 'B': 2e4, 'alpha': 0.5, 'beta': 0.5}


def noisy(noise, seed=0):
    return LOSS * np.exp(noise * np.random.default_rng(seed).standard_normal(len(LOSS)))


def values(found):
    return {name: one.value for name, one in found.parameters.items()}


def test_a_surface_without_noise_is_recovered():
    found = fits.fit(CHINCHILLA, X, LOSS, draws=60)
    assert values(found) == pytest.approx(TRUE, rel=1e-6)
    assert found.cross_check == pytest.approx(TRUE, rel=1e-8)
    assert found.derived['a'].value == pytest.approx(0.28 / 0.62, rel=1e-6)
    assert not found.alarms and found.starts_agree > 0.8
    power = fits.fit(POWER, X[::5, 0], 1.5 + 30 * X[::5, 0] ** -0.2, draws=60)
    assert values(power) == pytest.approx({'E': 1.5, 'A': 30, 'alpha': 0.2}, rel=1e-6)


def test_the_huber_fit_is_exact_without_the_help_of_the_cross_check(monkeypatch):
    monkeypatch.setattr(Additive, 'project', lambda law, u, y: [])
    found = fits.fit(CHINCHILLA, X, LOSS, draws=0)
    assert values(found) == pytest.approx(TRUE, rel=1e-11) and found.cross_check is None


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say(monkeypatch):
    grid = Additive.grid  # one start in sixteen is enough beside the cross-check's
    monkeypatch.setattr(Additive, 'grid', lambda *args: grid(*args)[::16])
    true, names = TRUE | {'a': 0.28 / 0.62}, ('a', 'alpha', 'beta', 'E')
    hits = dict.fromkeys(names, 0)
    for trial in range(200):
        found = fits.fit(CHINCHILLA, X, noisy(5e-3, trial), draws=80, seed=trial)
        for name in names:
            one = (found.parameters | found.derived)[name]
            hits[name] += one.low <= true[name] <= one.high
    assert 180 <= hits['a'] <= 196
    assert min(hits.values()) >= 180


def stopped_early(y):
    """Where L-BFGS ends on the mean of the Huber loss, with raw logs and the usual tolerances."""
    problem, centre = fits._problem(CHINCHILLA, X, y, None)
    centring = np.eye(5)
    centring[[1, 2], [3, 4]] = -centre

    def mean(raw):
        value, gradient = huber_loss.objective(problem, np.ones(len(y)), (centring @ raw)[None])
        return problem.delta ** 2 * value[0] / len(y), (
            problem.delta ** 2 * gradient[0] @ centring / len(y))

    found = minimize(mean, [0.5, 10, 10, 0.5, 0.5], jac=True, method='L-BFGS-B')
    assert found.success
    return dict(zip(CHINCHILLA.names, [*np.exp(found.x[:3]), *found.x[3:]], strict=True))


def test_an_objective_stopped_early_is_told_from_a_minimum():
    y = noisy(2e-3)
    said = ' '.join(fits.check(CHINCHILLA, X, y, stopped_early(y)))
    assert 'not converged' in said and 'another start is better' in said
    assert not fits.check(CHINCHILLA, X, y, values(fits.fit(CHINCHILLA, X, y, draws=0)))


@pytest.mark.parametrize('start', [
    WRONG, {'E': 3, 'A': 5, 'B': 5e4, 'alpha': 0.1, 'beta': 0.6}])
def test_the_second_optimiser_does_not_stop_before_the_minimum(start):
    problem, centre = fits._problem(CHINCHILLA, X, LOSS, None)
    begin = CHINCHILLA.internal(start, centre)
    assert huber_loss.quasi_newton(problem, np.ones(len(X)), begin)[1] < 1e-15


@pytest.mark.parametrize('noise', [2e-3, 5e-2])
def test_a_fit_started_at_a_wrong_point_reaches_the_best_objective(noise):
    y = noisy(noise)
    best = fits.fit(CHINCHILLA, X, y, draws=0)
    for start in (WRONG, {'E': 1e-3, 'A': 1e9, 'B': 1e-3, 'alpha': 1.9, 'beta': 0.01}):
        found = fits.fit(CHINCHILLA, X, y, draws=0, start=start)
        assert found.objective == pytest.approx(best.objective, rel=1e-9)
        assert values(found) == pytest.approx(values(best), rel=1e-4)


def test_a_search_that_is_cut_short_raises_the_alarm(monkeypatch):
    monkeypatch.setattr(huber_loss, 'ROUNDS', 1)
    found = fits.fit(CHINCHILLA, X, noisy(2e-3), draws=0)
    assert any('better' in alarm or 'not converged' in alarm for alarm in found.alarms)


def test_the_gradient_is_that_of_the_objective():
    for law, y in ((CHINCHILLA, noisy(1e-2)), (Saturating(chance=0.25), np.linspace(0.2, 0.9, 30))):
        problem, _ = fits._problem(law, X[:, :law.axes] * np.arange(1, 31)[:, None], y, 0.05)
        weights = np.random.default_rng(0).random((1, 30))
        theta = law.grid(problem.u, problem.target)[-1:] + 0.1
        slope = huber_loss.objective(problem, weights, theta)[1][0]
        for step, one in zip(1e-6 * np.eye(len(slope)), slope, strict=True):
            ends = [huber_loss.objective(problem, weights, theta + sign * step)[0][0]
                    for sign in (1, -1)]
            assert one == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-4)


def test_an_outlier_is_kept_and_reported_with_what_it_moves():
    y = noisy(2e-3)
    rows = [0, 5, 10]
    y[rows] *= 1.3
    found = fits.fit(CHINCHILLA, X, y, delta=0.1, draws=60, worst=3)
    assert found.n == len(X) and found.delta == 0.1
    assert found.without['rows'] == [1, 6, 11]
    assert found.without['parameters']['B'] == pytest.approx(TRUE['B'], rel=0.05)
    assert found.parameters['B'].value > 5 * TRUE['B']
    robust = fits.fit(CHINCHILLA, X, y, draws=60)
    assert robust.delta == 1e-3
    assert robust.parameters['B'].value == pytest.approx(TRUE['B'], rel=0.2)
    assert any('rows [1, 6, 11]' in alarm for alarm in robust.alarms)
    assert any('plain squares' in alarm for alarm in robust.alarms)


def test_checkpoints_of_one_run_add_rows_but_no_certainty():
    x = np.geomspace(4e7, 1.6e10, 12)
    y = (1.5 + 30 * x ** -0.2) * np.exp(3e-3 * np.random.default_rng(1).standard_normal(12))
    names = [f'run{i:02}' for i in range(12)]
    single, runs = fits.fit(POWER, x, y, runs=names), np.repeat(names, 4)
    same = fits.fit(POWER, np.repeat(x, 4), np.repeat(y, 4), runs=runs)
    rows = fits.fit(POWER, np.repeat(x, 4), np.repeat(y, 4))
    assert (same.n, same.runs, rows.runs) == (48, 12, 48)
    half = [one.parameters['alpha'].half for one in (single, same, rows)]
    assert half[1] == pytest.approx(half[0], rel=1e-3)
    assert half[2] < 0.7 * half[1]


def test_too_few_points_are_refused_in_one_line():
    with pytest.raises(ValueError, match='6 different points cannot carry the 5 parameters'):
        fits.fit(CHINCHILLA, np.repeat(X[:6], 3, axis=0), np.repeat(LOSS[:6], 3))
    four = np.array([6e8, 1.7e9, 4e9, 8e9])
    with pytest.raises(ValueError, match='4 different points cannot carry the 3 parameters'):
        fits.fit(POWER, np.repeat(four, 5), np.repeat([3, 2.5, 2.2, 2.], 5))
    fits.fit(POWER, [*four, 1.6e10], [3, 2.5, 2.2, 2., 1.9], draws=0)
    with pytest.raises(ValueError, match='input 1 has fewer than 3'):
        fits.fit(CHINCHILLA, X[:10], LOSS[:10])
    with pytest.raises(ValueError, match='2 inputs per point, not 1'):
        fits.fit(CHINCHILLA, X[:, 0], LOSS)


@pytest.mark.parametrize('bad, said', [(np.nan, 'not finite'), (-1.0, 'log y')])
def test_a_row_that_cannot_be_used_is_named_and_not_dropped(bad, said):
    y = LOSS.copy()
    y[3] = bad
    with pytest.raises(ValueError, match=f'row 4: .*{said}'):
        fits.fit(CHINCHILLA, X, y)


def test_few_runs_give_a_fit_but_no_intervals():
    runs = np.tile(['a', 'b', 'c', 'd', 'e'], 6)
    found = fits.fit(CHINCHILLA, X, noisy(2e-3), runs=runs)
    assert np.isnan(found.parameters['alpha'].low) and found.draws == 0
    assert any('5 runs are too few' in alarm for alarm in found.alarms)


def test_sizes_that_move_together_identify_no_exponents():
    n = np.geomspace(1e7, 1e10, 12)
    x = np.stack([n, 20 * n], axis=1)
    y = 1.69 + 406.4 * n ** -0.34 + 410.7 * (20 * n) ** -0.28
    y *= np.exp(1e-3 * np.random.default_rng(0).standard_normal(12))
    found = fits.fit(CHINCHILLA, x, y, draws=60)
    assert any('move together' in alarm for alarm in found.alarms)
    assert found.predict(x) == pytest.approx(y, rel=5e-3)


def test_the_same_seed_gives_the_same_numbers():
    first, again, other = (fits.fit(CHINCHILLA, X, noisy(5e-3), draws=60, seed=seed)
                           for seed in (3, 3, 4))
    assert plain(first) == plain(again)
    assert first.parameters['alpha'].low != other.parameters['alpha'].low
    assert values(first) == pytest.approx(values(other), rel=1e-6)


def test_a_result_is_json_with_its_covariance():
    found = fits.fit(CHINCHILLA, X, noisy(5e-3), draws=200)
    stored = json.loads(json.dumps(plain(found), allow_nan=False))
    assert stored['delta'] == 1e-3 and stored['n'] == 30
    assert stored['parameters']['beta']['method'] == 'run bootstrap'
    names, matrix = stored['covariance']['names'], np.array(stored['covariance']['matrix'])
    assert names == ['E', 'log A', 'log B', 'alpha', 'beta']
    spread = np.sqrt(np.diag(matrix))
    assert (matrix / np.outer(spread, spread))[1, 3] > 0.95
    assert json.dumps(plain(fits.fit(CHINCHILLA, X, LOSS, draws=0)), allow_nan=False)


def test_accuracy_saturates_between_chance_and_one():
    x = np.geomspace(1e6, 1e10, 12)
    y = 0.25 + 0.75 / (1 + (3e8 / x) ** 0.8)
    found = fits.fit(Saturating(chance=0.25), x, y, draws=60)
    assert values(found) == pytest.approx({'half': 3e8, 'slope': 0.8}, rel=1e-6)
    floorless = fits.fit(Saturating(chance=0.0), x, y, draws=60)
    assert floorless.parameters['slope'].value < 0.5
    assert floorless.objective > 10
    with pytest.raises(ValueError, match='row 1: y = 1.2'):
        fits.fit(Saturating(), x, np.full(12, 1.2))
    guessing = fits.fit(Saturating(chance=0.7), x, y, draws=60)
    assert any('chance' in alarm for alarm in guessing.alarms)


def test_larger_runs_are_predicted_from_smaller_ones():
    compute = 6 * X[:, 0] * X[:, 1]
    found = holdout(CHINCHILLA, X, noisy(1e-3), compute, 1e21, draws=200)
    assert found.fit.n + found.held == len(X) and found.held == len(found.points) > 3
    assert found.error < 5e-3 and found.reach > 10
    assert found.fit.parameters['beta'].low < 0.28 < found.fit.parameters['beta'].high
    broken = np.where(compute < 1e21, LOSS, LOSS + 0.2)
    worse = holdout(CHINCHILLA, X, broken, compute, 1e21, draws=60)
    assert worse.bias == pytest.approx(-0.2 / np.mean(broken[compute >= 1e21]), rel=0.1)
    assert worse.inside == 0
    with pytest.raises(ValueError, match='lower the threshold'):
        holdout(CHINCHILLA, X, LOSS, compute, 1e30)


def test_one_more_run_lies_in_its_prediction_interval_and_less_often_in_that_of_the_curve(
        monkeypatch):
    grid = Additive.grid
    monkeypatch.setattr(Additive, 'grid', lambda *args: grid(*args)[::16])
    inside, in_curve = [], []
    for trial in range(8):
        found = holdout(CHINCHILLA, X, noisy(5e-3, trial), 6 * X[:, 0] * X[:, 1], 1e21, draws=60,
                        seed=trial)
        curves = found.fit.predict_intervals([point['x'] for point in found.points])
        for point, curve in zip(found.points, curves, strict=True):
            inside.append(point['inside'])
            in_curve.append(curve.low <= point['seen'] <= curve.high)
    assert .85 <= np.mean(inside) < 1
    assert np.mean(in_curve) < np.mean(inside) - .05


def test_the_best_split_of_a_budget_is_where_the_fitted_loss_is_lowest():
    found, budget = fits.fit(CHINCHILLA, X, noisy(1e-3), draws=100), 1e21

    def loss(log_n):
        return found.predict([[np.exp(log_n), budget / 6 / np.exp(log_n)]])[0]

    best = optimum(found, budget)
    lowest = minimize_scalar(loss, bounds=(15, 28), method='bounded', options={'xatol': 1e-9})
    assert best['N*'].value == pytest.approx(np.exp(lowest.x), rel=1e-3)
    assert best['N*'].value * best['D*'].value == pytest.approx(budget / 6)
    assert best['loss'].value == pytest.approx(lowest.fun)
    assert all(one.low < one.value < one.high for one in best.values())
    with pytest.raises(ValueError, match='one input'):
        optimum(fits.fit(POWER, X[::5, 0], LOSS[::5], draws=0), budget)


def test_a_difference_of_rounding_is_no_better_objective():
    assert not doubts.lower(100 - 1e-7, 100) and doubts.lower(99, 100)

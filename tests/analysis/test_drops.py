"""Drops by four measures, and drop against visual reliance (analysis reference, section 5.1)."""
import numpy as np
import pytest
from fake_study import SIZES, fake_study

from downscale.analysis import accuracy, drops, measures
from downscale.analysis.measures import Missing
from downscale.results.study import load_study


@pytest.fixture(scope='module')
def scored(tmp_path_factory):
    path = fake_study(tmp_path_factory.mktemp('drop') / 'study', pictures=60)
    return measures.scored(load_study(path), bootstraps=400)


def test_the_four_measures_agree_with_the_accuracies(scored):
    table = accuracy.by_family(scored)['families']
    found = drops.drop_off(scored)['drops']
    for task, row in table.items():
        small, middle, large = (row['sizes'][name].value for name in SIZES)
        assert found[task]['abs'].value == pytest.approx(large - small)
        assert found[task]['rel'].value == pytest.approx((large - small) / large)
        floor = row['floor']
        assert floor == max(.25, .3, row['constant'])
        assert found[task]['rel_chance'].value == pytest.approx((large - small) / (large - floor))
        decades = np.log10([n // 2 for n in SIZES.values()])
        line = np.polyfit(decades, [small, middle, large], 1)[0]
        assert found[task]['slope'].value == pytest.approx(line)


def test_report_and_command_have_one_chance_corrected_drop(scored):
    told, printed = drops.by_family(scored), drops.drop_off(scored)['drops']
    for task, row in (*told['families'].items(), ('macro', told['macro'])):
        assert row['relative_chance'] == printed[task]['rel_chance']
        assert row['absolute'] == printed[task]['abs']


def test_every_measure_finds_the_planted_drop_and_has_an_interval(scored):
    found = drops.drop_off(scored)
    assert (found['large'], found['small']) == ('w64d4', 'w16d2')
    count = found['drops']['count']
    assert all(x.clear and x.low < x.value < x.high for x in count.values())
    assert not found['drops']['animal']['abs'].clear
    assert found['drops']['macro']['abs'].value == pytest.approx(np.mean(
        [of['abs'].value for task, of in found['drops'].items() if task != 'macro']))
    # 60 000 to 1 500 000 parameters are 1.4 decades
    assert count['abs'].low < count['slope'].value * 1.4 < count['abs'].high


def test_the_slope_hangs_on_the_size_column(scored, tmp_path):
    study = scored.study
    runs = [{**run, 'n_nonembed': run['n_total'] ** 2} for run in study.meta['runs']]
    squared = measures.Scored(
        study=study, sizes=measures.sizes_of({'runs': runs}), resamples=scored.resamples
    )
    half = drops.drop_off(squared)['drops']['count']['slope'].value
    whole = drops.drop_off(squared, 'n_total')['drops']['count']['slope'].value
    assert half == pytest.approx(whole / 2)
    with pytest.raises(ValueError, match="no size column 'width'; there are n_nonembed, n_total"):
        drops.drop_off(scored, 'width')


def test_a_relative_drop_above_chance_is_unbounded_where_nothing_is_above_chance(tmp_path):
    path = fake_study(tmp_path / 'study', pictures=60, faults={
        family: {'unparsed': .7} for family in ('color', 'count', 'relation', 'animal')},
        decoupled=False)
    found = drops.drop_off(measures.scored(load_study(path), bootstraps=400))['drops']['color']
    assert found['rel_chance'].low == -np.inf and found['rel_chance'].high == np.inf
    assert 'Fieller' in found['rel_chance'].method
    assert np.isfinite(found['rel'].low)


def _noisy_tasks(rng, tasks=12, pictures=30, effect=0.):
    """Columns of `relation`: all noise is of the answers, and `effect` couples the true values."""
    task, cluster = np.repeat(np.arange(tasks), pictures), np.tile(np.arange(pictures), tasks)
    relied = rng.normal(0, .3 if effect else 0, tasks)[task]
    large, without, small = rng.normal(size=(3, len(task)))
    return dict(large=large, without=without - relied, small=small - effect * relied,
                task=task.astype(str), cluster=cluster)


def test_disjoint_halves_remove_the_slope_that_a_shared_term_makes():
    rng, slopes, ranks = np.random.default_rng(1), [], []
    for trial in range(50):
        columns = _noisy_tasks(rng)
        both = [drops.relation(**columns, split=split, bootstraps=2, seed=trial)
                for split in (False, True)]
        slopes.append([x.slope.value for x in both])
        ranks.append([x.spearman.value for x in both])
    error = np.std(slopes, axis=0) / np.sqrt(len(slopes))
    plain, halves = np.mean(slopes, axis=0)
    assert plain == pytest.approx(.5, abs=.08)   # half the noise of each axis is in both
    assert abs(halves) < 3 * error[1] < .1
    assert np.mean(ranks, axis=0)[0] > .3 > .12 > abs(np.mean(ranks, axis=0)[1])


def test_disjoint_halves_keep_a_true_relation():
    rng = np.random.default_rng(2)
    columns = _noisy_tasks(rng, pictures=2000, effect=.8)
    for split in (False, True):
        found = drops.relation(**columns, split=split, bootstraps=300)
        assert found.slope.value == pytest.approx(.8, abs=.12)
        assert found.slope.low > .4 and found.spearman.value > .8
        assert found.spearman.clusters == 12


def test_the_same_seed_gives_the_same_relation_and_another_one_other_halves():
    columns = _noisy_tasks(np.random.default_rng(3))
    first, again, other = (drops.relation(**columns, bootstraps=50, seed=seed)
                           for seed in (1, 1, 2))
    assert (first.slope, first.spearman) == (again.slope, again.spearman)
    assert first.slope != other.slope


def test_the_relation_needs_four_tasks_and_a_size_without_the_picture(scored, tmp_path):
    columns = _noisy_tasks(np.random.default_rng(4), tasks=3)
    with pytest.raises(Missing, match='needs 4 tasks, found 3'):
        drops.relation(**columns)
    path = fake_study(tmp_path / 'study', pictures=5, conditions=('image',), decoupled=False)
    with pytest.raises(Missing, match='the largest under blind'):
        drops.visual_reliance(measures.scored(load_study(path), 100))


def test_reliance_of_a_study_is_image_minus_blind(scored):
    found = drops.relation(**drops.visual_reliance(scored), bootstraps=100)
    expected = drops.reliance(scored)['conditions']['blind']
    np.testing.assert_allclose(found.reliance, [expected[task].value for task in found.tasks])

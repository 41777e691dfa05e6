"""Ways to a small model: each point has the answers of its own runs and the bytes that it takes."""
import pytest

from downscale.analysis import accuracy, measures
from downscale.analysis.measures import Missing
from downscale.analysis.planted.study import synth
from downscale.analysis.varied import ways
from downscale.report import factor_section, figures, report
from downscale.results.study import load_study
from downscale.runtime.files import read_json, write_json
from downscale.statistics.bootstrap import Interval


def planted(tmp_path, **of_size):
    """A study of four sizes, two of which came to be in another way (`of_size`)."""
    root = synth(seed=0, to=tmp_path / 'study', sizes=4, seeds=3, items=40, full=False).folder
    meta = read_json(root / 'study.json')
    for run in meta['runs']:
        run['way'] = of_size.get(run['size'], 'trained')
        run['bytes'] = 1000 * run['width']
    ways_of = {run['run_id']: run['way'] for run in meta['runs']}
    meta['factors'] = {'way': ways_of} if of_size else {}
    write_json(root / 'study.json', meta)
    return root


def test_every_point_has_the_answers_of_its_own_runs(tmp_path):
    plain = measures.scored(load_study(planted(tmp_path / 'plain')), 200)
    sizes = list(accuracy.by_kind(plain)['sizes'])
    # By name the first run is one that was pruned, and still the others are compared.
    assert min(sizes) == sizes[2]
    root = planted(tmp_path / 'ways', **{sizes[2]: 'pruned + healed', sizes[3]: 'quantised'})
    s = measures.scored(load_study(root), 200)
    found = ways.by_bytes(s)
    kinds = accuracy.by_kind(plain)['kinds']
    assert found['floor'] == {kind: kinds[kind]['guesses']['floor'] for kind in kinds}
    assert [(point['way'], point['size']) for point in found['points']] == [
        ('trained', sizes[0]), ('trained', sizes[1]), ('pruned + healed', sizes[2]),
        ('quantised', sizes[3])]
    for point in found['points']:
        assert point['seeds'] == 3 and point['bytes'] >= 32_000
        for kind in found['kinds']:
            mine, same = point['accuracy'][kind], kinds[kind]['sizes'][point['size']]
            assert (mine.value, mine.low, mine.high) == pytest.approx(
                (same.value, same.low, same.high))
    # Comparisons of sizes are of those that were trained.
    assert list(accuracy.by_kind(s)['sizes']) == sizes[:2]


def test_one_way_has_no_figure_and_no_section(tmp_path):
    s = measures.scored(load_study(planted(tmp_path)), 20)
    results, skipped = report._results(s)
    assert 'answer' in results and 'ways' not in {*results, *skipped}
    with pytest.raises(Missing, match='no two ways'):
        ways.by_bytes(s)


def interval(value):
    return Interval(value=value, low=value - .05, high=value + .05, n=10, clusters=5, method='')


def point(way, size, count, value):
    return {'way': way, 'size': size, 'bytes': count, 'n_total': count, 'seeds': 1,
            'accuracy': {'visual': interval(value)}}


def test_the_sentence_names_what_nothing_smaller_beats():
    result = {'kinds': ['visual'], 'floor': {'visual': .3}, 'points': [
        point('trained', 'large', 400, .9), point('trained', 'small', 100, .5),
        point('quantised', 'large-int4', 120, .8), point('quantised', 'large-int8', 200, .8)]}
    text = factor_section.best(result)
    assert [name for name in ('large (', 'small (', 'int4 (', 'int8 (') if name in text] == [
        'large (', 'small (', 'int4 (']


def test_the_figure_has_a_line_a_way_with_the_points_in_the_order_of_their_bytes(tmp_path):
    result = {'kinds': ['visual'], 'floor': {'visual': .3}, 'points': [
        point('trained', 'a', 100, .5), point('trained', 'b', 400, .9),
        point('distilled', 'c', 100, .6)]}
    svg = figures.save(factor_section.by_bytes, result, tmp_path, 'ways')
    assert svg.startswith('<svg') and 'distilled' in svg
    drawn, rows = factor_section.by_bytes(result)
    axis, = drawn.axes
    assert len(axis.containers) == 2 and axis.lines[-1].get_ydata()[0] == .3
    assert list(axis.containers[0][0].get_xdata()) == [100, 400]
    assert list(axis.containers[0][0].get_ydata()) == [.5, .9]
    assert [row['way'] for row in rows] == ['trained', 'trained', 'distilled']

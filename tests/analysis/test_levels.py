"""Factors: which runs are at a level, and that a level has the numbers of its runs alone."""
import copy

import pytest

from downscale.analysis import accuracy, claims, measures
from downscale.analysis.measures import Missing
from downscale.analysis.planted.study import synth
from downscale.analysis.varied import levels
from downscale.report import report
from downscale.results import factors
from downscale.results.study import load_study
from downscale.runtime.files import read_json, write_json

STEPS, FACTS = 'stages.text.steps', 'world.n_facts'


def meta(levels_of, plain=()):
    """A `study.json` of runs of one size, of which the `plain` change nothing."""
    runs = dict.fromkeys(run for values in levels_of.values() for run in values)
    return {'factors': levels_of, 'runs': [
        {'run_id': run, 'size': 'w32d1', 'changes': '' if run in plain else run} for run in runs]}


def test_levels_are_in_the_order_of_their_numbers_and_words_in_that_of_the_sweep():
    found = factors.levels_of(meta({STEPS: {'a': 100, 'b': 20, 'c': 100},
                                    'dtype': {'a': 'float32', 'b': 'bfloat16', 'c': 'bfloat16'},
                                    'evaluation.texts': {'a': [], 'b': ['x', 'y'], 'c': []}}))
    together = found[STEPS + ', evaluation.texts']
    assert list(together.items()) == [('20, x+y', ['b']), ('100, none', ['a', 'c'])]
    assert list(found['dtype'].items()) == [('float32', ['a']), ('bfloat16', ['b', 'c'])]
    assert len(found) == 2


def test_the_usual_level_is_that_of_the_plain_runs_or_else_the_last():
    values = {STEPS: {'a': 10, 'b': 20, 'c': 40}}
    assert factors.usual(meta(values, plain=['b'])) == {STEPS: '20'}
    assert factors.usual(meta(values)) == {STEPS: '40'}
    assert factors.apart(meta(values, plain=['b'])) == {'a', 'c'}
    assert factors.apart(meta(values)) == {'a', 'b'}


def test_at_a_level_every_other_factor_is_at_its_usual_level():
    values = {STEPS: {'a': 10, 'b': 40, 'c': 10, 'd': 40},
              FACTS: {'a': 8, 'b': 8, 'c': 32, 'd': 32}}
    whole = meta(values, plain=['b'])
    assert [factors.at(whole, STEPS, level) for level in ('10', '40')] == [{'a'}, {'b'}]
    assert [factors.at(whole, FACTS, level) for level in ('8', '32')] == [{'b'}, {'d'}]
    assert factors.apart(whole) == {'a', 'c', 'd'}


def test_a_change_that_is_no_factor_is_apart_as_before():
    whole = meta({STEPS: {'a': 10, 'b': 10}}, plain=['a'])
    assert factors.apart(whole) == {'b'} and factors.at(whole, STEPS, '10') == {'a'}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A planted study whose second seed stands for cells of fewer steps."""
    root = tmp_path_factory.mktemp('levels')
    synth(4, root, sizes=2, seeds=2, items=64)
    whole = read_json(root / 'study.json')
    for run in whole['runs']:
        run['changes'] = 'steps10' if run['seed'] else ''
    of = {run['run_id']: 10 if run['seed'] else 40 for run in whole['runs']}
    write_json(root / 'study.json', {**whole, 'factors': {STEPS: of}})
    return root


def alone(root, seed):
    """The same study, as if it had the runs of one seed only."""
    study = load_study(root)
    whole = copy.deepcopy(study.meta)
    whole['factors'] = {}
    for run in whole['runs']:
        run['changes'] = '' if run['seed'] == seed else 'elsewhere'
    object.__setattr__(study, 'meta', whole)
    return measures.scored(study, 100)


def test_a_level_has_the_numbers_that_its_runs_have_alone(root):
    s = measures.scored(load_study(root), 100)
    found = levels.by_level(s)[STEPS]
    assert found['usual'] == '40' and found['levels'] == ['10', '40'] and not found['missing']
    for seed, level in ((0, '40'), (1, '10')):
        other = alone(root, seed)
        kinds = accuracy.by_kind(other)['kinds']
        for kind in ('visual', 'knowledge'):
            for size, x in kinds[kind]['sizes'].items():
                assert found['accuracy'][kind][size][level] == x
        judged = [{key: row[key] for key in levels.SAID} for row in claims.judge(other)]
        assert found['claims'][level] == judged
    ten, forty = found['claims'].values()
    assert [row['effect'] for row in ten] != [row['effect'] for row in forty]


def test_the_rest_of_the_report_is_of_the_usual_level(root):
    s = measures.scored(load_study(root), 100)
    assert [size.runs for size in s.sizes] == [size.runs for size in alone(root, 0).sizes]
    assert [run for size in s.sizes for run in size.runs] == ['w32d2-s0', 'w256d8-s0']


def test_where_no_run_of_a_level_reasons_the_usual_reasoners_read(root):
    """As with forks of a stage that sees: what reads is not trained again."""
    study = load_study(root)
    cells = {}
    for cell, rows in study.cells.items():
        if not cell.r_run.endswith('s1'):
            cells[cell] = rows
            if cell.p_run.endswith('s0') and cell.r_run:
                cells[cell._replace(p_run=cell.p_run.replace('s0', 's1'))] = rows
    object.__setattr__(study, 'cells', cells)
    at = levels.at_level(measures.scored(study, 100), STEPS, '10')
    assert {cell.p_run[-2:] for cell in at.study.cells if cell.p_run} == {'s1'}
    assert {cell.r_run[-2:] for cell in at.study.cells if cell.r_run} == {'s0'}
    assert claims.judge(at)[2]['effect'] is not None   # perception against reasoning


def test_a_study_without_factors_has_no_such_part(root):
    with pytest.raises(Missing, match='no size was trained and asked at several levels'):
        levels.by_level(alone(root, 0))


def test_the_report_shows_a_curve_and_the_claims_of_every_level(root, tmp_path):
    page = report.write_report(root, tmp_path, 20)
    html = page.read_text()
    assert f'<h3>{STEPS}</h3>' in html and f'Claims by level of {STEPS}' in html
    rows = (tmp_path / 'factor.csv').read_text().splitlines()
    assert rows[0].startswith('factor,level,family,size,value,low,high')
    assert {row.split(',')[1] for row in rows[1:]} == {'10', '40'}
    assert list(read_json(tmp_path / 'report.json')['factors'][STEPS]['claims']) == ['10', '40']

"""P(learnt) of a study, the steps at which skills appear, adjusted p over seeds, and power."""
import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest

from downscale.analysis import drops, measures, synth
from downscale.analysis.accuracy import _apart, learnt
from downscale.analysis.planted.study import Planted
from downscale.report import learnt_section
from downscale.results.study import pair
from downscale.runtime.files import write_json
from downscale.statistics import inference
from downscale.statistics.learnt import has_learnt
from downscale.study import power
from downscale.study.preparation import registered

CLAIM = {'id': 'a', 'text': 'more', 'contrast': 'visual_minus_knowledge', 'gate': 'joint'}


@pytest.fixture(scope='module')
def scored():
    made = synth(3, sizes=2, seeds=3, items=320, planted=Planted(seed=1.5), full=False)
    return measures.scored(made.study, 200)


def accuracy(s, cell, task):
    paired = pair(s.study, [[cell]])
    return float(paired.scores[0][paired.task == task].mean())


def test_every_seed_is_counted_against_the_floor_of_its_family(scored):
    found = learnt(scored)
    for task, by_size in found['families'].items():
        floor = 2 * found['threshold'][task] - 1
        for size in scored.sizes:
            cells = measures.joint_cells(scored, size, 'image')
            there = sum(has_learnt(accuracy(scored, cell, task), floor) for cell in cells)
            assert (by_size[size.name].value, by_size[size.name].n) == (there / 3, 3)
            assert found['runs'][task][size.name][0] == accuracy(scored, cells[0], task)
    assert {x.value for by_size in found['families'].values() for x in by_size.values()} > {0., 1.}


def test_seeds_count_as_split_by_a_gap_and_not_by_a_threshold_between_neighbours():
    assert _apart([.2, .9, .95], .25)
    assert not _apart([.61, .64, .63], .25)      # about the threshold of .625
    assert not _apart([.9, .95, .99], .25) and not _apart([.2, .3], .25)


def of_one(stage, parents):
    return SimpleNamespace(size='one', stage=stage, parents=tuple(parents))


def test_looks_after_several_steps_tell_when_a_skill_appears(scored):
    """The two sizes of the study stand for one that was looked at twice."""
    small, large = scored.sizes
    # The small one as forks: what came before is of their trunks.
    stages = {}
    for fork, trunk in zip(small.runs, large.runs, strict=True):
        before = (trunk, 'align')
        stages[before] = of_one({'steps': 7}, ())
        stages[trunk, 'instruct'] = of_one({'steps': 400, 'batch': 8, 'forks': [100]}, [before])
        stages[fork, 'instruct'] = of_one({'steps': 100, 'batch': 8, 'trunk': trunk}, [before])
    s = dataclasses.replace(scored, made={**scored.made, 'stages': stages})
    found = learnt(s)
    cells = [measures.joint_cells(s, size, 'image') for size in (small, large)]
    for task, seen in found['steps']['one'].items():
        floor = 2 * found['threshold'][task] - 1
        for bracket, *ends in zip(seen.brackets, *cells, strict=True):
            there = [has_learnt(accuracy(s, cell, task), floor) for cell in ends]
            first = 107 if all(there) else 407 if there[1] else np.inf
            assert bracket[1] == first
    # other rates make another skill of it: nothing is compared
    stages[small.runs[0], 'instruct'].stage['batch'] = 4
    assert 'one' not in learnt(s)['steps']


def test_the_report_names_split_families_and_writes_what_it_shows(scored, tmp_path):
    found = {**learnt(scored), 'split': ['position']}
    html = learnt_section.html(found, tmp_path)
    assert 'Some seeds of a size learnt position' in html
    lines = (tmp_path / 'learnt.csv').read_text().splitlines()
    assert lines[0].startswith('family,size,learnt,runs') and len(lines) == 1 + 2 * 8


def test_drops_over_seeds_have_p_values_that_agree_with_their_intervals(scored):
    found = drops.by_family(scored)
    rows = list(found['families'].values())
    assert found['test'] == drops.TWO_WAY
    for row in rows:
        assert (row['p'] < .05) == row['absolute'].clear and row['p'] <= row['p_holm'] <= 1
    assert len({row['p'] < .05 for row in rows}) == 2   # some are, some are not
    one = synth(3, sizes=2, seeds=1, items=320, full=False)
    single = drops.by_family(measures.scored(one.study, 200))
    assert single['test'] == drops.MCNEMAR
    ends = drops.ends_of(measures.scored(one.study, 200))
    for task, row in single['families'].items():
        of_task = ends.paired.task == task
        assert row['p'] == inference.mcnemar(*ends.paired.scores[:, of_task])


def meta(seeds, *claims, **data):
    return {'runs': [{'size': size, 'seed': seed} for size in 'ab' for seed in range(seeds)],
            'claims': list(claims), 'data': {'asked': 400, 'pictures': 80, **data}}


def test_every_declared_claim_has_a_line_before_the_run():
    equal = {**CLAIM, 'id': 'c', 'test': 'equivalent', 'threshold': .1, 'seed_sd': .02}
    rank = {**CLAIM, 'id': 'b', 'contrast': 'drop_by_reliance'}
    head, *told = power.lines(meta(5, CLAIM, equal, rank, baselines=dict.fromkeys('abcdefghi')))
    assert head == 'what 5 seeds and 400 questions on 80 pictures show with 80 % power'
    assert [line[:2] for line in told] == ['a:', 'c:', 'b:']
    effect = float(re.search(r'above (\S+), if seeds differ by 0.05', told[0])[1])
    fewer = power.lines(meta(3, CLAIM))[1]
    assert effect < float(re.search(r'above (\S+),', fewer)[1])
    quiet = power.lines(meta(3, {**CLAIM, 'seed_sd': .01}))[1]
    assert float(re.search(r'above (\S+),', quiet)[1]) < effect
    assert re.search(r'\d+% of studies can say that it is within \+-0.1', told[1])
    assert '9 families' in told[2] and 'covers no seeds' in told[2]
    assert 'stays inconclusive' in power.lines(meta(1, CLAIM))[1]
    assert power.lines(meta(3)) == []
    with pytest.raises(ValueError, match='seed_sd 2 must lie in'):
        power.lines(meta(3, {**CLAIM, 'seed_sd': 2.}))


def test_claims_of_an_older_study_are_those_of_today_with_their_defaults(tmp_path):
    whole = registered(tmp_path, [CLAIM])['claims']
    older = [{key: value for key, value in whole[0].items()
              if key not in ('seed_sd', 'seeds_by_size')}]
    write_json(tmp_path / 'study.json', {'claims': older})
    write_json(tmp_path / 'evaluations' / 'joint' / 'DONE.json', {})
    assert registered(tmp_path, [CLAIM])['claims'] == whole
    with pytest.raises(ValueError, match='the claims differ'):
        registered(tmp_path, [{**CLAIM, 'seeds_by_size': True}])

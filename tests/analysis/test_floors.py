"""Floors: what no skill reaches, and that who always answers alike is never above it."""
import numpy as np
import pyarrow as pa
import pytest
from fake_study import item_row
from hypothesis import given, settings
from hypothesis import strategies as st

from downscale.analysis import accuracy, claims, floors, gate, measures
from downscale.results.items import ITEMS
from downscale.results.study import pair, study_of

RUNS = [{'run_id': f'w{width}-s{seed}', 'size': f'w{width}', 'seed': seed, 'n_total': width,
         'n_nonembed': width, 'n_vision': 1} for width in (1, 2) for seed in range(3)]


def study(golds, answer, chance=0., baselines=None, worth=lambda pred, gold: float(pred == gold)):
    """A study in memory: `golds` {family: golds}, and `answer(run, family, k)` of every run."""
    rows = []
    for run in RUNS:
        name = run['run_id']
        for family, own in golds.items():
            for k, gold in enumerate(own):
                pred = answer(run, family, k)
                row = item_row(task=family, item_id=f'{family}{k}', cluster_id=f'c{k // 2}',
                               gold=gold, pred=pred, score=worth(pred, gold), chance=chance)
                rows += [{**row, 'p_run': name},
                         {**row, 'p_run': '', 'r_run': name, 'text_kind': 'caption',
                          'condition': 'gold_text'}]
    table = pa.Table.from_pylist(rows, schema=ITEMS)
    meta = {'runs': RUNS, 'data': {'baselines': baselines or {}}}
    return measures.scored(study_of(None, meta, [table], [], {}, (), {}, ''), 100)


def joint_floor(s):
    cells = measures.joint_cells(s, s.sizes[-1], 'image')
    return floors.floor(s, pair(s.study, [cells]))


FAMILIES = st.dictionaries(st.sampled_from('pqrs'), st.lists(
    st.sampled_from(['A', 'B', 'yes', 'no', '[1, 2]']), min_size=2, max_size=24), min_size=1)


@settings(max_examples=60, deadline=None)
@given(FAMILIES, st.data())
def test_a_constant_answer_never_passes_a_gate(golds, data):
    words = {family: data.draw(st.sampled_from([*own, 'else'])) for family, own in golds.items()}
    s = study(golds, lambda run, family, k: words[family],
              chance=data.draw(st.sampled_from([0., .1, .25])))
    found = gate.gate(s)
    assert not found['interpretable']
    assert not any(row['passes'] for modes in found['families'].values()
                   for row in modes.values())
    assert not claims._joint_gate(s)[0]


def test_a_constant_answer_fails_under_a_scorer_that_nobody_knows():
    """Boxes, lists of accepted answers, partial credit: what a reply was worth tells it."""
    golds = {'boxes': [f'{k} {k}' for k in range(20)]}
    s = study(golds, lambda run, family, k: '0 0 9 9', worth=lambda pred, gold: .8)
    found = joint_floor(s)
    assert found.guesses['constant'] == pytest.approx([.8])
    assert not gate.gate(s)['interpretable']


def test_who_knows_the_answers_passes():
    golds = {'p': ['A', 'B'] * 15, 'q': ['x', 'y', 'z'] * 10}
    s = study(golds, lambda run, family, k: golds[family][k])
    assert gate.gate(s)['interpretable'] and claims._joint_gate(s)[0]
    assert joint_floor(s).means.value.tolist() == [[.5, 1 / 3]]


def test_the_highest_guesser_is_the_floor_and_is_named():
    golds = {family: ['A', ' a', 'B', 'C'] for family in 'pqrs'}
    s = study(golds, lambda run, family, k: 'D', chance=.3, baselines={
        'q': {'majority': .7, 'constant': .1}, 'r': {'constant': .9}, 's': {'majority': .2}})
    found = joint_floor(s)
    assert found.names == {'p': 'constant answer', 'q': 'majority answer', 'r': 'constant answer',
                           's': 'constant answer'}
    np.testing.assert_allclose(found.means.value, [[.5, .7, .9, .5]])   # A and ' a' are one answer
    row = accuracy.by_family(s)['families']['q']
    assert (row['chance'], row['majority'], row['constant'], row['floor']) == (.3, .7, .5, .7)


def test_floors_take_steps_in_proportion_to_the_questions(monkeypatch):
    """Counted by the texts that are looked at: twice the questions, twice the steps."""
    counts = []
    plain = floors._plain
    monkeypatch.setattr(floors, '_plain', lambda text: counts.append(1) or plain(text))
    steps = []
    for size in (20, 40):
        counts.clear()
        golds = {'p': [str(k) for k in range(size)]}
        joint_floor(study(golds, lambda run, family, k: str(k + 1)))
        steps.append(len(counts))
    assert steps[1] == 2 * steps[0]

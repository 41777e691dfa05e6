"""The loss ledger on a study with planted losses, and what it refuses."""
import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fake_study import FAMILIES, fake_study

from downscale.analysis import drops, measures
from downscale.analysis.ledger import FLOOR, SITES, STEPS, ledger, ledger_rows
from downscale.analysis.measures import Missing
from downscale.analysis.planted.study import synth
from downscale.commands import analyze, main
from downscale.commands.analyze import ANALYZE_EXAMPLES
from downscale.commands.analyze_probes import show_losses
from downscale.report import report
from downscale.results import probes
from downscale.results.items import TableError
from downscale.results.probes import ASKED, Measured, items_table, write
from downscale.results.study import load_study

PICTURES = 120
# Probe accuracy: {size: column: ...}; the small model loses .3 at the connector, .2 in the end.
PLANTED = {'w16d2': (.3, .8, .5, .5, .3), 'w32d4': (.3, .8, .8, .8, .8),
           'w64d4': (.3, .8, .8, .8, .8)}


def probe_items(pictures=PICTURES, families=FAMILIES):
    """Exactly the planted share of right items in every family, nested from column to column."""
    tables = []
    for size, shares in PLANTED.items():
        tasks = {}
        for family in families:
            ids = np.array([f'{family}{k}' for k in range(pictures)])
            one = Measured(
                item_id=ids, cluster_id=np.array([f'c{k}' for k in range(pictures)]), family=True
            )
            place = np.random.default_rng(3).permutation(pictures)
            for (site, depth), share in zip(SITES.values(), shares, strict=True):
                one.values[site, depth, 'accuracy'] = (place < share * pictures).astype(float)
            tasks[family] = one
        tasks[f'{ASKED}color'] = Measured(
            item_id=ids,
            cluster_id=one.cluster_id,
            family=False,
            values={('vision', np.nan, 'accuracy'): np.zeros(pictures)},
        )
        tables.append(items_table(f'{size}-s0', tasks))
    return pa.concat_tables(tables)


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    return fake_study(tmp_path_factory.mktemp('ledger') / 'study', 2, PICTURES)


@pytest.fixture(scope='module')
def scored(study):
    return measures.scored(load_study(study), 300)


@pytest.fixture(scope='module')
def found(scored):
    return ledger(scored, probe_items())


def test_planted_losses_stand_at_the_step_where_they_were_planted(found):
    assert found.large == 'w64d4' and set(found.losses) == {'w16d2', 'w32d4'}
    small = {step: tasks['macro'] for step, tasks in found.losses['w16d2'].items()}
    assert small['connector'].value == pytest.approx(.3) and small['connector'].low > .2
    last = small['to the answer position']
    assert last.value == pytest.approx(.2) and last.low > .1
    for step in ('tower', 'early LLM'):
        assert small[step].value == pytest.approx(0)
        assert small[step].low < 0 < small[step].high  # no interval has zero width
    assert found.levels['w32d4']['question alone']['color'].value == pytest.approx(.3)


def test_steps_add_up_to_the_drop_of_the_joint_answers_in_every_family(found, scored):
    falls = drops.by_family(scored)  # w64d4 - w16d2
    for task in (*FAMILIES, 'macro'):
        steps = found.losses['w16d2']
        assert set(steps) == {*STEPS.values(), 'total'}
        total = sum(steps[name][task].value for name in STEPS.values())
        assert total == pytest.approx(steps['total'][task].value, abs=1e-12)
        drop = falls['macro'] if task == 'macro' else falls['families'][task]
        assert total == pytest.approx(drop['absolute'].value, abs=1e-12)


def test_the_report_shows_the_ledger_of_a_study_that_was_probed(study, found):
    write(study, 'probe_items', probe_items())
    path = report.write_report(study, study / 'told', 300)
    told = json.loads((path.parent / 'report.json').read_text())['ledger']
    (study / 'probe_items.parquet').unlink()
    for step, tasks in found.losses['w16d2'].items():
        x = told['losses']['w16d2'][step]['macro']
        assert (x['value'], x['low']) == pytest.approx((tasks['macro'].value, tasks['macro'].low))
    text = path.read_text()
    assert all(note in text for note in ('known but not said', 'lost against w64d4'))
    assert (path.parent / 'ledger.csv').is_file() and (path.parent / 'ledger.png').is_file()


def test_the_reader_is_the_largest_and_chosen_on_gold_texts_alone(found, scored):
    note = next(note for note in found.notes if note.startswith('written'))
    assert 'w64d4 on ' in note and 'on gold texts' in note
    kind, mode = note.partition('w64d4 on ')[2].split(' answers')[0].split(', ')
    gold = {(k, m): measures.means_of(scored, [measures.pair_groups(scored, k, m == 'think')[
        'gold', 'w64d4']])[1].value.mean() for k in ('caption', 'extraction')
        for m in ('direct', 'think')}
    assert (kind, mode) == max(gold, key=gold.get) and (kind, mode) != next(iter(gold))
    cells = measures.pair_groups(scored, kind, mode == 'think')['w16d2', 'w64d4']
    means = measures.means_of(scored, [cells])[1]
    written = found.levels['w16d2']['written']
    for column, task in enumerate(means.groups):
        assert written[task].value == pytest.approx(means.value[0, column])


def test_without_a_reader_that_step_is_named_otherwise_and_the_sum_stays(tmp_path):
    folder = fake_study(tmp_path / 'study', pictures=20, decoupled=False)
    found = ledger(measures.scored(load_study(folder), 100), probe_items(20))
    steps = found.losses['w16d2']
    assert 'known but not said' not in steps and 'known but not used' in steps
    assert any(note.startswith('written: skipped') for note in found.notes)
    assert sum(x['macro'].value for name, x in steps.items() if name != 'total') \
        == pytest.approx(steps['total']['macro'].value)


def test_it_is_said_that_intervals_of_one_seed_cover_pictures_only(found):
    assert 'intervals cover the choice of pictures' in found.notes


def test_from_three_seeds_on_the_total_has_the_interval_of_the_drop(tmp_path):
    made = synth(7, tmp_path / 'study', sizes=2, seeds=3, items=320, full=False)
    s = measures.scored(load_study(made.folder), 300)
    items = s.study.items
    tables = []
    for run in s.study.meta['runs']:
        share = .5 + .1 * run['seed']  # of each seed another
        tasks = {}
        for family in sorted(set(items['task'])):
            here = items['task'] == family
            ids, first = np.unique(items['item_id'][here], return_index=True)
            one = Measured(item_id=ids, cluster_id=items['cluster_id'][here][first], family=True)
            for site, depth in SITES.values():
                one.values[site, depth, 'accuracy'] = (
                    np.arange(len(ids)) < share * len(ids)).astype(float)
            tasks[family] = one
        tables.append(items_table(run['run_id'], tasks))
    found = ledger(s, pa.concat_tables(tables))
    assert 'intervals cover the choice of pictures and of seeds' in found.notes
    drop = drops.by_family(s)['macro']['absolute']
    total = next(iter(found.losses.values()))['total']['macro']
    assert total.seeds == drop.seeds == 3 and total.method == drop.method
    assert (total.value, total.low, total.high) == pytest.approx((drop.value, drop.low, drop.high))
    tower = found.levels[found.large]['tower']['macro']
    assert tower.value == pytest.approx(.6, abs=.02)
    # Seeds .1 apart and 40 pictures: more than either shows alone.
    assert tower.half > 1.96 * .1 / 3 ** .5 * 1.2
    assert 'two-way t over 3 seeds' in tower.method


def test_sites_where_not_even_the_largest_is_read_are_named(scored, found, monkeypatch):
    assert not any('cannot show' in note for note in found.notes)
    monkeypatch.setitem(PLANTED, 'w64d4', (.3, .3, .32, .8, .8))
    notes = ledger(scored, probe_items()).notes
    assert any(note.startswith('what is lost before tower and connector cannot show')
               for note in notes)


def test_a_family_without_probes_is_named_and_left_out(scored):
    found = ledger(scored, probe_items(families=[f for f in FAMILIES if f != 'animal']))
    assert 'animal' not in found.losses['w16d2']['total']
    assert 'skipped: animal: no probe at every site' in found.notes


def test_probes_of_other_items_and_of_one_size_are_refused(scored):
    with pytest.raises(TableError, match=r'w16d2-s0 was probed on 4 items .*animal120'):
        ledger(scored, probe_items(PICTURES + 1))
    table = probe_items()
    one = table.filter(pa.compute.equal(table['run_id'], 'w64d4-s0'))
    with pytest.raises(Missing, match='two sizes that were probed .* found 1; run'):
        ledger(scored, one)


def test_the_command_prints_the_rows_and_leaves_three_files(study, tmp_path, capsys):
    args = argparse.Namespace(study=study, out=tmp_path / 'out', json=False, macro=True,
                              bootstraps=300, seed=0, verb='losses')
    with pytest.raises(TableError, match='run `downscale analyze probe'):
        show_losses(args)
    for name in probes.SCHEMAS:
        write(study, name, probe_items() if name == 'probe_items'
              else probes.SCHEMAS[name].empty_table())
    show_losses(args)
    out = capsys.readouterr().out
    assert 'known but not said' in out and 'w64d4 - w16d2' in out and 'color' not in out
    held = json.loads((tmp_path / 'out' / 'losses.json').read_text())
    rows, notes = ledger_rows(ledger(measures.scored(load_study(study), 300), probe_items()))
    assert held['notes'] == notes and len(held['rows']) == len(rows)
    figure = (tmp_path / 'out' / 'losses.csv').read_text().splitlines()
    assert len(figure) == len(rows) + 1
    assert (tmp_path / 'out' / 'losses.png').read_bytes()[:4] == b'\x89PNG'
    before = (tmp_path / 'out' / 'losses.json').read_bytes()
    show_losses(argparse.Namespace(**{**vars(args), 'json': True}))
    assert json.loads(capsys.readouterr().out) == held
    assert (tmp_path / 'out' / 'losses.json').read_bytes() == before
    assert FLOOR in {row['what'] for row in held['rows']}


@pytest.mark.parametrize('verb, asked', [
    ('probe', Path('runs/smoke')), ('losses', 'runs/smoke'), ('ledger', [Path('models/vlm')])])
def test_the_example_of_the_help_parses(verb, asked):
    args = main.parser().parse_args(ANALYZE_EXAMPLES[verb].split()[1:])
    assert args.verb == verb and args.run is analyze.run and args.study == asked

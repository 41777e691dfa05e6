"""`downscale analyze {drop,grid,attribute,compare}`, and what a study folder gives to each."""
import argparse
import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_study import FAMILIES, SIZES, fake_study

from downscale.analysis import grids, measures
from downscale.commands.analyze import SIZE_COLUMNS, add_measure_arguments
from downscale.commands.analyze_measures import MEASURES, run
from downscale.results.items import write_items
from downscale.results.study import load_study

PANELS = {f'{kind}, {mode}' for kind in ('caption', 'extraction') for mode in ('direct', 'think')}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    return fake_study(tmp_path_factory.mktemp('measure') / 'study', pictures=60)


def again(study, change, new=None):
    """Every first evaluation once more, its rows changed by `change(row, k)`.

    In a folder and under an eval_id that end in `new`, or beside the rows that are there.
    """
    for folder in sorted((study / 'evaluations').iterdir()):
        if '+' not in folder.name and (folder / 'items.parquet').exists():
            rows = pq.ParquetFile(folder / 'items.parquet').read().to_pylist()
            more = [change({**row, 'eval_id': row['eval_id'] + (new or '')}, k)
                    for k, row in enumerate(rows)]
            name = folder.name + (new or '')
            write_items(study / 'evaluations' / name / 'items.parquet',
                        more if new else rows + more)
    return study


def add_seed(study, seed, flip):
    """A further seed of all runs; `flip(k)` says which answers of the new seed are the others."""
    meta = json.loads((study / 'study.json').read_text())
    meta['runs'] += [{**run, 'run_id': f'{run["size"]}-s{seed}', 'seed': seed}
                     for run in meta['runs'] if run['seed'] == 0]
    (study / 'study.json').write_text(json.dumps(meta))

    def other(row, k):
        names = {name: row[name].replace('-s0', f'-s{seed}') for name in ('p_run', 'r_run')}
        return {**row, **names, 'score': 1 - row['score'] if flip(k) else row['score']}
    return again(study, other, f'+s{seed}')


def analyze(capsys, *argv):
    """What the command prints, as JSON when asked for."""
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest='verb')
    for verb in MEASURES:
        add_measure_arguments(verbs.add_parser(verb), verb)
    run(parser.parse_args([*map(str, argv), '--bootstraps', '300']))
    out = capsys.readouterr().out
    return json.loads(out) if '--json' in argv else out


def values(found, table, **want):
    """{(setting, family, what): value} of the rows of one table."""
    rows = [row for row in found['rows'] if row['table'] == table
            and all(row[name] == value for name, value in want.items())]
    assert rows, (table, want)
    return {(row['setting'], row['family'], row['what']): row['value'] for row in rows}


@pytest.mark.parametrize('verb', MEASURES)
def test_the_same_study_and_seed_give_the_same_bytes_as_json_and_csv(capsys, study, tmp_path, verb):
    first = [analyze(capsys, verb, study, '--json', '--csv', tmp_path / f'{k}.csv')
             for k in range(2)]
    assert first[0] == first[1]
    assert (tmp_path / '0.csv').read_bytes() == (tmp_path / '1.csv').read_bytes()
    with (tmp_path / '0.csv').open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(first[0]['rows'])
    for row, same in zip(table, first[0]['rows'], strict=True):
        assert row['what'] == same['what']
        assert (float(row['value']) if row['value'] else None) == same['value']
    other = analyze(capsys, verb, study, '--json', '--seed', 7)
    assert [row['value'] for row in other['rows'] if row['method'] == 'cluster bootstrap'] == [
        row['value'] for row in first[0]['rows'] if row['method'] == 'cluster bootstrap']
    assert other['rows'] != first[0]['rows']


@pytest.mark.parametrize('verb', MEASURES)
def test_the_text_names_every_table_and_can_leave_out_families(capsys, study, verb):
    whole = analyze(capsys, verb, study)
    short = analyze(capsys, verb, study, '--macro')
    for table in {row['table'] for row in analyze(capsys, verb, study, '--json')['rows']}:
        assert f'\n{table}\n' in whole
    assert '  count  ' not in short
    assert verb == 'pareto' or 'count' in whole and len(short) < len(whole)


def test_shares_and_classes_of_a_study_add_up_to_the_same_drop(capsys, study):
    found = analyze(capsys, 'attribute', study, '--json')
    shares = values(found, 'shares')
    added = values(found, 'what classes add to the drop')
    share = values(found, 'items by class')
    for panel in PANELS:
        for task in (*FAMILIES, 'macro'):
            total = shares[panel, task, 'total (accuracy)']
            sides = [shares[panel, task, f'{side} (accuracy)'] for side in grids.SIDES]
            assert (panel, task, 'perception x reasoner (accuracy)') in shares
            assert (panel, task, 'perception x reasoner (log-odds)') in shares
            assert sum(sides) == pytest.approx(total, abs=3e-6)
            assert added[panel, task, 'drop'] == pytest.approx(total, abs=3e-6)
            here = [value for (p, t, what), value in added.items()
                    if (p, t) == (panel, task) and what != 'drop']
            assert sum(here) == pytest.approx(total, abs=1e-5)
            assert sum(value for (p, t, _), value in share.items()
                       if (p, t) == (panel, task)) == pytest.approx(1, abs=1e-5)


def test_planted_effects_come_back(capsys, study):
    found = analyze(capsys, 'attribute', study, '--json')
    shares = {(row['family'], row['what']): row for row in found['rows']
              if row['table'] == 'all factors'}
    # planted: .17 for perception and .1 for the reasoner on the mean, .05 for extraction
    for name, truth in (('perception', .17), ('reasoner', .1), ('extraction', .05),
                        ('thinking', 0)):
        row = shares['macro', f'{name} (accuracy)']
        assert row['low'] <= truth <= row['high'], name
    losses = shares['count', 'perception (accuracy)'], shares['animal', 'perception (accuracy)']
    assert losses[0]['low'] > losses[1]['high']


def test_gold_text_tells_what_the_reasoner_loses_alone(capsys, study):
    found = analyze(capsys, 'attribute', study, '--json')
    alone = values(found, 'control on gold text', family='macro')
    pairs = values(analyze(capsys, 'grid', study, '--json'), 'pairs', family='macro')
    for panel in PANELS:
        assert alone[panel, 'macro', 'reasoner on gold text'] == pytest.approx(
            pairs[panel, 'macro', 'gold -> w64d4'] - pairs[panel, 'macro', 'gold -> w16d2'],
            abs=3e-6)
    classes = values(found, 'items by class, on gold text')
    assert classes['caption, direct', '', 'perception loss, large reasoner'] > .85


def test_marginal_curves_fix_or_average_the_other_side(capsys, study):
    found = analyze(capsys, 'grid', study, '--json')
    pairs = {key[2]: x for key, x in values(found, 'pairs', family='macro',
                                            setting='caption, direct').items()}
    for side, pair_of in (('perception', lambda own, other: f'{own} -> {other}'),
                          ('reasoner', lambda own, other: f'{other} -> {own}')):
        curve, mean, drop = ({key[2]: x for key, x in values(
            found, f'{side}: {measure}', family='macro', setting='caption, direct').items()}
            for measure in ('at largest', 'mean', 'drop of mean'))
        for size in SIZES:
            assert curve[size] == pairs[pair_of(size, 'w64d4')]
            average = np.mean([pairs[pair_of(size, other)] for other in SIZES])
            assert mean[size] == pytest.approx(average, abs=3e-6)
        assert set(drop) == set(SIZES) - {'w64d4'}
        assert drop['w16d2'] == pytest.approx(mean['w64d4'] - mean['w16d2'], abs=3e-6)


def test_seeds_are_compared_with_themselves(capsys, tmp_path):
    """A seed whose answers are all the others' opposite must not mix with them."""
    study = fake_study(tmp_path / 'study', pictures=20)
    first = analyze(capsys, 'attribute', study, '--json')
    add_seed(study, 1, flip=lambda k: True)
    for name in ('w16d2-s0', 'w64d4-s0'):   # nor one that reads the texts of another
        path = study / 'evaluations' / f'{name}-caption-False-w64d4-s0-image' / 'items.parquet'
        rows = pq.ParquetFile(path).read().to_pylist()
        write_items(study / 'evaluations' / f'mixed-{name}' / 'items.parquet', [
            {**row, 'eval_id': 'mixed', 'p_run': row['p_run'].replace('s0', 's1'),
             'score': 1 - row['score']} for row in rows])
    both = analyze(capsys, 'attribute', study, '--json')
    assert any('seeds 0, 1' in note for note in both['notes'])
    one, two = (values(found, 'items by class', setting='caption, direct', family='macro')
                for found in (first, both))
    opposite = {'right everywhere': 'wrong everywhere', 'wrong everywhere': 'right everywhere'}
    for what, other in opposite.items():
        key, turned = (('caption, direct', 'macro', name) for name in (what, other))
        assert two[key] == pytest.approx((one[key] + one[turned]) / 2, abs=2e-6)
    drop = values(both, 'what classes add to the drop', setting='caption, direct')
    assert drop['caption, direct', 'macro', 'drop'] == pytest.approx(0, abs=1e-6)


def test_a_seed_without_all_four_pairs_is_left_out_and_named(capsys, tmp_path):
    study = add_seed(fake_study(tmp_path / 'study', pictures=20), 1, flip=lambda k: False)
    (study / 'evaluations' / 'w16d2-s0-caption-False-w64d4-s0-image+s1' / 'items.parquet').unlink()
    found = analyze(capsys, 'attribute', study, '--json')
    assert 'caption, direct: seeds without all four pairs are left out: (1,)' in found['notes']
    assert not [note for note in found['notes'] if note.startswith('extraction') and 'left' in note]


def test_repeats_that_differ_are_told_as_a_noise_floor(capsys, tmp_path):
    study = fake_study(tmp_path / 'study', pictures=20)
    panel = next(iter(grids.panels(measures.scored(load_study(study), 100)).values()))
    scored = measures.scored(load_study(study), 100)
    assert grids.flip_rate(scored, grids.corners(scored, panel)) is None
    again(study, lambda row, k: {**row, 'repeat': 1,
                                 'score': 1 - row['score'] if k % 4 == 0 else row['score']})
    scored = measures.scored(load_study(study), 100)
    found = grids.corners(scored, grids.panels(scored)['caption', 'direct'])
    assert grids.flip_rate(scored, found) == pytest.approx(.25)
    split = grids.items(scored, found)
    for task, drop in split.drop.items():
        assert sum(x.value for x in split.change[task].values()) == pytest.approx(drop.value)
    assert '0.250 of the large pair' in analyze(capsys, 'attribute', study)


def test_comparisons_adjust_p_values_and_name_what_could_be_seen(capsys, study):
    found = analyze(capsys, 'compare', study, '--json')
    pairs = {row['setting'] for row in found['rows'] if row['table'] == 'differences'}
    assert pairs == {'w32d4 - w16d2', 'w64d4 - w16d2', 'w64d4 - w32d4'}
    for pair in pairs:
        here = {key[1:]: x for key, x in values(found, 'differences', setting=pair).items()}
        for task in FAMILIES:
            p, adjusted = here[task, 'p'], here[task, 'p, Benjamini-Hochberg over families']
            assert p <= adjusted <= 1
        assert here['macro', 'p'] <= here['macro', 'p, Holm over pairs of sizes']
        assert here['macro', 'difference seen with 80 % power'] > 0
    assert 'fewer than 3 seeds' in found['notes'][0]
    one = analyze(capsys, 'compare', study, '--json', '--sizes', 'w16d2', 'w64d4')
    assert {row['setting'] for row in one['rows']} == {'w64d4 - w16d2', 'w16d2', 'w64d4'}


def test_three_seeds_give_an_interval_over_runs(capsys, tmp_path):
    study = fake_study(tmp_path / 'study', pictures=20, decoupled=False)
    for seed in (1, 2):
        add_seed(study, seed, flip=lambda k, seed=seed: k % 7 == seed)
    found = analyze(capsys, 'compare', study, '--json')
    assert found['notes'] == []
    runs = [row for row in found['rows'] if row['table'] == 'runs' and row['what'] == 'IQM']
    assert len(runs) == 3 and all(row['low'] < row['high'] and row['clusters'] == 3
                                  for row in runs)


def test_what_a_study_does_not_hold_is_one_clear_line(capsys, study, tmp_path):
    joint = fake_study(tmp_path / 'joint', pictures=5, decoupled=False, conditions=('image',))
    for verb, message in (('grid', 'no perception x reasoner pairs'),
                          ('attribute', 'no perception x reasoner pairs')):
        with pytest.raises(ValueError, match=message) as error:
            analyze(capsys, verb, joint)
        assert '\n' not in str(error.value)
    found = analyze(capsys, 'drop', joint, '--json')
    assert found['notes'] == ['skipped: no blind and no shuffled condition for the largest model '
                              '(w64d4)']
    with pytest.raises(ValueError, match="no size 'w8d1' answered with the picture; there are w16"):
        analyze(capsys, 'compare', study, '--sizes', 'w8d1', 'w64d4')
    with pytest.raises(ValueError, match='no study.json'):
        analyze(capsys, 'drop', tmp_path)
    with pytest.raises(ValueError, match='--bootstraps 5 is too few'):
        args = argparse.Namespace(verb='drop', study=study, bootstraps=5)
        run(args)


def test_unfinished_answers_are_named_where_they_are(capsys, tmp_path):
    study = fake_study(tmp_path / 'study', pictures=20, faults={'count': {'truncated': .2}})
    found = analyze(capsys, 'grid', study, '--json')
    noted = {row['family']: row['note'] for row in found['rows'] if row['table'] == 'pairs'}
    assert 'count' in noted['count'] and 'count' in noted['macro'] and not noted['color']
    notes = analyze(capsys, 'attribute', study, '--json')['notes']
    assert any('w64d4 -> w64d4: over 5% unfinished or unparsed: count' in note for note in notes)


def test_the_console_knows_the_size_columns():
    from downscale.analysis import drops
    assert SIZE_COLUMNS == drops.SIZE_COLUMNS

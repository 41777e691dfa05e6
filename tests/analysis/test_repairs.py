"""Repairs side by side: planted gains of arms are found, at equal FLOPs or in doubt, per reader."""
import csv
import dataclasses
import json
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from downscale.analysis import accuracy, claims, flips, grids, measures, repairs, synth
from downscale.analysis.contrasts import families_of, over
from downscale.analysis.measures import Missing
from downscale.analysis.varied import hidden
from downscale.analysis.varied.repair_table import side_by_side
from downscale.commands import main
from downscale.output.plain import plain
from downscale.report import factor_section, report
from downscale.results.items import HIDDEN
from downscale.results.study import load_study
from downscale.runtime.files import read_json, write_json
from downscale.stage_config import PolicySettings
from downscale.statistics.shapley import attribute

# {arm: (kind of text, change of the cell, stage, gain in visual families, by own reader only)}
GAINS = {'more': .04, 'grpo': .02, 'rejection': 0.}


def study(folder, steps=None, seeds=3):
    """A study of two sizes, and three arms beside it; `steps` of 'perceive'."""
    synth(3, folder, sizes=2, seeds=seeds, items=320, full=False)
    meta = read_json(folder / 'study.json')
    rng = np.random.default_rng(0)
    for run in list(meta['runs']):
        name = run['run_id']
        stage(folder, name, 'extract', f'{name}-steps8000', 'extract', steps=8000)
        for arm, to in (('grpo', name), ('rejection', f'{name}-methodrejection')):
            # About as much as `extract` of 8,000 steps: it writes, too, behind that of 4,000.
            stage(folder, name, 'extract', to, 'perceive', steps=steps or 1600,
                  parents={'language': f'{run["size"]}/extract'},
                  policy=dataclasses.asdict(PolicySettings(method=arm)))
        for changes in ('steps8000', 'methodrejection'):
            meta['runs'].append({**run, 'run_id': f'{name}-{changes}', 'changes': changes})
    plain = [run['run_id'] for run in meta['runs'] if not run.get('changes')]
    meta['factors'] = {
        'stages.extract.steps': {**dict.fromkeys(plain, 4000),
                                 **{f'{run}-steps8000': 8000 for run in plain}},
        'stages.perceive.policy.method': {**dict.fromkeys(plain, 'grpo'), **{
            f'{run}-methodrejection': 'rejection' for run in plain}}}
    write_json(folder / 'study.json', meta)
    for path in sorted(folder.glob('evaluations/*/items.parquet')):
        rows = [row for row in pq.read_table(path).to_pylist()
                if row['text_kind'] == 'extraction' and row['p_run']]
        for arm, gain in GAINS.items() if rows else ():
            write(folder, path, rng, [dict(row) for row in rows], arm, gain)
    for path in sorted(folder.glob('evaluations/*/texts.parquet')):
        table = pq.read_table(path)
        rows = [row for row in table.to_pylist() if row['text_kind'] == 'extraction']
        more = [{**row, 'text_kind': 'perceived', 'n_tokens': 40} for row in rows]
        pq.write_table(pa.Table.from_pylist(table.to_pylist() + more, schema=table.schema), path)
    return folder


def stage(folder, run, source, to, name, **facts):
    """The files of a stage as those of `source`, with other facts."""
    place = folder / 'cells' / to / name
    shutil.copytree(folder / 'cells' / run / source, place)
    value = read_json(place / 'experiment.json')
    fact, = value['stages']
    parents = {group: f'{value["size"]}/{parent}' for group, parent in fact['parents'].items()}
    value['name'] = to
    value['stages'] = [{**fact, 'name': name, 'parents': parents, **facts}]
    write_json(place / 'experiment.json', value)


def write(folder, path, rng, rows, arm, gain):
    """Rows of an arm: of `gain` of all visual questions more the answer is right."""
    groups = {}
    for row in rows:
        groups.setdefault((row['p_run'], row['r_run'], row['thinking']), []).append(row)
    for own in groups.values():
        visual = [row for row in own if row['category'] == 'visual']
        wrong = [row for row in visual if not row['score']]
        for k in rng.permutation(len(wrong))[:round(gain * len(visual))]:
            wrong[k]['score'] = 1.0
    changes = {'more': '-steps8000', 'grpo': '', 'rejection': '-methodrejection'}[arm]
    for row in rows:
        row.update(eval_id=f'{row["eval_id"]}-{arm}', p_run=f'{row["p_run"]}{changes}',
                   text_kind='extraction' if arm == 'more' else 'perceived')
    out = folder / 'evaluations' / f'{path.parent.name}-{arm}'
    out.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), out / 'items.parquet')


@pytest.fixture(scope='module')
def planted(tmp_path_factory):
    return study(tmp_path_factory.mktemp('repairs') / 'study')


def scored(folder):
    return measures.scored(load_study(folder), 200)


def by_arm(result):
    return {(row['size'], row['arm']): row for row in result['rows']}


def test_every_arm_has_its_gain_its_cost_and_its_readers(planted):
    result = side_by_side(scored(planted))
    assert result['mode'] == 'think' and result['base'] == 'caption'
    small, large = result['readers']
    assert result['reader'] == large
    rows = by_arm(result)
    arms = {'caption', 'extraction', 'perceived', 'extraction, steps8000',
            'perceived, methodrejection'}
    assert rows.keys() == {(size, arm) for size in (small, large) for arm in arms}
    for size in (small, large):
        plain = rows[size, 'extraction']
        for arm, gain in (('extraction, steps8000', .04), ('perceived', .02),
                          ('perceived, methodrejection', 0.)):
            row = rows[size, arm]
            for reader in (small, large):
                assert row['readers'][reader].value - plain['readers'][reader].value \
                    == pytest.approx(gain, abs=.003), (size, arm, reader)
            assert row['gain'].value == pytest.approx(
                row['readers'][large].value - rows[size, 'caption']['readers'][large].value)
        assert rows[size, 'caption']['gain'] is None is rows[size, 'caption']['repaired']
        ratio = rows[size, 'perceived']['flops'] / rows[size, 'extraction, steps8000']['flops']
        assert .9 < ratio < 1.1
        assert rows[size, 'perceived']['tokens'] == 40 != plain['tokens']
        assert rows[size, 'perceived']['method'] == 'grpo'
        # Against the extraction that cost as much, and not against the plain one.
        equal = rows[size, 'perceived']['equal']
        assert equal['arm'] == 'extraction, steps8000'
        assert equal['gain'].value == pytest.approx(-.02, abs=.003)
        assert plain['equal'] is None


def test_the_share_of_the_drop_is_the_gain_over_what_the_base_loses(tmp_path):
    # Of one seed: over three the drop may be none, and no share of it has ends.
    s = scored(study(tmp_path / 'study', seeds=1))
    result = side_by_side(s)
    arms = repairs.arms(s)
    both = repairs.of_arms(s, arms)
    of_name = {(arm.size.name, arm.name): arm for arm in arms}
    visual, _ = families_of(s)
    rows = by_arm(result)
    small, large = result['readers']
    lost = rows[large, 'caption']['readers'][large].value \
        - rows[small, 'caption']['readers'][large].value
    for arm in ('extraction', 'extraction, steps8000', 'perceived'):
        row = rows[small, arm]
        assert row['repaired'].value == pytest.approx(row['gain'].value / lost)
        assert row['repaired'].low < row['repaired'].value < row['repaired'].high
        # At an end of the interval the gain, less that share of what is lost, is just not 0.
        cells = [repairs.cells_of(both, of_name[name], large, 'think')
                 for name in ((small, arm), (small, 'caption'), (large, 'caption'))]
        for share, end in ((row['repaired'].low, 'low'), (row['repaired'].high, 'high')):
            rest = over(both, cells, ((1, share - 1, -share), visual))
            assert getattr(rest, end) == pytest.approx(0, abs=.03)
        assert rows[large, arm]['repaired'] is None     # it has lost nothing
    assert rows[small, 'perceived']['repaired'].value > rows[small, 'extraction']['repaired'].value


@pytest.mark.parametrize('name, gain', [('grpo_minus_extraction', -.02),
                                        ('rejection_minus_extraction', -.04)])
def test_a_claim_compares_with_the_extraction_of_equal_flops(planted, name, gain):
    found = claims.CONTRASTS[name](scored(planted), 'think')
    assert found.effect.value == pytest.approx(gain, abs=.003) and found.effect.high < 0
    assert 'extraction, steps8000' in found.where and not found.doubt
    assert found.effect.seeds == 3 and len(found.by_size) == 2


def test_a_repair_that_cost_more_is_in_doubt_and_one_that_cost_less_is_not_if_it_wins(tmp_path):
    dear = claims.CONTRASTS['grpo_minus_extraction'](scored(study(tmp_path / 'dear', 9000)),
                                                     'think')
    # Of the writers alone: reasoners are the same on both sides.
    arms = repairs.arms(scored(tmp_path / 'dear'))
    small = next(arm for arm in arms if arm.method == 'grpo')
    assert dear.doubt.startswith(f'{small.size.name}: grpo has {small.flops:.4g} ')
    assert not dear.one_sided
    # The nearest is the plain extraction: 100 steps on top of it are next to nothing.
    cheap = claims.CONTRASTS['grpo_minus_extraction'](scored(study(tmp_path / 'cheap', 100)),
                                                      'think')
    assert not cheap.doubt and cheap.effect.low > 0 and 'against extraction,' in cheap.where


def test_the_report_shows_them_and_says_which_is_best(planted, tmp_path):
    out = tmp_path / 'report'
    folder = hide(planted, tmp_path / 'study', SHARES)
    assert main.main(['analyze', 'report', str(folder), '--out', str(out), '--bootstraps', '100']
                     ) == 0
    html = (out / 'report.html').read_text()
    assert 'Texts read with the question hidden' in html and 'minus true extraction' in html
    assert 'Repairs side by side' in html and 'minus extraction of equal FLOPs' in html
    result = json.loads((out / 'report.json').read_text())['repairs']
    large = result['reader']
    assert f'{large}: extraction, steps8000 (' in html
    with (out / 'repairs.csv').open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 5 * 2 and {row['reader'] for row in table} == set(result['readers'])
    assert (out / 'repairs.png').stat().st_size > 5000
    assert 0 < result['floor'] < 1 and f'The best guess has {result["floor"]:.2f}.' in html


def test_a_size_that_was_not_read_is_not_left_out_of_the_mean(planted, tmp_path):
    folder = tmp_path / 'study'
    shutil.copytree(planted, folder)
    large = scored(planted).sizes[-1]
    for path in folder.glob('evaluations/*-grpo/items.parquet'):
        table = pq.read_table(path)
        rows = [row for row in table.to_pylist() if row['p_run'] not in large.runs]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(Missing, match=f"texts by 'grpo' of {large.name} were not read"):
        claims.CONTRASTS['grpo_minus_extraction'](scored(folder), 'think')


def test_a_third_kind_of_text_is_no_level_of_a_factor(planted):
    """Two factors of two levels: of three kinds of text the corners would be mixed up."""
    s = scored(planted)
    panels = {name: grids.corners(s, groups) for name, groups in grids.panels(s).items()}
    assert {kind for kind, _ in panels} == {'caption', 'extraction', 'perceived'}
    names, shares = grids.all_factors(s, panels)
    two = {name: panel for name, panel in panels.items() if name[0] != 'perceived'}
    assert (names, shares) == grids.all_factors(s, two)
    assert flips.left_out(panels) == ' (perceived left out)' and flips.left_out(two) == ''
    with pytest.raises(ValueError, match='3 corners are not those of 2 factors'):
        attribute(measures.means_of(s, [s_cells for s_cells in list(
            grids.panels(s)['caption', 'think'].values())[:3]])[1], ('a', 'b'))


def test_a_study_without_repairs_has_no_such_section(tmp_path):
    s = synth(3, tmp_path / 'study', sizes=2, seeds=1, items=160, full=False)
    assert not repairs.has_repairs(measures.scored(s.study, 20))
    shutil.rmtree(tmp_path / 'study' / 'cells')
    # What it cost is then not known, and the rest is as it was.
    result = side_by_side(measures.scored(load_study(tmp_path / 'study'), 20))
    assert {row['flops'] for row in result['rows']} == {None}


def test_claims_about_repairs_that_nobody_tried_are_absent(tmp_path):
    s = measures.scored(synth(3, tmp_path / 'study', sizes=2, seeds=1, items=160,
                              full=False).study, 20)
    for method in ('grpo', 'rejection', 'distil'):
        with pytest.raises(Missing, match=f"no size has texts by '{method}'"):
            claims.CONTRASTS[f'{method}_minus_extraction'](s, 'think')


def test_what_a_teacher_says_of_own_texts_is_a_repair_like_others(planted, tmp_path):
    folder = tmp_path / 'study'
    shutil.copytree(planted, folder)
    for path in folder.glob('cells/*-methodrejection/perceive/experiment.json'):
        value = read_json(path)
        value['stages'][0]['policy']['method'] = 'distil'
        write_json(path, value)
    found = claims.CONTRASTS['distil_minus_extraction'](scored(folder), 'think')
    assert found.effect.value == pytest.approx(-.04, abs=.003) and 'steps8000' in found.where


def test_an_extraction_that_a_larger_model_taught_is_no_rival(planted, tmp_path):
    folder = tmp_path / 'study'
    shutil.copytree(planted, folder)
    for path in folder.glob('cells/*-steps8000/extract/experiment.json'):
        value = read_json(path)
        value['stages'][0]['teacher'] = 'w64d2/extract'
        write_json(path, value)
    s = scored(folder)
    assert {arm.changes for arm in repairs.arms(s) if arm.method == repairs.TAUGHT} == {'steps8000'}
    found = claims.CONTRASTS['grpo_minus_extraction'](s, 'think')
    # What the taught one costs is nearer, but it stands in no claim.
    assert 'against extraction,' in found.where and 'steps8000' not in found.where
    # A teacher that is not followed is none.
    for path in folder.glob('cells/*-steps8000/extract/experiment.json'):
        value = read_json(path)
        value['stages'][0]['distil'] = 0.
        write_json(path, value)
    found = claims.CONTRASTS['grpo_minus_extraction'](scored(folder), 'think')
    assert 'steps8000' in found.where


@pytest.mark.parametrize(('changes', 'rival'), [
    ({'replay': {'instruct': .2}}, False), ({'rates': {'language': 1.}}, False),
    ({'parents': {'language': '{size}/caption'}, 'warmup': .2}, True)])
def test_more_extraction_is_more_of_the_same(planted, tmp_path, changes, rival):
    folder = tmp_path / 'study'
    shutil.copytree(planted, folder)
    for path in folder.glob('cells/*-steps8000/extract/experiment.json'):
        value = read_json(path)
        value['stages'][0].update(changes)
        write_json(path, value)
    s = scored(folder)
    otherwise = {arm.changes for arm in repairs.arms(s) if arm.method == repairs.OTHERWISE}
    assert otherwise == (set() if rival else {'steps8000'})
    found = claims.CONTRASTS['grpo_minus_extraction'](s, 'think')
    assert ('steps8000' in found.where) == rival


def test_a_setting_that_an_arm_has_not_makes_another_tuning(planted, tmp_path):
    """What is off, such as a decay of 0, is not stored."""
    folder = tmp_path / 'study'
    shutil.copytree(planted, folder)
    for path in folder.glob('cells/*/extract/experiment.json'):
        if 'steps8000' not in str(path):
            value = read_json(path)
            value['stages'][0]['decay'] = .2
            write_json(path, value)
    assert {arm.changes for arm in repairs.arms(scored(folder))
            if arm.method == repairs.OTHERWISE} == {'steps8000'}


def test_no_claim_takes_a_scrambled_control_for_its_method(planted, tmp_path):
    folder = only(planted, tmp_path / 'study', lambda row: not (
        row['text_kind'] == 'perceived' and not row['p_run'].endswith('methodrejection')))
    for path in folder.glob('cells/*-methodrejection/perceive/experiment.json'):
        value = read_json(path)
        value['stages'][0]['policy'].update(method='grpo', scrambled=True)
        write_json(path, value)
    s = scored(folder)
    assert {arm.method for arm in repairs.arms(s) if arm.kind == 'perceived'} == {'scrambled grpo'}
    with pytest.raises(Missing, match="texts by 'grpo' of .* were not read"):
        claims.CONTRASTS['grpo_minus_extraction'](s, 'think')


SHARES = {'gold': .5, 'caption': .4, 'extraction': .3, 'extraction-steps8000': .45,
          'perceived': .3, 'perceived-methodrejection': .9}


def hide(planted, folder, shares, leaks=None):
    """A copy of the planted study whose readers also had the question hidden.

    `shares` {arm or 'gold': share of visual questions that they have right then}.
    """
    shutil.copytree(planted, folder)
    for path in sorted(folder.glob('evaluations/*/items.parquet')):
        table = pq.read_table(path)
        rows = [row for row in table.to_pylist() if row['r_run'] and not row['thinking']]
        groups = {}
        for row in rows:
            groups.setdefault((row['p_run'], row['r_run'], row['text_kind']), []).append(row)
        for (p_run, _, kind), of_pair in groups.items():
            arm = 'gold' if not p_run else kind + p_run.partition('-s')[2][1:]
            seen = Counter()
            for row in of_pair:
                seen[row['task']] += 1
                row.update(condition=HIDDEN, eval_id=f'{row["eval_id"]}-hidden', pred='so',
                           score=float(seen[row['task']] % 20 < 20 * shares[arm]))
        pq.write_table(pa.Table.from_pylist(table.to_pylist() + rows, schema=table.schema), path)
    for run, count in (leaks or {}).items():
        place = folder / 'evaluations' / f'perceived-{run}'
        write_json(place / 'handed_over.json', {'handed_over': count, 'texts': 200})
    return folder


def test_a_text_that_hands_the_answer_over_is_told_by_readers_without_the_question(planted,
                                                                                  tmp_path):
    small, large = scored(planted).sizes
    folder = hide(planted, tmp_path / 'study', SHARES, {
        f'{run}-methodrejection': 50 for run in small.runs})
    result = hidden.by_arm(scored(folder))
    assert result['readers'] == [small.name, large.name] and result['reader'] == large.name
    rows = {(row['size'], row['arm']): row for row in result['rows']}
    visual = {'extraction': .3, 'extraction, steps8000': .45, 'perceived': .3,
              'perceived, methodrejection': .9}
    for size in (small.name, large.name):
        for arm, share in visual.items():
            assert rows[size, arm]['hidden'][large.name].value == pytest.approx(share, abs=.03)
        assert rows[size, 'extraction']['over_plain'] is None
        assert rows[size, 'perceived']['over_plain'].low <= 0
        more = rows[size, 'extraction, steps8000']
        assert more['over_plain'].low > 0 > more['over_true'].value
        assert rows[size, 'perceived, methodrejection']['over_true'].low > 0
    true = rows['', 'true extraction']
    assert true['hidden'][large.name].value == pytest.approx(.5, abs=.03)
    assert true['over_true'] is None is true['handed_over']
    assert rows[small.name, 'perceived, methodrejection']['handed_over'] == .25
    assert rows[large.name, 'perceived, methodrejection']['handed_over'] is None
    guesses = accuracy.by_kind(scored(planted))['kinds']['visual']['guesses']
    assert result['constant'] == pytest.approx(guesses['constant'])
    # Told the question, they are where they were: no number holds the others.
    before, after = (scored(path).study for path in (planted, folder))
    assert before.cells.keys() == after.cells.keys() and after.hidden is not None
    told = repairs.of_arms(scored(planted), repairs.arms(scored(planted)))
    first = next(arm for arm in repairs.arms(scored(planted)) if arm.name == 'extraction')
    cells = repairs.cells_of(told, first, large.name, 'direct')
    row = rows[small.name, 'extraction']
    assert row['told'] == over(told, [cells], ((1,), families_of(told)[0]))
    words = factor_section.handing_over(result)
    assert f'{small.name}: perceived, methodrejection (0.9' in words
    assert f'{small.name}: perceived (' not in words and 'also above the true extraction' in words
    assert 'steps8000 (0.45, not clearly above the true extraction)' in words
    same = {**result, 'rows': [row for row in result['rows'] if row['arm'] == 'perceived']}
    assert 'from no text clearly more' in factor_section.handing_over(same)


def test_no_other_number_holds_answers_without_the_question(planted, tmp_path):
    numbers = []
    for folder in (planted, hide(planted, tmp_path / 'study', SHARES)):
        results, skipped = report._results(measures.scored(load_study(folder), 20))
        numbers.append(plain({'skipped': skipped, **report._without_bulk(results)}))
    before, after = numbers
    assert after.pop('hidden')['rows'] and 'hidden' not in before
    assert json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)


def only(planted, folder, wanted):
    """A copy of the planted study in which only the `wanted` rows of items are there."""
    shutil.copytree(planted, folder)
    for path in folder.glob('evaluations/*/items.parquet'):
        table = pq.read_table(path)
        rows = [row for row in table.to_pylist() if wanted(row)]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
        if not rows:
            path.unlink()
    return folder


def test_an_arm_that_lacks_seeds_says_so_and_is_not_called_best(planted, tmp_path):
    folder = only(planted, tmp_path / 'study', lambda row: '-s0-steps8000' in row['p_run']
                  or not row['p_run'].endswith('steps8000'))
    result = side_by_side(scored(folder))
    small, _ = result['readers']
    assert result['rows'][4]['arm'] == 'extraction, steps8000'
    assert f'{small}: perceived (' in factor_section.best_text(result)
    html = factor_section.repairs(result, tmp_path)
    assert '<td data-v="1">1' in html and '<td data-v="3">3' in html and '>seeds' in html


def test_without_a_plain_base_nothing_is_said_of_one(planted, tmp_path):
    folder = only(planted, tmp_path / 'study', lambda row: row['text_kind'] == 'perceived')
    result = side_by_side(scored(folder))
    assert result['base'] is None
    assert 'None' not in factor_section.repairs(result, tmp_path)


def test_one_text_that_was_not_read_yet_does_not_change_how_all_are_read(planted, tmp_path):
    small = scored(planted).sizes[0]
    folder = only(planted, tmp_path / 'study', lambda row: not (
        row['thinking'] and row['text_kind'] == 'caption' and row['p_run'] in small.runs))
    result = side_by_side(scored(folder))
    assert result['mode'] == 'think' and not result['rows'][0]['readers']

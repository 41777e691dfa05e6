"""The report of a fake study with planted effects: gate, drops, page, and what is said missing."""
import csv
import json
import re
import shutil
import subprocess
import sys

import pytest
from fake_study import CHANCE, FAMILIES, fake_study, item_row

from downscale.analysis import completeness, gate, grids, measures
from downscale.report import figures, first_screen, pair_figures, report
from downscale.results import endings
from downscale.results.items import write_items
from downscale.results.study import Cell, load_study
from downscale.statistics.shapley import CLASSES

FAULTS = {'count': {'truncated': .1, 'unparsed': .05, 'unclosed': .2},
          'color': {'truncated': .05, 'unparsed': .05}}
FIGURES = ('answer', 'accuracy', 'drops', 'reliance', 'grid', 'marginals', 'losses',
           'grid_families', 'shares', 'pareto_params')
WITHOUT = {'laws', 'isoflop', 'rates', 'layers', 'ledger'}   # the fake study has no experiment.json


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    """A report with everything, over a study with one failed stage."""
    root = fake_study(tmp_path_factory.mktemp('full') / 'study', pictures=60)
    (root / 'cells' / 'w16d2-s0' / 'reason' / 'FATAL.json').write_text('{"error": "<b>nan</b>"}')
    path = report.write_report(root, bootstraps=300)
    return root, path.read_text(), json.loads((path.parent / 'report.json').read_text())


@pytest.fixture(scope='module')
def faulty(tmp_path_factory):
    """A report over 40 pictures with planted endings, two of its evaluations with throughput."""
    root = fake_study(tmp_path_factory.mktemp('faulty') / 'study', pictures=40, faults=FAULTS)
    for name, tokens in (('texts', 777), ('w16d2-s0-image', 888)):
        (root / 'evaluations' / name / 'throughput.json').write_text(json.dumps({
            'tokens': tokens, 'seconds': 4.5, 'tokens_per_second': 172.7, 'rows': 20,
            'slot_occupancy': .875, 'padding_waste': .125, 'compiles': 3, 'compile_seconds': 2.}))
    path = report.write_report(root, bootstraps=60)
    return root, path.read_text(), json.loads((path.parent / 'report.json').read_text())


def _gate(path, **planted):
    return gate.gate(measures.scored(load_study(fake_study(path, **planted)), 300))


def _gold_in(mode, rate):
    """Rows of gold captions in one mode get a new accuracy in one family."""
    return dict.fromkeys(FAMILIES, .95) | {mode: rate}


def test_the_gate_passes_when_every_family_is_above_chance(tmp_path):
    verdict = _gate(tmp_path / 'study', gold=.95, pictures=25)
    assert verdict['interpretable']
    assert verdict['reasoner'] == 'w64d4'
    assert verdict['line'].startswith('Interpretable on the reasoning side (direct and think)')


def test_the_gate_fails_and_names_the_family_that_is_at_chance(tmp_path):
    verdict = _gate(tmp_path / 'study', gold=_gold_in('count', CHANCE), pictures=25)
    assert not verdict['interpretable']
    assert verdict['line'].startswith('Not interpretable on the reasoning side')
    assert [mode['failing'] for mode in verdict['modes'].values()] == [['count'], ['count']]
    margin = verdict['families']['count']['direct']['margin']
    assert f'count {margin.value:+.2f} [{margin.low:+.2f}' in verdict['line']
    assert 'color' not in verdict['line']


def test_one_passing_mode_is_interpretable_and_the_other_is_said_not_to_be(tmp_path):
    root = fake_study(tmp_path / 'study', pictures=25)
    for folder in root.glob('evaluations/w64d4-s0-caption-True--gold_text'):
        (folder / 'items.parquet').unlink()
    verdict = gate.gate(measures.scored(load_study(root), 200))
    assert verdict['interpretable']
    assert verdict['modes']['direct']['interpretable']
    assert not verdict['modes']['think']['interpretable']
    assert 'Not interpretable — think: no gold captions' in verdict['line']


@pytest.mark.parametrize('gold, passes', [(.95, True), (_gold_in('count', CHANCE), False)])
def test_where_no_captions_are_read_true_extractions_are_the_gate(tmp_path, gold, passes):
    root = fake_study(tmp_path / 'study', pictures=25, gold=gold)
    for items in root.glob('evaluations/*-caption-*/items.parquet'):
        items.unlink()
    verdict = gate.gate(measures.scored(load_study(root), 200))
    assert verdict['interpretable'] == passes and verdict['kind'] == 'extraction'
    assert 'on gold extractions' in verdict['line']
    # One caption that was read, and they are what has to be understood.
    shutil.rmtree(root)
    assert _gate(root, gold=gold, pictures=25)['kind'] == 'caption'


def test_planted_drops_are_found_and_flat_families_are_called_so(full):
    _, _, numbers = full
    drops = numbers['drops']['families']
    assert numbers['summary']['largest_drop']['family'] == 'count'
    assert drops['count']['absolute']['low'] < .44 < drops['count']['absolute']['high']
    assert 'animal' in numbers['summary']['no_clear_effect']
    relied = numbers['reliance']['conditions']['blind']
    assert relied['animal']['value'] < .3 < relied['count']['value']


def test_json_drops_are_differences_of_json_accuracies(full):
    _, _, numbers = full
    for family, row in numbers['drops']['families'].items():
        sizes = numbers['accuracy']['families'][family]['sizes']
        expected = sizes['w64d4']['value'] - sizes['w16d2']['value']
        assert row['absolute']['value'] == pytest.approx(expected, abs=2e-6)
    macro = numbers['accuracy']['macro']['sizes']['w64d4']['value']
    plain = [row['sizes']['w64d4']['value'] for row in numbers['accuracy']['families'].values()]
    assert macro == pytest.approx(sum(plain) / len(plain), abs=2e-6)


def test_marginal_drops_hold_the_other_side_at_its_largest(full):
    _, _, numbers = full
    panel = numbers['grid']['extraction, direct']
    cell = {(c['p'], c['r']): c['accuracy']['value'] for c in panel['cells']}
    assert len(cell) == 12
    drop = {side: panel['marginal'][side]['macro']['value'] for side in ('perception', 'reasoner')}
    top = cell['w64d4', 'w64d4']
    assert drop['perception'] == pytest.approx(top - cell['w16d2', 'w64d4'], abs=3e-6)
    assert drop['reasoner'] == pytest.approx(top - cell['w64d4', 'w16d2'], abs=3e-6)
    assert panel['marginal']['perception_minus_reasoner']['value'] == pytest.approx(
        drop['perception'] - drop['reasoner'], abs=3e-6)


def test_the_page_holds_every_figure_offline_and_begins_with_the_answer(full):
    root, html, numbers = full
    for name in FIGURES:
        assert (root / 'report' / f'{name}.png').stat().st_size > 2000, name
        assert (root / 'report' / f'{name}.csv').read_text().count('\n') > 2, name
    assert html.count('<figure>') == len(FIGURES)
    assert set(numbers['skipped']) == WITHOUT
    order = ['<h1>What does', 'From w64d4', 'answer.png', 'id="claims"', 'id="look"',
             'id="accuracy"', 'id="drops"', 'id="grid"', 'id="health"', 'id="methods"']
    places = [html.index(text) for text in order]
    assert places == sorted(places)
    for outside in ('src="http', 'href="http', '@import', 'url(http'):
        assert outside not in html


def test_predictions_questions_and_errors_are_escaped(full):
    _, html, _ = full
    assert '&lt;script&gt;alert(1)' in html
    assert html.count('<script') == 1
    assert '&lt;b&gt;left&lt;/b&gt;' in html
    assert '<b>' not in html


def test_unfinished_runs_and_the_single_seed_are_said(full):
    _, html, numbers = full
    assert [(u['run_id'], u['stage']) for u in numbers['unfinished']] == [('w16d2-s0', 'reason')]
    assert 'failed: {&quot;error&quot;: &quot;&lt;b&gt;nan' in html
    assert 'There is one seed per size' in html


def test_health_counts_answers_and_written_texts(full):
    _, html, numbers = full
    pairs = [row for row in numbers['health'] if row['way'] == 'decoupled']
    assert {row['answers'] for row in pairs} == {3 * 4 * 60}
    assert {row['mean_think_tokens'] for row in pairs if row['mode'] == 'think'} == {2}
    assert {row['mean_think_tokens'] for row in pairs if row['mode'] == 'direct'} == {None}
    assert {(row['texts'], row['truncated']) for row in numbers['texts']} == {(240, 0.)}
    assert 'Texts written by perception models' in html


def _completions(numbers):
    """(thinking, family or None for a mean over them, completion) of every accuracy."""
    for task, row in numbers['accuracy']['families'].items():
        yield from ((False, task, x) for x in row['completion'].values())
    yield from ((False, None, x) for x in numbers['accuracy']['macro']['completion'].values())
    for task, modes in numbers['gate']['families'].items():
        yield from ((mode == 'think', task, x['completion']) for mode, x in modes.items())
    for name, panel in numbers['grid'].items():
        yield from ((name.endswith('think'), None, c['completion']) for c in panel['cells'])
    yield from ((False, None, row['completion']) for row in numbers['runs'])
    yield from ((row['mode'] == 'think', None, row['completion']) for row in numbers['health'])


def test_planted_endings_stand_beside_every_accuracy(faulty):
    _, _, numbers = faulty
    found = list(_completions(numbers))
    assert len(found) == 3 * 4 + 3 + 2 * 4 + 4 * 12 + 3 + 33
    for thinking, task, x in found:
        for kind in endings.FAULTS:
            planted = [FAULTS.get(family, {}).get(kind, 0)
                       for family in ([task] if task else FAMILIES)]
            expected = None if kind == 'unclosed' and not thinking else sum(planted) / len(planted)
            assert x[kind] == (expected if expected is None else pytest.approx(expected)), kind


def test_accuracy_on_completed_answers_leaves_out_exactly_the_planted_ones(faulty):
    _, _, numbers = faulty
    checked = 0
    for thinking, task, x in _completions(numbers):
        faults = {family: sum(share for kind, share in FAULTS.get(family, {}).items()
                              if thinking or kind != 'unclosed') for family in FAMILIES}
        lost = faults[task] if task else sum(faults.values()) / len(faults)
        assert x['n_completed'] == pytest.approx(x['answers'] * (1 - lost))
        if task:   # planted answers are wrong, so what is left out has no score
            assert x['completed']['value'] * (1 - lost) == pytest.approx(
                x['accuracy']['value'], abs=3e-6)
            checked += lost > 0
    assert checked == 2 * 3 + 2 * 2
    rows = numbers['accuracy']
    for size, x in rows['macro']['completion'].items():
        parts = [row['completion'][size]['completed']['value'] for row in rows['families'].values()]
        assert x['completed']['value'] == pytest.approx(sum(parts) / 4, abs=3e-6)


def test_completions_repeat_the_accuracies_they_stand_beside(faulty):
    root, _, numbers = faulty
    for row in (*numbers['accuracy']['families'].values(), numbers['accuracy']['macro']):
        for size, x in row['sizes'].items():
            for end in ('value', 'low', 'high'):
                assert row['completion'][size]['accuracy'][end] == pytest.approx(x[end], abs=2e-6)
    cells = [cell for panel in numbers['grid'].values() for cell in panel['cells']]
    assert all(cell['completion']['accuracy']['value'] == pytest.approx(
        cell['accuracy']['value'], abs=2e-6) for cell in cells)
    with open(root / 'report' / 'grid.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48 and {round(float(row['truncated']), 9) for row in rows} == {.0375}


def test_a_warning_names_what_is_above_the_limit_and_nothing_at_it(faulty, full):
    _, html, numbers = faulty
    warned = {part: {x['kind']: x for x in found} for part, found in numbers['warnings'].items()}
    assert set(warned) == {'gate', 'accuracy', 'grid', 'runs', 'health'}
    # 'color' is at 5 % and 'count' above it, so nothing is said of unparsed answers
    assert set(warned['accuracy']) == {'truncated'}
    assert set(warned['grid']) == {'truncated', 'unclosed'}
    worst = warned['accuracy']['truncated']
    assert (worst['groups'], worst['of'], worst['share']) == (3, 12, .1)
    assert worst['worst'].endswith('count')
    assert (warned['grid']['unclosed']['groups'], warned['grid']['unclosed']['of']) == (24, 48)
    assert html.index('cut off, unparsed or left open') < html.index('id="claims"')
    assert ('truncated in 3 of 12 groups, most in w16d2, count (10.0 %), then in w32d4, count and '
            'in w64d4, count') in html
    assert '<b class="bad">10.0</b>' in html and '<b class="bad">5.0</b>' not in html
    assert 'over 5 % in count' in html
    _, html, numbers = full
    assert numbers['warnings'] == {}
    assert 'More than 5 %' not in html and '<b class="bad">' not in html


@pytest.mark.parametrize(('share', 'due'), [(.05, False), (.075, True)])
@pytest.mark.parametrize('kind', endings.FAULTS)
def test_the_warning_is_due_just_above_the_limit(tmp_path, kind, share, due):
    root = fake_study(tmp_path / 'study', pictures=40, conditions=('image',),
                      faults=dict.fromkeys(FAMILIES, {kind: share}))
    s = measures.scored(load_study(root), 20)
    for cell in s.study.cells:
        by_family, mean = completeness.completion(s, [cell])
        expected = [kind] if due and (cell.thinking or kind != 'unclosed') else []
        assert list(mean.over.get('count', {})) == expected, cell
        assert bool(mean.over) == bool(expected) == any(x.over for x in by_family.values())


def test_repeats_and_seeds_weigh_in_completed_answers_as_in_the_accuracy(tmp_path):
    """Item a: three repeats (1, 0, cut off), a third each; item b: one answer (1)."""
    root = fake_study(tmp_path / 'study', pictures=2, conditions=(), decoupled=False)
    cut = {'finish': 'length', 'truncated': True}
    answers = [('a', 0, 1., {}), ('a', 1, 0., {}), ('a', 2, 1., cut), ('b', 0, 1., {})]
    write_items(root / 'evaluations' / 'x' / 'items.parquet', [
        item_row(item_id=item, cluster_id=item, repeat=repeat, score=score, **more)
        for item, repeat, score, more in answers])
    write_items(root / 'evaluations' / 'y' / 'items.parquet', [
        item_row(item_id=item, cluster_id=item, p_run='w32d4-s0', score=float(item == 'a'))
        for item in 'ab'])
    s = measures.scored(load_study(root), 50)
    cells = [Cell(f'{size}-s0', '', '', False, 'image') for size in ('w16d2', 'w32d4')]
    _, x = completeness.completion(s, cells[:1])
    assert x.truncated == pytest.approx(1 / 6)
    assert x.accuracy.value == pytest.approx((2 / 3 + 1) / 2)
    assert x.completed.value == pytest.approx((1 / 3 + 1) / (2 / 3 + 1))
    assert (x.answers, x.n_completed, x.completed.n, x.completed.clusters) == (4, 3, 2, 2)
    _, both = completeness.completion(s, cells)
    assert both.accuracy.value == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert both.completed.value == pytest.approx((1 / 3 + 1 + 1) / (2 / 3 + 1 + 2))


def test_a_family_without_completed_answers_has_no_accuracy_on_them(tmp_path):
    faults = {'count': {'truncated': 1.}}
    root = fake_study(tmp_path / 'study', pictures=6, decoupled=False, faults=faults)
    path = report.write_report(root, bootstraps=20)
    html, numbers = path.read_text(), json.loads((path.parent / 'report.json').read_text())
    rows = numbers['accuracy']['families']
    assert rows['count']['completion']['w64d4']['completed'] is None
    assert rows['color']['completion']['w64d4']['completed']['n'] == 6
    assert numbers['accuracy']['macro']['completion']['w64d4']['completed'] is None
    assert '>none<small>all 0.00' in html


def test_cut_off_texts_of_perception_models_warn_too(full):
    _, _, numbers = full
    rows = [{**row, 'truncated': completeness.FaultShare(share)}
            for row, share in zip(numbers['texts'], (.05, .06, .2, 0, 0, 0), strict=True)]
    found = completeness.warnings({'gate': {'families': {}}, 'health': [], 'texts': rows})
    third = rows[2]
    assert found == {'texts': [{'kind': 'truncated', 'groups': 2, 'of': 6, 'share': .2,
                                'worst': f'{third["text_kind"]} of {third["p_run"]}',
                                'next': [f'{rows[1]["text_kind"]} of {rows[1]["p_run"]}']}]}


def test_heat_map_cells_lead_to_their_items_or_else_to_their_table(faulty, tmp_path):
    root, html, _ = faulty
    links = re.findall(r'xlink:href="items/(?:caption|extraction)-\w+\.html\?wrong=', html)
    assert len(links) == 48 * 3   # a cell's ground and both its lines
    panels = grids.grid(measures.scored(load_study(root), 20))
    svg = figures.save(pair_figures.grid, panels, tmp_path, 'grid')
    assert svg.count('xlink:href="#completed"') == 48 * 3
    assert html.count('id="completed"') == 1


def test_throughput_is_shown_and_its_absence_is_said(faulty, full):
    _, html, numbers = faulty
    assert set(numbers['throughput']['evaluations']) == {'texts', 'w16d2-s0-image'}
    assert numbers['throughput']['evaluations']['texts']['padding_waste'] == .125
    speed = html[html.index('<summary>Speed'):]
    assert all(f'>{value}' in speed for value in ('777', '888', '172.700', '0.875', '0.125'))
    assert len(numbers['throughput']['absent']) == 56
    assert 'No throughput.json beside 56 of 58 evaluations: w16d2-s0-blind' in speed
    _, html, numbers = full
    assert numbers['throughput']['evaluations'] == {}
    assert 'No throughput.json beside 58 of 58 evaluations' in html


def test_the_gallery_shows_pictures_and_every_class(full):
    _, html, numbers = full
    every = sum(map(len, numbers['gallery'].values()))
    assert html.count('data:image/png;base64') == every + first_screen.CARDS
    assert set(numbers['gallery']) == set(CLASSES)
    assert numbers['gallery']['perception loss'] and numbers['gallery']['reasoning loss']
    assert html.count('alt="picture 0"') == every + first_screen.CARDS
    assert 'w32d4 sees a red' in html


def test_equal_input_gives_equal_json_bytes_without_matplotlib_state(full, tmp_path):
    root, _, _ = full
    again = report.write_report(root, tmp_path, bootstraps=300)
    for name in ('report.json', 'report.html', 'drops.csv'):
        assert (again.parent / name).read_bytes() == (root / 'report' / name).read_bytes(), name


def test_a_study_without_blind_or_decoupled_rows_says_so(tmp_path):
    root = fake_study(tmp_path / 'study', pictures=8, conditions=('image', 'shuffled'),
                      decoupled=False)
    html = report.write_report(root, bootstraps=50).read_text()
    assert 'Skipped: no blind condition for w64d4' in html
    assert 'no perception x reasoner pairs' in html
    assert 'not interpretable: no reasoner was evaluated' in html
    assert 'question not saved' in html


def test_a_study_without_answers_still_has_a_report(tmp_path):
    root = fake_study(tmp_path / 'study', pictures=1, conditions=(), decoupled=False)
    numbers = json.loads((report.write_report(root, bootstraps=20).parent / 'report.json')
                         .read_text())
    assert set(numbers['skipped']) == WITHOUT | {
        'answer', 'accuracy', 'drops', 'reliance', 'grid', 'gallery', 'families', 'shares', 'flips',
        'pareto', 'learnt'}
    assert not numbers['gate']['interpretable']


def test_the_analysis_does_not_import_jax():
    code = ('import sys, downscale.report.report; '
            'sys.exit(any(m in sys.modules for m in ("jax", "flax", "matplotlib")))')
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0

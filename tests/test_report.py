"""The report of a fake study with planted effects: gate, drops, page, and what is said missing."""
import json
import subprocess
import sys

import pytest
from fake_study import CHANCE, FAMILIES, fake_study

from downscale.analysis import gate, measures, report
from downscale.analysis.tables import load_study

FIGURES = ('accuracy', 'drops', 'reliance', 'grid', 'marginals', 'losses')


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    """A report with everything, over a study with one failed stage."""
    root = fake_study(tmp_path_factory.mktemp('full') / 'study', pictures=60)
    (root / 'cells' / 'w16d2-s0' / 'reason' / 'FATAL.json').write_text('{"error": "<b>nan</b>"}')
    path = report.write_report(root, bootstraps=300)
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


def test_the_page_holds_every_figure_offline_and_the_gate_first(full):
    root, html, numbers = full
    for name in FIGURES:
        assert (root / 'report' / f'{name}.png').stat().st_size > 2000, name
        assert (root / 'report' / f'{name}.csv').read_text().count('\n') > 2, name
    assert html.count('<svg') == len(FIGURES)
    assert numbers['skipped'] == {}
    assert html.index(numbers['gate']['line'][:40]) < html.index('<h1>')
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
    assert 0 < max(row['parse_failed'] for row in pairs) < .1
    assert {(row['texts'], row['truncated']) for row in numbers['texts']} == {(240, 0.)}
    assert 'Texts written by perception models' in html


def test_the_gallery_shows_pictures_and_all_three_classes(full):
    _, html, numbers = full
    assert html.count('data:image/png;base64') == sum(map(len, numbers['gallery'].values()))
    assert set(numbers['gallery']) == {'lost', 'wrong', 'right'}
    assert numbers['gallery']['lost']
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
    assert 'Not interpretable on the reasoning side: no text-only reasoner' in html
    assert 'question not saved' in html


def test_a_study_without_answers_still_has_a_report(tmp_path):
    root = fake_study(tmp_path / 'study', pictures=1, conditions=(), decoupled=False)
    numbers = json.loads((report.write_report(root, bootstraps=20).parent / 'report.json')
                         .read_text())
    assert set(numbers['skipped']) == {'accuracy', 'drops', 'reliance', 'grid', 'gallery'}
    assert not numbers['gate']['interpretable']


def test_the_analysis_does_not_import_jax():
    code = ('import sys, downscale.analysis.report; '
            'sys.exit(any(m in sys.modules for m in ("jax", "flax", "matplotlib")))')
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0

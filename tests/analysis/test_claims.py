"""Claims: verdicts against declared thresholds, gates, seeds and budgets, and what is declared."""
import csv
import json

import fake_study as fake
import numpy as np
import pytest
from fake_study import fake_study
from scipy import stats
from scipy.stats import binom

from downscale.analysis import claims, grids, measures, synth
from downscale.analysis.claims import CLAIMS, Claim, verdict_of
from downscale.analysis.planted.study import NOTHING, Planted
from downscale.commands import main
from downscale.report import claim_table
from downscale.results.study import load_study
from downscale.runtime.files import read_json, write_json
from downscale.statistics import bootstrap
from downscale.study.preparation import prepare

GREATER = Claim(id='g', text='more', contrast='thinking', threshold=.1)
ALIKE = Claim(id='s', text='as much', contrast='thinking', test='equivalent', threshold=.1)


def around(low, high, seeds=3):
    return bootstrap.Interval(value=(low + high) / 2, low=low, high=high, n=100, clusters=50,
                              method='planted', seeds=seeds)


@pytest.mark.parametrize(('claim', 'low', 'high', 'verdict'), [
    (GREATER, .11, .2, 'supported'), (GREATER, .09, .2, 'inconclusive'),
    (GREATER, -.2, .09, 'contradicted'), (GREATER, float('nan'), float('nan'), 'inconclusive'),
    (ALIKE, -.09, .09, 'supported'), (ALIKE, -.09, .11, 'inconclusive'),
    (ALIKE, .11, .2, 'contradicted'), (ALIKE, -.2, -.11, 'contradicted'),
    (ALIKE, -.2, .2, 'inconclusive')])
def test_the_whole_interval_decides(claim, low, high, verdict):
    assert verdict_of(claim, around(low, high))[0] == verdict


@pytest.mark.parametrize(('claim', 'value', 'at'), [
    (GREATER, .2, .1), (GREATER, -.2, .1), (ALIKE, .02, .1), (ALIKE, -.3, -.1)])
def test_p_is_of_the_place_where_a_claim_turns(claim, value, at):
    x = bootstrap.Interval(value=value, low=0, high=0, n=1, clusters=9, method='', seeds=5,
                           error=.05, degrees=4)
    assert claims.p_value(claim, x) == pytest.approx(
        2 * stats.t.sf(abs(value - at) / .05, 4))
    assert np.isnan(claims.p_value(claim, around(.2, .3)))  # of a bound that no t interval gave


def test_p_agrees_with_the_interval_and_holm_counts_the_claims_that_were_judged(planted):
    rows = judged(planted.folder)
    tested = [row for row in rows.values() if row['p'] == row['p']]
    assert len(tested) > 4
    for row in tested:
        at = row['threshold'] if row['test'] == 'greater' else np.copysign(.05, row['effect'])
        clipped = max(abs(row['low']), abs(row['high'])) == 1
        assert clipped or (row['p'] < .05) == (not row['low'] <= at <= row['high'])
    counted = [row for row in tested if row['verdict'] != 'not interpretable']
    least = min(counted, key=lambda row: row['p'])
    assert least['p_holm'] == pytest.approx(min(1, len(counted) * least['p']))
    assert all(np.isnan(row['p_holm']) for row in rows.values()
               if row['verdict'] == 'not interpretable')


def test_a_claim_that_another_would_have_left_open_is_named():
    row = {'id': 'a', 'verdict': 'supported', 'p_holm': .08}
    said, = claim_table.weak([row, row | {'id': 'b', 'p_holm': .01}])
    assert said.startswith('a: decided by the interval')
    assert claim_table.weak([row | {'verdict': 'inconclusive'}, row | {'p_holm': np.nan}]) == []


def test_seeds_that_are_missing_leave_a_claim_open_unless_it_said_otherwise():
    verdict, reason = verdict_of(GREATER, around(.2, .3, seeds=1))
    assert verdict == 'inconclusive' and 'seeds are missing: 1 of at least 3' in reason
    assert (
        verdict_of(Claim(id='g', text='', contrast='thinking', seeds=1), around(0.2, 0.3, 1))[0]
        == 'supported'
    )


def test_a_doubt_holds_unless_it_works_against_what_is_found():
    assert verdict_of(GREATER, around(.2, .3), 'unequal') == ('not interpretable', 'unequal')
    assert verdict_of(GREATER, around(.2, .3), 'unequal', one_sided=True) == (
        'supported', 'although unequal')
    assert verdict_of(GREATER, around(-.3, 0.), 'unequal', one_sided=True)[0] == \
        'not interpretable'


@pytest.mark.parametrize(('values', 'message'), [
    ([{'id': 'a', 'text': '', 'contrast': 'thinkin'}], "'thinkin'; did you mean 'thinking'"),
    ([{'id': 'a', 'text': '', 'contrast': 'thinking', 'threshol': 1.}], "mean 'threshold'"),
    ([{'id': 'a', 'text': '', 'contrast': 'thinking', 'test': 'equivalent'}], 'must be above 0'),
    ([{'id': 'a', 'text': '', 'contrast': 'thinking'}] * 2, "id 'a' is given twice"),
    ([{'id': 'a', 'contrast': 'thinking'}], "missing key 'text'"), ('a', 'must be a list')])
def test_a_wrong_declaration_is_one_line(values, message):
    with pytest.raises(ValueError, match=message):
        claims.read(values)


@pytest.fixture(scope='module')
def planted(tmp_path_factory):
    """A study on disk with every effect, three seeds, and budgets that are equal."""
    place = tmp_path_factory.mktemp('claims') / 'study'
    return synth(7, place, sizes=3, seeds=3, items=640, full=False,
                 planted=Planted(extraction=1.2))


equal_tokens = claims.CONTRASTS['extraction_minus_caption_equal_tokens']


def judged(root, bootstraps=400):
    return {row['id']: row for row in claims.judge(measures.scored(load_study(root), bootstraps))}


def test_planted_effects_are_found_and_told_by_the_report(planted):
    root, truth = planted.folder, planted.truth
    assert main.main(['analyze', 'report', str(root), '--bootstraps', '400']) == 0
    found = json.loads((root / 'report' / 'report.json').read_text())
    rows = {row['contrast']: row for row in found['claims']}
    assert set(rows) == {claim.contrast for claim in CLAIMS}
    missed = []
    for name, effect in truth['claims'].items():
        if not rows[name]['low'] <= effect <= rows[name]['high']:
            missed.append(name)
        assert rows[name]['seeds'] == 3 and 't over 3 seeds' in rows[name]['method']
    verdicts = {row['id']: row['verdict'] for row in found['claims']}
    assert verdicts['a'] == verdicts['d1'] == verdicts['d2'] == verdicts['f'] == 'supported'
    assert verdicts['c'] != 'supported' and not rows['thinking']['registered']
    shares = found['shares']['macro']['extraction, think']
    for side in grids.SIDES:
        x = shares['shares'][side]
        if not x['low'] <= truth['shares'][side] <= x['high']:
            missed.append(side)
    x = shares['interactions']['perception x reasoner']
    if not x['low'] <= truth['shares']['interaction'] <= x['high']:
        missed.append('interaction')
    # Of eight intervals of 95 % one misses in a third of studies, two hardly ever.
    assert len(missed) <= 1, missed
    law = found['laws']['loss of stage text']['fit']['parameters']
    for name, value in truth['law'].items():
        assert law[name]['low'] <= value <= law[name]['high'], name
    exponent = found['isoflop']['fit']['exponent']
    assert exponent['low'] <= .4 / (.35 + .4) <= exponent['high']
    chosen = found['rates']['choices']
    assert {choice['lr'] for choice in chosen.values()} == {2. ** -8}
    assert set(found['skipped']) == {'layers', 'ledger'}
    html = (root / 'report' / 'report.html').read_text()
    assert '<td class="verdict good">✓ supported' in html and '>Claims</h2>' in html
    assert html.count('<figure>') == len(list((root / 'report').glob('*.png')))
    tables = {path.stem for path in (root / 'report').glob('*.csv')}
    assert tables == {path.stem for path in (root / 'report').glob('*.png')} | {'claims', 'learnt'}
    with open(root / 'report' / 'claims.csv', newline='') as file:
        told = {row['id']: row for row in csv.DictReader(file)}
    assert {name: row['verdict'] for name, row in told.items()} == verdicts
    assert float(told['a']['low']) == pytest.approx(rows['visual_minus_knowledge']['low'])


def test_unequal_budgets_make_a_claim_not_interpretable(planted):
    root = planted.folder
    for path in root.glob('cells/*/extract/experiment.json'):
        value = read_json(path)
        value['stages'][0]['parents'] = dict.fromkeys(('language', 'tower'), 'caption')
        write_json(path, value)   # now captions were learnt before extractions
    rows = judged(root)
    assert rows['d1']['verdict'] == 'not interpretable' and rows['d1']['effect'] > 0
    assert 'extraction has 1.28e+05 examples, captioning 6.4e+04' in rows['d1']['reason']
    assert rows['d2']['verdict'] == 'supported'


@pytest.mark.parametrize(('tokens', 'verdict'), [(1.3, 'not interpretable'), (.5, 'supported')])
def test_longer_texts_spoil_a_win_and_shorter_ones_do_not(tokens, verdict):
    s = measures.scored(synth(7, sizes=2, seeds=3, items=480, planted=Planted(
        tokens=tokens, extraction=2.)).study, 300)
    row = {row['id']: row for row in claims.judge(s)}['d2']
    assert row['verdict'] == verdict and 'tokens a text' in row['reason']


def test_captions_cut_to_the_length_of_extractions_are_what_equal_tokens_compares(
        tmp_path, monkeypatch):
    monkeypatch.setitem(fake.TEXTS_OF, 'brief', .3)
    study = load_study(fake_study(tmp_path / 'study', pictures=80))
    s = measures.scored(study, 300)
    found = equal_tokens(s, 'think')
    cut, whole = found.effect, claims.CONTRASTS['extraction_minus_caption'](s, 'think').effect
    assert found.where.startswith('brief captions, ') and not found.doubt
    assert cut.low > whole.high and cut.low < .3 < cut.high
    assert 'brief, think' in grids.grid(s)


def test_one_seed_supports_nothing_and_says_so():
    s = measures.scored(synth(5, sizes=2, seeds=1, items=800).study, 300)
    rows = claims.judge(s)
    assert 'supported' not in {row['verdict'] for row in rows}
    assert all('covers no more' in row['reason'] for row in rows if 'missing' in row['reason'])
    assert {row['id'] for row in rows if 'seeds are missing: 1' in row['reason']} >= {'a', 'f'}


def test_a_study_that_asks_nothing_about_pictures_has_its_claims_listed_with_the_reason():
    study = synth(5, sizes=2, seeds=1, items=400).study
    study.items['category'][:] = 'knowledge'
    rows = {row['id']: row for row in claims.judge(measures.scored(study, 100))}
    assert {rows[name]['verdict'] for name in ('a', 'c', 'd1', 'f')} == {'not interpretable'}
    assert rows['f']['reason'] == 'needs a family of questions about pictures'


def test_a_failed_gate_leaves_numbers_and_takes_their_meaning(tmp_path):
    rows = judged(fake_study(tmp_path / 'study', gold=.25, pictures=30), 200)
    for name in ('c', 'd2', 'e', 'f'):
        assert rows[name]['verdict'] == 'not interpretable'
        assert rows[name]['gate'].startswith('failed (think)') and rows[name]['effect'] is not None
    assert rows['a']['gate'].startswith('passed') and rows['a']['verdict'] == 'inconclusive'
    # What was not judged is no test: its p is shown, and makes the others no harder.
    assert any(row['p'] == row['p'] for row in map(rows.get, 'cef'))
    assert all(np.isnan(rows[name]['p_holm']) for name in 'cef')


def test_what_has_no_data_is_not_interpretable_with_the_reason(tmp_path):
    rows = judged(fake_study(tmp_path / 'study', decoupled=False, conditions=('image',),
                             pictures=12), 100)
    assert rows['b']['reason'].startswith('no blind and no shuffled condition')
    assert rows['f']['reason'] == 'no extraction or caption was answered in mode think'
    assert rows['b']['effect'] is None and rows['b']['seeds'] == 0


def test_a_study_is_judged_by_the_claims_it_declared(tmp_path):
    root = fake_study(tmp_path / 'study', pictures=30)
    meta = read_json(root / 'study.json')
    one = {'id': 'own', 'text': 'Mine', 'contrast': 'visual_minus_knowledge', 'threshold': .9,
           'gate': 'joint', 'seeds': 1}
    write_json(root / 'study.json', {**meta, 'claims': [one]})
    rows = judged(root, 200)
    assert list(rows) == ['own'] and rows['own']['registered']
    assert (rows['own']['verdict'], rows['own']['threshold']) == ('contradicted', .9)


DECLARING = '''
from ml_collections import ConfigDict

CLAIMS = (dict(id='a', text='Visual falls more', contrast='visual_minus_knowledge', gate='joint'),)

def get_config(arg=''):
    common = dict(steps=2, batch=8, length=128, tiles=0, rates=dict(language=3e-3))
    return ConfigDict(dict(
        study='tiny', platform='cpu', family='micro', vocabulary=320, claims=CLAIMS,
        vision=dict(layers=1, W=32, H=2, F=64, patch=20, image=80),
        world=dict(min_objects=2, max_objects=3, n_facts=8),
        data=dict(train=8, validation=4, test=4), stages=dict(text=common),
        evaluation=dict(scenes=2, batch=32, write=64, think=16)))

def sweep(arg=''):
    return [dict(size='w32d1', seed=0)]
'''


def test_claims_of_a_study_file_are_written_before_the_run_and_stay(tmp_path):
    from downscale.experiment.file import claims_of, open_cells
    file = tmp_path / 'tiny.py'
    file.write_text(DECLARING)
    config, cells = open_cells(file, [])
    prepare(tmp_path / 'run', 'tiny', cells, True, claims_of(config))
    told = read_json(tmp_path / 'run' / 'study.json')['claims']
    assert claims.read(told) == (
        Claim(id='a', text='Visual falls more', contrast='visual_minus_knowledge', gate='joint'),
    )
    assert told[0]['seeds'] == 3   # defaults are said as well
    changed = [{**told[0], 'threshold': .2}]
    prepare(tmp_path / 'run', 'tiny', cells, True, changed)   # nothing is evaluated yet
    write_json(tmp_path / 'run' / 'evaluations' / 'joint' / 'DONE.json', {})
    prepare(tmp_path / 'run', 'tiny', cells, True, changed)
    for other in (told, None):
        with pytest.raises(ValueError, match='the claims differ from those in'):
            prepare(tmp_path / 'run', 'tiny', cells, True, other)
    file.write_text(DECLARING.replace("gate='joint'", "gate='joined'"))
    with pytest.raises(ValueError, match="unknown gate 'joined'; did you mean 'joint'"):
        open_cells(file, [])

@pytest.mark.parametrize('value', ['a', ['a', 'b'], 3])
def test_a_claim_that_is_no_mapping_is_named(value):
    with pytest.raises(ValueError, match=r'claims\[0\] must be a mapping, not '):
        claims.read([value])


def test_reliance_counts_as_one_seed_since_its_interval_is_over_families(planted):
    s = measures.scored(load_study(planted.folder), 200)
    found = claims.CONTRASTS['drop_by_reliance'](s, 'think')
    assert found.effect.seeds == 1 and 'families, not seeds' in found.where
    row = {row['id']: row for row in claims.judge(s)}['b']
    assert row['verdict'] == 'inconclusive'


def test_captions_shorter_than_what_they_are_cut_to_raise_a_doubt(tmp_path, monkeypatch):
    monkeypatch.setitem(fake.TEXTS_OF, 'brief', .3)
    study = load_study(fake_study(tmp_path / 'study', pictures=20))
    study.texts['n_tokens'] = np.where(study.texts['text_kind'] == 'caption', 3, 5)
    found = equal_tokens(measures.scored(study, 100), 'think')
    assert found.doubt == 'extraction has 5 tokens a text, captioning 3' and not found.one_sided
    study.texts['n_tokens'] = np.where(study.texts['text_kind'] == 'caption', 9, 5)
    found = equal_tokens(measures.scored(study, 100), 'think')
    assert not found.doubt   # the longer ones were cut


def test_a_launched_job_registers_claims_as_a_study_does(tmp_path):
    from downscale.experiment.file import claims_of, open_cells
    from downscale.launch import attempt
    file, run = tmp_path / 'tiny.py', tmp_path / 'run'
    file.write_text(DECLARING)
    config, cells = open_cells(file, [])
    attempt._prepare(run, 'tiny', cells, None)
    attempt._prepare(run, 'tiny', cells, claims_of(config))   # nothing but the claims has changed
    assert read_json(run / 'study.json')['claims'][0]['id'] == 'a'
    before = (run / 'study.json').stat().st_mtime_ns
    attempt._prepare(run, 'tiny', cells, claims_of(config))
    assert (run / 'study.json').stat().st_mtime_ns == before
    write_json(run / 'evaluations' / 'joint' / 'DONE.json', {})
    with pytest.raises(ValueError, match='the claims differ from those in'):
        attempt._prepare(run, 'tiny', cells, None)


# --- how often intervals hold the truth ---------------------------------------------------------

STUDIES = 40


def effects(seed, planted):
    """(truth, {name: Interval}) of a small study: every contrast with a truth, and the shares."""
    made = synth(seed, sizes=2, seeds=3, items=320, planted=planted)
    s = measures.scored(made.study, 300, seed)
    found = {name: claims.CONTRASTS[name](s, 'think').effect for name in made.truth['claims']}
    of = grids.shares(s, grids.corners(s, grids.panels(s)['extraction', 'think']))['macro']
    found |= {**of.shares, 'interaction': of.interactions[grids.SIDES], 'total': of.total}
    truth = {**made.truth['claims'], **made.truth['shares']}
    return {**truth, 'total': truth['perception'] + truth['reasoner']}, found


def test_intervals_of_planted_effects_hold_them_nominally():
    hits = {}
    for seed in range(STUDIES):
        truth, found = effects(seed, Planted(seed=.3))
        for name, x in found.items():
            hits.setdefault(name, []).append(x.low <= truth[name] <= x.high)
    assert len(hits) == 9
    least = binom.ppf(.001, STUDIES, .95)
    assert {name: sum(hit) for name, hit in hits.items() if sum(hit) < least} == {}
    # Not by being far too wide: some truths are missed.
    assert np.mean(list(hits.values())) < .999


def test_no_effect_is_seldom_called_one():
    wrong = {}
    for seed in range(STUDIES):
        _, found = effects(100 + seed, Planted(**{**NOTHING.__dict__, 'seed': .3}))
        for name, x in found.items():
            wrong.setdefault(name, []).append(
                verdict_of(Claim(id=name, text='', contrast='thinking'), x)[0]
            )
    most = binom.ppf(.999, STUDIES, .05)
    often = {name: of.count('supported') for name, of in wrong.items()}
    assert max(often.values()) <= most, often

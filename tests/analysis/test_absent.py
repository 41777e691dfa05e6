"""Evaluations that are missing are named everywhere, and intervals do not narrow by them."""
import shutil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from downscale.analysis import absent, drops, measures, synth
from downscale.commands import main
from downscale.report import report, summary
from downscale.results.items import HIDDEN
from downscale.results.study import load_study
from downscale.runtime.files import read_json, write_json

LARGE = 'w256d8'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return synth(3, tmp_path_factory.mktemp('absent') / 'study', sizes=2, seeds=3,
                 items=160).folder


@pytest.fixture
def root(whole, tmp_path):
    for name in ('study.json', 'evaluations'):
        copy = shutil.copytree if (whole / name).is_dir() else shutil.copy
        tmp_path.mkdir(exist_ok=True)
        copy(whole / name, tmp_path / name)
    return tmp_path


def drop(root, **wanted):
    """Take the rows out that have these values."""
    for path in root.glob('evaluations/*/items.parquet'):
        rows = pq.read_table(path)
        gone = pa.array([True] * len(rows))
        for name, value in wanted.items():
            gone = pc.and_(gone, pc.equal(rows[name], value))
        pq.write_table(rows.filter(pc.invert(gone)), path)


def names(root):
    return [name for name, _ in absent.absent(measures.scored(load_study(root), 10))]


def test_nothing_is_missing_of_a_whole_study(root):
    assert absent.absent(measures.scored(load_study(root), 10)) == []
    assert absent.sentence([]) == ''


@pytest.mark.parametrize(('wanted', 'missing'), [
    ({'p_run': f'{LARGE}-s2', 'r_run': ''}, [f'{LARGE}-s2, joint, blind',
                                             f'{LARGE}-s2, joint, image']),
    ({'p_run': f'{LARGE}-s0', 'condition': 'blind'}, [f'{LARGE}-s0, joint, blind']),
    ({'p_run': '', 'r_run': 'w32d2-s1', 'text_kind': 'caption', 'thinking': True},
     ['gold -> w32d2-s1, caption, think']),
    ({'p_run': 'w32d2-s1', 'r_run': f'{LARGE}-s1', 'text_kind': 'extraction', 'thinking': False},
     [f'w32d2-s1 -> {LARGE}-s1, extraction, direct'])])
def test_a_missing_evaluation_has_a_name(root, wanted, missing):
    drop(root, **wanted)
    assert names(root) == missing


def test_a_folder_that_is_gone_names_every_way_of_its_run(root):
    shutil.rmtree(root / 'evaluations' / f'reason-{LARGE}-s2')
    found = names(root)
    assert len(found) == 4 + 8 and all(f'-> {LARGE}-s2' in name for name in found)


def test_a_size_without_any_answer_is_missed_because_its_stages_ask_for_it(root):
    for seed in range(3):
        shutil.rmtree(root / 'evaluations' / f'joint-{LARGE}-s{seed}')
    assert [name for name in names(root)] == [
        f'{LARGE}-s{seed}, joint, {condition}' for seed in range(3)
        for condition in ('blind', 'image')]


def test_what_an_experiment_declares_is_missed_when_nobody_did_it(root):
    write_json(root / 'cells' / 'w32d2-s0' / 'instruct' / 'experiment.json',
               {'evaluation': {'conditions': ['image', 'shuffled']}})
    s = measures.scored(load_study(root), 10)
    assert [name for name, _ in absent.absent(s)] == [
        f'{size}-s{seed}, joint, shuffled' for size in (LARGE, 'w32d2') for seed in range(3)]


def test_readers_that_were_told_the_question_alone_are_missed(root):
    for path in root.glob('evaluations/reason-*/items.parquet'):
        table = pq.read_table(path)
        more = [{**row, 'condition': HIDDEN, 'eval_id': f'{row["eval_id"]}-hidden'}
                for row in table.to_pylist() if row['r_run'] and not row['thinking']]
        rows = table.to_pylist() + more
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    assert names(root) == []
    drop(root, condition=HIDDEN, p_run='w32d2-s1', r_run=f'{LARGE}-s1', text_kind='extraction')
    assert names(root) == [f'w32d2-s1 -> {LARGE}-s1, extraction, the question hidden']
    drop(root, condition=HIDDEN, p_run='w32d2-s0', task='fact')
    assert len([name for name, what in absent.absent(measures.scored(load_study(root), 10))
                if what == '20 of 160 questions lack']) == 4   # two kinds, two readers
    drop(root, condition=HIDDEN)
    assert names(root) == []
    # What nobody did is missed where it was declared.
    write_json(root / 'cells' / 'w32d2-s0' / 'reason' / 'experiment.json',
               {'evaluation': {'question_hidden': True}})
    found = names(root)
    # Seeds, kinds of text, readers, writers and the truth.
    assert len(found) == 3 * 2 * 2 * 3 and all('question hidden' in name for name in found)


def test_half_of_the_questions_are_missing_in_part(root):
    drop(root, p_run=f'{LARGE}-s1', r_run='', task='fact', condition='image')
    assert absent.absent(measures.scored(load_study(root), 10)) == [
        (f'{LARGE}-s1, joint, image', '20 of 160 questions lack')]


def test_a_question_of_one_run_that_is_missing_leaves_a_report_that_says_so(root):
    for path in root.glob(f'evaluations/joint-{LARGE}-s1/items.parquet'):
        pq.write_table(pq.read_table(path).slice(1), path)
    shutil.copytree(root, root / 'other')
    for path in (root / 'other').glob(f'evaluations/joint-{LARGE}-s1/items.parquet'):
        rows = pq.read_table(path)
        place = rows.schema.get_field_index('data_hash')
        pq.write_table(rows.set_column(place, rows.schema.field(place),
                                       pa.array(['other'] * len(rows))), path)
    for folder, words in ((root, ['1 of 160 questions lack']), (root / 'other', [
            '1 of 160 questions lack', 'of other data than most (data_hash)'])):
        s = measures.scored(load_study(folder), 20)
        results, skipped = report._results(s)
        assert {what for _, what in results['missing']} == set(words)
        assert skipped['drops'].startswith(f'pairing: {LARGE}-s1 image lacks 1 of 160 items')
        assert summary.summary(s, results)['sentences'][0].startswith('Missing: ')


def test_headline_validate_and_report_name_it_and_no_interval_narrows(root, capsys):
    before = drops.by_family(measures.scored(load_study(root), 200))['macro']
    drop(root, p_run=f'{LARGE}-s2', r_run='')
    page = report.write_report(root, bootstraps=200)
    told = read_json(page.parent / 'report.json')
    name = f'{LARGE}-s2, joint, image'
    assert [name, 'not there'] in told['missing']
    assert told['summary']['sentences'][0].startswith('Missing: 2 evaluations: ')
    assert name in page.read_text().partition('<figure')[0]   # it is said before any number
    for kind in ('absolute', 'relative_chance'):
        after = told['drops']['macro'][kind]
        assert after['seeds'] == 2 and after['method'].startswith('two-way t over 2 seeds')
    # A spread is estimated anew from the seeds that are left, so that a width may come out smaller
    # by chance, as that of the ratio here does; what must not be is that seeds no longer count.
    after = told['drops']['macro']['absolute']
    assert after['high'] - after['low'] > before['absolute'].high - before['absolute'].low
    rows = {row['id']: row for row in told['claims']}
    assert rows['a']['seeds'] == rows['f']['seeds'] == 2
    assert rows['a']['verdict'] in ('inconclusive', 'not interpretable')
    capsys.readouterr()
    assert main.main(['analyze', 'validate', str(root)]) in (0, None)
    assert f'note: missing: {name}: not there' in capsys.readouterr().out


def test_equal_numbers_of_the_report_have_equal_intervals(root):
    """Of complete answers accuracy, completed accuracy and the rows under Health are one number."""
    told = read_json(report.write_report(root, bootstraps=100).parent / 'report.json')
    macro = told['accuracy']['macro']
    for size, x in macro['sizes'].items():
        ended = macro['completion'][size]
        row = next(row for row in told['health'] if row['way'] == 'joint'
                   and row['condition'] == 'image' and row['size'] == size)
        assert x == ended['accuracy'] == ended['completed'] == row['completion']['accuracy']
        way = next(row for row in told['pareto']['costs']['params']['rows']
                   if row['way'] == f'joint {size}')
        assert x == way['accuracy']

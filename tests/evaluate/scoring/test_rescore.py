"""Scoring again what is stored: lists, both forms of samples, axes, and files that are wrong."""
import json

import pytest
from question_file import fails
from roots import DATA

from downscale.commands.main import main
from downscale.data import row_files
from downscale.evaluate.scoring.macro import macro_of, mean_of
from downscale.evaluate.scoring.rescore import judged, summary, table
from downscale.evaluate.scoring.stored_replies import read_rows

FIXTURE = DATA / 'mcq_scorers.json'


def written(path, value):
    lines = value if path.suffix == '.jsonl' else [value]
    path.write_text('\n'.join(map(json.dumps, lines)))
    return path


def printed(capsys, *words):
    assert main(['rescore', *map(str, words)]) == 0
    return capsys.readouterr().out


def test_the_command_prints_every_scorers_own_value(capsys):
    found = json.loads(printed(capsys, FIXTURE, '--json'))
    wanted = json.loads(FIXTURE.read_text())
    assert [{name: row[name] for name in right} for row, right in zip(found, wanted)] == wanted
    only = json.loads(printed(capsys, FIXTURE, '--json', '--scorers', 'vlmevalkit'))
    assert only[0].keys() == {'text', 'gold', 'vlmevalkit'}


def test_the_table_tells_accuracy_interval_unparsed_and_disagreement(capsys):
    lines = printed(capsys, FIXTURE, '--scorers', 'lmms_v04', 'vlmevalkit').splitlines()
    rows = json.loads(FIXTURE.read_text())
    right = sum(row['lmms_v04'] for row in rows)
    apart = sum(row['lmms_v04'] != (row['vlmevalkit'] == row['gold']) for row in rows)
    none = sum(row['vlmevalkit'] is None for row in rows)
    assert lines[1].split()[:3] == ['lmms_v04', '72', f'{right / 72:.4f}']
    assert f'{100 * none / 72:.1f} %' in lines[2] and f'{100 * apart / 72:.1f} %' in lines[2]
    assert f'scorers differ on {apart} of 72 rows' in lines[3]


def test_options_people_boxes_and_shares_of_a_row_are_used(tmp_path):
    rows, _ = read_rows(written(tmp_path / 'x.json', [
        {'text': 'the red one', 'gold': 'B', 'choices': {'A': 'blue', 'B': 'red'}},
        {'text': '2', 'gold': ['two'] * 9 + ['three']},
        {'text': '[0, 0, 1, 1]', 'gold': [0, 0, 1, 1]},
        {'text': 'B', 'gold': 'B', 'share': 0.75}, {'text': 'Yes.', 'gold': 'yes'},
        {'text': 'nul \0', 'gold': 'x', 'id': 1}]))
    found = judged(rows)
    assert found[0]['vlmevalkit'].value == 'B'
    assert found[1]['vqa'].value == 1.0 and found[1].keys() >= {'vqav2', 'vqav2_v04'}
    assert found[2]['coin'].value == 1.0 and found[3]['preferred'].score == 0.75
    assert found[4]['pope'].value == 0.0 and found[4]['yes_no'].value == 'yes'


@pytest.mark.parametrize('kept', [['so\nAnswer: B'], 'so\nAnswer: B'])
def test_both_forms_of_samples_are_read_and_thoughts_go_where_the_harness_strips(tmp_path, kept):
    again = '<think>The answer is A</think>none'
    path = written(tmp_path / 'x.jsonl', [
        {'doc_id': 7, 'target': 'B', 'filtered_resps': kept},
        {'doc_id': 3, 'target': 'A', 'filtered_resps': [again], 'resps': [[again]]},
        {'doc_id': 4, 'target': '', 'filtered_resps': ['x']}])
    rows, notes = read_rows(path)
    assert [row.text for row in rows] == [again, 'so\nAnswer: B'] and notes == [
        '1 records without a right answer are left out']
    found = judged(rows)
    assert found[1]['ref_stage2'].value == 1.0 and found[0]['lmms_v07_letter'].value == ''
    assert 'left out' in list(table(summary(rows, found), rows, found, notes))[-1]


def test_axes_of_stored_samples_become_a_mean_over_axes(tmp_path):
    def record(k, axis, text):
        score = {'question_id': 100 - k, 'l2_category': axis, 'score': 0.0}
        return {'doc_id': k, 'target': 'A', 'filtered_resps': text, 'math': score, 'average': score}
    path = written(tmp_path / 'x.jsonl', [
        *(record(k, 'geometry', 'A' if k else 'B') for k in range(4)),
        *(record(k, 'statistics', 'B') for k in range(4, 6))])
    rows, _ = read_rows(path)
    found = summary(rows, judged(rows))['lmms_v04']
    assert found['value'] == pytest.approx(3 / 6)
    assert found['average']['value'] == pytest.approx((3 / 4 + 0) / 2)
    assert found['categories'].keys() == {'math'}


def test_completed_rows_are_those_that_were_neither_cut_off_nor_empty(tmp_path):
    path = written(tmp_path / 'x.jsonl', [
        {'doc_id': k, 'target': 'A', 'filtered_resps': [text], 'truncated': cut}
        for k, (text, cut) in enumerate([('A', False), ('B', False), ('A', True), ('', False)])])
    rows, _ = read_rows(path)
    found = summary(rows, judged(rows))['exact-1']
    assert (found['truncated'], found['unparsed']) == (0.25, 0.25)
    assert (found['completed'], found['accuracy_completed'], found['value']) == (2, 0.5, 0.5)


@pytest.mark.parametrize('value, told', [
    ([{'text': 'a', 'gold': 'A'}, 1], 'entry 2: must be a JSON object'),
    ([{'text': 'a'}], "entry 1: missing field 'gold'"), ([{'text': 3, 'gold': 'A'}], 'a text'),
    ([{'text': 'a', 'gold': None}], 'gold must be'), ([{'text': 'a', 'gold': []}], 'gold must be'),
    ([{'text': 'a', 'gold': 'A', 'choices': ['x']}], 'choices must be'), ({'a': 1}, 'JSON list'),
    ([{'text': 'a', 'gold': 'A', 'share': 2}], 'share must be')])
def test_a_wrong_row_is_named_by_its_number(tmp_path, capsys, value, told):
    path = written(tmp_path / 'x.json', value)
    fails(lambda: read_rows(path), 'x.json', told)
    assert main(['rescore', str(path)]) == 1
    assert capsys.readouterr().err.count('\n') == 1


def test_a_scorer_that_was_asked_for_and_judges_nothing_is_told(tmp_path, capsys):
    path = written(tmp_path / 'x.json', [{'text': 'red', 'gold': ['red', 'crimson']}])
    *_, last = printed(capsys, path, '--scorers', 'vqa', 'exact-2').splitlines()
    assert last == ('vqa judges no row: vqa counts the answers of 10 people, and here are 2; of '
                    'accepted spellings exact-2 takes each')
    assert 'judges no row' not in printed(capsys, path, '--scorers', 'exact-1', 'exact-2')


@pytest.mark.parametrize('form', row_files.FORMS)
def test_every_form_of_rows_is_read(tmp_path, form):
    path, row = tmp_path / f'x{form}', {'text': 'It is red.', 'gold': 'red'}
    mark = {'.csv': ',', '.tsv': '\t'}.get(form)
    path.write_text(f'text{mark}gold\nIt is red.{mark}red\n' if mark else json.dumps(row))
    if form == '.json':
        path.write_text(json.dumps([row]))
    (found,), notes = read_rows(path)
    assert (found.text, found.gold, notes) == ('It is red.', 'red', [])
    fails(lambda: read_rows(path.rename(tmp_path / 'x.parquet')),
          f'replies are in {", ".join(row_files.FORMS)} files')


def test_what_cannot_be_scored_is_refused(tmp_path):
    fails(lambda: read_rows(tmp_path / 'no.json'), 'no file', error=FileNotFoundError)
    fails(lambda: read_rows(tmp_path), 'but a folder', error=FileNotFoundError)
    for data in (b'\xff[', b'[' * 100000, b'PK\x03\x04'):
        (tmp_path / 'x.json').write_bytes(data)
        fails(lambda: read_rows(tmp_path / 'x.json'), 'x.json')
    rows, _ = read_rows(FIXTURE)
    fails(lambda: judged(rows, ['lmms_v4']), "did you mean 'lmms_v04'")
    fails(lambda: judged(rows, ['vqa']), 'made for other answers')


# --- one question, one record ---------------------------------------------------------------------

def stored(k, target, *texts, **more):
    return {'doc_id': k, 'doc': {'question': f'q{k}'}, 'target': target, 'resps': [list(texts)],
            'filtered_resps': list(texts), **more}


def scores(path, name='exact-1'):
    """(n, accuracy of a scorer, notes) of a file."""
    rows, notes = read_rows(path)
    found = summary(rows, judged(rows))[name]
    return found['n'], found['value'], notes


def test_filters_of_the_same_replies_are_scored_each_by_itself(tmp_path, capsys):
    path = written(tmp_path / 'x.jsonl', [
        {**stored(k, 'B', text), 'filter': name}
        for name, some in (('strict', 4), ('loose', 10))
        for k, text in enumerate(['B'] * some + ['[invalid]'] * (10 - some))])
    lines = printed(capsys, path, '--scorers', 'exact-1').splitlines()
    assert lines[0] == 'filter strict:' and lines[2].split()[1:3] == ['10', '0.4000']
    assert lines[4] == 'filter loose:' and lines[6].split()[1:3] == ['10', '1.0000']
    rows = json.loads(printed(capsys, path, '--json'))
    assert [row['filter'] for row in rows].count('loose') == 10 and len(rows) == 20


@pytest.mark.parametrize('many', [['A', 'B', 'B', 'B'], [['A', 'B', 'B', 'B']]])
def test_several_replies_to_a_question_are_one_of_n_and_told(tmp_path, many):
    path = written(tmp_path / 'x.jsonl', [
        {**stored(k, 'B'), 'filtered_resps': many} for k in range(10)])
    n, value, notes = scores(path)
    assert (n, value) == (10, 0.75) and notes[0].startswith('40 replies to 10 questions')


def test_padded_records_count_once_and_other_replies_are_refused(tmp_path):
    rows = [stored(k, 'B', 'B' if k else 'A') for k in range(4)]
    assert scores(written(tmp_path / 'x.jsonl', [*rows, rows[0], rows[1]])) == (
        4, 0.75, ['2 of 6 records stand there again (padded batches); each counts once'])
    for other, what in ((stored(0, 'B', 'B'), 'another reply'), (stored('1', 'C', 'B'),
                                                                 'another question')):
        fails(lambda: read_rows(written(tmp_path / 'x.jsonl', [*rows, other])), what, 'one task')


@pytest.mark.parametrize('target, doc, text, right', [
    (['two', '2'], {}, '2', True), ("['two', '2']", {}, '2', True), (['two'], {}, 'two', True),
    ("['two']", {}, 'two', True), (1, {'choices': ['red', 'blue']}, 'B', True),
    ('1', {'choices': ['red', 'blue']}, 'B', True), (1, {'choices': {'text': ['red', 'blue'],
                                                                     'label': ['A', 'B']}}, 'B',
                                                     True),
    (7, {}, '7', True), ('7', {'options': "['5', '7']"}, 'B', True),
    ('[1, 2]', {}, '[1, 2]', True), (True, {}, 'true', True), (2.5, {}, '2.5', True)])
def test_what_is_right_keeps_its_structure(tmp_path, target, doc, text, right):
    path = written(tmp_path / 'x.jsonl', [{**stored(0, target, text), 'doc': doc}])
    assert scores(path) == (1, float(right), [])


@pytest.mark.parametrize('change, told', [
    ({'target': {'a': 1}}, 'target must be a text'), ({'target': [[1]]}, 'target must be a text'),
    ({'target': 1, 'doc': {'choices': ['1', '2']}}, "target 1 names 2 of the options"),
    ({'doc_id': None}, 'doc_id must be'), ({'doc_id': [1]}, 'doc_id must be'),
    ({'filtered_resps': [['-3.2', 'False'], ['-1.0', 'True']]}, 'likelihoods of options'),
    ({'filtered_resps': [3]}, 'a reply must be a text, not 3'),
    ({'filtered_resps': [], 'resps': []}, 'neither filtered_resps nor resps')])
def test_what_no_record_can_mean_is_refused(tmp_path, change, told):
    path = written(tmp_path / 'x.jsonl', [stored(3, 'B', 'B'), {**stored(1, 'B', 'B'), **change}])
    fails(lambda: read_rows(path), 'x.jsonl: line 2: ', told)


def test_a_box_of_a_sample_and_samples_as_one_list_are_read(tmp_path):
    rows = [stored(0, [0.1, 0.1, 0.5, 0.5], '[0.1, 0.1, 0.5, 0.5]')]
    for name, value in (('x.jsonl', rows), ('x.json', rows)):
        assert scores(written(tmp_path / name, value), 'refcoco') == (1, 1.0, [])
    rows = [{'text': 'B', 'gold': 'B'}]
    assert scores(written(tmp_path / 'y.jsonl', rows)) == (1, 1.0, [])
    fails(lambda: read_rows(written(tmp_path / 'y.json', [{**rows[0], 'choises': {}}])),
          "entry 1: unknown field 'choises'; did you mean 'choices'")
    fails(lambda: read_rows(written(tmp_path / 'z.jsonl', [{'doc_id': 1, 'filtered_resp': 'B'}])),
          "did you mean 'filtered_resps'")


# --- intervals ------------------------------------------------------------------------------------

def test_the_mean_over_strata_has_the_stratified_error():
    found = macro_of([1, 0, 1, 1, 0, 0], ['a', 'a', 'a', 'a', 'b', 'b'])
    assert found['value'] == pytest.approx((0.75 + 0) / 2)
    # only stratum a varies: s^2 = 4 * 0.75 * 0.25 / 3
    assert found['se'] == pytest.approx((0.5 ** 2 * 0.25 / 4) ** 0.5)
    assert found['high'] - found['value'] == pytest.approx(1.96 * found['se'], rel=1e-3)
    sure = macro_of([1.0] * 4, ['a', 'a', 'b', 'b'])
    assert sure['low'] < sure['value'] == 1.0
    assert macro_of([1.0, 0.0, 0.0], ['a', 'b', 'b'])['low'] is None


def test_rows_of_one_picture_make_the_interval_wider():
    alone = mean_of([1.0, 0.0] * 30, [str(k) for k in range(60)])
    together = mean_of([1.0, 1.0, 0.0, 0.0] * 15, [str(k // 2) for k in range(60)])
    assert alone['method'] == 'Wilson' and together['clusters'] == 30
    assert together['high'] - together['low'] > 1.2 * (alone['high'] - alone['low'])
    assert mean_of([0.5], ['a'])['low'] is None


# --- yes and no by kind, scales, and what differs -----------------------------------------------

def test_yes_and_no_are_counted_by_kind_of_question(tmp_path, capsys):
    rows = [{'text': text, 'gold': gold, 'family': family} for family, pairs in (
        ('random', (('Yes.', 'yes'), ('No.', 'no'))), ('popular', (('Yes.', 'no'), ('no', 'yes'))))
        for text, gold in pairs]
    path = written(tmp_path / 'x.json', rows)
    lines = printed(capsys, path, '--scorers', 'yes_no').splitlines()
    table_ = {tuple(line.split()[:2]): line.split()[2:7] for line in lines if 'yes_no ' in line}
    assert table_['yes_no', 'random'] == ['2', '1.0000', '1.0000', '1.0000', '1.0000']
    assert table_['yes_no', 'popular'] == ['2', '0.0000', '0.0000', '0.0000', '0.0000']
    assert table_['yes_no', 'all'] == ['4', '0.5000', '0.5000', '0.5000', '0.5000']


def test_other_scales_are_counted_and_sizes_of_rows_are_used(tmp_path, capsys):
    row = {'text': '[250, 300, 750, 900]', 'gold': [0.25, 0.3, 0.75, 0.9]}
    path = written(tmp_path / 'x.json', [row, row | {'width': 640, 'height': 480}])
    rows, _ = read_rows(path)
    found = summary(rows, judged(rows))
    assert found['exact-2']['other_scale'] == 0.5 == found['exact-2']['value']
    assert found['coin']['other_scale'] == 1.0 and 'another scale' in printed(capsys, path)
    fails(lambda: read_rows(written(path, [row | {'width': 640}])), 'width and height must both')


def test_equal_texts_do_not_differ_by_rounding(tmp_path):
    path = written(tmp_path / 'x.json', [{'text': 'the cat', 'gold': 'the cat'}])
    rows, _ = read_rows(path)
    found = judged(rows, ['rouge_l', 'lmms_exact'])
    assert found[0]['rouge_l'].score != found[0]['lmms_exact'].score
    assert 'scorers differ on 0 of 1' in '\n'.join(table(summary(rows, found), rows, found))


@pytest.mark.parametrize('gold', ['', ' ', ['']])
def test_a_row_of_a_list_without_a_right_answer_is_left_out_and_said(tmp_path, gold):
    path = tmp_path / 'replies.json'
    path.write_text(json.dumps([{'text': 'red', 'gold': gold}, {'text': 'red', 'gold': 'red'}]))
    rows, notes = read_rows(path)
    assert [row.gold for row in rows] == ['red']
    assert notes == ['1 records without a right answer are left out']


@pytest.mark.parametrize('options', [['one', 'two'], {'A': 'one', 'B': 'two'},
                                     {'B': 'two', 'A': 'one'},
                                     {'text': ['one', 'two'], 'label': ['A', 'B']}])
def test_a_numbered_target_names_an_option_however_they_are_listed(tmp_path, options):
    path = tmp_path / 'samples.jsonl'
    path.write_text(json.dumps({'doc_id': 0, 'doc': {'options': options}, 'target': 1,
                                'resps': [['B']], 'filtered_resps': ['B']}) + '\n')
    (row,), _ = read_rows(path)
    assert row.target.answers == ('B',)


@pytest.mark.parametrize('options', [{'x': 'one', 'y': 'two'}, [{'text': 'one'}], 7])
def test_a_numbered_target_beside_options_of_another_form_is_refused(tmp_path, options):
    path = tmp_path / 'samples.jsonl'
    path.write_text(json.dumps({'doc_id': 0, 'doc': {'options': options}, 'target': 1,
                                'resps': [['B']], 'filtered_resps': ['B']}) + '\n')
    with pytest.raises(ValueError, match='the options are no list of texts'):
        read_rows(path)

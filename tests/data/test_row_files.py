"""One reader for each text form: right rows, bad rows with a reason, or one short line."""
import codecs
import csv
import json

import pytest

from downscale.data.row_files import BadRow, read, read_object, read_whole, shown
from downscale.runtime.streams import LONGEST_ERROR

ROWS = [{'id': 1, 'text': 'naïve 猫 😀'}, {'id': 2, 'text': 'b'}]
LINES = '\n'.join(json.dumps(row, ensure_ascii=False) for row in ROWS)
SHEET = 'id,text\n1,naïve 猫 😀\n2,b\n'
CODINGS = {'utf-8': b'', 'utf-8-sig': b'', 'utf-16': b'', 'utf-16-le': codecs.BOM_UTF16_LE,
           'utf-16-be': codecs.BOM_UTF16_BE}


def put(folder, name, text, coding='utf-8'):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else CODINGS[coding] + text.encode(coding))
    return path


def rows_of(path):
    return [row for _, row in read(path)]


def bad(path):
    """(where, reason, detail) of the bad rows."""
    return [(row.where, row.reason, row.detail) for _, row in read(path)
            if isinstance(row, BadRow)]


@pytest.mark.parametrize('coding', CODINGS)
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize('name, text', [
    ('a.json', json.dumps(ROWS, ensure_ascii=False, indent=1)), ('a.JSON', LINES),
    ('a.json', json.dumps({'info': {'version': '1'}, 'data': ROWS}, ensure_ascii=False)),
    ('a.jsonl', LINES + '\n'), ('a.ndjson', LINES), ('a.jsonl', '\n\n' + LINES + '\n  \n\n'),
    ('a.jsonl', json.dumps(ROWS, ensure_ascii=False, indent=1)),
    ('a.jsonl', json.dumps(ROWS, ensure_ascii=False)),
    ('a.csv', SHEET), ('a.csv', SHEET.replace(',', ';')), ('a.csv', SHEET.replace(',', '\t')),
    ('a.tsv', SHEET.replace(',', '\t')), ('a.CSV', 'sep=;\n' + SHEET.replace(',', ';')),
    ('a.csv', SHEET.replace('2,b', ',\n\n"2","b"\n,'))])
def test_a_row_is_the_same_in_every_dress(tmp_path, coding, end, name, text):
    path = put(tmp_path, name, text.replace('\n', end), coding)
    assert [{'id': int(row['id']), 'text': row['text']} for row in rows_of(path)] == ROWS


def test_rows_are_told_by_the_line_or_entry_where_they_begin(tmp_path):
    assert [where for where, _ in read(put(tmp_path, 'a.jsonl', '\n{}\n\n{}'))] == [
        'line 2', 'line 4']
    assert [where for where, _ in read(put(tmp_path, 'a.json', '[{},\n{}]'))] == [
        'entry 1', 'entry 2']
    sheet = put(tmp_path, 'a.csv', 'a,b\n"x\n,\ny",1\n\n2,3\n')
    assert read(sheet) == [('line 2', {'a': 'x\n,\ny', 'b': '1'}),
                           ('line 6', {'a': '2', 'b': '3'})]


DEEP = '[' * 100_000


@pytest.mark.parametrize('line, reason, detail', [
    ('null', 'wrong type', 'must be a JSON object, not null'),
    ('[1]', 'wrong type', 'must be a JSON object, not a list'),
    ('7', 'wrong type', 'a number'), ('"x"', 'wrong type', 'a text'),
    ('{"a": 1, "b": {"c": 1, "c": 2}}', 'unreadable row', "the key 'c' stands twice"),
    ('{"a": "\\ud83d"}', 'bad text', 'half a surrogate pair (\\ud83d)'),
    ('{"x\\uDE00": 1}', 'bad text', 'half a surrogate pair'),
    (b'{"a": "\xe9t\xe9"}', 'bad text', 'not UTF-8 (byte 0xe9'),
    ('{"a": ' + '9' * 5000 + '}', 'unreadable row', '4,300 digits'),
    ('{"a": ' + '[' * 70 + ']' * 70 + '}', 'unreadable row', 'nested more than 64 levels')])
@pytest.mark.parametrize('name', ['a.jsonl', 'a.json'])
def test_a_bad_row_costs_itself_only(tmp_path, name, line, reason, detail):
    line = line if isinstance(line, bytes) else line.encode()
    rows = b'{"a": 1}', line, b'{"b": [[' + b'[],' * 90 + b'[]]]}'
    text = b'[' + b',\n'.join(rows) + b']' if name == 'a.json' else b'\n'.join(rows)
    found = read(put(tmp_path, name, text))
    assert [type(row).__name__ for _, row in found] == ['dict', 'BadRow', 'dict']
    (where, told, why), = bad(tmp_path / name)
    assert where == found[1][0] == ('entry 2' if name == 'a.json' else 'line 2')
    assert told == reason and detail in why and len(why) < 100
    with pytest.raises(ValueError, match=f'{name}: {where}: '):
        read_whole(tmp_path / name)


@pytest.mark.parametrize('line, detail', [
    ('{"id": torn', 'no readable JSON'), ('{"a": 1} {"a": 2}', 'Extra data'), (DEEP, 'nested'),
    ('\x00' * 40, 'no readable JSON')])
def test_a_line_that_is_no_json_is_a_bad_row(tmp_path, line, detail):
    (where, reason, why), = bad(put(tmp_path, 'a.jsonl', f'{{}}\n{line}\n{{}}'))
    assert (where, reason) == ('line 2', 'unreadable row') and detail in why


def test_a_torn_last_line_says_so(tmp_path):
    (_, _, why), = bad(put(tmp_path, 'a.jsonl', '{}\n{"id": 9, "ima'))
    assert 'the file ends in this line' in why
    assert 'ends' not in bad(put(tmp_path, 'a.jsonl', '{}\n{"id": 9, "ima\n'))[0][2]


@pytest.mark.parametrize('text, reason, detail', [
    ('1\n', 'unreadable row', '1 cells for 2 columns'),
    ('1,2,3\n', 'unreadable row', '3 cells for 2 columns'),
    ('"x" y,2\n', 'unreadable row', 'no readable cells'),
    ('"never closed,2\n', 'unreadable row', 'no readable cells up to line'),
    (b'caf\xe9,2\n', 'bad text', 'not UTF-8')])
@pytest.mark.parametrize('name', ['a.csv', 'a.tsv'])
def test_a_bad_line_of_a_sheet_is_a_bad_row(tmp_path, name, text, reason, detail):
    text = b'a,b\n1,2\n' + (text if isinstance(text, bytes) else text.encode())
    path = put(tmp_path, name, text if name == 'a.csv' else text.replace(b',', b'\t'))
    (where, told, why), = bad(path)
    assert (where, told) == ('line 3', reason) and detail in why
    assert rows_of(path)[0] == {'a': '1', 'b': '2'}


@pytest.mark.parametrize('name, text, message', [
    ('a.json', '', 'the file is empty'), ('a.json', ' \n', 'the file is empty'),
    ('a.json', '7', 'must hold a JSON list'), ('a.json', '[{}, {"a": "b', 'the file ends inside'),
    ('a.json', '[{}, {}', 'the file ends behind entry 2'), ('a.json', '[{}] x', 'text behind'),
    ('a.json', '[{} {}]', 'no comma behind entry 1'), ('a.json', '[' + DEEP, 'nested'),
    ('a.json', '{"a": ' + DEEP, 'nested'), ('a.json', '{"torn', 'the file ends inside'),
    ('a.json', '{"images": [{}], "annotations": [{}]}', "keys ['images', 'annotations']"),
    ('a.json', '{"data": [{}], "model": "m"}', "keys ['data', 'model']"),
    ('a.json', '{"17": {"question": "q"}}', 'one object of the keys'),
    ('a.csv', '', 'no header'), ('a.csv', 'a,b,a\n1,2,3\n', "column twice: ['a']"),
    ('a.csv', b'\xe9t\xe9,b\n1,2\n', 'header is not UTF-8'),
    ('a.csv', '"a,b\n1,2\n', 'its header is no readable CSV'),
    ('a.json', b'\x1f\x8b\x08\x00', 'packed with gzip'), ('a.csv', b'PK\x03\x04', 'spreadsheet'),
    ('a.jsonl', b'PAR1', 'Parquet'), ('a.json', 'version https://git-lfs.x/v1\n', 'git lfs'),
    ('a.json', '<!DOCTYPE html>', 'web page'), ('a.json', b'\xff\xfe{\x00"', 'begins as UTF-16'),
    ('a.json.gz', '', "is called .gz"), ('rows', '', 'without a suffix')])
def test_what_is_wrong_with_a_file_is_one_short_line(tmp_path, name, text, message):
    with pytest.raises(ValueError) as caught:
        read(put(tmp_path, name, text))
    assert message in str(caught.value) and name in str(caught.value)
    assert '\n' not in str(caught.value) and len(str(caught.value)) <= LONGEST_ERROR


def test_long_names_and_keys_do_not_make_a_long_line(tmp_path):
    folder = tmp_path / ('x' * 200) / ('y' * 200)
    folder.mkdir(parents=True)
    for text in ('{"%s": [1], "b": 2}' % ('k' * 900), '{"%s": 1, "%s": 2}' % (('\\n' * 900,) * 2)):
        with pytest.raises(ValueError) as caught:
            read(put(folder, 'rows.json', text))
        assert 'rows.json' in str(caught.value) and len(str(caught.value)) <= LONGEST_ERROR
        assert str(caught.value).isprintable()
    with pytest.raises(FileNotFoundError, match='no file .*no.json'):
        read(folder / 'no.json')
    assert shown('a\nb\x1b[31m' + 'x' * 99, 20) == 'a\\nb\\x1b[31mxxxxx...'


def test_an_object_is_read_as_rows_are(tmp_path):
    assert read_object(put(tmp_path, 'a.json', '{"a": "é"}', 'utf-16')) == {'a': 'é'}
    for text, message in (('[1]', 'must be a JSON object, not a list'), ('', 'no readable JSON'),
                          ('{\n"a": 1,\n5}', 'line 3'), ('{"a": 1, "a": 2}', 'twice')):
        with pytest.raises(ValueError, match=f'a.json: .*{message}'):
            read_object(put(tmp_path, 'a.json', text))


@pytest.mark.parametrize(('cell', 'answer'), [
    ("['red', 'crimson']", ['red', 'crimson']), ('["red", "crimson"]', ['red', 'crimson']),
    ('[0.1, 0.2, 0.3, 0.4]', '[0.1, 0.2, 0.3, 0.4]'), ('[red]', '[red]'), ('[]', '[]')])
def test_a_cell_of_a_sheet_may_spell_a_list_of_accepted_answers(tmp_path, cell, answer):
    path = tmp_path / 'a.csv'
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([('question', 'answer'), (cell, cell)])
    (_, row), = read(path)
    assert row == {'question': cell, 'answer': answer}

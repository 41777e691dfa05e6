"""`downscale analyze validate`: one line for every fault, and exit code 2 where numbers suffer."""
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_study import fake_study

from downscale.commands import main
from downscale.probe import probe
from downscale.results.items import write_items
from downscale.results.study import load_study
from downscale.runtime.files import read_json, write_json


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    return fake_study(tmp_path_factory.mktemp('validate') / 'study', pictures=6)


@pytest.fixture
def study(good, tmp_path):
    return shutil.copytree(good, tmp_path / 'study')


def validate(capsys, root):
    """(exit code, errors, notes) of the command; its text has one line for each."""
    code = main.main(['analyze', 'validate', str(root), '--json'])
    found = json.loads(capsys.readouterr().out)
    assert main.main(['analyze', 'validate', str(root)]) == code
    text = capsys.readouterr().out
    assert text.count('error: ') == len(found['errors'])
    assert text.count('note: ') == len(found['notes'])
    assert f'{len(found["errors"])} errors, {len(found["notes"])} notes' in text
    return code, found['errors'], found['notes']


def rows_of(path):
    return pq.ParquetFile(path).read().to_pylist()


def test_a_whole_study_has_no_errors(capsys, good):
    assert validate(capsys, good) == (0, [], [])


def test_every_broken_table_is_named_not_only_the_first(capsys, study):
    for name, column in (('w16d2-s0-image', 'gold'), ('w32d4-s0-image', 'score')):
        path = study / 'evaluations' / name / 'items.parquet'
        pq.write_table(pq.ParquetFile(path).read().drop_columns([column]), path)
    path = study / 'evaluations' / 'w64d4-s0-image' / 'items.parquet'
    table = pq.ParquetFile(path).read()
    pq.write_table(pa.concat_tables([table, table.slice(0, 3)]), path)
    code, errors, _ = validate(capsys, study)
    assert code == 2 and len(errors) == 3
    assert "1 columns missing ['gold']" in errors[0] and "['score']" in errors[1]
    assert '3 duplicate (eval_id, item_id, repeat)' in errors[2]
    assert not any('\n' in error for error in errors)


def test_items_and_hashes_that_do_not_pair_are_errors(capsys, study):
    path = study / 'evaluations' / 'w64d4-s0-shuffled' / 'items.parquet'
    write_items(path, rows_of(path)[2:])
    path = study / 'evaluations' / 'w64d4-s0-caption-False-w64d4-s0-image' / 'items.parquet'
    write_items(path, [{**row, 'data_hash': 'other'} for row in rows_of(path)])
    code, errors, _ = validate(capsys, study)
    assert code == 2 and len(errors) == 2
    assert errors[0].startswith('pairing: w64d4-s0 shuffled lacks 2 of 24 items')
    assert 'data_hash' in errors[1] and 'differs on 24 of 24' in errors[1]


@pytest.mark.parametrize(('change', 'message'), [
    (lambda meta: {**meta, 'runs': meta['runs'] + meta['runs'][:1]}, 'run_ids are given twice'),
    (lambda meta: {**meta, 'runs': [{'run_id': 'x'}]},
     "1 runs are wrong, first run 'x': missing key 'size', 'seed', 'n_total'"),
    (lambda meta: {**meta, 'data': {'baselines': {'color': 0}}}, "of 'color' is 0, not a JSON"),
    (lambda meta: {**meta, 'data': {'baselines': {'color': {'majority': 2}}}}, "'majority' is 2"),
    (lambda meta: {**meta, 'data': 3}, 'data = 3 must be of type dict'),
    (lambda meta: {**meta, 'stages': {'a': 'text'}}, "stages.a must be a list, not 'text'"),
    (lambda meta: {'name': 'x'}, "field 'runs' is None, not a list of runs"),
    (lambda meta: {**meta, 'runs': meta['runs'][1:]}, '1 runs are not in study.json'),
    (lambda meta: {**meta, 'claims': [{'id': 'a', 'text': '', 'contrast': 'drop'}]},
     "unknown contrast 'drop'")])
def test_a_study_file_that_is_wrong_is_an_error(capsys, study, change, message):
    write_json(study / 'study.json', change(read_json(study / 'study.json')))
    code, errors, _ = validate(capsys, study)
    assert code == 2 and len(errors) == 1 and message in errors[0]


@pytest.mark.parametrize('change', [
    lambda meta: {**meta, 'runs': meta['runs'] * 2},
    lambda meta: {**meta, 'runs': [{'run_id': 'x'}] * 3},
    lambda meta: {**meta, 'data': {'baselines': {'color': {'majority': 2}}}},
    lambda meta: {**meta, 'stages': {'w16d2-s0': 'text'}}, lambda meta: {**meta, 'newer': 1},
    lambda meta: {'name': 'x'}, lambda meta: [meta]])
def test_probe_refuses_a_study_file_as_the_analysis_does(study, tmp_path, change):
    write_json(tmp_path / 'study.json', change(read_json(study / 'study.json')))
    lines = []
    for opened in (probe.probe_study, load_study):
        with pytest.raises(ValueError, match='study.json') as caught:
            opened(tmp_path)
        lines.append(str(caught.value))
    assert lines[0] == lines[1] and '\n' not in lines[0] and len(lines[0]) <= 300


def test_failed_runs_and_bad_endings_are_notes(capsys, tmp_path):
    root = fake_study(tmp_path / 'study', pictures=20, faults={'count': {'truncated': .1}},
                      decoupled=False, conditions=('image',))
    (root / 'cells' / 'w16d2-s0' / 'text' / 'FATAL.json').write_text('{"reason": "nan"}')
    code, errors, notes = validate(capsys, root)
    assert (code, errors) == (0, [])
    assert notes[0] == 'w16d2-s0/text: failed: {"reason": "nan"}'
    assert notes[1:] == [
        f'{size}-s0 direct image: truncated over 5% in 1 families, most in count (10.0%)'
        for size in ('w16d2', 'w32d4', 'w64d4')]


def test_no_study_is_one_error(capsys, tmp_path):
    code, errors, _ = validate(capsys, tmp_path)
    assert code == 2 and len(errors) == 1 and 'no study.json' in errors[0]

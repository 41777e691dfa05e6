"""Schemas, strict writing, loading and pairing."""
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_study import SIZES, fake_study, item_row

from downscale.analysis.tables import Cell, load_study, pair
from downscale.evaluate import items
from downscale.evaluate.items import TableError, write_items


@pytest.fixture
def study_dir(tmp_path):
    return fake_study(tmp_path / 'study', pictures=5)


def test_equal_rows_give_equal_bytes_in_any_order(tmp_path):
    rows = [item_row(item_id=f'i{k}', score=k / 7, nll_gold=float('nan')) for k in range(7)]
    write_items(tmp_path / 'a.parquet', rows)
    write_items(tmp_path / 'b.parquet', [dict(reversed(row.items())) for row in reversed(rows)])
    assert (tmp_path / 'a.parquet').read_bytes() == (tmp_path / 'b.parquet').read_bytes()
    write_items(tmp_path / 'b.parquet', [*rows[1:], item_row(score=.5)])
    assert (tmp_path / 'a.parquet').read_bytes() != (tmp_path / 'b.parquet').read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / 'items.parquet'
    write_items(path, [item_row()])
    before = path.read_bytes()

    def half(table, where, **options):
        where.write_bytes(b'half')
        raise OSError('disk full')
    monkeypatch.setattr(items.pq, 'write_table', half)
    with pytest.raises(OSError, match='disk full'):
        write_items(path, [item_row(score=0.)])
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ['items.parquet']


@pytest.mark.parametrize(('rows', 'message'), [
    ([item_row(), item_row(repeat=1), item_row()], r'1 duplicate .*i0'),
    ([{k: v for k, v in item_row().items() if k != 'chance'}], r"1 of 1 rows lack .*'chance'"),
    ([item_row(), item_row(item_id='i1', colour=1)], r"1 of 2 rows have the unknown .*'colour'"),
    ([item_row(score=1.5)], r'1 of 1 rows have score outside'),
    ([item_row(chance=float('nan'))], r'1 of 1 rows have chance outside'),
    ([item_row(score='1')], r'wrong type'),
    ([item_row(pred=None)], r"'pred' has 1 nulls"),
    ([item_row(condition='dark')], r'1 rows have an unknown condition'),
    ([item_row(r_run='w16d2-s0')], r'neither joint, decoupled nor gold'),
])
def test_rows_that_break_the_schema_raise_one_line_with_counts(tmp_path, rows, message):
    with pytest.raises(TableError, match=message) as error:
        write_items(tmp_path / 'items.parquet', rows)
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'items.parquet').exists()


def test_an_answer_given_in_two_evaluations_raises(study_dir):
    path = study_dir / 'evaluations' / 'w16d2-s0-image' / 'items.parquet'
    rows = pq.read_table(path).to_pylist()
    write_items(study_dir / 'evaluations' / 'again' / 'items.parquet',
                [{**row, 'eval_id': 'again'} for row in rows])
    with pytest.raises(TableError, match='20 answers appear in two evaluations'):
        load_study(study_dir)


def test_a_file_with_a_missing_or_foreign_column_does_not_load(study_dir):
    path = study_dir / 'evaluations' / 'w16d2-s0-image' / 'items.parquet'
    table = pq.ParquetFile(path).read()
    pq.write_table(table.drop_columns(['gold']).append_column('x', pa.nulls(len(table))), path)
    with pytest.raises(TableError, match=r"1 columns missing \['gold'\], 1 unknown \['x'\]"):
        load_study(study_dir)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda rows: rows[2:], r'lacks 2 of 20 items'),
    (lambda rows: [{**r, 'data_hash': 'other'} for r in rows], r'data_hash .*differs on 20 of 20'),
    (lambda rows: [{**rows[0], 'chance': .9}, *rows[1:]], r'chance .*differs on 1 of 20'),
])
def test_only_the_same_items_of_the_same_data_are_paired(study_dir, change, message):
    path = study_dir / 'evaluations' / 'w64d4-s0-image' / 'items.parquet'
    write_items(path, change(pq.ParquetFile(path).read().to_pylist()))
    cells = [[Cell(f'{size}-s0', '', '', False, 'image')] for size in SIZES]
    with pytest.raises(TableError, match=message):
        pair(load_study(study_dir), cells)


def test_pairing_aligns_items_and_averages_repeats(tmp_path, study_dir):
    path = study_dir / 'evaluations' / 'w64d4-s0-image' / 'items.parquet'
    rows = pq.ParquetFile(path).read().to_pylist()
    write_items(path, [{**r, 'repeat': k, 'score': float(k and r['task'] == 'count')}
                       for k in range(2) for r in rows])
    cells = [[Cell(f'{size}-s0', '', '', False, 'image')] for size in ('w16d2', 'w64d4')]
    paired = pair(load_study(study_dir), cells)
    np.testing.assert_array_equal(paired.scores[1], np.where(paired.task == 'count', .5, 0))
    assert all(item.startswith(task) for item, task in zip(paired.item_id, paired.task,
                                                           strict=True))


def test_unfinished_failed_and_absent_stages_are_listed(study_dir):
    assert load_study(study_dir).unfinished == ()
    cells = study_dir / 'cells'
    (cells / 'w16d2-s0' / 'align' / 'DONE.json').unlink()
    (cells / 'w16d2-s0' / 'text' / 'FATAL.json').write_text('{"error": "loss is\\nnan"}')
    for path in (cells / 'w32d4-s0' / 'reason').iterdir():
        path.unlink()
    (cells / 'w32d4-s0' / 'reason').rmdir()
    found = [(u['run_id'], u['stage'], u['reason'].split(':')[0])
             for u in load_study(study_dir).unfinished]
    assert found == [('w16d2-s0', 'text', 'failed'), ('w16d2-s0', 'align', 'no DONE.json'),
                     ('w32d4-s0', 'reason', 'never started')]


def test_an_unknown_run_raises_and_the_input_hash_follows_the_input(study_dir):
    before = load_study(study_dir).input_hash
    assert load_study(study_dir).input_hash == before
    meta = json.loads((study_dir / 'study.json').read_text())
    (study_dir / 'study.json').write_text(json.dumps({**meta, 'seed': 9}))
    assert load_study(study_dir).input_hash != before
    (study_dir / 'study.json').write_text(json.dumps({**meta, 'runs': meta['runs'][1:]}))
    with pytest.raises(TableError, match="1 runs are not in study.json: .*w16d2-s0"):
        load_study(study_dir)

"""Schemas, strict writing, loading and pairing."""
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_study import SIZES, fake_study, item_row

from downscale.analysis import measures
from downscale.evaluate.answers import Asking, row
from downscale.results import factors, items
from downscale.results.items import TableError, read_items, write_items
from downscale.results.lazy_table import open_items
from downscale.results.study import Cell, load_study, pair

THOUGHT = {'thinking': True, 'close': 'natural', 'n_think_tokens': 2}
COST = {'tokens': 900, 'seconds': 4.5, 'tokens_per_second': 200., 'rows': 20, 'compiles': 3,
        'slot_occupancy': .9, 'padding_waste': .1, 'compile_seconds': 2.}


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

    def half(file, data):
        file.write_text('half')
        raise OSError('disk full')
    monkeypatch.setattr(Path, 'write_bytes', half)
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
    ([item_row(condition='question_hidden')], r'neither joint, decoupled nor gold'),
    ([item_row(condition='question_hidden', r_run='w16d2-s0', text_kind='caption', thinking=True)],
     r'neither joint, decoupled nor gold'),
])
def test_rows_that_break_the_schema_raise_one_line_with_counts(tmp_path, rows, message):
    with pytest.raises(TableError, match=message) as error:
        write_items(tmp_path / 'items.parquet', rows)
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'items.parquet').exists()


@pytest.mark.parametrize(('changes', 'message'), [
    ({'finish': 'length'}, "truncated that disagrees with finish 'length'"),
    ({'truncated': True}, "truncated that disagrees with finish 'length'"),
    ({'truncated': True, 'finish': 'string'}, "truncated that disagrees with finish 'length'"),
    ({'close': 'natural'}, 'thinking that disagrees with close'),
    ({**THOUGHT, 'close': ''}, 'thinking that disagrees with close'),
    ({'n_think_tokens': 1}, 'n_think_tokens without thinking'),
    ({**THOUGHT, 'n_think_tokens': 4}, r'n_think_tokens outside 0\.\.n_gen_tokens'),
    ({**THOUGHT, 'n_think_tokens': -1}, r'n_think_tokens outside 0\.\.n_gen_tokens'),
    ({'finish': 'eos'}, r"an unknown finish: \['eos'\]"),
    ({**THOUGHT, 'close': 'shut'}, r"an unknown close: \['shut'\]")])
def test_endings_that_contradict_each_other_are_counted_and_refused(tmp_path, changes, message):
    rows = [item_row(item_id=f'i{k}', **(changes if k < 2 else THOUGHT if k < 4 else {}))
            for k in range(7)]
    with pytest.raises(TableError, match=r'\b2 (of 7 )?rows have ' + message) as error:
        write_items(tmp_path / 'items.parquet', rows)
    assert '\n' not in str(error.value)
    pq.write_table(pa.Table.from_pylist(rows, schema=items.ITEMS), tmp_path / 'items.parquet')
    with pytest.raises(TableError, match=message):
        read_items(tmp_path / 'items.parquet')


@pytest.mark.parametrize(('finish', 'close', 'text'), [
    ('stop', '', 'red'), ('length', '', 'red red'), ('string', '', 'red'),
    ('stop', 'natural', 'it is </think> red'), ('length', 'forced', 'a </think> red red'),
    ('length', 'open', 'it is'), ('stop', 'open', 'it is')])
def test_a_row_tells_how_its_reply_ended(tmp_path, finish, close, text):
    question = SimpleNamespace(family='color', kind='visual', item_id='i0', cluster_id='c0',
                               answer='red', chance=.25)
    reply = SimpleNamespace(ids=(5, 6, 7), finish=finish, close=close, thought=2 * bool(close),
                            nll=.5, text=text, spelled=0)
    item = SimpleNamespace(question=question, judge=lambda text, marked: (text, True, 1.0),
                           scorer='exact-2')
    found = row(item, reply, Asking(eval_id='e', condition='image', data_hash='d', prompt_hash='p',
                                    p_run='w16d2-s0', thinking=bool(close)))
    assert (found['finish'], found['close'], found['n_think_tokens'], found['truncated']) == (
        finish, close, 2 * bool(close), finish == 'length')
    assert found['parse_ok'] == (close != 'open')
    thought = {'': '', 'open': text}.get(close, text.partition('</think>')[0])
    assert (found['thought'], found['scorer']) == (thought, 'exact-2')
    write_items(tmp_path / 'items.parquet', [found])   # the table agrees that such a row can be
    assert read_items(tmp_path / 'items.parquet').to_pylist() == [
        {name: found[name] for name in items.ITEMS.names}]
    assert open_items(tmp_path / 'items.parquet').row(0) == found


def test_tables_without_thoughts_and_scorers_are_those_of_before(tmp_path):
    rows = [item_row(item_id=f'i{k}') for k in range(3)]
    write_items(tmp_path / 'old.parquet', rows)
    write_items(tmp_path / 'new.parquet', [{**row, 'thought': 'a', 'scorer': 'b'} for row in rows])
    newer = Counter()
    assert read_items(tmp_path / 'old.parquet') == read_items(tmp_path / 'new.parquet', newer)
    assert not newer
    assert pq.read_schema(tmp_path / 'old.parquet').names == items.ITEMS.names
    assert open_items(tmp_path / 'old.parquet').schema == items.ITEMS
    with pytest.raises(TableError, match="1 of 2 rows lack column 'thought'"):
        write_items(tmp_path / 'half.parquet', [rows[0], {**rows[1], 'thought': 'a'}])


def test_an_answer_given_in_two_evaluations_raises(study_dir):
    path = study_dir / 'evaluations' / 'w16d2-s0-image' / 'items.parquet'
    rows = pq.read_table(path).to_pylist()
    write_items(study_dir / 'evaluations' / 'again' / 'items.parquet',
                [{**row, 'eval_id': 'again'} for row in rows])
    with pytest.raises(TableError, match='20 answers appear in two evaluations'):
        load_study(study_dir)


def test_a_file_with_a_missing_column_does_not_load_and_a_newer_one_is_counted(study_dir):
    path = study_dir / 'evaluations' / 'w16d2-s0-image' / 'items.parquet'
    table = pq.ParquetFile(path).read().append_column('x', pa.nulls(20))
    pq.write_table(table, path)
    assert load_study(study_dir).notes == ("column 'x' of 1 tables is not known and left out",)
    pq.write_table(table.drop_columns(['gold']), path)
    with pytest.raises(TableError, match=r"1 columns missing \['gold'\]"):
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


def test_a_run_that_only_reads_lacks_no_stage(study_dir):
    shutil.rmtree(study_dir / 'cells' / 'w32d4-s0')
    meta = json.loads((study_dir / 'study.json').read_text())
    assert {u['run_id'] for u in load_study(study_dir).unfinished} == {'w32d4-s0'}
    (study_dir / 'study.json').write_text(json.dumps(meta | {'stages': {'w32d4-s0': []}}))
    assert load_study(study_dir).unfinished == ()


def test_throughput_is_read_where_it_is_and_none_where_it_is_not(study_dir):
    before = load_study(study_dir)
    assert set(before.throughput.values()) == {None}
    assert 'texts' in before.throughput and 'w16d2-s0-image' in before.throughput
    (study_dir / 'evaluations' / 'texts' / 'throughput.json').write_text(
        json.dumps({**COST, 'tokens_per_second': None, 'later': 1}))
    after = load_study(study_dir)
    assert after.throughput == {**before.throughput, 'texts': {**COST, 'tokens_per_second': None}}
    assert after.input_hash != before.input_hash


@pytest.mark.parametrize(('text', 'message'), [
    ('{"tokens": 1', 'not readable as JSON'), ('[]', '8 of 8 figures missing'),
    (json.dumps({k: v for k, v in COST.items() if k != 'rows'}), r"1 of 8 .*missing \['rows'\]"),
    (json.dumps({**COST, 'padding_waste': 1.2}), "1 of 8 figures cannot be: {'padding_waste'"),
    (json.dumps({**COST, 'tokens': -1, 'rows': 'x'}), '2 of 8 figures cannot be'),
    (json.dumps({**COST, 'seconds': None}), "1 of 8 figures cannot be: {'seconds'"),
    (json.dumps({**COST, 'tokens_per_second': float('nan')}), '1 of 8 figures cannot be')])
def test_impossible_throughput_raises_one_line(study_dir, text, message):
    (study_dir / 'evaluations' / 'texts' / 'throughput.json').write_text(text)
    with pytest.raises(TableError, match=message) as error:
        load_study(study_dir)
    assert '\n' not in str(error.value)


def test_an_unknown_run_raises_and_the_input_hash_follows_the_input(study_dir):
    before = load_study(study_dir).input_hash
    assert load_study(study_dir).input_hash == before
    meta = json.loads((study_dir / 'study.json').read_text())
    (study_dir / 'study.json').write_text(json.dumps({**meta, 'seed': 9}))
    assert load_study(study_dir).input_hash != before
    (study_dir / 'study.json').write_text(json.dumps({**meta, 'runs': meta['runs'][1:]}))
    with pytest.raises(TableError, match="1 runs are not in study.json: .*w16d2-s0"):
        load_study(study_dir)


def test_answers_without_the_question_are_a_study_of_their_own(study_dir):
    before = load_study(study_dir)
    path = next(path for path in sorted(study_dir.glob('evaluations/*/items.parquet'))
                if 'extraction-False-w32' in path.parent.name)
    rows = [{**row, 'condition': 'question_hidden', 'eval_id': 'hidden', 'score': 0.}
            for row in pq.read_table(path).to_pylist()]
    write_items(study_dir / 'evaluations' / 'hidden' / 'items.parquet', rows)
    after = load_study(study_dir)
    assert before.hidden is None and before.cells.keys() == after.cells.keys()
    assert len(after.items['score']) == len(before.items['score'])
    cell, = after.hidden.cells
    assert cell.condition == 'question_hidden' and len(after.hidden.items['score']) == len(rows)
    assert not pair(after.hidden, [[cell]]).scores.any()
    # Who is in no number of sizes is in none of these.
    runs = [{**run, 'changes': 'noise' * (run['run_id'] == cell.r_run)}
            for run in after.meta['runs']]
    meta = {**after.meta, 'runs': runs, 'factors': {'data.noise': {
        run['run_id']: run['changes'] for run in runs}}}
    s = measures.scored(replace(after, meta=meta), 2)
    assert factors.apart(meta) == {cell.r_run} and not s.study.hidden.cells
    assert s.whole.hidden.cells

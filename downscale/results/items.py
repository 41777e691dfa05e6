"""The tables that an evaluation writes: one row per question, model pair and condition.

`write_items` and `write_texts` are strict and atomic, and equal rows give equal bytes; `read` is
as strict. Analysis reads only these. Errors are one line long and carry counts.
"""
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from downscale.results.text_kinds import TEXT_KINDS
from downscale.runtime.files import PathLike, write_bytes

CATEGORIES = ('knowledge', 'visual')
HIDDEN = 'question_hidden'  # a reader was not told the question, be its text true or written
CONDITIONS = ('image', 'blind', 'shuffled', 'gold_text', HIDDEN)
FINISHES = ('stop', 'string', 'length')          # what ended a reply: only the last cut it off
CLOSES = ('', 'natural', 'forced', 'open')       # how a thought ended; '' where none was asked for


def strict_schema(**columns: pa.DataType) -> pa.Schema:
    """Return an Arrow schema of columns {name: type}, none of which may hold a null."""
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


_S = pa.string()
_F = pa.float64()
_I = pa.int64()
_B = pa.bool_()
# The order of columns is part of the format: equal rows have always given equal bytes.
_ASKED = dict(
    eval_id=_S, task=_S, category=_S, item_id=_S, cluster_id=_S, p_run=_S, r_run=_S,
    text_kind=_S, thinking=_B, condition=_S, repeat=_I)
_ANSWERED = dict(
    score=_F, nll_gold=_F, chance=_F, pred=_S, gold=_S, parse_ok=_B, n_gen_tokens=_I,
    truncated=_B, finish=_S, close=_S, n_think_tokens=_I)
ITEMS = strict_schema(**_ASKED, **_ANSWERED, prompt_hash=_S, data_hash=_S)
# What rows of items may have beside: what was written before the answer, and which rule judged it.
# No number is made of them, and tables that are older have neither.
LATER = strict_schema(thought=_S, scorer=_S)
TEXTS = strict_schema(
    item_id=_S, p_run=_S, text_kind=_S, question=_S, prompt=_S, text=_S, n_tokens=_I,
    truncated=_B)
MOST = 300   # characters of an error, whatever the input was
# What no two rows of a table share; rows lie in the order of it.
ITEM_KEY = ('eval_id', 'item_id', 'repeat')
TEXT_KEY = ('item_id', 'p_run', 'text_kind')


class TableError(ValueError):
    """A table or a pairing breaks the schema: one line with counts, cut to `MOST` characters."""

    def __init__(self, message: str) -> None:
        text = ' '.join(str(message).split())
        super().__init__(text if len(text) <= MOST else text[:MOST - 2] + ' …')


def write_items(path: PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Write the rows to `path` as Parquet, whole or not at all; equal rows give equal bytes.

    Where any row has a column of `LATER`, all of them need it.
    """
    rows = list(rows)
    there = set().union(*rows)
    schema = pa.schema([*ITEMS, *(column for column in LATER if column.name in there)])
    _write(path, rows, schema, ITEM_KEY, 'items', _check_items)


def write_texts(path: PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Write the texts of perception models to `path`, under the same promises as `write_items`."""
    _write(path, rows, TEXTS, TEXT_KEY, 'texts', lambda table, what: None)


def _write(path, rows, schema, key, what, check):
    """Write rows of `schema`, no two with the same `key`; `what` names the table in errors."""
    rows = list(rows)
    # Columns before anything else: a row that lacks its key could not be put in order.
    _check_columns(rows, schema, what)
    try:
        # the key orders the rows, so that the order of generation leaves no trace in the bytes
        rows = sorted(rows, key=lambda row: tuple(row[name] for name in key))
        table = pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise TableError(f'{what}: a value has the wrong type: {one_line(error)}') from error
    _check_table(table, schema, key, what)
    check(table, what)
    # By way of memory, since `write_bytes` puts a whole file in place, in a bucket as well.
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression='zstd')
    write_bytes(path, sink.getvalue().to_pybytes())


def one_line(error: BaseException) -> str:
    """Return the text of an error on one line, cut to 200 characters."""
    return ' '.join(str(error).split())[:200]


def _check_columns(rows, schema, what):
    """Raise `TableError` unless every row has the columns of the schema and no other."""
    names = set(schema.names)
    missing = Counter()
    extra = Counter()
    for row in rows:
        missing.update(names - row.keys())
        extra.update(row.keys() - names)
    for counts, word in ((missing, 'lack'), (extra, 'have the unknown')):
        if counts:
            # One line names one column: the one that most rows have wrong, of equals the first.
            name = min(counts, key=lambda n: (-counts[n], n))
            raise TableError(f'{what}: {counts[name]} of {len(rows)} rows {word} column {name!r}')


def _check_table(table, schema, key, what):
    """Raise `TableError` where a column has nulls, or two rows have the same key."""
    for name in schema.names:
        if table.column(name).null_count:
            raise TableError(f'{what}: column {name!r} has {table.column(name).null_count} nulls')
    again = sorted(k for k, count in _counted(table, key) if count > 1)
    if again:
        raise TableError(f'{what}: {len(again)} duplicate ({", ".join(key)}), first {again[:3]}')


def _counted(table, names):
    """Return (values, how many rows) of every combination of these columns."""
    groups = table.group_by(list(names)).aggregate([([], 'count_all')])
    values = zip(*(groups.column(name).to_pylist() for name in names), strict=True)
    return zip(values, groups.column('count_all').to_pylist(), strict=True)


def _check_items(table, what):
    """Raise `TableError` where a value cannot be, alone or beside the others of its row."""
    for name in ('score', 'chance'):
        values = table.column(name).to_numpy()
        # Asked for what is right and turned around, so that NaN is wrong.
        bad = int(np.sum(~((values >= 0) & (values <= 1))))
        if bad:
            raise TableError(f'{what}: {bad} of {len(values)} rows have {name} outside 0..1')
    for name, allowed in (('category', CATEGORIES), ('text_kind', ('', *TEXT_KINDS)),
                          ('condition', CONDITIONS), ('finish', FINISHES), ('close', CLOSES)):
        wrong = {v: count for (v,), count in _counted(table, (name,)) if v not in allowed}
        if wrong:
            raise TableError(f'{what}: {sum(wrong.values())} rows have an unknown {name}: '
                             f'{sorted(wrong)[:3]}')
    wrong = {}
    for key, count in _counted(table, ('p_run', 'r_run', 'text_kind', 'condition', 'thinking')):
        # A model answers by itself, from what perception wrote, or from the true text.
        p_run, r_run, kind, condition, thinking = key
        joint = bool(p_run) and not r_run and not kind and condition not in ('gold_text', HIDDEN)
        reads = bool(r_run and kind)
        decoupled = reads and bool(p_run) and condition == 'image'
        gold = reads and not p_run and condition == 'gold_text'
        hidden = reads and condition == HIDDEN and not thinking
        if not (joint or decoupled or gold or hidden):
            wrong[key] = count
    if wrong:
        raise TableError(f'{what}: {sum(wrong.values())} rows are neither joint, decoupled nor '
                         'gold (p_run, r_run, text_kind, condition, thinking), first '
                         f'{min(wrong)}')
    _check_endings(table, what)


def _check_endings(table, what):
    """Raise `TableError` unless the columns that tell how a reply ended tell the same."""
    names = ('finish', 'close', 'truncated', 'thinking', 'n_think_tokens', 'n_gen_tokens')
    finish, close, truncated, thinking, thought, written = (
        table.column(name).to_numpy() for name in names)
    for bad, fault in (
            (truncated != (finish == 'length'), "truncated that disagrees with finish 'length'"),
            (thinking != (close != ''), "thinking that disagrees with close (direct rows: '')"),
            (~thinking & (thought != 0), 'n_think_tokens without thinking'),
            ((thought < 0) | (thought > written), 'n_think_tokens outside 0..n_gen_tokens')):
        if np.any(bad):
            raise TableError(f'{what}: {int(np.sum(bad))} of {len(table)} rows have {fault}')


def _read(path, schema, key, check, newer=None):
    """Return the table at `path` with the columns of `schema`, checked.

    Other columns are left out; those that `LATER` does not know are counted in `newer`.
    """
    what = str(path)
    try:
        file = pq.ParquetFile(path)
        there = file.schema_arrow.names
        # Thoughts alone may be larger than all other columns.
        table = file.read(columns=[name for name in schema.names if name in there])
    except (OSError, pa.ArrowException) as error:
        raise TableError(f'{what}: not readable as Parquet: {one_line(error)}') from error
    # 1. Columns: all there, none twice, and what is unknown counted.
    missing = sorted(set(schema.names) - set(there))
    extra = sorted(set(there) - {*schema.names, *LATER.names})
    if missing:
        raise TableError(f'{what}: {len(missing)} columns missing {missing[:6]}; evaluate again '
                         'into a new folder')
    twice = [name for name, count in Counter(there).items() if count > 1]
    if twice:
        raise TableError(f'{what}: column {twice[0][:40]!r} is there twice')
    if newer is not None:
        newer.update(extra)
    # 2. Types, which a schema with a name twice could not tell; then keys and values.
    wrong = [n for n in schema.names if table.schema.field(n).type != schema.field(n).type]
    if wrong:
        raise TableError(f'{what}: {len(wrong)} columns of the wrong type, first {wrong[0]!r}')
    _check_table(table, schema, key, what)
    check(table, what)
    return table.select(schema.names).cast(schema)   # other writers let every column be null


def read_items(path: PathLike, newer: Counter | None = None) -> pa.Table:
    """Return the items table at `path`, checked against the schema.

    Those of `LATER` are left out. Columns that are not known here are of a newer version: they are
    left out as well, and counted in `newer`.
    """
    return _read(path, ITEMS, ITEM_KEY, _check_items, newer)


def read_texts(path: PathLike, newer: Counter | None = None) -> pa.Table:
    """Return the texts table at `path`, under the same rules as `read_items`."""
    return _read(path, TEXTS, TEXT_KEY, lambda table, what: None, newer)

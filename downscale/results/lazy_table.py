"""Tables of a study that are opened at once and read column by column, for looking at single rows.

`study.load_study` reads and checks every value, which takes many seconds for millions of answers.
"""
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from downscale.results.items import ITEMS, LATER, TEXTS, TableError, one_line
from downscale.results.study import Cell
from downscale.runtime.files import PathLike


class LazyTable:
    """A table of one schema: a file whose columns are read when asked for, or rows in memory.

    Text columns are kept as codes and the values that these stand for. `rows` is their number.
    `schema` is what the table has: what was asked for, and those of `more` that its file holds.
    """

    def __init__(self, schema: pa.Schema, source: PathLike | pa.Table,
                 more: Sequence[pa.Field] | pa.Schema = ()) -> None:
        self.schema = schema
        self.source = source
        self._columns = {}
        self._plain = {}
        if isinstance(source, pa.Table):
            self.rows = source.num_rows
            return
        try:
            file = pq.ParquetFile(source)
        except (OSError, pa.ArrowException) as error:
            raise TableError(f'{source}: not readable as Parquet: {one_line(error)}') from error
        self.rows = file.metadata.num_rows
        there = file.schema_arrow
        self.schema = pa.schema([*schema, *(column for column in more
                                            if column.name in there.names)])
        wrong = [field.name for field in self.schema
                 if field.name not in there.names or there.field(field.name).type != field.type]
        if wrong:
            raise TableError(f'{source}: {len(wrong)} columns missing or of another type '
                             f'{wrong[:6]}; evaluate again into a new folder')

    def read(self, names: Iterable[str]) -> None:
        """Read these columns, those that are not read yet, in one go."""
        names = [name for name in names if name not in self._columns]
        if not names:
            return
        texts = [name for name in names if self.schema.field(name).type == pa.string()]
        if isinstance(self.source, pa.Table):
            table = self.source.select(names)
        else:
            table = _from_file(self.source, names, texts)
        for name in names:
            self._columns[name] = _coded(table.column(name)) if name in texts \
                else table.column(name).to_numpy()

    def values(self, name: str) -> np.ndarray:
        """Return a column of numbers."""
        self.read([name])
        return self._columns[name]

    def codes(self, name: str) -> tuple[np.ndarray, pa.Array]:
        """Return a column of texts as (code of each row, the text of each code)."""
        self.read([name])
        return self._columns[name]

    def plain(self, name: str) -> pa.ChunkedArray:
        """Return a column as it stands; of texts without codes, quickest where few are equal."""
        if name not in self._plain:
            whole = self.source if isinstance(self.source, pa.Table) \
                else _from_file(self.source, [name], [])
            self._plain[name] = whole.column(name)
        return self._plain[name]

    def take(self, name: str, rows: Sequence[int] | np.ndarray) -> list[Any]:
        """Return the values of one column at some rows."""
        rows = np.asarray(rows, dtype=np.int64)
        if self.schema.field(name).type != pa.string():
            return self.values(name)[rows].tolist()
        codes, texts = self.codes(name)
        return texts.take(pa.array(codes[rows])).to_pylist()

    def row(self, row: int) -> dict[str, Any]:
        """Return one row as {column: value}."""
        return {name: self.take(name, [row])[0] for name in self.schema.names}


def _from_file(path, names, coded):
    """Return columns of a Parquet file, those in `coded` as codes of their values."""
    try:
        return pq.read_table(path, columns=list(names), read_dictionary=coded)
    except (OSError, pa.ArrowException) as error:
        raise TableError(f'{path}: not readable as Parquet: {one_line(error)}') from error


def _coded(column):
    """Return (codes, texts) of a text column; equal texts have one code."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    # Every row group brings a dictionary of its own.
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):   # of no rows
        return np.zeros(0, np.int32), pa.array([], pa.string())
    return whole.indices.to_numpy(), whole.dictionary


def open_items(path: PathLike) -> LazyTable:
    """Open the items table at `path`; `TableError` where columns are missing."""
    return LazyTable(ITEMS, path, LATER)


def open_texts(path: PathLike) -> LazyTable:
    """Open the texts table at `path`; `TableError` where columns are missing."""
    return LazyTable(TEXTS, path)


def cells_of(table: LazyTable) -> dict[Cell, list[tuple[int, int]]]:
    """Return {cell: its stretches of rows, as (start, end)} of an items table.

    Rows of a cell are written together, so that there are few stretches.
    """
    table.read(Cell._fields)
    key = np.zeros(table.rows, dtype=np.int32)
    values: dict[str, list[Any]] = {'thinking': [False, True]}
    codes = {'thinking': table.values('thinking')}
    for name in Cell._fields:
        if name not in values:
            codes[name], texts = table.codes(name)
            values[name] = texts.to_pylist()
        key = key * np.int32(max(1, len(values[name]))) + codes[name]
    if not len(key):
        return {}
    starts = np.concatenate([[0], np.flatnonzero(key[1:] != key[:-1]) + 1, [len(key)]]).tolist()
    cells = {}
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        facts = {name: values[name][int(codes[name][start])] for name in Cell._fields}
        cell = Cell(**facts)
        cells.setdefault(cell, []).append((start, end))
    return cells


def rows_of(stretches: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return the rows of some stretches."""
    return np.concatenate([np.arange(start, end) for start, end in stretches])

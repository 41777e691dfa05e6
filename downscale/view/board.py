"""Every item of some runs, by number, and what each cell answered to it."""
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from downscale.analysis import grids, measures
from downscale.analysis.flips import PREFERRED
from downscale.analysis.measures import Missing
from downscale.results.items import TableError
from downscale.results.lazy_table import LazyTable, rows_of
from downscale.results.study import Cell
from downscale.statistics.shapley import CLASSES, class_of
from downscale.view.runs import Run

# Without pairs of perception and reasoner an item is told by the sizes that see and answer.
JOINT = ('lost', 'wrong', 'right')
LOSSES = (*CLASSES, *JOINT)
# As a tag shows a class, which need not be of the answers beside it.
TAGS = (*(f'pairs: {name}' for name in CLASSES), *JOINT)
FACTS = ('task', 'cluster_id', 'gold', 'chance')
# What is shown of one answer; the last three are of chains.
ANSWER = ('pred', 'gold', 'score', 'nll_gold', 'parse_ok', 'n_gen_tokens', 'n_think_tokens',
          'truncated', 'close', 'thinking', 'repeat', 'thought', 'scorer', 'doc')


class Board:
    """The items of `runs`, numbered from 0 in the order in which they are first met.

    `ids` are their names; an item of two runs is one, and must have the same data in both.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)
        tables = [table for run in runs for table in run.tables]
        self.ids, self._numbers = _numbered(self.runs)
        self.homes = self._homes(tables)
        self._asked = {}
        self._check_data(tables)

    def __len__(self) -> int:
        return len(self.ids)

    # --- facts of items -----------------------------------------------------------------------

    def _homes(self, tables):
        """Return [(table, numbers of items, a row of each)]: where the facts of items are read."""
        homes = []
        missing = np.ones(len(self.ids), dtype=bool)
        for table in tables:
            if not missing.any():
                break
            numbers = self.numbers(table)
            first = np.full(len(self.ids), -1)
            # Written from behind, so that the first row of an item stays.
            first[numbers[::-1]] = np.arange(len(numbers))[::-1]
            new = np.flatnonzero(missing & (first >= 0))
            homes.append((table, new, first[new]))
            missing[new] = False
        return homes

    def _check_data(self, tables):
        """Raise `TableError` where two tables ask a family with other data under the same names."""
        known = {}
        for table in tables:
            table.read(('task', 'data_hash'))
            tasks, task_names = table.codes('task')
            hashes, hash_names = table.codes('data_hash')
            pairs = np.bincount(tasks.astype(np.int64) * max(1, len(hash_names)) + hashes)
            for pair in np.flatnonzero(pairs).tolist():
                task, data = divmod(pair, len(hash_names))
                task = task_names[task].as_py()
                data = hash_names[data].as_py()
                first = known.setdefault(task, (data, table.source))
                if first[0] != data:
                    raise TableError(f'the items of {task!r} have other data in {table.source} '
                                     f'than in {first[1]}; equal names are not equal questions')

    def numbers(self, table: LazyTable) -> np.ndarray:
        """Return the number of the item of every row of a table."""
        return self._numbers[id(table)]

    def facts(self, name: str, items: Sequence[int]) -> list[Any]:
        """Return one of `FACTS` of some items."""
        values = dict.fromkeys(items)
        for table, numbers, rows in self.homes:
            place = np.searchsorted(numbers, items)
            inside = [k for k, item in enumerate(items)
                      if place[k] < len(numbers) and numbers[place[k]] == item]
            taken = table.take(name, rows[place[inside]])
            values |= dict(zip([items[k] for k in inside], taken, strict=True))
        return [values[item] for item in items]

    def coded(self, name: str) -> tuple[np.ndarray, list[str]]:
        """Return (code of every item, the texts of the codes) of a text among `FACTS`."""
        return _coded(self, name)

    def number_of(self, item: str) -> int | None:
        """Return the number of the item of a name, None where there is none."""
        place = pc.index(self.ids, item).as_py()
        return None if place < 0 else place

    def questions(self, items: Sequence[int]) -> list[str]:
        """Return what was asked, '' where no run has saved it."""
        values = dict.fromkeys(items, '')
        for table, row_of in _question_rows(self):
            there = [item for item in values if not values[item] and row_of[item] >= 0]
            taken = table.take('question', row_of[there] if there else [])
            values |= dict(zip(there, taken, strict=True))
        return [values[item] for item in items]

    # --- answers ------------------------------------------------------------------------------

    def asked(self, run: Run, cell: Cell) -> tuple[LazyTable, np.ndarray]:
        """Return (table, the row of every item in the first repeat of a cell, -1 for none)."""
        key = run.root, cell
        if key not in self._asked:
            table, stretches = run.cells[cell]
            rows = rows_of(stretches)
            repeat = table.values('repeat')
            if repeat.any():
                rows = rows[repeat[rows] == repeat[rows].min()]
            row_of = np.full(len(self.ids), -1)
            row_of[self.numbers(table)[rows]] = rows
            self._asked[key] = table, row_of
        return self._asked[key]

    def column(self, run: Run, cell: Cell, name: str) -> np.ndarray:
        """Return the numbers `name` of a cell by item, NaN where it was not asked."""
        table, row_of = self.asked(run, cell)
        values = np.full(len(self.ids), np.nan)
        there = row_of >= 0
        values[there] = table.values(name)[row_of[there]]
        return values

    def answers(self, run: Run, cell: Cell, item: int) -> list[dict[str, Any]]:
        """Return the rows of one item in a cell: a dict of `ANSWER` for each repeat."""
        table, stretches = run.cells[cell]
        rows = rows_of(stretches)
        rows = rows[self.numbers(table)[rows] == item]
        names = [name for name in ANSWER if name in table.schema.names]
        table.read(names)
        taken = zip(*(table.take(name, rows) for name in names), strict=True)
        answers = [dict(zip(names, values, strict=True)) for values in taken]
        return sorted(answers, key=lambda answer: answer['repeat'])

    def texts(self, run: Run, item: int) -> list[dict[str, Any]]:
        """Return the rows of what the perception models of a run wrote about one item."""
        rows = []
        for table in run.texts:
            # Evaluations with other reasoners may repeat a text.
            hit = pc.equal(table.plain('item_id'), self.ids[item]).to_numpy()
            rows += [table.row(row) for row in np.flatnonzero(hit).tolist()]
        kept = {}
        for row in rows:
            kept.setdefault((row['p_run'], row['text_kind']), row)
        return list(kept.values())

    def losses(self, run: Run, seed: int | None) -> np.ndarray:
        """Return the class of loss of every item: its place in `LOSSES`, -1 for none."""
        return _losses(self, run.root, seed)


def _numbered(runs):
    """Return (names of items in the order in which they are met, {id of a table: its numbers}).

    Cell after cell asks the same items in the same order, and equal lists are compared by their
    bytes: only new lists are looked up name by name.
    """
    known = pa.array([], pa.string())
    lists = []   # (names, their numbers)
    numbers = {}
    with ThreadPoolExecutor() as pool:
        tables = [table for run in runs for table in run.tables]
        every = zip(tables, pool.map(lambda table: table.plain('item_id'), tables), strict=True)
        names_of = {id(table): names for table, names in every}
    for run in runs:
        for table, stretches in run.cells.values():
            of_table = numbers.setdefault(id(table), np.zeros(table.rows, dtype=np.int32))
            for start, end in stretches:
                names = pa.concat_arrays(names_of[id(table)].slice(start, end - start).chunks)
                equal = [of_list for other, of_list in lists if other.equals(names)]
                if not equal:
                    new = pc.unique(names)
                    known = pa.concat_arrays([known, new.filter(pc.invert(pc.is_in(new, known)))])
                    equal = [pc.index_in(names, value_set=known).to_numpy()]
                    lists = [*lists[-3:], (names, equal[0])]
                of_table[start:end] = equal[0]
    return known, numbers


@cache
def _coded(board, name):
    codes = np.full(len(board), -1)
    texts = {}
    for table, numbers, rows in board.homes:
        own, values = table.codes(name)
        place = [texts.setdefault(value, len(texts)) for value in values.to_pylist()]
        codes[numbers] = np.array([*place, -1])[own[rows]]
    return codes, list(texts)


@cache
def _question_rows(board):
    """Return [(table of texts, the row of every item in it)] until every item has one."""
    tables = []
    missing = np.ones(len(board), dtype=bool)
    for table in (table for run in board.runs for table in run.texts):
        if not missing.any():
            break
        codes, names = table.codes('item_id')
        numbers = pc.index_in(names, value_set=board.ids).fill_null(-1).to_numpy()[codes]
        row_of = np.full(len(board), -1)
        row_of[numbers[numbers >= 0]] = np.flatnonzero(numbers >= 0)
        if (missing & (row_of >= 0)).any():
            tables.append((table, row_of))
            missing &= row_of < 0
    return tables


@cache
def _losses(board, root, seed):
    """Return the classes as the gallery of the report tells them: first repeats, right above half.
    """
    run, = [run for run in board.runs if run.root == root]
    pairs = corner_cells(run, seed)
    cells = pairs or seeing_cells(run, seed)
    classes = np.full(len(board), -1)
    if len(cells) < 2:
        return classes
    scores = np.stack([board.column(run, cell, 'score') for cell in cells])
    asked = np.isfinite(scores).all(axis=0)
    right = scores > .5
    if pairs:
        digits = np.array([8, 4, 2, 1]) @ right
        table = np.array([LOSSES.index(class_of(*(k >> 3 & 1, k >> 2 & 1, k >> 1 & 1, k & 1)))
                          for k in range(16)])
        classes[asked] = table[digits[asked]]
        return classes
    for name, of_class in (('right', right.all(axis=0)), ('wrong', ~right.any(axis=0)),
                           ('lost', right[-1] & ~right[0])):
        classes[asked & of_class] = LOSSES.index(name)
    return classes


def corner_cells(run: Run, seed: int | None) -> list[Cell]:
    """Return the cells of the four pairs of smallest and largest sizes, in the order of `class_of`.

    They are of the first of `PREFERRED` that has all four and of the lowest seed, unless one is
    given; empty where no pairs were asked.
    """
    for kind, mode in PREFERRED:
        try:
            groups = measures.pair_groups(run.scored, kind, measures.MODES[mode])
            corners = grids.corners(run.scored, groups)
        except Missing:
            continue
        seeds = corners.seeds
        cells = seeds[min(seeds)] if seed is None else seeds.get(seed)
        if cells is not None:
            return [cells[place] for place in ((1, 1), (0, 1), (1, 0), (0, 0))]
    return []


def seeing_cells(run: Run, seed: int | None) -> list[Cell]:
    """Return the cells that answered with the picture by themselves, one a size, small to large."""
    cells = []
    for size in run.scored.sizes:
        seeded = measures.by_seed(run.scored, measures.joint_cells(run.scored, size, 'image'))
        wanted = min(seeded, default=None) if seed is None else seed
        cells += seeded.get(wanted, [])[:1]
    return cells


def picture_path(run: Run, cluster: str, place: int) -> Path:
    """Return the file of one picture of a cluster, as `evaluate.run.save_pictures` names it."""
    return run.root / 'pictures' / f'{cluster.replace("/", "_")}-{place}.png'

"""Which items a query selects, and in which order."""
import json
from functools import cache
from typing import Any

import numpy as np
import pyarrow.compute as pc

from downscale.evaluate.scoring.stored_replies import target_of
from downscale.evaluate.scoring.table import disagree, verdicts
from downscale.evaluate.scoring.targets import Verdict
from downscale.view.board import LOSSES, Board
from downscale.view.columns import Column, View
from downscale.view.query import Query


def select(board: Board, view: View, query: Query) -> np.ndarray:
    """Return the numbers of the items that a query selects, in its order."""
    keep = np.ones(len(board), dtype=bool)
    seed = query.only_seed
    if query.family:
        codes, families = board.coded('task')
        keep &= codes == families.index(query.family)
    if query.loss:
        place = LOSSES.index(query.loss)
        keep &= np.any([board.losses(run, seed) == place for run in board.runs], axis=0)
    for label, wanted in ((query.right, True), (query.wrong, False)):
        if label:
            column, = [column for column in view.columns if column.label == label]
            scores = values(board, column, seed, 'score')
            keep &= np.isfinite(scores) & ((scores > .5) == wanted)
    if query.disagree == 'sizes':
        keep &= columns_disagree(board, view, seed)
    if query.disagree == 'scorers':
        keep &= scorers_disagree(board, view, seed, np.flatnonzero(keep))
    if query.text:
        keep &= holding(board, view, seed, query.text)
    items = np.flatnonzero(keep)
    if query.sort:
        worst = sort_value(board, view, query)[items]
        # Largest first, in the order of names where equal; what has no value stands last.
        items = items[np.argsort(np.where(np.isnan(worst), np.inf, -worst), kind='stable')]
    return items


def values(board: Board, column: Column, seed: int | None, name: str) -> np.ndarray:
    """Return the numbers `name` of a column by item, NaN where it has no answer."""
    cell = column.cell(seed)
    if cell is None:
        return np.full(len(board), np.nan)
    return board.column(column.run, cell, name)


def sort_value(board: Board, view: View, query: Query) -> np.ndarray:
    """Return what a query sorts by, of every item: a mean over the columns that have it."""
    name = {'loss': 'nll_gold', 'length': 'n_gen_tokens'}[query.sort]
    total = np.zeros(len(board))
    count = np.zeros(len(board))
    for column in view.columns:
        of_column = values(board, column, query.only_seed, name)
        there = np.isfinite(of_column)
        total[there] += of_column[there]
        count += there
    return np.divide(total, count, out=np.full(len(board), np.nan), where=count > 0)


def columns_disagree(board: Board, view: View, seed: int | None) -> np.ndarray:
    """Return whether some columns have an item right and others wrong, of every item."""
    right = np.zeros(len(board), dtype=bool)
    wrong = np.zeros(len(board), dtype=bool)
    for column in view.columns:
        scores = values(board, column, seed, 'score')
        right |= scores > .5
        wrong |= scores <= .5
    return right & wrong


# --- scorers ----------------------------------------------------------------------------------

@cache
def judge(pred: str, gold: str, doc: str) -> dict[str, Verdict]:
    """Return {scorer: its verdict} of an answer; `doc` is what a chain says of the question."""
    about = json.loads(doc) if doc else {}
    answers = about.get('answers') or about.get('target') or gold
    answers = [answers] if isinstance(answers, str) else answers
    return verdicts(pred, target_of(about, answers))


def judged(answer: dict[str, Any]) -> dict[str, Verdict]:
    """Return {scorer: its verdict} of a row of answers."""
    return judge(answer['pred'], answer['gold'], answer.get('doc', ''))


def scorers_disagree(board: Board, view: View, seed: int | None,
                     items: np.ndarray) -> np.ndarray:
    """Return whether any answer in the columns is scored differently by the scorers, by item.

    Only `items` are looked at.
    """
    differ = np.zeros(len(board), dtype=bool)
    for column in view.columns:
        cell = column.cell(seed)
        if cell is not None:
            differ |= _differ(board, column.run, cell, items)
    return differ


def _differ(board, run, cell, items):
    """Return whether scorers disagree on the answer to each of some items in one cell."""
    table, row_of = board.asked(run, cell)
    there = items[row_of[items] >= 0]
    # Equal answers to equal questions are judged once: small models repeat themselves.
    key = np.zeros(len(there), dtype=np.int64)
    names = [name for name in ('pred', 'gold', 'doc') if name in table.schema.names]
    for name in names:
        codes, texts = table.codes(name)
        key = key * max(1, len(texts)) + codes[row_of[there]]
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    rows = row_of[there[first]]
    columns = [table.take(name, rows) for name in names]
    if 'doc' not in names:
        columns.append([''] * len(rows))
    apart = [disagree(judge(*values).values()) for values in zip(*columns, strict=True)]
    differ = np.zeros(len(board), dtype=bool)
    differ[there] = np.array(apart, dtype=bool)[inverse]
    return differ


# --- text -------------------------------------------------------------------------------------

def holding(board: Board, view: View, seed: int | None, text: str) -> np.ndarray:
    """Return whether name, question, gold, an answer of the columns or a text holds `text`."""
    holds = _has(board.ids, text).copy()
    for run in board.runs:
        for table in run.texts:
            codes, names = table.codes('item_id')
            numbers = pc.index_in(names, value_set=board.ids).fill_null(-1).to_numpy()[codes]
            for name in ('question', 'text'):
                _mark(holds, table, name, text, np.arange(table.rows), numbers)
    for column in view.columns:
        cell = column.cell(seed)
        if cell is not None:
            table, row_of = board.asked(column.run, cell)
            there = np.flatnonzero(row_of >= 0)
            for name in ('pred', 'gold'):
                _mark(holds, table, name, text, row_of[there], there)
    return holds


def _has(texts, text):
    """Return whether each of some texts holds `text`, in any case."""
    return pc.match_substring(texts, text, ignore_case=True).to_numpy(zero_copy_only=False)


def _mark(holds, table, name, text, rows, items):
    """Set `holds` of the `items` whose row of `rows` has `text` in the column `name`."""
    codes, texts = table.codes(name)
    if len(texts):
        hit = _has(texts, text)[codes[rows]] & (items >= 0)
        holds[items[hit]] = True


def facets(board: Board, view: View, seed: int | None,
           items: np.ndarray) -> list[dict[str, Any]]:
    """Return what the filters of a static page need of each item: family, class, flags, values."""
    codes, families = board.coded('task')
    classes = [board.losses(run, seed) for run in board.runs]
    apart = {'sizes': columns_disagree(board, view, seed),
             'scorers': scorers_disagree(board, view, seed, items)}
    sorts = {name: sort_value(board, view, Query(sort=name, seed='' if seed is None else str(seed)))
             for name in ('loss', 'length')}
    rows = []
    for item in items.tolist():
        of_runs = {LOSSES[of_run[item]] for of_run in classes if of_run[item] >= 0}
        rows.append({
            'family': families[codes[item]],
            'loss': sorted(of_runs),
            'disagree': [name for name, flags in apart.items() if flags[item]],
            'sort': {name: None if np.isnan(of[item]) else round(float(of[item]), 4)
                     for name, of in sorts.items()}})
    return rows

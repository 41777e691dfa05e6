"""What a study folder holds, loaded and paired; everything in `analysis/` reads with `load_study`.

Errors are one line long and carry counts.
"""
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from downscale.results.curves import attention, doubts, teachers
from downscale.results.items import (
    HIDDEN,
    ITEMS,
    TEXT_KEY,
    TEXTS,
    TableError,
    one_line,
    read_items,
    read_texts,
)
from downscale.results.study_file import input_hash, read_metrics, read_study
from downscale.results.throughput import read_throughput
from downscale.runtime import copies
from downscale.runtime.files import PathLike
from downscale.stage_table import STAGES

# Every file of a study folder that the analysis reads.
# The hash of the input is over these: a file that changes a number and is not here is a bug.
READ = ('study.json', 'evaluations/*/*.parquet', 'evaluations/*/throughput.json',
        'evaluations/*/handed_over.json', 'probe*.parquet',
        'pictures/*.png', 'cells/*/*/experiment.json', 'cells/*/*/padding.json',
        'cells/*/*/timing.jsonl', 'cells/*/*/metrics.jsonl', 'cells/*/*/DONE.json',
        'cells/*/*/FATAL.json', 'cells/*/*/teacher.json')

FACTS = ('task', 'cluster_id', 'chance', 'data_hash')  # of an item, equal in all its answers
# Text columns that are grouped or compared, by ranks: comparing Python objects is slow.
KEYS = ('item_id', 'task', 'cluster_id', 'data_hash', 'p_run', 'r_run', 'text_kind', 'condition')


class Cell(NamedTuple):
    """Who answered and what they saw; rows of one cell differ by question and repeat only."""
    p_run: str
    r_run: str
    text_kind: str
    thinking: bool
    condition: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A loaded study: `items` and `texts` are columns of equal length, `cells` maps to rows.

    `codes` holds the ranks of the values of some columns of `items`, and `averaged` what `pair`
    has made of cells. `curves` maps (run_id, stage) to columns; `unfinished` lists dicts run_id,
    stage, reason; `throughput` maps evaluations to their figures or None. `hidden` is the same
    study with the answers of readers that were not told the question and no others: no number of
    this one holds any of them.
    """
    root: Path
    meta: dict
    curves: dict
    items: dict
    texts: dict
    unfinished: tuple
    throughput: dict
    notes: tuple
    input_hash: str
    cells: dict = field(repr=False)
    codes: dict = field(repr=False)
    averaged: dict = field(repr=False, default_factory=dict)
    hidden: 'Study | None' = None


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Scores [groups, items] of the same items in the same order, with each item's own facts."""
    scores: np.ndarray
    item_id: np.ndarray
    task: np.ndarray
    cluster_id: np.ndarray
    chance: np.ndarray

    @property
    def key(self) -> tuple[bytes, ...]:
        """What tells these items from others, as a key of what is made of them."""
        return tuple(column.tobytes() for column in (self.item_id, self.task, self.cluster_id,
                                                     self.chance))


def _columns(table, schema):
    """Return columns as numpy, and {name: rank of each row's value} for the text columns in `KEYS`.

    Text stays Python objects, since answers differ much in length; equal ones are one object.
    """
    columns = {}
    codes = {}
    for name in schema.names:
        if schema.field(name).type != pa.string():
            columns[name] = table.column(name).to_numpy()
            continue
        # By way of a dictionary, which holds each text once however many rows have it.
        encoded = table.column(name).combine_chunks().dictionary_encode()
        place = encoded.indices.to_numpy()
        values = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)[:-1]
        columns[name] = values[place]
        if name in KEYS:
            # The rank of each value: equal where texts are equal, and in the order of the texts.
            codes[name] = np.argsort(np.argsort(values))[place]
    return columns, codes


def local_study(directory: PathLike) -> Path:
    """Return the local folder of a study; of one in a bucket a copy of what the analysis reads."""
    return copies.local_copy(directory, copies.matching(*READ))


def load_study(directory: PathLike) -> Study:
    """Return the study of a folder, read and checked; unfinished runs are listed, never dropped.

    The folder may be in a bucket (gs://).
    """
    root = local_study(directory)
    meta = read_study(root)
    newer = Counter()   # columns that a newer version writes, with the number of tables
    items = [read_items(path, newer) for path in sorted(root.glob('evaluations/*/items.parquet'))]
    texts = [read_texts(path, newer) for path in sorted(root.glob('evaluations/*/texts.parquet'))]
    curves, unfinished, notes = _read_cells(root, meta)
    notes += [f'column {name!r} of {count} tables is not known and left out'
              for name, count in sorted(newer.items())]
    study = study_of(root, meta, items, texts, curves, unfinished, read_throughput(root),
                     input_hash(root, READ))
    gone = copies.gone(root)
    if gone:
        notes.append(f'{len(gone)} objects of the bucket went while they were read, first '
                     f'{gone[0]}')
    return replace(study, notes=(*study.notes, *notes, *doubts(root), *attention(root),
                                 *teachers(root)))


def study_of(root: Path, meta: dict, items: list, texts: list, curves: dict, unfinished: tuple,
             throughput: dict, input_hash: str) -> Study:
    """Return a `Study` of checked Arrow tables: lists of `items` and `texts`."""
    # The empty tables are for a study without evaluations: it has all columns as well.
    rows = pa.concat_tables([ITEMS.empty_table(), *items])
    hidden = pc.equal(rows['condition'], HIDDEN)
    aside = rows.filter(hidden)
    items, codes = _columns(rows.filter(pc.invert(hidden)) if len(aside) else rows, ITEMS)
    texts, _ = _columns(pa.concat_tables([TEXTS.empty_table(), *texts]), TEXTS)
    texts, notes = _merge_texts(texts)
    study = Study(
        root=root,
        meta=meta,
        curves=curves,
        items=items,
        texts=texts,
        unfinished=unfinished,
        throughput=throughput,
        notes=notes,
        input_hash=input_hash,
        cells=_index_cells(items, codes, meta),
        codes=codes,
    )
    if not len(aside):
        return study
    items, codes = _columns(aside, ITEMS)
    return replace(study, hidden=replace(study, items=items, codes=codes, averaged={},
                                         cells=_index_cells(items, codes, meta)))


def _index_cells(items, codes, meta):
    """Return {cell: its rows}; `TableError` for an unknown run or an answer that is there twice."""
    # A row's cell as one number, so that a single sort brings the rows of a cell together.
    key = np.zeros(len(items['score']), dtype=np.int64)
    for name in Cell._fields:
        digits = codes.get(name, items[name]).astype(np.int64)
        key = key * (digits.max(initial=0) + 1) + digits
    order = np.argsort(key, kind='stable')
    groups = np.split(order, np.flatnonzero(np.diff(key[order])) + 1) if len(order) else []
    rows = {}
    again = []
    # In the order of their first rows, which does not depend on the ranks of names.
    for index in sorted(groups, key=lambda index: index[0]):
        cell = Cell(*(items[name][index[0]] for name in Cell._fields))
        rows[cell._replace(thinking=bool(cell.thinking))] = index
        repeat = items['repeat'][index]
        # Item and repeat as one number.
        answers = codes['item_id'][index] * (repeat.max() + 1) + repeat
        _, first, count = np.unique(answers, return_index=True, return_counts=True)
        again += [(*cell, items['item_id'][row], int(items['repeat'][row]))
                  for row in index[first[count > 1]]]
    if again:
        raise TableError(f'items: {len(again)} answers appear in two evaluations of one cell, '
                         f'first {again[:3]}')
    # A joint answer has no reasoner and a gold text no perception: '' stands for both.
    known = {run['run_id'] for run in meta['runs']} | {''}
    answered = {cell.p_run for cell in rows} | {cell.r_run for cell in rows}
    unknown = sorted(answered - known)
    if unknown:
        raise TableError(f'items: {len(unknown)} runs are not in study.json: {unknown[:3]}')
    return rows


def _merge_texts(texts):
    """Return texts once per key: evaluations with different reasoners repeat the same text."""
    keep = {}
    differing = 0
    for index, key in enumerate(zip(*(texts[name] for name in TEXT_KEY), strict=True)):
        first = keep.setdefault(key, index)
        differing += texts['text'][first] != texts['text'][index]
    index = np.array(list(keep.values()), dtype=int)
    note = (f'{differing} texts differ between evaluations of the same perception run and item; '
            'the gallery shows the first.')
    return ({name: column[index] for name, column in texts.items()},
            (note,) if differing else ())


def _read_cells(root, meta):
    """Return the metrics of every stage, the stages that did not finish, and notes on torn lines.

    A stage did not finish where it failed, goes on or is absent.
    """
    curves = {}
    stages = {}
    unfinished = []
    notes = []
    for folder in sorted(root.glob('cells/*/*/')):
        run_id = folder.parent.name
        stage = folder.name
        stages.setdefault(run_id, set()).add(stage)
        if (folder / 'metrics.jsonl').is_file():
            curves[run_id, stage], torn = read_metrics(folder / 'metrics.jsonl')
            bad = int(np.sum(~np.isfinite(curves[run_id, stage]['loss'])))
            for count, what in ((torn, 'torn lines are left out'), (bad, 'losses are not finite')):
                if count:
                    notes.append(f'{run_id}/{stage}/metrics.jsonl: {count} {what}')
        # Asked first: a stage that failed has no DONE.json either.
        if (folder / 'FATAL.json').is_file():
            reason = 'failed: ' + one_line((folder / 'FATAL.json').read_text(errors='replace'))
            unfinished.append({'run_id': run_id, 'stage': stage, 'reason': reason})
        elif not (folder / 'DONE.json').is_file():
            unfinished.append({'run_id': run_id, 'stage': stage, 'reason': 'no DONE.json'})
    unfinished += _absent(meta, stages)
    unfinished.sort(key=lambda row: (row['run_id'], _stage_order(row['stage'])))
    return curves, tuple(unfinished), notes


def _absent(meta, stages):
    """Return a row for each stage that a run should have and has no folder of, as a list.

    `stages` maps runs to their folders. Where `study.json` does not say which stages a run has, it
    should have those that any run of the study has.
    """
    rows = []
    runs = [run['run_id'] for run in meta['runs']]
    anywhere = set().union(*(stages.get(run, set()) for run in runs))
    for run in runs:
        expected = set(meta.get('stages', {}).get(run, anywhere))
        for stage in sorted(expected - stages.get(run, set()), key=_stage_order):
            rows.append({'run_id': run, 'stage': stage, 'reason': 'never started'})
        if not anywhere:
            rows.append({'run_id': run, 'stage': '', 'reason': 'no folder under cells/'})
    return rows


def _stage_order(stage):
    # Stages that the table does not know come last, by name.
    order = list(STAGES)
    return (order.index(stage), '') if stage in STAGES else (len(order), stage)


def _mean_scores(study, cell):
    """Return (ranks of the items, a row of each, mean score over repeats) of a cell, made once."""
    if cell not in study.averaged:
        index = study.cells[cell]
        ids, first, inverse = np.unique(study.codes['item_id'][index], return_index=True,
                                        return_inverse=True)
        scores = np.bincount(inverse, study.items['score'][index]) / np.bincount(inverse)
        study.averaged[cell] = ids, index[first], scores
    return study.averaged[cell]


def pair(study: Study, groups: Sequence[Sequence[Cell]]) -> Paired:
    """Return one mean score per item of each group of cells, which must all hold the same items.

    `groups` is a list of lists of `Cell`: seeds of one size are one group. Repeats and seeds are
    averaged within an item. Raises `TableError` when item ids, data hashes or the facts of an
    item (task, cluster, chance) differ between cells.
    """
    reference = None
    rows = None
    scores = []
    for cells in groups:
        # Cells of a group weigh alike, however many repeats each of them has.
        total = 0.0
        for cell in cells:
            ids, first, score = _mean_scores(study, cell)
            if reference is None:
                reference = ids
                rows = first
            _check_pairing(study, cell, (reference, rows), (ids, first))
            total = total + score
        scores.append(total / len(cells))
    facts = {name: study.items[name][rows] for name in ('item_id', *FACTS)}
    return Paired(
        scores=np.array(scores),
        item_id=facts['item_id'].astype(str),
        task=facts['task'].astype(str),
        cluster_id=facts['cluster_id'].astype(str),
        chance=facts['chance'].astype(float),
    )


def _check_pairing(study, cell, expected, actual):
    """Raise `TableError` unless a cell has the `expected` items, with the same facts.

    Both are (ranks of the items, a row of each).
    """
    who = f'{"/".join(filter(None, cell[:3]))} {cell.condition}'
    items = study.items
    reference, rows = expected
    ids, own_rows = actual
    if not np.array_equal(reference, ids):
        wanted = set(items['item_id'][rows])
        answered = set(items['item_id'][own_rows])
        lost = sorted(wanted - answered)
        new = sorted(answered - wanted)
        raise TableError(f'pairing: {who} lacks {len(lost)} of {len(reference)} items '
                         f'{lost[:3]} and has {len(new)} others {new[:3]}')
    for name in FACTS:
        # Texts by their ranks; `chance` is a number and has none.
        values = study.codes.get(name, items[name])
        differ = values[rows] != values[own_rows]
        if np.any(differ):
            raise TableError(f'pairing: {name} of {who} differs on {int(np.sum(differ))} of '
                             f'{len(ids)} items, first {list(items["item_id"][rows][differ][:3])}')

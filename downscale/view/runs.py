"""What can be looked at: a study folder, or the folder of an Extract+Think chain."""
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from downscale.analysis import measures
from downscale.analysis.measures import Scored
from downscale.results import factors, samples
from downscale.results.items import HIDDEN, ITEMS, LATER, TEXTS, TableError
from downscale.results.lazy_table import LazyTable, cells_of, open_items, open_texts
from downscale.results.study import Cell, Study
from downscale.results.study_file import read_study
from downscale.results.text_kinds import CAPTION, EXTRACTION
from downscale.runtime import copies
from downscale.runtime.files import PathLike

# What a chain's records say beyond the columns of a study: what its question was, as JSON.
CHAIN = pa.schema([*ITEMS, *LATER, pa.field('doc', pa.string(), nullable=False)])

NEEDED = copies.matching('study.json', 'evaluations/*/items.parquet',
                         'evaluations/*/texts.parquet', 'answer-*.jsonl', 'describe-*.jsonl')


@dataclass(frozen=True, kw_only=True)
class Run:
    """One opened folder.

    `tables` are of items and `texts` of what perception wrote; `cells` maps each cell to (its
    table, its stretches of rows). `scored` knows sizes and which cells to compare, but no numbers.
    """
    name: str
    root: Path
    tables: tuple[LazyTable, ...]
    texts: tuple[LazyTable, ...]
    cells: dict[Cell, tuple[LazyTable, list[tuple[int, int]]]] = field(repr=False)
    scored: Scored = field(repr=False)


def open_runs(roots: Sequence[PathLike]) -> list[Run]:
    """Open several folders; those whose studies have equal names are named by their folders.

    Of a folder in a bucket the tables are copied, pictures when they are looked at.
    """
    runs = [open_run(copies.local_copy(root, NEEDED)) for root in roots]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        runs = [replace(run, name=str(run.root)) for run in runs]
    if len({run.root.resolve() for run in runs}) < len(runs):
        raise ValueError('the same folder is given twice')
    return runs


def open_run(root: Path) -> Run:
    """Open a folder; ValueError in one line where it is neither a study nor a chain."""
    if (root / 'study.json').is_file():
        return _study(root)
    answers = sorted(root.glob('answer-*.jsonl'))
    if answers:
        return _chain(root, answers)
    if not root.is_dir():
        raise FileNotFoundError(f'no folder {root}')
    raise ValueError(f'{root} holds neither study.json (of a study) nor answer-*.jsonl (of '
                     '`downscale extract-think`)')


def _study(root):
    meta = read_study(root)
    tables = tuple(open_items(path) for path in sorted(root.glob('evaluations/*/items.parquet')))
    texts = tuple(open_texts(path) for path in sorted(root.glob('evaluations/*/texts.parquet')))
    return _run(root, meta, tables, texts)


def _run(root, meta, tables, texts):
    """Return the `Run` of opened tables; `TableError` for a run that the study does not name."""
    cells = {}
    with ThreadPoolExecutor() as pool:   # reading and decoding let go of the interpreter
        every = list(pool.map(_read, tables))
    tables, every = _of_one_data(tables, every, factors.apart(meta))
    for table, of_table in zip(tables, every, strict=True):
        for cell, stretches in of_table.items():
            if cell in cells:
                raise TableError(f'items: {cell} is in two evaluations, {cells[cell][0].source} '
                                 f'and {table.source}')
            cells[cell] = table, stretches
    answered = {cell.p_run for cell in cells} | {cell.r_run for cell in cells}
    unknown = sorted(answered - {run['run_id'] for run in meta['runs']} - {''})
    if unknown:
        raise TableError(f'items: {len(unknown)} runs are not in study.json: {unknown[:3]}')
    # The rules for sizes, seeds and runs to leave out are those of the analysis; nothing is drawn.
    study = Study(root=root, meta=meta, curves={}, items={'cluster_id': np.array([''])}, texts={},
                  unfinished=(), throughput={}, notes=(), input_hash='', codes={},
                  cells=dict.fromkeys(cell for cell in cells if cell.condition != HIDDEN))
    hidden = dict.fromkeys(cell for cell in cells if cell.condition == HIDDEN)
    study = replace(study, hidden=replace(study, cells=hidden))
    return Run(name=meta.get('name') or root.name, root=root, tables=tables, texts=texts,
               cells=cells, scored=measures.scored(study, bootstraps=1))


def _of_one_data(tables, every, left_out):
    """Return the tables, and the cells of each, without those of levels that ask other questions.

    Of a study that varies its world or its data these are the questions of the usual level.
    """
    usual = set()
    for table, cells in zip(tables, every, strict=True):
        if any(left_out.isdisjoint((cell.p_run, cell.r_run)) for cell in cells):
            usual.update(_hashes(table))
    kept = [(table, cells) for table, cells in zip(tables, every, strict=True)
            if not usual or usual.issuperset(_hashes(table))]
    return tuple(table for table, _ in kept), [cells for _, cells in kept]


def _hashes(table):
    """Return the hashes of the data that a table asks about."""
    codes, names = table.codes('data_hash')
    return {names[int(code)].as_py() for code in np.unique(codes)}


def _read(table):
    """Return the cells of a table, with the columns read that every page needs."""
    table.read((*Cell._fields, 'task', 'data_hash', 'repeat'))
    return cells_of(table)


# --- chains -----------------------------------------------------------------------------------

def _chain(root, paths):
    """Return the `Run` of a chain: its records as rows, its checkpoints as sizes."""
    described = {}
    for path in sorted(root.glob('describe-*.jsonl')):
        described |= samples.merged([path])
    records = []
    for path in paths:
        records += samples.merged([path]).values()
    items = [_item_row(record, described.get(record.get('description'), {}))
             for record in records]
    asked = {row['item_id']: json.loads(row['doc']) for row in items}
    texts = [_text_row(record, asked) for record in described.values()]
    names = dict.fromkeys(name for row in items for name in (row['p_run'], row['r_run']) if name)
    meta = {'name': root.name, 'runs': [
        {'run_id': name, 'size': name, 'seed': 0, 'n_total': 0, 'n_nonembed': 0, 'n_vision': 0}
        for name in names]}
    tables = (LazyTable(CHAIN, _table(items, CHAIN)),)
    return _run(root, meta, tables, (LazyTable(TEXTS, _table(texts, TEXTS)),))


def _table(rows, schema):
    """Return rows as a table, cells together."""
    rows = sorted(rows, key=lambda row: (row.get('eval_id', ''), row['item_id'],
                                         row.get('repeat', 0)))
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TableError(f'a record has a value of the wrong type: {error}') from error


def _doc(record):
    doc = record.get('doc')
    return doc if isinstance(doc, dict) else {}


def _id(record):
    """Return the name of the item of a record: what the data calls it, else its place."""
    return str(_doc(record).get('id') or record.get('doc_id', ''))


def _kind(record):
    """Return the kind of text that a description is."""
    return EXTRACTION if 'extract' in str(record.get('task')) else CAPTION


def _item_row(record, description):
    """Return a record of an answer as a row of `CHAIN`."""
    doc = _doc(record)
    thinking = record.get('task') == 'answer-think'
    model = str(record.get('model') or '')
    joint = record.get('task') == 'answer-joint'
    p_run = model if joint else str(record.get('perception') or '')
    r_run = '' if joint else model
    kind = '' if joint else _kind(description)
    thought, _, _ = _reply(record).rpartition('</think>')
    if thinking and not thought and record.get('close') == 'open':
        thought = _reply(record)
    score = record.get('score')
    gold = record.get('target')
    doc = {**doc, 'question': doc.get('question') or record.get('input', ''), 'target': gold}
    return {
        'eval_id': f'{p_run}-{r_run}-{kind}-{thinking}', 'task': str(doc.get('family') or 'chain'),
        'category': 'visual', 'item_id': _id(record), 'cluster_id': str(doc.get('cluster', '')),
        'p_run': p_run, 'r_run': r_run, 'text_kind': kind, 'thinking': thinking,
        'condition': 'image', 'repeat': int(record.get('repeat', 0)),
        'score': float('nan') if score is None else float(score), 'nll_gold': float('nan'),
        'chance': 0.0, 'pred': str(record.get('pred') or ''),
        'gold': gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False),
        'parse_ok': bool(record.get('parse_ok')),
        'n_gen_tokens': int(record.get('n_think', 0)) + int(record.get('n_answer', 0)),
        'truncated': bool(record.get('truncated')), 'finish': str(record.get('finish_reason', '')),
        'close': str(record.get('close', '')), 'n_think_tokens': int(record.get('n_think', 0)),
        'prompt_hash': str(record.get('prompt_hash', '')), 'data_hash': '',
        'thought': thought, 'scorer': str(record.get('scorer', '')),
        'doc': json.dumps(doc, ensure_ascii=False)}


def _reply(record):
    """Return the first raw reply of a record."""
    replies = record.get('resps') or [['']]
    first = replies[0]
    return str(first[0] if isinstance(first, list) and first else first)


def _text_row(record, asked):
    """Return a record of a description as a row of texts."""
    item = _id(record)
    return {'item_id': item, 'p_run': str(record.get('model') or ''), 'text_kind': _kind(record),
            'question': str(asked.get(item, {}).get('question', '')),
            'prompt': str(record.get('input', '')), 'text': _reply(record),
            'n_tokens': int(record.get('n_answer', 0)), 'truncated': bool(record.get('truncated'))}

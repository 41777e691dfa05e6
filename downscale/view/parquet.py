"""Items with pictures and answers as one Parquet file, for whoever reads data sets.

A row is an item. `image` has the form of Hugging Face's `Image`, so that its viewer shows pictures.
"""
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from downscale.results.items import LATER
from downscale.runtime.files import whole
from downscale.view.board import LOSSES, Board, picture_path
from downscale.view.runs import Run

NAME = 'items.parquet'
IMAGE = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
FEATURES = {'image': {'_type': 'Image'}}
ANSWERS = ('p_run', 'r_run', 'text_kind', 'thinking', 'condition', 'repeat', 'score', 'pred',
           'nll_gold', 'parse_ok', 'n_gen_tokens', 'n_think_tokens', 'truncated', 'close',
           *LATER.names)
TEXTS = ('p_run', 'text_kind', 'prompt', 'text', 'n_tokens', 'truncated')


def export_items(run: Run, folder: Path) -> Path:
    """Write the items of a run to `NAME` in a new folder, and return the file.

    ValueError where the folder is not empty.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f'{folder} is not empty; give a new folder')
    board = Board([run])
    items = list(range(len(board)))
    facts = {name: board.facts(name, items) for name in ('task', 'cluster_id', 'gold', 'chance')}
    classes = [LOSSES[place] if place >= 0 else '' for place in board.losses(run, None)]
    columns = {
        'item_id': board.ids, **facts, 'question': board.questions(items), 'loss': classes,
        'image': pa.array([_picture(run, cluster) for cluster in facts['cluster_id']], IMAGE),
        'answers': _answers(board, run), 'texts': _texts(board, run)}
    table = pa.table(columns).replace_schema_metadata(
        {'huggingface': json.dumps({'info': {'features': FEATURES}})})
    with whole(folder) as partial:
        partial.mkdir(parents=True)
        pq.write_table(table, partial / NAME, compression='zstd')
    return folder / NAME


def _picture(run, cluster):
    """Return the first picture of a cluster as Hugging Face stores one, None without."""
    path = picture_path(run, cluster, 0)
    return {'bytes': path.read_bytes(), 'path': path.name} if path.is_file() else None


def _answers(board, run):
    """Return the answers to every item, as lists of structs."""
    numbers = [board.numbers(table) for table in run.tables]
    return _lists(board, run.tables, numbers, ANSWERS)


def _texts(board, run):
    """Return what was written about every item, as lists of structs."""
    numbers = []
    for table in run.texts:
        places = pc.index_in(table.plain('item_id'), value_set=board.ids)
        numbers.append(places.fill_null(-1).to_numpy())
    return _lists(board, run.texts, numbers, TEXTS)


def _column(table, name):
    """Return a column of texts or numbers; of one that only later tables have, empty texts."""
    return table.plain(name) if name in table.schema.names else pa.array([''] * table.rows)


def _lists(board, tables, numbers, names):
    """Return the rows of some tables as one list of structs for each item."""
    if not tables:
        return pa.nulls(len(board), pa.list_(pa.struct([])))
    parts = [pa.table({name: _column(table, name) for name in names}) for table in tables]
    rows = pa.concat_tables(parts)
    number = np.concatenate(numbers)
    order = np.argsort(number, kind='stable')
    order = order[number[order] >= 0]
    taken = rows.take(pa.array(order)).combine_chunks()
    ends = np.cumsum(np.bincount(number[order], minlength=len(board)))
    structs = pa.StructArray.from_arrays(
        [pa.concat_arrays([*column.chunks, pa.array([], column.type)])
         for column in taken.columns], names=list(names))
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), structs)

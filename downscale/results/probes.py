"""The tables that probes leave in a study folder, and how they are summed up: no JAX.

`probe_items.parquet` holds a number for each item and measure, `probes.parquet` their means with
intervals, and `probe_pairs.parquet` how alike the features of two runs are. `rel_depth` is the
depth relative to the language model's, NaN where a site has none.
"""
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from downscale.results.items import TableError, one_line, strict_schema
from downscale.runtime.files import place, write_bytes
from downscale.statistics import bootstrap
from downscale.statistics.bootstrap import Resamples

_S = pa.string()
_F = pa.float64()
_I = pa.int64()
PROBES = strict_schema(run_id=_S, task=_S, site=_S, rel_depth=_F, metric=_S, value=_F, lo=_F,
                       hi=_F, n=_I)
PROBE_ITEMS = strict_schema(run_id=_S, task=_S, item_id=_S, cluster_id=_S, site=_S,
                            rel_depth=_F, metric=_S, value=_F)
PROBE_PAIRS = strict_schema(run_id=_S, other_id=_S, site=_S, rel_depth=_F, other_depth=_F,
                            metric=_S, value=_F, n=_I)
SCHEMAS = {'probes': PROBES, 'probe_items': PROBE_ITEMS, 'probe_pairs': PROBE_PAIRS}
NO_DEPTH = float('nan')
MACRO = 'macro'
ASKED = 'asked '  # begins tasks that are no family: what the asked object is like


@dataclass(kw_only=True)
class Measured:
    """One task of one run: its items, and {(site, rel_depth, metric): a number for each item}.

    `family` says whether these are the questions of a family, which the macro mean is over; else
    they are what is asked of the probe alone.
    """
    item_id: np.ndarray
    cluster_id: np.ndarray
    family: bool
    values: dict = field(default_factory=dict)


def write(folder: Path, name: str, table: pa.Table) -> None:
    """Write `table` to `folder/name.parquet`, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.cast(SCHEMAS[name]), sink, compression='zstd')
    write_bytes(place(folder) / f'{name}.parquet', sink.getvalue().to_pybytes())


def read(folder: Path, name: str) -> pa.Table:
    """Return the table `folder/name.parquet`; `TableError` if missing or of another form."""
    path = place(folder) / f'{name}.parquet'
    if not path.exists():
        raise TableError(f'no {path}; run `downscale analyze probe {folder}` first')
    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
    except (OSError, pa.ArrowException) as error:
        raise TableError(f'{path}: not readable as Parquet: {one_line(error)}') from error
    if not table.schema.equals(SCHEMAS[name]):
        raise TableError(f'{path} has columns {table.column_names}, not '
                         f'{SCHEMAS[name].names}; delete it and probe again')
    return table


def items_table(run_id: str, tasks: dict[str, Measured]) -> pa.Table:
    """Return the `probe_items` of a run, from {task: Measured}."""
    # The empty table is for a run without tasks: it has the columns all the same.
    parts = [SCHEMAS['probe_items'].empty_table()]
    for task, measured in tasks.items():
        for (site, depth, metric), value in measured.values.items():
            # An item for which the measure does not exist has NaN here and no row there.
            there = np.isfinite(value)
            parts.append(_table('probe_items', there.sum(), run_id=run_id, task=task, site=site,
                                rel_depth=depth, metric=metric, item_id=measured.item_id[there],
                                cluster_id=measured.cluster_id[there], value=value[there]))
    return pa.concat_tables(parts)


def _table(name, length, **columns):
    """Return a table of columns; a value that is not an array is the same in every row."""
    arrays = []
    for column in SCHEMAS[name]:
        value = columns[column.name]
        values = value if isinstance(value, np.ndarray) else [value] * length
        arrays.append(pa.array(values, column.type))
    return pa.table(arrays, schema=SCHEMAS[name])


def means_table(run_id: str, tasks: dict[str, Measured], resamples: Resamples) -> pa.Table:
    """Return the `probes` of a run: means over items, with intervals over pictures.

    The mean over families is the task 'macro'. Beside the measures of `tasks` there are differences
    on the same items: 'selectivity' is accuracy minus that of the control, 'nll rise' and 'exact
    drop' what a site does to the answer with the picture.
    """
    rows = []
    families = {}
    for task, measured in tasks.items():
        for key, x in _means(measured, resamples).items():
            rows.append(_row(run_id, task, key, x))
            if measured.family:
                families.setdefault(key, []).append(x)
    for key, xs in families.items():
        values, draws, counts, clusters = zip(*xs, strict=True)
        # All families are drawn under the same resamples: the mean of a draw is a draw of the mean.
        # The family with fewest pictures says how far the interval is to be trusted.
        x = np.mean(values), np.mean(draws, axis=0), sum(counts), min(clusters)
        rows.append(_row(run_id, MACRO, key, x))
    return pa.Table.from_pylist(rows, schema=SCHEMAS['probes'])


def _row(run_id, task, key, x):
    """Return a row of `probes`; `x` is (mean, draws, items, clusters)."""
    site, depth, metric = key
    at = bootstrap.interval(*x, bounds=BOUNDS.get(metric, (-np.inf, np.inf)))
    return {'run_id': run_id, 'task': task, 'site': site, 'rel_depth': depth, 'metric': metric,
            'value': at.value, 'lo': at.low, 'hi': at.high, 'n': at.n}


# What a measure can be: intervals are cut there, those of others nowhere.
BOUNDS = {'accuracy': (0, 1), 'control': (0, 1), 'attentive': (0, 1),
          'attentive control': (0, 1), 'chance': (0, 1), 'exact': (0, 1),
          'selectivity': (-1, 1), 'exact drop': (-1, 1), 'kl': (0, np.inf), 'nll': (0, np.inf)}


def _means(measured, resamples):
    """Return {key: (mean, draws, items, clusters)}, over the items that have that measure.

    Not every answer has a third token. Measures of the same items are averaged together.
    """
    values = measured.values | _differences(measured.values)
    # By the mask of the items that have it: one pass over the resamples serves all of a mask.
    alike = {}
    for key, value in values.items():
        alike.setdefault(np.isfinite(value).tobytes(), []).append(key)
    means_of = {}
    for mask, keys in alike.items():
        there = np.frombuffer(mask, bool)
        if there.any():
            means = bootstrap.group_means([values[key][there] for key in keys],
                                          np.full(there.sum(), ''), measured.cluster_id[there],
                                          resamples)
            for row, key in enumerate(keys):
                means_of[key] = (means.value[row, 0], means.draws[:, row, 0], means.n[0],
                                 means.clusters[0])
    return means_of


def _differences(values):
    """Return the measures that are differences of two others on the same items."""
    differences = {}
    for site, depth, metric in values:
        if metric == 'control':
            differences[site, depth, 'selectivity'] = \
                values[site, depth, 'accuracy'] - values[site, depth, metric]
        if site in ('blind', 'knock-out', 'knock-out everywhere') and metric in ('nll', 'exact'):
            # The same answer with everything in place; signs make harm positive in both measures.
            seen = values['output', 1.0, metric]
            name, sign = ('nll rise', 1) if metric == 'nll' else ('exact drop', -1)
            differences[site, depth, name] = sign * (values[site, depth, metric] - seen)
    return differences


def hits(table: pa.Table, run_id: str, site: str, depth: float) -> dict[str, float]:
    """Return {item_id: hit} of the probes of a run at one site, over the families' own tasks."""
    # NaN equals nothing, so that a site without depth has to be asked for otherwise.
    at = pc.is_nan(table['rel_depth']) if np.isnan(depth) else pc.equal(table['rel_depth'], depth)
    for name, value in (('run_id', run_id), ('site', site), ('metric', 'accuracy')):
        at = pc.and_(at, pc.equal(table[name], value))
    part = table.filter(at)
    return {item: hit for item, task, hit in zip(
        part['item_id'].to_pylist(), part['task'].to_pylist(), part['value'].to_pylist(),
        strict=True) if not task.startswith(ASKED)}

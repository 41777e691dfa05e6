"""What `probes.parquet` holds, for the report: curves by relative depth, and what has no depth."""
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from downscale.analysis.measures import Missing, Scored
from downscale.results.items import TableError, one_line

COLUMNS = ('run_id', 'task', 'site', 'rel_depth', 'metric', 'value', 'lo', 'hi', 'n')


def layers(s: Scored) -> dict[str, Any]:
    """Return a dict: 'sizes', 'curves' {'metric, task': {size: points}}, 'others' rows without a
    depth.

    A measure of one depth is no curve and stands among the others. A point is the mean over the
    seeds of a size; its bounds are the means of theirs, which hold pictures only. At most 12
    panels: metrics of the mean over tasks first, then of each task.
    """
    path = s.study.root / 'probes.parquet'
    if not path.is_file():
        raise Missing('no probes.parquet; `downscale analyze probe` writes it')
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise TableError(f'{path}: not readable as Parquet: {one_line(error)}') from None
    lacking = sorted(set(COLUMNS) - set(table.column_names))
    if lacking:
        raise TableError(f'{path.name}: {len(lacking)} columns missing {lacking}')
    home = {run: size.name for size in s.sizes for run in size.runs}
    found = {}
    rows = {}
    others = []
    for row in table.select(COLUMNS).to_pylist():
        depth = row['rel_depth']
        if row['run_id'] not in home or depth is None or not np.isfinite(depth):
            others.append(_told(row))
            continue
        # Sites at one depth (image tokens, answer position) are different curves.
        site = row['site'].rstrip('0123456789.') if row['site'] else ''
        key = ', '.join(filter(None, (row['metric'], site, row['task'])))
        rows.setdefault(key, []).append(_told(row))
        of = found.setdefault(key, {}).setdefault(home[row['run_id']], {})
        of.setdefault(float(depth), []).append([row[name] for name in ('value', 'lo', 'hi', 'n')])
    single = {key for key, of in found.items() if max(map(len, of.values())) == 1}
    others += [row for key in sorted(single) for row in rows[key]]
    order = sorted(found.keys() - single, key=lambda key: (not key.endswith('macro'), key))[:12]
    curves = {key: {size: [_point(depth, values) for depth, values in sorted(of.items())]
                    for size, of in found[key].items()} for key in order}
    return {'sizes': [size.name for size in s.sizes], 'curves': curves, 'others': others}


def _told(row):
    return [row[name] for name in COLUMNS if name != 'rel_depth']


def _point(depth, values):
    value, low, high, n = np.mean(np.array(values, dtype=float), axis=0)
    return {'rel_depth': depth, 'value': float(value), 'low': float(low), 'high': float(high),
            'n': int(n)}

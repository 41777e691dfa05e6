"""What `probes.parquet` holds, for the report: curves by relative depth, and what has no depth."""
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from downscale.analysis.measures import Missing, Scored
from downscale.results.items import TableError, one_line

COLUMNS = ('run_id', 'task', 'site', 'rel_depth', 'metric', 'value', 'lo', 'hi', 'n')
POINT = ('value', 'lo', 'hi', 'n')   # of a curve


def layers(s: Scored) -> dict[str, Any]:
    """Return the curves of a study's probes: 'sizes', 'curves' and 'others', the rest of the rows.

    'curves' is {'metric, task': {size: points}}. A measure of one depth is no curve and stands
    among the others. A point is the mean over the seeds of a size; its bounds are the means of
    theirs, which hold pictures only. At most 12 panels: metrics of the mean over tasks first, then
    of each task.
    """
    home = {}
    for size in s.sizes:
        home.update(dict.fromkeys(size.runs, size.name))
    panels = {}
    rows = {}
    others = []
    for row in _table(s.study.root / 'probes.parquet').select(COLUMNS).to_pylist():
        depth = row['rel_depth']
        # Runs of a sweep have no size, and some sites no depth: neither has a place on a curve.
        if row['run_id'] not in home or depth is None or not np.isfinite(depth):
            others.append(_without_depth(row))
            continue
        # Sites at one depth (image tokens, answer position) are different curves.
        site = row['site'].rstrip('0123456789.') if row['site'] else ''
        key = ', '.join(filter(None, (row['metric'], site, row['task'])))
        rows.setdefault(key, []).append(_without_depth(row))
        depths = panels.setdefault(key, {}).setdefault(home[row['run_id']], {})
        depths.setdefault(float(depth), []).append([row[name] for name in POINT])
    # A table says more of measures at one depth than a curve with one point.
    single = {key for key, by_size in panels.items() if max(map(len, by_size.values())) == 1}
    for key in sorted(single):
        others += rows[key]
    # False sorts before True: means over tasks come first.
    order = sorted(panels.keys() - single, key=lambda key: (not key.endswith('macro'), key))[:12]
    curves = {}
    for key in order:
        curves[key] = {size: _curve(depths) for size, depths in panels[key].items()}
    return {'sizes': [size.name for size in s.sizes], 'curves': curves, 'others': others}


def _table(path):
    """Return the table of `probes.parquet`, in which no column may be missing."""
    if not path.is_file():
        raise Missing('no probes.parquet; `downscale analyze probe` writes it')
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise TableError(f'{path}: not readable as Parquet: {one_line(error)}') from None
    lacking = sorted(set(COLUMNS) - set(table.column_names))
    if lacking:
        raise TableError(f'{path.name}: {len(lacking)} columns missing {lacking}')
    return table


def _without_depth(row):
    """Return the values of a row as the report lists them."""
    return [row[name] for name in COLUMNS if name != 'rel_depth']


def _curve(depths):
    """Return the points of a curve by ascending depth, of {depth: values of `POINT` by seed}."""
    points = []
    for depth, values in sorted(depths.items()):
        value, low, high, n = np.mean(np.array(values, dtype=float), axis=0)
        points.append({'rel_depth': depth, 'value': float(value), 'low': float(low),
                       'high': float(high), 'n': int(n)})
    return points

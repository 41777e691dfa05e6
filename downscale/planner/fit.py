"""Whether the training of each cell fits its slices, and what it may take and cost, before it runs.
"""
import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from downscale.planner.pool import ENVIRONMENT
from downscale.runtime.progress import progress_bars

JOBS = 2
LIMIT_SECONDS = 1800.0


@dataclass(frozen=True, kw_only=True)
class CellFit:
    """All stages of a cell: the largest peak of memory against its limit in GiB, and from the least
    to the most: chip-hours and dollars (None where not known). `remark` says what does not fit.
    """
    fits: bool
    hbm_gib: float | None
    hbm_limit_gib: float
    chip_hours: tuple[float, float] | None
    usd: tuple[float, float] | None
    remark: str = ''


def check(cells, topology, folder, quiet=False):
    """Return {cell: its `CellFit`}; the programs are compiled on this machine, and kept in
    `folder`.

    ValueError without a TPU compiler, and where a mesh does not divide a parameter.
    """
    os.environ.update(ENVIRONMENT)
    from downscale.planner.plan import Plan
    from downscale.planner.programs import Wish
    from downscale.planner.worker import refuse
    with contextlib.redirect_stdout(sys.stderr), progress_bars(quiet) as bars:
        found = Plan(cells, [topology], Wish(only=('train',)), refuse, Path(folder), JOBS,
                     LIMIT_SECONDS, bars).run()
    return of_cells(found)


def of_cells(plan):
    """Return {cell: its `CellFit`} of what `plan.Plan.run` has found."""
    rows = {}
    for row in plan['cells']:
        cell, _, stage = row['name'].rpartition('/')
        rows.setdefault(cell, {}).setdefault(stage, []).append(row)
    return {cell: _fit(stages) for cell, stages in rows.items()}


def _fit(stages):
    """Return the `CellFit` of {stage: rows of its shapes}."""
    rows = [row for shapes in stages.values() for row in shapes]
    peaks = [row['hbm_gib'] for row in rows if row['hbm_gib'] is not None]
    return CellFit(
        fits=all(row['fits'] for row in rows),
        hbm_gib=max(peaks, default=None),
        hbm_limit_gib=min(row['hbm_limit_gib'] for row in rows),
        chip_hours=_span(stages, 'chip_hours'),
        usd=_span(stages, 'usd'),
        remark='; '.join(filter(None, map(_remark, rows))),
    )


def _span(stages, key):
    """From the least to the most, where every shape of every stage is known."""
    if not all(row[key] for shapes in stages.values() for row in shapes):
        return None
    return tuple(sum(pick(row[key][end] for row in shapes) for shapes in stages.values())
                 for end, pick in enumerate((min, max)))


def _remark(row):
    if row['error']:
        return f'{row["name"]}: {row["error"]}'
    if row['fits']:
        return ''
    near = row['proposal']
    return f'{row["name"]} does not fit' + (f'; with {near["change"]} it does' if near else '')

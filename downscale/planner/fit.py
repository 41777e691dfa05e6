"""Whether the training of each cell fits its slices, and what it may take and cost, before it runs.
"""
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from downscale.config import Experiment
from downscale.planner.bounds import Span, summed
from downscale.planner.pool import ENVIRONMENT
from downscale.runtime.files import PathLike
from downscale.runtime.progress import progress_bars

JOBS = 2
LIMIT_SECONDS = 1800.0


@dataclass(frozen=True, kw_only=True)
class CellFit:
    """All stages of a cell together: what they need and cost; `remark` says what does not fit.

    `hbm_gib` is the largest peak of memory, in GiB. `chip_hours` and `usd` go from the least to
    the most, None where they are not known.
    """
    fits: bool
    hbm_gib: float | None
    hbm_limit_gib: float
    chip_hours: Span | None
    usd: Span | None
    remark: str = ''


def check(cells: Sequence[Experiment], topology: str, folder: PathLike,
          quiet: bool = False) -> dict[str, CellFit]:
    """Compile the train programs of `cells` on this machine; return {cell name: its `CellFit`}.

    What is compiled is kept in `folder`. ValueError without a TPU compiler, and where a mesh does
    not divide a parameter.
    """
    # The environment is read when JAX is first imported, which these imports do.
    os.environ.update(ENVIRONMENT)
    from downscale.planner.plan import Plan
    from downscale.planner.programs import Wish
    from downscale.planner.worker import refuse
    with contextlib.redirect_stdout(sys.stderr), progress_bars(quiet) as bars:
        plan = Plan(cells, [topology], Wish(only=('train',), propose=True), refuse, folder, JOBS,
                    LIMIT_SECONDS, bars).run()
    return of_cells(plan)


def of_cells(plan: dict[str, Any]) -> dict[str, CellFit]:
    """Return {cell name: its `CellFit`} of a plan as `plan.Plan.run` returns it."""
    cells = {}
    for row in plan['cells']:
        cell, _, stage = row['name'].rpartition('/')
        cells.setdefault(cell, {}).setdefault(stage, []).append(row)
    return {cell: _fit(stages) for cell, stages in cells.items()}


def _fit(stages):
    """Return the `CellFit` of {stage: rows of its shapes}."""
    rows = list(chain.from_iterable(stages.values()))
    peaks = [row['hbm_gib'] for row in rows if row['hbm_gib'] is not None]
    limits = [row['hbm_limit_gib'] for row in rows]
    return CellFit(
        fits=all(row['fits'] for row in rows),
        hbm_gib=max(peaks, default=None),
        hbm_limit_gib=min(limits),
        chip_hours=_span(stages.values(), 'chip_hours'),
        usd=_span(stages.values(), 'usd'),
        remark='; '.join(filter(None, map(_remark, rows))),
    )


def _span(stages, key):
    """Return the sum of `key` over all stages, None where a shape of a stage has none."""
    spans = []
    for shapes in stages:
        spans.append([row[key] for row in shapes])
    return summed(spans) if all(map(all, spans)) else None


def _remark(row):
    """Return why a row has failed or does not fit, '' where it fits."""
    if row['error']:
        return f'{row["name"]}: {row["error"]}'
    if row['fits']:
        return ''
    near = row['proposal']
    remedy = f'; with {near["change"]} it does' if near else ''
    return f'{row["name"]} does not fit{remedy}'

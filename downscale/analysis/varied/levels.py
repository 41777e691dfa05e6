"""A study at each level of its factors: accuracy by family and size, and what becomes of claims."""
from dataclasses import replace
from typing import Any

from downscale.analysis import claims, measures
from downscale.analysis.contrasts import families_of, over
from downscale.analysis.measures import Missing, Scored
from downscale.results import factors
from downscale.results.items import TableError

KINDS = ('visual', 'knowledge')
SAID = ('id', 'text', 'verdict', 'reason', 'effect', 'low', 'high')   # of a claim at a level


def at_level(s: Scored, factor: str, level: str) -> Scored:
    """Return the study of the runs at a level of a factor, all other factors at their usual level.

    Where no run of the level reasons, as with forks of a stage that sees, the usual runs do.
    """
    study = s.whole or s.study
    runs = factors.at(study.meta, factor, level)
    readers = {cell.r_run for cell in study.cells} - {''}
    if readers.isdisjoint(runs):
        readers -= factors.apart(study.meta)
    else:
        readers &= runs
    cells = {cell: rows for cell, rows in study.cells.items()
             if cell.p_run in {'', *runs} and cell.r_run in {'', *readers}}
    sizes = measures.sizes_among(study.meta, runs | readers)
    meta = study.meta
    hashes = {study.items['data_hash'][rows[0]] for rows in cells.values()}
    data = meta.get('data', {})
    if 'hash' in data and hashes - {data['hash']}:
        # Guesses of other questions say nothing here: those of its own items stay.
        meta = {**meta, 'data': {**data, 'baselines': {}}}
    return replace(s, study=replace(study, meta=meta, cells=cells), sizes=sizes)


def by_level(s: Scored) -> dict[str, dict[str, Any]]:
    """Return {factor: dict} of a study's factors.

    A factor has its 'usual' level, 'n_nonembed' {size: parameters}, 'accuracy' {family, or kind of
    family: {size: {level: Interval}}}, 'claims' {level: [claims as `claims.judge` has them, in
    short]} and 'missing' {level: why there is nothing of it}.
    """
    meta = s.study.meta
    usual = factors.usual(meta)
    by_factor = {}
    for factor, levels in factors.levels_of(meta).items():
        result = {'usual': usual[factor], 'levels': list(levels), 'n_nonembed': {},
                  'accuracy': {}, 'claims': {}, 'missing': {}}
        for level in levels:
            at = at_level(s, factor, level)
            try:
                _accuracies(at, level, result)
            except (Missing, TableError) as reason:
                result['missing'][level] = str(reason)
            else:
                result['claims'][level] = [{key: row[key] for key in SAID}
                                           for row in claims.judge(at)]
        if result['claims']:
            by_factor[factor] = result
    if not by_factor:
        raise Missing('no size was trained and asked at several levels of a setting')
    return by_factor


def _accuracies(s, level, result):
    """Add the accuracies of a level, by kind of family and by family, to `result`."""
    sizes = measures.answering_sizes(s)
    if not sizes:
        raise Missing('no model was asked with the picture')
    kinds = dict(zip(KINDS, families_of(s), strict=True))
    parts = {kind: tasks for kind, tasks in kinds.items() if tasks}
    parts |= {task: {task} for tasks in kinds.values() for task in sorted(tasks)}
    for size in sizes:
        result['n_nonembed'][size.name] = size.n_nonembed
        cells = measures.joint_cells(s, size, 'image')
        for name, tasks in parts.items():
            by_size = result['accuracy'].setdefault(name, {})
            by_size.setdefault(size.name, {})[level] = over(s, [cells], ((1,), tasks))

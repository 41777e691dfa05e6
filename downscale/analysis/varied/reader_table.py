"""Reasoners side by side: what each is right about, from true texts, however it was trained."""
from dataclasses import replace
from typing import Any

from downscale.analysis import measures
from downscale.analysis.contrasts import families_of, over
from downscale.analysis.measures import MODES, Missing, Scored, Size
from downscale.analysis.varied.balance import balanced
from downscale.results.factors import apart
from downscale.results.study import Cell
from downscale.results.text_kinds import BEST_FIRST, EXTRACTION, PERCEIVED


def has_readers(s: Scored) -> bool:
    """Return whether any reasoner was trained otherwise than the plain one of its size."""
    changed = apart(s.study.meta)
    return any(cell.r_run in changed for cell in (s.whole or s.study).cells)


def by_reader(s: Scored, mode: str = 'think') -> dict[str, Any]:
    """Return how often every reasoner is right in visual families: a dict of 'mode', 'kinds' and
    'rows', the smallest size first.

    A row has size, reader ('plain', or what its cell changes), 'true' {kind of text: Interval from
    true texts} and 'over_plain' {kind: Interval of its difference from the plain one of its size},
    and 'balanced' {kind: the same with all right answers alike} (`balance`).
    `Missing` where none was trained otherwise, or none thought about a true text.
    """
    if not has_readers(s):
        raise Missing('no reasoner was trained in more than one way')
    readers = _readers(s)
    sizes = dict.fromkeys((*(size for _, size in readers), *s.sizes))
    whole = replace(s, study=s.whole or s.study, sizes=tuple(sizes))
    visual, _ = families_of(whole)
    kinds = [kind for kind in BEST_FIRST
             if any(_cells(whole, size, kind, mode) for _, size in readers)]
    # What is perceived is an extraction, and has the same true text.
    if EXTRACTION in kinds and PERCEIVED in kinds:
        kinds.remove(PERCEIVED)
    if not kinds:
        raise Missing(f'no reasoner was asked about a true text in mode {mode}')
    # Each reader is a size of its own to the intervals, and is held against the plain one's seeds.
    plain = {size.name: size for changes, size in readers if not changes}
    rows = []
    alike = balanced(whole)
    for changes, size in readers:
        row = {'size': size.name, 'reader': changes or 'plain', 'true': {}, 'over_plain': {},
               'balanced': {}}
        for kind in kinds:
            cells = _cells(whole, size, kind, mode)
            base = _cells(whole, plain[size.name], kind, mode) if size.name in plain else []
            if cells:
                row['true'][kind] = over(whole, [cells], ((1,), visual))
            if cells and base and cells != base:
                row['over_plain'][kind] = over(whole, [cells, base], ((1, -1), visual))
                row['balanced'][kind] = over(alike, [cells, base], ((1, -1), visual))
        rows.append(row)
    return {'mode': mode, 'kinds': kinds, 'rows': rows}


def _readers(s) -> list[tuple[str, Size]]:
    """Return [(what their cells change, the runs of one size that read)], plain ones first."""
    whole = s.whole or s.study
    read = {cell.r_run for cell in whole.cells}
    groups = {}
    for run in whole.meta['runs']:
        if run['run_id'] in read:
            key = run['n_total'], run['size'], run.get('changes', '')
            groups.setdefault(key, []).append(run['run_id'])
    return [(changes, measures.sizes_among(whole.meta, runs)[0])
            for (_, _, changes), runs in sorted(groups.items())]


def _cells(s, size: Size, kind: str, mode: str) -> list[Cell]:
    """Return the cells in which reasoners read true texts of a kind."""
    return sorted(cell for cell in s.study.cells
                  if cell.condition == 'gold_text' and cell.r_run in size.runs
                  and cell.text_kind == kind and cell.thinking == MODES[mode])

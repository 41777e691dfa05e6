"""Evaluations that are missing: cells that others of their kind, or what was declared, ask for.

What a study should hold is read off itself: the ways of answering (condition, kind of text, mode)
that any run was asked in or that an `experiment.json` declares, for every run of every size whose
stages allow it, and the pairs of sizes that any seed has. A cell with fewer questions than others
is missing in part.
"""
from collections import Counter
from collections.abc import Sequence

import numpy as np

from downscale.analysis.costs import JOINT, WRITER
from downscale.analysis.measures import Scored
from downscale.results.study import Cell
from downscale.results.study_file import read_object

MOST = 3   # that a sentence names


def absent(s: Scored) -> list[tuple[str, str]]:
    """Return [(name of an evaluation, what is missing of it)], in the order of the names."""
    have = set(s.study.cells)
    runs = _Runs(s)
    wanted = _joint(have, runs, s) | _pairs(have, runs, s)
    found = [(name_of(cell), 'not there') for cell in wanted - have]
    for decoupled in (False, True):
        cells = [cell for cell in have if bool(cell.r_run) == decoupled]
        ids = {cell: np.unique(s.study.codes['item_id'][s.study.cells[cell]]) for cell in cells}
        every = np.unique(np.concatenate([*ids.values(), []]))
        found += [(name_of(cell), f'{len(every) - len(ids[cell])} of {len(every)} questions lack')
                  for cell in cells if len(ids[cell]) < len(every)]
        found += _of_other_data(s, cells)
    return sorted(found)


def _of_other_data(s, cells):
    """Return cells whose data have another hash than those of most cells."""
    hashes = {cell: tuple(np.unique(s.study.codes['data_hash'][s.study.cells[cell]]).tolist())
              for cell in cells}
    usual = Counter(sorted(hashes.values())).most_common(1)
    return [(name_of(cell), 'of other data than most (data_hash)')
            for cell, of in hashes.items() if of != usual[0][0]]


def name_of(cell: Cell) -> str:
    """Return a cell as people name it: who answered, from what, and how."""
    if not cell.r_run:
        return f'{cell.p_run}, joint{", think" * cell.thinking}, {cell.condition}'
    return (f'{cell.p_run or "gold"} -> {cell.r_run}, {cell.text_kind}, '
            f'{"think" if cell.thinking else "direct"}')


def sentence(found: Sequence[tuple[str, str]]) -> str:
    """Return what is missing as one sentence; '' for nothing."""
    if not found:
        return ''
    names = '; '.join(f'{name} ({what})' for name, what in found[:MOST])
    more = f'; and {len(found) - MOST} more' if len(found) > MOST else ''
    return (f'Missing: {len(found)} evaluation{"s" * (len(found) > 1)}: {names}{more}. Numbers are '
            'over the seeds that all they compare have, and say how many.')


class _Runs:
    """What the runs of a study are for: by their stages, or where none are told by what they did.
    """

    def __init__(self, s):
        self.stages = s.study.meta.get('stages', {})
        self.size = {run: size.name for size in s.sizes for run in size.runs}
        self.seed = {run['run_id']: run['seed'] for run in s.study.meta['runs']}
        self.answered = {run for cell in s.study.cells for run in cell[:2]}

    def has(self, run, stages, sizes):
        """Return whether a run has one of `stages`, or is of one of the `sizes` that others
        show.
        """
        if self.size[run] in sizes:
            return True
        if run in self.stages:
            return any(stage in self.stages[run] for stage in stages)
        return run not in self.answered

    def sizes(self, cells, side):
        """Return sizes of the runs on one side of cells."""
        return {self.size[cell[side]] for cell in cells if cell[side]}


def _joint(have, runs, s):
    cells = [cell for cell in have if not cell.r_run]
    ways = {(cell.thinking, cell.condition) for cell in cells}
    ways |= {(False, condition) for plan in _declared(s, JOINT)
             for condition in plan.get('conditions', ())}
    return {Cell(run, '', '', thinking, condition) for run in runs.size
            if runs.has(run, JOINT, runs.sizes(cells, 0)) for thinking, condition in ways}


def _pairs(have, runs, s):
    cells = [cell for cell in have if cell.r_run]
    pairs, gold = ([cell for cell in cells if bool(cell.p_run) == side] for side in (True, False))
    plans = _declared(s, ('reason',))
    declared = {(kind, bool(thinking)) for plan in plans for kind in plan.get('texts', ())
                for thinking in plan.get('thinking', ())}
    ways = {(cell.text_kind, cell.thinking) for cell in pairs} | declared
    readers = [run for run in runs.size if runs.has(run, ('reason',), runs.sizes(cells, 1))]
    seen = {(runs.size[cell.p_run], runs.size[cell.r_run]) for cell in pairs}
    wanted = set()
    for kind, thinking in ways:
        writing = runs.sizes([cell for cell in pairs if cell.text_kind == kind], 0)
        writers = [run for run in runs.size if runs.has(run, (WRITER[kind],), writing)]
        wanted |= {Cell(p, r, kind, thinking, 'image') for p in writers for r in readers
                   if runs.seed[p] == runs.seed[r] and _asked(runs, seen, p, r)}
    ways = {(cell.text_kind, cell.thinking) for cell in gold}
    return wanted | {Cell('', r, kind, thinking, 'gold_text') for r in readers
                     for kind, thinking in ways}


def _asked(runs, seen, p, r):
    """Return whether a pair of sizes is part of the grid: a seed has it, or one of them is in no
    pair.
    """
    p = runs.size[p]
    r = runs.size[r]
    return (p, r) in seen or p not in {one for one, _ in seen} or r not in {one for _, one in seen}


def _declared(s, stages):
    """Return the evaluations that the `experiment.json` of these stages declare."""
    found = []
    for path in sorted(s.study.root.glob('cells/*/*/experiment.json')):
        if path.parent.name in stages:
            plan = read_object(path).get('evaluation')
            found += [plan] if isinstance(plan, dict) else []
    return found

"""Evaluations that are missing: cells that others of their kind, or what was declared, ask for.

What a study should hold is read off itself: the ways of answering (condition, kind of text, mode)
that any run was asked in or that an `experiment.json` declares, for every run of every size whose
stages allow it, and the pairs of sizes that any seed has. A cell with fewer questions than others
is missing in part.
"""
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from downscale.analysis.measures import Scored, seed_of_run, size_of_run
from downscale.results.items import HIDDEN
from downscale.results.study import Cell
from downscale.results.study_file import read_object
from downscale.results.text_kinds import SOURCE_STAGE
from downscale.stage_table import EXPLAIN, JOINT, READERS

MOST = 3   # that a sentence names


def absent(s: Scored) -> list[tuple[str, str]]:
    """Return [(name of an evaluation, what is missing of it)], in the order of the names."""
    evaluated = set(s.study.cells)
    runs = _Runs(s)
    # 1. Whole evaluations that others of their kind, or what was declared, ask for.
    pairs = _pairs(evaluated, runs, s)
    hidden = set(s.study.hidden.cells) if s.study.hidden else set()
    wanted = _joint(evaluated, runs, s) | pairs
    if hidden or any(plan.get('question_hidden') for plan in _declared(s, READERS)):
        wanted |= {cell._replace(condition=HIDDEN) for cell in pairs if not cell.thinking}
    missing = [(name_of(cell), 'not there') for cell in wanted - evaluated - hidden]
    # 2. Parts of evaluations. Joint models and readers may have been asked different questions.
    for decoupled in (False, True):
        cells = [cell for cell in evaluated if bool(cell.r_run) == decoupled]
        missing += _in_part(s, cells)
        missing += _of_other_data(s, cells)
    if s.study.hidden:
        aside = replace(s, study=s.study.hidden)
        missing += _in_part(aside, hidden) + _of_other_data(aside, hidden)
    return sorted(missing)


def _in_part(s, cells):
    """Return the cells that have fewer questions than all of them together."""
    ids = {cell: np.unique(s.study.codes['item_id'][s.study.cells[cell]]) for cell in cells}
    # `[]` is for a study without cells of this kind, of which nothing could be joined.
    every = np.unique(np.concatenate([*ids.values(), []]))
    return [(name_of(cell), f'{len(every) - len(ids[cell])} of {len(every)} questions lack')
            for cell in cells if len(ids[cell]) < len(every)]


def _of_other_data(s, cells):
    """Return cells whose data have another hash than those of most cells."""
    hashes = {cell: tuple(np.unique(s.study.codes['data_hash'][s.study.cells[cell]]).tolist())
              for cell in cells}
    # Sorted first: of hashes that are as common, the same one is the usual one every time.
    usual = Counter(sorted(hashes.values())).most_common(1)
    return [(name_of(cell), 'of other data than most (data_hash)')
            for cell, of in hashes.items() if of != usual[0][0]]


def name_of(cell: Cell) -> str:
    """Return a cell as people name it: who answered, from what, and how."""
    if not cell.r_run:
        mode = ', think' if cell.thinking else ''
        return f'{cell.p_run}, joint{mode}, {cell.condition}'
    mode = 'think' if cell.thinking else 'direct'
    if cell.condition == HIDDEN:
        mode = 'the question hidden'
    return f'{cell.p_run or "gold"} -> {cell.r_run}, {cell.text_kind}, {mode}'


def sentence(missing: Sequence[tuple[str, str]]) -> str:
    """Return what is missing as one sentence; '' for nothing."""
    if not missing:
        return ''
    count = len(missing)
    names = '; '.join(f'{name} ({what})' for name, what in missing[:MOST])
    more = f'; and {count - MOST} more' if count > MOST else ''
    what = 'evaluation' if count == 1 else 'evaluations'
    return (f'Missing: {count} {what}: {names}{more}. Numbers are '
            'over the seeds that all they compare have, and say how many.')


class _Runs:
    """What the runs of a study are for: by their stages, or where none are known by what they did.
    """

    def __init__(self, s):
        self.stages = s.study.meta.get('stages', {})
        self.size = {run: size.name for run, size in size_of_run(s).items()}
        self.seed = seed_of_run(s)
        self.answered = ({cell.p_run for cell in s.study.cells}
                         | {cell.r_run for cell in s.study.cells})

    def having(self, stages, sizes):
        """Return the runs that have one of `stages`, or are of one of the `sizes` that answered."""
        return [run for run in self.size if self._has(run, stages, sizes)]

    def _has(self, run, stages, sizes):
        if self.size[run] in sizes:
            return True
        # Studies of before their stages were written down only show what their runs have done.
        if run in self.stages:
            return any(stage in self.stages[run] for stage in stages)
        # A run that has answered nothing may be for anything.
        return run not in self.answered

    def sizes(self, cells, side):
        """Return the sizes of the runs on one side of cells (0 perception, 1 reasoner)."""
        return {self.size[cell[side]] for cell in cells if cell[side]}


def _joint(evaluated, runs, s):
    """Return the cells in which every run that can answers by itself, in all ways of doing so."""
    wanted = set()
    for thinking, stages in ((False, JOINT), (True, (EXPLAIN,))):
        cells = [cell for cell in evaluated if not cell.r_run and cell.thinking == thinking]
        conditions = {cell.condition for cell in cells}
        # What was declared is asked for even where no run has got to it.
        for plan in _declared(s, stages):
            conditions |= set(plan.get('conditions', ()))
        answering = runs.having(stages, runs.sizes(cells, 0))
        wanted |= {Cell(run, '', '', thinking, condition)
                   for run, condition in itertools.product(answering, conditions)}
    return wanted


def _pairs(evaluated, runs, s):
    """Return the cells of all pairs of the grid and of all reasoners on gold text, in all ways."""
    cells = [cell for cell in evaluated if cell.r_run]
    pairs = [cell for cell in cells if cell.p_run]
    ways = {(cell.text_kind, cell.thinking) for cell in pairs}
    for plan in _declared(s, READERS):
        ways |= {(kind, bool(thinking)) for kind, thinking in itertools.product(
            plan.get('texts', ()), plan.get('thinking', ()))}
    readers = runs.having(READERS, runs.sizes(cells, 1))
    wanted = set()
    for kind, thinking in ways:
        writing = runs.sizes([cell for cell in pairs if cell.text_kind == kind], 0)
        writers = runs.having((SOURCE_STAGE[kind],), writing)
        wanted |= {Cell(p, r, kind, thinking, 'image')
                   for p, r in _asked(runs, pairs, writers, readers)}
    # Gold texts are not declared: a reasoner needs them in the ways in which others had them.
    gold = {(cell.text_kind, cell.thinking) for cell in cells if not cell.p_run}
    return wanted | {Cell('', r, kind, thinking, 'gold_text')
                     for r, (kind, thinking) in itertools.product(readers, gold)}


def _asked(runs, pairs, writers, readers):
    """Yield the pairs of runs of one seed whose sizes are part of the grid.

    They are where a seed has a pair of these sizes, or where one of the sizes is in no pair.
    """
    sizes = {(runs.size[cell.p_run], runs.size[cell.r_run]) for cell in pairs}
    # A size that is in no pair yet belongs to the grid all the same: its evaluations are missing.
    writing = {size for size, _ in sizes}
    reading = {size for _, size in sizes}
    for p, r in itertools.product(writers, readers):
        p_size = runs.size[p]
        r_size = runs.size[r]
        if runs.seed[p] == runs.seed[r] and (
                (p_size, r_size) in sizes or p_size not in writing or r_size not in reading):
            yield p, r


def _declared(s, stages):
    """Return the evaluations that the `experiment.json` of these stages declare."""
    plans = []
    for path in sorted(s.study.root.glob('cells/*/*/experiment.json')):
        if path.parent.name in stages:
            plan = read_object(path).get('evaluation')
            if isinstance(plan, dict):
                plans.append(plan)
    return plans

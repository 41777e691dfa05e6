"""Repairs: what a text is worth however its writer was trained, and what explaining is worth.

An arm is a kind of text with what its writers' cells change: 'extraction', 'extraction, steps1180',
'perceived, methodrejection'. Arms of one size are compared on the same questions, read by the same
reasoners of the plain cells. The contrasts of claims are at equal training FLOPs: a comparison in
which one side has cost over a tenth more is in doubt.
"""
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from downscale.analysis import costs, measures
from downscale.analysis.contrasts import Found, budget, families_of, over, pairs_of
from downscale.analysis.measures import MODES, Missing, Scored, Size
from downscale.results.factors import apart
from downscale.results.study import Cell
from downscale.results.text_kinds import EXTRACTION, PERCEIVED, TEXT_KINDS
from downscale.stage_table import WRITER

TAUGHT = 'taught by a larger one'
OTHERWISE = 'tuned otherwise'
# In which more of the same tuning may differ: how long, from where, and a teacher not followed.
_FREE = ('steps', 'parents', 'warmup', 'save_every', 'forks', 'trunk', 'teacher', 'distil')


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One kind of text by the runs of one size that change the same; `flops` of their training.

    `method` is how a writer of perceived texts learnt, such as 'grpo' or, where its rewards were
    those of other descriptions, 'scrambled grpo'; of others it is TAUGHT where a larger model had a
    say, OTHERWISE where more than its length is not that of the plain runs (what is replayed, a
    rate), else ''. `flops` None is not known.
    """
    kind: str
    changes: str
    size: Size
    method: str
    flops: float | None

    @property
    def name(self) -> str:
        """What tables call it."""
        return ', '.join(filter(None, (self.kind, self.changes)))


def has_repairs(s: Scored) -> bool:
    """Return whether reasoners read texts of writers that were trained in more than one way."""
    read = [cell for cell in (s.whole or s.study).cells if cell.r_run and cell.p_run]
    changed = apart(s.study.meta)
    return any(cell.text_kind == PERCEIVED or cell.p_run in changed for cell in read)


def arms(s: Scored) -> list[Arm]:
    """Return the arms of a study whose texts were read: sizes from the smallest, plain ones first.
    """
    whole = s.whole or s.study
    wrote = {(cell.p_run, cell.text_kind) for cell in whole.cells if cell.r_run and cell.p_run}
    groups = {}
    for run in whole.meta['runs']:
        key = run['n_total'], run['size'], run.get('changes', '')
        groups.setdefault(key, []).append(run['run_id'])
    made = []
    plain = {}
    for (_, name, changes), runs in sorted(groups.items()):
        for kind in TEXT_KINDS:
            writers = [run for run in runs if (run, kind) in wrote]
            if writers:
                size, = measures.sizes_among(whole.meta, runs)
                # Of those of a size the plain ones come first.
                like = plain.setdefault((name, kind), writers[0])
                made.append(Arm(kind=kind, changes=changes, size=size,
                                method=_method(s, writers[0], WRITER[kind], like),
                                flops=_writer_flops(s, writers, kind)))
    return made


def _method(s, run, stage, like):
    """Return the method by which a run's stage learnt; '' where its files are gone.

    `like` is a run that was tuned as the study's plain ones are.
    """
    trained = costs.stages_of(s).get((run, stage))
    if trained is None:
        return ''
    if stage != WRITER[PERCEIVED]:
        # At distil = 0 a teacher is heard and not followed.
        if trained.stage.get('teacher') and trained.stage.get('distil', 1):
            return TAUGHT
        usual = costs.stages_of(s).get((like, stage), trained).stage
        # A setting that is off may not be there at all.
        same = all(trained.stage.get(name) == usual.get(name)
                   for name in {*trained.stage, *usual} - {*_FREE})
        return '' if same else OTHERWISE
    policy = trained.stage.get('policy', {})
    # A control is no method of its own, and no claim about the method may take it for that.
    return f'scrambled {policy["method"]}' if policy.get('scrambled') else policy.get('method', '')


def _writer_flops(s, runs, kind):
    """Return the training FLOPs behind the writers of a kind of text, the mean over their runs."""
    spent = []
    for run in runs:
        try:
            behind = costs.ancestry(s, costs.stage_of(s, run, kind)).values()
        except Missing:
            return None
        if any(trained.flops is None for trained in behind):
            return None
        spent.append(sum(trained.flops for trained in behind))
    return float(np.mean(spent))


def of_arms(s: Scored, of_study: Sequence[Arm]) -> Scored:
    """Return the whole study, with a size for each of its arms beside the plain ones."""
    sizes = dict.fromkeys((*(arm.size for arm in of_study), *s.sizes))
    return replace(s, study=s.whole or s.study, sizes=tuple(sizes))


def readers_of(s: Scored) -> list[str]:
    """Return the sizes of the plain runs that read texts, from the smallest."""
    plain = {cell.r_run for cell in (s.whole or s.study).cells} - apart(s.study.meta)
    return [size.name for size in s.sizes if plain & set(size.runs)]


def cells_of(s: Scored, arm: Arm, reader: str, mode: str) -> list[Cell]:
    """Return the cells in which plain reasoners of a size read the texts of an arm."""
    runs = set()
    for size in s.sizes:
        if size.name == reader:
            runs |= set(size.runs) - apart(s.study.meta)
    return sorted(cell for cell in s.study.cells
                  if cell.p_run in arm.size.runs and cell.r_run in runs
                  and cell.text_kind == arm.kind and cell.thinking == MODES[mode])


def nearest(arm: Arm, others: Sequence[Arm]) -> Arm | None:
    """Return the extraction of the same size whose training FLOPs are nearest to those of `arm`.

    One that a larger model had a say in, or that was tuned otherwise than the plain ones, is a
    repair itself and no rival.
    """
    rivals = [other for other in others if other.kind == EXTRACTION and other.flops
              and not other.method and other.size.name == arm.size.name and other is not arm]
    if not rivals or not arm.flops:
        return None
    # Of a ratio: twice as much is as far as half.
    return min(rivals, key=lambda other: abs(np.log(other.flops / arm.flops)))


# --- contrasts ----------------------------------------------------------------------------------

def _by_size(s, groups, names, where, spent=None):
    """Return the `Found` of {size: (cells, other cells)}: the mean difference over the sizes.

    In doubt unless both sides, `names`, have cost as many training FLOPs at every size: `spent`
    {size: (FLOPs, FLOPs)}, or by default all that stands behind the cells.
    """
    visual, _ = families_of(s)
    by_size = {size: over(s, both, ((1, -1), visual)) for size, both in groups.items()}
    # Both sides take turns.
    cells = list(itertools.chain.from_iterable(groups.values()))
    effect = over(s, cells, (np.tile([1, -1], len(groups)) / len(groups), visual))
    doubts = []
    for size, both in groups.items():
        flops = spent[size] if spent else [_flops(s, side) for side in both]
        doubt, one_sided = budget('training FLOPs', *zip(names, flops, strict=True))
        if doubt:
            doubts.append((f'{size}: {doubt}', one_sided))
    # One size whose doubt cuts both ways leaves the mean in doubt both ways.
    doubts.sort(key=lambda pair: pair[1])
    doubt, one_sided = doubts[0] if doubts else ('', False)
    return Found(effect=effect, where=f'{where}{len(groups)} sizes', by_size=by_size, doubt=doubt,
                 one_sided=one_sided)


def _flops(s, cells):
    """Return the training FLOPs behind what answered in cells, the mean; None without files."""
    try:
        return float(np.mean([costs.of_cell(s, cell, 'train_flops') for cell in cells]))
    except Missing:
        return None


# --- one model that explains --------------------------------------------------------------------

def _explained(s):
    """Return {size: cells} of the models that wrote what they see before they answered."""
    groups = {size: measures.explained_cells(s, size, 'image') for size in s.sizes}
    groups = {size: cells for size, cells in groups.items() if cells}
    if not groups:
        raise Missing("no size has a stage 'explain', which writes before it answers")
    return groups


def explained_minus_joint(s: Scored, mode: str) -> Found:
    """Return what a joint model gains by writing what it sees first, the mean over sizes."""
    groups = {}
    for size, cells in _explained(s).items():
        at_once = measures.joint_cells(s, size, 'image')
        if at_once and at_once != cells:
            groups[size.name] = cells, at_once
    if not groups:
        raise Missing('no size answered both at once and behind what it wrote')
    return _by_size(s, groups, ('explained', 'at once'), '')


def chain_minus_explained(s: Scored, mode: str) -> Found:
    """Return a pair of one size, thinking over its extraction, minus one model that does both.

    The mean over the sizes that have both.
    """
    kind, pairs = pairs_of(s, mode)
    groups = {size.name: (pairs[size.name, size.name], cells)
              for size, cells in _explained(s).items() if (size.name, size.name) in pairs}
    if not groups:
        raise Missing('no size answered both as a pair and as one model that explains')
    return _by_size(s, groups, ('the pair', 'the one model'), f'{kind}, {mode}, ')


def chain_minus_joint_equal_flops(s: Scored, mode: str) -> Found:
    """Return a pair of one size minus its joint model, in doubt unless both have cost as much.

    The mean over the sizes that have both.
    """
    kind, pairs = pairs_of(s, mode)
    groups = {size.name: (pairs[size.name, size.name], measures.joint_cells(s, size, 'image'))
              for size in measures.answering_sizes(s) if (size.name, size.name) in pairs}
    if not groups:
        raise Missing('no size answered both as a pair and by itself')
    return _by_size(s, groups, ('the pair', 'the joint model'), f'{kind}, {mode}, ')


# --- learning from the reasoner -----------------------------------------------------------------

def grpo_minus_extraction(s: Scored, mode: str) -> Found:
    """Return what GRPO gains over the extraction of nearest FLOPs, read by the largest reasoner."""
    return _learnt(s, mode, 'grpo')


def rejection_minus_extraction(s: Scored, mode: str) -> Found:
    """Return what rejection sampling gains over the extraction of nearest FLOPs, as GRPO does."""
    return _learnt(s, mode, 'rejection')


def distil_minus_extraction(s: Scored, mode: str) -> Found:
    """Return what a teacher's say on the stage's own texts gains over extraction, as GRPO does."""
    return _learnt(s, mode, 'distil')


def _learnt(s, mode, method):
    """Return what a method of 'perceive' gains over extraction tuning, the mean over sizes."""
    made = arms(s)
    learnt = {}
    for arm in made:
        if arm.method == method:
            learnt.setdefault(arm.size.name, arm)   # plain arms come first
    lacking = _sizes_trained(s, method) - learnt.keys()
    if lacking:
        # A mean over the other sizes would pass for that of all.
        raise Missing(f"texts by '{method}' of {', '.join(sorted(lacking))} were not read")
    rivals = {name: nearest(arm, made) for name, arm in learnt.items()}
    if not rivals or None in rivals.values():
        raise Missing(f"not every size has texts by '{method}' and extractions of known FLOPs"
                      if rivals else f"no size has texts by '{method}'")
    both = of_arms(s, made)
    reader = readers_of(s)[-1]
    groups = {}
    for name, rival in rivals.items():
        cells = [cells_of(both, arm, reader, mode) for arm in (learnt[name], rival)]
        if not all(cells):
            raise Missing(f'{reader} did not read both texts of {name} in mode {mode}')
        groups[name] = tuple(cells)
    spent = {name: (learnt[name].flops, rivals[name].flops) for name in groups}
    against = ' and '.join(dict.fromkeys(rivals[name].name for name in groups))
    return _by_size(both, groups, (method, against), f'against {against}, reasoner {reader}, '
                                                     f'{mode}, ', spent)


def _sizes_trained(s, method):
    """Return the names of the sizes of which a run has a stage that learnt by a method."""
    size_of = {run['run_id']: run['size'] for run in s.study.meta['runs']}
    return {size_of[run] for run, stage in costs.stages_of(s)
            if stage == WRITER[PERCEIVED] and run in size_of
            and _method(s, run, stage, run) == method}

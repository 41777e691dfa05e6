"""Repairs side by side: every way to write a text, what its readers answer, and what it cost."""
import itertools
from typing import Any

import numpy as np

from downscale.analysis import accuracy, measures
from downscale.analysis.contrasts import EQUAL, families_of, over
from downscale.analysis.measures import Missing, Scored
from downscale.analysis.repairs import arms, cells_of, nearest, of_arms, readers_of
from downscale.analysis.varied.balance import balanced
from downscale.results.text_kinds import CAPTION, EXTRACTION
from downscale.statistics import inference


def side_by_side(s: Scored, mode: str = '') -> dict[str, Any]:
    """Return the arms of every size: a dict of 'mode', 'base', 'reader', 'readers', 'rows'
    and 'floor', what the best guess earns in visual families.

    A row has size, arm, method, flops, tokens of a text, 'readers' {size: Interval of accuracy in
    visual families}, and, read by the largest: 'gain' over the base (the plain caption, or else
    the plain extraction), 'repaired', the gain as a share of what the base loses from the largest
    size to this one, and 'equal' (arm, flops, gain, balanced) over the extraction of nearest
    training FLOPs, None where none is within a tenth. 'balanced' is accuracy, and there the gain,
    with all right answers alike (`balance`). `Missing` with a single arm.
    """
    made = arms(s)
    if len({arm.name for arm in made}) < 2:
        raise Missing('no two ways to write a text were read')
    both = of_arms(s, made)
    readers = readers_of(s)
    modes = []
    for name in ('think', 'direct'):
        pairs = itertools.product(made, readers)
        read = any(cells_of(both, arm, reader, name) for arm, reader in pairs)
        if read and mode in ('', name):
            modes.append(name)
    if not modes:
        raise Missing('no reasoner of a plain cell read them')
    plain = {arm.kind for arm in made if not arm.changes}
    base = next((kind for kind in (CAPTION, EXTRACTION) if kind in plain), None)
    result = {'mode': modes[0], 'base': base, 'reader': readers[-1], 'readers': readers,
              'floor': _floor(s), 'rows': []}
    alike = balanced(both)
    for arm in made:
        result['rows'].append(_row(both, alike, arm, made, result))
    return result


def _floor(s):
    """Return what the best guess earns in visual families; None where no model was asked alone."""
    try:
        visual = accuracy.by_kind(s)['kinds'].get('visual')
    except Missing:
        return None
    return visual and visual['guesses']['floor']


def _row(s, alike, arm, made, result):
    """Return the row of an arm in `side_by_side`; `alike` is the balanced study."""
    mode, reader = result['mode'], result['reader']
    visual, _ = families_of(s)
    row = {'size': arm.size.name, 'arm': arm.name, 'method': arm.method, 'flops': arm.flops,
           'tokens': _tokens(s, arm), 'readers': {}, 'gain': None, 'repaired': None, 'equal': None,
           'balanced': None}
    for name in result['readers']:
        by_reader = cells_of(s, arm, name, mode)
        if by_reader:
            row['readers'][name] = over(s, [by_reader], ((1,), visual))
    cells = cells_of(s, arm, reader, mode)
    if cells:
        row['balanced'] = over(alike, [cells], ((1,), visual))
    bases = [other for other in made if other.kind == result['base'] and not other.changes]
    at = {other.size.name: cells_of(s, other, reader, mode) for other in bases}
    largest = bases[-1].size.name if bases else ''
    if cells and at.get(arm.size.name) and at[arm.size.name] != cells:
        row['gain'] = over(s, [cells, at[arm.size.name]], ((1, -1), visual))
        if arm.size.name != largest and at[largest]:
            row['repaired'] = _share(s, cells, at[arm.size.name], at[largest], visual)
    rival = nearest(arm, made)
    if rival is not None and cells and abs(rival.flops / arm.flops - 1) <= EQUAL:
        theirs = cells_of(s, rival, reader, mode)
        if theirs:
            row['equal'] = {'arm': rival.name, 'flops': rival.flops,
                            'gain': over(s, [cells, theirs], ((1, -1), visual)),
                            'balanced': over(alike, [cells, theirs], ((1, -1), visual))}
    return row


def _share(s, repaired, base, largest, tasks):
    """Return (repaired - base) / (largest - base), the share of the drop that is made good."""
    _, means = measures.means_of(s, [repaired, base, largest])
    columns = [column for column, name in enumerate(means.groups) if name in tasks]
    value = means.value[:, columns].mean(axis=1)
    draws = means.draws[:, :, columns].mean(axis=2)
    return inference.ratio_interval(
        (value[0] - value[1], draws[:, 0] - draws[:, 1]),
        (value[2] - value[1], draws[:, 2] - draws[:, 1]),
        means.n[columns].sum(), int(means.clusters[columns].min()), over=means.over)


def _tokens(s, arm):
    """Return the mean tokens of what an arm wrote; None where no texts are kept."""
    texts = s.study.texts
    wrote = np.isin(texts['p_run'], arm.size.runs) & (texts['text_kind'] == arm.kind)
    return float(np.mean(texts['n_tokens'][wrote])) if wrote.any() else None

"""The gate: may a pair's low score be read as a perception problem at all?

It stands above every other result, because a reasoner that guesses makes all decoupled numbers
meaningless whatever the perception model wrote.
"""
import dataclasses
from typing import Any

from downscale.analysis import floors
from downscale.analysis.completeness import completion
from downscale.analysis.measures import MODES, Scored, means_of, one
from downscale.results.text_kinds import CAPTION, EXTRACTION
from downscale.statistics import bootstrap
from downscale.statistics.bootstrap import Interval


def gate(s: Scored) -> dict[str, Any]:
    """Return whether the largest reasoner, given a true description, beats every guess (`floors`).

    A mode passes when in every family the lower end of the 95 % interval of mean(score - floor)
    is above zero. Only then does a low score of a pair say something about perception. The true
    descriptions are captions, of which a reasoner has to find what is asked; extractions where no
    captions are read.
    """
    used = {cell.r_run for cell in s.study.cells if cell.r_run}
    reasoners = [size for size in s.sizes if used & set(size.runs)]
    if not reasoners:
        line = 'Not interpretable on the reasoning side: no text-only reasoner was evaluated.'
        return {'interpretable': False, 'reasoner': '', 'modes': {}, 'families': {}, 'line': line}
    largest = reasoners[-1]
    # All families that any reader was asked: one without answers on gold texts fails.
    tasks = set()
    for cell, index in s.study.cells.items():
        if cell.r_run:
            tasks.update(s.study.items['task'][index])
    tasks = sorted(tasks)
    gold = {cell.text_kind for cell in s.study.cells if cell.condition == 'gold_text'}
    kind = EXTRACTION if gold and CAPTION not in gold else CAPTION
    modes = {}
    table = {task: {} for task in tasks}
    for mode, thinking in MODES.items():
        cells = sorted(cell for cell in s.study.cells if cell.condition == 'gold_text' and
                       cell.text_kind == kind and cell.thinking == thinking and
                       cell.r_run in largest.runs)
        # A mode without gold texts stays out of `table`, so that every family fails in it.
        if cells:
            _gate_mode(s, cells, mode, table)
        failing = [task for task in tasks if not table[task].get(mode, {}).get('passes')]
        modes[mode] = {'measured': bool(cells), 'interpretable': bool(cells) and not failing,
                       'failing': failing}
    result = {'interpretable': any(mode['interpretable'] for mode in modes.values()),
              'reasoner': largest.name, 'kind': kind, 'modes': modes, 'families': table}
    return {**result, 'line': _gate_line(result)}


def _gate_mode(s, cells, mode, table):
    """Fill `table` {task: {mode: facts}} with how far the answers of `cells` are above the floor.
    """
    paired, score = means_of(s, [cells])
    floor = floors.floor(s, paired)
    fixed = bootstrap.as_fixed(floor.means, score.over)
    # Both under the same draws, so that the interval is one of their difference.
    margin = dataclasses.replace(score, value=score.value - fixed.value,
                                 draws=score.draws - fixed.draws)
    ended, _ = completion(s, cells)
    for column, task in enumerate(margin.groups):
        above = one(margin, 0, column, bounds=(-1, 1))
        table[task][mode] = {
            'margin': above, 'accuracy': one(score, 0, column),
            'floor': float(floor.means.value[0, column]), 'guesser': floor.names[task],
            'completion': ended[task], 'passes': bool(above.low > 0)}


def _gate_line(result):
    """Return the sentence that says which modes pass, and where and by how much the others fail."""
    good = [mode for mode, facts in result['modes'].items() if facts['interpretable']]
    parts = []
    for mode, facts in result['modes'].items():
        if facts['interpretable']:
            continue
        # Nobody has failed where nobody was asked.
        if not facts['measured']:
            parts.append(f'{mode}: no gold {result["kind"]}s were answered in this mode')
            continue
        reasons = []
        for task in facts['failing']:
            cell = result['families'][task].get(mode)
            reasons.append(f'{task} not measured' if cell is None else
                           f'{task} {signed(cell["margin"])} from '
                           f'{cell["guesser"]} {cell["floor"]:.2f}')
        parts.append(f'{mode} fails in ' + ', '.join(reasons))
    detail = '; '.join(parts)
    who = f'the largest reasoner ({result["reasoner"]}) on gold {result["kind"]}s'
    if not good:
        return f'Not interpretable on the reasoning side: {who} — {detail}.'
    line = f'Interpretable on the reasoning side ({" and ".join(good)}): {who} is above ' \
           'every guess (informed, majority and constant) in every family.'
    return line + (f' Not interpretable — {detail}.' if detail else '')


def signed(x: Interval) -> str:
    """Return a difference with its interval, as sentences print it."""
    return f'{x.value:+.2f} [{x.low:+.2f}, {x.high:+.2f}]'

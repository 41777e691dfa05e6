"""Texts that are read with the question hidden: what is right then stands in the text itself."""
import itertools
from dataclasses import replace
from typing import Any

from downscale.analysis import floors, measures
from downscale.analysis.contrasts import families_of, over
from downscale.analysis.measures import Missing, Scored
from downscale.analysis.repairs import Arm, arms, cells_of, of_arms, readers_of
from downscale.results.study_file import NUMBER, check, read_object, short
from downscale.results.text_kinds import BRIEF, CAPTION, EXTRACTION


def by_arm(s: Scored) -> dict[str, Any]:
    """Return how often readers are right who were not told the question, by way to write a text.

    A dict of 'reader' (the largest), 'readers', 'constant' (what the best constant answer of each
    family earns) and 'rows', all in visual families and of readers that answer at once. A row has
    size ('' of true texts), arm, 'hidden' {reader: Interval}, 'told' (Interval of the largest
    reader that was told the question), 'over_plain' and 'over_true' (the largest hidden reader's
    accuracy minus that from the plain extraction of this size, and from the true one), and
    'handed_over', the share of texts that a rule says hand the answer over; None where there is
    none. `Missing` where no plain reasoner had the question hidden.
    """
    made = arms(s)
    whole = of_arms(s, made)
    if whole.study.hidden is None:
        raise Missing('no reader had the question hidden (evaluation.question_hidden)')
    hidden = replace(whole, study=whole.study.hidden)
    read = {name: _read(hidden, (*_true(s), *made), name) for name in readers_of(s)}
    readers = [name for name, cells in read.items() if cells]
    if not readers:
        raise Missing('no reasoner of a plain cell had the question hidden')
    result = {'reader': readers[-1], 'readers': readers, 'rows': [],
              'constant': _constant(whole, hidden, read[readers[-1]][:1])}
    for arm in (*_true(s), *made):
        row = _row(whole, hidden, arm, made, readers)
        if row['hidden']:
            result['rows'].append(row)
    return result


def _read(s, several, reader):
    """Return the cells in which plain reasoners of a size read any of some arms, answering at once.
    """
    return list(itertools.chain.from_iterable(
        cells_of(s, arm, reader, 'direct') for arm in several))


def _true(s):
    """Return the true extraction and the true caption as arms of nobody."""
    nobody = replace(s.sizes[-1], name='', runs=('',))
    return [Arm(kind=kind, changes='', size=nobody, method='', flops=None)
            for kind in (EXTRACTION, CAPTION)]


def _row(whole, hidden, arm, made, readers):
    """Return the row of an arm in `by_arm`."""
    visual, _ = families_of(whole)
    row = {'size': arm.size.name, 'arm': arm.name if arm.size.name else f'true {arm.kind}',
           'hidden': {}, 'told': None, 'over_plain': None, 'over_true': None,
           'handed_over': _handed_over(whole, arm)}
    for name in readers:
        cells = cells_of(hidden, arm, name, 'direct')
        if cells:
            row['hidden'][name] = over(hidden, [cells], ((1,), visual))
    largest = readers[-1]
    cells = cells_of(whole, arm, largest, 'direct')
    if cells:
        row['told'] = over(whole, [cells], ((1,), visual))
    cells = cells_of(hidden, arm, largest, 'direct')
    plain = [other for other in made if other.kind == EXTRACTION and not other.changes
             and other.size.name == arm.size.name]
    for name, others in (('over_plain', plain), ('over_true', _true(whole)[:1])):
        base = _read(hidden, others, largest)
        if arm.size.name and cells and base and base != cells:
            row[name] = over(hidden, [cells, base], ((1, -1), visual))
    return row


def _constant(whole, hidden, cells):
    """Return what the best constant answer to the questions of cells earns in visual families."""
    visual, _ = families_of(whole)
    paired, means = measures.means_of(hidden, [cells])
    # Of the answers of readers that were told: what is guessed here must not be known from here.
    guesses = floors.floor(whole, paired).guesses['constant']
    columns = [column for column, task in enumerate(means.groups) if task in visual]
    return float(guesses[columns].mean()) if columns else None


def _handed_over(s, arm):
    """Return the share of an arm's texts that a rule says hand the answer over; None if uncounted.
    """
    counts = []
    for run in arm.size.runs if arm.size.name and arm.kind != BRIEF else ():
        path = s.study.root / 'evaluations' / f'{arm.kind}-{run}' / 'handed_over.json'
        value = read_object(path)
        if value is not None:
            check(value, {'handed_over': NUMBER, 'texts': NUMBER}, short(path))
            counts.append(value)
    texts = sum(value['texts'] for value in counts)
    return sum(value['handed_over'] for value in counts) / texts if texts else None

"""Stored replies judged again by every named scorer, without generating anything."""
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from downscale.evaluate.scoring.macro import macro_of, mean_of
from downscale.evaluate.scoring.stored_replies import StoredReply
from downscale.evaluate.scoring.table import DEFAULT, SCORERS, disagree, unfit, verdicts
from downscale.evaluate.scoring.targets import Verdict
from downscale.values import unknown

# Columns of the table of 'yes', and their widths.
YES_COLUMNS = (('accuracy', 8), ('precision', 9), ('recall', 6), ('f1', 6))


def judged(
    rows: Sequence[StoredReply], names: Sequence[str] | None = None
) -> list[dict[str, Verdict]]:
    """Return [{scorer name: `Verdict`}] of every row, by all scorers or by `names`, in that order.

    ValueError for a name that no scorer has, and where none of them can judge any row.
    """
    for name in names or ():
        if name not in SCORERS:
            raise ValueError(unknown('scorer', name, list(SCORERS)))
    judgements = [verdicts(row.text, row.target, names, row.stored, row.marked, row.behind)
                  for row in rows]
    if rows and names and not any(judgements):
        raise ValueError(f'{", ".join(names)}: made for other answers than those of this file '
                         f'(first: {unfit(names[0], rows[0].target)})')
    return judgements


def as_json(
    rows: Sequence[StoredReply], judgements: Sequence[dict[str, Verdict]]
) -> list[dict[str, Any]]:
    """Return the rows as JSON values: what was said, what is right, and each scorer's own value."""
    values = []
    for row, by_name in zip(rows, judgements):
        value = {'text': row.text, 'gold': row.gold}
        if row.filter:
            value['filter'] = row.filter
        values.append(value | {name: verdict.value for name, verdict in by_name.items()})
    return values


def summary(rows: Sequence[StoredReply],
            judgements: Sequence[dict[str, Verdict]]) -> dict[str, dict[str, Any]]:
    """Return {scorer: its numbers} of the rows that it can judge.

    They are accuracy with its interval, shares, accuracy on completed rows and means over axes.
    `differs` is the share of rows with another score than that of the first scorer that judged
    them. A row is completed when it was not cut off and an answer was found. Boxes have the share
    in `other_scale`, yes and no precision, recall, F1 and the share of 'yes', also by family.
    """
    names = {}
    for by_name in judgements:
        names |= dict.fromkeys(by_name)
    measured = {}
    for name in names:
        scored = [(row, by_name[name], next(iter(by_name.values())))
                  for row, by_name in zip(rows, judgements)
                  if name in by_name and by_name[name].score is not None]
        if scored:
            measured[name] = _measured(*zip(*scored)) | {'version': SCORERS[name].version}
    return measured


def _measured(rows, given, first):
    """Return the numbers of one scorer from its rows, its verdicts and those of the first."""
    place = _places(rows)
    alone = [rows[k] for k in np.unique(place, return_index=True)[1]]  # one row of each question
    scores = _means(place, [verdict.score for verdict in given])
    # Several replies to a question count as one: means over replies, then over questions.
    done = [k for k, verdict in enumerate(given) if verdict.parsed and not rows[k].truncated]
    completed = _means(place[done], [given[k].score for k in done])
    # Only our own samples and some harnesses tell whether a reply was cut off.
    cut = [row.truncated for row in rows if row.truncated is not None]
    unparsed = [not verdict.parsed for verdict in given]
    differs = [disagree(pair) for pair in zip(given, first)]
    measured = {
        'n': len(scores),
        **mean_of(scores, [row.cluster for row in alone]),
        'unparsed': float(np.mean(unparsed)),
        'truncated': _mean(cut),
        'differs': float(np.mean(differs)),
        'completed': len(completed),
        'accuracy_completed': _mean(completed),
    }
    if all('box' in row.target.forms for row in rows):
        measured['other_scale'] = float(np.mean([verdict.other_scale for verdict in given]))
    if any(verdict.said for verdict in given):
        measured |= _of_yes(rows, given)
        measured['families'] = _of_yes_families(rows, given)
    if all(row.strata for row in rows):
        measured |= _over_axes(alone, scores)
    return measured


def _mean(values):
    """Return the mean of a list, None of an empty one."""
    return float(np.mean(values)) if values else None


def _over_axes(rows, scores):
    """Return the mean over the finest axes, of all questions and of each of the broadest."""
    axes = [' / '.join(row.strata) for row in rows]
    broad = {}
    for row, score, axis in zip(rows, scores, axes):
        broad.setdefault(row.strata[0], []).append((score, axis))
    return {'average': macro_of(scores, axes),
            'categories': {name: macro_of(*zip(*group)) for name, group in sorted(broad.items())}}


def _places(rows):
    """Return the number of the question of each row, in the order in which questions come."""
    numbers = {}
    return np.array([numbers.setdefault(row.question, len(numbers)) for row in rows])


def _means(place, values):
    """Return the mean value of each question that has any, in the order of questions."""
    # `bincount` of nothing has no weights, as after no completed row.
    count = np.bincount(place)
    total = np.bincount(place, values) if len(place) else count
    return (total[count > 0] / count[count > 0]).tolist()


def _of_yes_families(rows, given):
    """Return {family: the numbers of `_of_yes`}; {} where all rows are of one family."""
    families = {}
    for row, verdict in zip(rows, given):
        families.setdefault(row.family, []).append((row, verdict))
    if len(families) == 1:
        return {}
    return {name: _of_yes(*zip(*families[name])) for name in sorted(families)}


def _of_yes(rows, given):
    """Return accuracy, precision, recall and F1 of 'yes', and how often it was said (POPE)."""
    right = [row.target.yes == 'yes' for row in rows]
    yes = [verdict.said == 'yes' for verdict in given]
    hits = sum(map(min, right, yes))
    recalled = [verdict.said == 'no' for verdict in given]
    # An answer that is neither is no missed 'yes' (lmms-eval counts so).
    missed = sum(map(min, right, recalled))
    precision = hits / sum(yes) if any(yes) else 0.0
    recall = hits / (hits + missed) if hits + missed else 0.0
    both = precision + recall
    return {'rows': len(rows), 'accuracy': float(np.mean([verdict.score for verdict in given])),
            'precision': precision, 'recall': recall,
            'f1': 2 * precision * recall / both if both else 0.0, 'yes': float(np.mean(yes))}


def table(measured: dict[str, dict[str, Any]], rows: Sequence[StoredReply],
          judgements: Sequence[dict[str, Verdict]], notes: Iterable[str] = ()) -> Iterator[str]:
    """Yield the lines of a table of `summary` for a person, then the `notes`."""
    lines = [['scorer', 'n', 'accuracy', '95 %', 'unparsed', 'truncated', 'differs', 'completed',
              'version']]
    lines += [_table_line(name, numbers) for name, numbers in measured.items()]
    widths = [max(map(len, column)) for column in zip(*lines)]
    last = len(widths) - 1
    for line in lines:
        # Names and versions are flush left, the numbers between them right.
        padded = [text.rjust(width) if 0 < k < last else text.ljust(width)
                  for k, (text, width) in enumerate(zip(line, widths))]
        yield '  '.join(padded).rstrip()
    apart = sum(disagree(by_name.values()) for by_name in judgements)
    yield f'scorers differ on {apart} of {len(rows)} rows; differs: from the first that judged'
    for name, numbers in measured.items():
        if numbers.get('other_scale'):
            yield (f'{name}: {_percent(numbers["other_scale"])} of the boxes count in another '
                   'scale than the right ones (pixels, thousandths, per cent); rows with width '
                   f'and height are converted by {DEFAULT}')
    yield from _of_yes_lines(measured)
    if any('average' in numbers for numbers in measured.values()):
        yield 'accuracy is the mean over the means of the finest axes, its interval stratified'
    yield from notes


def _table_line(name, numbers):
    mean = numbers.get('average', numbers)
    done = numbers['accuracy_completed']
    reach = '' if mean['low'] is None else f'{mean["low"]:.3f}-{mean["high"]:.3f}'
    shares = {key: _percent(numbers[key]) for key in ('unparsed', 'truncated', 'differs')}
    completed = '' if done is None else f'{done:.4f}'
    return [name, str(numbers['n']), f'{mean["value"]:.4f}', reach, *shares.values(), completed,
            numbers['version']]


def _percent(share):
    return '' if share is None else f'{100 * share:.1f} %'


def _of_yes_lines(measured):
    """Yield the lines of a table of 'yes' for a person, by scorer and kind of question."""
    parts = []
    for name, numbers in measured.items():
        if 'f1' in numbers:
            parts.append((f'{name} all', numbers | {'accuracy': numbers['value']}))
            parts += [(f'{name} {family}', part) for family, part in numbers['families'].items()]
    if not parts:
        return
    wide = max(len(name) for name, _ in parts)
    yield f"{'yes and no'.ljust(wide)}      n  accuracy  precision  recall      F1    yes"
    for name, part in parts:
        numbers = '  '.join(f'{part[key]:{width}.4f}' for key, width in YES_COLUMNS)
        yield f"{name.ljust(wide)}  {part['rows']:5}  {numbers}  {100 * part['yes']:4.1f} %"

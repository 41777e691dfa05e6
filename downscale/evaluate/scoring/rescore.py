"""Stored replies judged again by every named scorer, without generating anything.

The file is a list of {"text", "gold"} or a samples file, ours or one of lm-eval or lmms-eval, in
any form of `data/files.py`; several filters of the same replies are scored each by itself. The text
of a list is what a scorer is given; a samples file holds what a harness stored, so that each scorer
first gets what its own harness would strip (a closed thought, in lmms-eval 0.7). Our samples hold
the reply behind its thought: a thought that never closed is an empty reply.
"""
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from downscale.data import files
from downscale.data.files import fault, shown
from downscale.evaluate.scoring.macro import macro_of, mean_of
from downscale.evaluate.scoring.option_letters import COMPARISON
from downscale.evaluate.scoring.sample_files import distinct, is_ours, opened, records_of, several
from downscale.evaluate.scoring.table import (
    DEFAULT,
    SCORERS,
    Target,
    Verdict,
    disagree,
    unfit,
    verdicts,
)
from downscale.values import unknown

MARKED = ('answer-think', 'answer-direct')  # rows of reasoners, who are asked for 'Answer: X'
FIELDS = ('text', 'gold', 'choices', 'share', 'cluster', 'width', 'height', 'family')
# Beside the names of scorers, which our own --json writes: about a row, and no matter of its score.
ASIDE = ('id', 'question_id', 'index', 'filter', 'question', 'prompt', 'image', 'images', 'model',
         'task', 'dataset', 'source', 'category', 'metadata', 'score', 'correct', 'pred')
OTHERS = ('doc_id', 'doc', 'key')  # what the dict of a metric of lmms-eval cannot be called


@dataclass(frozen=True, kw_only=True)
class StoredReply:
    """A stored reply with what is right, and what the statistics need to know about it.

    `gold` is as the file has it, `family` the kind of question (POPE's random, popular, ...).
    `stored`, `marked` and `behind` are those of `named.verdicts`. Replies to one `question` count
    as one (of one `filter`).
    """
    text: str
    gold: object
    target: Target
    cluster: str
    question: str
    filter: str = ''
    strata: tuple[str, ...] = ()
    truncated: bool | None = None
    stored: bool = False
    marked: bool = False
    behind: bool = False
    family: str = ''


def read_rows(path: Path) -> tuple[list[StoredReply], list[str]]:
    """Return (rows, notes for a person) of a file of replies; rows without a right answer are left
    out.

    FileNotFoundError or ValueError in one line, with the number of the row that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file of replies {path}' + ' but a folder' * path.is_dir())
    if path.suffix not in files.FORMS:
        raise fault(path, f'replies are in {", ".join(files.FORMS)} files')
    rows = opened(path)
    if rows and 'doc_id' not in rows[0][1] and ('gold' in rows[0][1] or path.suffix == '.json'):
        known = [(where, value) for where, value in rows if _has_gold(value)]
        return ([_of_list(value, f'{path}, {where}', where) for where, value in known],
                _left_out(len(rows) - len(known)))
    records, notes = distinct(records_of(rows, path), path)
    known = [record for record in records if record['target'] or _doc(record).get('answers')]
    rows = [row for record in known for row in _of_sample(record)]
    notes += several(rows)
    return rows, notes + _left_out(len(records) - len(known))


def _left_out(count):
    return [f'{count} records without a right answer are left out'] if count else []


def _has_gold(value):
    """Return whether a row of a list names a right answer; one of a wrong type is told later."""
    gold = value.get('gold', True)
    texts = gold if isinstance(gold, list) else [gold]
    return not texts or any(not isinstance(text, str) or text.strip() for text in texts)


def _of_list(value, where, number):
    """Return a `StoredReply` of one object of a list."""
    for name in value:
        if name not in FIELDS and name not in ASIDE and name not in SCORERS:
            raise ValueError(f'{where}: {unknown("field", shown(name, 40), FIELDS)}')
    for name in ('text', 'gold'):
        if name not in value:
            raise ValueError(f'{where}: missing field {name!r}')
    if not isinstance(value['text'], str):
        raise ValueError(f'{where}: text must be a text, not {shown(json.dumps(value["text"]))}')
    choices = value.get('choices', COMPARISON)
    if not isinstance(choices, dict) or not choices \
            or not all(isinstance(option, str) for option in choices.values()):
        raise ValueError(f'{where}: choices must be an object of letters and texts, not '
                         f'{shown(json.dumps(choices))}')
    share = value.get('share')
    if share is not None and (isinstance(share, bool) or not isinstance(share, (int, float))
                              or not 0 <= share <= 1):
        raise ValueError(f'{where}: share must be a number from 0 to 1, not {shown(repr(share))}')
    answers = _answers(value['gold'], where)
    target = Target(
        answers=answers, choices=tuple(choices.items()), share=share, size=_size(value, where)
    )
    if 'choices' not in value and not target.bare:
        # The options of the comparison stand in only where an answer is a letter.
        target = dataclasses.replace(target, choices=())
    return StoredReply(text=value['text'], gold=value['gold'], target=target,
                       cluster=str(value.get('cluster', number)), question=number,
                       filter=str(value.get('filter', '')),
                       family=str(value.get('family', '')))


def _size(value, where):
    """Return the (width, height) of a row's picture in pixels, None where the row names none."""
    if 'width' not in value and 'height' not in value:
        return None
    size = value.get('width'), value.get('height')
    if any(isinstance(side, bool) or not isinstance(side, (int, float)) or not 0 < side < 2 ** 31
           for side in size):
        raise ValueError(f'{where}: width and height must both be positive numbers of pixels, not '
                         f'{json.dumps(size)[:60]}')
    return size


def _answers(gold, where):
    """Return the right answers: a text, a list of texts, or the four numbers of a box."""
    if isinstance(gold, str):
        return (gold,)
    if isinstance(gold, list) and gold and all(isinstance(answer, str) for answer in gold):
        return tuple(gold)
    numbers = isinstance(gold, list) and len(gold) == 4 and all(
        isinstance(number, (int, float)) and not isinstance(number, bool) for number in gold)
    if numbers:
        return (json.dumps(gold),)
    raise ValueError(f'{where}: gold must be a text, a list of texts or a box of four numbers, not '
                     f'{shown(json.dumps(gold))}')


def _doc(record):
    """Return what our records say of their question; others may mean something else by the same
    names.
    """
    return record['doc'] if is_ours(record) and isinstance(record.get('doc'), dict) else {}


def _of_sample(record):
    """Return a `StoredReply` for each reply of a samples record.

    MMStar's axes of lmms-eval stand in the dicts of its metrics.
    """
    doc = _doc(record)
    answers = doc.get('answers') or record['target']
    answers = [answers] if isinstance(answers, str) else answers
    target = target_of(doc or record, answers)
    strata = tuple(doc.get('strata') or ())
    if not strata:
        strata = tuple(str(part) for name, value in record.items() if isinstance(value, dict)
                       and name not in (*OTHERS, 'average') and 'l2_category' in value
                       for part in (name, value['l2_category']))
    cut = record.get('truncated')
    return [StoredReply(text=text, gold=answers if len(answers) > 1 else answers[0], target=target,
                        cluster=str(doc.get('cluster', record['doc_id'])),
                        question=str(record['doc_id']),
                        filter=record.get('filter', ''), strata=strata,
                        truncated=cut if isinstance(cut, bool) else None, stored=True,
                        marked=record['task'] in MARKED,
                        behind=bool(record['key'] and 'close' in record), family=_family(record))
            for text in record['filtered_resps']]


def _family(record):
    """Return the kind of question of a samples record; lmms-eval keeps POPE's as the category."""
    doc = record.get('doc')
    names = ('family',) if record['key'] else ('family', 'category')
    kinds = [doc.get(name) for name in names] if isinstance(doc, dict) else []
    return next((kind for kind in kinds if isinstance(kind, str)), '')


def target_of(doc: dict[str, Any], answers: Sequence[str]) -> Target:
    """Return the `Target` that the `doc` of a record describes."""
    size = doc.get('size')
    return Target(
        answers=tuple(answers),
        choices=tuple(map(tuple, doc.get('choices') or ())),
        share=doc.get('share'),
        free=bool(doc.get('free')),
        size=tuple(size) if size else None,
    )


def judged(
    rows: Sequence[StoredReply], names: Sequence[str] | None = None
) -> list[dict[str, Verdict]]:
    """Return [{scorer name: `Verdict`}] of every row, by all scorers or by `names`, in that order.

    ValueError for a name that no scorer has, and where none of them can judge any row.
    """
    for name in names or ():
        if name not in SCORERS:
            raise ValueError(unknown('scorer', name, list(SCORERS)))
    found = [verdicts(row.text, row.target, names, row.stored, row.marked, row.behind)
             for row in rows]
    if rows and not any(found):
        raise ValueError(f'{", ".join(names)}: made for other answers than those of this file '
                         f'(first: {unfit(names[0], rows[0].target)})')
    return found


def as_json(
    rows: Sequence[StoredReply], found: Sequence[dict[str, Verdict]]
) -> list[dict[str, Any]]:
    """Return the rows as JSON values: what was said, what is right, and each scorer's own value."""
    return [{'text': row.text, 'gold': row.gold, **({'filter': row.filter} if row.filter else {}),
             **{name: verdict.value for name, verdict in given.items()}}
            for row, given in zip(rows, found)]


def summary(rows: Sequence[StoredReply],
            found: Sequence[dict[str, Verdict]]) -> dict[str, dict[str, Any]]:
    """Return {scorer: accuracy with its interval, shares, accuracy on completed rows, means over
    axes}.

    `differs` is the share of rows with another score than that of the first scorer that judged
    them. A row is completed when it was not cut off and an answer was found. Boxes have the share
    in `other_scale`, yes and no precision, recall, F1 and the share of 'yes', also by family.
    """
    measured = {}
    for name in dict.fromkeys(name for given in found for name in given):
        mine = [(row, given[name], next(iter(given.values()))) for row, given in zip(rows, found)
                if name in given and given[name].score is not None]
        if mine:
            measured[name] = _measured(mine) | {'version': SCORERS[name].version}
    return measured


def _measured(mine):
    """Return the numbers of one scorer from (row, verdict, first verdict)."""
    rows, given, first = zip(*mine)
    place = _places(rows)
    alone = [rows[k] for k in np.unique(place, return_index=True)[1]]  # one row of each question
    scores = _means(place, [verdict.score for verdict in given])
    done = [k for k, verdict in enumerate(given) if verdict.parsed and not rows[k].truncated]
    done = _means(place[done], [given[k].score for k in done])
    cut = [row.truncated for row in rows if row.truncated is not None]
    found = {'n': len(scores), **mean_of(scores, [row.cluster for row in alone]),
             'unparsed': float(np.mean([not verdict.parsed for verdict in given])),
             'truncated': float(np.mean(cut)) if cut else None,
             'differs': float(np.mean([disagree(pair) for pair in zip(given, first)])),
             'completed': len(done), 'accuracy_completed': float(np.mean(done)) if done else None}
    if all('box' in row.target.forms for row in rows):
        found['other_scale'] = float(np.mean([verdict.other_scale for verdict in given]))
    if any(verdict.said for verdict in given):
        found |= _of_yes(rows, given)
        families = sorted({row.family for row in rows})
        parts = {name: [(row, verdict) for row, verdict in zip(rows, given) if row.family == name]
                 for name in families * (len(families) > 1)}
        found['families'] = {name: _of_yes(*zip(*part)) for name, part in parts.items()}
    if all(row.strata for row in rows):
        found['average'] = macro_of(scores, [' / '.join(row.strata) for row in alone])
        groups = {}
        for row, score in zip(alone, scores):
            groups.setdefault(row.strata[0], []).append((score, ' / '.join(row.strata)))
        found['categories'] = {name: macro_of(*zip(*group))
                               for name, group in sorted(groups.items())}
    return found


def _places(rows):
    """Return the number of the question of each row, in the order in which questions come."""
    numbers = {}
    return np.array([numbers.setdefault(row.question, len(numbers)) for row in rows])


def _means(place, values):
    """Return the mean of the values of each question that has any, as a list in the order of
    questions.
    """
    count = np.bincount(place)
    total = np.bincount(place, values) if len(place) else count
    return (total[count > 0] / count[count > 0]).tolist()


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
          found: Sequence[dict[str, Verdict]], notes: Iterable[str] = ()) -> Iterator[str]:
    """Yield the lines of a table of `summary` for a person, then the `notes`."""
    lines = [['scorer', 'n', 'accuracy', '95 %', 'unparsed', 'truncated', 'differs', 'completed',
              'version']]
    for name, one in measured.items():
        at = one.get('average', one)
        reach = '' if at['low'] is None else f'{at["low"]:.3f}-{at["high"]:.3f}'
        cut = '' if one['truncated'] is None else f'{100 * one["truncated"]:.1f} %'
        done = one['accuracy_completed']
        lines.append([name, str(one['n']), f'{at["value"]:.4f}', reach,
                      f'{100 * one["unparsed"]:.1f} %', cut, f'{100 * one["differs"]:.1f} %',
                      '' if done is None else f'{done:.4f}', one['version']])
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        yield '  '.join(text.rjust(width) if 0 < k < len(line) - 1 else text.ljust(width)
                        for k, (text, width) in enumerate(zip(line, widths))).rstrip()
    apart = sum(disagree(given.values()) for given in found)
    yield f'scorers differ on {apart} of {len(rows)} rows; differs: from the first that judged'
    for name, one in measured.items():
        if one.get('other_scale'):
            yield (f'{name}: {100 * one["other_scale"]:.1f} % of the boxes count in another scale '
                   'than the right ones (pixels, thousandths, per cent); rows with width and '
                   f'height are converted by {DEFAULT}')
    yield from _of_yes_lines(measured)
    if any('average' in one for one in measured.values()):
        yield 'accuracy is the mean over the means of the finest axes, its interval stratified'
    yield from notes


def _of_yes_lines(measured):
    """Yield the lines of a table of 'yes' for a person, by scorer and kind of question."""
    parts = [(name, family, part) for name, one in measured.items() if 'f1' in one
             for family, part in (('all', one | {'accuracy': one['value']}),
                                  *one['families'].items())]
    if parts:
        wide = max(len(f'{name} {family}') for name, family, _ in parts)
        yield f"{'yes and no'.ljust(wide)}      n  accuracy  precision  recall      F1    yes"
    for name, family, part in parts:
        yield (f"{f'{name} {family}'.ljust(wide)}  {part['rows']:5}  {part['accuracy']:8.4f}  "
               f"{part['precision']:9.4f}  {part['recall']:6.4f}  {part['f1']:6.4f}  "
               f"{100 * part['yes']:4.1f} %")

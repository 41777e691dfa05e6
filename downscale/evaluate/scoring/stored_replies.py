"""Stored replies and what is right, read from a list of {"text", "gold"} or from a samples file.

A samples file is ours or one of lm-eval or lmms-eval, in any form of `data/row_files.py`; several
filters of the same replies are scored each by itself. The text of a list is what a scorer is given;
a samples file holds what a harness stored, so that each scorer first gets what its own harness
would strip (a closed thought, in lmms-eval 0.7). Our samples hold the reply behind its thought: a
thought that never closed is an empty reply.
"""
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downscale.data import row_files
from downscale.data.row_files import fault, shown
from downscale.evaluate.scoring.boxes import is_box
from downscale.evaluate.scoring.option_letters import COMPARISON
from downscale.evaluate.scoring.sample_files import distinct, is_ours, opened, records_of, several
from downscale.evaluate.scoring.table import SCORERS
from downscale.evaluate.scoring.targets import Target
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
    `stored`, `marked` and `behind` are those of `table.verdicts`. Replies to one `question` count
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
    """Return (rows, notes for a person) of a file of replies.

    Rows without a right answer are left out and counted in the notes. FileNotFoundError or
    ValueError in one line, with the number of the row that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        hint = ' but a folder' if path.is_dir() else ''
        raise FileNotFoundError(f'no file of replies {path}{hint}')
    if path.suffix not in row_files.FORMS:
        raise fault(path, f'replies are in {", ".join(row_files.FORMS)} files')
    values = opened(path)
    # The first row shows what the file is: only samples have a doc_id.
    first = values[0][1] if values else {}
    if values and 'doc_id' not in first and ('gold' in first or path.suffix == '.json'):
        known = [(where, value) for where, value in values if _has_gold(value)]
        return ([_of_list(value, f'{path}, {where}', where) for where, value in known],
                _left_out(len(values) - len(known)))
    records, notes = distinct(records_of(values, path), path)
    known = [record for record in records if record['target'] or _doc(record).get('answers')]
    rows = []
    for record in known:
        rows += _of_sample(record)
    notes += several(rows)
    return rows, notes + _left_out(len(records) - len(known))


def _left_out(count):
    return [f'{count} records without a right answer are left out'] if count else []


def _has_gold(value):
    """Return whether a row of a list names a right answer.

    An answer of a wrong type is one: `_answers` refuses it by its line.
    """
    gold = value.get('gold', True)
    texts = gold if isinstance(gold, list) else [gold]
    return not texts or any(not isinstance(text, str) or text.strip() for text in texts)


def _of_list(value, where, number):
    """Return a `StoredReply` of one object of a list."""
    _check_fields(value, where)
    choices = _choices(value, where)
    share = _share(value, where)
    answers = _answers(value['gold'], where)
    target = Target(answers=answers, choices=choices, share=share, size=_size(value, where))
    if 'choices' not in value and not target.bare:
        # The options of the comparison stand in only where an answer is a letter.
        target = dataclasses.replace(target, choices=())
    return StoredReply(
        text=value['text'],
        gold=value['gold'],
        target=target,
        cluster=str(value.get('cluster', number)),
        question=number,
        filter=str(value.get('filter', '')),
        family=str(value.get('family', '')),
    )


def _check_fields(value, where):
    """Raise ValueError unless an object of a list has a text and a gold, and no unknown field."""
    for name in value:
        if name not in FIELDS and name not in ASIDE and name not in SCORERS:
            raise ValueError(f'{where}: {unknown("field", shown(name, 40), FIELDS)}')
    for name in ('text', 'gold'):
        if name not in value:
            raise ValueError(f'{where}: missing field {name!r}')
    if not isinstance(value['text'], str):
        raise ValueError(f'{where}: text must be a text, not {shown(json.dumps(value["text"]))}')


def _choices(value, where):
    """Return the (letter, text) pairs of a row; without any those of the published comparison."""
    choices = value.get('choices', COMPARISON)
    if not isinstance(choices, dict) or not choices \
            or not all(isinstance(option, str) for option in choices.values()):
        raise ValueError(f'{where}: choices must be an object of letters and texts, not '
                         f'{shown(json.dumps(choices))}')
    return tuple(choices.items())


def _share(value, where):
    """Return the share of people who took B, None where the row names none."""
    share = value.get('share')
    if share is not None and (isinstance(share, bool) or not isinstance(share, (int, float))
                              or not 0 <= share <= 1):
        raise ValueError(f'{where}: share must be a number from 0 to 1, not {shown(repr(share))}')
    return share


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
    if is_box(gold):
        return (json.dumps(gold),)
    raise ValueError(f'{where}: gold must be a text, a list of texts or a box of four numbers, not '
                     f'{shown(json.dumps(gold))}')


def _doc(record):
    """Return what one of our records says of its question, {} of others.

    Other harnesses may mean something else by the same names.
    """
    return record['doc'] if is_ours(record) and isinstance(record.get('doc'), dict) else {}


def _of_sample(record):
    """Return a `StoredReply` for each reply of a samples record."""
    doc = _doc(record)
    answers = doc.get('answers') or record['target']
    answers = [answers] if isinstance(answers, str) else answers
    target = target_of(doc or record, answers)
    strata = tuple(doc.get('strata') or ()) or _strata_of_metrics(record)
    cut = record.get('truncated')
    # Only our records say how a thought closed, and keep what stands behind it.
    behind = bool(record['key'] and 'close' in record)
    first = StoredReply(
        text=record['filtered_resps'][0],
        gold=answers if len(answers) > 1 else answers[0],
        target=target,
        cluster=str(doc.get('cluster', record['doc_id'])),
        question=str(record['doc_id']),
        filter=record.get('filter', ''),
        strata=strata,
        truncated=cut if isinstance(cut, bool) else None,
        stored=True,
        marked=record['task'] in MARKED,
        behind=behind,
        family=_family(record),
    )
    return [dataclasses.replace(first, text=text) for text in record['filtered_resps']]


def _strata_of_metrics(record):
    """Return MMStar's axes of lmms-eval, which stand in the dicts of its metrics; () without."""
    strata = []
    for name, value in record.items():
        if isinstance(value, dict) and name not in (*OTHERS, 'average') and 'l2_category' in value:
            strata += [str(name), str(value['l2_category'])]
    return tuple(strata)


def _family(record):
    """Return the kind of question of a samples record; lmms-eval keeps POPE's as the category."""
    doc = record.get('doc')
    # Ours have a key, and their category is another thing.
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

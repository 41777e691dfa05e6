"""Samples files, ours and those of lm-eval and lmms-eval: one question, one record.

lmms-eval writes `filtered_resps` as a list up to 0.6 and as plain text from 0.7 on, where there is
one response, and then leaves out an equal `resps`; its score may stand inside the dict of a metric.
Both harnesses write `target` as Python shows it, a list of accepted answers as the text of a list,
and one record for every filter of the same replies. Metrics are keys of any name, so that a key
which is not known here is left alone.
"""
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from downscale.data import row_files
from downscale.data.row_files import fault, shown
from downscale.data.sheets import list_of_texts
from downscale.evaluate.scoring.choices import LETTERS
from downscale.results.samples import JOINED, lines
from downscale.values import unknown

REPLIES = ('filtered_resps', 'resps')
_PART = re.compile(r'\.p\d+\.jsonl$')


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Return the records of a samples file, sorted by `doc_id` (see `records_of`)."""
    path = Path(path)
    return records_of(opened(path), path)


def opened(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return [(where, dict)] of a file of records.

    A part of ours may end in a torn line, which is left out.
    """
    if _PART.search(path.name):
        return [(f'line {number}', record) for number, record in lines(path)]
    return row_files.read_whole(path)


def records_of(rows: Iterable[tuple[str, dict[str, Any]]], path: Path) -> list[dict[str, Any]]:
    """Return the records of `opened` rows, sorted by `doc_id`.

    Here `filtered_resps` is a list of texts (several where a question was answered several times),
    `resps` [[texts]], `target` a text or a list of accepted ones, and `score` a number or None.
    What only our records have (key, task, checkpoint, prompt_hash) is None in others; these get
    `filter`, a name or '', and `choices`, the options where the target was the number of one.
    ValueError in one line for what is no such record.
    """
    return sorted((_record(record, where, path) for where, record in rows),
                  key=lambda record: _order(record['doc_id']))


def _record(record, where, path):
    """Return a record in the form of `records_of`."""
    if 'doc_id' not in record:
        raise fault(path, f'{where}: no doc_id; is this a samples file?')
    name = record['doc_id']
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise fault(path, f'{where}: doc_id must be a number or a text, not {shown(repr(name))}')
    # lmms-eval from 0.7 on leaves out `resps` that equal what a filter kept.
    kept, raw = (_texts(record.get(key), where, path) for key in REPLIES)
    if not kept and not raw:
        near = '' if any(key in record for key in REPLIES) else _nearest(record)
        raise fault(path, f'{where}: neither filtered_resps nor resps holds a text{near}')
    whole = {**dict.fromkeys(('key', *JOINED)), **record, 'filtered_resps': kept or raw,
             'resps': [raw or kept], 'score': score_of(record)}
    if is_ours(whole):
        return whole | {'target': whole.get('target') or ''}
    target, choices = _target(record, where, path)
    return whole | {'target': target, 'choices': choices, 'filter': str(record.get('filter') or '')}


def is_ours(record: dict[str, Any]) -> bool:
    """Return whether a record was written by `samples.py`."""
    return isinstance(record['key'], str) and isinstance(record['task'], str)


def _nearest(record):
    """Return the hint for a record whose replies may stand under another name."""
    for name in record:
        hint = unknown('key', name, REPLIES)
        if 'did you mean' in hint:
            return f'; {hint}'
    return ''


def _order(doc_id):
    """Return the sort key of a doc_id: numbers in their order, before texts in theirs."""
    return (1, 0, doc_id) if isinstance(doc_id, str) else (0, doc_id, '')


def _texts(value, where, path):
    """Return every text in a text, a list or nested lists, in order."""
    if isinstance(value, str):
        return [value]
    texts = []
    for part in value if isinstance(value, list) else ():
        # lm-eval stores (likelihood, is greedy) of an option, the pair as texts.
        if isinstance(part, list) and len(part) == 2 and str(part[1]) in ('True', 'False'):
            raise fault(path, f'{where}: holds the likelihoods of options, which are no replies; '
                        'their scores are those in the file')
        if not isinstance(part, (str, list)):
            raise fault(path, f'{where}: a reply must be a text, not {shown(repr(part))}')
        texts += _texts(part, where, path)
    return texts


# --- what is right ----------------------------------------------------------------------------

def _target(record, where, path):
    """Return (text or list of accepted texts, choices) of a record's `target`.

    The text is '' where the record has none.
    """
    target = record.get('target')
    doc = record.get('doc')
    # Both harnesses write a list, and a number, as Python shows it.
    if isinstance(target, str):
        target = _read(target)
    number = isinstance(target, int) or isinstance(target, str) and target.strip().isdecimal()
    if number and not isinstance(target, bool) and isinstance(doc, dict):
        return _numbered(int(target), doc, where, path)
    if isinstance(target, list):
        if all(isinstance(text, str) for text in target):
            return [text for text in target if text] or '', None
        if len(target) == 4 and not any(isinstance(part, (str, bool, list, dict, type(None)))
                                        for part in target):
            return str(target), None
    if isinstance(target, (list, dict)):
        raise fault(path, f'{where}: target must be a text, a number, a list of texts or a box, '
                    f'not {shown(repr(target))}')
    return ('' if target is None else str(target)), None


def _read(text):
    """Return the list that `text` shows where it is one of texts, else `text`."""
    return list_of_texts(text) or text


def _numbered(number, doc, where, path):
    """Return `_target` of a whole number: a letter where the document lists options."""
    options = doc.get('choices', doc.get('options'))
    # {letter: text}, or {'text': texts, 'label': letters} as in ARC.
    if isinstance(options, dict):
        lettered = sorted(options) == list(LETTERS[:len(options)])
        options = [options[key] for key in sorted(options)] if lettered \
            else options.get('text', options)
    if isinstance(options, str):
        options = _read(options)
    if options is None:
        return str(number), None
    if not isinstance(options, list) or not all(isinstance(text, str) for text in options):
        raise fault(path, f'{where}: target {number} is the number of an option, and the options '
                    f'are no list of texts: {shown(options)}')
    # By text or by number from 0; where both fit and disagree nobody can tell.
    choices = list(zip(LETTERS, options))
    fits = {letter for letter, text in choices if text.strip() == str(number)}
    fits |= {letter for letter, _ in choices[number:number + 1]}
    if len(fits) != 1:
        raise fault(path, f'{where}: target {number} names {len(fits)} of the options '
                    f'{shown(options)} by number from 0 or by text; give its letter')
    return fits.pop(), choices


def score_of(record: dict[str, Any]) -> float | None:
    """Return the score of a record, None where there is none.

    It is its own, else the first number whose name says so, else that in the dict of a metric.
    """
    flat = [value for name, value in record.items() if 'score' in name.lower()]
    nested = [value.get('score') for name, value in record.items()
              if isinstance(value, dict) and name != 'doc']
    # From the surest name to the loosest; the metrics of a harness may have any name.
    for value in (record.get('score'), *flat, *nested):
        if isinstance(value, (int, float)):
            return float(value)
    return None


# --- which question ---------------------------------------------------------------------------

def distinct(records: Sequence[dict[str, Any]],
             path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return (`records` without those that stand again, notes).

    One of each question, filter and repeat stays. ValueError where two of them are about another
    question or hold other replies: files of several tasks or runs in one.
    """
    first = {}
    again = 0
    clash = defaultdict(list)
    for record in records:
        identity = record.get('filter'), str(record['doc_id']), record.get('repeat')
        # A padded batch writes rows again, equal in all that matters.
        before = first.setdefault(identity, record)
        if before is record:
            continue
        again += 1
        for what, keys in (('question', ('doc_hash', 'doc', 'target')),
                           ('reply', (*REPLIES, 'key', 'model'))):
            if any(before.get(key) != record.get(key) for key in keys):
                clash[what].append(record['doc_id'])
                break
    for what, names in clash.items():
        raise fault(path, f'{len(names)} of {len(records)} records have the doc_id of another '
                    f'record and another {what} (first doc_id {shown(names[0])}); give the file of '
                    'one task and one run')
    notes = []
    if again:
        notes.append(f'{again} of {len(records)} records stand there again (padded batches); each '
                     'counts once')
    return list(first.values()), notes


def several(rows: Sequence) -> list[str]:
    """Return the note on questions that were answered several times, as a list of none or one."""
    count = Counter((row.filter, row.question) for row in rows)
    if len(count) == len(rows):
        return []
    return [f'{len(rows)} replies to {len(count)} questions; a score is the mean over the replies '
            'of its question']

"""Accuracy against ten people's answers, after the normaliser of the VQA evaluation servers.

The normaliser's oddities decide published numbers and are kept: 'none' becomes '0', an article
alone becomes nothing, and at most 32 full stops are removed, because the original passes a flag of
the value 32 where the count belongs. Answers of the data are never changed.
"""
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean

NUMBERS = {word: str(k) for k, word in enumerate(
    ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten'))}
NUMBERS['none'] = '0'
ARTICLES = ('a', 'an', 'the')
MARKS = ';/[]"{}()=+\\_-><@`,?!'
STOPS = 32

_COMMA = re.compile(r'(?<=\d),+(?=\d)')
_STOP = re.compile(r'\.(?!\d)')


@cache
def _contractions():
    return json.loads((Path(__file__).parent / 'tables' / 'contractions.json').read_text(
        encoding='utf-8'))['contractions']


def normal(text: str) -> str:
    """Return `text` as TextVQA, VizWiz and M4C compare it.

    This is EvalAI's processor, which splits words first.
    """
    text = text.lower().replace(',', '').replace('?', '').replace("'s", " 's")
    return normal_words(normal_marks(one_line(text.strip())))


def one_line(text: str) -> str:
    """Return `text` without line breaks, tabs and blanks around it."""
    return text.replace('\n', ' ').replace('\t', ' ').strip()


def normal_marks(text: str, comma: re.Pattern[str] = _COMMA) -> str:
    """Return `text` without marks.

    A mark is removed beside a blank or where a number has a comma; elsewhere it becomes a blank.
    """
    cleaned = text
    # Whether a mark is removed is decided by the text as it was, whatever went before it.
    has_comma = comma.search(text)
    for mark in MARKS:
        beside = has_comma or mark + ' ' in text or ' ' + mark in text
        cleaned = cleaned.replace(mark, '' if beside else ' ')
    return _STOP.sub('', cleaned, count=STOPS)


def normal_words(text: str) -> str:
    """Return `text` in lower case, with digits for small numbers and without articles.

    Contractions get their apostrophes back ('dont' becomes "don't").
    """
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return ' '.join(_contractions().get(word, word) for word in words if word not in ARTICLES)


def agreement(text: str, answers: Sequence[str]) -> float:
    """Return the VQA accuracy of `text`: three people who say it are full agreement.

    Each of `answers` is left out once, and the mean is over those left out. Texts are compared as
    they stand.
    """
    # The answer that is left out is no vote for itself: True counts as one.
    same = [answer == text for answer in answers]
    return float(mean(min(1, (sum(same) - itself) / 3) for itself in same))


def soft(text: str, answers: Sequence[str]) -> float:
    """Return agreement of `text` after `normal`.

    So count lmms-eval (TextVQA, VizWiz) and M4C, and with it CoIN (TextVQA).
    """
    return agreement(normal(text), [normal(answer) for answer in answers])


def soft_vqav2(text: str, answers: Sequence[str]) -> float:
    """Return agreement as VQAv2 in lmms-eval 0.7 counts it: normalised, but not split first."""
    text, *answers = [normal_words(normal_marks(one_line(side))) for side in (text, *answers)]
    return agreement(text, answers)


def soft_vqav2_v04(text: str, answers: Sequence[str]) -> float:
    """Return `soft_vqav2`, but nothing is normalised where all people agree (lmms-eval 0.4)."""
    plain = [one_line(answer) for answer in answers]
    return soft_vqav2(text, answers) if len(set(plain)) > 1 else agreement(one_line(text), plain)

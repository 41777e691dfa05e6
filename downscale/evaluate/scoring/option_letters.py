"""Rules of public harnesses that read an option's letter out of a reply, defects included.

Each function is one published rule, reimplemented; the verdicts are those of the original on any
text. None of them guesses: what the originals draw at random when nothing can be read is 'nothing'
here. Named and versioned for `downscale rescore` in `table.py`.
"""
import json
import re
from functools import cache
from pathlib import Path

LETTERS = 'ABCDEFGH'
# The question of the published comparison of scorers, for rows that do not say what was asked: some
# rules look for the texts of options, so their verdicts mean nothing without any.
COMPARISON = {'A': 'one cat', 'B': 'two dogs', 'C': 'three birds', 'D': 'no animals'}

_LAST_LINE_MARK = re.compile(r'Answer\s*:\s*([^\n]+)', re.IGNORECASE)
_VERBOSE = re.compile(r'(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**')
_REFUSALS = ("Sorry, I can't help with images of people yet.", "I can't process this file.",
             "I'm sorry, but without the image provided", 'Cannot determine the answer')
# How a letter may be dressed, and how far that is trusted against a start (10) or an end (9).
_DRESSES = (('({})', 6), ('{}.', 5), ('{}:', 4), ('{})', 3), ('{} ', 2))


@cache
def _phrases():
    """Return what lmms-eval 0.7 takes for an announcement of the answer, in three scripts."""
    return json.loads((Path(__file__).parent / 'tables' / 'answer_phrases.json').read_text(
        encoding='utf-8'))['phrases']


def lmms_v04(text: str, gold: str) -> float:
    """Return 1.0 where `text` begins with the letter `gold` in one of four forms, else 0.0.

    Any text that begins with the letter counts, 'Because' for B too (lmms-eval 0.4, MMStar).
    """
    gold, text = (side.lower().replace('\n', ' ').strip() for side in (gold, text))
    starts = [start for start in ('', '(', 'option ', 'the answer is ') if text.startswith(start)]
    letters = [text[len(start):len(start) + 1] for start in starts]
    return float(bool(gold) and gold in letters)


def ref_stage2(text: str, gold: str) -> float:
    """Return `lmms_v04` of the last line of `text`, or of what follows 'Answer:' there.

    A text that ends in a line break is wrong (second stage of the code of arXiv 2511.17487).
    """
    line = text.rpartition('\n')[2]
    marked = _LAST_LINE_MARK.search(line)
    return lmms_v04(marked[1] if marked else line, gold)


def lmms_v07_letter(text: str, letters: str = LETTERS) -> str:
    """Return the letter that lmms-eval 0.7 extracts from `text`, '' for none.

    The most trusted form wins, then the last place in the text. 'A' as an article counts.
    """
    bare = text.strip()
    if not bare:
        return ''
    for mark in ',.!?;:\'"':
        bare = bare.strip(mark)
    padded = f' {bare} '
    bare = bare.strip()
    # Candidates are (trust, place, letter). Of equally trusted ones at one place the first wins,
    # so that the order in which they are collected decides, as in the original.
    candidates = []
    for form, trust in _DRESSES:
        dressed = {letter: padded.rfind(form.format(letter)) for letter in letters}
        candidates += [(trust, place, letter) for letter, place in dressed.items() if place >= 0]
    lower = padded.lower()
    for phrase in _phrases():
        start = lower.find(phrase)
        if start >= 0:
            places = {letter: padded.find(letter, start + len(phrase)) for letter in letters}
            candidates += [(7, place, letter) for letter, place in places.items() if place >= 0]
    for letter in letters:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            candidates.append((10, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            candidates.append((9, len(padded) - 1, letter))
    if not candidates:
        candidates = [(0, padded.rfind(letter), letter) for letter in letters if letter in padded]
    return max(candidates, key=lambda candidate: candidate[:2])[2] if candidates else ''


def vlmevalkit(text: str, options: dict[str, str]) -> str | None:
    """Return the letter that VLMEvalKit infers from `text` without a judge.

    A refusal is 'Z', and what cannot be inferred None. `options` maps letters to their texts: the
    only text of one that is contained counts too.
    """
    return _by_letter(text, options) or _by_text(text, options)


def _by_letter(text, options):
    if 'Failed to obtain answer via API' in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return 'Z'
    words = text.translate(str.maketrans(dict.fromkeys('.()[],:;!*#{}', ' '))).split()
    there = [letter for letter in options if letter in words]
    # A letter that stands far from the end may be an article of an explanation.
    if len(there) == 1 and words.index(there[0]) > len(words) - 5:
        return there[0]
    if not there and 'Z' in words:
        return 'Z'
    stated = _VERBOSE.search(text)
    return stated[1].upper() if stated and stated[1].upper() in options else None


def _by_text(text, options):
    lower = text.lower()
    texts = {letter: str(option) for letter, option in options.items()}
    if len(lower) > 2 * sum(map(len, texts.values())):
        return None
    there = [letter for letter, option in texts.items() if option.lower() in lower]
    return there[0] if len(there) == 1 else None


def vmcbench(text: str, options: dict[str, str]) -> str | None:
    """Return the letter that VMCBench's parser finds in `text` (lmms-eval, VMCBench).

    None stands where the original draws one at random. Of several in brackets or before a full
    stop the last in brackets counts.
    """
    for mark in ',.!?;:\'':
        text = text.strip(mark)
    text = f' {text} '
    lower = text.lower()
    dressed = [letter for letter in options if f'({letter})' in text or f'{letter}. ' in text]
    bare = [letter for letter in options if f' {letter} ' in text]
    if dressed:
        return max(dressed, key=lambda letter: text.rfind(f'({letter})'))
    if bare:
        return max(bare, key=lambda letter: text.rfind(f' {letter} '))
    if len(text.split()) <= 5:
        return None
    named = [letter for letter, option in options.items() if option and option.lower() in lower]
    return max(named, key=lambda letter: lower.rfind(options[letter].lower()), default=None)

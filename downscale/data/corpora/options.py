"""What a row asks that holds one question: its text, its options and the letter of the answer.

Options are a list, a dict by label, {'text': [...], 'label': [...]} (ARC), a text that spells one
of these, or columns A, B, ...
"""
import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from downscale.data.corpora.cells import Rejected, empty, typed
from downscale.data.row_files import shown

LETTERS: tuple[str, ...] = tuple('ABCDEFGHIJ')
ASK_LETTER = "Answer with the option's letter from the given choices directly."


def question_in(filled: dict[str, Any]) -> tuple[list[str], tuple[str, str]]:
    """Return (the columns that are used, (question, answer)) of a row that asks one question.

    `filled` holds the cells that are not empty.
    """
    used = ['question']
    question = filled['question']
    typed(question, str, 'question')
    about = [name for name in ('hint', 'context') if name in filled]
    for name in about:
        typed(filled[name], str, name)
    if about:
        context = '\n'.join(filled[name] for name in about)
        question = f'Context: {context}\nQuestion: {question}'
    answered = [name for name in ('answer', 'answers') if name in filled]
    if not answered:
        raise Rejected('no answer', 'neither answer nor answers holds a text')
    answers = filled[answered[0]]
    if len(answered) > 1 and _answer(answers) not in several(filled['answers']):
        raise Rejected('unclear answer', f'answer {shown(answers, 40)!r} is none of answers')
    columns, options = options_in(filled)
    used += about + answered + columns
    if options:
        return used, _choice(question, options, answers)
    return used, (question, _answer(answers))


def several(answers: Any) -> list[Any]:
    """Return the answers of a list, or the only one in a list; whole numbers as texts."""
    parts = answers if isinstance(answers, (list, tuple)) else [answers]
    texts = [part.get('answer') if isinstance(part, dict) else part for part in parts]
    return [str(text) if _is_whole(text) else text for text in texts]


def _answer(answers):
    """Return the answer of a question: of several the most frequent, the first among equals."""
    # VQA and TextVQA have the answers of ten people.
    texts = several(answers)
    return max(texts, key=texts.count)


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool)


def options_in(filled: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return (columns, [(label, text)]) of the options of a question; ([], []) without options."""
    columns = [name for name in ('options', 'choices') if name in filled]
    letters = [letter for letter in LETTERS if letter in filled]
    if letters and columns or len(columns) > 1:
        raise Rejected('unclear answer', f'options in {" and ".join((*columns, *letters)[:3])}')
    if letters:
        return letters, [(letter, _option(filled[letter])) for letter in letters]
    if not columns:
        return [], []
    pairs = _labelled(filled[columns[0]], columns[0])
    return columns, [(label, _option(text)) for label, text in pairs]


def _labelled(value, column):
    """Return [(label, cell)] of the options in a cell of `column`; a list's labels count from 0."""
    if isinstance(value, str):
        value = _literal(value)
    if isinstance(value, dict) and set(value) == {'text', 'label'}:
        typed(value['text'], (list, tuple), 'text of options')
        typed(value['label'], (list, tuple), 'label of options')
        if len(value['text']) != len(value['label']):
            raise Rejected('wrong type', 'options with more texts than labels, or fewer')
        value = dict(zip(map(_option, value['label']), value['text']))
    if isinstance(value, dict):
        return [(str(label), text) for label, text in value.items() if not empty(text)]
    typed(value, (list, tuple), column)
    # Sheets fill the options up to the most that a question has: the last cells may be empty.
    count = max((k for k, text in enumerate(value, 1) if not empty(text)), default=0)
    if any(map(empty, value[:count])):
        raise Rejected('unclear answer', 'an option before the last is empty')
    return [(str(k), text) for k, text in enumerate(value[:count])]


def _literal(text):
    """Return the list or dict that a text spells, as JSON or as Python shows it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise Rejected('wrong type', f'options are the text {shown(text)!r}, which is no list'
                       ) from None


def _option(value):
    """Return the text of one option."""
    if _is_whole(value) or isinstance(value, (bool, float)):
        return str(value)
    typed(value, str, 'an option')
    return value.strip()


def _choice(question, options, answers):
    """Return (question with its options, letter of the answer)."""
    if not 2 <= len(options) <= len(LETTERS):
        raise Rejected('unclear answer', f'{len(options)} options; 2 to {len(LETTERS)} are read')
    letters = list(zip(LETTERS, options))
    right = {letter_of(letters, answer) for answer in several(answers)}
    if len(right) > 1:
        raise Rejected('unclear answer', f'{len(right)} options are right')
    return f'{with_options(question, letters)}\n{ASK_LETTER}', right.pop()


def with_options(question: str, letters: Sequence[tuple[str, tuple[str, str]]]) -> str:
    """Return `question` with its options (letter, (label, text)) below it, one a line.

    A question that lists them itself stays as it is.
    """
    # Sets that keep the options in the question write them in one of these ways.
    listed = all(re.search(rf'\b{letter}[.:)]\s*{re.escape(text)}', question)
                 for letter, (_, text) in letters)
    lines = [] if listed else [f'{letter}. {text}' for letter, (_, text) in letters]
    return '\n'.join([question, *lines])


def letter_of(letters: Sequence[tuple[str, tuple[str, str]]], answer: Any) -> str:
    """Return the letter of the option that an answer names by letter, label or text.

    Options in a list are labelled by their number from 0, and by their letter as well. `Rejected`
    where no option is named, or two readings disagree.
    """
    typed(answer, (str, bool), 'answer')
    text = str(answer).strip()
    short = re.sub(r'^\((\w+)\)$|^(\w+)[.)]$', r'\1\2', text)  # (A), A. and A) are A
    # Labels A, B, ... are the letters of a row; those of a list, or 1, 2, ..., leave ours as well.
    by_letter = letters[0][1][0] != 'A'
    named = {letter for letter, (label, option) in letters
             if short in (label, label.lower()) or by_letter and short.upper() == letter
             or option.casefold() == text.casefold()}
    if len(named) != 1:
        raise Rejected('unclear answer', f'answer {shown(text, 40)!r} names '
                       f'{" and ".join(sorted(named)) or "none"} of {len(letters)} options; give '
                       'the letter')
    return named.pop()

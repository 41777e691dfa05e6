"""Whether what to look at gives an answer or an option of a question away.

A word that any question about the picture says is no secret, whichever question it answers.
"""
import re
from collections.abc import Sequence

from downscale.factory.words import content, sentences, stem

_OPTION = re.compile(r'(?:^|(?<=[\s,;(]))\(?([A-H])[.):]\s*')
_LETTER = re.compile(r'\b(?:option|choice|answer)\s*(?:is|:)?\s*\(?([A-H])\b|\(([A-H])\)')
_POLAR = {'yes', 'no'}
_SAID = re.compile(r'(?:\banswers?\b(?: is)?\s*:?|[:,;(])\s*(yes|no)\b(?=\s*(?:[.,;)]|$))'
                   r'|^\s*(?:yes|no)\b\s*(?:[.,;]|$)|\b(?:yes)\b', re.IGNORECASE)
_OPEN = {'whether', 'if', 'how', 'what', 'which', 'where', 'who', 'or', 'relative', 'compare'}
_ASKS = re.compile(r'^(?:is|are|was|were|does|do|did|has|have|can|could|will|would)\b',
                   re.IGNORECASE)
_VERBS = {'is', 'are', 'was', 'were', 'does', 'has', 'have', 'not'}


def plain(pair: tuple[str, str]) -> tuple[str, str]:
    """Return (question without its options, answer); an option's letter becomes its text."""
    question, answer = pair
    stem_of, given = options(question)
    letter = re.fullmatch(r'\(?([A-H])[.):]?', answer.strip())
    if letter and letter[1] in given:
        return stem_of, given[letter[1]]
    return stem_of, _OPTION.sub('', answer.strip(), count=1) if given else answer.strip()


def options(question: str) -> tuple[str, dict[str, str]]:
    """Return (question before its options, {letter: option}); (question, {}) without options."""
    marks = list(_OPTION.finditer(question))
    start = next((k for k, mark in enumerate(marks) if mark[1] == 'A'), None)
    marks = [] if start is None else marks[start:]
    # Options are lettered A, B, ... without a gap; a lone 'A.' may be a word.
    run = [mark for k, mark in enumerate(marks) if ord(mark[1]) == ord('A') + k]
    if len(run) < 2:
        return question, {}
    ends = [mark.start() for mark in run[1:]] + [len(question)]
    asked = re.sub(r'\s*(?:options|choices)\s*:\s*$', '', question[:run[0].start()],
                   flags=re.IGNORECASE)
    texts = {mark[1]: question[mark.end():end].strip(' \n,;.') for mark, end in zip(run, ends)}
    return asked.strip(), texts


def is_polar(answer: str) -> bool:
    """Return whether an answer is yes or no."""
    return answer.strip(' .').casefold() in _POLAR


def leaks(pairs: Sequence[tuple[str, str]], information: str) -> list[str]:
    """Return why `information` gives something away: at most one reason a question, else []."""
    asked = set()
    for pair in pairs:
        asked.update(content(plain(pair)[0]))
    reasons = []
    for pair in pairs:
        if leak := _leak(pair, asked, information):
            reasons.append(f'{leak} of: {plain(pair)[0]}')
    return reasons


def _leak(pair, asked, information):
    """Return what of one pair is given away, '' for nothing; `asked` are the words of questions."""
    question, answer = plain(pair)
    _, given = options(pair[0])
    # 1. The answer itself. Yes and no are judged by what the information claims.
    if is_polar(answer) and set(map(str.casefold, given.values())) <= _POLAR:
        if leak := _polar(question, information):
            return leak
    elif _named(answer, asked, information):
        return f'answer {answer!r}'
    # 2. Any option, as a wrong one rules itself out or in.
    for option in given.values():
        if not is_polar(option) and _named(option, asked, information):
            return f'option {option!r}'
    # 3. The letter of an option.
    if given and (letter := _LETTER.search(information)):
        return f'letter {letter[0]!r}'
    return ''


def _named(answer, asked, information):
    """Return whether the information holds more than half of the words that only the answer has."""
    if re.fullmatch(r'[A-Za-z]', answer):
        return _letter(answer, asked, information)
    there = set(content(information))
    secret = [word for word in dict.fromkeys(content(answer)) if word not in asked]
    named = [word for word in secret if word in there]
    return bool(secret) and 2 * len(named) > len(secret)


def _letter(answer, asked, information):
    """Return whether the information has a lone letter, which only a capital is.

    'A' and 'I' are words as well, so no word may follow them.
    """
    if stem(answer.casefold()) in asked:
        return False
    behind = r'(?=\s*(?:[.,;:)"\'”’]|$))' if answer in 'AaIi' else ''
    return bool(re.search(rf'(?<![\w]){answer.upper()}(?![\w]){behind}', information))


def _polar(question, information):
    """Return how the information answers a yes/no question, '' for not at all.

    It may say the word, or claim what is asked.
    """
    if word := _SAID.search(information):
        return f'answer {word[0].strip(" .,;:(")!r}'
    if not _ASKS.match(question):
        return ''
    wanted = set(content(question))
    for words in sentences(information):
        raws = {word.raw for word in words}
        clause = {word.stem for word in words if word.content}
        # Of one word the question tells too little: 'are the lights on', 'the lights are old'.
        claimed = wanted <= clause if len(wanted) > 1 else wanted == clause
        if claimed and raws & _VERBS and not raws & _OPEN:
            return f'claim {" ".join(word.raw for word in words)!r}'
    return ''

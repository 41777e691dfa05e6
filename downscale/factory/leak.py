"""Whether what to look at gives an answer or an option of a question away.

A word that any question about the picture says is no secret, whichever question it answers.
"""
import re

from downscale.factory.words import content, sentences, stem

_OPTION = re.compile(r'(?:^|(?<=[\s,;(]))\(?([A-H])[.):]\s*')
_LETTER = re.compile(r'\b(?:option|choice|answer)\s*(?:is|:)?\s*\(?([A-H])\b|\(([A-H])\)')
_POLAR = {'yes', 'no'}
_SAID = re.compile(r'(?:\banswers?\b(?: is)?\s*:?|[:,;(])\s*(yes|no)\b(?=\s*(?:[.,;)]|$))'
                   r'|^\s*(?:yes|no)\b\s*(?:[.,;]|$)|\b(?:yes)\b', re.IGNORECASE)
_OPEN = {'whether', 'if', 'how', 'what', 'which', 'where', 'who', 'or', 'relative', 'compare'}
_ASKS = re.compile(r'^(?:is|are|was|were|does|do|did|has|have|can|could|will|would)\b',
                   re.IGNORECASE)


def plain(pair):
    """Return (question without its options, answer): an option's letter gives way to its text."""
    question, answer = pair
    stem_of, given = options(question)
    letter = re.fullmatch(r'\(?([A-H])[.):]?', answer.strip())
    if letter and letter[1] in given:
        return stem_of, given[letter[1]]
    return stem_of, _OPTION.sub('', answer.strip(), count=1) if given else answer.strip()


def options(question):
    """Return (the question before its options, {letter: option}); no options: all of it, {}."""
    marks = [mark for mark in _OPTION.finditer(question)]
    start = next((k for k, mark in enumerate(marks) if mark[1] == 'A'), None)
    marks = [] if start is None else marks[start:]
    run = [mark for k, mark in enumerate(marks) if ord(mark[1]) == ord('A') + k]
    if len(run) < 2:
        return question, {}
    ends = [mark.start() for mark in run[1:]] + [len(question)]
    return (re.sub(r'\s*(?:options|choices)\s*:\s*$', '', question[:run[0].start()],
                   flags=re.IGNORECASE).strip(),
            {mark[1]: question[mark.end():end].strip(' \n,;.') for mark, end in zip(run, ends)})


def is_polar(answer):
    """Return whether an answer is yes or no."""
    return answer.strip(' .').casefold() in _POLAR


def leaks(pairs, information):
    """Why `information` gives something away, a reason for each question; none: []."""
    asked = {word for pair in pairs for word in content(plain(pair)[0])}
    there = set(content(information))
    reasons = []
    for pair in pairs:
        (question, answer), (_, given) = plain(pair), options(pair[0])
        if is_polar(answer) and set(map(str.casefold, given.values())) <= _POLAR:
            told = _polar(question, information)
        else:
            told = _named(answer, asked, there, information) and f'answer {answer!r}'
        told = told or next((f'option {option!r}' for option in given.values() if not is_polar(
            option) and _named(option, asked, there, information)), '')
        if given and not told and (letter := _LETTER.search(information)):
            told = f'letter {letter[0]!r}'
        if told:
            reasons.append(f'{told} of: {question}')
    return reasons


def _named(answer, asked, there, information):
    """Return whether more than half of an answer's words that no question says are in the
    information.
    """
    if re.fullmatch(r'[A-Za-z]', answer):
        return _letter(answer, asked, information)
    secret = [word for word in dict.fromkeys(content(answer)) if word not in asked]
    told = [word for word in secret if word in there]
    return bool(secret) and 2 * len(told) > len(secret)


def _letter(answer, asked, information):
    """Return a lone letter counts as a capital only, 'A' and 'I' only where no word follows
    them.
    """
    if stem(answer.casefold()) in asked:
        return False
    behind = r'(?=\s*(?:[.,;:)"\'”’]|$))' if answer in 'AaIi' else ''
    return bool(re.search(rf'(?<![\w]){answer.upper()}(?![\w]){behind}', information))


def _polar(question, information):
    """Return how the information answers a yes/no question: by the word, or as a claim about what
    is asked.
    """
    if said := _SAID.search(information):
        return f'answer {said[0].strip(" .,;:(")!r}'
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


_VERBS = {'is', 'are', 'was', 'were', 'does', 'has', 'have', 'not'}

"""The checks that a row must pass; each has a name, and reasons that a person can follow.

The rules read English. They judge what is written, never the picture.
"""
import re
import unicodedata
from collections import Counter

from downscale.factory import entail, leak
from downscale.factory.words import content

VERSION = 1  # of the rules; rows say by which they were judged
CHECKS = {
    'reply': 'every teacher replied', 'truncated': 'no text was cut off',
    'refusal': 'no refusal', 'rubbish': 'plain prose: no markup, code or control characters',
    'language': 'letters of the questions\' script', 'repetition': 'no loops',
    'length': 'neither too short nor too long', 'statements': 'statements hold every answer',
    'leak': 'what to look at gives no answer or option away',
    'entailed': 'the description says every statement',
    'contradiction': 'the description contradicts no statement',
    'judge': 'a teacher finds every statement in the description'}
# Fewest and most words: of all statements, of what to look at, of the description.
LENGTHS = {'statements': (3, 600), 'information': (2, 120), 'descriptions': (12, 1200)}
NAMES = {'statements': 'statements', 'information': 'information', 'descriptions': 'description'}
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:cannot|can't|can not) (?:see|view|help|"
    r"assist|describe|provide|access|process|identify|answer|comply|fulfil)|as an ai\b|"
    r"as a (?:large )?language model|unable to (?:view|see|process|access|assist)|"
    r"no (?:image|picture) (?:was|is|has been) (?:provided|attached|given)|(?:please|could you) "
    r"(?:provide|upload|share) (?:the|an|a) (?:image|picture)|against (?:my|the) (?:guidelines|"
    r"policy))", re.IGNORECASE)
_MARKUP = re.compile(r'</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>|```|\{\s*"|"\s*:\s*["\[{]|\\u[0-9a-f]{4}'
                     r'|<\|\w+\|>|\{\w+\}', re.IGNORECASE)
_VERDICT = re.compile(r'^\W*(?:statement )?(\d+)\W+(yes|no)\b', re.IGNORECASE | re.MULTILINE)
_BULLET = re.compile(r'^(?:[-*•]|(?:statement )?\d+\s*[.):])\s*', re.IGNORECASE)


def statements_of(text):
    """Return the statements in a reply, a line each, without bullets and numbers before them."""
    lines = (_BULLET.sub('', line.strip()).strip() for line in text.splitlines())
    return [line for line in lines if line and not line.endswith(':')]


def check(pairs, rows, missing, judged):
    """Return {check: reasons} for the rows of one picture, {step: row or None}.

    `missing` says, by step, why a teacher did not reply. A check that has nothing to judge has no
    reason; one that was spoilt before it could be made is not in the result.
    """
    found = {'reply': [f'{step}: {reason}' for step, reason in missing.items()]}
    texts = {name: [] for name in ('truncated', 'refusal', 'rubbish', 'language', 'repetition',
                                    'length')}
    for step, name in NAMES.items():
        for kind, reason in (_spoilt(rows[step], step, pairs) if rows[step] else ()):
            texts[kind].append(f'{name}: {reason}')
    found |= texts
    told, looked, described = (rows[step] for step in NAMES)
    lines = statements_of(told['text']) if told else []
    if told and not spoilt(told):
        found['statements'] = _answered(pairs, lines)
    if looked and not spoilt(looked):
        found['leak'] = leak.leaks(pairs, looked['text'])
    if described and not spoilt(described):
        verdicts = [(line, entail.judge(line, answer, described['text']))
                    for line, answer in zip(lines, answers_of(pairs, lines), strict=True)]
        found['entailed'] = [f'not in the description: {line}' for line, verdict in verdicts
                             if not verdict.entailed]
        found['contradiction'] = [f'{line} <> {verdict.against}' for line, verdict in verdicts
                                  if verdict.against]
    if judged and rows['judgements'] and not spoilt(described):
        found['judge'] = _judged(rows['judgements']['text'], lines)
    return found


def spoilt(row):
    """Return whether a text is cut off, a refusal, a loop or rubbish: no later step may build on
    it.
    """
    return any(kind in ('truncated', 'refusal', 'rubbish', 'repetition')
               for kind, _ in _spoilt(row, None, ()))


def _spoilt(row, step, pairs):
    """Yield (check, reason) of what is wrong with a text as such."""
    text = row['text']
    if row['finish'] == 'length':
        yield 'truncated', f'cut off after {row["tokens_out"]} tokens'
    elif row['finish'] not in ('stop', 'None'):
        yield 'truncated', f'ended by {row["finish"]}'
    if refused := _REFUSAL.search(text.replace('’', "'")[:400]):
        yield 'refusal', refused[0]
    yield from (('rubbish', reason) for reason in _rubbish(text))
    if loop := loop_in(text):
        yield 'repetition', loop
    if step:
        asked = ' '.join(part for pair in pairs for part in pair)
        if strange := scripts(text) - scripts(asked) - {'LATIN'}:
            yield 'language', f'{", ".join(sorted(strange)).lower()} letters'
        n, (fewest, most) = len(text.split()), LENGTHS[step]
        if not fewest <= n <= most:
            yield 'length', f'{n} words, not {fewest} to {most}'


def _rubbish(text):
    if not text.strip():
        yield 'empty'
        return
    if marked := _MARKUP.search(text):
        yield f'markup {marked[0][:20]!r}'
    if any(unicodedata.category(c) in ('Cc', 'Co', 'Cn') and c not in '\n\t\r' or c == '\ufffd'
           for c in text):
        yield 'control or broken characters'
    solid = [c for c in text if not c.isspace()]
    if sum(c.isalnum() for c in solid) < .6 * len(solid):
        yield 'hardly a letter'
    if text.strip()[0] in '[{' and text.strip()[-1] in ']}':
        yield 'JSON'
    words = text.split()
    if max(map(len, words)) > 60:
        yield 'a word of over 60 letters'


def scripts(text):
    """Return the scripts with at least a tenth of the letters of a text, or three in a row
    ('LATIN').
    """
    names = [unicodedata.name(c, '?').split()[0] for c in text if c.isalpha()]
    tally = Counter(names)
    runs = {a for a, b, c in zip(names, names[1:], names[2:]) if a == b == c}
    return {name for name, n in tally.items() if n >= .1 * len(names) or name in runs}


def loop_in(text):
    """Return what a text repeats: a phrase three times on end, or a sentence three times; '' for
    none.
    """
    words = text.casefold().split()
    for n in (*range(1, 9), 12, 16, 24):
        # A word or two may stand there three times in a list of numbers; more is a loop.
        times = 6 if n == 1 else 4 if n == 2 else 3
        same = 0
        for k in range(n, len(words)):
            same = same + 1 if words[k] == words[k - n] else 0
            if same >= n * (times - 1):
                return f'{" ".join(words[k - n + 1:k + 1])[:60]!r} {times} times'
    parts = Counter(part.strip() for part in re.split(r'(?<=[.!?])\s+|\n', text.casefold())
                    if len(part.split()) > 3)
    often = [part for part, n in parts.items() if n > 2]
    return f'{often[0][:60]!r} {parts[often[0]]} times' if often else ''


# --- statements -------------------------------------------------------------------------------

def answers_of(pairs, lines):
    """Return what each statement asserts: the answer of the pair whose words it shares most, '' for
    yes and no.
    """
    found = []
    for line in lines:
        words = set(content(line))
        _, _, answer = max((len(words & set(content(f'{stem} {said}')))
                            - len(set(content(stem)) - words), -k, said)
                           for k, (stem, said) in enumerate(map(leak.plain, pairs)))
        found.append('' if leak.is_polar(answer) else answer)
    return found


def _answered(pairs, lines):
    """Return which pairs no statement covers: the answer, and half of what the question names."""
    reasons = []
    if len(lines) > 2 * len(pairs):
        reasons.append(f'{len(lines)} statements for {len(pairs)} questions')
    bags = [set(content(line)) for line in lines]
    for pair in pairs:
        question, answer = leak.plain(pair)
        asked = set(content(question))
        said = set() if leak.is_polar(answer) else set(content(answer))
        if not any(said <= bag and len(asked & bag) * 2 >= len(asked) for bag in bags):
            reasons.append(f'no statement for: {question} {answer}')
    return reasons


def _judged(text, lines):
    verdicts = {int(number): said.lower() for number, said in _VERDICT.findall(text)}
    if not verdicts:
        return ['no verdict to read']
    return [f'not in the description: {line}' for k, line in enumerate(lines, 1)
            if verdicts.get(k) != 'yes']

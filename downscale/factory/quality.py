"""The checks that a row must pass; each has a name, and reasons that a person can follow.

The rules read English. They judge what is written, never the picture.
"""
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

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


def statements_of(text: str) -> list[str]:
    """Return the statements of a reply, a line each, without bullets and numbers before them."""
    lines = (_BULLET.sub('', line.strip()).strip() for line in text.splitlines())
    return [line for line in lines if line and not line.endswith(':')]


def check(pairs: Sequence[tuple[str, str]], rows: Mapping[str, dict | None],
          missing: Mapping[str, str], judged: bool) -> dict[str, list[str]]:
    """Return {check: reasons} for the rows of one picture, {step: row or None}.

    `missing` says, by step, why a teacher did not reply; `judged` is whether there is a judge. A
    check that has nothing to judge has no reason. A check is not in the result when what it judges
    is spoilt.
    """
    # 1. Who did not reply, and what is wrong with each text as such.
    reasons = {'reply': [f'{step}: {reason}' for step, reason in missing.items()]}
    reasons |= {name: [] for name in ('truncated', 'refusal', 'rubbish', 'language', 'repetition',
                                      'length')}
    for step, name in NAMES.items():
        row = rows[step]
        for kind, reason in _faults(row, step, pairs) if row else ():
            reasons[kind].append(f'{name}: {reason}')
    # 2. Each text against the questions.
    statements = rows['statements']
    information = rows['information']
    description = rows['descriptions']
    lines = statements_of(statements['text']) if statements else []
    if statements and not spoilt(statements):
        reasons['statements'] = _answered(pairs, lines)
    if information and not spoilt(information):
        reasons['leak'] = leak.leaks(pairs, information['text'])
    # 3. The description against the statements, by rules and by the judge.
    if description and not spoilt(description):
        verdicts = [(line, entail.judge(line, answer, description['text']))
                    for line, answer in zip(lines, answers_of(pairs, lines), strict=True)]
        reasons['entailed'] = [f'not in the description: {line}' for line, verdict in verdicts
                               if not verdict.entailed]
        reasons['contradiction'] = [f'{line} <> {verdict.against}' for line, verdict in verdicts
                                    if verdict.against]
        judgement = rows['judgements'] if judged else None
        if judgement:
            reasons['judge'] = _judged(judgement['text'], lines)
    return reasons


def spoilt(row: dict) -> bool:
    """Return whether no later step may build on a text: cut off, a refusal, a loop or rubbish."""
    return any(kind in ('truncated', 'refusal', 'rubbish', 'repetition')
               for kind, _ in _faults(row, None, ()))


def _faults(row, step, pairs):
    """Yield (check, reason) of what is wrong with a text as such.

    Without a `step` only what is wrong with any text: its script and length depend on the step.
    """
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
    if step:  # letters that the questions do not have, and too few or too many words
        asked = ' '.join(map(' '.join, pairs))
        if strange := scripts(text) - scripts(asked) - {'LATIN'}:
            yield 'language', f'{", ".join(sorted(strange)).lower()} letters'
        count = len(text.split())
        fewest, most = LENGTHS[step]
        if not fewest <= count <= most:
            yield 'length', f'{count} words, not {fewest} to {most}'


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
    # Prose is nearly all letters; tables, code and decoration are not.
    if sum(c.isalnum() for c in solid) < .6 * len(solid):
        yield 'hardly a letter'
    if text.strip()[0] in '[{' and text.strip()[-1] in ']}':
        yield 'JSON'
    words = text.split()
    if max(map(len, words)) > 60:
        yield 'a word of over 60 letters'


def scripts(text: str) -> set[str]:
    """Return the scripts of a text, as {'LATIN'}: each of a tenth of its letters or three in a row.

    The script of a letter is the first word of its Unicode name.
    """
    names = [unicodedata.name(c, '?').split()[0] for c in text if c.isalpha()]
    tally = Counter(names)
    runs = {a for a, b, c in zip(names, names[1:], names[2:]) if a == b == c}
    return {name for name, count in tally.items() if count >= .1 * len(names) or name in runs}


def loop_in(text: str) -> str:
    """Return what a text repeats, '' for nothing.

    That is a phrase three times without a break, or a sentence three times anywhere.
    """
    words = text.casefold().split()
    for n in (*range(1, 9), 12, 16, 24):
        # A word or two may stand there three times in a list of numbers; more is a loop.
        times = {1: 6, 2: 4}.get(n, 3)
        # n words stand there m times on end when n (m - 1) words equal the word n before them.
        same = 0
        for k in range(n, len(words)):
            same = same + 1 if words[k] == words[k - n] else 0
            if same >= n * (times - 1):
                return f'{" ".join(words[k - n + 1:k + 1])[:60]!r} {times} times'
    parts = Counter(part.strip() for part in re.split(r'(?<=[.!?])\s+|\n', text.casefold())
                    if len(part.split()) > 3)
    often = [part for part, count in parts.items() if count > 2]
    return f'{often[0][:60]!r} {parts[often[0]]} times' if often else ''


# --- statements -------------------------------------------------------------------------------

def answers_of(pairs: Sequence[tuple[str, str]], lines: Sequence[str]) -> list[str]:
    """Return what each statement asserts: the answer of its pair, '' where that is yes or no.

    Its pair is the one with which it shares most words, less the words of the question that it
    lacks; of equal ones the first.
    """
    answers = []
    for line in lines:
        words = set(content(line))
        ranked = []
        for k, (question, answer) in enumerate(map(leak.plain, pairs)):
            shared = len(words & set(content(f'{question} {answer}')))
            lacked = len(set(content(question)) - words)
            ranked.append((shared - lacked, -k, answer))
        answer = max(ranked)[2]
        answers.append('' if leak.is_polar(answer) else answer)
    return answers


def _answered(pairs, lines):
    """Return a reason for each pair that no statement covers.

    A statement covers a pair with all words of the answer and half of those of the question.
    """
    reasons = []
    if len(lines) > 2 * len(pairs):
        reasons.append(f'{len(lines)} statements for {len(pairs)} questions')
    bags = [set(content(line)) for line in lines]
    for pair in pairs:
        question, answer = leak.plain(pair)
        asked = set(content(question))
        wanted = set() if leak.is_polar(answer) else set(content(answer))
        if not any(wanted <= bag and len(asked & bag) * 2 >= len(asked) for bag in bags):
            reasons.append(f'no statement for: {question} {answer}')
    return reasons


def _judged(text, lines):
    verdicts = {int(number): verdict.lower() for number, verdict in _VERDICT.findall(text)}
    if not verdicts:
        return ['no verdict to read']
    return [f'not in the description: {line}' for k, line in enumerate(lines, 1)
            if verdicts.get(k) != 'yes']

"""Whether a reply says yes or no: exact-2 for such questions, and the rule of POPE."""
import re

from downscale.evaluate.scoring.statements import plain_reply, statements

_YES_WORDS = {**dict.fromkeys(('yes', 'yeah', 'yep', '是', '是的', '对', '有', 'はい', '네',
                               '예', 'да', 'oui',
                               'sí', 'si', 'ja', 'sim'), 'yes'),
              **dict.fromkeys(('no', 'nope', '否', '不是', '不', '没有', 'いいえ', '아니요',
                               '아니오', 'нет',
                               'non', 'nein', 'não'), 'no')}
_YES_NO = '|'.join(sorted(_YES_WORDS, key=len, reverse=True))
# 'No' in 'no doubt', 'no idea' and 'no kettle' at a head: the first two say nothing.
_IDIOM = r'(?!\s+(?:doubt|question|problem|idea|matter|wonder|way to|answer)\b)'
_HEAD_WORD = re.compile(r'[\W_]{0,9}(?:so|well|then|definitely|clearly)?[\W_]{0,9}'
                        rf'({_YES_NO})(?![a-zé]){_IDIOM}', re.IGNORECASE)
_LONE_WORD = re.compile(rf'[.!?:,\n]\s{{0,3}}[*_"\']{{0,3}}({_YES_NO})'
                        r'(?=[*_"\'\s]{0,5}(?:[.,!;\n]|$))', re.IGNORECASE)
_BOTH = re.compile(r'(?i:[\W_]{0,9}(?:yes|no)\W{0,4}(?:(?:and|or)\W{1,4}|/\W{0,3})(?:yes|no)\b)')
_CUE = re.compile(r'\b(?:wait|actually|correction|scratch that|on second thought)\b[\s,.:!-]{0,9}',
                  re.IGNORECASE)
_DOUBT = re.compile(r"(?i:\b(?:sure|certain|unclear|maybe|perhaps|might|may|could|possibly|sorry|"
                    r"(?:see|view|access|process|identify) (?:the|this|an?|any|your) "
                    r"(?:image|picture|photo)s?)\b)")
_IS_NOT = re.compile(
    r"(?i:\bthere(?:'s| is| are)(?:n't)? (?:no|not|never)\b|\bthere (?:isn't|aren't)\b"
    r"|\b(?:do not|don't|cannot|can not|can't) see\b|\b(?:does not|doesn't|do not|don't) "
    r"(?:contain|show|include|have|appear)\b|\b(?:is|are)(?: not|n't) (?:visible|present|there|"
    r"shown|in the|any)\b)")
_IS = re.compile(r"(?i:\W*(?:i (?:can )?see|there(?:'s| is| are)) (?:an?|the|one|two|three|some|"
                 r"several|many|\d+)\b)")


def pope(text: str, gold: str) -> float:
    """Return 1.0 for exactly the right word in any case, else 0.0 (lmms-eval: POPE).

    'Yes.' is wrong.
    """
    return float(text.lower().strip() == gold.lower().strip())


def yes_or_no(text: str) -> str:
    """Return 'yes' or 'no' as a reply says it; '' where it says both or neither.

    It may say so in a statement, of which the last counts, at its head, or as a sentence such as
    'There is no kettle'.
    """
    text = plain_reply(text)
    # 1. The last statement that begins with yes or no.
    start = 0
    answer = None
    for stated in statements(text):
        word = _HEAD_WORD.match(stated.text)
        if word:
            start = stated.start
            answer = '' if _BOTH.match(stated.text) else _YES_WORDS[word[1].casefold()]
            break
    # 2. A correction behind it ("wait, no") wins.
    for cue in reversed(list(_CUE.finditer(text, start))):
        changed = _HEAD_WORD.match(text, cue.end())
        if changed:
            return _YES_WORDS[changed[1].casefold()]
    if answer is not None:
        return answer
    # 3. Without a statement: the head of the reply and words that stand alone must agree.
    head = _HEAD_WORD.match(text)
    if head and _BOTH.match(text):
        return ''
    answers = {_YES_WORDS[word[1].casefold()] for word in _LONE_WORD.finditer(text)}
    if head:
        answers.add(_YES_WORDS[head[1].casefold()])
    if answers:
        return answers.pop() if len(answers) == 1 else ''
    # 4. No such word at all: a sentence that says whether something is there.
    return _of_sentence(text)


def _of_sentence(text):
    """Return what one sentence says of whether something is there; '' for anything else."""
    if '\n' in text or _DOUBT.search(text):
        return ''
    if _IS_NOT.search(text):
        return 'no'
    return 'yes' if _IS.match(text) else ''

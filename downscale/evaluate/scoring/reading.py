"""How an answer is read out of a reply: what stands behind 'Answer:', letters, and what counts."""
import re
import unicodedata

from downscale.data.records import THINK

# 'Answer: X', also as '**Answer:** X' and '**Answer**: X'.
_MARK = re.compile(r'\banswer[ *_]*:[ *_]*([^\n]*)', re.IGNORECASE)
_BOXED = re.compile(r'\\boxed\{([^{}]*)\}')
# An option: '(B) ..', 'B', 'B.', 'B) ..', 'B: ..'. In 'A cat' the letter is a word.
_OPTION = re.compile(r'\(([A-Z])\)|([A-Z])(?:[.:),]|$)')


def answer_of(text: str, by_line: bool, gold: str | None = None) -> str:
    """Return the answer in a reply: what stands behind its last 'Answer:'.

    Without that mark it is the last line or, not `by_line`, the whole reply. Where `gold` is
    an option letter the answer is one too, or '' when there is none to read.
    """
    text = text.strip()
    marked = _MARK.findall(text)
    if not marked and not by_line:
        return text
    answer = bare(marked[-1] if marked else text.rpartition('\n')[2])
    if gold is None or not re.fullmatch('[A-Z]', gold):
        return answer
    # Nothing is guessed: a word that only begins with the letter is no option.
    option = _OPTION.match(answer.upper())
    return option[1] or option[2] if option else ''


def bare(text: str) -> str:
    """Return `text` without a box, emphasis, quotes and a full stop around it."""
    return _BOXED.sub(r'\1', text).strip(' *_`$"\'').removesuffix('.').strip(' *_`$"\'')


def plain(text: str) -> str:
    """Return `text` as it is compared, without case, width of letters, blanks and final marks."""
    folded = unicodedata.normalize('NFKC', bare(text)).casefold()
    return ' '.join(folded.split()).strip('.,;:!? ')


def without_thought(text: str) -> str:
    """Return `text` behind its thought, whether the prompt opened it or not.

    A thought that never closes leaves ''.
    """
    before, closed, after = text.rpartition(THINK[1])
    if closed:
        return after.strip()
    return '' if THINK[0] in text else text


def lmms_without_thoughts(text: str) -> str:
    """Return `text` as lmms-eval 0.7 hands it to its scorers.

    Closed thoughts are cut out, an open one stays.
    """
    while THINK[0] in text and THINK[1] in text:
        start = text.find(THINK[0])
        end = text.find(THINK[1], start)
        if end < 0:
            break
        text = text[:start] + text[end + len(THINK[1]):]
    # The prompt may have opened the thought, so that the reply only closes it.
    if THINK[1] in text and THINK[0] not in text:
        text = text.rpartition(THINK[1])[2]
    return text.strip()

"""Published rules for short answers, choices and free descriptions (ROUGE-L)."""
import re
import string

from downscale.evaluate.scoring.vqa import normal_marks, one_line

LONGEST = 512  # letters of a description that count (LLaVA-NeXT, evaluate_interleave)
_WORD = re.compile(r'\b(\w)\b')
_NO_MARKS = str.maketrans('', '', string.punctuation)
_LETTER = re.compile(r'\b([A-E])\b', re.IGNORECASE)
_COMMA = re.compile(r'\d,\d')


def same_words(text: str, gold: str) -> float:
    """Return 1.0 where case and ASCII punctuation alone differ, else 0.0 (lmms-eval: GQA)."""
    return float(text.lower().translate(_NO_MARKS) == gold.lower().translate(_NO_MARKS))


def coin_equal(text: str, gold: str) -> float:
    """Return 1.0 where only case differs from the one answer, else 0.0 (CoIN: VQAv2, VizWiz)."""
    return float(text.upper() == gold.upper())


def coin_ocrvqa(text: str, gold: str) -> float:
    """Return `coin_equal`, but 0.0 for any text with 'Unanswerable' (CoIN: OCR-VQA)."""
    return float('Unanswerable' not in text and text.lower() == gold.lower())


def coin_imagenet(text: str, gold: str) -> float:
    """Return 1.0 where one contains the other, else 0.0 (CoIN: ImageNet).

    An empty reply is contained in every name, and right in the original; here it is wrong.
    """
    return float(bool(text) and (gold in text or text in gold))


def coin_scienceqa(text: str, count: int = 5) -> str:
    """Return the letter of one of `count` options, '' for none (CoIN: ScienceQA).

    It is the whole text, stands in front as 'X. ', or is the first lone letter of any kind.
    """
    if text in ('A', 'B', 'C', 'D', 'E'):
        letter = text
    elif text[:1] in ('A', 'B', 'C', 'D', 'E') and text[1:3] == '. ':
        letter = text[0]
    else:
        lone = _WORD.search(text)
        letter = lone[1].upper() if lone else ''
    return letter if letter and letter in 'ABCDE'[:count] else ''


def lmms_scienceqa(text: str, gold: str) -> float:
    """Return 1.0 for the letter alone or 'X.' in front, else 0.0 (lmms-eval: ScienceQA)."""
    text = text.strip()
    gold = gold.strip().lower()
    return float(text.lower() == gold
                 or text[:1].isupper() and text[1:2] == '.' and text[0].lower() == gold)


def preferred(letter: str, share: float) -> float:
    """Return what a choice is worth when `share` of people took B: 1 - share for A, share for B.

    Undecided people (0.5) give a half to either; no choice gives 0.0 (NIGHTS, PieAPP: 2AFC).
    """
    return {'A': 1.0 - share, 'B': float(share)}.get(letter, 0.0)


# --- tasks with several pictures -----------------------------------------------------------------

def interleave_words(text: str) -> str:
    """Return `text` as the multi-image tasks compare it: marks out, lower case."""
    bare = normal_marks(one_line(text), _COMMA)
    return bare.strip("'").strip('"').strip(')').strip('(').strip().lower()


def interleave_choice(text: str, gold: str) -> float:
    """Return 1.0 for equal words, or for a lone a-h between colons (evaluate_interleave)."""
    text = interleave_words(text)
    letters = [part.strip() for part in text.split(':')] if ':' in text else []
    for part in letters:
        text = part if len(part) == 1 and part in 'abcdefgh' else text
    return float(text == interleave_words(gold))


def lmms_interleave(text: str, gold: str) -> float:
    """Return 1.0 for the same letter A-E or the same words (lmms-eval: LLaVA-Interleave)."""
    return float(_choice(text) == _choice(gold))


def _choice(text):
    text = text.strip()
    before, _, line = text[2:].rpartition('\n')
    if text[:1].upper() in tuple('ABCDE') and text[1:2] == '.' and line and not before.strip():
        return text[0].upper()
    words = interleave_words(text)
    letter = _LETTER.search(words)
    return letter[1].upper() if letter else words


def rouge_l(text: str, gold: str) -> float | None:
    """Return ROUGE-L F1 of normalised words (evaluate_interleave).

    None where the gold has no words.
    """
    gold = interleave_words(gold)
    text = interleave_words(text)[:LONGEST]
    return rouge_f1(text, gold) if gold.strip('.') else None


def rouge_f1(text: str, gold: str) -> float:
    """Return the summary-level ROUGE-L F1 of the package `rouge`, over sets of words."""
    written = _sentences(text)
    right = _sentences(gold)
    words_written = set().union(*written)
    words_right = set().union(*right)
    if not words_written or not words_right:
        return 0.0
    common = set()
    for sentence in right:
        for other in written:
            common |= common_words(sentence, other)
    precision = len(common) / len(words_written)
    recall = len(common) / len(words_right)
    # The small number is the package's: two equal texts score 1 - 5e-9.
    return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(text):
    """Return the words of each part that ends in '.'; a part of blanks is one empty word."""
    return [' '.join(part.split()).split(' ') for part in text.split('.') if part]


def common_words(sentence: list[str], other: list[str]) -> set[str]:
    """Return the words of the longest common subsequence that is found from the end."""
    # lengths[i][j]: of the longest common subsequence of the first i and the first j words.
    lengths = [[0] * (len(other) + 1)]
    for word in sentence:
        row = [0]
        above = lengths[-1]
        for k, candidate in enumerate(other):
            row.append(above[k] + 1 if word == candidate else max(row[k], above[k + 1]))
        lengths.append(row)
    common = set()
    i = len(sentence)
    j = len(other)
    while i and j:
        if sentence[i - 1] == other[j - 1]:
            common.add(sentence[i - 1])
            i -= 1
            j -= 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return common

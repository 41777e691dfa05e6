"""Where a reply states its answer, and short answers read out of it: exact-2 for words and numbers.

A reply is first made plain: width and script of marks, LaTeX and emphasis do not count. A statement
is what stands behind 'Answer:', inside a box or a tag, behind 'the answer is', or the same in some
other languages. Of several the last that can be read counts, so that a reply may correct itself.
"""
import re
import unicodedata
from dataclasses import dataclass

from downscale.data.records import THINK

# A box is kept as two marks, because braces of its content are removed with the others.
OPEN_BOX = '\x01'
CLOSE_BOX = '\x02'


def _plain_marks(*rows):
    """Return the table of `str.translate`; of a mark in two rows the later one counts."""
    table = {}
    for marks, plain in rows:
        table |= str.maketrans(dict.fromkeys(marks, plain))
    return table


_MARKS = _plain_marks(
    ('。．｡।。', '.'), ('、،‚', ','), ('：﹕', ':'), ('“”„«»「」『』《》〈〉', '"'),
    ('‘’‚`', "'"), ('【〔［', '['), ('】〕］', ']'), ('–—―−‐‑', '-'),
    ('\u200b\u200c\u200d\u2060\ufeff', None), (OPEN_BOX + CLOSE_BOX, ' '))
_BOX = re.compile(r'\\f?boxed\s*\{([^{}]*)\}')
_COMMAND = re.compile(r'\\(?:text|math|operator)[a-z]*\s*\{([^{}]*)\}')
_BOXES = re.compile(rf'{CLOSE_BOX}([ $,;/&]*(?:and |or )?[ $]*){OPEN_BOX}')  # side by side
_LATEX = re.compile(r'\\[()\[\],;!]|\$')
_TAG = re.compile(r'</?(?:b|i|u|em|strong|p|br|span|code|mark)\s*/?>', re.IGNORECASE)
_ROLE = re.compile(r'(?:assistant|model|gpt|ai)\s*:\s*', re.IGNORECASE)
DEEP = 6  # commands inside one another that are read: \boxed{\mathbf{\text{B}}} has three
# Where a base model goes on with the next question of its own, or past its end mark.
_NEXT = re.compile(r'\n[\s#*]*(?:question|q|user|human|instruction|问题|問題)\s*\d*[\s*]*:'
                   r'|<\|(?:im_end|endoftext|eot_id|end)\|>|</s>', re.IGNORECASE)

_ANSWER = (r'(?:answer|ans|solution|conclusion|selection|prediction|result|decision|verdict|'
           r'antwort|respuesta|réponse|resposta|risposta|ответ|'
           r'jawaban|cevap|odpowiedź|الإجابة|الجواب|उत्तर|đáp án)')
_LINK = (r'(?:(?P<colon>[:=])|(?:is|should be|would be|must be|will be|has to be|est|es|ist|é|è|'
         r'это|->|=>|→)(?!\w))')
_STATEMENT = re.compile(
    rf'(?P<box>{OPEN_BOX})|(?P<tag><\s*(?:answer|ans|final_answer)\s*>)'
    rf'|(?:\b(?:{_ANSWER}|option|choice)\b|\b(?:correct|right|best)\s+\w+)[^\w\n]{{0,6}}?'
    rf'(?:\([^()\n]{{0,30}}\)|\s(?:to|for|among|of|in|from)\s[^\n.:?]{{1,60}}?)?[^\w\n:=]{{0,6}}?{_LINK}'
    rf'|(?P<heading>(?:^|(?<=\n))[^\w\n]*(?:final\s|correct\s|my\s|the\s)*{_ANSWER}[^\w\n]*(?=\n))'
    r"|\b(?:i|we)(?:'d|'ll| would| will)?\s(?:choose|pick|select|go with|opt for)\b"
    r'|(?:答案|答え|正解|回答|选项|選項|정답|답|选择?|選擇?)(?:应该|應該)?(?:(?P<sign>:)|是|为|為|は|은|는)?',
    re.IGNORECASE)
_DRESS = re.compile(r'[\s*_\'"#>:=~]*')
_LEAD = re.compile(r"(?:so|therefore|thus|hence|it is|it's|this is|that is|they are)\b[\s,:]*",
                   re.IGNORECASE)
_CLAUSE = re.compile(r'\.\s|\s-{1,3}\s|[;(\[]|\s(?:because|since|as it|as the|given that)\b',
                     re.IGNORECASE)
# What follows a clause does not explain it but names more.
_MORE = re.compile(r'[\s(\[.,;-]*(?:(?:or|and|maybe|possibly|also)\b|\d)', re.IGNORECASE)
_ARTICLE = re.compile(r'(?:a|an|the)\s+(?=\S)')
_NUMBER = re.compile(r'(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w.]*\d)')
_YES = re.compile(r'\W*(?:yes|no)\b', re.IGNORECASE)
_SMALL = {word: str(k) for k, word in enumerate(
    ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten',
     'eleven', 'twelve', 'thirteen', 'fourteen', 'fifteen', 'sixteen', 'seventeen', 'eighteen',
     'nineteen', 'twenty'))}
_SMALL_WORD = re.compile(rf'(?<![\w-])(?:{"|".join(_SMALL)})(?![\w-])')


@dataclass(frozen=True)
class Statement:
    """What stands from `start` to the end of its line or mark in a plain reply.

    It is `sure` where a colon, a box, a tag or a heading announces it, and not only a word such as
    'is'.
    """
    start: int
    text: str
    sure: bool


def behind_thought(text: str) -> str:
    """Return `text` behind its thought, which ends at the first `</think>`.

    Of a thought that never closes it is what stands before. Later marks belong to the answer, as
    for an engine, which closes a thought once.
    """
    before, closed, after = text.partition(THINK[1])
    return after if closed else before.partition(THINK[0])[0]


def plain_reply(text: str) -> str:
    """Return `text` with plain marks and letters, and boxes as two control characters.

    What a model writes behind its answer is cut off: a next question, marks of an end.
    """
    text = _plain(text.strip())
    role = _ROLE.match(text)
    following = goes_on(text)
    return text[role.end() if role else 0:following]


def goes_on(text: str) -> int | None:
    """Return where a model goes on behind its answer, None where it does not."""
    following = _NEXT.search(text)
    return following.start() if following and text[:following.start()].strip() else None


def _plain(text):
    if not text.isascii():
        text = unicodedata.normalize('NFKC', text)
    text = text.translate(_MARKS)
    if '\\' in text or '$' in text:
        # From the inside out: a command's braces hold no others once those inside are gone.
        for _ in range(DEEP):
            before = text
            text = _BOX.sub(OPEN_BOX + r'\1' + CLOSE_BOX, _COMMAND.sub(r'\1', text))
            if text == before:
                break
        text = _LATEX.sub(' ', _BOXES.sub(r'\1', text))
    return _TAG.sub('', text) if '<' in text else text


def statements(text: str) -> list[Statement]:
    """Return the `Statement`s of a plain reply, the last first."""
    stated = []
    # From the end, as each statement reaches at most to the mark of the next.
    end = len(text)
    for mark in reversed(list(_STATEMENT.finditer(text))):
        start = _DRESS.match(text, mark.end()).end()
        stop = '\n'
        if mark['box']:
            stop = CLOSE_BOX
        elif mark['tag']:
            stop = '<'
        place = text.find(stop, start, end)
        sure = any(mark[name] for name in ('box', 'tag', 'colon', 'sign', 'heading'))
        if start <= end:
            stated.append(Statement(start, text[start:end if place < 0 else place], sure))
        end = mark.start()
    return stated


# --- words and numbers ------------------------------------------------------------------------

def short_answer(text: str) -> str:
    """Return the short answer in a reply: its last sure statement, else its last one, else a line.

    Without a statement the first or the last line is the answer, whichever has fewer words: an
    explanation may stand behind or before. Of equally many the last counts.
    """
    text = plain_reply(text)
    # "Answer: B" is surer than a later "which is ...", whatever stands behind it.
    there = [stated for stated in statements(text) if stated.text.strip()]
    if there:
        return next((stated for stated in there if stated.sure), there[0]).text.strip()
    lines = [line for line in text.split('\n') if line.strip()] or ['']
    first = lines[0]
    last = lines[-1]
    return (first if len(first.split()) < len(last.split()) else last).strip()


def same_answer(text: str, gold: str) -> bool:
    """Return whether a short answer says what `gold` says.

    Case, marks, articles, the writing of numbers and an explanation behind it do not count.
    """
    # '3' and 'three apples' say one number; 'yes, 3' says another thing first.
    wanted = _words(_plain(gold))
    number = _value(wanted)
    if number is not None:
        return any(_only_number(form) == number for form in _forms(text))
    return bool(wanted) and any(_words(form) == wanted for form in _forms(text))


def _forms(text):
    """Yield `text` and its first clause, both also without 'it is' in front."""
    yield text
    bare = _LEAD.sub('', text, count=1) if _LEAD.match(text) else text
    yield bare
    clause = _CLAUSE.search(bare)
    if clause and not _MORE.match(bare, clause.start()):
        yield bare[:clause.start()]


def _words(text):
    """Return `text` as it is compared."""
    text = ' '.join(text.casefold().replace('*', ' ').split()).strip(' _`$"\'.,;:!?()[]{}#>')
    text = _ARTICLE.sub('', text) if _ARTICLE.match(text) else text
    return _SMALL_WORD.sub(lambda word: _SMALL[word[0]], text)


def _value(text):
    """Return the number that a text is, None for any other text."""
    text = text.removesuffix('%').strip()
    return float(text.replace(',', '')) if _NUMBER.fullmatch(text) else None


def _only_number(text):
    """Return the one number that a text names, None where it names several, none, or yes or no."""
    if _YES.match(text):
        return None
    text = _SMALL_WORD.sub(lambda word: _SMALL[word[0]], text.casefold())
    numbers = {float(number.replace(',', '')) for number in _NUMBER.findall(text)}
    return numbers.pop() if len(numbers) == 1 else None

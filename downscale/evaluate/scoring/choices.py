"""Which one option a reply chooses: exact-2 for multiple choice.

An option is named by its key ('B', '(B)', '**B.**', 'option b') or by its text. A reply that names
several options as its answer, none, or only those that it rules out has chosen nothing: '' is the
value, never a guess. Small letters count in brackets, before a mark or alone: 'a' is an article.
"""
import re
from collections.abc import Iterable
from functools import cached_property, lru_cache

from downscale.evaluate.scoring.statements import goes_on, plain_reply, statements

LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
REACH = 1000  # letters of a statement in which further keys are looked for
NOTHING = ''  # a reply, or its last statement, that chooses no one option

# Runs of marks are bounded, so that no reply of 100,000 marks takes longer than one of words.
_CLOSERS = r'''[\s)\]}>.:?!*_"'#-]{0,9}'''
_OPENERS = r'''[\s(\[{<*_"'#-]{0,9}'''
_LEAD = (r"""(?:[\s*_"'#>:=~.,({\[<-]|(?i:(?:so|therefore|thus|hence|it|this|that|is|it's|that's"""
         r'|must'
         r'|be|would|should|probably|likely|most|clearly|definitely|simply|the|my|i|think|believe'
         r'|final|correct|right|best|answer|choice|option|letter|number|label|either|both'
         r"""|选项|選項)(?![A-Za-z0-9']))){0,30}?""")
_JOIN = (r'(?:\s{0,3}(?:,|/|&|\+|;|\||(?i:\b(?:and|or|und|oder|et|ou|y|o|e|и|или)\b)|或者?|和|及'
         r'|与|與|や|と|または|또는)){1,3}')
_AFTER = re.compile(r'\s*(?:$|[^\s\w]|(?:because|as|since|for|is|was|would|seems|due|which|with|'
                    r'given|based|but|so|from|and|not|over|rather|instead|of|选项|選項)\b|[^\x00-\x7f])',
                    re.IGNORECASE)
_WRONG = re.compile(r"""[\s)\].:*"']{0,9},?\s?(?:which\s+|that\s+)?(?:(?:is|was|are|seems)\s+"""
                    r"""(?:not\b|wrong|incorrect|false|impossible|unlikely|ruled|out\b)|isn't|cannot|can't"""
                    r"""|can\s+be\s+ruled)""", re.IGNORECASE)
_NOT = r"(?i:not|isn't|never|no longer|不是|nicht|no es|n'est pas)\s*(?i:option|choice|answer)?"
_NONE = re.compile(r"""\W*(?:it\s+is\s+|it's\s+)?(?:neither|none|both|either|all\s+of|unknown"""
                   r"""|unclear|undetermined|undecided|cannot|can't|not|impossible|n/?a)\b""",
                   re.IGNORECASE)
_INSTEAD = re.compile(r"""[\s,.;:-]*(?:but|rather|instead|it\s+is|it's|sondern|而是)\b""",
                      re.IGNORECASE)
_CHANGED = re.compile(r'\b(?:wait|actually|correction|scratch that|on second thought|i mean)\b'
                      r'[\s,.:!-]*(?:no\b[\s,.:!-]*)?', re.IGNORECASE)
_TAKEN_BACK = re.compile(r"""\b(?:wait,? no|no,? wait|scratch that|i was wrong"""
                         r"""|that(?:'s|\s+is|\s+was)\s+(?:wrong|incorrect|not right))\b""",
                         re.IGNORECASE)
_ENDING = re.compile(r'\b(?:so|therefore|thus|hence|consequently)\b(?=[^.\n]*[.\n]?\s*$)',
                     re.IGNORECASE)
_DENIED = re.compile(r"\b(?:not|no|never|without|neither|nor|isn't|aren't|rather than)\s+"
                     r"(?:an?\s+|the\s+|any\s+|of\s+)?$")
# In front of 'B is correct': it is one of several, or asked or denied.
_BEFORE = re.compile(r'(?:\b(?:n?or|and|not|if|whether)|[,/&])(?:\s+option)?$', re.IGNORECASE)
_ITEM = re.compile(r'^([a-z0-9]+)[).:]+\s*(?:an? |the )?')
_SENTENCE = re.compile(r'[.;\n](?:\s|$)')
_AROUND = ' )]}>.:*_"\'-'
_ARTICLE = re.compile(r'(?:a|an|the)\s+(?=\S)')


class Keys:
    """The patterns of one tuple of keys; those of 'ABCD' are the same for every row."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.key = {}
        for key in keys:
            self.key |= dict.fromkeys((key.lower(), key.upper(), key), key)
        upper, lower = (self._any(map(case, keys)) for case in (str.upper, str.lower))
        end = r"(?![A-Za-z0-9]|['-][A-Za-z]|\.\d)"
        self.quick = re.compile(
            r'[\s*_#]{0,9}(?P<mark>(?:final\s|the\s|correct\s){0,3}answer[\s*_]{0,5}(?::|is\b)'
            rf'[\s*_:]{{0,5}})?[\s(*_\[]{{0,5}}(?P<key>{upper})(?:[\s*_.)\]]{{0,9}}'
            r'|[.:)]{1,2} (?P<text>[^\n]*?)[.*]{0,3})', re.IGNORECASE)
        self.head = re.compile(
            rf'{_LEAD}(?:(?P<sure>[(\[{{<"\'*_]{{0,9}})(?P<upper>{upper}){end}'
            rf'|[(\[{{]\s*(?P<boxed>{lower})\s*[)\]}}]|(?i:option|choice|letter)\W{{1,4}}'
            rf'(?P<called>{lower}){end}|(?P<lower>{lower})(?=\s*(?:[).:](?![A-Za-z0-9])'
            rf'|["\'*_\])}}.\s]{{0,9}}$)))')
        self.joined = re.compile(rf'{_CLOSERS}{_JOIN}{_OPENERS}(?i:(?:option|choice|possibly|maybe|'
                                 rf'perhaps|also|even)\s{{0,3}}){{0,3}}{_OPENERS}(?P<key>{upper}|{lower}|[A-J]){end}')
        self.beside = re.compile(rf'(?=\W){_CLOSERS}{_OPENERS}(?P<key>{upper}){end}')
        self.denied = re.compile(rf'{_LEAD}{_NOT}{_OPENERS}(?P<key>{upper}|[(\[]{lower}[)\]])'
                                 rf'{_CLOSERS}')
        self.praised = re.compile(
            rf'(?<![A-Za-z0-9])(?P<key>{upper})[)\]"\'*.:]{{0,3}}\s+(?i:is|was|must be|seems|would '
            r'be|should be)\s+(?i:clearly\s|definitely\s|most\s|likely\s|the\s|probably\s)*'
            r'(?i:correct|best|right(?!\s+(?:next|of|in|on|at|beside|above|below|to|behind)))\b')

    @staticmethod
    def _any(keys):
        return '|'.join(map(re.escape, sorted(keys, key=len, reverse=True)))


keys_of = lru_cache(maxsize=256)(Keys)


class Options:
    """(key, text) options that replies choose from; a text may be '' where it is not known."""

    def __init__(self, choices: Iterable[tuple[str, str]]) -> None:
        self.texts = {key: text for key, text in choices}
        self.keys = keys_of(tuple(self.texts))

    @cached_property
    def plain(self) -> dict[str, str]:
        """{text as it is compared: key}, without texts of two options and empty ones."""
        pairs = [(_compared(plain_reply(text)), key) for key, text in self.texts.items()]
        forms = [form for form, _ in pairs]
        return {form: key for form, key in pairs if form and forms.count(form) == 1}

    def chosen(self, text: str) -> str:
        """Return the key of the one option that a reply chooses, else ''."""
        return self._quick(text) or _Reading(self, plain_reply(text)).answer() or NOTHING

    def _quick(self, text):
        """Return the key of a reply that needs no closer look, else None; most are such.

        The reply, or its last line behind a mark, is a dressed capital alone or with its text.
        """
        text = text.strip()
        line = text[text.rfind('\n') + 1:]
        alone = self.keys.quick.fullmatch(line)
        if alone and alone['text'] in (None, self.texts.get(alone['key'])) \
                and alone['key'] in self.texts and (
                    len(line) == len(text) or alone['mark'] and goes_on(text) is None):
            return alone['key']
        return None

    def gold(self, text: str) -> str | None:
        """Return the key that an answer of the data names, None where it names none.

        It may do so as replies do, by the option's text, or by its number from 0.
        """
        text = plain_reply(text)
        head = self.keys.head.match(text)
        if head:
            key = self.keys.key[_matched(head)]
            rest = text[head.end():].strip(_AROUND + '\n')
            if not rest or _compared(rest) == _compared(plain_reply(self.texts[key])):
                return key
        # A number is a place only where no option is that number.
        same = self.plain.get(_compared(text))
        number = text.strip()
        if same is None and any(self.texts.values()) and number.isdecimal() and len(number) < 4 \
                and int(number) < len(self.texts):
            return list(self.texts)[int(number)]
        return same


class _Reading:
    """One plain reply to some options; methods return a key, '' for several, None for nothing."""

    def __init__(self, options, text):
        self.texts = options.texts
        self.keys = options.keys
        self.text = text
        self.plain = options.plain
        self.longest = sorted(self.plain, key=len, reverse=True)

    def answer(self):
        """Return what the last statement chooses that says something, else the reply itself.

        A later correction wins.
        """
        # A statement is a text; praise of a key ('B is correct') is a match.
        places = [(stated.start, stated.text) for stated in statements(self.text)]
        places += [(praised.start(), praised) for praised in self.keys.praised.finditer(self.text)]
        for start, stated in sorted(places, key=lambda place: -place[0]):
            key = self.segment(stated) if isinstance(stated, str) else self._praised(stated)
            if key is not None:
                return NOTHING if self._goes_on(start, key) else self._changed(start, key)
        key = self._lines()
        return key if key is None else self._changed(0, key)

    def _goes_on(self, start, key):
        """Return whether the line behind that of a statement is another option and nothing else."""
        # 'Answer: A' above a line 'B' is a list of answers, not an answer and a remark.
        line = self.text[start:start + REACH].partition('\n')[2].lstrip().partition('\n')[0]
        other = self.plain.get(_compared(line)) or self._firm(line)
        return bool(key and other) and other != key

    def _praised(self, praise):
        before = self.text[max(0, praise.start() - 40):praise.start()].rstrip(' (["\'*')
        return NOTHING if _BEFORE.search(before) else self.keys.key[praise['key']]

    def _changed(self, start, key):
        """Return `key`, or what a correction behind `start` names.

        An answer that was taken back without another one is ''.
        """
        for change in reversed(list(_CHANGED.finditer(self.text, start))):
            other = self._label(self.text[change.end():].partition('\n')[0], strict=True)
            if other is not None:
                return other
        return NOTHING if _TAKEN_BACK.search(self.text, start) else key

    def _lines(self):
        """Return what a reply without a statement says.

        Of several lines the first and the last must agree, as must all that begin with a key.
        """
        # 1. One line is read whole.
        lines = self._without_listing([line for line in self.text.split('\n') if line.strip()])
        if len(lines) == 1:
            key = self.segment(lines[0], strict=True)
            return self._conclusion(lines[0]) if key is None else key
        # 2. The first and the last line, where they are a key, or a key and its text.
        sides = {self._firm(line) for line in lines[:1] + lines[-1:]} - {None}
        if sides:
            return sides.pop() if len(sides) == 1 else NOTHING
        # 3. Lines that begin with a key: one in the middle alone is no answer.
        labels = [self._label(line, strict=True) for line in lines]
        keys = {key for key in labels if key is not None}
        if len(keys) == 1 and (labels[0] or labels[-1]):
            return keys.pop()
        if keys:
            return NOTHING
        # 4. The end of a conclusion ("so B"), else the one option whose text is a line.
        last = self._conclusion(lines[-1]) if lines else None
        texts = {self.plain.get(_compared(line)) for line in lines} - {None}
        return texts.pop() if last is None and len(texts) == 1 else last

    def _firm(self, line):
        """Return the key of a line that holds nothing but a key, or a key and its text."""
        key = self._label(line, strict=True)
        head = self.keys.head.match(line)
        if not key or not head:
            return key
        rest = line[head.end():]
        return None if re.search(r'\w', rest[self._own_text(key, rest):]) else key

    def _without_listing(self, lines):
        """Return `lines` without those that repeat the options, where all of them stand there."""
        # Some models repeat the question's options before they answer.
        wanted = {f'{key} {_compared(plain_reply(text))}'.casefold()
                  for key, text in self.texts.items()}
        rows = [_ITEM.sub(r'\1 ', _compared(line)) for line in lines]
        if len(lines) > len(wanted) and wanted <= set(rows):
            return [line for line, row in zip(lines, rows) if row not in wanted]
        return lines

    def _conclusion(self, line):
        ending = _ENDING.search(line)
        return ending and self._label(line[ending.end():], strict=True)

    def segment(self, text, strict=False):
        """Return what a statement, or (`strict`) a reply of one line, names.

        It may be the text of an option, a key, or such a text among other words.
        """
        same = self.plain.get(_compared(text))
        if same is not None and text.strip() not in self.texts:
            return same
        key = self._label(text, strict)
        if key is not None:
            return key
        named = self._named(text)
        if named:
            return named.pop() if len(named) == 1 else NOTHING
        return NOTHING if _NONE.match(text) else None

    def _label(self, text, strict=False):
        """Return the key at the head of `text`; '' where others are joined to it."""
        text = text[:REACH]
        # 'not B, but C' names C.
        denied = self.keys.denied.match(text)
        if denied:
            rest = text[denied.end():]
            instead = _INSTEAD.match(rest)
            key = self._label(rest[instead.end():] if instead else rest, strict=True)
            return NOTHING if key is None else key
        head = self.keys.head.match(text)
        if not head:
            return None
        key = self.keys.key[_matched(head)]
        rest = text[head.end():]
        if _WRONG.match(rest):
            return None
        length = self._own_text(key, rest)
        if self._more(key, rest) or length and self._more(key, rest[length:]):
            return NOTHING
        # 'A' and 'I' are words as well: undressed, what follows must show that they are keys.
        word = head['upper'] in ('A', 'I') and not head['sure']
        if (strict or word) and not length and not _AFTER.match(rest):
            return None
        # 'B' followed by the text of another option contradicts itself.
        clause = self.plain.get(_compared(_SENTENCE.split(rest.strip(_AROUND), maxsplit=1)[0]))
        return key if clause in (None, key) else NOTHING

    def _own_text(self, key, rest):
        """Return how many characters of `rest` the text of option `key` ends at; 0 for none."""
        text = plain_reply(self.texts.get(key, '')).strip().rstrip('.').casefold()
        start = len(rest) - len(rest.lstrip(_AROUND + '(['))
        there = rest[start:start + len(text)].casefold() == text
        return start + len(text) if text and there \
            and not rest[start + len(text):start + len(text) + 1].isalnum() else 0

    def _more(self, key, rest):
        """Return whether another key is joined to `key` at the head of `rest`."""
        # A key may be joined to itself ('B and (B)'): then what follows is looked at.
        while True:
            joined = self.keys.joined.match(rest)
            beside = joined or self.keys.beside.match(rest)
            if not beside:
                return False
            other = self.keys.key.get(beside['key'])  # None for a letter that is no option
            tail = rest[beside.end():]
            word = beside['key'] in ('A', 'I', 'a', 'i') or beside['key'].islower()
            if joined and word and not _AFTER.match(tail) and not self._own_text(other, tail):
                return False
            lone = not tail.strip(_AROUND + '?!\n') or self.keys.joined.match(tail) \
                or self.keys.beside.match(tail) or self._own_text(other, tail)
            if not joined and not lone:
                return False
            if other != key:
                return True
            rest = tail

    def _named(self, text):
        """Return the keys whose texts stand in `text` as whole words and are not denied."""
        text = ' '.join(text.casefold().split())
        keys = set()
        taken = bytearray(len(text))
        # The longest first: 'red' inside 'dark red' names nothing of its own.
        for form in self.longest:
            for match in re.finditer(re.escape(form), text):
                start, end = match.span()
                if _is_whole(text, start, end) and not taken[start]:
                    taken[start:end] = b'\1' * (end - start)
                    if not _DENIED.search(text[max(0, start - 20):start]):
                        keys.add(self.plain[form])
        return keys


def _is_whole(text, start, end):
    """Return whether no word and no number of `text` is cut at `start` or `end`."""
    if text[start - 1:start].isalnum() or text[end:end + 1].isalnum():
        return False
    number = text[start].isdigit() and text[max(0, start - 2):start - 1].isdigit() \
        and text[start - 1] in '.,'
    return not number and not (text[end - 1].isdigit() and re.match(r'[.,]\d', text[end:end + 2]))


def _matched(head):
    """Return the key as it stands in a match of `Keys.head`."""
    return head['upper'] or head['boxed'] or head['called'] or head['lower']


def _compared(text):
    """Return `text` as texts of options are compared, without case, marks around and articles."""
    text = ' '.join(text.casefold().replace('*', ' ').split()).strip(' _`$"\'.,;:!?()[]{}#>\x02')
    text = text.removeprefix('- ')
    return _ARTICLE.sub('', text) if _ARTICLE.match(text) else text

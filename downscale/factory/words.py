"""Texts as the checks compare them: content words, numbers, what is denied, what goes with what.

English only. Everything here is deliberately shallow: it must be fast, the same on every machine,
and wrong only in ways that a person can follow.
"""
import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

try:
    import snowballstemmer
except ImportError:
    raise ImportError("no snowballstemmer; pip install 'downscale[extract]'") from None


def _set(text):
    return frozenset(text.split())


_UNITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten',
          'eleven', 'twelve', 'thirteen', 'fourteen', 'fifteen', 'sixteen', 'seventeen',
          'eighteen', 'nineteen', 'twenty')
_TENS = ('thirty', 'forty', 'fifty', 'sixty', 'seventy', 'eighty', 'ninety', 'hundred')
NUMBERS = {word: str(k) for k, word in enumerate(_UNITS)} | {
    word: str(10 * k) for k, word in enumerate(_TENS, 3)}
BE = _set('is are was were be been looks look appears appear seems seem')
STOP = BE | _set(
    'a an the this that these those it its their they he she his her him them being am do does did '
    'has have had there here of to and or with by as for from can could will would which who whom '
    'what where when how whose why if whether also very just some any so than then in on at into '
    'onto near beside while but both all each every other another i you we our your my me image '
    'picture photo photograph scene shown visible seen see appearing located '
    'ca wo sha')  # of can't, won't, shan't
NEGATORS = _set('not no never without none neither nor nobody nothing cannot')
RELATIVE = _set('which that who')
BORDERS = RELATIVE | _set(', ; : and but or while where')
PLACES = _set('at in on of with near by beside before from to under behind above below inside over '
              'against')
PRONOUNS = _set('it they this these he she its their his her')
# A word that names a kind of value adds nothing to the value: 'the color of the car is red'.
KINDS = _set('color colour size number count total amount')
# Class -> its values, of which a thing has one.
_VALUES = {
    'color': 'red green blue yellow purple orange cyan pink brown black white gray grey golden '
             'silver beige violet turquoise magenta maroon navy teal',
    'size': 'small large big tiny huge little',
    'material': 'wood metal plastic leather',
    'state': 'open closed', 'power': 'lit unlit', 'wet': 'wet dry', 'full': 'full empty',
    'time': 'day night', 'weather': 'sunny cloudy rainy snowy foggy', 'age': 'young old',
    'side': 'left right', 'height': 'top bottom', 'texture': 'striped plain checkered dotted'}
CLASSES = {}  # value -> its class
for _class, _words_of_class in _VALUES.items():
    CLASSES |= dict.fromkeys(_words_of_class.split(), _class)
SAME = {'grey': 'gray', 'big': 'large', 'huge': 'large', 'tiny': 'small', 'little': 'small',
        'colour': 'color', 'people': 'person', 'men': 'man', 'women': 'woman',
        'children': 'child', 'longer': 'taller', 'bigger': 'larger',
        'wooden': 'wood', 'metallic': 'metal'}
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*(?:[.,:/]\d+)*|[,;:]")
_SENTENCE = re.compile(r'(?<=[.!?;])\s+|\n+')
_stemmer = snowballstemmer.stemmer('english')


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of a sentence, as written (`raw`) and as compared (`stem`).

    `content` is whether it says something by itself, `denied` whether a negation reaches it.
    """
    raw: str
    stem: str
    content: bool
    denied: bool = False

    @property
    def kind(self) -> str:
        """The class of a value ('number', 'color', ...), '' for a word that is no value."""
        if self.stem[0].isdigit() and self.stem.replace('.', '').isdigit():
            return 'number'
        return CLASSES.get(self.raw, '')


def sentences(text: str) -> list[tuple[Word, ...]]:
    """Return the sentences of a text that have content, as tuples of `Word`.

    A sentence that begins with a pronoun is preceded by the words of the one before it.
    """
    parts = []
    for part in _SENTENCE.split(text):
        words = _words(part)
        if parts and words and words[0].raw in PRONOUNS:
            parts.append((*parts[-1], *words))
        elif any(word.content for word in words):
            parts.append(words)
    return parts


@functools.lru_cache(maxsize=50_000)
def _words(text):
    folded = unicodedata.normalize('NFKC', text).casefold()
    raws = []
    for match in _WORD.findall(folded):
        raws += _apart(match)
    words = []
    left = 0  # how many more words of content a negation reaches
    negated = False
    for k, raw in enumerate(raws):
        has_content = raw not in STOP and raw not in NEGATORS and raw[0].isalnum()
        before = raws[k - 1] if k else ''
        if raw == 'one' and before in ('each', 'every', 'this', 'that', 'the', 'which', 'no', 'any',
                                       'other', 'another'):
            has_content = False  # a pronoun, no number
        if raw in BORDERS:
            left = 0
        elif raw in NEGATORS:
            left = 3
            negated = True
        denied = has_content and left > 0
        words.append(
            Word(raw=SAME.get(raw, raw), stem=stem(raw), content=has_content, denied=denied))
        left -= denied
    # A negation at the end reaches nothing behind it, so it denies the whole sentence.
    if negated and not any(word.denied for word in words):  # 'the lights are not on'
        words = [replace(word, denied=word.content) for word in words]
    return tuple(words)


def _apart(raw):
    """Return a word without what an apostrophe joins to it; "isn't" is 'is' and 'not'."""
    head, mark, tail = raw.replace('’', "'").partition("'")
    if mark and tail == 't' and head.endswith('n'):
        return [head[:-1] or 'not', 'not']
    return [head]


@functools.lru_cache(maxsize=50_000)
def stem(raw: str) -> str:
    """Return a word without its ending (Snowball's English stemmer), a number word as digits."""
    raw = SAME.get(raw, raw)
    if raw in NUMBERS:
        return NUMBERS[raw]
    stemmed = _stemmer.stemWord(raw)
    return SAME.get(stemmed, stemmed)


def content(text: str) -> list[str]:
    """Return the stems of the content words of a text, in order, without words of `KINDS`."""
    stems = []
    for part in _SENTENCE.split(text):
        stems += [word.stem for word in _words(part) if word.content and word.raw not in KINDS]
    return stems


# --- what goes with what ----------------------------------------------------------------------

@dataclass(frozen=True, kw_only=True)
class Binding:
    """A value of a class that a sentence gives to the thing that `heads` (stems) name.

    `said` is whether it asserts the value ('the car is red') or picks a thing by it ('a red car').
    """
    kind: str
    value: str
    heads: frozenset[str]
    denied: bool
    said: bool


def bindings(words: Sequence[Word]) -> list[Binding]:
    """Return the `Binding`s of a sentence.

    A value belongs to the noun behind it or, without one, to the subject of its clause.
    """
    bound = []
    for k, word in enumerate(words):
        if not word.kind or not word.content:
            continue
        heads = _described(words, k)
        # 'There is a red car' asserts it, while 'the red car' picks one.
        asserted = words[0].raw == 'there'
        if not heads:
            heads = _subject(words, k)
            asserted = True
        if heads:
            bound.append(
                Binding(
                    kind=word.kind,
                    value=word.stem,
                    heads=frozenset(heads),
                    denied=word.denied,
                    said=asserted,
                )
            )
    return bound


def _described(words, k):
    """Return the stems that the value `words[k]` stands before.

    For a number these are all words up to the noun ('two red cars'), for other values the noun.
    """
    counts = words[k].kind == 'number'
    heads = []
    for word in words[k + 1:]:
        if not word.content or word.kind == 'number':
            break
        heads.append(word)
        if not word.kind:
            return [head.stem for head in heads if counts or not head.kind]
    # 'how many things are red' and 'the red one' name no noun
    return [head.stem for head in heads] if counts else []


def _subject(words, k):
    """Return the stems of the subject of the verb before the value `words[k]`.

    What a preposition adds to the subject is left out ('the car [behind the tree] is red').
    """
    verbs = [i for i in range(k) if words[i].raw in BE]
    if not verbs:
        return []
    borders = [i for i in range(verbs[-1]) if words[i].raw in BORDERS]
    if borders and words[borders[-1]].raw in RELATIVE:  # 'the car that stands there is red'
        return [word.stem for word in words[:borders[-1]] if word.content][-1:]
    start = borders[-1] + 1 if borders else 0
    heads = []
    kinds = False
    for i in range(start, verbs[-1]):
        word = words[i]
        if word.raw in KINDS:
            kinds = True
        elif word.raw in PLACES and not (kinds and not heads):  # 'the color of the car' goes on
            break
        elif word.content:
            heads.append(word.stem)
    return heads


# --- relations --------------------------------------------------------------------------------

# A relation -> the one that stands for it, and whether its sides change places then.
_RELATIONS = {'left': ('left', False), 'right': ('left', True), 'above': ('above', False),
              'over': ('above', False), 'below': ('above', True), 'under': ('above', True),
              'beneath': ('above', True), 'underneath': ('above', True),
              'behind': ('behind', False), 'front': ('behind', True),
              'before': ('before', False), 'after': ('before', True)}
for _more, _less in (('larger', 'smaller'), ('taller', 'shorter'), ('older', 'younger'),
                     ('higher', 'lower'), ('wider', 'narrower'), ('heavier', 'lighter'),
                     ('darker', 'brighter')):
    _RELATIONS |= {_more: (_more, False), _less: (_more, True)}
# What must follow for the word to be a relation: 'left of', but not 'the left lamp'.
_NEED = {'left': 'of', 'right': 'of', 'front': 'of'}


@dataclass(frozen=True, kw_only=True)
class Relation:
    """`one` stands in relation `name` to `other`: 'left', 'above', 'larger', ..."""
    name: str
    one: frozenset[str]
    other: frozenset[str]
    denied: bool


def relations(words: Sequence[Word]) -> list[Relation]:
    """Return the `Relation`s of a sentence.

    Of two ways to say one ('right of', 'left of' with the sides changed) it is always the same.
    """
    related = []
    for k, word in enumerate(words):
        raw = word.raw
        following = words[k + 1].raw if k + 1 < len(words) else ''
        comparative = raw.endswith('er') and raw not in ('over', 'under', 'after')
        need = _NEED.get(raw) or ('than' if comparative else None)
        if raw not in _RELATIONS or need and following != need:
            continue
        # Each side ends at a border of the clause; the first goes on when it would be empty.
        borders = [i for i in range(k) if words[i].raw in BORDERS]
        before = _stems(words[borders[-1] + 1 if borders else 0:k]) or _stems(words[:k])
        ends = [i for i in range(k + 1, len(words)) if words[i].raw in BORDERS]
        behind = _stems(words[k + 1:ends[0] if ends else len(words)])
        name, turned = _RELATIONS[raw]
        if before and behind:
            sides = (behind, before) if turned else (before, behind)
            related.append(Relation(name=name, one=sides[0], other=sides[1], denied=word.denied))
    return related


def _stems(words):
    return frozenset(word.stem for word in words if word.content)

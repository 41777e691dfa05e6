"""Texts as the checks compare them: content words, numbers, what is denied, what goes with what.

English only. Everything here is deliberately shallow: it must be fast, the same on every machine,
and wrong only in ways that a person can follow.
"""
import functools
import re
import unicodedata
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
# What names a kind of value says nothing itself: 'the color of the car is red'.
KINDS = _set('color colour size number count total amount')
# Of one class a thing has one value.
CLASSES = {word: kind for kind, words in {
    'color': 'red green blue yellow purple orange cyan pink brown black white gray grey golden '
             'silver beige violet turquoise magenta maroon navy teal',
    'size': 'small large big tiny huge little',
    'material': 'wood metal plastic leather',
    'state': 'open closed', 'power': 'lit unlit', 'wet': 'wet dry', 'full': 'full empty',
    'time': 'day night', 'weather': 'sunny cloudy rainy snowy foggy', 'age': 'young old',
    'side': 'left right', 'height': 'top bottom', 'texture': 'striped plain checkered dotted',
}.items() for word in words.split()}
SAME = {'grey': 'gray', 'big': 'large', 'huge': 'large', 'tiny': 'small', 'little': 'small',
        'colour': 'color', 'people': 'person', 'men': 'man', 'women': 'woman',
        'children': 'child', 'longer': 'taller', 'bigger': 'larger',
        'wooden': 'wood', 'metallic': 'metal'}
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*(?:[.,:/]\d+)*|[,;:]")
_SENTENCE = re.compile(r'(?<=[.!?;])\s+|\n+')
_stemmer = snowballstemmer.stemmer('english')


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of a sentence as written and as compared; whether it has content, and is denied."""
    raw: str
    stem: str
    content: bool
    denied: bool = False

    @property
    def kind(self):
        """The class of a value ('number', 'color', ...), '' for what is none."""
        return 'number' if self.stem[0].isdigit() and self.stem.replace('.', '').isdigit() \
            else CLASSES.get(self.raw, '')


def sentences(text):
    """Return the sentences of a text as tuples of `Word`; one that begins with a pronoun goes on
    with the words of the one before.
    """
    found = []
    for part in _SENTENCE.split(text):
        words = _words(part)
        if found and words and words[0].raw in PRONOUNS:
            found.append((*found[-1], *words))
        elif any(word.content for word in words):
            found.append(words)
    return found


@functools.lru_cache(maxsize=50_000)
def _words(text):
    folded = unicodedata.normalize('NFKC', text).casefold()
    raws = [raw for found in _WORD.findall(folded) for raw in _apart(found)]
    words = []
    left = 0
    negated = False
    for k, raw in enumerate(raws):
        content = raw not in STOP and raw not in NEGATORS and raw[0].isalnum()
        before = raws[k - 1] if k else ''
        if raw == 'one' and before in ('each', 'every', 'this', 'that', 'the', 'which', 'no', 'any',
                                       'other', 'another'):
            content = False  # a pronoun, no number
        left = 0 if raw in BORDERS else 3 if raw in NEGATORS else left
        negated |= raw in NEGATORS
        words.append(
            Word(
                raw=SAME.get(raw, raw), stem=stem(raw), content=content, denied=content and left > 0
            )
        )
        left -= content and left > 0
    if negated and not any(word.denied for word in words):  # 'the lights are not on'
        words = [replace(word, denied=word.content) for word in words]
    return tuple(words)


def _apart(raw):
    """Return a word without what an apostrophe joins to it; a joined 'not' stands for itself."""
    head, mark, tail = raw.replace('’', "'").partition("'")
    if mark and tail == 't' and head.endswith('n'):
        return [head[:-1] or 'not', 'not']
    return [head]


@functools.lru_cache(maxsize=50_000)
def stem(raw):
    """Return a word without its ending; a number word as digits."""
    raw = SAME.get(raw, raw)
    return NUMBERS[raw] if raw in NUMBERS else SAME.get(_stemmer.stemWord(raw),
                                                        _stemmer.stemWord(raw))


def content(text):
    """Return the stems of the content words of a text, in order; names of kinds are none."""
    return [word.stem for words in map(_words, _SENTENCE.split(text)) for word in words
            if word.content and word.raw not in KINDS]


# --- what goes with what ----------------------------------------------------------------------

@dataclass(frozen=True, kw_only=True)
class Binding:
    """A value of a class that a sentence gives to what `heads` name. `said` is whether the sentence
    says so of it ('the car is red'), rather than picks it out by it ('a red car')."""
    kind: str
    value: str
    heads: frozenset
    denied: bool
    said: bool


def bindings(words):
    """Return the `Binding`s of a sentence, to the word behind a value or to the subject of its
    clause.
    """
    found = []
    for k, word in enumerate(words):
        if not word.kind or not word.content:
            continue
        heads = _described(words, k)
        said = words[0].raw == 'there'
        if not heads:
            heads = _subject(words, k)
            said = True
        if heads:
            found.append(
                Binding(
                    kind=word.kind,
                    value=word.stem,
                    heads=frozenset(heads),
                    denied=word.denied,
                    said=said,
                )
            )
    return found


def _described(words, k):
    """Return what a value stands before: for a number all up to the noun, else the noun."""
    heads = []
    for word in words[k + 1:]:
        if not word.content or word.kind == 'number':
            break
        heads.append(word)
        if not word.kind:
            return [w.stem for w in heads if words[k].kind == 'number' or not w.kind]
    # 'how many things are red' and 'the red one' name no noun
    return [w.stem for w in heads] if words[k].kind == 'number' else []


def _subject(words, k):
    """Return the subject of the verb before a value, without what a preposition adds to it."""
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
        elif word.raw in PLACES and not (kinds and not heads):
            break
        elif word.content:
            heads.append(word.stem)
    return heads


# --- relations --------------------------------------------------------------------------------

# A relation -> the one that stands for it, and whether its sides change places.
_RELATIONS = {'left': ('left', False), 'right': ('left', True), 'above': ('above', False),
              'over': ('above', False), 'below': ('above', True), 'under': ('above', True),
              'beneath': ('above', True), 'underneath': ('above', True),
              'behind': ('behind', False), 'front': ('behind', True),
              'before': ('before', False), 'after': ('before', True)} | {
    word: (name, turned) for name, other in (
        ('larger', 'smaller'), ('taller', 'shorter'), ('older', 'younger'), ('higher', 'lower'),
        ('wider', 'narrower'), ('heavier', 'lighter'),
        ('darker', 'brighter')) for word, turned in ((name, False), (other, True))}
_NEED = {'left': 'of', 'right': 'of', 'front': 'of'}


@dataclass(frozen=True, kw_only=True)
class Relation:
    """`one` stands in relation `name` to `other`: 'left', 'above', 'larger', ..."""
    name: str
    one: frozenset
    other: frozenset
    denied: bool


def relations(words):
    """Return the `Relation`s of a sentence, each in one of the two ways to say it."""
    found = []
    for k, word in enumerate(words):
        raw = word.raw
        following = words[k + 1].raw if k + 1 < len(words) else ''
        need = _NEED.get(raw) or ('than' if raw.endswith('er') and raw not in (
            'over', 'under', 'after') else None)
        if raw not in _RELATIONS or need and following != need:
            continue
        borders = [i for i in range(k) if words[i].raw in BORDERS]
        one = _stems(words[borders[-1] + 1 if borders else 0:k]) or _stems(words[:k])
        ends = [i for i in range(k + 1, len(words)) if words[i].raw in BORDERS]
        other = _stems(words[k + 1:ends[0] if ends else len(words)])
        name, turned = _RELATIONS[raw]
        if one and other:
            found.append(
                Relation(
                    name=name,
                    one=other if turned else one,
                    other=one if turned else other,
                    denied=word.denied,
                )
            )
    return found


def _stems(words):
    return frozenset(word.stem for word in words if word.content)

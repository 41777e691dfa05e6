"""Prompts as data: JSON files with a hash, filled with texts that are never interpreted.

`micro` is what the scene world's models are trained on, `paper` the protocol of arXiv 2511.17487 in
words of our own. Checkpoints released with that paper were tuned on one exact string; its code
names it `prompt_prefix` (stage_1_utils.py of its MMStar task). Give it as the `caption` and
`extract` of a file of the same form.
"""
import re
from dataclasses import dataclass, fields
from pathlib import Path

from downscale.data import files
from downscale.data.records import IMAGE
from downscale.values import hash_of, unknown

FOLDER = Path(__file__).parent / 'prompts'
KINDS = ('caption', 'extract')
MODES = ('think', 'direct')
LIMITS = ('describe_tokens', 'think_tokens', 'answer_tokens')
# The placeholders that a template must have, each at least once, and no other.
PLACES = {
    'caption': (), 'extract': ('information',),
    'information_task': ('pairs', 'question'), 'information_pair': ('question', 'information'),
    'reason_think': ('description', 'question'), 'reason_direct': ('description', 'question')}
_PLACE = re.compile(r'\{(\w+)\}( *)')


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The templates of a chain; `hash` names their content.

    `caption` and `extract` ask a perception model, `reason_think` and `reason_direct` a reasoner.
    `information_task` asks a language model what to look at, after `information_pairs`, each
    written as `information_pair`; what it writes loses a leading `information_mark`.
    `information_end` closes an information that does not end so; `question_start` opens a question
    that begins with none of `question_starts` (whatever their case). The limits, in tokens, are
    what these prompts need where a person gives none.
    """
    about: str
    caption: str
    extract: str
    information_task: str
    information_pair: str
    information_pairs: tuple[tuple[str, str], ...]
    information_mark: str
    information_end: str
    question_start: str
    question_starts: tuple[str, ...]
    reason_think: str
    reason_direct: str
    describe_tokens: int
    think_tokens: int
    answer_tokens: int

    @property
    def hash(self):
        """A short hash of everything that reaches a model or its reply.

        Limits are no part: those in use are recorded with each row, wherever they came from.
        """
        return hash_of({field.name: vars(self)[field.name] for field in fields(self)
                        if field.name not in ('about', *LIMITS)})

    def describe(self, kind, information=''):
        """Return what a perception model is asked for `kind` 'caption' or 'extract'."""
        if kind == 'caption':
            return self.caption
        if not information.endswith(self.information_end):
            information += self.information_end
        return fill(self.extract, information=information)

    def reason(self, mode, description, question):
        """Return what a reasoner reads in `mode` 'think' or 'direct'."""
        template = {'think': self.reason_think, 'direct': self.reason_direct}[mode]
        opened = question.lower().startswith(self.question_starts) if self.question_starts \
            else False
        return fill(template, description=description,
                    question=question if opened else self.question_start + question)

    def inform(self, question):
        """Return what a language model reads that is to say what to look at for `question`."""
        pairs = ''.join(fill(self.information_pair, question=asked, information=told)
                        for asked, told in self.information_pairs)
        return fill(self.information_task, pairs=pairs, question=question)

    def information_in(self, reply):
        """Return the information in a reply, on one line and without the mark before it."""
        text = ' '.join(reply.split())
        if text.lower().startswith(self.information_mark.lower()):
            text = text[len(self.information_mark):]
        return text.strip()


def fill(template, **texts):
    """Return `template` with every {name} replaced by a text, in one pass: braces in a text stay
    braces.

    An empty text takes the blanks behind its place along. An image mark in a text is no picture:
    it is written apart, so that no encoder looks for one.
    """
    def put(match):
        text = texts[match[1]]
        return text.replace(IMAGE, f'{IMAGE[0]} {IMAGE[1:]}') + match[2] if text else ''

    return _PLACE.sub(put, template)


def load(name):
    """Return the `Prompts` called `name` ('micro', 'paper'), or those in the file at that path.

    FileNotFoundError or ValueError in one line for a missing, damaged or incomplete file, an
    unknown field or an unknown or missing placeholder.
    """
    known = sorted(path.stem for path in FOLDER.glob('*.json'))
    path = FOLDER / f'{name}.json' if name in known else Path(name)
    if not path.is_file():
        raise FileNotFoundError(f'{unknown("prompts", str(name), known)}, or give the path of a '
                                'JSON file')
    return _checked(files.read_object(path), path)


def _checked(value, path):
    """Return `value` as `Prompts`, every field of its type and every template with its
    placeholders.
    """
    names = [field.name for field in fields(Prompts)]
    for name in value:
        if name not in names:
            raise files.fault(path, unknown('field', files.shown(name, 40), names))
    missing = [name for name in names if name not in value]
    if missing:
        raise files.fault(path, f'missing field {", ".join(map(repr, missing))}')
    for name, text in value.items():
        _check_type(path, name, text)
    for name, places in PLACES.items():
        _check_places(path, name, value[name], places)
    pairs = tuple((pair['question'], pair['information']) for pair in value['information_pairs'])
    return Prompts(**{**value, 'information_pairs': pairs,
                      'question_starts': tuple(text.lower() for text in value['question_starts'])})


def _check_type(path, name, value):
    if name == 'information_pairs':
        good = isinstance(value, list) and all(
            isinstance(pair, dict) and set(pair) == {'question', 'information'}
            and all(isinstance(text, str) for text in pair.values()) for pair in value)
        wanted = 'a list of {"question": text, "information": text}'
    elif name == 'question_starts':
        good = isinstance(value, list) and all(isinstance(text, str) and text for text in value)
        wanted = 'a list of texts'
    elif name in LIMITS:
        good = isinstance(value, int) and not isinstance(value, bool) and value > 0
        wanted = 'a number of tokens'
    else:
        good = isinstance(value, str)
        wanted = 'a text'
    if not good:
        raise ValueError(f'{path}: field {name!r} must be {wanted}')


def _check_places(path, name, template, places):
    """The placeholders of a template are exactly `places`; image marks are put in by the chain."""
    found = [match[1] for match in _PLACE.finditer(template)]
    for place in found:
        if place not in places:
            place = files.shown(place, 40)
            hint = unknown('placeholder', place, places) if places else \
                f'unknown placeholder {place!r}; it takes none'
            raise files.fault(path, f'{name}: {hint}')
    missing = [place for place in places if place not in found]
    if missing:
        raise ValueError(f'{path}: {name}: missing placeholder {{{missing[0]}}}')
    if IMAGE in template:
        raise ValueError(f'{path}: {name} holds the image mark {IMAGE}; leave it out, pictures '
                         'are put in front')

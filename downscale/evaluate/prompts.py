"""Prompts as data: JSON files with a hash, filled with texts that are never interpreted.

`micro` is what the scene world's models are trained on, `paper` the protocol of arXiv 2511.17487 in
words of our own. Checkpoints released with that paper were tuned on one exact string; its code
names it `prompt_prefix` (stage_1_utils.py of its MMStar task). Give it as the `caption` and
`extract` of a file of the same form.
"""
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from downscale.data import row_files
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
    def hash(self) -> str:
        """A short hash of everything that reaches a model or its reply.

        Limits are no part: those in use are recorded with each row, wherever they came from.
        """
        return hash_of({field.name: vars(self)[field.name] for field in fields(self)
                        if field.name not in ('about', *LIMITS)})

    def describe(self, kind: str, information: str | None = '') -> str:
        """Return what a perception model is asked for `kind` 'caption' or 'extract'."""
        if kind == 'caption':
            return self.caption
        information = information or ''
        if not information.endswith(self.information_end):
            information += self.information_end
        return fill(self.extract, information=information)

    def reason(self, mode: str, description: str, question: str) -> str:
        """Return what a reasoner reads in `mode` 'think' or 'direct'."""
        template = {'think': self.reason_think, 'direct': self.reason_direct}[mode]
        if not question.lower().startswith(self.question_starts):
            question = self.question_start + question
        return fill(template, description=description, question=question)

    def inform(self, question: str) -> str:
        """Return what a language model reads that is to say what to look at for `question`."""
        pairs = ''.join(fill(self.information_pair, question=example, information=information)
                        for example, information in self.information_pairs)
        return fill(self.information_task, pairs=pairs, question=question)

    def information_in(self, reply: str) -> str:
        """Return the information in a reply, on one line and without the mark before it."""
        # One line: it goes into the middle of a sentence of the prompt.
        text = ' '.join(reply.split())
        if text.lower().startswith(self.information_mark.lower()):
            text = text[len(self.information_mark):]
        return text.strip()


def fill(template: str, **texts: str) -> str:
    """Return `template` with every {name} replaced by a text.

    It takes one pass, so that braces in a text stay braces. An empty text takes the blanks
    behind its place along. An image mark in a text shows no picture: it is written apart, so that
    no encoder looks for one.
    """
    # A function, not a template of `re`: backslashes in a text would be read as groups.
    def put(match):
        text = texts[match[1]]
        return text.replace(IMAGE, f'{IMAGE[0]} {IMAGE[1:]}') + match[2] if text else ''

    return _PLACE.sub(put, template)


def load(name: str | Path) -> Prompts:
    """Return the `Prompts` called `name` ('micro', 'paper'), or those in the file at that path.

    FileNotFoundError or ValueError in one line for a missing, damaged or incomplete file, an
    unknown field or an unknown or missing placeholder.
    """
    known = sorted(path.stem for path in FOLDER.glob('*.json'))
    path = FOLDER / f'{name}.json' if name in known else Path(name)
    if not path.is_file():
        raise FileNotFoundError(f'{unknown("prompts", str(name), known)}, or give the path of a '
                                'JSON file')
    forms = dict.fromkeys(LIMITS, TOKENS) | {'information_pairs': PAIRS, 'question_starts': TEXTS}
    value = read_templates(path, [field.name for field in fields(Prompts)], PLACES, forms)
    for field in PLACES:
        if IMAGE in value[field]:
            raise ValueError(f'{path}: {field} holds the image mark {IMAGE}; leave it out, '
                             'pictures are put in front')
    pairs = tuple((pair['question'], pair['information']) for pair in value['information_pairs'])
    starts = tuple(text.lower() for text in value['question_starts'])
    changed: dict[str, Any] = value | {'information_pairs': pairs, 'question_starts': starts}
    return Prompts(**changed)


# --- files of templates -----------------------------------------------------------------------

@dataclass(frozen=True)
class FieldForm:
    """What a field of a file of templates must be, and how a message names that."""
    fits: Callable[[Any], bool]
    named: str


def _is_pair(value):
    return (isinstance(value, dict) and set(value) == {'question', 'information'}
            and all(isinstance(text, str) for text in value.values()))


TEXT = FieldForm(lambda value: isinstance(value, str), 'a text')
# Python counts True among the integers, and JSON knows it apart.
TOKENS = FieldForm(
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
    'a number of tokens')
TEXTS = FieldForm(
    lambda value: isinstance(value, list) and all(isinstance(text, str) and text for text in value),
    'a list of texts')
PAIRS = FieldForm(lambda value: isinstance(value, list) and all(map(_is_pair, value)),
                  'a list of {"question": text, "information": text}')


def read_templates(path: Path, names: Sequence[str], places: Mapping[str, Sequence[str]],
                   forms: Mapping[str, FieldForm]) -> dict[str, Any]:
    """Return the fields `names` of a JSON file of templates, every one checked.

    A field has the form that `forms` gives it, else it is a text; a text of `places` holds each of
    its placeholders and no other. ValueError in one line for anything else.
    """
    value = row_files.read_object(path)
    for name in value:
        if name not in names:
            raise row_files.fault(path, unknown('field', row_files.shown(name, 40), names))
    missing = [name for name in names if name not in value]
    if missing:
        raise row_files.fault(path, f'missing field {", ".join(map(repr, missing))}')
    for name, part in value.items():
        form = forms.get(name, TEXT)
        if not form.fits(part):
            raise ValueError(f'{path}: field {name!r} must be {form.named}')
    for name, wanted in places.items():
        _check_places(path, name, value[name], wanted)
    return value


def _check_places(path, name, template, places):
    """Raise ValueError unless the placeholders of a template are exactly `places`."""
    there = [match[1] for match in _PLACE.finditer(template)]
    for place in there:
        if place not in places:
            place = row_files.shown(place, 40)
            hint = unknown('placeholder', place, places) if places else \
                f'unknown placeholder {place!r}; it takes none'
            raise row_files.fault(path, f'{name}: {hint}')
    missing = [place for place in places if place not in there]
    if missing:
        raise ValueError(f'{path}: {name}: missing placeholder {{{missing[0]}}}')

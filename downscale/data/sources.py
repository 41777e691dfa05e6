"""Published data as it lies on disk -> records: JSON, JSONL, Parquet, folders, TFDS; one row each.

What a row holds is read off its names, which are those of the published sets: `conversations`
(LLaVA, M4-Instruct, ALLaVA, LLaVA-OneVision, the released extraction set), `texts` (Cauldron),
`question` with `answer` or `answers`, `caption` or `text`; pictures in `image`, `images` or
`file_name`, as paths below the source's folder of pictures or as {bytes, path}. A row that cannot
be used is `Rejected` with one of `REASONS`; nothing is repaired by guessing.
"""
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgpack

from downscale.data import images, measure
from downscale.data.records import IMAGE, Conversation, Record, Turn
from downscale.data.tables import METADATA, TFDS, Parquet, Prepared, Rows
from downscale.strict import COUNT, Choice, Range, Several, check

REASONS = ('wrong type', 'no answer', 'unknown role', 'bad text', 'chat token', 'image marks',
           'missing image', 'image path', 'unreadable image', 'too long', 'duplicate')
ROLES = {'human': 'user', 'user': 'user', 'gpt': 'assistant', 'assistant': 'assistant',
         'system': 'system'}
# Text may not speak for another turn: in data these would become the chat's own tokens.
CHAT_TOKENS = ('<|im_start|>', '<|im_end|>', '<|endoftext|>')
MOST_TEXT = 400_000  # characters of one record, about 10^5 tokens
_CONTROL = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]')


class Rejected(ValueError):
    """A row that cannot be used: `reason` is one of `REASONS`, the message says what is wrong."""

    def __init__(self, reason, detail):
        super().__init__(f'{reason}: {detail}')
        self.reason = reason


@dataclass(frozen=True)
class Source:
    """Where a published set lies below the root of all data, and how much of it is taken.

    `path` is a .json, .jsonl or .parquet file, a folder of Parquet files or one with a metadata
    file, or (`tfds`) a prepared TFDS folder; `images` is the folder of its pictures. `take` rows
    are chosen by `seed` (None: all), of those only that name one of the sets `only` in
    `data_source` or `metadata.dataset` (empty: all); each is seen `epochs` times an epoch of the
    mixture. `ask` is what is asked where a row holds a caption only. `licence` and `obtain` are
    notes for people.
    """
    name: str
    path: str
    licence: str
    obtain: str
    images: str = ''
    tfds: Annotated[str, Choice(('', *TFDS), 'tfds')] = ''
    split: str = 'train'
    only: Annotated[tuple[str, ...], Several(0, 'the sets whose rows are taken')] = ()
    take: Annotated[int | None, Range(1, COUNT, 'rows that are taken; None is all')] = None
    seed: Annotated[int, Range(0, 2 ** 32 - 1, 'seed by which rows are taken')] = 0
    epochs: Annotated[float, Range(0, 10_000, 'how often a record is seen in an epoch of the '
                                   'mixture', without=(0,))] = 1.0
    ask: str = 'Describe the image.'

    def __post_init__(self):
        if not re.fullmatch(r'[A-Za-z0-9_.+-]+', self.name):
            raise ValueError(f'source name {self.name!r} may hold letters, digits and _.+- only')
        check(self)


# --- rows -------------------------------------------------------------------------------------

def record_of(row, name, source, folder):
    """The `Record` called `name` of one row, its pictures read and decoded once; or `Rejected`."""
    if not isinstance(row, dict):
        raise Rejected('wrong type', f'a row must be an object, not {type(row).__name__}')
    pictures = _pictures(row, folder)
    turns = _marked(_turns(row, source), len(pictures))
    _check_texts(turns)
    for k, data in enumerate(pictures):
        try:
            if measure.picture_size(data, f'picture {k}') != images.decode(data, f'picture {k}'
                                                                           ).size:
                raise ValueError(f'picture {k}: its header tells another size')
        except ValueError as error:
            raise Rejected('unreadable image', str(error)) from None
    return Record(name, source.name, Conversation(pictures, turns))


def _turns(row, source):
    """The turns of a row, whatever names it uses."""
    if row.get('conversations') is not None:
        return _conversation(row['conversations'])
    if row.get('texts') is not None:
        pairs = [(part.get('user'), part.get('assistant')) for part in _dicts(row['texts'])]
    elif row.get('question') is not None:
        pairs = [(row['question'], _answer(row))]
    else:
        caption = next((row[key] for key in ('caption', 'text') if row.get(key) is not None), None)
        if caption is None:
            raise Rejected('no answer', 'none of conversations, texts, question, caption or text '
                           f'in {ascii(list(row)[:12])}')
        pairs = [(source.ask, caption)]
    return _asked(pairs)


def _asked(pairs):
    """Turns of (question, answer) pairs."""
    found = []
    for question, answer in pairs:
        _typed(question, str, 'question')
        _typed(answer, str, 'answer')
        found += [Turn('user', question, False), Turn('assistant', answer, True)]
    return found


def _answer(row):
    """The answer of a question row: of several the most frequent, the first among equals."""
    answers = row.get('answers') if row.get('answer') is None else row['answer']
    if isinstance(answers, str):
        return answers
    if not isinstance(answers, (list, tuple)) or not answers:
        raise Rejected('no answer', 'neither answer nor answers holds a text')
    texts = [part.get('answer') if isinstance(part, dict) else part for part in answers]
    return max(texts, key=texts.count)


def _conversation(value):
    """Turns of [{from, value}] or [{role, content}]; what stands before the first user turn, but a
    system turn, is left out, as LLaVA's loader does."""
    turns = []
    for part in _dicts(value):
        role = part.get('from', part.get('role'))
        if not isinstance(role, str) or role not in ROLES:
            raise Rejected('unknown role', f'{role!r}; known are {", ".join(ROLES)}')
        text = part.get('value', part.get('content'))
        _typed(text, str, 'value of a turn')
        turns.append(Turn(ROLES[role], text, ROLES[role] == 'assistant'))
    while turns and turns[0].role == 'assistant':
        turns.pop(0)
    return turns


def _dicts(value):
    _typed(value, (list, tuple), 'conversations or texts')
    for part in value:
        _typed(part, dict, 'turn')
    return value


def _typed(value, kind, what):
    if not isinstance(value, kind):
        raise Rejected('wrong type', f'{what} is {type(value).__name__}')


def _marked(turns, count):
    """`turns` whose image marks are as many as the pictures; without any, marks are put in front
    of the first user turn."""
    marks = sum(turn.text.count(IMAGE) for turn in turns)
    first = next((k for k, turn in enumerate(turns) if turn.role == 'user'), None)
    if count and not marks and first is not None:
        front = (IMAGE + '\n') * count
        turns = [*turns[:first], dataclasses.replace(turns[first], text=front + turns[first].text),
                 *turns[first + 1:]]
    elif marks != count:
        raise Rejected('image marks', f'{marks} marks {IMAGE} for {count} pictures')
    return tuple(turns)


def _check_texts(turns):
    if not any(turn.supervised and turn.text.strip() for turn in turns):
        raise Rejected('no answer', 'no reply that could be learnt')
    for turn in turns:
        if len(turn.text) > MOST_TEXT:
            raise Rejected('too long', f'{len(turn.text):,} characters in one turn')
        if found := _CONTROL.search(turn.text):
            raise Rejected('bad text', f'control character {found[0]!r}')
        if any('\ud800' <= letter <= '\udfff' for letter in turn.text):
            raise Rejected('bad text', 'half a surrogate pair')
        for token in CHAT_TOKENS:
            if token in turn.text:
                raise Rejected('chat token', f'{token} in the text')


def _pictures(row, folder):
    """The encoded pictures of a row, in order."""
    given = next((row[key] for key in ('images', 'image', 'file_name')
                  if row.get(key) is not None), [])
    found = []
    for one in given if isinstance(given, (list, tuple)) else [given]:
        data = one.get('bytes') if isinstance(one, dict) else one
        if isinstance(one, dict) and data is None:
            data = one.get('path')
        found.append(data if isinstance(data, bytes) else _opened(data, folder))
    return tuple(found)


def _opened(name, folder):
    """The bytes of picture file `name` below `folder`."""
    _typed(name, str, 'image')
    if '\x00' in name:
        raise Rejected('image path', f'{name!r} holds a NUL')
    try:
        return images.open_under(folder, name)
    except FileNotFoundError as error:
        raise Rejected('missing image', str(error)) from None
    except (ValueError, OSError) as error:
        raise Rejected('image path', str(error)) from None


def open_rows(source, root):
    """The table of a `Source` below `root`; FileNotFoundError says how the set is obtained."""
    path = under(root, source.path, source)
    if source.tfds:
        return Prepared(path, source.tfds, source.split)
    if path.is_dir():
        for name in METADATA:
            if (path / name).is_file():
                return Rows(path / name)
        parts = sorted(path.glob('*.parquet'))
        if not parts:
            raise FileNotFoundError(f'{path} holds neither Parquet files nor one of '
                                    f'{", ".join(METADATA)}')
        return Parquet([under(root, part.relative_to(Path(root).resolve()), source)
                        for part in parts])
    if path.suffix == '.parquet':
        return Parquet([path])
    if path.suffix in ('.json', '.jsonl', '.csv'):
        return Rows(path)
    raise ValueError(f'source {source.name}: {path.name} must be .json, .jsonl, .csv, .parquet or '
                     'a folder')


def under(root, name, source):
    """`root`/`name`, which must exist inside the root; one line with how to obtain it if not."""
    root = Path(root).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f'source {source.name}: {name} leaves the root {root}')
    if not path.exists():
        raise FileNotFoundError(f'source {source.name}: no {name} in {root}. To obtain it: '
                                f'{source.obtain}')
    return path


# --- stored records ---------------------------------------------------------------------------

def pack(record):
    """The bytes of a `Record`; equal records, equal bytes."""
    talk = record.talk
    return msgpack.packb({'id': record.id, 'source': record.source, 'images': list(talk.images),
                          'turns': [[turn.role, turn.text] for turn in talk.turns]})


def unpack(data):
    """The `Record` of `pack`'s bytes."""
    value = msgpack.unpackb(data)
    turns = tuple(Turn(role, text, role == 'assistant') for role, text in value['turns'])
    return Record(value['id'], value['source'], Conversation(tuple(value['images']), turns))

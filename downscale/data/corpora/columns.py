"""What the columns of published sets mean: a row -> its turns and its pictures, nothing unseen.

A row is a closed world. Columns are used (`KNOWN`), left out by design and counted (`ASIDE`, and
what a `Source` names in `ignore`), or the row is `Rejected` with the name. Empty cells (None, '',
NaN, [], and lists and dicts of them) are no values. A row takes one of four forms, by what it
holds: `conversations` or `messages`; `texts` (Cauldron); `question` with `answer` or `answers` and
perhaps `options` or `choices` or columns A, B, ...; `caption` or `text`. Nothing is repaired by
guessing: where two readings are possible, the row is rejected.
"""
import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from downscale.data.files import BadRow, shown
from downscale.data.records import IMAGE, Turn
from downscale.values import unknown

REASONS = ('wrong type', 'unreadable row', 'unknown column', 'no answer', 'unclear answer',
           'unknown role', 'bad text', 'chat token', 'image marks', 'no picture', 'video',
           'missing image', 'image path', 'unreadable image', 'too long', 'duplicate')
ROLES = {'human': 'user', 'user': 'user', 'gpt': 'assistant', 'assistant': 'assistant',
         'system': 'system'}
IDS = ('id', 'question_id', 'sample_id', 'index')
PICTURES = ('image', 'images', 'image_path', 'image_paths', 'img', 'imgs', 'img_path', 'picture',
            'pictures', 'image_file', 'file_name', 'filename', 'jpg', 'png')
NUMBERED = re.compile(r'(?:image|img|picture)_?(\d{1,2})')  # image_1 ... image_7 of MMMU
VIDEOS = ('video', 'videos', 'video_path', 'video_id', 'frames')
LETTERS = tuple('ABCDEFGHIJ')
KNOWN = ('conversations', 'messages', 'texts', 'question', 'answer', 'answers', 'options',
         'choices', 'hint', 'context', 'caption', 'text', 'system', *PICTURES)
# Columns that point at a picture, or tell of one: a row that has them and no picture has lost it.
POINTERS = ('image_id', 'imageId', 'img_id', 'image_url', 'coco_url', 'flickr_url',
            'flickr_original_url', 'flickr_300k_url', 'image_width', 'image_height', 'img_type')
# Left out by design: where a row is from, what kind it is, and what restates or explains the
# answer, as published sets call it. What would change the question is in `KNOWN`.
ASIDE = frozenset((
    *POINTERS, 'Unnamed: 0', '__index_level_0__', '__key__', '__url__', 'idx', 'uid', 'uuid', 'pid',
    'key', 'data_id', 'doc_id', 'docId', 'questionId', 'answer_id', 'caption_id', 'sentids',
    'ucsf_document_id', 'ucsf_document_page_no', 'source', 'data_source', 'dataset', 'dataset_name',
    'set_name', 'split', 'data_split', 'metadata', 'meta', 'meta_info', 'provenance', 'url',
    'license', 'licence',
    'author', 'date_captured', 'timestamp', 'model', 'version', 'width', 'height',
    'original_width', 'original_height', 'image_size', 'size', 'aspect_ratio', 'md5', 'sha256',
    'hash', 'exif', 'similarity', 'clip_score', 'punsafe', 'pwatermark', 'category', 'l2_category',
    'l2-category', 'broad_category', 'type', 'types', 'question_type', 'question_types',
    'answer_type', 'answerable', 'task', 'task_type', 'subject', 'topic', 'skill', 'grade',
    'subfield', 'topic_difficulty', 'difficulty', 'level', 'language', 'lang', 'image_classes',
    'comment', 'choice_list', 'num_sample', 'fullAnswer', 'multiple_choice_answer',
    'question_tokens', 'ocr_tokens', 'isBalanced', 'groups', 'entailed', 'equivalent',
    'annotations', 'semantic', 'semanticStr', 'lecture', 'solution', 'explanation', 'rationale'))
_PLAIN = {*ASIDE, *KNOWN, *IDS}
# Of a turn: who says what; the rest is about the turn.
TURN_KEYS = {'from', 'role', 'value', 'content', 'user', 'assistant'}
TURN_ASIDE = ('source', 'id', 'timestamp', 'model')
ASK_LETTER = "Answer with the option's letter from the given choices directly."


class Rejected(ValueError):
    """A row that cannot be used: `reason` is one of `REASONS`, the message says what is wrong."""

    def __init__(self, reason: str, detail: Any) -> None:
        super().__init__(f'{reason}: {shown(detail, 200)}')
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a row holds: pictures (bytes, or a text that names or encodes one) in the order of their
    marks, turns as they are written, and the columns that were left out, each with whether it held
    something. `pointer` is a column that tells of a picture, '' without; `captioned` says that the
    row is a caption."""
    pictures: tuple[bytes | str, ...]
    turns: tuple[Turn, ...]
    aside: dict[str, bool]
    pointer: str
    captioned: bool


def parts_of(row: Any, ask: str, ignore: Sequence[str] = ()) -> Parts:
    """Return the `Parts` of one row, `ask` being what a caption answers; or `Rejected`."""
    if isinstance(row, BadRow):
        raise Rejected(row.reason, row)
    if not isinstance(row, dict):
        raise Rejected('wrong type', f'a row must be an object, not {type(row).__name__}')
    filled = {name: value for name, value in row.items()
              if name not in ignore and not empty(value)}
    for name in filled:
        if name not in _PLAIN:
            _check_known(name, filled)
    pictures, shown_by = pictures_in(filled)
    turns, told_by = _turns(filled, ask)
    used = {*shown_by, *told_by, *IDS}
    for name in filled:
        if name not in used and name not in ASIDE and name not in PICTURES:
            raise Rejected('unknown column', f'{name!r} beside {told_by[0]!r}, of which one is '
                           f'read; {_way_on(name)}')
    pictures, turns = _numbered(pictures, turns)
    return Parts(pictures=pictures, turns=turns, captioned=told_by[0] in ('caption', 'text'),
                 aside={str(name): name in filled or not empty(row[name])
                        for name in row if name not in used},
                 pointer=next((name for name in POINTERS if name in filled), ''))


def empty(value: Any) -> bool:
    """Return whether a cell holds nothing."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, (list, tuple)):
        return all(map(empty, value))
    if isinstance(value, dict):
        return all(map(empty, value.values()))
    return value is None or value == b'' or isinstance(value, float) and value != value


def _check_known(name, filled):
    """Raise `Rejected` for a column that nothing here knows."""
    if name in VIDEOS:
        raise Rejected('video', f'column {name!r}: videos are not read; {_way_on(name)}')
    if not isinstance(name, str) or not NUMBERED.fullmatch(name) and not (
            name in LETTERS and 'question' in filled):
        raise Rejected('unknown column', f'{_nearest(shown(name, 40))} {_way_on(name)}')


@lru_cache(maxsize=256)  # as many rows as the file has ask for the same names
def _nearest(name):
    hint = unknown('column', name, KNOWN)
    if not hint.endswith('?'):
        hint = unknown('column', name, KNOWN[:5]) + ' ...;'
    return hint.removeprefix('unknown column ')


def _way_on(name):
    name = shown(name, 40)
    return f'Source(ignore=({name!r},)), or in data extract --ignore {name}, leaves it out'


def typed(value: Any, kind: type | tuple[type, ...], what: str) -> None:
    """Raise `Rejected` where `value` is no `kind`."""
    if not isinstance(value, kind):
        raise Rejected('wrong type', f'{what} is {type(value).__name__}')


# --- pictures ---------------------------------------------------------------------------------

def pictures_in(filled: dict[str, Any]) -> tuple[dict[int, bytes | str], tuple[str, ...]]:
    """Return ({number: picture}, the columns that hold them). Several columns must hold the same,
    or one the pictures themselves and the others their paths.
    """
    groups = {(name,): _cells(name, filled[name]) for name in PICTURES if name in filled}
    numbered = sorted((int(match[1]), name) for name in filled
                      if (match := NUMBERED.fullmatch(name)))
    if numbered:
        groups[tuple(name for _, name in numbered)] = {
            number: _cell(name, filled[name]) for number, name in numbered}
    if not groups:
        return {}, ()
    inside = [names for names, cells in groups.items()
              if any(isinstance(cell, bytes) for cell in cells.values())]
    first = inside[0] if inside else next(iter(groups))
    for names, cells in groups.items():
        paths = inside == [first] and names not in inside
        if cells != groups[first] and not (paths and len(cells) == len(groups[first])):
            raise Rejected('image marks', f'columns {first[0]!r} and {names[0]!r} hold different '
                           f'pictures; {_way_on(names[0])}')
    return groups[first], (*first, *(name for names in groups if len(names) > 1 for name in names))


def _cells(name, value):
    """Return {number from 1: picture} of a column that may hold several."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return {number: _cell(name, cell) for number, cell in enumerate(values, 1)}


def _cell(name, value):
    """Return the bytes or the text of one picture."""
    if isinstance(value, dict):
        data = value.get('bytes')
        path = value.get('path')
        value = path if data is None or data == b'' else data
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return _cell(name, value[0])
    typed(value, (str, bytes), name)
    return value


_PLACE = re.compile(r'<image[ _]?(\d{1,2})>')


def _numbered(cells, turns):
    """Return (pictures, turns) where the marks `<image 1>` have become `IMAGE`, pictures in their
    order; those that no mark names stand in front of the first question.
    """
    places = [int(place) for turn in turns for place in _PLACE.findall(turn.text)]
    if not places:
        return tuple(cells.values()), turns
    if any(IMAGE in turn.text for turn in turns) or not set(places) <= set(cells):
        raise Rejected('image marks', f'the text shows the pictures {places[:9]}, the row has '
                       f'{list(cells)[:9]}')
    others = [number for number in cells if number not in places]
    marked = []
    front = (IMAGE + '\n') * len(others)
    for turn in turns:
        text = _PLACE.sub(IMAGE, turn.text)
        if turn.role == 'user':
            text = front + text
            front = ''
        marked.append(Turn(role=turn.role, text=text, supervised=turn.supervised))
    return tuple(cells[number] for number in (*others, *places)), tuple(marked)


# --- turns ------------------------------------------------------------------------------------

def _turns(filled, ask):
    """Return (the turns of a row, the columns that told them)."""
    told_by = [name for name in ('conversations', 'messages') if name in filled][:1]
    if told_by:
        turns = _conversation(filled[told_by[0]])
    elif 'texts' in filled:
        told_by = ['texts']
        pairs = [(part.get('user'), part.get('assistant')) for part in _dicts(filled['texts'])]
        turns = _asked(pairs)
    elif 'question' in filled:
        told_by, pair = _question(filled)
        turns = _asked([pair])
    else:
        told_by = [name for name in ('caption', 'text') if name in filled][:1]
        if not told_by:
            raise Rejected('no answer', 'none of conversations, texts, question, caption or text '
                           f'in {shown(list(filled)[:12], 90)}')
        typed(filled[told_by[0]], str, told_by[0])
        turns = _asked([(ask, filled[told_by[0]])])
    if 'system' in filled:
        told_by.append('system')
        typed(filled['system'], str, 'system')
        if any(turn.role == 'system' for turn in turns):
            raise Rejected('unknown role', 'a column system beside a system turn')
        turns.insert(0, Turn(role='system', text=filled['system'], supervised=False))
    return tuple(turns), told_by


def _asked(pairs):
    """Return turns of (question, answer) pairs."""
    turns = []
    for question, answer in pairs:
        typed(question, str, 'question')
        typed(answer, str, 'answer')
        turns += [
            Turn(role='user', text=question, supervised=False),
            Turn(role='assistant', text=answer, supervised=True),
        ]
    return turns


def _conversation(value):
    """Return turns of [{from, value}] or [{role, content}]; what stands before the first user turn,
    but a system turn, is left out, as LLaVA's loader does.
    """
    turns = []
    for part in _dicts(value):
        role = part['role'] if part.get('from') is None and 'role' in part else part.get('from')
        if not isinstance(role, str) or role not in ROLES:
            raise Rejected('unknown role', f'{shown(role)!r}; known are {", ".join(ROLES)}')
        text = part['content'] if part.get('value') is None and 'content' in part \
            else part.get('value')
        if isinstance(text, (list, tuple)):
            text = ''.join(map(_piece, text))
        typed(text, str, 'value of a turn')
        turns.append(Turn(role=ROLES[role], text=text, supervised=ROLES[role] == 'assistant'))
    while turns and turns[0].role == 'assistant':
        turns.pop(0)
    return turns


def _piece(part):
    """Return the text of one part of a content: a text, or the mark of a picture of the row."""
    typed(part, dict, 'part of a content')
    rest = {name for name, value in part.items() if not empty(value)} - {'type', 'index'}
    if part.get('type') == 'text' and rest <= {'text'} and isinstance(part.get('text'), str):
        return part['text']
    if part.get('type') == 'image' and not rest:
        return IMAGE
    raise Rejected('wrong type', 'a part of a content must be {"type": "text", "text": ...} or '
                   f'{{"type": "image"}}, not {shown(part)}')


def _dicts(value):
    """Return the parts of conversations or texts, none of which may hold what is not read."""
    typed(value, (list, tuple), 'conversations or texts')
    for part in value:
        typed(part, dict, 'turn')
        for name in part:
            if name not in TURN_KEYS and name not in TURN_ASIDE and not empty(part[name]):
                raise Rejected('unknown column', f'{shown(name, 40)!r} of a turn; known are '
                               f'{", ".join(sorted(TURN_KEYS))}')
    return value


# --- questions --------------------------------------------------------------------------------

def _question(filled):
    """Return (the columns that are used, (question, answer)) of a row that asks one question."""
    used = ['question']
    question = filled['question']
    typed(question, str, 'question')
    about = [name for name in ('hint', 'context') if name in filled]
    for name in about:
        typed(filled[name], str, name)
    if about:
        told = '\n'.join(filled[name] for name in about)
        question = f'Context: {told}\nQuestion: {question}'
    answered = [name for name in ('answer', 'answers') if name in filled]
    if not answered:
        raise Rejected('no answer', 'neither answer nor answers holds a text')
    answers = filled[answered[0]]
    if len(answered) > 1 and _answer(answers) not in several(filled['answers']):
        raise Rejected('unclear answer', f'answer {shown(answers, 40)!r} is none of answers')
    columns, options = options_in(filled)
    used += about + answered + columns
    if options:
        return used, _choice(question, options, answers)
    return used, (question, _answer(answers))


def several(answers: Any) -> list:
    """Return the answers of a list, or the one."""
    parts = answers if isinstance(answers, (list, tuple)) else [answers]
    texts = [part.get('answer') if isinstance(part, dict) else part for part in parts]
    return [str(text) if _is_whole(text) else text for text in texts]


def _answer(answers):
    """Return the answer of a question: of several the most frequent, the first among equals."""
    texts = several(answers)
    return max(texts, key=texts.count)


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool)


def options_in(filled: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return (columns, [(label, text)]) of the options of a question."""
    columns = [name for name in ('options', 'choices') if name in filled]
    letters = [letter for letter in LETTERS if letter in filled]
    if letters and columns or len(columns) > 1:
        raise Rejected('unclear answer', f'options in {" and ".join((*columns, *letters)[:3])}')
    if letters:
        # pyrefly: ignore[bad-return]
        return letters, [(letter, _option(filled[letter])) for letter in letters]
    if not columns:
        return [], []
    value = filled[columns[0]]
    if isinstance(value, str):
        value = _literal(value)
    if isinstance(value, dict) and set(value) == {'text', 'label'}:
        typed(value['text'], (list, tuple), 'text of options')
        typed(value['label'], (list, tuple), 'label of options')
        if len(value['text']) != len(value['label']):
            raise Rejected('wrong type', 'options with more texts than labels, or fewer')
        value = dict(zip(map(_option, value['label']), value['text']))
    if isinstance(value, dict):
        pairs = [(str(label), text) for label, text in value.items() if not empty(text)]
    elif isinstance(value, (list, tuple)):
        count = max((k for k, text in enumerate(value, 1) if not empty(text)), default=0)
        if any(map(empty, value[:count])):
            raise Rejected('unclear answer', 'an option before the last is empty')
        pairs = [(str(k), text) for k, text in enumerate(value[:count])]
    else:
        raise Rejected('wrong type', f'{columns[0]} is {type(value).__name__}')
    return columns, [(label, _option(text)) for label, text in pairs]


def _literal(text):
    """Return the value of the text of a list or dict, in the way of JSON or of Python."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise Rejected('wrong type', f'options are the text {shown(text)!r}, which is no list'
                       ) from None


def _option(value):
    """Return the text of one option."""
    if _is_whole(value) or isinstance(value, (bool, float)):
        return str(value)
    typed(value, str, 'an option')
    return value.strip()


def _choice(question, options, answers):
    """Return (question with its options, letter of the answer)."""
    if not 2 <= len(options) <= len(LETTERS):
        raise Rejected('unclear answer', f'{len(options)} options; 2 to {len(LETTERS)} are read')
    letters = list(zip(LETTERS, options))
    right = {letter_of(letters, answer) for answer in several(answers)}
    if len(right) > 1:
        raise Rejected('unclear answer', f'{len(right)} options are right')
    return f'{with_options(question, letters)}\n{ASK_LETTER}', right.pop()


def with_options(question: str, letters: Sequence[tuple[str, tuple[str, str]]]) -> str:
    """Return `question` and below it its options (letter, (label, text)), unless it lists them
    itself.
    """
    listed = all(re.search(rf'\b{letter}[.:)]\s*{re.escape(text)}', question)
                 for letter, (_, text) in letters)
    lines = [] if listed else [f'{letter}. {text}' for letter, (_, text) in letters]
    return '\n'.join([question, *lines])


def letter_of(letters: Sequence[tuple[str, tuple[str, str]]], answer: Any) -> str:
    """Return the letter that an answer names: by the option's letter, label or text; two readings
    that disagree are none. The labels of a list are its numbers from 0, and its letters as well.
    """
    typed(answer, (str, bool), 'answer')
    text = str(answer).strip()
    label = re.sub(r'^\((\w+)\)$|^(\w+)[.)]$', r'\1\2', text)
    lettered = letters[0][1][0] != 'A'
    named = {letter for letter, (own, option) in letters
             if label in (own, own.lower()) or lettered and label.upper() == letter
             or option.casefold() == text.casefold()}
    if len(named) != 1:
        raise Rejected('unclear answer', f'answer {shown(text, 40)!r} names '
                       f'{" and ".join(sorted(named)) or "none"} of {len(letters)} options; give '
                       'the letter')
    return named.pop()

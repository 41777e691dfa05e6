"""What the columns of published sets mean: a row -> its turns and its pictures, nothing unseen.

A row is a closed world. Columns are used (`KNOWN`), left out by design and counted (`ASIDE`, and
what a `Source` names in `ignore`), or the row is `Rejected` with the name. Empty cells (None, '',
NaN, [], and lists and dicts of them) are no values. A row takes one of four forms, by what it
holds: `conversations` or `messages`; `texts` (Cauldron); `question` with `answer` or `answers` and
perhaps `options` or `choices` or columns A, B, ... (`options.py`); `caption` or `text`. Nothing is
repaired by guessing: where two readings are possible, the row is rejected.
"""
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from downscale.data.corpora.cells import Rejected, empty, typed
from downscale.data.corpora.options import LETTERS, question_in
from downscale.data.records import IMAGE, Turn
from downscale.data.row_files import BadRow, shown
from downscale.values import unknown

ROLES = {'human': 'user', 'user': 'user', 'gpt': 'assistant', 'assistant': 'assistant',
         'system': 'system'}
IDS = ('id', 'question_id', 'sample_id', 'index')
PICTURES = ('image', 'images', 'image_path', 'image_paths', 'img', 'imgs', 'img_path', 'picture',
            'pictures', 'image_file', 'file_name', 'filename', 'jpg', 'png')
NUMBERED = re.compile(r'(?:image|img|picture)_?(\d{1,2})')  # image_1 ... image_7 of MMMU
VIDEOS = ('video', 'videos', 'video_path', 'video_id', 'frames')
# Which column decides how a row is read, the first that it has.
ROW_FORMS = ('conversations', 'messages', 'texts', 'question', 'caption', 'text')
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


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a row holds.

    `pictures` are bytes, or a text that names or encodes one, in the order of their marks; `turns`
    are as they are written; `aside` are the columns that were left out, each with whether it held
    something. `pointer` is a column that tells of a picture, '' without; `captioned` says that the
    row is a caption.
    """
    pictures: tuple[bytes | str, ...]
    turns: tuple[Turn, ...]
    aside: dict[str, bool]
    pointer: str
    captioned: bool


def parts_of(row: Any, ask: str, ignore: Sequence[str] = ()) -> Parts:
    """Return the `Parts` of one row; `Rejected` where it cannot be used.

    `ask` is what a caption answers, `ignore` the columns that are left out unseen.
    """
    if isinstance(row, BadRow):
        raise Rejected(row.reason, row)
    if not isinstance(row, dict):
        raise Rejected('wrong type', f'a row must be an object, not {type(row).__name__}')
    filled = {name: value for name, value in row.items()
              if name not in ignore and not empty(value)}
    for name in filled:
        if name not in _PLAIN:
            _check_known(name, filled)
    cells, picture_columns = pictures_in(filled)
    turns, text_columns = _turns(filled, ask)
    form = text_columns[0]
    used = {*picture_columns, *text_columns, *IDS}
    for name in filled:
        if name not in used and name not in ASIDE and name not in PICTURES:
            raise Rejected('unknown column', f'{name!r} beside {form!r}, of which one is '
                           f'read; {_way_on(name)}')
    pictures, turns = _numbered(cells, turns)
    aside = {str(name): name in filled or not empty(row[name]) for name in row if name not in used}
    pointer = next((name for name in POINTERS if name in filled), '')
    return Parts(pictures=pictures, turns=turns, aside=aside, pointer=pointer,
                 captioned=form in ('caption', 'text'))


def _check_known(name, filled):
    """Raise `Rejected` for a column that nothing here knows."""
    if name in VIDEOS:
        raise Rejected('video', f'column {name!r}: videos are not read; {_way_on(name)}')
    if not isinstance(name, str) or not NUMBERED.fullmatch(name) and not (
            name in LETTERS and 'question' in filled):
        raise Rejected('unknown column', f'{_nearest(shown(name, 40))} {_way_on(name)}')


@lru_cache(maxsize=256)  # as many rows as the file has ask for the same names
def _nearest(name):
    """Return what a message says of an unknown column: its name, and the known one that is near."""
    hint = unknown('column', name, KNOWN)
    if not hint.endswith('?'):
        hint = unknown('column', name, KNOWN[:5]) + ' ...;'
    return hint.removeprefix('unknown column ')


def _way_on(name):
    """Return how a user leaves a column out."""
    name = shown(name, 40)
    return f'Source(ignore=({name!r},)), or in data extract --ignore {name}, leaves it out'


# --- pictures ---------------------------------------------------------------------------------

def pictures_in(filled: dict[str, Any]) -> tuple[dict[int, bytes | str], tuple[str, ...]]:
    """Return ({number: picture}, the columns that hold them) of the cells that are not empty.

    Several columns must hold the same, or one the pictures themselves and the others their paths.
    """
    groups = {(name,): _cells(name, filled[name]) for name in PICTURES if name in filled}
    numbered = sorted((int(match[1]), name) for name in filled
                      if (match := NUMBERED.fullmatch(name)))
    if numbered:
        groups[tuple(name for _, name in numbered)] = {
            number: _cell(name, filled[name]) for number, name in numbered}
    if not groups:
        return {}, ()
    # The group that holds pictures themselves is read; without one, the first.
    inside = [names for names, cells in groups.items() if _any_bytes(cells.values())]
    first = inside[0] if inside else next(iter(groups))
    for names, cells in groups.items():
        paths = inside == [first] and names not in inside
        if cells != groups[first] and not (paths and len(cells) == len(groups[first])):
            raise Rejected('image marks', f'columns {first[0]!r} and {names[0]!r} hold different '
                           f'pictures; {_way_on(names[0])}')
    columns = list(first)
    for names in groups:
        if len(names) > 1:  # numbered columns
            columns += names
    return groups[first], tuple(columns)


def _any_bytes(cells):
    return any(isinstance(cell, bytes) for cell in cells)


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
    """Return (pictures, turns) in which the marks `<image 1>` have become `IMAGE`.

    Pictures are in the order of the marks; those that no mark names stand in front of the first
    question.
    """
    places = []
    for turn in turns:
        places += map(int, _PLACE.findall(turn.text))
    if not places:
        return tuple(cells.values()), turns
    if any(IMAGE in turn.text for turn in turns) or not set(places) <= set(cells):
        raise Rejected('image marks', f'the text shows the pictures {places[:9]}, the row has '
                       f'{list(cells)[:9]}')
    # A mark that comes twice shows its picture twice.
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
    """Return (the turns of a row, the columns that hold them, the one that decides first)."""
    form = next((name for name in ROW_FORMS if name in filled), None)
    if form is None:
        raise Rejected('no answer', 'none of conversations, texts, question, caption or text '
                       f'in {shown(list(filled)[:12], 90)}')
    columns = [form]
    if form in ('conversations', 'messages'):
        turns = _conversation(filled[form])
    elif form == 'texts':
        pairs = [(part.get('user'), part.get('assistant')) for part in _dicts(filled[form])]
        turns = _asked(pairs)
    elif form == 'question':
        columns, pair = question_in(filled)
        turns = _asked([pair])
    else:
        typed(filled[form], str, form)
        turns = _asked([(ask, filled[form])])
    if 'system' in filled:
        columns.append('system')
        typed(filled['system'], str, 'system')
        if any(turn.role == 'system' for turn in turns):
            raise Rejected('unknown role', 'a column system beside a system turn')
        turns.insert(0, Turn(role='system', text=filled['system'], supervised=False))
    return tuple(turns), columns


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
    """Return the turns of [{from, value}] or [{role, content}].

    Replies before the first user turn are left out, as LLaVA's loader does.
    """
    turns = []
    for part in _dicts(value):
        role = part.get('role') if part.get('from') is None else part['from']
        if not isinstance(role, str) or role not in ROLES:
            raise Rejected('unknown role', f'{shown(role)!r}; known are {", ".join(ROLES)}')
        text = part.get('content') if part.get('value') is None else part['value']
        if isinstance(text, (list, tuple)):
            text = ''.join(map(_piece, text))
        typed(text, str, 'value of a turn')
        turns.append(Turn(role=ROLES[role], text=text, supervised=ROLES[role] == 'assistant'))
    # A conversation cannot begin with a reply: nothing says what it replies to.
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
    """Return the parts of conversations or texts; `Rejected` where one holds what is not read."""
    typed(value, (list, tuple), 'conversations or texts')
    for part in value:
        typed(part, dict, 'turn')
        for name in part:
            if name not in TURN_KEYS and name not in TURN_ASIDE and not empty(part[name]):
                raise Rejected('unknown column', f'{shown(name, 40)!r} of a turn; known are '
                               f'{", ".join(sorted(TURN_KEYS))}')
    return value

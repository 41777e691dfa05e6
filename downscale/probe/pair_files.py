"""Files of one's own matched pairs: JSON or JSON lines, a row for two pictures that differ in one
thing.

A row is {"before", "after", "question", "answer_before", "answer_after", "box", "change"?,
"field"?, "key"?, "id"?}. `before` and `after` are pictures of one size: paths beside the file,
base64 or `data:` texts. `question` is asked word for word about either, and `answer_before` and
`answer_after`, texts or whole numbers, are what is right. `box` is [left, top, right, bottom] of
the thing asked about in pixels, right and bottom edge exclusive, or a list of such boxes; it holds
for both pictures. `change` says what they differ in: the thing 'asked' about (the default); or of
controls, whose two answers are equal, an 'other' thing, or 'nothing' that anybody could ask about.
`field` is what is asked for, as 'color', and has a ledger of its own (default: 'all'); `key` is by
what the question names the thing, as 'mug'; `id` is for messages. Every column is known or refused
with the nearest one; an empty cell is as good as no column.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from downscale.data import images, row_files
from downscale.data.corpora.cells import Rejected, empty
from downscale.data.corpora.sources import check_texts, picture_of
from downscale.data.records import IMAGE, Turn
from downscale.data.row_files import fault, shown
from downscale.evaluate.scoring.boxes import is_box
from downscale.runtime.files import PathLike
from downscale.values import hash_of, unknown

FORMS = ('.json', '.jsonl', '.ndjson')
PICTURES = ('before', 'after')
ANSWERS = ('answer_before', 'answer_after')
NEEDED = (*PICTURES, 'question', *ANSWERS, 'box')
TEXTS = ('question', 'field', 'change', 'key')
FIELDS = (*NEEDED, 'change', 'field', 'key', 'id')
CHANGES = ('asked', 'other', 'nothing')
MEAN = 'macro'  # what tables call the mean over fields


@dataclass(frozen=True, kw_only=True)
class PicturePair:
    """One row, checked. `pictures` are encoded, of `size` (width, height); `answers` are to either.

    `where` names the row in messages; `outside` is the share of what differs between the pictures
    (squared) that lies outside the boxes; `key` is '' where the row has none.
    """
    where: str
    field: str
    change: str
    key: str
    question: str
    answers: tuple[str, str]
    pictures: tuple[bytes, bytes]
    size: tuple[int, int]
    boxes: tuple[tuple[float, ...], ...]
    outside: float

    @property
    def cluster(self) -> str:
        """What pairs about one picture share."""
        return images.digest(self.pictures[0])


def read_pairs(path: PathLike) -> list[PicturePair]:
    """Return the `PicturePair`s of a file, in its order.

    FileNotFoundError or ValueError in one line with the number of the line or entry.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMS:
        raise fault(path, f'matched pairs are read from {", ".join(FORMS)}, one a row')
    pairs = []
    first = {}
    for where, row in row_files.read_whole(path):
        try:
            filled = _checked(row)
            name = str(filled.get('id', ''))
            if name and name in first:
                raise Rejected('duplicate', f'id {shown(name)!r} stands in {first[name]} already')
            pairs.append(_pair(filled, f'{path.name}, {where}', path.parent))
        except Rejected as error:
            raise fault(path, f'{where}: {error}') from None
        first[name] = where
    for field in dict.fromkeys(pair.field for pair in pairs):
        if not any((pair.field, pair.change) == (field, 'asked') for pair in pairs):
            raise fault(path, f"no pair of the field {shown(field)!r} has the change 'asked', to "
                        'which controls are compared')
    if not pairs:
        raise fault(path, 'the file holds no pair')
    return pairs


def hash_of_pairs(pairs: list[PicturePair]) -> str:
    """Return a short hash of all that pairs ask, show and hold for right."""
    return hash_of([[pair.field, pair.change, pair.key, pair.question, pair.answers, pair.boxes,
                     *map(images.digest, pair.pictures)] for pair in pairs])


def remarks(pairs: list[PicturePair]) -> list[str]:
    """Return what a reader of the ledger should know of its pairs."""
    wide = [pair for pair in pairs if pair.change == 'asked' and pair.outside > 0.5]
    if not wide:
        return []
    return [f'{len(wide)} of {len(pairs)} pairs differ more outside their box than in it (first: '
            f'{wide[0].where}): what moves the answer may stand there']


# --- one row ----------------------------------------------------------------------------------

def _checked(row):
    """Return the cells of a row that hold something, every one known and of its type."""
    for name in row:
        if name not in FIELDS:
            hint = unknown('column', shown(name, 40), FIELDS)
            raise Rejected('unknown column', hint.removeprefix('unknown column '))
    filled = {name: value for name, value in row.items() if not empty(value)}
    for name in NEEDED:
        if name not in filled:
            raise Rejected('missing column', f'{name!r} is empty' if name in row else repr(name))
    for name in (*TEXTS, *PICTURES):
        if not isinstance(filled.get(name, ''), str):
            raise Rejected('wrong type', f'{name} must be a text, not {_short(filled[name])}')
    for name in (*ANSWERS, 'id'):
        value = filled.get(name, '')
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise Rejected('wrong type', f'{name} must be a text or a whole number, not '
                           f'{_short(value)}')
    if filled.get('change', CHANGES[0]) not in CHANGES:
        raise Rejected('unknown change', unknown('change', filled['change'], CHANGES)
                       .removeprefix('unknown change '))
    if filled.get('field') == MEAN:
        raise Rejected('unclear field', f'{MEAN!r} is what the mean over fields is called; '
                       'give another name')
    return filled


def _pair(filled, where, folder):
    """Return the `PicturePair` of checked cells; raise `Rejected` where it cannot be used."""
    # 1. Its texts: what a tokenizer cannot take is refused here.
    change = filled.get('change', CHANGES[0])
    answers = tuple(str(filled[name]) for name in ANSWERS)
    for name, text in (('question', filled['question']), *zip(ANSWERS, answers)):
        if IMAGE in text:
            raise Rejected('image marks', f'{name} holds {IMAGE}; leave it out, the picture is put '
                           'in front')
        check_texts([Turn(role='user', text=text, supervised=True)])
        if text != text.strip():
            raise Rejected('unclear text', f'{name} begins or ends with a space: {_short(text)}')
    if change == 'asked' and answers[0] == answers[1]:
        raise Rejected('equal answers', f'{_short(answers[0])} is the answer to both pictures; '
                       "change 'asked' needs two, a control is 'other' or 'nothing'")
    if change != 'asked' and answers[0] != answers[1]:
        raise Rejected('different answers', f'change {change!r} is a control, whose two answers '
                       f'are equal, not {_short(answers[0])} and {_short(answers[1])}')
    # 2. Its pictures, each decoded now: none fails after hours of work.
    data = tuple(picture_of(filled[name], folder) for name in PICTURES)
    pixels = [_decoded(*part) for part in zip(data, PICTURES)]
    height, width = pixels[0].shape[:2]
    if pixels[1].shape != pixels[0].shape:
        other = pixels[1].shape
        raise Rejected('two sizes', f'before has {width} x {height} pixels, after {other[1]} x '
                       f'{other[0]}; scale or cut one to the other')
    # 3. Its boxes, and whether the pictures differ where they should.
    boxes = _boxes(filled['box'], width, height)
    outside = _outside(*pixels, boxes, change)
    return PicturePair(where=where, field=filled.get('field', 'all'), change=change,
                       key=filled.get('key', ''), question=filled['question'], answers=answers,
                       pictures=data, size=(width, height), boxes=boxes, outside=outside)


def _decoded(data, name):
    try:
        return np.asarray(images.decode(data, name))
    except ValueError as error:
        raise Rejected('unreadable image', error) from None


def _boxes(value, width, height):
    """Return the boxes of a cell; raise `Rejected` for one that is none or leaves the picture."""
    boxes = [value] if is_box(value) else value
    if not isinstance(boxes, list) or not all(map(is_box, boxes)):
        raise Rejected('wrong type', 'box must be [left, top, right, bottom] or a list of such, '
                       f'not {_short(value)}')
    for box in boxes:
        left, top, right, bottom = box
        text = json.dumps(box)
        # A box of NaN is in no picture either.
        if not (0 <= left <= width and 0 <= right <= width and 0 <= top <= height
                and 0 <= bottom <= height):
            raise Rejected('box outside', f'{text} leaves the picture of {width} x {height} '
                           'pixels; a box is [left, top, right, bottom]')
        if right - left < 1 or bottom - top < 1:
            raise Rejected('empty box', f'{text} holds no pixel; a box is [left, top, right, '
                           'bottom] in pixels, not width and height, nor shares')
    return tuple(map(tuple, boxes))


def _outside(before, after, boxes, change):
    """Return the share of what differs that lies outside the boxes.

    Raise `Rejected` where nothing differs, or nothing of what is asked about.
    """
    differs = np.square(after.astype(np.float32) - before).sum(axis=2)
    whole = float(differs.sum())
    if not whole:
        if change == 'asked':
            raise Rejected('equal pictures', 'before and after are the same picture')
        raise Rejected('equal pictures', 'before and after are the same; such a control is 0 '
                       'whatever the model does')
    inside = np.zeros(differs.shape, bool)
    for left, top, right, bottom in boxes:
        inside[int(top):int(np.ceil(bottom)), int(left):int(np.ceil(right))] = True
    if change == 'asked' and not differs[inside].any():
        raise Rejected('box elsewhere', 'the pictures differ outside the box alone; it must hold '
                       'the thing that is asked about')
    return float(differs[~inside].sum()) / whole


def _short(value):
    return shown(repr(value))

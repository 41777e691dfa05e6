"""Boxes in replies: four numbers x1, y1, x2, y2 as shares of a side, and how far two overlap.

The published rules read one form and take every number for a share. `read` is our own: it reads the
forms in use, and says so where a reply counts in another scale than the right box does.
"""
import math
import re
from collections.abc import Sequence

from downscale.evaluate.scoring.statements import plain_reply, statements

_NUMBER = r'\s*(-?\d+(?:\.\d+)?)\s*'
# The first four numbers in one pair of brackets; lmms-eval allows blanks before a number only.
_BOX = re.compile(rf'\[{",".join([_NUMBER] * 4)}\]')


def box_in(text: str) -> tuple[float, ...] | None:
    """Return the first [x1, y1, x2, y2] in `text`, None where there is none."""
    box = _BOX.search(text)
    return tuple(map(float, box.groups())) if box else None


def box_of(gold: str) -> tuple[float, ...]:
    """Return the right box, from '[x1, y1, x2, y2]' with or without brackets, else ValueError."""
    numbers = [float(part) for part in gold.replace('[', '').replace(']', '').split(',')]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f'{gold!r} is no box: four numbers x1, y1, x2, y2 are needed')
    return tuple(numbers)


def is_box(value: object) -> bool:
    """Return whether a value of JSON is a list of four numbers."""
    return isinstance(value, list) and len(value) == 4 and all(
        isinstance(number, (int, float)) and not isinstance(number, bool) for number in value)


def is_box_text(gold: str) -> bool:
    """Return whether a right answer is a box, with its brackets."""
    try:
        return gold.startswith('[') and bool(box_of(gold))
    except ValueError:
        return False


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Return intersection over union of two boxes; 0.0 unless the union has a finite area."""
    # Sides may be negative or infinite: a reply can name any numbers.
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - width * height
    return width * height / union if 0 < union < math.inf else 0.0


def coin(text: str, gold: str) -> float | None:
    """Return 1.0 where the box in `text` overlaps by more than a half, None without a box.

    This is CoIN's rule. CoIN pads pictures to squares; both boxes are in shares of the
    longer side, so their size does not matter.
    """
    box = box_in(text)
    return None if box is None else float(iou(box, box_of(gold)) > 0.5)


def refcoco(text: str, gold: str) -> float | None:
    """Return `coin` with an overlap of a half enough (RefCOCO, ACC@0.5 of lmms-eval)."""
    box = box_in(text)
    return None if box is None else float(iou(box, box_of(gold)) >= 0.5)


def coin_compat(text: str, gold: str) -> float | None:
    """Return `coin` with the published defect, None where its code reads no four numbers.

    Brackets are removed and then first and last characters cut, so '[0.25,0.3,0.75,0.9]' ends in
    '0.' and the verdict depends on how many digits are printed (CoIN, eval_grounding).
    """
    cut = text.removeprefix(' ').replace('[', '').replace(']', '')[1:-1]
    try:
        box = tuple(float(part) for part in cut.split(','))
    except ValueError:
        return None
    return float(iou(box, box_of(gold)) > 0.5) if len(box) == 4 else None


# --- every form, and scales -------------------------------------------------------------------

OTHER_SCALE = 'other scale'
ENOUGH = 0.5  # overlap of a right box
OVER = 1.05  # a share may miss the edge of its picture by as much
THOUSAND = 1000
_ONE = r'[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?\s*%?'
_BETWEEN = r'\s*[,;\s]\s*'
_GROUP = re.compile(rf'[\[({{]\s*({_ONE}(?:{_BETWEEN}{_ONE})*)\s*,?\s*[\])}}]')
_BARE = re.compile(rf'\W*?({_ONE}(?:{_BETWEEN}{_ONE}){{3}})\W*')
_TAG = re.compile(r'<[^<>\d]*>')
_NAMED = re.compile(rf'["\']?\b([a-z][a-z0-9_]*)["\']?\s*[:=]\s*["\']?({_ONE})', re.IGNORECASE)
# Names of two corners, or of a corner and the sides, which a bare list cannot say of itself.
_CORNERS = (('x1', 'y1', 'x2', 'y2'), ('x0', 'y0', 'x1', 'y1'), ('xmin', 'ymin', 'xmax', 'ymax'),
            ('left', 'top', 'right', 'bottom'))
_SIDES = (('x', 'y', 'width', 'height'), ('x', 'y', 'w', 'h'), ('left', 'top', 'width', 'height'))


def read(text: str) -> tuple[tuple[float, ...], bool] | None:
    """Return ((x1, y1, x2, y2), whether they are per cent) of the one box that a reply names.

    None where it names none or several. Read are '[x1, y1, x2, y2]', '(x1, y1), (x2, y2)' also
    with words between, in tags and JSON, numbers alone, and corners or sides by name. Four numbers
    without names are corners: where the third is not right of the first, or the fourth not below
    the second, they are no box.
    """
    text = plain_reply(text)
    # What is stated last counts; without a statement the whole reply must name one box.
    places = [stated.text for stated in statements(text)] + [text]
    boxes = next((there for there in map(_all, places) if there), [])
    if len(boxes) != 1:
        return None
    numbers, percent = boxes[0]
    ordered = numbers[0] < numbers[2] and numbers[1] < numbers[3]
    return (numbers, percent) if ordered and all(map(math.isfinite, numbers)) else None


def _all(text):
    """Return the different boxes in a text."""
    text = _TAG.sub(' ', text)
    named = _by_name(text)
    if named:
        return named
    # Two points in brackets of their own are one box only where no four numbers stand together.
    groups = [_numbers(group[1]) for group in _GROUP.finditer(text)]
    boxes = [group for group in groups if len(group) == 4]
    points = [group for group in groups if len(group) == 2]
    if not boxes and len(points) == 2:
        boxes = [points[0] + points[1]]
    bare = _BARE.fullmatch(text)
    if not groups and bare:
        boxes = [_numbers(bare[1])]
    return list(dict.fromkeys(_parsed(box) for box in boxes))


def _numbers(text):
    return re.findall(_ONE, text)


def _parsed(texts):
    """Return (numbers, whether all are per cent) of four texts."""
    percent = [text.endswith('%') for text in texts]
    return tuple(float(text.rstrip('% ')) for text in texts), all(percent)


def _by_name(text):
    """Return the different boxes whose four numbers have names, as `_parsed`."""
    pairs = [(name.lower().replace('_', ''), value) for name, value in _NAMED.findall(text)]
    boxes = []
    # Any four names in a row: a reply may name an object, or confidence, before and after.
    for k in range(len(pairs) - 3):
        values = dict(pairs[k:k + 4])
        kind = next((kind for kind in (*_CORNERS, *_SIDES) if set(kind) == values.keys()), None)
        if kind:
            numbers, percent = _parsed([values[name] for name in kind])
            if kind in _SIDES:
                x, y, width, height = numbers
                numbers = (x, y, x + width, y + height)
            boxes.append((numbers, percent))
    return list(dict.fromkeys(boxes))


def in_scale(
        box: Sequence[float], percent: bool, gold: Sequence[float],
        size: tuple[float, float] | None = None) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return (`box`, `gold`) in one scale, None where `box` must count in another than `gold`.

    Without the `size` (width, height) of the picture only shares (up to 1), per cent that say so,
    and anything larger can be told apart. With it both become shares: numbers that fit into the
    picture are pixels, others up to 1000 are thousandths of a side.
    """
    if size:
        both = _shares(box, percent, size), _shares(gold, False, size)
        return None if None in both else both
    if percent:
        box = tuple(number / 100 for number in box)
    return (box, gold) if _are_shares(box) == _are_shares(gold) else None


def _are_shares(box):
    return max(map(abs, box)) <= OVER


def _shares(box, percent, size):
    """Return `box` as shares of the sides of a picture; None for numbers that no scale explains."""
    # From the surest scale to the loosest: per cent, shares, pixels, thousandths.
    sides = (*size, *size)
    if percent:
        return tuple(number / 100 for number in box)
    if _are_shares(box):
        return box
    if all(abs(number) <= OVER * side for number, side in zip(box, sides)):
        return tuple(number / side for number, side in zip(box, sides))
    if max(map(abs, box)) <= OVER * THOUSAND:
        return tuple(number / THOUSAND for number in box)
    return None


def judge(text: str, gold: str, size: tuple[float, float] | None = None) -> tuple[str, float]:
    """Return (the box as text, 1.0 where it overlaps by a half, else 0.0).

    The text is OTHER_SCALE for a box that counts otherwise than the right one, '' for none.
    """
    named = read(text)
    if named is None:
        return '', 0.0
    both = in_scale(*named, box_of(gold), size)
    if both is None:
        return OTHER_SCALE, 0.0
    return str(list(named[0])), float(iou(*both) >= ENOUGH)


def other_scale(text: str, gold: str) -> bool:
    """Return whether the first box in `text`, as the published rules read it, counts otherwise."""
    box = box_in(text)
    return box is not None and in_scale(box, False, box_of(gold)) is None

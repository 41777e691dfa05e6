"""Boxes in replies: four numbers x1, y1, x2, y2 as shares of a side, and how far two overlap."""
import math
import re

_NUMBER = r'\s*(-?\d+(?:\.\d+)?)\s*'
# The first four numbers in one pair of brackets; lmms-eval allows blanks before a number only.
_BOX = re.compile(rf'\[{",".join([_NUMBER] * 4)}\]')


def box_in(text):
    """The first [x1, y1, x2, y2] in `text`, None where there is none."""
    found = _BOX.search(text)
    return tuple(map(float, found.groups())) if found else None


def box_of(gold):
    """The right box, from '[x1, y1, x2, y2]' with or without brackets; ValueError for others."""
    numbers = [float(part) for part in gold.replace('[', '').replace(']', '').split(',')]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f'{gold!r} is no box: four numbers x1, y1, x2, y2 are needed')
    return tuple(numbers)


def iou(one, other):
    """Intersection over union of two boxes; 0.0 where the union has no area or no finite one."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - width * height
    return width * height / union if 0 < union < math.inf else 0.0


def coin(text, gold):
    """1.0 where the box in `text` overlaps by more than a half, None without a box (CoIN's rule).

    CoIN pads pictures to squares; both boxes are in shares of the longer side, so their size does
    not matter.
    """
    found = box_in(text)
    return None if found is None else float(iou(found, box_of(gold)) > 0.5)


def refcoco(text, gold):
    """As `coin`, with an overlap of a half enough (RefCOCO, ACC@0.5 of lmms-eval)."""
    found = box_in(text)
    return None if found is None else float(iou(found, box_of(gold)) >= 0.5)


def coin_compat(text, gold):
    """`coin` with the published defect, None where its code reads no four numbers.

    Brackets are removed and then first and last characters cut, so '[0.25,0.3,0.75,0.9]' ends in
    '0.' and the verdict depends on how many digits are printed (CoIN, eval_grounding).
    """
    cut = text.removeprefix(' ').replace('[', '').replace(']', '')[1:-1]
    try:
        found = tuple(float(part) for part in cut.split(','))
    except ValueError:
        return None
    return float(iou(found, box_of(gold)) > 0.5) if len(found) == 4 else None

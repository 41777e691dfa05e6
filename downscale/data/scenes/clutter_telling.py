"""How things of a cluttered scene are told: their order, names, places, steps and short texts."""
from collections.abc import Sequence

import numpy as np

from downscale.data.scenes.world import Object

END = ';'  # ends a record
# The words that may name a thing, the shortest first.
_FORMS = (('shape',), ('color', 'shape'), ('size', 'shape'), ('size', 'color', 'shape'))
# A step: the axis of a place, and whether it goes to larger numbers.
STEPS = {'left of': (0, False), 'right of': (0, True), 'above': (1, False), 'below': (1, True)}


def in_order(objects: Sequence[Object]) -> tuple[Object, ...]:
    """Return things as captions tell them: the large ones first, each size in reading order.

    It decides what a short caption leaves out: what is said last.
    """
    return tuple(sorted(objects, key=lambda obj: (obj.size != 'large', obj.cell[::-1])))


def within(text: str, budget: int | None) -> str:
    """Return as many whole records from the beginning of a text as `budget` words hold.

    A word of this world is one token of its tokenizer. None is no budget.
    """
    words = text.split()
    if budget is None or len(words) <= budget:
        return text
    kept = words[:budget]
    while kept and kept[-1] != END:
        kept.pop()
    return ' '.join(kept)


def name_of(objects: Sequence[Object], obj: Object, without: str = '') -> str | None:
    """Return the fewest words that name `obj` and no other of `objects`; None where none do.

    The words hold no value of the field `without`.
    """
    for form in _FORMS:
        if without in form:
            continue
        like = [other for other in objects
                if all(vars(other)[field] == vars(obj)[field] for field in form)]
        if len(like) == 1:
            return ' '.join(vars(obj)[field] for field in form)
    return None


def place_of(obj: Object) -> tuple[int, int]:
    """Return (column, row) of a thing, counted from 1."""
    column, row = obj.cell.split()
    return ord(column) - 96, int(row)


def placed(objects: Sequence[Object]) -> str:
    """Return what each thing is, where it is and its colour, as records: what steps follow."""
    return ' '.join(f'{obj.shape} {obj.cell} {obj.color} {END}' for obj in objects)


def distance(obj: Object, other: Object) -> int:
    """Return the squared distance of two things, in places."""
    return int(np.sum(np.subtract(place_of(obj), place_of(other)) ** 2))


def searched(objects: Sequence[Object], start: Object, direction: str) -> str:
    """Return the search for one step in words: the number of each thing, and the nearest so far.

    'right c no f f e e' reads the columns c, f and e in the order of the text, from column d: c
    lies the other way, and of f and e the latter is nearer. To tell the nearest at once takes all
    things at once, and so does it to tell that a column is empty.
    """
    axis, up = STEPS[direction]
    begin = place_of(start)[axis]
    words = []
    nearest = None
    for obj in objects:
        number = place_of(obj)[axis]
        ahead = number > begin if up else number < begin
        if ahead and (nearest is None or abs(number - begin) < abs(nearest - begin)):
            nearest = number
        words += [_line(axis, number), 'no' if nearest is None else _line(axis, nearest)]
    return ' '.join(words)


def _line(axis, number):
    """Return the word of a column (axis 0) or a row."""
    return str(number) if axis else chr(96 + number)


def step(objects: Sequence[Object], obj: Object, direction: str) -> Object | None:
    """Return the next thing in a direction: the nearest along that axis, wherever on the other.

    None where there is none, or two are as near.
    """
    axis, up = STEPS[direction]
    start = place_of(obj)[axis]
    ahead = {}
    for other in objects:
        gap = place_of(other)[axis] - start
        gap = gap if up else -gap
        if gap > 0:
            ahead.setdefault(gap, []).append(other)
    if not ahead:
        return None
    nearest = ahead[min(ahead)]
    return nearest[0] if len(nearest) == 1 else None

"""The families of questions: each gives every question that can be asked about one scene.

Every text is words separated by single spaces, so a word-level tokenizer reads it (`vocabulary`).
"""
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

from downscale.data.scenes.world import FIELDS, SIZES, Scene, World, box_text, record, records

_DIRECTIONS = {'left of': (0, 'before'), 'right of': (0, 'after'),
               'above': (1, 'before'), 'below': (1, 'after')}


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One askable question before it gets an identity, options and a chance level."""
    text: str
    answer: str
    information: str
    extraction: str
    trace: str
    scan: str | None = None  # None: the same as `trace`


def _attribute(world, scene):
    """Return what colour and what size each object is."""
    asks = []
    for obj in scene.objects:
        shown = records([obj], 'shape')
        for field in ('color', 'size'):
            value = vars(obj)[field]
            asks.append(Draft(
                text=f'what {field} is the {obj.shape}', answer=value,
                information=f'look at the {obj.shape}', extraction=shown,
                trace=f'{shown} {field} {value}'))
    return asks


def _one_object(text, answer_field, key):
    """Return a family that asks for one field of the object that its field `key` names."""
    def family(world, scene):
        asks = []
        passed = []
        for obj in scene.objects:
            name = vars(obj)[key]
            answer = vars(obj)[answer_field]
            shown = records([obj], key)
            the = name if key == 'cell' else f'the {name}'
            # A record of a caption is found by its first field, the shape. By another, the objects
            # are gone through until it is met.
            passed.append(f'{obj.shape} {name}')
            decides = f'{answer_field} {answer}'
            scan = None if key == FIELDS[0] else f'{" ".join(passed)} ; {decides}'
            asks.append(Draft(
                text=text.format(the), answer=answer, information=f'look at {the}',
                extraction=shown, trace=f'{shown} {decides}', scan=scan))
        return asks
    return family


def _ground(world, scene):
    """Return which box each object has."""
    asks = []
    for obj in scene.objects:
        box = box_text(world, obj.box)
        shown = record(obj, 'shape')
        asks.append(Draft(
            text=f'box of the {obj.shape}', answer=box, information=f'look at the {obj.shape}',
            extraction=f'{shown} box {box} ;', trace=f'{shown} ; box {box}'))
    return asks


def _count(world, scene):
    """Return how many things have each size and colour that occurs, and one that does not.

    So 0 is an answer that is neither absent nor common.
    """
    asks = []
    values = [('size', size) for size in SIZES] + [('color', color) for color in world.colors]
    things = {value: _having(scene, field, value) for field, value in values}
    absent = [value for _, value in values if not things[value]]
    # Which of the absent values is asked must not depend on the order of the colours.
    spare = absent[sum(map(ord, scene.scene_id)) % len(absent)] if absent else None
    # The extraction holds the things that count, the caption all: hence a trace for either.
    for field, value in values:
        if not things[value] and value != spare:
            continue
        asks.append(Draft(
            text=f'how many things are {value}', answer=str(len(things[value])),
            information=f'look at all {value} things',
            extraction=records(things[value], field) or f'no {value} things ;',
            trace=_counted(things[value], field, value),
            scan=_counted(scene.objects, field, value)))
    return asks


def _having(scene, field, value):
    """Return the objects of a scene whose `field` has that value."""
    return [obj for obj in scene.objects if vars(obj)[field] == value]


def _counted(objects, field, value):
    """Return a trace: each object, its `field`, how many have had `value` so far; the total."""
    steps = []
    total = 0
    for obj in objects:
        total += vars(obj)[field] == value
        steps.append(f'{obj.shape} {vars(obj)[field]} {total}')
    return ' '.join([*steps, f'; total {total}'])


def _compare(world, scene):
    """Return which of two objects is larger, and which is smaller."""
    asks = []
    for first, second in permutations(scene.objects, 2):
        if first.size == second.size:
            continue
        shown = records([first, second], 'shape')
        steps = ' '.join(f'{obj.shape} {obj.cell} {obj.size}' for obj in (first, second))
        for word, size in (('larger', 'large'), ('smaller', 'small')):
            answer = first.shape if first.size == size else second.shape
            asks.append(Draft(
                text=f'which is {word} {first.shape} or {second.shape}', answer=answer,
                information=f'look at the {first.shape} and the {second.shape}', extraction=shown,
                trace=f'{steps} ; {size} {answer}'))
    return asks


def _relation(world, scene):
    """Return whether one object is left of another, right of it, above or below."""
    asks = []
    for first, second in permutations(scene.objects, 2):
        shown = records([first, second], 'shape')
        cells = f'{first.shape} {first.cell} {second.shape} {second.cell}'
        for direction, (axis, wanted) in _DIRECTIONS.items():
            # The letter of a cell is its column, the digit its row: both are compared as text.
            place = first.cell[axis]
            other_place = second.cell[axis]
            if place == other_place:
                continue
            order = 'before' if place < other_place else 'after'
            asks.append(Draft(
                text=f'is the {first.shape} {direction} the {second.shape}',
                answer='yes' if order == wanted else 'no',
                information=f'look at the {first.shape} and the {second.shape}', extraction=shown,
                trace=f'{cells} ; {place} {order} {other_place}'))
    return asks


# `world.FAMILIES` names them, and 'fact', in this order.
ASKS: dict[str, Callable[[World, Scene], list[Draft]]] = {
    'attribute': _attribute,
    'position': _one_object('where is {}', 'cell', 'shape'),
    'content': _one_object('what is at {}', 'shape', 'cell'),
    'ground': _ground,
    'count': _count,
    'compare': _compare,
    'relation': _relation,
    'read': _one_object('what does {} read', 'char', 'shape'),
}

"""What can be asked about a cluttered scene, by family (`clutter_table.FAMILIES`)."""
from collections.abc import Callable
from functools import partial
from itertools import permutations, product

from downscale.data.scenes.clutter_table import CHAINS
from downscale.data.scenes.clutter_telling import (
    END,
    STEPS,
    distance,
    name_of,
    place_of,
    placed,
    searched,
    step,
)
from downscale.data.scenes.clutter_world import Clutter
from downscale.data.scenes.question_families import Draft
from downscale.data.scenes.world import Scene, box_text, records

_AROUND = 3  # the things that are told to find the nearest
_TEXTS = {'color': 'what color is the {}', 'size': 'what size is the {}',
          'read': 'what does the {} read', 'position': 'where is the {}',
          'ground': 'box of the {}'}
_ANSWERS = {'color': 'color', 'size': 'size', 'read': 'char', 'position': 'cell'}


def _look_up(family, world, scene):
    """Return what one field is of every thing that can be named without it."""
    asks = []
    field = _ANSWERS[family]
    for obj in scene.objects:
        name = name_of(scene.objects, obj, without=field)
        if name is None:
            continue
        shown = records([obj])
        value = vars(obj)[field]
        asks.append(Draft(text=_TEXTS[family].format(name), answer=value,
                          information=f'look at the {name}', extraction=shown,
                          trace=f'{shown} {field} {value}'))
    return asks


def _content(world, scene):
    """Return what stands at each place that is taken."""
    asks = []
    for k, obj in enumerate(scene.objects):
        shown = records([obj])
        # A text tells what a thing is before it tells where: so all of them are read up to it.
        read = ' '.join(f'{each.cell} {each.shape}' for each in scene.objects[:k + 1])
        asks.append(Draft(text=f'what is at {obj.cell}', answer=obj.shape,
                          information=f'look at {obj.cell}', extraction=shown,
                          trace=f'{shown} shape {obj.shape}', scan=f'{read} {END} {obj.shape}'))
    return asks


def _ground(world, scene):
    """Return which box each thing has that can be named."""
    asks = []
    for obj in scene.objects:
        name = name_of(scene.objects, obj)
        if name is None:
            continue
        box = box_text(world, obj.box)
        asks.append(Draft(text=_TEXTS['ground'].format(name), answer=box,
                          information=f'look at the box of the {name}',
                          extraction=f'box {box} {END}',
                          trace=f'{obj.shape} {obj.cell} {obj.size} {END} box {box}'))
    return asks


def _count(field, text, world, scene):
    """Return how many things have each value of a field, and one that none has."""
    asks = []
    values = {'color': world.colors, 'shape': world.shapes}[field]
    things = {value: [obj for obj in scene.objects if vars(obj)[field] == value]
              for value in values}
    absent = [value for value in values if not things[value]]
    # Which of them is asked must not depend on their order.
    spare = absent[sum(map(ord, scene.scene_id)) % len(absent)] if absent else None
    for value in values:
        if not things[value] and value != spare:
            continue
        like = things[value]
        # The extraction holds the things that count, the caption all: hence a trace for either.
        asks.append(Draft(
            text=text.format(value), answer=str(len(like)),
            information=f'look at all {value} things',
            extraction=placed(like) or f'no {value} things {END}',
            trace=_counted(like, field, value), scan=_counted(scene.objects, field, value)))
    return asks


def _counted(objects, field, value):
    """Return a trace: each thing, its `field`, how many have had `value` so far; the total."""
    steps = []
    total = 0
    for obj in objects:
        total += vars(obj)[field] == value
        steps.append(f'{vars(obj)[field]} {total}')
    return ' '.join([*steps, f'{END} total {total}'])


def _compare(world, scene):
    """Return which of two things is larger, and which is smaller, where their shapes differ."""
    asks = []
    names = {obj: name_of(scene.objects, obj, without='size') for obj in scene.objects}
    for first, second in permutations(scene.objects, 2):
        if first.size == second.size or first.shape == second.shape \
                or None in (names[first], names[second]):
            continue
        shown = records([first, second])
        both = [names[first], names[second]]
        sizes = f'{first.shape} {first.size} {second.shape} {second.size}'
        for word, size in (('larger', 'large'), ('smaller', 'small')):
            answer = first.shape if first.size == size else second.shape
            asks.append(Draft(
                text=f'which is {word} the {" or the ".join(both)}', answer=answer,
                information=f'look at the {" and the ".join(both)}',
                extraction=shown, trace=f'{sizes} {END} {size} {answer}'))
    return asks


def _relation(world, scene):
    """Return whether one thing is left of another, right of it, above or below."""
    asks = []
    names = {obj: name_of(scene.objects, obj) for obj in scene.objects}
    for first, second in permutations(scene.objects, 2):
        if None in (names[first], names[second]):
            continue
        shown = records([first, second])
        information = f'look at the {names[first]} and the {names[second]}'
        for direction, (axis, up) in STEPS.items():
            gap = place_of(first)[axis] - place_of(second)[axis]
            if gap:
                words = [obj.cell.split()[axis] for obj in (first, second)]
                order = ' after ' if gap > 0 else ' before '
                answer = 'yes' if (gap > 0) == up else 'no'
                asks.append(Draft(
                    text=f'is the {names[first]} {direction} the {names[second]}', answer=answer,
                    information=information, extraction=shown,
                    trace=f'{first.cell} {second.cell} {END} {order.join(words)}'))
    return asks


def _nearest(world, scene):
    """Return what is nearest to each thing that can be named, where nothing is as near."""
    asks = []
    for obj in scene.objects:
        # What is told of the things around holds no size.
        name = name_of(scene.objects, obj, without='size')
        others = sorted((other for other in scene.objects if other is not obj),
                        key=lambda other: distance(obj, other))
        if name is None or (len(others) > 1
                            and distance(obj, others[0]) == distance(obj, others[1])):
            continue
        near = {obj.cell, *(other.cell for other in others[:_AROUND])}
        shown = [other for other in scene.objects if other.cell in near]
        asks.append(Draft(
            text=f'what is nearest to the {name}', answer=others[0].shape,
            information=f'look at the {name} and what is nearest to it',
            extraction=placed(shown),
            trace=f'{obj.shape} {obj.cell} nearest {others[0].shape} {others[0].cell}'))
    return asks


def _exists(world, scene):
    """Return whether a colour and a shape occur together: as often yes as no, both occur."""
    there = list(dict.fromkeys((obj.color, obj.shape) for obj in scene.objects))
    colors = list(dict.fromkeys(color for color, _ in there))
    shapes = list(dict.fromkeys(shape for _, shape in there))
    apart = [both for both in product(colors, shapes) if both not in there]
    n = min(len(there), len(apart))
    # Every so many of them, so that no part of the scene is left out.
    apart = [apart[k * len(apart) // n] for k in range(n)]
    asks = []
    for color, shape in [*there[:n], *apart]:
        like = [obj for obj in scene.objects if obj.shape == shape]
        answer = 'yes' if (color, shape) in there else 'no'
        words = []
        total = 0
        for obj in scene.objects:
            total += (obj.color, obj.shape) == (color, shape)
            words.append(f'{obj.shape} {obj.color} {total}')
        asks.append(Draft(
            text=f'is there a {color} {shape}', answer=answer,
            information=f'look at all {shape} things', extraction=placed(like),
            trace=f'{shape} {_counted(like, "color", color)}',
            scan=' '.join([*words, f'{END} total {total}'])))
    return asks


# --- chains -----------------------------------------------------------------------------------

def _chain(dose, world, scene):
    """Return the colour of what `dose` steps lead to, where every step is needed.

    No thing on the way has the colour that is asked for, and no chain that leaves one step out
    leads to it.
    """
    steps = {}
    for obj in scene.objects:
        for direction in STEPS:
            steps[obj.cell, direction] = step(scene.objects, obj, direction)
    asks = []
    for obj in scene.objects:
        # A chain tells no size: what leads to the answer is told of all things.
        name = name_of(scene.objects, obj, without='size')
        for way in product(STEPS, repeat=dose) if name else ():
            path = _path(steps, obj, way)
            if path is not None and _needs_all(steps, path, way):
                asks.append(_chained(name, path, way, scene.objects))
    return asks


def _path(steps, obj, way):
    """Return the things on a way of steps, `obj` first.

    None where it ends early or meets one twice.
    """
    path = [obj]
    for direction in way:
        after = steps[path[-1].cell, direction]
        if after is None or after in path:
            return None
        path.append(after)
    return path


def _needs_all(steps, path, way):
    """Return whether no shorter way gives the answer: not one that stops, nor one that skips."""
    color = path[-1].color
    if color in [obj.color for obj in path[:-1]]:
        return False
    for k in range(len(way) - 1):
        obj = path[k]
        for direction in way[k + 1:]:
            obj = obj and steps[obj.cell, direction]
        if obj is not None and obj.color == color:
            return False
    return True


def _chained(name, path, way, objects):
    """Return the question of a way: what is asked for stands first, what is named last."""
    things = f'the {name}'
    trace = f'{path[0].shape} {path[0].cell}'
    start = path[0]
    for direction, obj in zip(way, path[1:], strict=True):
        things = f'the thing {direction} {things}'
        search = searched(objects, start, direction)
        trace += f' {direction.split()[0]} {search} {END} {obj.shape} {obj.cell}'
        start = obj
    color = path[-1].color
    return Draft(text=f'what color is {things}', answer=color,
                 information='look at where all things are and their color',
                 extraction=placed(objects), trace=f'{trace} {END} color {color}')


ASKS: dict[str, Callable[[Clutter, Scene], list[Draft]]] = {
    **{family: partial(_look_up, family) for family in _ANSWERS},
    'content': _content,
    'ground': _ground,
    'count_color': partial(_count, 'color', 'how many things are {}'),
    'count_shape': partial(_count, 'shape', 'how many {} things are there'),
    'compare': _compare,
    'relation': _relation,
    'nearest': _nearest,
    'exists': _exists,
    **{family: partial(_chain, dose) for family, dose in CHAINS.items()},
}

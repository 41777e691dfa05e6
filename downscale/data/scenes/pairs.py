"""Matched pairs: two scenes that differ in one field of one object, and a question about it.

They tell what a model does with that field: whatever it answers differently comes from there.
"""
from dataclasses import dataclass, replace

import numpy as np

from downscale.data.records import Example, Question
from downscale.data.scenes.drawing import render
from downscale.data.scenes.question_families import ASKS
from downscale.data.scenes.questions import caption_of, question_of
from downscale.data.scenes.world import SIZES, Object, World, sample, stream

# What is asked for: (family, wording, the key by which the object is named).
ASKED = {'color': ('attribute', 'what color is the {}', 'shape'),
         'size': ('attribute', 'what size is the {}', 'shape'),
         'char': ('read', 'what does the {} read', 'shape'),
         'shape': ('content', 'what is at {}', 'cell')}
# What the two differ in: that field of the asked object or of another, or nothing but the shade of
# the background; or the same scene is asked about another object.
CHANGES = ('asked', 'other', 'nothing', 'question')


@dataclass(frozen=True, kw_only=True)
class ScenePair:
    """Two examples with one question each, and the `asked` object of the first."""
    field: str
    change: str
    base: Example
    source: Example
    asked: Object


def fields_of(world: object) -> list[str]:
    """Return the fields of one object that a world asks for, and that can be another.

    Of a cluttered world, whose pairs are other ones, there are none.
    """
    if not isinstance(world, World):
        return []
    # Shapes are distinct in a scene, so that another one must be left.
    fields = [field for field, (family, _, _) in ASKED.items() if family in world.families]
    return [field for field in fields
            if field != 'shape' or world.n_shapes > world.max_objects]


def key_of(field: str) -> str:
    """Return the field by which an object is named that another field is asked of."""
    return ASKED[field][2]


def pair(world: World, split: str, index: int, field: str, change: str = 'asked') -> ScenePair:
    """Return pair `index` of a field: the same scene and object for every `change`.

    The fields are those of `fields_of(world)`.
    """
    rng = stream(world, 'pair', split, index)
    scene = sample(world, split, index)
    order = rng.permutation(len(scene.objects))
    asked, *others = (scene.objects[k] for k in order)
    # So that there is something to take over.
    other = next((obj for obj in others if vars(obj)[field] != vars(asked)[field]), others[0])
    # The draws come in one order, whatever the change is.
    changed, unasked = (_other_value(world, rng, scene, obj, field) for obj in (asked, other))
    base = _example(world, scene, asked, field, 'base')
    if change == 'question':
        return ScenePair(field=field, change=change, base=base, asked=asked,
                         source=_example(world, scene, other, field, change))
    new = {'asked': changed, 'other': unasked, 'nothing': asked}[change]
    if change == 'nothing':
        again = stream(world, 'pair again', split, index)
        moved = replace(scene, background=int(again.integers(236, 250)))
    else:
        old = asked if change == 'asked' else other
        moved = replace(scene, objects=tuple(new if obj is old else obj for obj in scene.objects))
    return ScenePair(field=field, change=change, base=base, asked=asked,
                     source=_example(world, moved, asked, field, change))


def _other_value(world, rng, scene, obj, field):
    """Return the object with another value of a field; a new size keeps the middle."""
    values = {'color': world.colors, 'size': SIZES, 'char': world.chars,
              'shape': world.shapes}[field]
    taken = {each.shape for each in scene.objects} if field == 'shape' else {vars(obj)[field]}
    others = [value for value in values if value not in taken]
    new = replace(obj, **{field: others[int(rng.integers(len(others)))]})
    if field == 'size':
        width, before = world.diameter(new.size), obj.box[2] - obj.box[0]
        x, y = (edge + (before - width) // 2 for edge in obj.box[:2])
        new = replace(new, box=(x, y, x + width, y + width))
    return new


def _example(world, scene, obj, field, name):
    """Return the example of a scene with the one question about a field of an object."""
    family, wording, key = ASKED[field]
    text = wording.format(vars(obj)[key])
    ask = next(ask for ask in ASKS[family](world, scene) if ask.text == text)
    scene_id = f'{scene.scene_id}-{field}-{name}'
    question: Question = question_of(ask, scene_id, family)
    return Example(scene_id=scene_id, images=(render(world, scene),), caption=caption_of([scene]),
                   questions=(question,))


def own_patches(boxes: list[tuple[int, ...]], side: int, patch: int) -> np.ndarray:
    """Return which patches [P] of a square picture of `side` pixels these boxes touch.

    Boxes are x0, y0, x1, y1 in pixels, right and bottom edge exclusive.
    """
    count = side // patch
    touched = np.zeros((count, count), bool)
    for x0, y0, x1, y1 in boxes:
        touched[y0 // patch:-(-y1 // patch), x0 // patch:-(-x1 // patch)] = True
    return touched.ravel()

"""Matched pairs: two scenes that differ in one field of one object, and a question about it.

They tell what a model does with that field: whatever it answers differently comes from there.
"""
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count

from downscale.data.records import Example, Question
from downscale.data.scenes import clutter_drawing, clutter_families, clutter_world
from downscale.data.scenes.clutter_telling import name_of
from downscale.data.scenes.clutter_world import Clutter
from downscale.data.scenes.drawing import render
from downscale.data.scenes.question_families import ASKS
from downscale.data.scenes.questions import caption_of, question_of
from downscale.data.scenes.world import SIZES, Object, World, sample, stream

# What is asked for: (family, wording, the key by which the object is named).
ASKED = {'color': ('attribute', 'what color is the {}', 'shape'),
         'size': ('attribute', 'what size is the {}', 'shape'),
         'char': ('read', 'what does the {} read', 'shape'),
         'shape': ('content', 'what is at {}', 'cell')}
# The families of a cluttered world that ask the same; its things are named by up to three words.
CLUTTERED = {'color': 'color', 'size': 'size', 'char': 'read', 'shape': 'content'}
# What the two differ in: that field of the asked object or of another, or nothing but the shade of
# the background; or the same scene is asked about another object.
CHANGES = ('asked', 'other', 'nothing', 'question')


KEPT = 8192  # pairs in memory, some 20 KB each


@dataclass(frozen=True, kw_only=True)
class ScenePair:
    """Two examples with one question each, and the `asked` one of the `objects` of the first.

    `named` are the fields whose values name it.
    """
    field: str
    change: str
    base: Example
    source: Example
    asked: Object
    objects: tuple[Object, ...]
    named: tuple[str, ...]


def fields_of(world: object) -> list[str]:
    """Return the fields of one object that a world asks for, and that can be another."""
    if isinstance(world, Clutter):
        return [field for field, family in CLUTTERED.items() if family in world.families]
    if not isinstance(world, World):
        return []
    # Shapes are distinct in a scene, so that another one must be left.
    fields = [field for field, (family, _, _) in ASKED.items() if family in world.families]
    return [field for field in fields
            if field != 'shape' or world.n_shapes > world.max_objects]


def key_of(field: str) -> str:
    """Return the field by which an object is named that another field is asked of."""
    return ASKED[field][2]


@lru_cache(KEPT)  # all cells of a study are asked about the same
def pair(world: World | Clutter, split: str, index: int, field: str,
         change: str = 'asked') -> ScenePair:
    """Return pair `index` of a field: the same scene and object for every `change`.

    The fields are those of `fields_of(world)`. In a cluttered world it is the same thing that
    changes: where it is 'other', another thing is asked about.
    """
    if isinstance(world, Clutter):
        return _cluttered(world, split, index, field, change)
    rng = stream(world, 'pair', split, index)
    scene = sample(world, split, index)
    order = rng.permutation(len(scene.objects))
    asked, *others = (scene.objects[k] for k in order)
    # So that there is something to take over.
    other = next((obj for obj in others if vars(obj)[field] != vars(asked)[field]), others[0])
    # The draws come in one order, whatever the change is.
    changed, unasked = (_other_value(world, rng, scene, obj, field) for obj in (asked, other))
    made = partial(ScenePair, field=field, change=change, asked=asked, objects=scene.objects,
                   named=(key_of(field),), base=_example(world, scene, asked, field, 'base'))
    if change == 'question':
        return made(source=_example(world, scene, other, field, change))
    new = {'asked': changed, 'other': unasked, 'nothing': asked}[change]
    if change == 'nothing':
        again = stream(world, 'pair again', split, index)
        moved = replace(scene, background=int(again.integers(236, 250)))
    else:
        old = asked if change == 'asked' else other
        moved = replace(scene, objects=tuple(new if obj is old else obj for obj in scene.objects))
    return made(source=_example(world, moved, asked, field, change))


def _cluttered(world, split, index, field, change):
    """Return the `ScenePair` of a cluttered world."""
    scene, moved, asked, other = _scenes(world, split, index, field)
    about = other if change == 'other' else asked
    name = _named(scene, about, field)
    named = [key for key in ('size', 'color', 'shape') if vars(about)[key] in name.split()]
    base = _of_clutter(world, scene, name, field, 'base')
    if change == 'question':
        name = _named(scene, other, field)
        moved = scene
    elif change == 'nothing':
        # Another texture and other lines behind the same things.
        again = stream(world, 'pair again', split, index)
        moved = replace(scene, background=int(again.integers(2 ** 16)))
    return ScenePair(field=field, change=change, base=base, asked=about, objects=scene.objects,
                     named=tuple(named) or ('cell',),
                     source=_of_clutter(world, moved, name, field, change))


@lru_cache(KEPT)  # one for all changes
def _scenes(world, split, index, field):
    """Return (scene, the scene with one thing changed, that thing, another to ask about).

    It is the first from `index` on in which another thing can be named, in both by the same words.
    """
    for tries in count():
        # Far enough, so that no pair of another index is taken.
        scene, moved = clutter_world.pair(world, split, index + tries * 10_000_000, field)
        asked, = set(scene.objects) - set(moved.objects)
        for other in scene.objects:
            name = _named(scene, other, field)
            value = vars(other)[field]
            if other is not asked and name and value != vars(asked)[field] \
                    and _named(moved, other, field) == name:
                return scene, moved, asked, other


def _named(scene, thing, field):
    """Return the words by which a thing is named that its `field` is asked of; None without."""
    return thing.cell if field == 'shape' else name_of(scene.objects, thing, without=field)


def _of_clutter(world, scene, name, field, change):
    """Return the example of a cluttered scene with the one question about a field of a thing."""
    family = CLUTTERED[field]
    text = ASKED[field][1].format(name)
    ask = next(ask for ask in clutter_families.ASKS[family](world, scene) if ask.text == text)
    scene_id = f'{scene.scene_id}-{field}-{change}'
    return Example(scene_id=scene_id, images=(clutter_drawing.render(world, scene),),
                   caption=caption_of([scene]), questions=(question_of(ask, scene_id, family),))


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

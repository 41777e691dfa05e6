"""The cluttered world: many things, some alike, at places of their own, in front of one another.

A thing covers several patches of the tower and none of them alone, so perception is more than one
token. Scenes have the records of `world.py`; a place is two words, the column's letter and the
row's number ('c 4'). Everything is a pure function of (world, split, index).
"""
import dataclasses
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Annotated, Any

from downscale.data.scenes.clutter_drawing import hidden, meet
from downscale.data.scenes.clutter_table import NAMES
from downscale.data.scenes.clutter_telling import in_order, name_of
from downscale.data.scenes.world import (
    CHARS,
    COLORS,
    SHAPES,
    SIZES,
    SPLITS,
    Object,
    Scene,
    split_of,
    stream,
)
from downscale.values import Choice, Range, Several, check

MORE_SHAPES = (*SHAPES, 'house', 'crown', 'flag', 'boat', 'shield', 'tee')
SHORTEST = 8  # tokens: the longest single record of an extraction, or of a caption, has no more

_MAX_DRAWS = 2_000
_MAX_CHANGES = 50  # of one scene, before another is drawn: both must be of one split
_PLACES = 60  # places that are tried for one thing before a scene is begun anew


@dataclass(frozen=True, kw_only=True)
class Clutter:
    """The cluttered world (`kind='clutter'`); two equal ones produce byte-identical data.

    Lengths are pixels. `side / grid` is how precisely a place is told; a thing's middle lies up to
    `jitter_px` from the middle of its place. `exposures` is how often a fact is told in one epoch
    of the text stage, whatever their number; a rare one is told a tenth as often. Short captions
    and extractions have at most as many tokens as one of `budgets`.
    """
    kind: Annotated[str, Choice(('clutter',), 'kind')] = 'clutter'
    side: Annotated[int, Range(48, 1000, 'pixels along the image')] = 96
    grid: Annotated[int, Range(4, 9, 'columns and rows that places are told by')] = 9
    large_px: Annotated[int, Range(14, 400, 'pixels along a large thing')] = 22
    small_px: Annotated[int, Range(10, 400, 'pixels along a small thing')] = 16
    jitter_px: Annotated[int, Range(0, 50, 'pixels from the middle of a place, at most')] = 3
    min_objects: Annotated[int, Range(2, 20, 'the fewest things of a scene')] = 6
    max_objects: Annotated[int, Range(2, 20, 'the most things of a scene')] = 12
    n_shapes: Annotated[int, Range(2, len(MORE_SHAPES), 'shapes that occur')] = 14
    n_colors: Annotated[int, Range(2, len(COLORS), 'colours that occur')] = 8
    n_chars: Annotated[int, Range(2, len(CHARS), 'characters that occur')] = 8
    occlusion: Annotated[float, Range(0, 0.5, 'share of a thing, and of its character, that others '
                                      'may cover')] = 0.25
    strokes: Annotated[int, Range(0, 100, 'lines and arcs behind the things')] = 8
    n_facts: Annotated[int, Range(4, 100_000, 'facts of each kind of knowledge')] = 64
    exposures: Annotated[int, Range(1, 100_000, 'tellings of a fact in an epoch of text')] = 50
    budgets: Annotated[tuple[Annotated[int, Range(SHORTEST, 10_000, 'tokens of a short text')],
                             ...],
                       Several(0, 'budgets that writers are trained under')] = (8, 16, 32, 64)
    families: Annotated[tuple[Annotated[str, Choice(NAMES, 'family')], ...],
                        Several(1, 'the families of questions that are asked')] = NAMES
    seed: Annotated[int, Range(0, 2 ** 63 - 1, 'seed of the world')] = 0
    version: str = '1.2.0'

    def __post_init__(self):
        check(self)
        if self.min_objects > self.max_objects:
            raise ValueError(f'min_objects={self.min_objects} > max_objects={self.max_objects}: '
                             'lower the one or raise the other')
        if self.small_px >= self.large_px:
            raise ValueError(f'small_px={self.small_px} >= large_px={self.large_px}: sizes must '
                             'differ')
        # Things stand inside the picture, and their places are told by their middles.
        step = self.side / self.grid
        if self.jitter_px >= step / 2:
            raise ValueError(f'jitter_px={self.jitter_px} >= side / grid / 2 = {step / 2:.4g}: a '
                             'thing could stand nearer to another place; lower it or `grid`')
        if self.large_px * 3 > self.side:
            raise ValueError(f'3 * large_px={3 * self.large_px} > side={self.side}: too few things '
                             'find a place; lower it or raise `side`')

    def declared(self) -> dict[str, Any]:
        """Return the fields that data sets and cells are named by, and stored with."""
        return dataclasses.asdict(self)

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shapes that occur."""
        return MORE_SHAPES[:self.n_shapes]

    @property
    def colors(self) -> tuple[str, ...]:
        """The names of the colours that occur."""
        return tuple(COLORS)[:self.n_colors]

    @property
    def chars(self) -> tuple[str, ...]:
        """The characters that occur."""
        return CHARS[:self.n_chars]

    @property
    def cells(self) -> tuple[str, ...]:
        """Places in reading order: the column's letter and the row's number, 'a 1' top left."""
        return _cells(self.grid)

    def diameter(self, size: str) -> int:
        """Return width and height in pixels of a thing of that size."""
        return self.large_px if size == 'large' else self.small_px

    def middle(self, cell: str) -> tuple[int, int]:
        """Return (x, y) in pixels of the middle of a place, for a thing to stand on."""
        column, row = cell.split()
        step = self.side / self.grid
        return round((ord(column) - 96.5) * step), round((int(row) - 0.5) * step)


@cache
def _cells(grid):
    """Return the places of a grid in reading order."""
    return tuple(f'{chr(97 + column)} {row + 1}'
                 for row, column in product(range(grid), repeat=2))


def check_triples(world: object, share: float) -> None:
    """Raise ValueError where a share of picture triples is asked of a cluttered world."""
    if share and isinstance(world, Clutter):
        raise ValueError(f'data.similarity_share = {share:g} must be 0: a world of kind '
                         "'clutter' has no triples of pictures")


# --- sampling ---------------------------------------------------------------------------------

def sample(world: Clutter, split: str, index: int) -> Scene:
    """Return scene `index` of `split`: both sizes occur, and no two things have one place.

    Raises ValueError for an unknown split, and when the things find no place.
    """
    rng = stream(world, 'clutter', split, index)
    return _first_in(world, split, rng, f'{split}-{index:06d}', lambda scene: scene)


def pair(world: Clutter, split: str, index: int, field: str) -> tuple[Scene, Scene]:
    """Return two scenes of `split` that differ in the `field` of one thing, and in nothing else.

    `field` is one of FIELDS. The thing can be named in both by the same words without that field
    (of another shape: by its place), and keeps its middle where the field is not its place.
    ValueError as in `sample`.
    """
    values = {'shape': world.shapes, 'cell': world.cells, 'size': SIZES, 'color': world.colors,
              'char': world.chars}
    if field not in values:
        raise ValueError(f'unknown field {field!r}: use one of {", ".join(values)}')
    rng = stream(world, 'pair', field, split, index)

    def both(scene):
        for _ in range(_MAX_CHANGES):
            changed = _changed(world, rng, scene, field, values[field])
            if changed is not None and split_of(changed) == split:
                return scene, changed
        return None

    return _first_in(world, split, rng, f'{split}-pair-{index:06d}', both)


def _first_in(world, split, rng, scene_id, accept):
    """Return what `accept` makes of the first scene of `split` for which that is not None."""
    if split not in SPLITS:
        raise ValueError(f'unknown split {split!r}: use one of {", ".join(SPLITS)}')
    for _ in range(_MAX_DRAWS):
        scene = _draw(world, rng, scene_id)
        if scene is not None and split_of(scene) == split:
            accepted = accept(scene)
            if accepted is not None:
                return accepted
    raise ValueError(f'no {split} scene in {_MAX_DRAWS} draws: raise `side` or `occlusion`, or '
                     'lower `max_objects` of the world')


def _draw(world, rng, scene_id):
    """Return a scene, or None where a thing finds no place; the order of draws must not change."""
    n = int(rng.integers(world.min_objects, world.max_objects + 1))
    shapes = rng.integers(world.n_shapes, size=n)
    colors = rng.integers(world.n_colors, size=n)
    chars = rng.integers(world.n_chars, size=n)
    sizes = rng.integers(2, size=n)
    # Both sizes occur, or nothing could be compared.
    if sizes.min() == sizes.max():
        sizes[rng.integers(n)] ^= 1
    texture = int(rng.integers(2 ** 31))
    placed = []
    for shape, color, size, char in zip(shapes, colors, sizes, chars, strict=True):
        thing = Object(shape=world.shapes[shape], color=world.colors[color], size=SIZES[size],
                       char=world.chars[char], cell='', box=(0, 0, 0, 0))
        more = _with(world, rng, placed, thing)
        if more is None:
            return None
        placed = more
    return Scene(scene_id, in_order(placed), texture)


def _with(world, rng, placed, thing):
    """Return `placed` and `thing` at a free place where not too much is covered; None without."""
    cells = world.cells
    taken = {obj.cell for obj in placed}
    for _ in range(_PLACES):
        cell = cells[int(rng.integers(len(cells)))]
        shift = rng.integers(-world.jitter_px, world.jitter_px + 1, size=2).tolist()
        if cell in taken:
            continue
        moved = _at(world, thing, cell, shift)
        # What it does not meet is as it was.
        near = [obj for obj in placed if meet(obj.box, moved.box)]
        if _inside(world, moved) and _seen(world, [*placed, moved], [*near, moved]):
            return [*placed, moved]
    return None


def _at(world, thing, cell, shift):
    """Return `thing` at a place, its middle shifted by (x, y) pixels."""
    x, y = world.middle(cell)
    width = world.diameter(thing.size)
    x0 = x + shift[0] - width // 2
    y0 = y + shift[1] - width // 2
    return replace(thing, cell=cell, box=(x0, y0, x0 + width, y0 + width))


def _inside(world, thing):
    """Return whether a thing lies inside the picture."""
    return min(thing.box) >= 0 and max(thing.box) <= world.side


def _seen(world, objects, asked):
    """Return whether no more than the declared share of any of `asked` is covered by others."""
    return max(hidden(objects, asked)) <= world.occlusion


def _changed(world, rng, scene, field, values):
    """Return `scene` with another value of `field` in one thing, or None where that cannot be."""
    i = int(rng.integers(len(scene.objects)))
    thing = scene.objects[i]
    value = values[int(rng.integers(len(values)))]
    others = [*scene.objects[:i], *scene.objects[i + 1:]]
    if value == vars(thing)[field] or (field == 'cell' and value in {obj.cell for obj in others}):
        return None
    changed = replace(thing, **{field: value})
    if field == 'cell':
        changed = _at(world, changed, value, (0, 0))
    elif field == 'size':
        width = world.diameter(value)
        less = (thing.box[2] - thing.box[0] - width) // 2
        x0, y0 = thing.box[0] + less, thing.box[1] + less
        changed = replace(changed, box=(x0, y0, x0 + width, y0 + width))
    objects = in_order([*others, changed])
    named = [name_of(both, obj, without=field)
             for both, obj in ((scene.objects, thing), (objects, changed))]
    # No name lacks a shape: a thing of another shape is known by its place.
    known = field == 'shape' or named[0] == named[1] is not None
    if known and _inside(world, changed) and _seen(world, objects, objects):
        return replace(scene, objects=objects)
    return None

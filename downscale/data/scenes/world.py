"""The made-up world: what a scene holds, how it is sampled and written down.

Everything is a pure function of (world, split, index). A scene belongs to a split because of what
it shows (`split_of`), so no scene can occur in two splits whatever their sizes are.
"""
import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any, Protocol

import numpy as np

from downscale.values import Choice, Range, Several, check

SHAPES = ('circle', 'square', 'triangle', 'diamond', 'star', 'cross', 'ring', 'heart', 'hexagon',
          'arrow')
COLORS = {'red': (222, 52, 48), 'green': (52, 162, 72), 'blue': (44, 104, 222),
          'yellow': (252, 216, 30), 'purple': (140, 70, 196), 'orange': (245, 118, 28),
          'cyan': (72, 200, 212), 'pink': (247, 150, 194), 'brown': (132, 86, 52),
          'black': (48, 48, 52)}
# In the order that keeps the least alike pair most different at 12 px (greedy maximin).
CHARS = ('K', 'C', 'T', 'A', 'P', 'H', 'V', 'L', '2', '5', 'Z', '4', 'U', '9', 'W', 'Y')
SIZES = ('small', 'large')
FIELDS = ('shape', 'cell', 'size', 'color', 'char')  # the cyclic order of a written record
SPLITS = ('train', 'validation', 'test')
# What can be asked about one scene (`question_families.py`); a fact is about none.
FAMILIES = ('attribute', 'position', 'content', 'ground', 'count', 'compare', 'relation', 'read',
            'fact')
UNITS = 16  # written boxes count in sixteenths of the image

_MAX_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class World:
    """All difficulty parameters; two equal worlds produce byte-identical data.

    Lengths are pixels. A large object fills its cell up to the jitter; a small one is about 0.72
    of that. Raises ValueError, with the arithmetic, when the parameters do not fit together.
    """
    grid: Annotated[int, Range(2, 9, 'cells along the image')] = 4
    cell_px: Annotated[int, Range(10, 1000, 'pixels along a cell')] = 20
    n_shapes: Annotated[int, Range(2, len(SHAPES), 'shapes that occur')] = 8
    n_colors: Annotated[int, Range(2, len(COLORS), 'colours that occur')] = 6
    n_chars: Annotated[int, Range(2, len(CHARS), 'characters that occur')] = 8
    min_objects: Annotated[int, Range(2, 80, 'the fewest objects of a scene')] = 2
    max_objects: Annotated[int, Range(2, 80, 'the most objects of a scene')] = 8
    n_facts: Annotated[int, Range(4, 100_000, 'facts that are to be learnt')] = 64
    jitter_px: Annotated[int, Range(0, 1000, 'pixels that an object may be off its place')] = 2
    families: Annotated[tuple[Annotated[str, Choice(FAMILIES, 'family')], ...],
                        Several(1, 'the families of questions that are asked')] = FAMILIES
    seed: Annotated[int, Range(0, 2 ** 63 - 1, 'seed of the world')] = 0
    version: str = '1.2.0'

    def __post_init__(self):
        check(self)
        if self.min_objects > self.max_objects:
            raise ValueError(f'min_objects={self.min_objects} > max_objects={self.max_objects}: '
                             'lower the one or raise the other')
        if self.max_objects > self.n_shapes:
            raise ValueError(f'max_objects={self.max_objects} > n_shapes={self.n_shapes}: '
                             'shapes are distinct within a scene')
        if self.max_objects >= self.grid ** 2:
            raise ValueError(f'max_objects={self.max_objects} >= grid*grid={self.grid ** 2}: '
                             'a scene needs a free cell')
        if self.diameter('small') < 10:
            raise ValueError(
                f'cell_px={self.cell_px} - 2 * jitter_px={self.jitter_px} leaves small objects '
                f'{self.diameter("small")} px wide; a character is legible from 10 px')

    def declared(self) -> dict[str, Any]:
        """Return the fields that data sets and cells are named by, and stored with.

        With all families it lacks `families`: what was made before one could choose keeps its name.
        """
        value = dataclasses.asdict(self)
        if self.families == FAMILIES:
            del value['families']
        return value

    @property
    def side(self) -> int:
        """Width and height of an image in pixels."""
        return self.grid * self.cell_px

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shapes that occur."""
        return SHAPES[:self.n_shapes]

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
        """Cell names in reading order: column letter, then row digit, 'a1' top left."""
        return tuple(f'{chr(97 + column)}{row + 1}'
                     for row, column in product(range(self.grid), repeat=2))

    def diameter(self, size: str) -> int:
        """Return width and height in pixels of an object of that size."""
        large = self.cell_px - 2 * self.jitter_px
        return large if size == 'large' else 2 * round(0.36 * large)


@dataclass(frozen=True, kw_only=True)
class Object:
    """One drawn thing. `box` is x0, y0, x1, y1 in pixels, right and bottom edge exclusive."""
    shape: str
    color: str
    size: str
    char: str
    cell: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """One picture: objects in reading order on a plain background of that grey level."""
    scene_id: str
    objects: tuple[Object, ...]
    background: int


class Drawable(Protocol):
    """What every kind of world has: the seed of its draws, and the pixels along its pictures."""

    @property
    def seed(self) -> int:
        """The seed that all draws depend on."""
        ...

    @property
    def side(self) -> int:
        """Width and height of an image in pixels."""
        ...


# --- sampling ---------------------------------------------------------------------------------

def stream(world: Drawable, *key: str | int) -> np.random.Generator:
    """Return a generator that depends on the world's seed and on `key` alone."""
    # `hash` of a text differs from process to process.
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.default_rng(np.random.SeedSequence([world.seed, *words]))


def sample(world: World, split: str, index: int) -> Scene:
    """Return scene `index` of `split`: both sizes occur, shapes and cells are distinct.

    Raises ValueError when the world is too small to hold a scene of that split.
    """
    rng = stream(world, 'scene', split, index)
    counts = world.min_objects, world.max_objects
    scene_id = f'{split}-{index:06d}'
    return _first_in(split, lambda: _draw(world, rng, scene_id, counts), _MAX_DRAWS, world)


def triple(world: World, split: str, index: int) -> tuple[Scene, Scene, Scene]:
    """Return a reference of 2-3 objects and two edits of it, one nearer than the other.

    An edit changes some of (cell, size, color, char) and keeps every shape, so that objects of
    two pictures are matched by shape. Jitter and background are fresh in each picture.
    """
    rng = stream(world, 'triple', split, index)
    counts = 2, min(3, world.max_objects)
    scene_id = f'{split}-triple-{index:06d}'
    for _ in range(_MAX_DRAWS):
        reference = _first_in(split, lambda: _draw(world, rng, scene_id, counts), _MAX_DRAWS, world)
        # 1 or 2 changes against 1 to 3 more: never a tie. The permutation decides which is second.
        near = int(rng.integers(1, 3))
        changes = rng.permutation([near, near + int(rng.integers(1, 4))])
        edits = [_first_in(split, functools.partial(_edit, world, rng, reference, int(n)), 100)
                 for n in changes]
        if None not in edits:
            return reference, *edits
    raise ValueError(f'no {split} triple in {_MAX_DRAWS} draws: enlarge the world {world}')


def graph_key(scene: Scene) -> str:
    """Return a hash of what the scene shows; jitter and background do not count."""
    return hashlib.blake2b(caption(scene).encode(), digest_size=8).hexdigest()


def split_of(scene: Scene) -> str:
    """Return the only split that may hold this scene: 10 % validation, 10 % test, 80 % train."""
    return {0: 'validation', 1: 'test'}.get(int(graph_key(scene), 16) % 10, 'train')


def _first_in(split, draw, tries, world=None):
    """Return the first drawn scene of `split`.

    After `tries` draws: None, or an error where `world` is given.
    """
    if split not in SPLITS:
        raise ValueError(f'unknown split {split!r}: use one of {", ".join(SPLITS)}')
    for _ in range(tries):
        scene = draw()
        if split_of(scene) == split:
            return scene
    if world is not None:
        raise ValueError(f'no {split} scene in {tries} draws: enlarge the world {world}')
    return None


def _draw(world, rng, scene_id, counts):
    """Return a scene of `counts` (fewest, most) objects; the order of the draws must not change."""
    n = int(rng.integers(counts[0], counts[1] + 1))
    shapes = rng.permutation(world.n_shapes)[:n]
    cells = rng.permutation(world.grid ** 2)[:n]
    colors = rng.integers(world.n_colors, size=n)
    chars = rng.integers(world.n_chars, size=n)
    sizes = rng.integers(2, size=n)
    # Both sizes occur, or nothing could be compared.
    if sizes.min() == sizes.max():
        sizes[rng.integers(n)] ^= 1
    names = world.cells
    objects = []
    for shape, color, size, char, cell in zip(shapes, colors, sizes, chars, cells, strict=True):
        # The box stays empty until the object is placed.
        objects.append(Object(shape=SHAPES[shape], color=world.colors[color], size=SIZES[size],
                              char=CHARS[char], cell=names[cell], box=(0, 0, 0, 0)))
    return _placed(world, rng, scene_id, objects)


def _edit(world, rng, scene, n_changes):
    """Return a scene in which `n_changes` fields of some objects differ from those of `scene`."""
    objects = {obj.shape: obj for obj in scene.objects}
    slots = list(product(objects, ('cell', 'size', 'color', 'char')))
    taken = {obj.cell for obj in scene.objects}
    free = [cell for cell in world.cells if cell not in taken]
    choices = {'size': SIZES, 'color': world.colors, 'char': world.chars}
    for i in rng.permutation(len(slots))[:n_changes]:
        shape, field = slots[i]
        old = vars(objects[shape])[field]
        if field == 'cell':
            new = free.pop(int(rng.integers(len(free))))
            free.append(old)  # another object may move there
        else:
            others = [value for value in choices[field] if value != old]
            new = others[int(rng.integers(len(others)))]
        objects[shape] = replace(objects[shape], **{field: new})
    return _placed(world, rng, scene.scene_id, list(objects.values()))


def _placed(world, rng, scene_id, objects):
    """Return the scene of these objects in reading order, with fresh jitter and background."""
    jitter = rng.integers(-world.jitter_px, world.jitter_px + 1, size=(len(objects), 2))
    placed = []
    for obj, (dx, dy) in zip(objects, jitter.tolist(), strict=True):
        # A large object that jitters most touches the edge of its cell, and never leaves it.
        width = world.diameter(obj.size)
        margin = (world.cell_px - width) // 2
        x0 = (ord(obj.cell[0]) - ord('a')) * world.cell_px + margin + dx
        y0 = (int(obj.cell[1]) - 1) * world.cell_px + margin + dy
        placed.append(replace(obj, box=(x0, y0, x0 + width, y0 + width)))
    placed.sort(key=lambda obj: obj.cell[::-1])  # by row, then by column
    return Scene(scene_id, tuple(placed), int(rng.integers(236, 250)))


# --- writing ----------------------------------------------------------------------------------

def record(obj: Object, first: str = 'shape') -> str:
    """Return the five fields of an object in cyclic order, rotated to begin with field `first`."""
    at = FIELDS.index(first)
    return ' '.join(vars(obj)[field] for field in FIELDS[at:] + FIELDS[:at])


def records(objects: Iterable[Object], first: str = 'shape') -> str:
    """Return all records, each ended by ' ;'."""
    return ' '.join(f'{record(obj, first)} ;' for obj in objects)


def caption(scene: Scene) -> str:
    """Return everything there is to say about a scene but its pixels: records in reading order."""
    return records(scene.objects)


def box_text(world: Drawable, box: tuple[int, int, int, int]) -> str:
    """Return a pixel box as 'x0 y0 x1 y1' in units of side / 16, both ends inclusive, each 0..15.

    The units named are exactly those that the box touches.
    """
    # The lower ends are rounded down, the upper ones up; those are exclusive, hence the - 1.
    low = (edge * UNITS // world.side for edge in box[:2])
    high = (-(-edge * UNITS // world.side) - 1 for edge in box[2:])
    return ' '.join(str(edge) for edge in (*low, *high))

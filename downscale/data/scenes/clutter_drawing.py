"""Cluttered scenes as pictures, and how much of each thing others cover.

The same scene gives the same bytes on every machine, as in `drawing.py`, whose shapes these are.
"""
import functools
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from downscale.data.scenes.drawing import char_mask, paint, shape_masks
from downscale.data.scenes.world import COLORS, Object, Scene, stream

if TYPE_CHECKING:  # its scenes ask how much is hidden
    from downscale.data.scenes.clutter_world import Clutter


def render(world: 'Clutter', scene: Scene) -> bytes:
    """Return the scene as PNG bytes, RGB, `world.side` pixels square.

    `scene.background` is the seed of its texture and strokes.
    """
    rng = stream(world, 'texture', scene.background)
    image = Image.fromarray(_weave(rng, world.side))
    draw = ImageDraw.Draw(image)
    for _ in range(world.strokes):
        _stroke(rng, draw, world)
    for obj in painted(scene.objects):
        paint(image, obj)
    out = io.BytesIO()
    image.save(out, 'PNG')
    return out.getvalue()


def painted(objects: Sequence[Object]) -> list[Object]:
    """Return things as they are painted: what stands lower in the picture covers what is above."""
    return sorted(objects, key=lambda obj: (obj.box[3], obj.box[0]))


def hidden(objects: Sequence[Object], asked: Sequence[Object]) -> list[float]:
    """Return, for each of `asked`, the larger share that `objects` cover: of it, or of its
    character."""
    order = painted(objects)
    shares = []
    for obj in asked:
        over = order[order.index(obj) + 1:]
        shares.append(_covered(obj, [other for other in over if meet(obj.box, other.box)]))
    return shares


def meet(box: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether two boxes overlap."""
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _covered(obj, over):
    """Return the larger share of a thing or of its character that the things `over` it cover."""
    if not over:
        return 0.0
    width = obj.box[2] - obj.box[0]
    cover = np.zeros((width, width), bool)
    for other in over:
        ink = inks(other.shape, other.char, other.box[2] - other.box[0])[0]
        # The part of `other` inside the box of `obj`, in the pixels of both.
        x0, y0 = max(obj.box[0], other.box[0]), max(obj.box[1], other.box[1])
        x1, y1 = min(obj.box[2], other.box[2]), min(obj.box[3], other.box[3])
        part = ink[y0 - other.box[1]:y1 - other.box[1], x0 - other.box[0]:x1 - other.box[0]]
        cover[y0 - obj.box[1]:y1 - obj.box[1], x0 - obj.box[0]:x1 - obj.box[0]] |= part
    return max(float((cover & ink).sum() / ink.sum()) for ink in inks(obj.shape, obj.char, width))


@functools.cache
def inks(shape: str, char: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels that a thing, and that its character, covers by more than half.

    Both are bool [width, width].
    """
    outer, inner, letter = (np.asarray(mask) / 255 for mask in (*shape_masks(shape, width),
                                                                char_mask(char, shape, width)))
    # Painted over one another, each lets through what it does not cover.
    return 1 - (1 - outer) * (1 - inner) * (1 - letter) > 0.5, letter > 0.5


def _weave(rng, side):
    """Return a background of rows and columns of many greys, uint8 [side, side, 3]."""
    # Sums of rows and columns: noise of single pixels would make a PNG three times as large.
    level = rng.integers(196, 226)
    rows = rng.integers(-14, 15, size=(side, 1, 1))
    columns = rng.integers(-14, 15, size=(1, side, 1))
    tint = rng.integers(-8, 9, size=3)
    return (level + rows + columns + tint).astype(np.uint8)


def _stroke(rng, draw, world):
    """Draw one line or arc, in one of the colours of things, that is nothing to ask about."""
    x0, y0, x1, y1 = rng.integers(0, world.side, size=4).tolist()
    color = COLORS[world.colors[int(rng.integers(world.n_colors))]]
    bend = int(rng.integers(3))
    start = int(rng.integers(360))
    if bend:
        # Boxes of arcs are given by their corners in order.
        box = [min(x0, x1), min(y0, y1), max(x0, x1) + 4, max(y0, y1) + 4]
        draw.arc(box, start, start + 60 * bend, fill=color, width=1)
    else:
        draw.line([x0, y0, x1, y1], fill=color, width=1)

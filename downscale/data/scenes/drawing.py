"""Scenes as pictures: shapes and characters, drawn anew wherever they are needed.

The same scene gives the same bytes on every machine: Pillow's own font, no antialiasing but that of
drawing everything `_SUPERSAMPLE` times as large.
"""
import functools
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from downscale.data.scenes.world import COLORS, Object, Scene, World

_SUPERSAMPLE = 4


def render(world: World, scene: Scene) -> bytes:
    """Return the scene as PNG bytes, RGB, `world.side` pixels square.

    Pixels outside the boxes stay plain.
    """
    image = Image.new('RGB', (world.side, world.side), (scene.background,) * 3)
    for obj in scene.objects:
        paint(image, obj)
    out = io.BytesIO()
    image.save(out, 'PNG')
    return out.getvalue()


def paint(image: Image.Image, obj: Object) -> None:
    """Draw an object with its character into its box of `image`, RGB."""
    rgb = COLORS[obj.color]
    width = obj.box[2] - obj.box[0]
    outer, inner = shape_masks(obj.shape, width)
    image.paste(tuple(int(0.7 * level) for level in rgb), obj.box, outer)
    image.paste(rgb, obj.box, inner)
    red, green, blue = rgb
    # Luma of ITU-R BT.601; a ring shows the background in its middle.
    dark = 0.30 * red + 0.59 * green + 0.11 * blue < 140 and obj.shape != 'ring'
    ink = (255, 255, 255) if dark else (20, 20, 20)
    image.paste(ink, obj.box, char_mask(obj.char, obj.shape, width))


@functools.cache
def shape_masks(shape: str, width: int) -> tuple[Image.Image, ...]:
    """Return coverage of a shape and of the shape without its outline, `width` pixels square."""
    masks = []
    # The outline is 0.8 pixels wide, in a darker shade of the colour.
    for inset in (0.0, 1.6 / width):
        big = Image.new('L', (width * _SUPERSAMPLE,) * 2, 0)
        _draw_shape(ImageDraw.Draw(big), shape, width * _SUPERSAMPLE, inset)
        masks.append(big.resize((width, width), Image.Resampling.LANCZOS))
    return tuple(masks)


def _draw_shape(draw, shape, width, inset):
    """Fill a shape that touches all four sides of the square, shrunk by the fraction `inset`."""
    def scaled(*point):
        return tuple((0.5 + 0.5 * at * (1 - inset)) * (width - 1) for at in point)

    if shape in ('circle', 'ring'):
        draw.ellipse([scaled(-1, -1), scaled(1, 1)], fill=255)
        if shape == 'ring':
            hole = 0.62 + inset
            draw.ellipse([scaled(-hole, -hole), scaled(hole, hole)], fill=0)
    else:
        draw.polygon([scaled(x, y) for x, y in _outline(shape)], fill=255)


@functools.cache
def _outline(shape):
    """Return the corners of a shape in [-1, 1] x [-1, 1], stretched to touch all four sides."""
    corners = {'star': _star, 'heart': _heart, 'hexagon': _hexagon}
    points = np.array(corners[shape]() if shape in corners else _CORNERS[shape], float)
    low = points.min(0)
    high = points.max(0)
    return (2 * (points - low) / (high - low) - 1).tolist()


_CORNERS = {
    'square': [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    'triangle': [(0, -1), (1, 1), (-1, 1)],
    'diamond': [(0, -1), (1, 0), (0, 1), (-1, 0)],
    'cross': [(-0.45, -1), (0.45, -1), (0.45, -0.45), (1, -0.45), (1, 0.45), (0.45, 0.45),
              (0.45, 1), (-0.45, 1), (-0.45, 0.45), (-1, 0.45), (-1, -0.45), (-0.45, -0.45)],
    'arrow': [(-1, -0.5), (0.05, -0.5), (0.05, -1), (1, 0), (0.05, 1), (0.05, 0.5), (-1, 0.5)],
    # These are of the cluttered world alone.
    'house': [(-1, 1), (-1, -0.1), (0, -1), (1, -0.1), (1, 1)],
    'crown': [(-1, 1), (-1, -1), (-0.5, -0.35), (0, -1), (0.5, -0.35), (1, -1), (1, 1)],
    'flag': [(-1, -1), (1, -1), (0.45, -0.3), (1, 0.4), (-0.6, 0.4), (-0.6, 1), (-1, 1)],
    'boat': [(-1, 0.2), (-0.2, 0.2), (-0.2, -1), (0.75, 0.2), (1, 0.2), (0.55, 1), (-0.55, 1)],
    'shield': [(-1, -1), (1, -1), (1, 0.1), (0, 1), (-1, 0.1)],
    'tee': [(-1, -1), (1, -1), (1, -0.2), (0.45, -0.2), (0.45, 1), (-0.45, 1), (-0.45, -0.2),
            (-1, -0.2)],
}


def _star():
    points = []
    for i in range(10):
        radius = (1.0, 0.62)[i % 2]
        points.append((radius * math.sin(i * math.pi / 5), -radius * math.cos(i * math.pi / 5)))
    return points


def _heart():
    # The usual parametric curve of a heart, upside down as rows count downwards.
    points = []
    for i in range(60):
        t = 2 * math.pi * i / 60
        y = -13 * math.cos(t) + 5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t)
        points.append((16 * math.sin(t) ** 3, y))
    return points


def _hexagon():
    return [(math.cos(i * math.pi / 3), math.sin(i * math.pi / 3)) for i in range(6)]


@functools.cache
def char_mask(char: str, shape: str, width: int) -> Image.Image:
    """Return coverage of a character placed where the shape is widest, `width` pixels square."""
    side = width * _SUPERSAMPLE
    big = Image.new('L', (side, side), 0)
    places = {'triangle': (0.5, 0.68, 0.6), 'heart': (0.5, 0.43, 0.62), 'arrow': (0.46, 0.5, 0.62),
              'star': (0.5, 0.54, 0.6), 'house': (0.5, 0.64, 0.62), 'crown': (0.5, 0.64, 0.6),
              'flag': (0.42, 0.35, 0.6), 'boat': (0.5, 0.72, 0.5), 'shield': (0.5, 0.38, 0.66),
              'tee': (0.5, 0.4, 0.5)}
    x, y, scale = places.get(shape, (0.5, 0.5, 0.68))
    # Pillow's own font is the same on every machine.
    font = ImageFont.load_default(size=scale * side)
    draw = ImageDraw.Draw(big)
    # Centred by the box of the ink: the advance of a character is wider.
    left, top, right, bottom = draw.textbbox((0, 0), char, font=font)
    draw.text((x * side - (left + right) / 2, y * side - (top + bottom) / 2), char, fill=255,
              font=font, stroke_width=side / 64)
    return big.resize((width, width), Image.Resampling.LANCZOS)

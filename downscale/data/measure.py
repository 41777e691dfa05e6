"""How many tokens and tiles a conversation takes, read off texts and picture headers: no pixels."""
import functools
import io
import math

from PIL import ExifTags, Image

from downscale.data import images, tiling
from downscale.data.chat import render
from downscale.data.records import IMAGE, Conversation
from downscale.data.tokens import Encoder, Layout

_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
# Pillow decodes a PNG to look for an orientation behind its pixels; without these there is none.
_MARKS = (b'eXIf', b'exif', b'xmp')


def picture_size(data: bytes, where: str = 'image') -> tuple[int, int]:
    """Return (width, height) of the upright picture in encoded bytes.

    They come from the header, and from the pixels where that does not tell. ValueError in one line
    when it is no readable picture.
    """
    try:
        with Image.open(io.BytesIO(data), formats=images.FORMATS) as image:
            plain = image.format == 'PNG' and not any(mark in data for mark in _MARKS)
            turned = not plain and image.getexif().get(ExifTags.Base.Orientation) in _TURNED
            size = image.size
            # Pillow turns a TIFF as it loads it.
            tells = image.format != 'TIFF'
    except Exception:  # of many kinds; decoding says which, or that only the header is odd
        tells = False
    if not tells:
        return images.decode(data, where).size
    return size[::-1] if turned else size


@functools.lru_cache(2 ** 14)  # pictures of one set often share their size
def picture_cost(width: int, height: int, layout: Layout, alone: bool) -> tuple[int, int]:
    """Return (tokens, tiles) of a picture of that many pixels, as `tiling.place` lays it out."""
    vision = layout.vision
    pictures = layout.pictures
    tiles = 1
    if tiling.mode_of(pictures, alone) == 'anyres':
        # pyrefly: ignore[bad-argument-type]
        tiles += math.prod(tiling.best_grid(width, height, vision, pictures))
    return tiling.token_count(width, height, vision, pictures, alone), tiles


def cost(encoder: Encoder, talk: Conversation, where: str) -> tuple[int, int]:
    """Return (tokens, tiles) of a conversation, exactly as many as it has once it is encoded."""
    return counts(encoder, talk, where)[:2]


def counts(encoder: Encoder, talk: Conversation, where: str) -> tuple[int, int, int, int]:
    """Return (tokens, tiles, tokens of pictures, supervised tokens) of an encoded conversation."""
    tokens = 0
    tiles = 0
    shown = 0
    learnt = 0
    for text, weight in render(encoder.chat, talk.turns):
        for part in text.split(IMAGE):
            ids = encoder.ids(part)
            tokens += len(ids)
            if weight:
                learnt += len(ids)
            elif encoder.structure:
                learnt += sum(i in encoder.structure for i in ids)
    for k, data in enumerate(talk.images):
        picture_tokens, picture_tiles = _picture_cost(encoder.layout, data, len(talk.images) == 1,
                                                      f'{where}, picture {k}')
        shown += picture_tokens
        tiles += picture_tiles
    return tokens + shown, tiles, shown, learnt


def _picture_cost(layout, data, alone, where):
    """Return (tokens, tiles) of encoded bytes."""
    # To open a small picture costs more than all else that is measured of a conversation.
    if layout.vision is not None:
        placed = images.remembered(data, layout.vision, layout.pictures, alone)
        if placed is not None:
            return placed.tokens, placed.tiles
    return picture_cost(*picture_size(data, where), layout, alone)

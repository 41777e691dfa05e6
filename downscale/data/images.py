"""Pictures to arrays: decoding, resizing and cutting into patches.

Patches leave here as [P, Q] with values in [-1, 1] (SigLIP: mean = std = 0.5), so that image
height and width never meet the letters H and W.
"""
import io
from functools import lru_cache

import numpy as np
from PIL import Image


def decode(data, where='image'):
    """The RGB picture of encoded bytes; ValueError in one line when it is damaged or truncated."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert('RGB')
    except Exception as error:  # Pillow raises several kinds for damaged files
        raise ValueError(f'{where}: unreadable picture ({error}); remove it or build the data '
                         'again') from None


def patchify(pixels, patch):
    """uint8 pixels [height, width, 3] -> patches [P, Q], row by row; border pixels that do not fill
    a patch are dropped."""
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    cut = pixels[:rows * patch, :columns * patch].reshape(rows, patch, columns, patch, 3)
    return cut.transpose(0, 2, 1, 3, 4).reshape(rows * columns, patch * patch * 3)


def tile(data, cfg, where='image'):
    """One square tile uint8 [P, Q] of encoded bytes: bicubic resize, aspect not kept."""
    image = decode(data, where)
    if image.size != (cfg.image, cfg.image):
        image = image.resize((cfg.image, cfg.image), Image.Resampling.BICUBIC)
    return patchify(np.asarray(image), cfg.patch)


@lru_cache(maxsize=4096)
def cached_tile(data, cfg):
    """`tile`, remembered: training and evaluation meet a picture many times."""
    return tile(data, cfg)


def normalise(tiles):
    """uint8 -> float32 in [-1, 1]."""
    return tiles.astype(np.float32) / 127.5 - 1

"""Pictures to arrays: files, decoding, and cutting into tiles of patches.

Patches leave here as [P, Q] of bytes, which the tower scales, so that image height and width never
meet the letters H and W. What each image token shows is `tiling.py`.
"""
import hashlib
import io
import math
import stat
import threading
from collections import OrderedDict
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from downscale.data.tiling import Placed, best_grid, fitted_size, mode_of, place
from downscale.sizes import Pictures, VisionConfig

MOST_PIXELS = 1 << 26  # 200 MB as RGB; a file of a few kB can ask for far more
CACHE_BYTES = 1 << 28
GREY = (127, 127, 127)  # int(255 * 0.5), the mean colour of SigLIP
# Only formats that Pillow decodes itself: others (EPS) start foreign programs.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')


# --- files ------------------------------------------------------------------------------------

def open_under(root: Path, name: str) -> bytes:
    """Return the bytes of picture file `name`, a relative path that stays inside the folder `root`.

    ValueError for an absolute path, for '..' and for a link that leads out; FileNotFoundError when
    there is no such file.
    """
    root = Path(root).resolve()
    relative = PurePath(name)
    path = (root / relative).resolve()
    # Data written on Windows; elsewhere a backslash may be part of a name.
    if '\\' in str(name) and not path.exists():
        relative = PurePath(str(name).replace('\\', '/'))
        path = (root / relative).resolve()
    if relative.is_absolute() or '..' in relative.parts or not path.is_relative_to(root):
        raise ValueError(f'picture path {str(name)!r} leaves its folder {root}; give a path inside '
                         'it')
    if not _is_file(path):
        raise FileNotFoundError(f'no picture {str(name)!r} in {root}; put it there or drop the '
                                'example')
    return path.read_bytes()


def _is_file(path):
    """Return whether a path is one of a file.

    OSError where that cannot be known: a name too long, a folder that may not be read. Pathlib's
    own `is_file` hides it from Python 3.14 on.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def digest(data: bytes) -> str:
    """Return the digest that stands for a picture."""
    return hashlib.sha256(data).hexdigest()[:32]


def decode(data: bytes | Image.Image, where: str = 'image') -> Image.Image:
    """Return the upright RGB picture of encoded bytes or of a Pillow image.

    Of an animation it is the first frame. ValueError in one line when it is damaged, truncated, of
    an unknown format or too large.
    """
    try:
        image = data if isinstance(data, Image.Image) else \
            Image.open(io.BytesIO(data), formats=FORMATS)
        # The size is known from the header: nothing has been decoded yet.
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError(f'{image.width} x {image.height}')
        if image.width * image.height == 0:
            raise ValueError('it has no pixels')
        image.load()
        return _eight_bits(_upright(image)).convert('RGB')
    except Image.DecompressionBombError as error:
        raise ValueError(f'{where}: picture with more than {MOST_PIXELS:,} pixels ({error}); make '
                         'it smaller') from None
    except UnidentifiedImageError:
        raise ValueError(f'{where}: unreadable picture (none of {", ".join(FORMATS)}); convert it, '
                         'remove it or build the data again') from None
    # Pillow raises several kinds for damaged files.
    except Exception as error:
        reason = ' '.join(str(error).split())
        raise ValueError(f'{where}: unreadable picture ({reason}); remove it or build the data '
                         'again') from None


def _upright(image):
    """Return `image` turned as its EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the pixels, which are loaded already
        return image


def _eight_bits(image):
    """Return `image` with deep grey values scaled to 8 bits: Pillow's own conversion clips them."""
    if image.mode == 'F':
        raise ValueError('floating-point grey has no known range')
    if not image.mode.startswith('I'):
        return image
    # Pillow keeps 16 bits as 'I;16' or 'I', which may also hold more, or negative values.
    deep = np.asarray(image).astype(np.int64)
    if deep.min() < 0 or deep.max() > 65535:
        raise ValueError('its grey values exceed 16 bits')
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))


# --- pixels -----------------------------------------------------------------------------------

def patchify(pixels: np.ndarray, patch: int) -> np.ndarray:
    """Return the patches [P, Q] of uint8 pixels [height, width, 3], row by row.

    Border pixels that do not fill a patch are dropped.
    """
    rows = pixels.shape[0] // patch
    columns = pixels.shape[1] // patch
    cut = pixels[:rows * patch, :columns * patch].reshape(rows, patch, columns, patch, 3)
    return cut.transpose(0, 2, 1, 3, 4).reshape(rows * columns, patch * patch * 3)


def tiles(data: bytes | Image.Image, vision: VisionConfig, pictures: Pictures, alone: bool = True,
          where: str = 'image') -> np.ndarray:
    """Return the tiles of encoded bytes or of a Pillow image, uint8 [I, P, Q].

    They are in the order of `tiling.place`.
    """
    return _tiles(decode(data, where), vision, mode_of(pictures, alone), pictures)


def _tiles(image, vision, mode, pictures):
    """Return the tiles of an RGB picture: the squashed one, then those of the grid by rows."""
    if mode == 'padded':
        image = _squared(image)
    # The whole picture comes first in every mode: its tile is number 0 of `tiling.place`.
    size = vision.image
    cut = [np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))]
    if mode == 'anyres':
        columns, rows = best_grid(*image.size, vision, pictures)
        canvas = np.asarray(_fitted(image, columns * size, rows * size))
        for row in range(0, rows * size, size):
            cut += [canvas[row:row + size, column:column + size]
                    for column in range(0, columns * size, size)]
    return np.stack([patchify(pixels, vision.patch) for pixels in cut])


def _squared(image):
    """Return `image` in the middle of a grey square."""
    # The square of a long strip would not fit in memory.
    if max(image.size) ** 2 > MOST_PIXELS:
        image.thumbnail((math.isqrt(MOST_PIXELS),) * 2)
    side = max(image.size)
    square = Image.new('RGB', (side, side), GREY)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _fitted(image, wide, high):
    """Return `image` scaled to fit `wide` x `high` with its aspect, black around it."""
    size = fitted_size(*image.size, wide, high)
    canvas = Image.new('RGB', (wide, high))
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC),
                 ((wide - size[0]) // 2, (high - size[1]) // 2))
    return canvas


class _Cache:
    """What was cut last, up to a number of bytes; safe to use from several threads.

    By hand: `cachetools.LRUCache` would be one more dependency.
    """

    def __init__(self, limit):
        self.limit = limit
        self.size = 0
        self.cuts = OrderedDict()  # the least lately used first
        self.lock = threading.Lock()

    def get(self, key):
        """Return what was cut for `key`, None where it is not remembered."""
        with self.lock:
            if key in self.cuts:
                self.cuts.move_to_end(key)
            return self.cuts.get(key)

    def put(self, key, value):
        """Remember (`Placed`, tiles) for `key`, and forget what exceeds the limit."""
        with self.lock:
            if key not in self.cuts:  # another thread may have cut the same picture
                self.cuts[key] = value
                self.size += value[1].nbytes
            while self.size > self.limit:
                _, (_, dropped) = self.cuts.popitem(last=False)
                self.size -= dropped.nbytes


_cache = _Cache(CACHE_BYTES)


def remembered(data: bytes, vision: VisionConfig, pictures: Pictures,
               alone: bool) -> Placed | None:
    """Return the `Placed` of encoded bytes that `cut` remembers, None of others."""
    known = _cache.get((data, vision, pictures, alone))
    return known and known[0]


def cut(data: bytes, vision: VisionConfig, pictures: Pictures, alone: bool = True,
        where: str = 'image') -> tuple[Placed, np.ndarray]:
    """Return (`Placed`, tiles uint8 [I, P, Q], read-only) of encoded bytes.

    They are decoded once and remembered: training and evaluation meet a picture many times.
    """
    key = data, vision, pictures, alone
    known = _cache.get(key)
    if known is not None:
        return known
    image = decode(data, where)
    placed = place(*image.size, vision, pictures, alone)
    patches = _tiles(image, vision, mode_of(pictures, alone), pictures)
    patches.flags.writeable = False
    _cache.put(key, (placed, patches))
    return placed, patches

"""Pictures to arrays: decoding, cutting into tiles of patches, and what each image token shows.

Patches leave here as [P, Q] of bytes, which the tower scales, so that image height and width never
meet the letters H and W. How a picture is cut is `sizes.Pictures`.
"""
import hashlib
import io
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from downscale.sizes import Pictures, VisionConfig

NEWLINE = 1 << 20  # stands for `image_newline` until the number of tile slots is known
MOST_PIXELS = 1 << 26  # 200 MB as RGB; a file of a few kB can ask for far more
CACHE_BYTES = 1 << 28
GREY = (127, 127, 127)  # int(255 * 0.5), the mean colour of SigLIP
REDUCE_ABOVE = 1.1  # excess per side that is tolerated before tokens are reduced
# Only formats that Pillow decodes itself: others (EPS) start foreign programs.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')


@dataclass(frozen=True, eq=False)
class Placed:
    """What one picture becomes: `tiles` tiles, and L token positions that mix their features.

    Feature p + P * t is patch p of tile t, NEWLINE the learned `image_newline`. Token l is the sum
    over its C corners of weight_LC (float32) times feature index_LC (int32). C is 1 in the modes
    'flat' and 'padded' and 4 in 'anyres', where tokens may be reduced bilinearly; a token that is
    one feature has weight 1 in corner 0, and its other corners repeat that feature.
    """
    tiles: int
    index_LC: np.ndarray
    weight_LC: np.ndarray

    @property
    def tokens(self) -> int:
        """L, the token positions that the picture takes."""
        return len(self.index_LC)


# --- files ------------------------------------------------------------------------------------

def open_under(root: Path, name: str) -> bytes:
    """Return the bytes of picture file `name`, a relative path that stays inside the folder `root`.

    ValueError for an absolute path, for '..' and for a link that leads out; FileNotFoundError when
    there is no such file.
    """
    root = Path(root).resolve()
    relative = PurePath(name)
    path = (root / relative).resolve()
    if '\\' in str(name) and not path.exists():  # written on Windows
        relative = PurePath(str(name).replace('\\', '/'))
        path = (root / relative).resolve()
    if relative.is_absolute() or '..' in relative.parts or not path.is_relative_to(root):
        raise ValueError(f'picture path {str(name)!r} leaves its folder {root}; give a path inside '
                         'it')
    if not path.is_file():
        raise FileNotFoundError(f'no picture {str(name)!r} in {root}; put it there or drop the '
                                'example')
    return path.read_bytes()


def digest(data: bytes) -> str:
    """Return the digest that stands for a picture."""
    return hashlib.sha256(data).hexdigest()[:32]


def decode(data: bytes | Image.Image, where: str = 'image') -> Image.Image:
    """Return the upright RGB picture of encoded bytes or of a Pillow image; of an animation frame
    one.

    ValueError in one line when it is damaged, truncated, of an unknown format or too large.
    """
    try:
        image = data if isinstance(data, Image.Image) else \
            Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:  # known from the header: nothing is decoded
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
    except Exception as error:  # Pillow raises several kinds for damaged files
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
    deep = np.asarray(image).astype(np.int64)
    if deep.min() < 0 or deep.max() > 65535:
        raise ValueError('its grey values exceed 16 bits')
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))


# --- geometry ---------------------------------------------------------------------------------

def mode_of(pictures: Pictures, alone: bool) -> str:
    """Return the mode that is applied: pictures that share a conversation are not tiled."""
    return 'padded' if pictures.mode == 'anyres' and not alone else pictures.mode


def corners(pictures: Pictures) -> int:
    """Return C, the features that one image token may mix."""
    return 4 if pictures.mode == 'anyres' else 1


def best_grid(width: int, height: int, vision: VisionConfig, pictures: Pictures) -> tuple[int, int]:
    """Return (columns, rows) of tiles that keep the most pixels of a picture of `width` x `height`.

    Pixels count after scaling, but never more than the picture has; ties go to the least waste,
    then to the first grid. Floats are rounded as LLaVA-NeXT's `select_best_resolution` does.
    """
    def merit(grid):
        wide = grid[0] * vision.image
        high = grid[1] * vision.image
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - wide * high
    return max(pictures.grids, key=merit)


@dataclass(frozen=True, kw_only=True)
class _Stitched:
    """A grid of tiles as features: its grid, what is cropped at either end, sizes before and after
    reduction; every pair is (columns, rows)."""
    grid: tuple[int, int]
    cropped: tuple[int, int]
    kept: tuple[int, int]
    reduced: tuple[int, int]


def _stitched(width, height, vision, pictures):
    grid = best_grid(width, height, vision, pictures)
    side = vision.image // vision.patch
    columns = grid[0] * side
    rows = grid[1] * side
    # The padding is located on the grid of features from the aspect alone, in the float arithmetic
    # of LLaVA-NeXT's `unpad_image`: another order of operations changes the count by two.
    left = top = 0
    if width / height > columns / rows:
        top = (rows - int(height * (columns / width))) // 2
    else:
        left = (columns - int(width * (rows / height))) // 2
    columns, rows = kept = columns - 2 * left, rows - 2 * top
    excess = math.sqrt(rows * columns / (pictures.max_tiles * vision.P))
    reduced = kept
    if excess > REDUCE_ABOVE:
        reduced = max(1, int(columns // excess)), max(1, int(rows // excess))
    return _Stitched(grid=grid, cropped=(left, top), kept=kept, reduced=reduced)


def _check(width, height):
    if width < 1 or height < 1:
        raise ValueError(f'a picture of {width} x {height} pixels is empty')


@lru_cache(maxsize=4096)
def token_count(width: int, height: int, vision: VisionConfig, pictures: Pictures,
                alone: bool = True) -> int:
    """Return L of `place`, without arrays: the tokens of a picture of `width` x `height` pixels."""
    _check(width, height)
    mode = mode_of(pictures, alone)
    if mode != 'anyres':
        return vision.P + (mode == 'padded')
    columns, rows = _stitched(width, height, vision, pictures).reduced
    return vision.P + rows * (columns + 1)


@lru_cache(maxsize=256)
def place(width: int, height: int, vision: VisionConfig, pictures: Pictures,
          alone: bool = True) -> Placed:
    """Return the `Placed` of a picture of `width` x `height` pixels; `alone` in its conversation or
    not.

    'anyres': the P features of the squashed picture, then the rows of the stitched grid, its
    padding cropped, reduced by bilinear interpolation where it exceeds `max_tiles` tiles, with a
    newline behind each row (LLaVA-OneVision, arXiv 2408.03326; 'spatial_unpad', 'anyres_max').
    """
    _check(width, height)
    mode = mode_of(pictures, alone)
    count = 1
    base = np.arange(vision.P)[:, None]
    newline = np.full((1, 1), NEWLINE)
    parts = [(base, None)]
    if mode == 'padded':
        parts.append((newline, None))
    if mode == 'anyres':
        stitched = _stitched(width, height, vision, pictures)
        count += math.prod(stitched.grid)
        index, weight = _reduced(_features(stitched, vision), stitched)
        for row_index, row_weight in zip(index, weight):
            parts += [(row_index, row_weight), (newline, None)]
    first = np.zeros((1, corners(pictures)), np.float32)
    first[0, 0] = 1
    index_LC = np.concatenate([np.broadcast_to(index, (len(index), first.size))
                               for index, _ in parts]).astype(np.int32)
    weight_LC = np.concatenate([np.broadcast_to(first, (len(index), first.size))
                                if weight is None else weight
                                for index, weight in parts]).astype(np.float32)
    index_LC.flags.writeable = weight_LC.flags.writeable = False  # shared by every caller
    return Placed(count, index_LC, weight_LC)


def _features(stitched, vision):
    """Return feature numbers of the kept part of the grid, [rows, columns]; tile 0 is the whole
    one.
    """
    side = vision.image // vision.patch
    (columns, rows), (left, top) = stitched.kept, stitched.cropped
    row = np.arange(top, top + rows)[:, None]
    column = np.arange(left, left + columns)
    tile = 1 + row // side * stitched.grid[0] + column // side
    return tile * vision.P + row % side * side + column % side


def _taps(size, count):
    """Return (lower, upper, weight of upper) of `count` <= `size` samples spread evenly over a
    line.

    Sample centres as `interpolate(mode='bilinear')` of PyTorch puts them, corners not aligned.
    """
    at = (np.arange(count) + 0.5) * size / max(count, 1) - 0.5
    lower = np.floor(at).astype(int)
    return lower, lower + (at > lower), at - lower


def _reduced(features, stitched):
    """Return (index, weight), both [rows, columns, 4], of the reduced grid."""
    columns, rows = stitched.reduced
    left, right, across = _taps(features.shape[1], columns)
    upper, lower, down = _taps(features.shape[0], rows)
    index = [features[row][:, column] for row in (upper, lower) for column in (left, right)]
    weight = [a[:, None] * b for a in (1 - down, down) for b in (1 - across, across)]
    return np.stack(index, -1), np.stack(weight, -1)


# --- pixels -----------------------------------------------------------------------------------

def patchify(pixels: np.ndarray, patch: int) -> np.ndarray:
    """Return uint8 pixels [height, width, 3] -> patches [P, Q], row by row; border pixels that do
    not fill a patch are dropped.
    """
    rows = pixels.shape[0] // patch
    columns = pixels.shape[1] // patch
    cut = pixels[:rows * patch, :columns * patch].reshape(rows, patch, columns, patch, 3)
    return cut.transpose(0, 2, 1, 3, 4).reshape(rows * columns, patch * patch * 3)


def tiles(data: bytes | Image.Image, vision: VisionConfig, pictures: Pictures, alone: bool = True,
          where: str = 'image') -> np.ndarray:
    """Return uint8 [I, P, Q]: the tiles of encoded bytes or of a Pillow image, in the order of
    `place`.
    """
    return _tiles(decode(data, where), vision, mode_of(pictures, alone), pictures)


def _tiles(image, vision, mode, pictures):
    if mode == 'padded':
        image = _squared(image)
    size = vision.image
    cut = [np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))]
    if mode == 'anyres':
        columns, rows = best_grid(*image.size, vision, pictures)
        canvas = np.asarray(_fitted(image, columns * size, rows * size))
        cut += [canvas[row * size:(row + 1) * size, column * size:(column + 1) * size]
                for row in range(rows) for column in range(columns)]
    return np.stack([patchify(pixels, vision.patch) for pixels in cut])


def _squared(image):
    """Return `image` in the middle of a grey square."""
    if max(image.size) ** 2 > MOST_PIXELS:  # the square of a long strip would not fit in memory
        image.thumbnail((math.isqrt(MOST_PIXELS),) * 2)
    side = max(image.size)
    square = Image.new('RGB', (side, side), GREY)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _fitted(image, wide, high):
    """Return `image` scaled to fit `wide` x `high` with its aspect, black around it.

    Rounds up like LLaVA-NeXT's `resize_and_pad_image`.
    """
    across = wide / image.width
    down = high / image.height
    if across < down:
        size = wide, min(math.ceil(image.height * across), high)
    else:
        size = min(math.ceil(image.width * down), wide), high
    canvas = Image.new('RGB', (wide, high))
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC),
                 ((wide - size[0]) // 2, (high - size[1]) // 2))
    return canvas


class _Cache:
    """What was cut last, up to a number of bytes; safe to use from several threads."""

    def __init__(self, limit):
        self.limit, self.held, self.found, self.lock = limit, 0, OrderedDict(), threading.Lock()

    def get(self, key):
        with self.lock:
            if key in self.found:
                self.found.move_to_end(key)
            return self.found.get(key)

    def put(self, key, value):
        with self.lock:
            if key not in self.found:
                self.found[key] = value
                self.held += value[1].nbytes
            while self.held > self.limit:
                _, (_, dropped) = self.found.popitem(last=False)
                self.held -= dropped.nbytes


_cache = _Cache(CACHE_BYTES)


def cut(data: bytes, vision: VisionConfig, pictures: Pictures, alone: bool = True,
        where: str = 'image') -> tuple[Placed, np.ndarray]:
    """Return (`Placed`, tiles uint8 [I, P, Q], read-only) of encoded bytes, decoded once and
    remembered: training and evaluation meet a picture many times.
    """
    key = data, vision, pictures, alone
    found = _cache.get(key)
    if found is None:
        image = decode(data, where)
        placed = place(*image.size, vision, pictures, alone)
        patches = _tiles(image, vision, mode_of(pictures, alone), pictures)
        patches.flags.writeable = False
        found = placed, patches
        _cache.put(key, found)
    return found

"""The geometry of pictures: how many tiles one is cut into, and what each of its tokens shows.

Nothing here touches a pixel. How a picture is cut is `sizes.Pictures`; `images.py` cuts it.
"""
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from downscale.sizes import Pictures, VisionConfig

NEWLINE = 1 << 20  # stands for `image_newline` until the number of tile slots is known
REDUCE_ABOVE = 1.1  # excess per side that is tolerated before tokens are reduced


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


def fitted_size(width: int, height: int, wide: int, high: int) -> tuple[int, int]:
    """Return the pixels of a picture that is scaled to fit `wide` x `high` with its aspect.

    Rounds up like LLaVA-NeXT's `resize_and_pad_image`.
    """
    across = wide / width
    down = high / height
    if across < down:
        return wide, min(math.ceil(height * across), high)
    return min(math.ceil(width * down), wide), high


@dataclass(frozen=True, kw_only=True)
class _Stitched:
    """A grid of tiles as features; every pair is (columns, rows).

    `grid` counts tiles; `cropped` are the features dropped at either end, `kept` those that stay,
    and `reduced` those after interpolation.
    """
    grid: tuple[int, int]
    cropped: tuple[int, int]
    kept: tuple[int, int]
    reduced: tuple[int, int]


def _stitched(width, height, vision, pictures):
    """Return the `_Stitched` of a picture of `width` x `height` pixels."""
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
    columns -= 2 * left
    rows -= 2 * top
    excess = math.sqrt(rows * columns / (pictures.max_tiles * vision.P))
    reduced = columns, rows
    if excess > REDUCE_ABOVE:
        reduced = max(1, int(columns // excess)), max(1, int(rows // excess))
    return _Stitched(grid=grid, cropped=(left, top), kept=(columns, rows), reduced=reduced)


def _check(width, height):
    """Raise ValueError where a picture has no pixel."""
    if width < 1 or height < 1:
        raise ValueError(f'a picture of {width} x {height} pixels is empty')


@lru_cache(maxsize=4096)
def token_count(width: int, height: int, vision: VisionConfig, pictures: Pictures,
                alone: bool = True) -> int:
    """Return the tokens of a picture of `width` x `height` pixels: L of `place`, without arrays."""
    _check(width, height)
    mode = mode_of(pictures, alone)
    if mode != 'anyres':
        return vision.P + (mode == 'padded')
    columns, rows = _stitched(width, height, vision, pictures).reduced
    return vision.P + rows * (columns + 1)


@lru_cache(maxsize=256)
def place(width: int, height: int, vision: VisionConfig, pictures: Pictures,
          alone: bool = True) -> Placed:
    """Return the `Placed` of a picture of `width` x `height` pixels.

    `alone` says whether it is the only one of its conversation.
    'anyres': the P features of the squashed picture, then the rows of the stitched grid, its
    padding cropped, reduced by bilinear interpolation where it exceeds `max_tiles` tiles, with a
    newline behind each row (LLaVA-OneVision, arXiv 2408.03326; 'spatial_unpad', 'anyres_max').
    """
    _check(width, height)
    mode = mode_of(pictures, alone)
    C = corners(pictures)
    count = 1
    base = _single(np.arange(vision.P), C)
    newline = _single(np.array([NEWLINE]), C)
    parts = [base]
    if mode == 'padded':
        parts.append(newline)
    if mode == 'anyres':
        stitched = _stitched(width, height, vision, pictures)
        count += math.prod(stitched.grid)
        for row in zip(*_reduced(_features(stitched, vision), stitched)):
            parts += [row, newline]
    index_LC = np.concatenate([index for index, _ in parts]).astype(np.int32)
    weight_LC = np.concatenate([weight for _, weight in parts]).astype(np.float32)
    # Both are remembered, and shared by every caller.
    index_LC.flags.writeable = False
    weight_LC.flags.writeable = False
    return Placed(count, index_LC, weight_LC)


def _single(features, C):
    """Return (index, weight), both [n, C], of tokens that are one feature each."""
    weight = np.zeros((len(features), C), np.float32)
    weight[:, 0] = 1
    return np.repeat(features[:, None], C, 1), weight


def _features(stitched, vision):
    """Return the feature numbers of the kept part of the grid, [rows, columns].

    Tile 0 is the squashed picture, so those of the grid count from 1.
    """
    side = vision.image // vision.patch
    columns, rows = stitched.kept
    left, top = stitched.cropped
    row = np.arange(top, top + rows)[:, None]
    column = np.arange(left, left + columns)
    tile = 1 + row // side * stitched.grid[0] + column // side
    return tile * vision.P + row % side * side + column % side


def _taps(size, count):
    """Return (lower, upper, weight of upper) of `count` <= `size` samples of a line, evenly spread.

    Sample centres as `interpolate(mode='bilinear')` of PyTorch puts them, corners not aligned.
    """
    # With equal numbers every sample stands on a point, and the upper one has weight 0.
    at = (np.arange(count) + 0.5) * size / max(count, 1) - 0.5
    lower = np.floor(at).astype(int)
    return lower, lower + (at > lower), at - lower


def _reduced(features, stitched):
    """Return (index, weight), both [rows, columns, 4], of the reduced grid."""
    columns, rows = stitched.reduced
    left, right, across = _taps(features.shape[1], columns)
    upper, lower, down = _taps(features.shape[0], rows)
    # The corners of a sample in reading order, each with the product of its two weights.
    index = [features[row][:, column] for row, column in product((upper, lower), (left, right))]
    weight = [a[:, None] * b for a, b in product((1 - down, down), (1 - across, across))]
    return np.stack(index, -1), np.stack(weight, -1)


# --- a part of a picture ----------------------------------------------------------------------

def touched(boxes: Iterable[Sequence[float]], size: tuple[int, int], vision: VisionConfig,
            pictures: Pictures, alone: bool = True) -> np.ndarray:
    """Return which patches [P * tiles] boxes touch, numbered as the features of `place`.

    Boxes are left, top, right, bottom in pixels of a picture of `size`, right and bottom edge
    exclusive. Where the picture is cut into tiles they are found in the whole one (tile 0) and in
    every tile of the grid. Patches beyond a border that the model drops are touched by none.
    """
    side = vision.image // vision.patch
    tiles = []
    for frame in _frames(*size, vision, mode_of(pictures, alone), pictures):
        patches = np.zeros((side, side), bool)
        for left, top, right, bottom in boxes:
            columns = _span(left, right, size[0], frame[0], vision.patch)
            rows = _span(top, bottom, size[1], frame[1], vision.patch)
            patches[rows, columns] = True
        tiles.append(patches.ravel())
    return np.concatenate(tiles)


def _frames(width, height, vision, mode, pictures):
    """Return, for every tile, ((start, length) across, (start, length) down) of the picture in it.

    In pixels of the tile, where the picture may begin before it and end behind it.
    """
    tile = vision.image
    # As `images._tiles` draws them: whole pixels of border before anything is scaled.
    if mode == 'padded':
        longest = max(width, height)
        return [tuple(((longest - length) // 2 * tile / longest, length * tile / longest)
                      for length in (width, height))]
    frames = [((0, tile), (0, tile))]
    if mode == 'anyres':
        columns, rows = best_grid(width, height, vision, pictures)
        wide, high = fitted_size(width, height, columns * tile, rows * tile)
        left = (columns * tile - wide) // 2
        top = (rows * tile - high) // 2
        frames += [((left - column * tile, wide), (top - row * tile, high))
                   for row, column in product(range(rows), range(columns))]
    return frames


def _span(first, last, length, frame, patch):
    """Return the slice of patches that `first` to `last` of `length` pixels touch in a frame."""
    start, scaled = frame
    # An edge between two patches touches one of them, whatever the last bit of a float says.
    begin = math.floor((start + first * scaled / length) / patch + 1e-9)
    end = math.ceil((start + last * scaled / length) / patch - 1e-9)
    return slice(max(begin, 0), max(end, 0))

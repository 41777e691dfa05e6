"""Pictures to patches: order, borders, colour modes and damaged files."""
import io

import numpy as np
import pytest
from PIL import Image

from downscale.data import images
from downscale.sizes import VisionConfig

CFG = VisionConfig(layers=1, W=8, H=1, F=8, patch=4, image=10)


def png(image, form='PNG'):
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def test_patches_come_row_by_row_and_pixels_row_by_row_inside_them():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    patches = images.patchify(pixels, 2)
    assert patches.shape == (6, 12)
    for k, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        piece = pixels[2 * row:2 * row + 2, 2 * column:2 * column + 2]
        assert patches[k].tolist() == piece.reshape(-1).tolist()


def test_border_pixels_that_fill_no_patch_are_dropped():
    pixels = np.random.default_rng(0).integers(0, 256, (11, 10, 3), np.uint8)
    assert np.array_equal(images.patchify(pixels, 4), images.patchify(pixels[:8, :8], 4))
    assert images.tile(png(Image.fromarray(pixels[:10])), CFG).shape == (CFG.P, CFG.Q) == (4, 48)


def test_a_picture_of_the_right_size_is_not_resampled_and_another_is_resized():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)
    assert np.array_equal(images.tile(png(Image.fromarray(pixels)), CFG),
                          images.patchify(pixels, 4))
    large = Image.new('RGB', (30, 17), (9, 99, 200))
    tile = images.tile(png(large), CFG)
    assert tile.shape == (4, 48)
    assert np.array_equal(tile.reshape(-1, 3), np.tile([9, 99, 200], (64, 1)))


def test_truncated_bytes_are_an_error_that_says_what_to_do():
    noise = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)
    data = png(Image.fromarray(noise))
    for broken in (data[:len(data) // 2], b'', b'no picture'):
        with pytest.raises(ValueError, match=r'scene 7: .*build the data again') as caught:
            images.tile(broken, CFG, 'scene 7')
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('mode', ['P', 'RGBA', 'L', 'LA', '1'])
def test_pictures_of_every_mode_become_rgb(mode):
    image = Image.new('RGB', (10, 10), (255, 255, 255)).convert(mode)
    found = images.decode(png(image))
    assert found.mode == 'RGB'
    assert set(np.asarray(found).reshape(-1).tolist()) == {255}


def test_a_palette_picture_keeps_its_colours():
    image = Image.new('P', (10, 10), 3)
    image.putpalette([0, 0, 0] * 3 + [10, 200, 30])
    assert images.decode(png(image)).getpixel((4, 4)) == (10, 200, 30)


def test_normalised_pixels_span_minus_one_to_one():
    found = images.normalise(np.array([0, 255], np.uint8))
    assert found.dtype == np.float32
    assert found.tolist() == [-1.0, 1.0]


def test_a_remembered_tile_equals_a_fresh_one():
    data = png(Image.fromarray(np.random.default_rng(1).integers(0, 256, (10, 10, 3), np.uint8)))
    assert np.array_equal(images.cached_tile(data, CFG), images.tile(data, CFG))

"""Pictures to tiles and tokens: geometry against golden numbers, borders, colours, bad files."""
import io
import json
import random

import numpy as np
import pytest
from PIL import Image
from roots import DATA

from downscale.data import images, tiling
from downscale.data.tiling import NEWLINE, place, token_count
from downscale.sizes import SIGLIP, Pictures, VisionConfig

# Made once: tokens by torch's `interpolate` on a stitched map whose feature f is f * 37 % 101 and
# whose newline is -1, pixels by plain resizing, pasting and cropping of `picture.png`.
GOLDEN = json.loads((DATA / 'anyres.json').read_text())
CFG = VisionConfig(layers=1, W=8, H=1, F=8, patch=4, image=10)
TINY = VisionConfig(layers=1, W=8, H=1, F=8, **GOLDEN['vision'])
SO400M = SIGLIP['so400m-patch14-384']
FLAT, PADDED, ANYRES = Pictures('flat'), Pictures('padded'), Pictures('anyres')
FEW = Pictures('anyres', GOLDEN['max_tiles'])
NOISE = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)


def encoded(image, form='PNG', **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def one_line(caught):
    return '\n' not in str(caught.value)


# --- geometry ---------------------------------------------------------------------------------

@pytest.mark.parametrize('width, height, tokens', [
    (384, 384, 1485), (500, 375, 1728), (640, 480, 2929), (512, 512, 3699), (1024, 768, 4725),
    (1920, 1080, 7269), (500, 330, 1836)])
def test_a_picture_takes_the_published_number_of_tokens(width, height, tokens):
    assert token_count(width, height, SO400M, ANYRES) == tokens
    assert token_count(width, height, SO400M, ANYRES, alone=False) == 730
    assert token_count(width, height, SO400M, PADDED) == 730
    assert token_count(width, height, SO400M, FLAT) == 729


def sizes(count):
    draw = random.Random(0)
    yield from ((1, 1), (1, 2000), (2000, 1), (1, 50_000), (50_000, 1), (4000, 3000), (1152, 1394))
    for _ in range(count):
        yield tuple(int(2 ** draw.uniform(0, 12.5)) for _ in 'wh')
        yield tuple(draw.randint(200, 2600) for _ in 'wh')


def test_the_count_of_tokens_needs_no_arrays_and_never_exceeds_the_static_maximum():
    counts = {}
    for size in sizes(60):
        placed = place(*size, SO400M, ANYRES)
        counts[size] = token_count(*size, SO400M, ANYRES)
        assert counts[size] == placed.tokens == len(placed.weight_LC), size
    assert max(counts.values()) == 8765 == counts[1152, 1394]
    assert max(token_count(*size, SO400M, ANYRES) for size in sizes(2000)) == 8765


@pytest.mark.parametrize('case', GOLDEN['tokens'], ids=lambda case: str(case['size']))
def test_tokens_mix_features_as_the_reference_interpolates_them(case):
    placed = place(*case['size'], TINY, FEW)
    assert placed.tiles == case['tiles']
    value = np.where(placed.index_LC == NEWLINE, -1, placed.index_LC * 37 % 101)
    np.testing.assert_allclose((value * placed.weight_LC).sum(1), case['values'], atol=1e-3)


def test_the_golden_cases_hold_reduced_and_whole_pictures_with_and_without_padding():
    placed = [place(*case['size'], TINY, FEW) for case in GOLDEN['tokens']]
    reduced = [(one.weight_LC[:, 1:] > 0).any() for one in placed]
    assert 2 < sum(reduced) < len(placed) - 1


def rows_of(placed, vision):
    """(columns before each newline) of the stitched part."""
    ends = np.flatnonzero(placed.index_LC[:, 0] == NEWLINE)
    return np.diff(np.concatenate([[vision.P - 1], ends])) - 1


@pytest.mark.parametrize('pictures', [ANYRES, FEW])
def test_every_token_is_a_mean_of_features_of_its_own_picture(pictures):
    for size in sizes(20):
        placed = place(*size, TINY, pictures)
        real = placed.index_LC[placed.index_LC != NEWLINE]
        assert real.min() >= 0 and real.max() < placed.tiles * TINY.P
        np.testing.assert_allclose(placed.weight_LC.sum(1), 1, rtol=1e-6)
        assert placed.weight_LC.min() >= 0 and placed.weight_LC.shape == placed.index_LC.shape
        # The whole picture comes first, without a newline; behind it every row is equally long
        # (of a thin strip the crop may leave none, as in the reference).
        assert placed.index_LC[:TINY.P, 0].tolist() == list(range(TINY.P))
        assert len(set(rows_of(placed, TINY).tolist())) <= 1
        newlines = (placed.index_LC == NEWLINE).any(1)
        assert (placed.weight_LC[newlines] == [1, 0, 0, 0]).all()


def test_a_picture_that_fills_its_grid_shows_every_patch_once_in_reading_order():
    placed = place(36, 54, TINY, Pictures('anyres', 9))  # two columns and three rows of tiles
    assert placed.tiles == 7 and (placed.weight_LC[:, 0] == 1).all()
    index = placed.index_LC[TINY.P:, 0].reshape(12, 9)
    assert (index[:, 8] == NEWLINE).all()
    assert sorted(index[:, :8].ravel().tolist()) == list(range(16, 7 * 16))
    assert index[0, :8].tolist() == [16, 17, 18, 19, 32, 33, 34, 35]
    assert index[5, :8].tolist() == [52, 53, 54, 55, 68, 69, 70, 71]


def test_padding_is_cropped_in_the_middle_of_the_grid():
    placed = place(36, 12, TINY, Pictures('anyres', 9, ((2, 1),)))  # 6 black pixels of 18
    index = placed.index_LC[TINY.P:, 0].reshape(-1, 9)
    assert index[:, 0].tolist() == [20, 24]  # rows two and three of four


def test_a_grid_is_chosen_by_kept_pixels_then_waste_then_order():
    def grid(width, height, *grids):
        return tiling.best_grid(width, height, TINY, Pictures('anyres', 9, grids))
    assert grid(90, 90, (1, 1), (2, 2), (6, 1)) == (2, 2)  # keeps the most
    assert grid(10, 10, (3, 3), (1, 1), (2, 2)) == (1, 1)  # all keep 100 pixels
    assert grid(10, 10, (2, 1), (1, 2)) == (2, 1) != grid(10, 10, (1, 2), (2, 1))
    assert grid(5000, 1, (1, 1), (1, 2)) == (1, 1)  # both keep nothing


@pytest.mark.parametrize('pictures, tail, corners', [
    (FLAT, 0, 1), (PADDED, 1, 1), (ANYRES, 1, 4)])
def test_pictures_in_company_take_one_tile_and_a_newline_unless_flat(pictures, tail, corners):
    placed = place(500, 30, CFG, pictures, alone=False)
    assert placed.tiles == 1 and placed.index_LC.shape == (CFG.P + tail, corners)
    assert placed.index_LC[:, 0].tolist() == [*range(CFG.P), *[NEWLINE] * tail]
    assert (placed.weight_LC == [1, 0, 0, 0][:corners]).all()
    assert tiling.corners(pictures) == corners


def test_an_empty_picture_has_no_place():
    for size in ((0, 5), (5, 0)):
        for function in (place, token_count):
            with pytest.raises(ValueError, match=f'{size[0]} x {size[1]} pixels is empty'):
                function(*size, CFG, PADDED)


def test_what_is_shared_cannot_be_changed():
    data = encoded(Image.fromarray(NOISE))
    placed, tiles = images.cut(data, CFG, FLAT)
    for array in (placed.index_LC, placed.weight_LC, tiles):
        with pytest.raises(ValueError, match='read-only'):
            array[0] = 0


# --- pixels -----------------------------------------------------------------------------------

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
    assert images.tiles(Image.fromarray(pixels[:10]), CFG, FLAT).shape == (1, CFG.P, CFG.Q)


@pytest.mark.parametrize('pictures', [FLAT, PADDED, FEW], ids=lambda pictures: pictures.mode)
def test_tiles_have_the_pixels_of_the_reference(pictures):
    golden = GOLDEN['pixels'][pictures.mode]
    data = (DATA / 'picture.png').read_bytes()
    found = images.tiles(data, TINY, pictures)
    assert list(found.shape) == golden['shape']
    levels = found[tuple(np.transpose(golden['at']))].astype(int)
    assert np.abs(levels - golden['levels']).max() <= 1  # Pillow's resampling may round otherwise
    assert len(found) == place(100, 47, TINY, pictures).tiles
    together = images.tiles(data, TINY, pictures, alone=False)
    single = FLAT if pictures is FLAT else PADDED
    np.testing.assert_array_equal(together, images.tiles(data, TINY, single))


def test_a_picture_of_the_right_size_is_not_resampled_and_another_is_resized():
    for pictures in (FLAT, PADDED):
        assert np.array_equal(images.tiles(encoded(Image.fromarray(NOISE)), CFG, pictures)[0],
                              images.patchify(NOISE, 4))
    tile, = images.tiles(encoded(Image.new('RGB', (30, 17), (9, 99, 200))), CFG, FLAT)
    assert np.array_equal(tile.reshape(-1, 3), np.tile([9, 99, 200], (64, 1)))


def test_padding_is_grey_around_one_tile_and_black_around_many():
    tower = VisionConfig(layers=1, W=8, H=1, F=8, patch=1, image=8)
    white = Image.new('RGB', (8, 4), (255, 255, 255))
    grey, = images.tiles(white, tower, PADDED)
    assert (grey[:16] == 127).all() and (grey[16:48] == 255).all() and (grey[48:] == 127).all()
    white = Image.new('RGB', (16, 4), (255, 255, 255))
    _, left, right = images.tiles(white, tower, Pictures('anyres', 9, ((2, 1),)))
    for tile in (left, right):
        assert not tile[:16].any() and (tile[16:48] == 255).all() and not tile[48:].any()


def test_a_long_strip_is_padded_without_a_huge_square(monkeypatch):
    monkeypatch.setattr(images, 'MOST_PIXELS', 10_000)
    tile, = images.tiles(Image.new('RGB', (2000, 5), (255, 0, 0)), TINY, PADDED)
    assert images._squared(Image.new('RGB', (2000, 5))).size == (100, 100)
    assert tile.max() > 127 and tile.shape == (TINY.P, TINY.Q)


def test_a_remembered_picture_equals_a_fresh_one_in_every_mode():
    data = (DATA / 'picture.png').read_bytes()
    for pictures in (FLAT, PADDED, FEW):
        for alone in (True, False):
            for _ in range(2):
                placed, tiles = images.cut(data, TINY, pictures, alone)
                assert placed is place(100, 47, TINY, pictures, alone)
                np.testing.assert_array_equal(tiles, images.tiles(data, TINY, pictures, alone))


def test_what_is_remembered_keeps_to_its_bytes_and_forgets_the_oldest():
    cache, pixels = images._Cache(25), np.zeros(10, np.uint8)
    for key in 'abac':
        if cache.get(key) is None:
            cache.put(key, (None, pixels))
    assert [key for key in 'abc' if cache.get(key)] == ['a', 'c'] and cache.size == 20


# --- files ------------------------------------------------------------------------------------

def test_truncated_bytes_are_an_error_that_says_what_to_do():
    data = encoded(Image.fromarray(NOISE))
    photo = encoded(Image.fromarray(NOISE), 'JPEG')
    for broken in (data[:len(data) // 2], photo[:len(photo) // 2], b'', b'no picture'):
        with pytest.raises(ValueError, match=r'scene 7: .*build the data again') as caught:
            images.tiles(broken, CFG, FLAT, where='scene 7')
        assert one_line(caught)


@pytest.mark.parametrize('mode', ['P', 'RGBA', 'L', 'LA', '1', 'CMYK'])
def test_pictures_of_every_mode_become_rgb(mode):
    image = Image.new('RGB', (10, 10), (255, 255, 255)).convert(mode)
    found = images.decode(encoded(image, 'TIFF' if mode == 'CMYK' else 'PNG'))
    assert found.mode == 'RGB'
    assert set(np.asarray(found).reshape(-1).tolist()) == {255}


def test_a_palette_picture_keeps_its_colours():
    image = Image.new('P', (10, 10), 3)
    image.putpalette([0, 0, 0] * 3 + [10, 200, 30])
    for options in ({}, {'transparency': 0}):
        assert images.decode(encoded(image, **options)).getpixel((4, 4)) == (10, 200, 30)


@pytest.mark.parametrize('form', ['PNG', 'TIFF'])
def test_deep_grey_is_scaled_and_not_clipped(form):
    deep = np.linspace(0, 65535, 100).astype(np.uint16).reshape(10, 10)
    found = np.asarray(images.decode(encoded(Image.fromarray(deep), form)))
    assert (found == found[:, :, :1]).all()
    np.testing.assert_array_equal(found[:, :, 0], np.rint(deep / 257))


@pytest.mark.parametrize('pixels, reason', [
    (np.full((4, 4), 0.5, np.float32), 'floating-point'),
    (np.full((4, 4), 70_000, np.int32), 'exceed 16 bits'),
    (np.full((4, 4), -1, np.int32), 'exceed 16 bits')])
def test_grey_of_unknown_range_is_refused(pixels, reason):
    with pytest.raises(ValueError, match=f'here: unreadable picture .*{reason}') as caught:
        images.decode(encoded(Image.fromarray(pixels), 'TIFF'), 'here')
    assert one_line(caught)


@pytest.mark.parametrize('form', ['JPEG', 'PNG'])
def test_the_orientation_of_a_camera_is_applied(form):
    """The light corner is the left one above, however it was stored."""
    upright = Image.new('L', (24, 16), 0)
    upright.paste(255, (0, 0, 8, 8))
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90,
            8: Image.Transpose.ROTATE_270, 2: Image.Transpose.FLIP_LEFT_RIGHT}
    for orientation, turn in back.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        found = images.decode(encoded(upright.transpose(turn), form, exif=exif))
        assert found.size == (24, 16)
        assert found.getpixel((3, 3))[0] > 250 > 5 > found.getpixel((20, 12))[0], orientation


def test_damaged_exif_leaves_the_picture_as_it_is():
    data = encoded(Image.fromarray(NOISE), exif=b'Exif\x00\x00not a header at all')
    assert np.array_equal(np.asarray(images.decode(data)), NOISE)


def test_of_an_animation_the_first_frame_is_seen():
    frames = [Image.new('RGB', (10, 10), colour) for colour in ('red', 'lime', 'blue')]
    data = encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:])
    assert images.decode(data).getpixel((5, 5)) == (255, 0, 0)


def test_a_file_that_asks_for_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    before = Image.MAX_IMAGE_PIXELS
    data = encoded(Image.new('1', (9000, 8000)))
    assert len(data) < 20_000
    monkeypatch.setattr(Image.Image, 'load', None)  # decoding would call it
    with pytest.raises(ValueError, match='here: .*67,108,864 pixels .9000 x 8000.') as caught:
        images.decode(data, 'here')
    assert one_line(caught) and before == Image.MAX_IMAGE_PIXELS
    # What Pillow itself refuses to open is said in the same way.
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(ValueError, match='here: picture with more than') as caught:
        images.decode(data, 'here')
    assert one_line(caught)


def test_pictures_without_pixels_and_foreign_programs_formats_are_refused():
    with pytest.raises(ValueError, match='no pixels'):
        images.decode(Image.new('RGB', (0, 5)))
    postscript = encoded(Image.fromarray(NOISE), 'EPS')  # would start a program to be drawn
    with pytest.raises(ValueError, match='none of BMP') as caught:
        images.decode(postscript)
    assert one_line(caught)


def test_a_picture_file_is_read_inside_its_folder_alone(tmp_path):
    root, outside = tmp_path / 'root', tmp_path / 'outside.png'
    (root / 'a').mkdir(parents=True)
    outside.write_bytes(b'secret')
    (root / 'a' / 'in.png').write_bytes(b'inside')
    (root / 'link.png').symlink_to(outside)
    (root / 'up').symlink_to(tmp_path)
    (root / 'fine.png').symlink_to(root / 'a' / 'in.png')
    assert images.open_under(root, 'a/in.png') == images.open_under(root, 'fine.png') == b'inside'
    for name in (str(outside), '../outside.png', 'a/../../outside.png', 'a/../a/in.png',
                 'link.png', 'up/outside.png', str(root / 'a' / 'in.png')):
        with pytest.raises(ValueError, match='leaves its folder') as caught:
            images.open_under(root, name)
        assert one_line(caught)
    for name in ('none.png', 'a', ''):
        with pytest.raises(FileNotFoundError, match='no picture') as caught:
            images.open_under(root, name)
        assert one_line(caught)


# --- a part of a picture ----------------------------------------------------------------------

WIDE = VisionConfig(layers=1, W=8, H=1, F=8, patch=14, image=100)   # drops two pixels of each tile


@pytest.mark.parametrize('size', [(200, 200), (320, 150), (150, 330), (90, 70)])
@pytest.mark.parametrize('pictures', [FLAT, PADDED, ANYRES], ids=lambda one: one.mode)
def test_a_box_touches_the_patches_whose_pixels_it_paints(pictures, size):
    """In the whole picture and in every tile of the grid; resampling smears an edge by pixels."""
    boxes = [(10, 20, 55, 60), (71, 33, 90, 70)]
    plain = np.full((size[1], size[0], 3), 60, np.uint8)
    painted = plain.copy()
    for left, top, right, bottom in boxes:
        painted[top:bottom, left:right] = 250
    before, after = (images.tiles(Image.fromarray(pixels), WIDE, pictures).astype(int)
                     for pixels in (plain, painted))
    change_J = np.abs(after - before).max(axis=2).ravel()
    touched_J = tiling.touched(boxes, size, WIDE, pictures)
    assert touched_J.shape == change_J.shape and 0 < touched_J.sum() < len(touched_J)
    # Beyond its edge a box rings by less than a half of its brightness; inside it is there.
    assert np.all(touched_J[change_J > 95])
    assert np.all(change_J[touched_J] > 0)


@pytest.mark.parametrize('boxes, patch, touched', [
    ([(0, 0, 20, 20)], 20, [0]), ([(19, 0, 21, 5)], 20, [0, 1]), ([(5, 25, 15, 60)], 20, [3, 6]),
    ([(0, 0, 60, 60)], 20, range(9)), ([(41, 41, 60, 60), (0, 0, 1, 1)], 20, [0, 8])])
def test_of_a_picture_in_its_own_size_exactly_what_is_touched_is_told(boxes, patch, touched):
    vision = VisionConfig(layers=1, W=8, H=1, F=8, patch=patch, image=60)
    found = tiling.touched(boxes, (60, 60), vision, PADDED)
    assert np.flatnonzero(found).tolist() == list(touched)


def test_a_box_in_a_border_that_is_dropped_touches_nothing():
    assert not tiling.touched([(98, 10, 100, 40)], (100, 100), WIDE, FLAT).any()

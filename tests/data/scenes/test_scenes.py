"""The made-up world: sampling is pure, pictures show the graph, and text follows the graph."""
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from downscale.data.scenes.drawing import render
from downscale.data.scenes.world import (
    FIELDS,
    SIZES,
    SPLITS,
    Scene,
    World,
    box_text,
    caption,
    graph_key,
    record,
    sample,
    triple,
)

WORLD = World()


def pixels(world, scene):
    return np.asarray(Image.open(io.BytesIO(render(world, scene))).convert('RGB')).astype(int)


def parse(text):
    """Records in shape-first form -> list of dicts; written without the module under test."""
    words = text.split()
    assert len(words) % 6 == 0 and set(words[5::6]) == {';'}
    return [dict(zip(('shape', 'cell', 'size', 'color', 'char'), words[i:i + 5], strict=True))
            for i in range(0, len(words), 6)]


def differences(first, second):
    """(shape, field) of everything that differs between two pictures with the same shapes."""
    other = {obj.shape: obj for obj in second.objects}
    return [(obj.shape, field) for obj in first.objects for field in FIELDS
            if vars(obj)[field] != vars(other[obj.shape])[field]]


def test_the_same_seed_draws_the_same_scene_and_another_seed_another():
    one, again = sample(WORLD, 'train', 7), sample(World(), 'train', 7)
    assert one == again and render(WORLD, one) == render(World(), again)
    others = [sample(WORLD, 'train', 8), sample(World(seed=1), 'train', 7),
              sample(WORLD, 'test', 7)]
    assert all(caption(other) != caption(one) for other in others)


def test_shapes_and_cells_are_distinct_and_both_sizes_occur():
    for i in range(200):
        objects = sample(WORLD, 'train', i).objects
        assert WORLD.min_objects <= len(objects) <= WORLD.max_objects
        assert len({obj.shape for obj in objects}) == len(objects)
        assert len({obj.cell for obj in objects}) == len(objects)
        assert {obj.size for obj in objects} == set(SIZES)


def test_every_number_of_objects_is_equally_common():
    counts = np.bincount([len(sample(WORLD, 'train', i).objects) for i in range(700)])[2:]
    assert len(counts) == 7 and abs(counts - 100).max() < 40  # four standard deviations


def test_a_caption_parses_back_to_the_scene_graph_in_reading_order():
    for i in range(100):
        scene = sample(WORLD, 'validation', i)
        rows = parse(caption(scene))
        assert rows == [{field: vars(obj)[field] for field in FIELDS} for obj in scene.objects]
        order = [(int(row['cell'][1]), row['cell'][0]) for row in rows]
        assert order == sorted(order)


def test_a_rotated_record_is_the_same_cycle_begun_elsewhere():
    obj = sample(WORLD, 'train', 0).objects[0]
    base = record(obj).split()
    for k, first in enumerate(FIELDS):
        words = record(obj, first).split()
        assert words == base[k:] + base[:k]
        assert words[0] == vars(obj)[first]


@pytest.mark.parametrize('world', [WORLD, World(grid=3, cell_px=26, jitter_px=3, n_shapes=10,
                                                n_colors=10, n_chars=16)])
def test_a_box_contains_exactly_the_pixels_that_its_object_draws(world):
    for i in range(25):
        scene = sample(world, 'train', i)
        full = pixels(world, scene)
        assert full.shape == (world.side, world.side, 3)
        for obj in scene.objects:
            rest = tuple(other for other in scene.objects if other != obj)
            gone = pixels(world, dataclasses.replace(scene, objects=rest))
            ys, xs = np.nonzero(np.abs(full - gone).sum(-1) > 24)
            drawn = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
            assert np.all(np.array(drawn[:2]) >= obj.box[:2])
            assert np.all(np.array(drawn[2:]) <= obj.box[2:])
            assert np.abs(np.array(drawn) - obj.box).max() <= 2, 'the box is loose'
            units = [int(edge) for edge in box_text(world, obj.box).split()]
            unit = world.side / 16
            assert min(units) >= 0 and max(units) <= 15
            assert units[0] * unit <= obj.box[0] < (units[0] + 1) * unit
            assert units[1] * unit <= obj.box[1] < (units[1] + 1) * unit
            assert units[2] * unit < obj.box[2] <= (units[2] + 1) * unit
            assert units[3] * unit < obj.box[3] <= (units[3] + 1) * unit


def test_an_object_lies_within_its_cell_so_nothing_is_hidden():
    for i in range(100):
        for obj in sample(WORLD, 'train', i).objects:
            x, y = (ord(obj.cell[0]) - ord('a')) * 20, (int(obj.cell[1]) - 1) * 20
            assert x <= obj.box[0] and obj.box[2] <= x + 20
            assert y <= obj.box[1] and obj.box[3] <= y + 20


@pytest.mark.parametrize('field', ['shape', 'color', 'size', 'char'])
def test_every_attribute_value_looks_different_from_every_other(field):
    world = World(n_shapes=10, n_colors=10, n_chars=16)
    values = {'shape': world.shapes, 'color': world.colors, 'size': SIZES,
              'char': world.chars}[field]
    base = sample(world, 'train', 0).objects[0]
    for shape in ([base.shape] if field == 'shape' else world.shapes):
        pictures = []
        for value in values:
            obj = dataclasses.replace(base, **{'shape': shape, 'size': 'small', field: value})
            width = world.diameter(obj.size)
            scene = Scene('s', (dataclasses.replace(obj, box=(22, 22, 22 + width,
                                                                     22 + width)),), 240)
            pictures.append(pixels(world, scene))
        for a in range(len(values)):
            for b in range(a):
                changed = np.abs(pictures[a] - pictures[b]).max(-1) > 60
                assert changed.sum() >= 4, f'{values[a]} looks like {values[b]} on a {shape}'


def test_no_scene_graph_occurs_in_two_splits():
    world = World(grid=2, n_shapes=2, n_colors=2, n_chars=2, max_objects=2)  # small: they collide
    seen = {split: {graph_key(sample(world, split, i)) for i in range(150)}
            for split in SPLITS}
    for split in SPLITS:
        for i in range(20):
            seen[split] |= {graph_key(scene) for scene in triple(world, split, i)}
    assert len(seen['train']) < 150 + 60, 'nothing collides, so this test shows nothing'
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not seen[one] & seen[other]


def test_a_triple_holds_two_edits_of_which_one_is_nearer():
    order = []
    for i in range(60):
        first, second, third = triple(WORLD, 'train', i)
        near, far = (len(differences(first, other)) for other in (second, third))
        assert near != far and min(near, far) >= 1
        assert {obj.shape for obj in first.objects} == {obj.shape for obj in second.objects}
        assert len({obj.cell for obj in third.objects}) == len(third.objects)
        order.append(near < far)
    assert 15 < sum(order) < 45


def test_a_crowded_world_still_has_triples():
    world = World(grid=2, n_shapes=3, max_objects=3)  # three objects and one free cell
    for i in range(60):
        for scene in triple(world, 'train', i):
            assert len({obj.cell for obj in scene.objects}) == len(scene.objects)


@pytest.mark.parametrize('wrong, message', [
    ({'max_objects': 9}, 'max_objects=9 > n_shapes=8'),
    ({'grid': 2}, r'max_objects=8 >= grid\*grid=4'),
    ({'min_objects': 9}, 'min_objects=9 > max_objects=8'),
    ({'n_colors': 11}, 'n_colors = 11 must be at least 2 and at most 10'),
    ({'cell_px': 14}, r'cell_px=14 - 2 \* jitter_px=2 leaves small objects 8 px'),
])
def test_an_impossible_world_is_refused_in_one_line_with_its_arithmetic(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        World(**wrong)
    assert '\n' not in str(error.value)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match='train, validation, test'):
        sample(WORLD, 'val', 0)

"""The cluttered world: sampling is pure, and nothing is covered by more than is declared."""
import dataclasses
import io
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from downscale.data.scenes.clutter_drawing import hidden, render
from downscale.data.scenes.clutter_telling import name_of, within
from downscale.data.scenes.clutter_world import Clutter, pair, sample
from downscale.data.scenes.questions import correct
from downscale.data.scenes.world import (
    FIELDS,
    SIZES,
    SPLITS,
    box_text,
    caption,
    graph_key,
    split_of,
)

WORLD = Clutter()
SCENES = [sample(WORLD, 'train', i) for i in range(80)]


def pixels(world, scene):
    return np.asarray(Image.open(io.BytesIO(render(world, scene))).convert('RGB')).astype(int)


def test_the_same_seed_draws_the_same_scene_and_another_seed_another():
    one, again = sample(WORLD, 'train', 7), sample(Clutter(), 'train', 7)
    assert one == again and render(WORLD, one) == render(Clutter(), again)
    others = [sample(WORLD, 'train', 8), sample(Clutter(seed=1), 'train', 7),
              sample(WORLD, 'test', 7)]
    assert all(caption(other) != caption(one) for other in others)
    assert render(WORLD, one) != render(WORLD, dataclasses.replace(one, background=1))


def test_a_scene_is_of_its_split_by_what_it_shows():
    keys = {split: set() for split in SPLITS}
    for split in SPLITS:
        for i in range(30):
            scene = sample(WORLD, split, i)
            assert split_of(scene) == split
            keys[split].add(graph_key(scene))
    assert not keys['train'] & keys['test'] and not keys['validation'] & keys['test']
    assert not keys['train'] & keys['validation']


def test_a_full_scene_has_six_to_twelve_things_some_alike_at_places_of_their_own():
    counts = Counter(len(scene.objects) for scene in SCENES)
    assert set(counts) == set(range(6, 13))
    alike = 0
    for scene in SCENES:
        assert len({obj.cell for obj in scene.objects}) == len(scene.objects)
        assert {obj.size for obj in scene.objects} == set(SIZES)
        alike += len({obj.shape for obj in scene.objects}) < len(scene.objects)
    assert alike > 70
    assert len({obj.shape for scene in SCENES for obj in scene.objects}) == 14


def test_things_cover_several_patches_and_no_patch_is_a_place():
    patch = 12
    corners = [(obj.box[0] % patch, obj.box[1] % patch) for s in SCENES for obj in s.objects]
    assert len(set(corners)) > 100  # no place is that of a patch
    for scene in SCENES:
        for obj in scene.objects:
            columns = range(obj.box[0] // patch, -(-obj.box[2] // patch))
            rows = range(obj.box[1] // patch, -(-obj.box[3] // patch))
            assert 4 <= len(columns) * len(rows) <= 9, obj


def test_a_place_is_where_the_middle_lies_and_the_box_lies_inside_the_picture():
    step = WORLD.side / WORLD.grid
    for scene in SCENES:
        for obj in scene.objects:
            x0, y0, x1, y1 = obj.box
            assert min(obj.box) >= 0 and max(obj.box) <= WORLD.side
            assert x1 - x0 == y1 - y0 == {'large': 22, 'small': 16}[obj.size]
            column, row = math.floor((x0 + x1) / 2 / step), math.floor((y0 + y1) / 2 / step)
            assert obj.cell == f'{"abcdefghi"[column]} {row + 1}'


def opaque(world, scene, obj):
    """Where a thing covers what is behind it by more than half: several backgrounds show it."""
    empty, alone = [], []
    for seed in range(8):  # the more they differ, the less rounding to bytes counts
        empty.append(pixels(world, dataclasses.replace(scene, objects=(), background=seed)))
        alone.append(pixels(world, dataclasses.replace(scene, objects=(obj,), background=seed)))
    return np.ptp(alone, axis=0).sum(-1) < np.ptp(empty, axis=0).sum(-1) / 2


def shares(world, scene):
    """The share of each thing's pixels that show nothing of it, from pictures alone."""
    full = pixels(world, scene)
    for obj in scene.objects:
        others = tuple(other for other in scene.objects if other is not obj)
        without = pixels(world, dataclasses.replace(scene, objects=others))
        alone = pixels(world, dataclasses.replace(scene, objects=(obj,)))
        inked = opaque(world, scene, obj)
        # Of two things of one colour a pixel shows either.
        gone = (full == without).all(-1) & (full != alone).any(-1)
        yield (inked & gone).sum(), inked.sum()


def test_no_thing_is_covered_by_more_than_the_declared_share():
    # Without strokes, which may have the colour of the thing before them.
    world = Clutter(strokes=0)
    for i in range(10):
        scene = sample(world, 'train', i)
        computed = hidden(scene.objects, scene.objects)
        assert max(computed) <= WORLD.occlusion
        for (gone, inked), told in zip(shares(world, scene), computed, strict=True):
            # The computed share is the larger of two, and counts edges that are covered in part. A
            # pixel that is covered by just half is on either side by rounding.
            assert gone <= told * (inked + 1) and (gone > 0 or told < 0.15)
    looser = Clutter(strokes=0, occlusion=0.5)
    most = [gone / inked for i in range(10)
            for gone, inked in shares(looser, sample(looser, 'train', i))]
    assert max(most) > WORLD.occlusion, 'pictures never show more, so this test shows nothing'


def test_without_occlusion_nothing_is_covered():
    world = Clutter(occlusion=0.0, max_objects=8)
    for i in range(20):
        objects = sample(world, 'train', i).objects
        assert max(hidden(objects, objects)) == 0
    assert any(max(hidden(scene.objects, scene.objects)) > 0.1 for scene in SCENES)


def test_a_box_can_be_inferred_from_place_and_size():
    step = WORLD.side / WORLD.grid
    for scene in SCENES:
        for obj in scene.objects:
            column, row = 'abcdefghi'.index(obj.cell[0]), int(obj.cell[2]) - 1
            half = {'large': 11, 'small': 8}[obj.size]
            # A thing lies inside the picture.
            x = min(max((column + .5) * step, half), WORLD.side - half)
            y = min(max((row + .5) * step, half), WORLD.side - half)
            guess = box_text(WORLD, tuple(round(edge) for edge in (
                x - half, y - half, x + half, y + half)))
            assert correct('ground', guess, box_text(WORLD, obj.box)), obj


def test_a_caption_tells_large_things_first_each_size_in_reading_order():
    for scene in SCENES:
        words = caption(scene).split()
        assert len(words) == 7 * len(scene.objects) and set(words[6::7]) == {';'}
        keys = [(words[i + 3] == 'small', int(words[i + 2]), words[i + 1])
                for i in range(0, len(words), 7)]
        assert keys == sorted(keys)


@pytest.mark.parametrize('budget', [8, 16, 32, 64])
def test_a_budget_keeps_whole_records_from_the_beginning_and_as_many_as_it_holds(budget):
    for scene in SCENES:
        whole = caption(scene)
        kept = within(whole, budget)
        assert whole.startswith(kept) and kept.endswith(';')
        assert len(kept.split()) == min(budget // 7, len(scene.objects)) * 7
    assert within(whole, None) == whole


def test_a_name_is_of_one_thing_and_the_shortest_one():
    for scene in SCENES:
        for obj in scene.objects:
            for without in ('', 'color', 'size', 'shape'):
                name = name_of(scene.objects, obj, without)
                if name is None:
                    continue
                words = name.split()
                values = [{getattr(other, field) for field in ('size', 'color', 'shape')}
                          for other in scene.objects]
                assert sum(set(words) <= value for value in values) == 1
                assert without == '' or getattr(obj, without) not in words
                # Leaving a word out names several.
                for word in words[:-1]:
                    rest = set(words) - {word}
                    assert sum(rest <= value for value in values) > 1
        assert name_of(scene.objects, obj, 'shape') is None  # every name has a shape


@pytest.mark.parametrize('field', FIELDS)
def test_a_pair_differs_in_one_field_of_one_thing_and_nothing_else(field):
    for i in range(12):
        first, second = pair(WORLD, 'test', i, field)
        assert (first, second) == pair(Clutter(), 'test', i, field)
        assert first.background == second.background
        assert split_of(first) == split_of(second) == 'test'
        only = set(first.objects) - set(second.objects), set(second.objects) - set(first.objects)
        (before,), (after,) = only
        changed = {name for name in FIELDS if getattr(before, name) != getattr(after, name)}
        assert changed == {field}
        assert (before.box == after.box) == (field not in ('cell', 'size'))
        name = name_of(first.objects, before, without=field)
        assert name == name_of(second.objects, after, without=field)
        assert (name is None) == (field == 'shape')  # known by its place then
        assert max(hidden(second.objects, second.objects)) <= WORLD.occlusion
        differs = np.abs(pixels(WORLD, first) - pixels(WORLD, second)).sum(-1) > 0
        for obj in (before, after):
            differs[obj.box[1]:obj.box[3], obj.box[0]:obj.box[2]] = False
        # Where a thing moves or grows, what it covers is painted in another order at most.
        assert not differs.any() or field in ('cell', 'size')
    middles = [sum(obj.box) for obj in (before, after)]
    assert field != 'size' or middles[0] == middles[1]


def test_an_unknown_field_or_split_is_refused():
    with pytest.raises(ValueError, match='unknown field .*shape, cell, size, color, char'):
        pair(WORLD, 'train', 0, 'colour')
    with pytest.raises(ValueError, match='train, validation, test'):
        sample(WORLD, 'val', 0)


@pytest.mark.parametrize('wrong, message', [
    (dict(min_objects=9, max_objects=8), 'min_objects=9 > max_objects=8'),
    (dict(small_px=22), 'small_px=22 >= large_px=22'),
    (dict(jitter_px=6), 'jitter_px=6 >= side / grid / 2 = 5.333'),
    (dict(large_px=40), '3 [*] large_px=120 > side=96'),
    (dict(budgets=(4,)), 'budgets.*at least 8'),
    (dict(families=('chain5',)), "did you mean 'chain"),
    (dict(kind='cluter'), "did you mean 'clutter'"),
])
def test_a_world_that_does_not_fit_is_refused_with_the_arithmetic(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        Clutter(**wrong)
    assert '\n' not in str(error.value) and len(str(error.value)) <= 300


def test_a_world_without_room_says_so_in_one_line():
    crowded = Clutter(side=48, large_px=16, small_px=14, grid=4, jitter_px=0, min_objects=16,
                      max_objects=16, occlusion=0.0)
    with pytest.raises(ValueError, match='no train scene .*raise `side`') as error:
        sample(crowded, 'train', 0)
    assert '\n' not in str(error.value) and len(str(error.value)) <= 300


def test_shapes_look_different_from_one_another_at_every_size():
    world = Clutter(n_shapes=16)
    base = sample(world, 'train', 0)
    for size in SIZES:
        width = world.diameter(size)
        seen = {}
        for shape in world.shapes:
            obj = dataclasses.replace(base.objects[0], shape=shape, size=size,
                                      box=(30, 30, 30 + width, 30 + width))
            seen[shape] = pixels(world, dataclasses.replace(base, objects=(obj,)))
        for one in seen:
            for other in seen:
                alike = np.abs(seen[one] - seen[other]).max(-1) > 60
                assert one == other or alike.sum() >= 8, (one, other, size)

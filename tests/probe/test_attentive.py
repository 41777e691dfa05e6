"""A probe that attends: it finds the patch that a question names, where a mean forgets it."""
from types import SimpleNamespace

import numpy as np
import pytest
from test_readout import COLORS, SHAPES, Item

from downscale.probe.attentive import attend_read
from downscale.probe.readout import read_out
from downscale.results.probes import NO_DEPTH

P, WIDTH = 9, 24
DRAW = np.random.default_rng(0)
CODES = {word: DRAW.standard_normal(WIDTH) for word in (*SHAPES, *COLORS)}


def pictures(count, name, blind=False):
    """(items, patches): every shape lies at a patch of its own, in some colour; one is asked for.

    A patch is the sum of two codes, so that their mean says which colours there are, not whose.
    """
    items, patches = [], []
    for k in range(count):
        colors, places = DRAW.integers(len(COLORS), size=3), DRAW.permutation(P)[:3]
        x = .1 * DRAW.standard_normal((P, WIDTH))
        for shape, color, place in zip(SHAPES, colors, places, strict=True):
            if not blind:
                x[place] += CODES[shape] + CODES[COLORS[color]]
        s = int(DRAW.integers(3))
        items.append(Item(SimpleNamespace(
            item_id=f'{name}{k}', cluster_id=f'{name}{k}', family='attribute',
            text=f'what color is the {SHAPES[s]}', answer=COLORS[colors[s]],
            extraction=SimpleNamespace(text=f'{SHAPES[s]} a1 small {COLORS[colors[s]]} K ;'))))
        patches.append(x)
    return items, np.array(patches, np.float32)


@pytest.fixture(scope='module')
def seen():
    (asked, x), (spare, y) = pictures(80, 'a'), pictures(400, 'b')
    return asked, spare, x, y


def means(asked, spare, x, y):
    found = attend_read(x, y, asked, spare, WIDTH)['attribute']
    return {metric: values.mean() for (_, _, metric), values in found.items()}


def test_the_named_patch_is_found_where_a_mean_forgets_it(seen):
    asked, spare, x, y = seen
    pooled, _ = read_out({('vision', NO_DEPTH): x.mean(1)}, {('vision', NO_DEPTH): y.mean(1)},
                         asked, spare, WIDTH)
    assert pooled['attribute'].values['vision', NO_DEPTH, 'accuracy'].mean() < .7
    found = means(*seen)
    assert found['attentive'] > .9
    assert found['attentive control'] < .55


def test_patches_that_hold_nothing_read_as_chance():
    (asked, x), (spare, y) = pictures(80, 'a', blind=True), pictures(200, 'b', blind=True)
    assert means(asked, spare, x, y)['attentive'] < .55


def test_without_other_pictures_the_own_ones_are_read_part_by_part():
    asked, x = pictures(200, 'a')
    found = attend_read(x, x[:0], asked, [], WIDTH)['attribute']
    hits = found['vision', NO_DEPTH, 'attentive']
    assert len(hits) == 200 and hits.mean() > .75


def test_families_of_several_objects_are_not_asked():
    asked, x = pictures(40, 'a')
    for item in asked:
        item.question.family = 'relation'
    assert attend_read(x, x[:0], asked, [], WIDTH) == {}

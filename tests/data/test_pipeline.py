"""The input stream: deterministic, resumable, packed without mixing; what cannot fit is said."""
import io
import os
import re

import numpy as np
import pytest
import small
from PIL import Image

from downscale.data import images, measure
from downscale.data.buckets import Shape
from downscale.data.pipeline import Share, _Batches, stream
from downscale.data.records import IMAGE, Conversation, Example, Turn
from downscale.data.scenes.conversations import Recipe
from downscale.data.tiling import NEWLINE
from downscale.sizes import Pictures

P = small.VISION.P
TILES = 4


def png(shade, size=(40, 40)):
    out = io.BytesIO()
    Image.new('RGB', size, (shade,) * 3).save(out, 'PNG')
    return out.getvalue()


class Shades:
    """Twelve examples of one to three pictures; every picture has a grey level of its own, and the
    caption repeats the number of its example."""

    def __len__(self):
        return 12

    def example(self, index):
        images = tuple(png(16 * index + k) for k in range(1 + index % 3))
        return Example(
            scene_id=f's{index}',
            images=images,
            caption=' '.join([str(index)] * (2 + index % 4)),
            questions=(),
        )

    def scenes(self, index):
        return small.library().scenes(index)


class Sizes(Shades):
    """The same with one bright picture each, of many sizes; every fourth example has two."""
    sizes = ((40, 40), (90, 30), (30, 100), (85, 85), (200, 120))

    def example(self, index):
        images = tuple(png(130 + 10 * index, self.sizes[(index + k) % 5])
                       for k in range(1 + (index % 4 == 3)))
        return Example(
            scene_id=f's{index}', images=images, caption=' '.join([str(index)] * 2), questions=()
        )


def taken(batches, count):
    return [next(batches) for _ in range(count)]


def equal(one, other):
    return all(set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)
               for a, b in zip(one, other, strict=True))


@pytest.fixture(scope='module')
def packed():
    sampler = small.sampler('align', batch=4, length=48, tiles=TILES, examples=Shades())
    return taken(iter(stream(sampler, 5)), 4)


def conversations(batch):
    """(row, number of its segment, places of its tokens) of every packed conversation."""
    for row in range(len(batch['tokens'])):
        for segment in range(1, batch['segments'][row].max() + 1):
            yield row, segment, np.flatnonzero(batch['segments'][row] == segment)


@pytest.mark.parametrize('stage', ['text', 'align', 'instruct', 'caption', 'extract', 'reason',
                                   'tower'])
def test_the_same_seed_gives_the_same_batches_and_another_seed_others(stage):
    tiles = 0 if stage in ('text', 'reason') else 3
    first, again, other = (taken(small.batches(stage, seed, tiles=tiles), 2) for seed in (3, 3, 4))
    assert equal(first, again) and not equal(first, other)
    assert first[0]['tokens'].shape == (8, 176)
    assert ('image_index' in first[0]) == (tiles > 0 and stage != 'tower')


@pytest.mark.parametrize('stage', ['instruct', 'tower'])
def test_a_restored_position_continues_as_if_nothing_had_happened(stage):
    batches = small.batches(stage)
    taken(batches, 3)
    state = batches.get_state()
    wanted = taken(batches, 4)
    fresh = small.batches(stage)
    fresh.set_state(state)
    assert equal(taken(fresh, 4), wanted)
    assert not equal(taken(small.batches(stage), 4), wanted)


def test_every_epoch_has_another_order():
    shades = [batch['tiles'][:, 0, 0] for batch in taken(iter(stream(small.sampler(
        'tower', batch=12, length=48, tiles=1, examples=Shades()), 5)), 2)]
    assert sorted(shades[0]) == sorted(shades[1]) and (shades[0] != shades[1]).any()


def test_rows_are_full_of_several_whole_conversations(packed):
    encoder, library = small.encoder(), Shades()
    counts = []
    for batch in packed:
        for row, _, places in conversations(batch):
            tokens = batch['tokens'][row, places]
            words = tokens[batch['image_index'][row, places, 0] < 0][1:]
            index = int(encoder.text(words).split()[0])
            example = library.example(index)
            alone = encoder.encode(
                (
                    Turn(
                        role='user', text=' '.join([IMAGE] * len(example.images)), supervised=False
                    ),
                    Turn(role='assistant', text=example.caption, supervised=True),
                ),
                pictures=encoder.layout.cut(example.images)[0],
            )
            np.testing.assert_array_equal(tokens, alone['tokens'])
            np.testing.assert_array_equal(batch['weights'][row, places], alone['weights'])
        counts += batch['segments'].max(axis=1).tolist()
    assert np.mean(counts) > 1.5


def test_segments_follow_each_other_and_positions_restart_in_each(packed):
    for batch in packed:
        end = 0
        for row, segment, places in conversations(batch):
            start = 0 if segment == 1 else end
            end = places[-1] + 1
            assert places.tolist() == list(range(start, end))
            np.testing.assert_array_equal(batch['positions'][row, places], range(len(places)))
        lengths = (batch['segments'] > 0).sum(1)
        for row, n in enumerate(lengths):
            assert (batch['segments'][row, :n] > 0).all()


def test_a_conversation_sees_its_own_pictures_and_no_other(packed):
    several = 0
    for batch in packed:
        shades = batch['tiles']
        for row, segment, places in conversations(batch):
            index = batch['image_index'][row, places, 0]
            words = small.encoder().text(batch['tokens'][row, places][index < 0][1:])
            example = int(words.split()[0])
            assert index.max() == P * TILES  # the newline behind the last picture
            patches = index[(index >= 0) & (index < P * TILES)].reshape(-1, P)
            np.testing.assert_array_equal(patches % P, np.tile(np.arange(P), (len(patches), 1)))
            seen = [set(shades[row, tile].ravel().tolist()) for tile in patches[:, 0] // P]
            assert seen == [{16 * example + k} for k in range(1 + example % 3)]
            several += segment > 1
    assert several > 5  # a wrong offset shows only behind the first conversation of a row


def test_a_packed_conversation_mixes_features_of_its_own_tiles_alone():
    """The brightest pixel of every patch that is not all padding tells its example."""
    few, tiles, several, mixed = Pictures('anyres', 1), 24, 0, 0
    sampler = small.sampler('caption', batch=4, length=72, tiles=tiles, examples=Sizes(),
                            pictures=few)
    for batch in taken(iter(stream(sampler, 5)), 8):
        index, weight = batch['image_index'], batch['image_weight']
        assert index.shape == weight.shape == (4, 72, 4)
        levels = batch['tiles'].max(-1).reshape(4, -1)
        for row, segment, places in conversations(batch):
            own, shares = index[row, places], weight[row, places]
            words = batch['tokens'][row, places][own[:, 0] < 0]
            example = int(small.encoder().text(words).split()[-1].split('<')[0])
            pngs = Sizes().example(example).images
            placed, _ = sampler.encoder.layout.cut(pngs)
            assert sum(one.tokens for one in placed) == (own[:, 0] >= 0).sum()
            newline = own[:, 0] == tiles * P
            assert newline.sum() == sum((one.index_LC[:, 0] == NEWLINE).sum() for one in placed)
            shown = (own[:, 0] >= 0) & ~newline
            seen = (levels[row][own[shown]] * shares[shown]).sum(-1)
            # Resizing overshoots a little at the edge of the grey padding.
            np.testing.assert_allclose(seen, 130 + 10 * example, atol=4)
            several, mixed = several + (segment > 1), mixed + (shares[:, 1] > 0).sum()
        assert (index[batch['segments'] == 0] == -1).all()
        assert not weight[index[:, :, 0] < 0].any()
    assert several > 5 and mixed > 20


def test_padding_points_to_no_picture_and_is_not_learnt(packed):
    padding = [batch['segments'] == 0 for batch in packed]
    assert sum(where.sum() for where in padding) > 0
    for batch, where in zip(packed, padding, strict=True):
        assert (batch['image_index'][where] == -1).all()
        assert not batch['weights'][where].any() and not batch['tokens'][where].any()


@pytest.mark.parametrize('length, tiles', [(20, 3), (112, 2)])
def test_a_conversation_that_does_not_fit_is_refused_with_the_numbers(length, tiles):
    sampler = small.sampler('align', length=length, tiles=tiles, examples=Shades())
    message = (r'align example 2: 21 tokens and 3 tiles of 3 images do not fit a row of '
               rf'{length} tokens and {tiles} tiles.*never cut inside an image.*raise `length`')
    with pytest.raises(ValueError, match=message) as error:
        sampler(2, np.random.default_rng(0))
    assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match='never cut inside an image'):
        taken(iter(stream(sampler, 0)), 3)


def test_a_picture_of_more_tiles_than_a_row_is_refused_with_the_numbers():
    sampler = small.sampler('align', tiles=9, examples=Sizes(), pictures=Pictures('anyres'))
    message = r'align example 3: \d+ tokens and 10 tiles of 1 images do not fit .* and 9 tiles'
    with pytest.raises(ValueError, match=message):
        sampler.measured(
            Conversation(
                Sizes().example(3).images[:1],
                (
                    Turn(role='user', text=IMAGE, supervised=False),
                    Turn(role='assistant', text='red', supervised=True),
                ),
            ),
            'align example 3',
        )


def test_a_conversation_without_a_supervised_token_is_refused():
    sampler = small.sampler('text')
    talk = Conversation(
        (),
        (
            Turn(role='user', text='red ring', supervised=False),
            Turn(role='assistant', text='yes', supervised=False),
        ),
    )
    with pytest.raises(ValueError, match='here: none of its 5 tokens is supervised'):
        sampler.make(sampler.measured(talk, 'here'))


def test_the_example_norm_gives_every_conversation_the_same_weight():
    by_token = next(small.batches('instruct'))
    assert set(np.unique(by_token['weights'])) == {0, 1}
    by_example = next(small.batches('instruct', loss_norm='example'))
    sums = [by_example['weights'][row, places].sum()
            for row, _, places in conversations(by_example)]
    np.testing.assert_allclose(sums, 1, rtol=1e-5)
    sums = [by_token['weights'][row, places].sum() for row, _, places in conversations(by_token)]
    assert max(sums) > 1.5 * min(sums)
    np.testing.assert_array_equal(by_example['weights'] > 0, by_token['weights'] > 0)


def test_replayed_stages_get_their_shares():
    recipe, n = Recipe(stage='caption', replay=(('instruct', 0.3), ('text', 0.1))), 5000
    rng = np.random.default_rng(0)
    drawn = [recipe.draw(rng) for _ in range(n)]
    for stage, share in {'instruct': 0.3, 'text': 0.1, 'caption': 0.6}.items():
        noise = (share * (1 - share) / n) ** 0.5
        assert abs(drawn.count(stage) / n - share) < 4 * noise, stage


def test_replay_reaches_the_stream_and_none_leaves_it_pure():
    def described(**recipe):
        word = small.encoder().ids('describe')[0]
        found = [word in batch['tokens'][row, places]
                 for batch in taken(small.batches('caption', **recipe), 4)
                 for row, _, places in conversations(batch)]
        return np.mean(found)
    assert described() == 1
    assert 0.3 < described(replay=(('instruct', 0.5),)) < 0.7


@pytest.mark.parametrize('settings, message', [
    (dict(stage='texts'), "unknown stage 'texts'; did you mean 'text'"),
    (dict(stage='text', replay=(('align', 0.6), ('caption', 0.4))), 'sum to less than 1'),
    (dict(stage='text', loss_norm='tokens'), "unknown loss_norm 'tokens'; did you mean 'token'")])
def test_a_senseless_recipe_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


@pytest.mark.parametrize('batch, ways', [(10, 4), (3, 4), (9, 2), (6, 4)])
def test_a_batch_that_does_not_divide_is_refused_with_arithmetic_and_the_nearest(batch, ways):
    message = rf'batch {batch} does not divide .*\({batch} % {ways} = {batch % ways}\).*nearest'
    with pytest.raises(ValueError, match=message) as error:
        stream(small.sampler('text', batch=batch, tiles=0), 0, Share(ways))
    nearest = int(re.search(r'nearest is (\d+)', str(error.value))[1])
    assert nearest > 0 and nearest % ways == 0
    assert abs(nearest - batch) == min(abs(k * ways - batch) for k in range(1, 9))


@pytest.mark.parametrize('name', ['batch', 'length'])
def test_an_empty_shape_is_refused(name):
    with pytest.raises(ValueError, match=f'{name} = 0 must be at least 1'):
        Shape(**{'batch': 4, 'length': 8, 'tiles': 0, name: 0})


def test_two_processes_share_out_exactly_what_one_would_read():
    """No packing here, so the grey level of a row tells its example."""
    sampler = small.sampler('tower', batch=8, length=48, tiles=1, examples=Shades())

    def shades(process, processes):
        found = taken(iter(stream(sampler, 7, Share(processes, (process,)))), 6)
        return np.stack([batch['tiles'][:, 0, 0] for batch in found])
    whole, first, second = shades(0, 1), shades(0, 2), shades(1, 2)
    assert whole.shape == (6, 8) and first.shape == second.shape == (6, 4)
    np.testing.assert_array_equal(np.hstack([first, second]), whole)
    epoch = whole.ravel()[:12]  # no example twice: none goes to both
    assert len(set(epoch)) == 12


@pytest.mark.parametrize('stage, tiles', [('text', 0), ('align', 3), ('tower', 1)])
def test_shares_are_the_rows_of_the_same_global_batches(stage, tiles):
    """However they are cut, and at the same position of the stream: any share may continue it."""
    sampler = small.sampler(stage, tiles=tiles)
    whole = iter(stream(sampler, 7))
    batches = taken(whole, 3)
    for ways, blocks, rows in ((2, (0,), [0, 1, 2, 3]), (2, (1,), [4, 5, 6, 7]), (4, (2,), [4, 5]),
                               (4, (0, 3), [0, 1, 6, 7]), (1, (0,), range(8))):
        part = iter(stream(sampler, 7, Share(ways, blocks)))
        assert equal(taken(part, 3), [{name: array[list(rows)] for name, array in batch.items()}
                                      for batch in batches])
        assert part.get_state() == whole.get_state()


@pytest.mark.parametrize('stage, tiles', [('reason', 0), ('instruct', 3), ('tower', 1)])
def test_one_core_makes_the_batches_of_many(stage, tiles, monkeypatch):
    """There no thread makes conversations, and the position is the same."""
    found = {}
    for cores in (1, 2):
        monkeypatch.setattr(os, 'sched_getaffinity', lambda process, cores=cores: set(range(cores)))
        batches = iter(_Batches(small.sampler(stage, tiles=tiles), 3, Share()))
        assert (batches.makers is None) == (cores == 1)
        found[cores] = taken(batches, 4), batches.get_state()
        batches.close()
    assert equal(found[1][0], found[2][0]) and found[1][1] == found[2][1]


@pytest.mark.parametrize('alone', [True, False])
@pytest.mark.parametrize('mode', ['flat', 'anyres'])
def test_a_picture_that_was_cut_is_measured_without_being_opened(alone, mode, monkeypatch):
    encoder = small.encoder(pictures=Pictures(mode=mode))
    shown = [png(7, (90, 30))] if alone else [png(7, (90, 30)), png(8, (30, 100))]
    turn = Turn(role='user', text=' '.join([IMAGE] * len(shown)), supervised=False)
    talk = Conversation(tuple(shown), (turn,))
    monkeypatch.setattr(images, '_cache', images._Cache(images.CACHE_BYTES))
    wanted = measure.cost(encoder, talk, 'here')
    encoder.layout.cut(shown)
    monkeypatch.setattr(measure, 'picture_size', lambda *_: pytest.fail('opened'))
    assert measure.cost(encoder, talk, 'here') == wanted

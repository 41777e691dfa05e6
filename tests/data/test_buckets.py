"""Buckets: each conversation in the smallest that holds it, once, the same on every process."""
import io
import itertools
import json
from collections import Counter

import jax
import numpy as np
import pytest
import small
from PIL import ExifTags, Image
from test_pipeline import Sizes, conversations, equal, taken

from downscale import config
from downscale.accounting import train_flops
from downscale.config import Optimizer
from downscale.data import buckets, images, measure, pipeline
from downscale.data.buckets import Packer, Shape
from downscale.data.pipeline import Share, packed_batch, stream
from downscale.data.records import IMAGE, Conversation, Turn
from downscale.data.scenes.conversations import Recipe
from downscale.data.scenes.sampler import Sampler
from downscale.data.tokens import Layout
from downscale.model.init import init_params
from downscale.schedule import Schedule
from downscale.sharding import mesh
from downscale.sizes import QWEN3, SIGLIP, Pictures
from downscale.stage_config import Stage
from downscale.stages import padding
from downscale.train import loop
from downscale.train.run import StageRun
from downscale.train.step import LOSSES

SO400M = SIGLIP['so400m-patch14-384']
ANYRES = Pictures('anyres')
SMALLER, LARGEST = (Shape(4, 48, 16), Shape(6, 32, 4)), Shape(2, 64, 16)


def sampler(smaller=SMALLER, largest=LARGEST, stage='caption', **recipe):
    """Pictures of 2 to 16 tiles in conversations of 15 to 51 tokens."""
    return Sampler(
        recipe=Recipe(stage=stage, **recipe),
        library=Sizes(),
        encoder=small.encoder(ANYRES),
        world=small.WORLD,
        shape=largest,
        buckets=smaller,
    )


def example_of(batch, row, places):
    """The number of the example that a caption repeats."""
    words = batch['tokens'][row, places][batch['image_index'][row, places, 0] < 0]
    return int(small.encoder().text(words).split()[-1].split('<')[0])


def shape_of(batch):
    return Shape(*batch['tokens'].shape, batch['tiles'].shape[1])


@pytest.fixture(scope='module')
def batches():
    """Forty batches, and the state of the stream behind them."""
    iterator = iter(stream(sampler(), 5))
    return taken(iterator, 40), iterator.get_state()


def test_proposed_buckets_hold_every_picture_from_729_to_8765_tokens():
    pictures = [measure.picture_cost(width, height, Layout(SO400M, ANYRES), True)
                for width, height in itertools.product(range(200, 2400, 150), repeat=2)]
    pictures += [measure.picture_cost(1152, 1394, Layout(SO400M, ANYRES), True),
                 measure.picture_cost(640, 480, Layout(SO400M, Pictures('flat')), True)]
    sizes = np.array(pictures)
    assert sizes.min(0).tolist() == [729, 1] and sizes.max(0).tolist() == [8765, 37]
    largest = Shape(16, 8832, 37)

    def flops(length, tiles):
        return train_flops(QWEN3['0.6b'], SO400M, rows=1, length=length, tiles=tiles)['total']
    proposed = buckets.propose(sizes, largest, 5, lambda *size: flops(*map(int, size)))
    shapes = (*proposed, largest)
    assert len(shapes) == 5 and shapes == buckets.in_order(shapes)
    assert all(buckets.smallest(shapes, *size) is not None for size in pictures)
    for shape in proposed:
        assert shape.length % 128 == 0 and shape.batch % largest.batch == 0
        assert shape.batch * shape.length <= largest.batch * largest.length
        assert shape.batch * shape.tiles <= largest.batch * largest.tiles


def test_a_conversation_is_in_the_smallest_bucket_that_holds_it(batches):
    shapes, seen = sampler().shapes, Counter()
    assert [shape.length for shape in shapes] == [32, 48, 64]
    for batch in batches[0]:
        bucket = shapes.index(shape_of(batch))
        for row, _, places in conversations(batch):
            index = batch['image_index'][row, places]
            tiles = len(np.unique(index[(index >= 0) & (index < shapes[bucket].tiles * 4)] // 4))
            assert shapes[bucket].holds(len(places), tiles)
            assert not any(shape.holds(len(places), tiles) for shape in shapes[:bucket])
            seen[bucket] += 1
    assert set(seen) == {0, 1, 2}


def test_no_conversation_is_lost_or_doubled(batches):
    """What came and what still waits is what one shape would have drawn, example for example."""
    found, state = batches
    one = sampler(()).sequence(5)
    assert state['next'] > 5 * len(Sizes())
    names = Counter(one[position].where for position in range(state['next']))
    came = Counter(f'caption example {example_of(batch, row, places)}' for batch in found
                   for row, _, places in conversations(batch))
    waits = Counter(one[position].where
                    for position in Packer(sampler().shapes).restore(state))
    assert came + waits == names and came.total() > waits.total() > 0


def test_a_rare_bucket_comes_as_often_as_the_data_has_it(batches):
    counts = Counter(shape_of(batch).length for batch in batches[0])
    sizes = pipeline.epoch(sampler(), 5)
    wanted = buckets.padding(sampler().shapes, np.tile(sizes, (40, 1)), lambda *size: 1)
    for row in wanted['buckets']:
        assert abs(counts[row['length']] / 40 - row['share_of_steps']) < 0.1


def test_two_processes_draw_the_same_buckets_and_share_out_each_batch():
    def drawn(process, processes):
        iterator = iter(stream(sampler(), 7, Share(processes, (process,))))
        return taken(iterator, 12), iterator.get_state()
    (whole, state), (first, other), (second, same) = drawn(0, 1), drawn(0, 2), drawn(1, 2)
    assert len({batch['tokens'].shape for batch in whole}) == 3
    assert equal(whole, [{name: np.concatenate([a[name], b[name]]) for name in a}
                         for a, b in zip(first, second, strict=True)])
    assert state == other == same


@pytest.mark.parametrize('processes', [1, 2])
def test_a_stream_of_buckets_continues_where_it_stopped_on_any_number_of_processes(processes):
    iterator = iter(stream(sampler(), 5))
    taken(iterator, 7)
    state = json.loads(json.dumps(iterator.get_state()))
    wanted = taken(iterator, 9)
    for process in range(processes):
        fresh = iter(stream(sampler(), 5, Share(processes, (process,))))
        fresh.set_state(state)
        assert equal(taken(fresh, 9), [
            {name: np.split(array, processes)[process] for name, array in batch.items()}
            for batch in wanted])


def test_a_bucket_without_tiles_has_no_pictures_to_encode():
    mixed = sampler((Shape(4, 64, 0),), replay=(('text', 0.5),))
    mixed = Sampler(
        recipe=mixed.recipe,
        library=small.library(),
        encoder=small.encoder(),
        world=small.WORLD,
        shape=Shape(4, 176, 3),
        buckets=(Shape(4, 64, 0),),
    )
    names = {frozenset(batch) for batch in taken(iter(stream(mixed, 0)), 12)}
    texts = frozenset(('tokens', 'weights', 'segments', 'positions'))
    assert names == {texts, texts | {'tiles', 'image_index'}}


def test_what_fits_no_bucket_is_named_before_any_picture_is_decoded(monkeypatch):
    monkeypatch.setattr(images, 'cut', None)
    cramped = sampler((Shape(4, 32, 4),), Shape(4, 48, 16))
    message = 'example 8: 51 tokens and 10 tiles of 1 images do not fit a row of 48 tokens and 16'
    with pytest.raises(ValueError, match=message):
        pipeline.epoch(cramped, 5)


# --- what is known without pixels -------------------------------------------------------------

@pytest.mark.parametrize('pictures', [ANYRES, Pictures('anyres', 1), small.PADDED,
                                      Pictures('flat')], ids=lambda p: f'{p.mode}{p.max_tiles}')
def test_a_conversation_is_as_large_as_was_counted_without_decoding_it(pictures):
    encoder = small.encoder(pictures)
    for index in range(12):
        example = Sizes().example(index)
        marks = ' '.join([IMAGE] * len(example.images))
        talk = Conversation(
            example.images,
            (
                Turn(role='user', text=f'{marks} what?', supervised=False),
                Turn(role='assistant', text=example.caption, supervised=True),
            ),
        )
        placed, tiles = encoder.layout.cut(talk.images)
        arrays = encoder.encode(talk.turns, pictures=placed)
        assert measure.cost(encoder, talk, 'here') == (len(arrays['tokens']), len(tiles))


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM'])
@pytest.mark.parametrize('turned', [False, True])
def test_a_header_tells_the_size_of_the_upright_picture(kind, turned):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    extra = {'exif': exif} if turned and kind not in ('BMP', 'GIF', 'PPM') else {}
    data = io.BytesIO()
    Image.new('RGB', (30, 50), (200, 10, 10)).save(data, kind, **extra)
    size = measure.picture_size(data.getvalue())
    assert size == images.decode(data.getvalue()).size == ((50, 30) if extra else (30, 50))


def test_a_damaged_picture_is_named():
    with pytest.raises(ValueError, match='here: unreadable picture'):
        measure.picture_size(b'no picture', 'here')


# --- waste and proposals ----------------------------------------------------------------------

def test_waste_is_what_a_count_by_hand_gives():
    """Rows of at most one conversation, of 100 tokens and 2 tiles or of 50 tokens and 1 tile."""
    sizes = np.array([(40, 1), (100, 2), (50, 1), (60, 0), (10, 1), (30, 1)])
    found = buckets.padding((Shape(2, 100, 2), Shape(4, 50, 1)), sizes,
                            lambda length, tiles: 10 * length + 100 * tiles, most_open=0)
    small_row, large_row = found['buckets']
    assert small_row == {
        'batch': 4, 'length': 50, 'tiles_per_row': 1, 'conversations': 4, 'rows': 4,
        'tokens': 130, 'tiles': 4, 'token_waste': 1 - 130 / 200, 'tile_waste': 0.0,
        'flop_waste': pytest.approx(1 - 1700 / 2400), 'share_of_steps': pytest.approx(0.5),
        'share_of_flops': pytest.approx(2400 / 4800)}
    assert large_row == {
        'batch': 2, 'length': 100, 'tiles_per_row': 2, 'conversations': 2, 'rows': 2,
        'tokens': 160, 'tiles': 2, 'token_waste': pytest.approx(1 - 160 / 200), 'tile_waste': 0.5,
        'flop_waste': pytest.approx(1 - 1800 / 2400), 'share_of_steps': pytest.approx(0.5),
        'share_of_flops': pytest.approx(2400 / 4800)}
    assert found['total'] == {
        'conversations': 6, 'rows': 6, 'tokens': 290, 'tiles': 6,
        'token_waste': pytest.approx(1 - 290 / 400), 'tile_waste': pytest.approx(1 - 6 / 8),
        'flop_waste': pytest.approx(1 - 3500 / 4800)}
    assert json.loads(json.dumps(found)) == found


def test_waste_counts_the_rows_that_training_makes():
    sizes, made = pipeline.epoch(sampler(), 5), sampler()
    counted = buckets.padding(made.shapes, np.concatenate([sizes] * 3), lambda *size: 1)
    packer, rows = Packer(made.shapes), Counter()
    for position, (tokens, tiles) in enumerate(np.concatenate([sizes] * 3).tolist()):
        bucket, filled = packer.add(position, tokens, tiles) or (0, [])
        rows[bucket] += len(filled)
    for bucket, row in enumerate(counted['buckets']):
        waiting = packer.open[bucket] + packer.closed[bucket]
        assert row['rows'] == rows[bucket] + len(waiting)
    assert counted['total']['rows'] < len(sizes) * 3  # several share a row


def expected_work(chosen, sizes, flops):
    """The work that `propose` minimises, conversation by conversation."""
    work = 0.0
    for tokens, tiles in sizes:
        length, slots = next(one for one in chosen if one[0] >= tokens and one[1] >= tiles)
        times = min(length // tokens, slots // tiles if tiles else length)
        used = max(tokens / length, tiles / max(slots, 1))
        work += min(1 / times, used / buckets.FILL) * flops(length, slots)
    return work


@pytest.mark.parametrize('count', [1, 2, 3, 4])
@pytest.mark.parametrize('seed', [0, 1])
def test_no_other_nested_buckets_are_expected_to_take_less_work(count, seed):
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 4, 30)
    sizes = np.stack([rng.integers(20, 200, 30) + 100 * tiles, tiles], 1)
    largest = Shape(4, 640, 4)

    def flops(length, slots):
        return length + length ** 2 / 2000 + 300 * slots
    proposed = buckets.propose(sizes, largest, count, flops)
    ours = expected_work([(s.length, s.tiles) for s in (*proposed, largest)], sizes.tolist(), flops)
    every = [(length, slots) for length in range(128, 641, 128) for slots in range(5)]
    others = [expected_work([*rest, (640, 4)], sizes.tolist(), flops)
              for n in range(count) for rest in itertools.combinations(every[:-1], n)
              if all(a[1] <= b[1] for a, b in itertools.pairwise(rest))]
    assert ours == pytest.approx(min(others), rel=1e-12)
    assert len(proposed) == count - 1


def test_more_buckets_waste_less():
    rng, layout = np.random.default_rng(0), Layout(SO400M, ANYRES)
    sizes = np.array([measure.picture_cost(*rng.integers(200, 2000, 2).tolist(), layout, True)
                      for _ in range(300)])
    largest = Shape(4, 9216, 37)
    wasted = [buckets.padding((*buckets.propose(sizes, largest, count, _plain), largest), sizes,
                              _plain)['total']['flop_waste'] for count in (1, 2, 4)]
    assert wasted[0] > 1.3 * wasted[1] > 1.3 * 1.3 * wasted[2]


def _plain(length, tiles):
    return length + 2000 * tiles


def test_a_conversation_beyond_the_stage_is_no_ground_for_a_proposal():
    with pytest.raises(ValueError, match='up to 300 tokens and 2 tiles do not fit rows of 256'):
        buckets.propose(np.array([(300, 1), (20, 2)]), Shape(4, 256, 2), 2, _plain)


# --- stages -----------------------------------------------------------------------------------

def stage(**settings):
    return Stage(**{'name': 'caption', 'steps': 4, 'batch': 2, 'length': 64, 'tiles': 16,
                    'rates': {'language': 1e-2}, 'trainable': ('language',), 'parents': {},
                    'buckets': SMALLER, **settings})


@pytest.mark.parametrize('settings, message', [
    (dict(length=48), 'bucket of 48 tokens and 16 tiles is not smaller than .* 48 tokens and 16'),
    (dict(tiles=8), 'bucket of 48 tokens and 16 tiles is not smaller'),
    (dict(buckets=(Shape(4, 32, 4), Shape(8, 32, 4))), '32 tokens and 4 tiles occurs 2 times'),
    (dict(name='tower'), 'stage tower has one picture .* leave out its buckets')])
def test_senseless_buckets_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        stage(**settings)
    assert '\n' not in str(error.value)


def cell(**settings):
    return config.Experiment(
        name='c',
        size='w32d1',
        seed=0,
        language=small.language(),
        vision=small.VISION,
        stages=(stage(),),
        pictures=ANYRES,
        **settings,
    )


def test_buckets_survive_the_way_through_experiment_json(tmp_path):
    config.save(cell(), tmp_path)
    assert config.load(tmp_path) == cell()


def test_every_bucket_must_divide_into_the_micro_batches():
    with pytest.raises(ValueError, match=r'stage caption: batch 6 does not divide into 4'):
        config.Experiment(
            name='c',
            size='w32d1',
            seed=0,
            language=small.language(),
            vision=small.VISION,
            stages=(stage(batch=4),),
            optimizer=Optimizer(accumulate=4),
        )


def test_every_bucket_must_divide_over_the_devices():
    with pytest.raises(ValueError, match='batch 6 does not divide over 4 groups of devices'):
        stream(sampler(largest=Shape(4, 64, 16)), 0, Share(4))


def test_sizes_are_counted_once_and_a_misfit_is_still_named(tmp_path, monkeypatch):
    found = padding.sizes(tmp_path, sampler(), 5)
    np.testing.assert_array_equal(found, pipeline.epoch(sampler(), 5))
    monkeypatch.setattr(pipeline, 'epoch', None)
    np.testing.assert_array_equal(padding.sizes(tmp_path, sampler(), 5), found)
    with pytest.raises(ValueError, match='example 8: 51 tokens and 10 tiles'):
        padding.sizes(tmp_path, sampler((), Shape(4, 48, 16)), 5)
    for other in (lambda: padding.sizes(tmp_path, sampler(), 6),
                  lambda: padding.sizes(tmp_path, sampler(turns=2), 5)):
        with pytest.raises(TypeError):  # another stream is counted anew
            other()


def test_figures_compare_buckets_with_one_shape_and_lines_propose_better_ones():
    found = pipeline.epoch(sampler(), 5)
    value = padding.figures(cell(), stage(), found)
    assert value['total']['flop_waste'] < value['one_shape']['flop_waste']
    rows = np.tile([[150, 2], [900, 16]], (50, 1))
    long = stage(length=1024, buckets=())
    assert 'one_shape' not in padding.figures(cell(), long, rows)
    text = list(padding.lines(cell(), long, rows))
    assert text[0] == 'caption: 100 conversations of 150 to 900 tokens and 2 to 16 tiles'
    assert 'buckets=[dict(batch=' in text[-1]


def padded(shape, talks):
    """The same conversations, two to a row, in rows of another shape."""
    made = sampler(largest=Shape(2, 256, 40))
    arrays = [made.make(talk) for talk in talks]
    return packed_batch([arrays[:2], arrays[2:]], shape, made.encoder.layout)


def test_padding_more_changes_neither_loss_nor_gradients():
    drawn = sampler().sequence(5)
    talks = [drawn[position] for position in range(4)]
    model = small.model()
    params = init_params(model, 0, ('language', 'tower', 'connector', 'image_newline_D'))

    def mean(params, batch):
        total, weight, _ = LOSSES['tokens'](model, params, batch)
        return total / weight
    grad = small.quick(jax.value_and_grad(mean))
    tight, wide = grad(params, padded(Shape(2, 72, 28), talks)), \
        grad(params, padded(Shape(2, 192, 33), talks))
    np.testing.assert_allclose(tight[0], wide[0], rtol=1e-6)
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wide[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * scale), tight[1],
                 wide[1])


def test_a_run_over_buckets_continues_as_if_it_had_not_stopped(tmp_path):
    texts = Sampler(recipe=Recipe(stage='text'), library=small.library(), encoder=small.encoder(),
                             world=small.WORLD, shape=Shape(4, 176, 0), buckets=(Shape(4, 48, 0),))
    model = small.model()

    def run(folder, steps):
        asked = StageRun(model=model, loss='tokens', optimizer=Optimizer(),
                         trainable=('language',), rates={'language': 1e-2},
                         schedule=Schedule(steps=steps, warmup=0.0, final=1.0), mesh=mesh(),
                         save_every=100)
        loop.train(folder, asked, lambda: init_params(model, 0, ('language',)),
                   iter(stream(texts, 5)))
    run(tmp_path / 'whole', 12)
    run(tmp_path / 'parts', 6)
    run(tmp_path / 'parts', 12)
    whole, parts = ((tmp_path / name / 'metrics.jsonl').read_text() for name in ('whole', 'parts'))
    assert whole == parts and len(whole.splitlines()) == 12
    lengths = [batch['tokens'].shape[1] for batch in taken(iter(stream(texts, 5)), 12)]
    assert set(lengths[:6]) == set(lengths[6:]) == {48, 176}

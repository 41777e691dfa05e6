"""What a stage sees of a mixture: the plan exactly, in an order that hangs on a seed alone."""
import dataclasses
import threading
from collections import Counter

import numpy as np
import published
import pytest
import small
from test_build import coin_source
from waiting import wait_until

from downscale.data import pipeline
from downscale.data.buckets import Shape
from downscale.data.corpora import sampler
from downscale.data.corpora.build import build
from downscale.data.corpora.build_settings import Settings
from downscale.data.corpora.mixture import Corpus, Mixture, epoch_order, per_epoch
from downscale.data.corpora.sampler import CorpusSampler
from downscale.data.corpora.sources import Source
from downscale.data.pipeline import Share, packed_batch, stream
from downscale.data.scenes.conversations import Recipe
from downscale.model.init import init_params
from downscale.sizes import Pictures
from downscale.train.step import LOSSES

ANYRES = Pictures('anyres')
COUNTS = {'a': 8, 'b': 5}


def source(name, **more):
    return Source(name, 'x.json', licence='', obtain='', **more)


def two(order='shuffled', seed=0, **more):
    return Mixture('two', (source('a', **more), source('b')), order=order, seed=seed)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    """Text alone, one picture and several, from three published sets."""
    root = tmp_path_factory.mktemp('published')
    published.coin(root, 'ScienceQA', 9)
    published.coin(root, 'GQA', 4)
    published.m4(root)
    several = Source('several', 'm4_instruct/m4_instruct_annotations.json', images='m4_instruct',
                     licence='', obtain='', only=('HQ-Edit', 'AESOP'))
    build(Mixture('mine', (coin_source(), coin_source('GQA', epochs=1.5), several)), root / 'built',
          Settings(root=root))
    return Corpus(root / 'built')


def sampler_of(corpus, batch=4, length=160, tiles=24, **recipe):
    return CorpusSampler(
        corpus,
        small.encoder(ANYRES, 'chatml'),
        Recipe(stage='instruct', **recipe),
        Shape(batch, length, tiles),
    )


def taken(batches, count):
    return [next(batches) for _ in range(count)]


def equal(one, other):
    return all(set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)
               for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize('epochs, wanted', [(1.0, 8), (2.25, 18), (0.5, 4), (3.0, 24)])
def test_an_epoch_holds_exactly_what_was_planned(epochs, wanted):
    mine = two(epochs=epochs)
    for seed in range(3):
        order = epoch_order(mine, COUNTS, seed)
        counts = Counter(order.tolist())
        assert sum(n for row, n in counts.items() if row < 8) == wanted
        assert all(counts[row] == 1 for row in range(8, 13))
        assert set(counts.values()) <= {int(epochs), int(epochs) + 1, 1}
        assert per_epoch(mine, COUNTS) == {'a': wanted, 'b': 5} and len(order) == wanted + 5


def test_the_order_is_a_function_of_its_seeds():
    one = epoch_order(two(), COUNTS, 3, 1)
    assert np.array_equal(one, epoch_order(two(), COUNTS, 3, 1))
    others = [epoch_order(two(), COUNTS, 4, 1), epoch_order(two(), COUNTS, 3, 2),
              epoch_order(two(seed=1), COUNTS, 3, 1)]
    assert all(sorted(one) == sorted(other) and list(one) != list(other) for other in others)
    parts = [frozenset(epoch_order(two(epochs=0.5), COUNTS, 0, epoch)) for epoch in range(4)]
    assert len(set(parts)) > 1  # another half in another epoch


def test_a_listed_mixture_goes_through_its_sources_in_turn():
    assert epoch_order(two('listed'), COUNTS, 7).tolist() == list(range(13))
    with pytest.raises(ValueError, match="unknown order 'random'"):
        two('random')
    with pytest.raises(ValueError, match='each once'):
        Mixture('twice', (source('a'), source('a')))


def test_the_stream_realises_the_plan_epoch_for_epoch(corpus):
    made = sampler_of(corpus)
    sequence, epoch = made.sequence(5), len(made)
    plan = per_epoch(corpus.mixture, corpus.counts)
    assert plan == {'ScienceQA': 9, 'GQA': 6, 'several': 4} == corpus.manifest['epoch']['sources']
    orders = []
    for start in (0, epoch, 2 * epoch):
        drawn = [sequence[start + k].number for k in range(epoch)]
        orders.append(drawn)
        assert Counter(corpus.record(number).source for number in drawn) == plan
    assert orders[0] != orders[1] != orders[2] and made.realised(5) == plan


def test_planned_sizes_are_those_of_the_arrays(corpus):
    made = sampler_of(corpus)
    sequence = made.sequence(0)
    for position in range(len(made)):
        drawn = sequence[position]
        arrays = made.make(made.read(drawn))
        assert (len(arrays['tokens']), 0 if arrays['tiles'] is None else len(arrays['tiles'])) \
            == (drawn.tokens, drawn.tiles)
        cost = made.costs[drawn.number]
        assert cost[2] == (arrays['image_index'][:, 0] >= 0).sum()
        assert cost[3] == (arrays['weights'] > 0).sum()


def test_planning_reads_no_record(corpus, monkeypatch):
    made = sampler_of(corpus)
    monkeypatch.setattr(Corpus, 'record', None)
    assert [made.sequence(0)[k].tokens for k in range(3)]
    with pytest.raises(TypeError):
        made.read(made.sequence(0)[0])


def test_one_batch_packs_text_one_picture_and_several_and_cuts_none(corpus):
    batch = next(iter(stream(sampler_of(corpus, batch=8), 1)))
    counts = {len(np.unique(batch['image_index'][row, batch['segments'][row] == segment, 0]))
              > 1 for row in range(8) for segment in range(1, batch['segments'][row].max() + 1)}
    assert counts == {False, True}
    for row in range(8):
        index, segments = batch['image_index'][row], batch['segments'][row]
        for segment in range(1, segments.max() + 1):
            mine = index[segments == segment]
            tiles = np.unique(mine[(mine >= 0) & (mine < 24 * small.VISION.P)] // small.VISION.P)
            assert list(tiles) == list(range(tiles[0], tiles[-1] + 1)) if len(tiles) else True
        # no tile is shared by two conversations
        owners = [set((index[segments == s][index[segments == s] >= 0]
                       // small.VISION.P).tolist()) - {24} for s in range(1, segments.max() + 1)]
        assert sum(map(len, owners)) == len(set().union(*owners))


def test_records_are_read_far_ahead_by_more_threads_than_decode(corpus, monkeypatch):
    """Each waits for the mount of a bucket, and none for another."""
    made = sampler_of(corpus, 2)
    read, numbers, reading, most = made.read, [], set(), [0]
    full = threading.Event()  # as many are read at once as are planned: no thread waits for others

    def slow(drawn):
        numbers.append(drawn.number)
        reading.add(threading.get_ident())
        most[0] = max(most[0], len(reading))
        if most[0] > pipeline.MAKERS:
            full.set()
        full.wait(0.5)
        reading.discard(threading.get_ident())
        return read(drawn)
    monkeypatch.setattr(made, 'read', slow)
    monkeypatch.setattr(pipeline, 'MAKERS', 2)
    batches = iter(stream(made, 0))
    plain = iter(stream(sampler_of(corpus, 2), 0))
    given, ahead = taken(plain, 10), taken(plain, 8)
    assert equal(taken(batches, 10), given)  # and in the same order
    wait_until(lambda: len(numbers) >= conversations(given) + conversations(ahead))
    assert most[0] > 2
    batches.close()
    plain.close()


def conversations(batches):
    return sum(int(batch['segments'].max(1).sum()) for batch in batches)


def test_packing_kinds_together_leaves_the_loss_of_each_as_it_was(corpus):
    made = sampler_of(corpus)
    sequence = made.sequence(1)
    talks = [made.make(made.read(sequence[k])) for k in range(len(made))]
    kinds = {0 if talk['tiles'] is None else min(2, len(talk['tiles'])) for talk in talks}
    assert kinds == {0, 2}  # the smallest picture has two tiles
    model = small.model()
    params = init_params(model, 0, ('language', 'tower', 'connector', 'image_newline_D'))

    loss = small.quick(lambda params, batch: LOSSES['tokens'](model, params, batch))

    def sums(rows, shape):
        batch = packed_batch(rows, shape, made.encoder.layout)
        total, weight, _ = loss(params, batch)
        return float(total), float(weight)
    rows = [talks[:5], talks[5:9], talks[9:13], talks[13:]]
    together = sums(rows, Shape(4, 400, 60))
    alone = np.sum([sums([[talk]], Shape(1, 160, 24)) for talk in talks], 0)
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_any_number_of_processes_sees_the_same_global_batches_and_continues(corpus):
    whole = taken(iter(stream(sampler_of(corpus), 3)), 6)
    halves = [iter(stream(sampler_of(corpus), 3, Share(2, (k,)))) for k in (0, 1)]
    parts = [taken(half, 3) for half in halves]
    for batch, one, two_ in zip(whole, *parts):
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([one[name], two_[name]]))
    assert halves[0].get_state() == halves[1].get_state()
    on_one = iter(stream(sampler_of(corpus), 3))
    on_one.set_state(halves[1].get_state())
    assert equal(taken(on_one, 3), whole[3:])


def test_records_that_fit_no_row_are_left_out_and_counted(corpus):
    costs = sampler_of(corpus).costs
    longest = int(costs[:, 0].max())
    many = costs[:, 0] == longest
    with pytest.raises(ValueError, match=f'do not fit rows of {longest - 1} tokens .*raise'):
        sampler_of(corpus, length=longest - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, 'MOST_LEFT_OUT', 0.5)
        made = sampler_of(corpus, length=longest - 1)
        assert made.left_out == {'too long': many.sum(), 'nothing supervised': 0}
        seen = {made.sequence(0)[k].number for k in range(2 * len(made))}
        assert not seen & set(np.flatnonzero(many).tolist())


def test_an_epoch_without_a_record_is_refused(corpus, monkeypatch):
    few = dataclasses.replace(corpus.mixture, sources=tuple(
        dataclasses.replace(one, epochs=0.001) for one in corpus.mixture.sources))
    monkeypatch.setattr(corpus, 'mixture', few)
    with pytest.raises(ValueError, match='holds no record'):
        sampler_of(corpus)


def test_what_was_seen_is_what_stood_in_the_batches(corpus):
    made = sampler_of(corpus)
    batches = iter(stream(made, 2))
    count = sum(int(batch['segments'].max(1).sum()) for batch in taken(batches, 5))
    seen = made.seen(2, batches.get_state())
    assert sum(seen.values()) == count and set(seen) == set(corpus.counts)


def test_loss_norm_weighs_conversations_equally(corpus):
    batch = next(iter(stream(sampler_of(corpus, loss_norm='example'), 1)))
    sums = [batch['weights'][row, batch['segments'][row] == s].sum()
            for row in range(4) for s in range(1, batch['segments'][row].max() + 1)]
    np.testing.assert_allclose(sums, 1, rtol=1e-5)


def test_an_encoder_of_another_build_counts_once(corpus):
    made = sampler_of(corpus)
    before = sorted(path.name for path in corpus.folder.glob('costs-*.npy'))
    again = sampler_of(Corpus(corpus.folder))
    np.testing.assert_array_equal(made.costs, again.costs)
    other = small.encoder(dataclasses.replace(ANYRES, mode='padded'), 'chatml')
    assert not np.array_equal(Corpus(corpus.folder).costs(other), made.costs)
    after = sorted(path.name for path in corpus.folder.glob('costs-*.npy'))
    assert len(after) == len(before) + 1

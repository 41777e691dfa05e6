"""Greedy decoding against the plainest loop: the whole text through the model each time."""
from collections import Counter
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from downscale.data import images
from downscale.data.images import NEWLINE
from downscale.data.records import IMAGE, Turn
from downscale.generate.engine import Decoding, Engine, Prompt, Request
from downscale.model.init import init_params
from downscale.sizes import Pictures

LENGTH, ROOM, TILES = 48, 10, 3
P = small.VISION.P


@cache
def params():
    """Fresh values with louder kernels: else a reply repeats its first token, whatever it read."""
    fresh = init_params(small.model(), 1)
    loud = jax.tree.map(lambda leaf: 3 * leaf, fresh['language']['blocks'])
    return jax.device_put({**fresh, 'language': {**fresh['language'], 'blocks': loud}})


class Stop:
    """As much of an encoder as the engine needs."""

    def __init__(self, stop):
        self.stop = stop


NEVER = Stop(small.ROWS)  # no model writes this id


@cache
def prompts():
    """Eight rows of different lengths: with one picture, with three, and with none."""
    encoder, found = small.encoder(), []
    for index in range(8):
        example = small.library().example(index)
        pngs = () if index % 3 == 1 else example.images
        mark = ' '.join([IMAGE] * len(pngs))
        talk = [Turn('user', f'{mark} {example.caption[:6 * index]}', False)]
        placed, tiles = encoder.layout.cut(pngs)
        arrays = encoder.encode(talk, reply=True, pictures=placed)
        found.append(Prompt(arrays['tokens'], arrays['image_index'], tiles))
    assert len({len(prompt.tokens) for prompt in found}) > 3
    assert {0 if p.tiles is None else len(p.tiles) for p in found} == {0, 1, 3}
    return found


@cache
def full_forward():
    def logits(params, tokens_BL, segments_BL, tiles, index_BLC):
        positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
        return small.model().apply({'params': params}, tokens_BL, positions_BL, segments_BL,
                                   tiles, index_BLC)
    return small.quick(logits)


def logits_of(prompt, more):
    """float64 [n, V] of one row alone: its prompt and what follows, without a cache."""
    ids = np.zeros((1, LENGTH + ROOM), np.int32)
    index = np.full((1, LENGTH + ROOM, 1), -1, np.int32)
    n = len(prompt.tokens)
    ids[0, :n + len(more)] = [*prompt.tokens, *more]
    index[0, :n] = np.where(prompt.image_index == NEWLINE, P * TILES, prompt.image_index)
    segments = (np.arange(LENGTH + ROOM) < n + len(more)).astype(np.int32)[None]
    tiles = np.zeros((1, TILES, P, small.VISION.Q), np.float32)
    if prompt.tiles is not None:
        tiles[0, :len(prompt.tiles)] = images.normalise(prompt.tiles)
    found = full_forward()(params(), ids, segments, tiles, index)
    return np.asarray(found[0, :n + len(more)], np.float64)


@cache
def naive(row):
    """The greedy reply to prompt `row`, `ROOM` tokens, one whole pass for each."""
    more = []
    for _ in range(ROOM):
        more.append(int(logits_of(prompts()[row], more)[-1].argmax()))
    return more


def write(rows, which=range(8), limit=ROOM, stop=NEVER, targets=None, length=LENGTH):
    engine = Engine(small.model(), params(), stop, rows, NEWLINE)
    return engine.write([prompts()[k] for k in which], length, TILES, limit, ROOM, targets)


@pytest.mark.parametrize('rows', [1, 3, 8])
def test_a_reply_is_that_of_the_plain_loop_whatever_it_is_batched_with(rows):
    replies = write(rows)
    assert [list(reply.ids) for reply in replies] == [naive(k) for k in range(8)]
    assert len({reply.ids for reply in replies}) > 3  # the rows do not just say the same


def test_the_order_and_company_of_a_row_do_not_matter():
    mixed = write(8, which=(6, 1, 0, 1))
    assert [list(reply.ids) for reply in mixed] == [naive(k) for k in (6, 1, 0, 1)]


def test_the_limit_is_kept_and_a_reply_that_meets_it_is_called_truncated():
    for limit in (1, 4):
        replies = write(8, limit=limit)
        assert [list(reply.ids) for reply in replies] == [naive(k)[:limit] for k in range(8)]
        assert all(reply.truncated for reply in replies)


@cache
def common():
    """A token that several rows write, at different places."""
    counts = Counter(token for k in range(8) for token in set(naive(k)))
    stop = max(counts, key=counts.get)
    places = [naive(k).index(stop) for k in range(8) if stop in naive(k)]
    assert 2 <= len(places) < 8 and len(set(places)) > 1
    return stop


def test_a_stop_token_ends_its_row_and_no_other():
    for row, reply in enumerate(write(8, stop=Stop(common()))):
        wanted = naive(row)
        ended = common() in wanted
        assert list(reply.ids) == (wanted[:wanted.index(common())] if ended else wanted), row
        assert reply.truncated == (not ended)
    batch = padded(prompts(), None, Bucket(8, LENGTH, TILES, ROOM), small.VISION, NEWLINE)
    out, stopped, nll = decode(params(), batch, jnp.int32(ROOM), model=small.model(), room=ROOM,
                               stop=common())
    ended = np.cumsum(np.asarray(out) == common(), axis=1) > 0
    assert (np.asarray(out)[ended] == common()).all()  # nothing is written behind a stop token
    assert nll is None and stopped.tolist() == ended.any(1).tolist()


def test_a_reply_that_stops_exactly_at_the_limit_is_not_truncated():
    row = next(k for k in range(8) if common() in naive(k)[1:])
    place = naive(row).index(common())
    for limit, truncated in ((place + 1, False), (place, True)):
        reply, = write(8, which=(row,), limit=limit, stop=Stop(common()))
        assert (list(reply.ids), reply.truncated) == (naive(row)[:place], truncated)


def test_the_nats_of_a_target_are_those_of_its_log_softmax():
    encoder = small.encoder()
    words = ['red', 'a1', 'blue ring', 'red ring a1 b2', 'yes', 'no', '1', 'circle small']
    targets = [[*encoder.ids(text), encoder.stop] for text in words]
    replies = write(8, targets=targets)
    for row, (target, reply) in enumerate(zip(targets, replies, strict=True)):
        n = len(prompts()[row].tokens)
        logits = logits_of(prompts()[row], target)[n - 1:-1]
        logits -= logits.max(-1, keepdims=True)
        nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(target)), target]
        assert reply.nll == pytest.approx(nats.sum(), rel=1e-4), row
    # The target is scored, not read: the reply is the same as without one.
    assert [list(reply.ids) for reply in replies] == [naive(k) for k in range(8)]
    assert all(np.isnan(reply.nll) for reply in write(8))
    assert {reply.nll for reply in write(8, targets=[()] * 8)} == {0.0}


def test_rows_without_pictures_do_not_see_those_of_other_rows():
    """A row of the text-only program and the same row beside pictures."""
    row = 1
    assert prompts()[row].tiles is None
    engine = Engine(small.model(), {'language': params()['language']}, NEVER, 3, NEWLINE)
    alone, = engine.write([prompts()[row]], LENGTH, 0, ROOM, ROOM)
    assert list(alone.ids) == naive(row)


@cache
def tiled():
    """A prompt with one picture of five tiles whose tokens are reduced, one with three pictures
    and one without."""
    encoder, found = small.encoder(Pictures('anyres', 1, ((2, 2),))), []
    examples = [small.library().example(index) for index in range(8)]
    for pngs in (next(e.images for e in examples if len(e.images) == count) for count in (1, 3)):
        placed, tiles = encoder.layout.cut(pngs)
        arrays = encoder.encode([Turn('user', ' '.join([IMAGE] * len(pngs)) + ' red', False)],
                                reply=True, pictures=placed)
        found.append(Prompt(arrays['tokens'], arrays['image_index'], tiles, arrays['image_weight']))
    arrays = encoder.encode([Turn('user', 'red', False)], reply=True)
    found.append(Prompt(arrays['tokens'], arrays['image_index'], None, arrays['image_weight']))
    assert [0 if p.tiles is None else len(p.tiles) for p in found] == [5, 3, 0]
    assert (found[0].image_weight[:, 1:] > 0).any()
    return found


def test_prompts_with_reduced_pictures_are_read_with_their_weights():
    bucket, target = Bucket(3, 24, 5, ROOM), (5, 6, 7)
    batch = padded(tiled(), [target] * 3, bucket, small.VISION, NEWLINE)
    for row, prompt in enumerate(tiled()):
        n = len(prompt.tokens)
        shown = np.where(prompt.image_index == NEWLINE, 5 * P, prompt.image_index)
        np.testing.assert_array_equal(batch['image_index'][row, :n], shown)
        np.testing.assert_array_equal(batch['image_weight'][row, :n], prompt.image_weight)
        assert (batch['image_index'][row, n:] == -1).all()
        assert not batch['image_weight'][row, n:].any()

    @small.quick
    def nats(weight):
        at = jnp.broadcast_to(jnp.arange(24), (3, 24))
        logits, _ = small.model().apply(
            {'params': params()}, batch['tokens'], at, jnp.ones_like(at), batch['tiles'],
            batch['image_index'], weight)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1],
                                     batch['tokens'][:, 1:, None], -1)
        return -(chosen[:, :, 0] * batch['weights'][:, 1:]).sum(1)
    engine = Engine(small.model(), params(), NEVER, 3, NEWLINE)
    found = [reply.nll for reply in engine.write(tiled(), 24, 5, 1, ROOM, [target] * 3)]
    np.testing.assert_allclose(found, nats(batch['image_weight']), rtol=1e-4)
    unmixed = np.asarray(nats(np.float32([1, 0, 0, 0]) * (batch['image_index'] >= 0)))
    assert abs(unmixed - found)[0] > 1e-2 and (abs(unmixed - found)[1:] < 1e-3).all()


def test_a_prompt_of_more_tiles_than_the_bucket_is_refused():
    with pytest.raises(ValueError, match='5 image tiles does not fit a call of 4'):
        padded(tiled(), None, Bucket(3, 24, 4, ROOM), small.VISION, NEWLINE)


def test_progress_counts_prompts():
    seen = []
    engine = Engine(small.model(), params(), NEVER, 3, NEWLINE)
    engine.write(prompts(), LENGTH, TILES, 1, ROOM, report=lambda *at: seen.append(at))
    assert seen == [(3, 8), (6, 8), (8, 8)]
    assert engine.write([], LENGTH, TILES, 1, ROOM) == []


@pytest.mark.parametrize('spare, target', [(-1, ()), (1, (5, 5))])
def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(spare, target):
    n = len(prompts()[0].tokens)
    message = f'{n} tokens and a reply of {len(target)} do not fit .* {n + spare}; raise'
    with pytest.raises(ValueError, match=message) as error:
        write(8, which=(0,), length=n + spare, targets=[target])
    assert '\n' not in str(error.value)


def test_padding_stands_on_the_right_and_points_to_no_picture():
    batch = padded(prompts()[:2], [(9, 9), (9,)], Bucket(3, LENGTH, TILES, ROOM), small.VISION,
                   NEWLINE)
    lengths = [len(prompt.tokens) for prompt in prompts()[:2]]
    assert batch['lengths'].tolist() == [*lengths, 1]
    for row, (n, size) in enumerate(zip(lengths, (2, 1), strict=True)):
        np.testing.assert_array_equal(batch['tokens'][row, :n], prompts()[row].tokens)
        assert batch['tokens'][row, n:n + size].tolist() == [9] * size
        assert not batch['tokens'][row, n + size:].any()
        assert np.flatnonzero(batch['weights'][row]).tolist() == list(range(n, n + size))
        assert (batch['image_index'][row, n:] == -1).all()
        assert batch['image_index'][row].max() == (P * TILES if row == 0 else -1)

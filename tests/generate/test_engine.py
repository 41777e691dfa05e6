"""A reply is what the plain loop gives, whatever it is written beside."""
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import plain_loop
import pytest
import small
from plain_loop import ALL, FEW, GREEDY, SHOWN, asked, engine, plain, prompts, same

from downscale.data.tiling import NEWLINE
from downscale.generate import programs
from downscale.generate.engine import Decoding, Request
from downscale.generate.requests import prompt_arrays
from downscale.generate.sampling import Sampling
from downscale.model.cache import edges, ladder
from downscale.sharding import mesh

DRAWN = Decoding(sampling=Sampling(0.6, top_k=40, top_p=0.9), seed=11)
pytestmark = pytest.mark.usefixtures('optimised')


def of(requests, decoding=GREEDY):
    return [plain(request, decoding) for request in requests]


@cache
def wanted():
    return of(asked())


def test_the_prompts_are_of_every_kind():
    suffixes = {ladder(len(p.tokens) - p.prefix) for p in prompts()}
    assert suffixes == {16, 32, 64, 96, 128, 192, 256}
    assert {ladder(p.prefix) for p in prompts() if p.prefix} == {16, 32, 64, 128}
    assert {0 if p.tiles is None else len(p.tiles) for p in prompts()} == {0, 1, 3}
    crossed = {end for request in asked() for end in edges(320)
               if len(request.prompt.tokens) < end < len(request.prompt.tokens) + request.limit}
    assert crossed == {32, 64, 96, 128, 192, 256}  # replies that run from one block into the next
    assert len({reply.ids for reply in wanted()}) == len(ALL)
    assert len({request.limit for request in asked()}) > 8


def test_the_plain_loop_is_never_in_doubt():
    """Else a tie would decide what the tests of this file compare."""
    for request, reply in zip(asked(), wanted(), strict=True):
        best = np.sort(plain_loop.logits_of(request.prompt, reply.ids)[:-1], axis=1)[:, -2:]
        assert (best[:, 1] - best[:, 0]).min() > 1e-4


@pytest.mark.parametrize('slots', [1, 3, 16])
def test_a_reply_is_that_of_the_plain_loop(slots):
    """Prompts of every bucket, with and without pictures, in any order, with and without refill."""
    shuffled = np.random.default_rng(slots).permutation(len(ALL))
    for refill in (True, False):
        writer = engine(slots, refill=refill)
        assert same(writer.write(asked()), wanted())
        # Questions about the same picture share what is read of it.
        assert writer.stats.pictures == len({prompts()[k].prefix_hash for k in SHOWN}) == 5
        replies = writer.write(asked(ALL[k] for k in shuffled))
        assert same(replies, [wanted()[k] for k in shuffled])


def test_company_does_not_matter_and_every_row_comes_once_as_it_ends():
    for which in ((20, 0, 13, 0), (3, 20)):
        assert same(engine().write(asked(which)), [wanted()[k] for k in which])
    found = list(engine().stream(asked(FEW)))
    assert sorted(index for index, _ in found) == list(range(6)) != [index for index, _ in found]
    assert same([reply for _, reply in sorted(found, key=lambda pair: pair[0])],
                [wanted()[k] for k in FEW])


@pytest.mark.parametrize('slots', [1, 3, 16])
def test_draws_are_those_of_the_plain_loop(slots):
    requests = asked(FEW)
    expected = of(requests, DRAWN)
    for refill in (True, False):
        writer = engine(slots, refill=refill)
        assert same(writer.write(requests, DRAWN), expected)
        assert same(writer.write(requests[::-1], DRAWN), expected[::-1])


def test_another_seed_or_sample_gives_another_draw():
    requests, writer = asked(FEW, limit=8), engine()
    first = writer.write(requests, DRAWN)
    for other in (writer.write(requests, replace(DRAWN, seed=12)),
                  writer.write([replace(r, sample=r.sample + 1) for r in requests], DRAWN)):
        assert all(a.ids != b.ids for a, b in zip(first, other, strict=True))
    assert same(writer.write(requests, DRAWN), first)
    repeats = writer.write([replace(requests[3], sample=k) for k in range(6)], DRAWN)
    assert len({reply.ids for reply in repeats}) > 3


def test_the_nats_of_a_target_are_those_of_its_log_softmax():
    """Rows with a target, of none and with an empty one, some about pictures, in one call."""
    targets = [(5, 6, 7), None, (), (9,), tuple(range(30, 42)), (300, 8)]
    requests = [replace(r, target=t) for r, t in zip(asked(FEW), targets, strict=True)]
    expected = of(requests)
    assert [np.isnan(reply.nll) for reply in expected] == [t is None for t in targets]
    assert expected[2].nll == 0 and expected[0].nll > 1
    for order in (1, -1):
        replies = engine().write(requests[::order])[::order]
        assert same(replies, expected)
    # A target is scored, never read.
    assert [reply.ids for reply in replies] == [wanted()[k].ids for k in FEW]
    blank, = engine().write(asked((0,), target=()))
    assert blank.nll == 0


def test_reduced_pictures_are_shown_with_their_weights():
    requests = [Request(prompt, limit=7, target=(5, 6, 7)) for prompt in plain_loop.tiled()]
    expected = of(requests)
    assert same(engine().write(requests), expected)
    tiled = plain_loop.tiled()[0]
    weight = np.float32([1, 0, 0, 0]) * (tiled.image_index[:, :1] >= 0)
    unmixed = plain(replace(requests[0], prompt=replace(tiled, image_weight=weight)))
    assert abs(unmixed.nll - expected[0].nll) > 1e-2


def test_a_prefix_is_padded_on_the_right_and_points_to_no_picture():
    shown, text = prompts()[SHOWN[-1]], prompts()[0]
    P, n = plain_loop.P, shown.prefix
    for whole, count in ((False, n), (True, len(shown.tokens))):
        tokens, index, weight = prompt_arrays([shown, None], 64, small.VISION, 3, whole)
        assert weight is None and tokens.shape == (2, 64)
        np.testing.assert_array_equal(tokens[0, :count], shown.tokens[:count])
        np.testing.assert_array_equal(index[0, :n], np.where(
            shown.image_index[:n] == NEWLINE, 3 * P, shown.image_index[:n]))
        assert not tokens[0, count:].any() and (index[0, n:] == -1).all()
        assert not tokens[1].any() and (index[1] == -1).all()
    assert index.max() == 3 * P and (text.prefix, text.prefix_hash) == (0, '')


def test_a_prefix_is_named_by_all_that_is_seen_and_by_nothing_behind_it():
    first, second, other = (prompts()[k] for k in (12, 13, 17))
    assert first.prefix_hash == second.prefix_hash != other.prefix_hash
    changed = [replace(first, tokens=first.tokens.copy()), replace(first, tiles=first.tiles.copy()),
               replace(first, image_index=first.image_index.copy()),
               replace(first, tokens=first.tokens.copy())]
    changed[0].tokens[first.prefix - 1] += 1
    changed[1].tiles[0, 0, 0] ^= 1
    changed[2].image_index[0] = 1
    changed[3].tokens[first.prefix] += 1
    assert [p.prefix_hash == first.prefix_hash for p in changed] == [False] * 3 + [True]
    mixed = plain_loop.tiled()[0]
    heavier = replace(mixed, image_weight=mixed.image_weight * np.float32(0.5))
    assert heavier.prefix_hash != mixed.prefix_hash


@pytest.mark.parametrize('data, tensor', [(4, 1), (2, 2)])
def test_a_mesh_of_four_devices_writes_the_same(data, tensor):
    """Pictures of each lane its own; fewer slots than lanes, and more."""
    requests = [replace(r, sample=k, target=(5, 6) if k % 2 else None)
                for k, r in enumerate(asked((12, 0, 17, 1, 12, 17, 0)))]
    over = mesh(data, 1, tensor, jax.devices()[:4])
    for slots, decoding in ((1, DRAWN), (6, DRAWN)) if tensor == 1 else ((3, DRAWN),):
        writer = engine(slots, mesh=over)
        assert same(writer.write(requests, decoding), of(requests, decoding))
    assert writer.lanes == data
    place = writer.params['language']['blocks'][0]['mlp']['gate_FD'].sharding
    assert place.device_set == set(jax.devices()[:4])
    assert place.is_fully_replicated == (tensor == 1)


@pytest.mark.parametrize('over', [None, (2, 2)])
def test_the_order_of_a_cache_on_a_tpu_changes_no_reply(over):
    """Blocks are flat there: rows, positions, and all heads side by side."""
    writer = engine(3, mesh=over and mesh(over[0], 1, over[1], jax.devices()[:4]))
    writer.model = writer.model.clone(attention='splash')
    slots = jax.eval_shape(lambda: programs.empty_slots(model=writer.model, rows=3, ends=(32, 96)))
    c = plain_loop.MODEL.language
    assert {leaf.shape for leaf in (*slots.k[1], *slots.v[1])} == {(3, 64, c.K * c.E)}
    requests = asked(FEW) if over else asked()
    assert same(writer.write(requests), of(requests))


def test_no_slots_are_refused():
    with pytest.raises(ValueError, match='0 slots; at least 1'):
        engine(0)


def test_nothing_asked_is_nothing_written():
    assert engine().write([]) == [] == list(engine().stream([]))


def test_progress_counts_rows_as_they_end():
    seen = []
    engine().write(asked(FEW), report=lambda *at: seen.append(at))
    assert seen == [(k, 6) for k in range(1, 7)]

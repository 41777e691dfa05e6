"""What ends a row, what may be written in it, thoughts, refusals, and the engine's own figures."""
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import plain_loop
import pytest
from plain_loop import ALL, FEW, GREEDY, LETTERS, SHORT, Letters, asked, engine, plain, same

from downscale.evaluate.answers import answer_in
from downscale.generate import programs
from downscale.generate.engine import ROOM, SHORTEST, Decoding, Request
from downscale.generate.requests import Prompt, first_stop
from downscale.generate.thinking import Thinking, advance, begin, endings, recount
from downscale.model.cache import edges, ladder

TWICE = 2 * SHORT  # ten rows for three slots
pytestmark = pytest.mark.usefixtures('optimised')


def check(requests, decoding=GREEDY, encoder=LETTERS):
    """The engine's replies, once they are those of the plain loop."""
    replies = engine(3, encoder).write(requests, decoding)
    assert same(replies, [plain(request, decoding, encoder) for request in requests])
    return replies


@cache
def free(limit=12):
    """Replies to SHORT that nothing but the limit ends."""
    return [plain(request) for request in asked(SHORT, limit)]


# --- ends ---------------------------------------------------------------------------------------

def test_the_limit_is_kept_and_a_reply_that_meets_it_is_called_truncated():
    for limit in (1, 5):
        replies = check(asked(SHORT, limit))
        assert [reply.ids for reply in replies] == [reply.ids[:limit] for reply in free()]
        assert all(reply.truncated and reply.answered == limit for reply in replies)


def test_a_stop_id_ends_its_row_and_no_other():
    """The encoder's and further ones; nothing of them stays."""
    places = ((0, 3), (1, 0), (2, 7))
    stops = [free()[row].ids[place] for row, place in places]
    replies = check(asked(TWICE, 12), Decoding(stops=(*stops[1:], -1)), Letters(stop=stops[0]))
    for row, place in places:
        assert len(replies[row].ids) <= place and replies[row].finish == 'stop'
        assert replies[row].ids == replies[row + 5].ids and not replies[row].truncated
    assert {len(reply.ids) for reply in replies} >= {0, 3, 12}


def test_a_reply_that_stops_exactly_at_the_limit_is_not_truncated():
    stops = Decoding(stops=(free()[0].ids[4],))
    for limit, finish in ((6, 'stop'), (5, 'stop'), (4, 'length')):
        reply = check(asked(SHORT, limit), stops)[0]
        assert (reply.ids, reply.finish) == (free()[0].ids[:4], finish)


def test_no_stop_comes_before_min_new_and_forbidden_ids_never():
    stops = tuple(reply.ids[k] for k, reply in enumerate(free()))
    assert [len(r.ids) for r in check(asked(SHORT, 12), Decoding(stops=stops))][:2] == [0, 1]
    replies = check(asked(SHORT, 12), Decoding(stops=stops, min_new=6))
    assert all(len(reply.ids) >= 6 for reply in replies)
    thirds = tuple(range(0, plain_loop.MODEL.language.V, 3))
    assert any(i % 3 == 0 for reply in free() for i in reply.ids)
    replies = check(asked(SHORT, 12), Decoding(forbidden=thirds))
    assert not [i for reply in replies for i in reply.ids if i % 3 == 0]


def called(monkeypatch, steps):
    """Calls of decode end after `steps` tokens at the latest."""
    plainly = plain_loop.Engine.call

    def call(self, program, *args, **static):
        if program is programs.decode:
            args = (*args[:4], np.int32(steps), *args[5:])
        return plainly(self, program, *args, **static)
    monkeypatch.setattr(plain_loop.Engine, 'call', call)


def crossing(row, place):
    """Text that begins in one token of a free reply and ends in the next."""
    a, b = (f'{i:x}' for i in free()[row].ids[place:place + 2])
    return a[-1] + b[0]


@pytest.mark.parametrize('steps', [1, 3, ROOM])
def test_a_stop_string_ends_a_row_wherever_tokens_and_calls_cut_it(monkeypatch, steps):
    strings = (crossing(0, 4), crossing(2, 6) + 'no', crossing(3, 9), crossing(3, 8))
    called(monkeypatch, steps)
    replies = check(asked(TWICE, 12), Decoding(stop_strings=strings))
    assert replies[0].finish == 'string' and len(replies[0].ids) <= 6
    assert {reply.finish for reply in replies} == {'string', 'length'}
    for reply in replies:
        assert not any(string in reply.text for string in strings)
        if reply.finish == 'string':  # the ids still hold it, the text ends before it
            assert Letters().text(reply.ids).startswith(reply.text)
            assert any(string in Letters().text(reply.ids) for string in strings)
    # A stop id behind the string, but in the same call, changes nothing.
    stopped = check(asked(TWICE, 12), Decoding(stop_strings=strings, stops=(free()[0].ids[6],)))
    assert same(stopped[:1], replies[:1])


@pytest.mark.parametrize('pieces, strings, kept, text', [
    (['a', 'b', 'c'], ['c'], 3, 'ab'), (['a', 'bc', 'd'], ['cd'], 3, 'ab'),
    (['x', 'aa', 'ab', 'y'], ['aab'], 3, 'xa'), (['aa', 'aa', 'aab'], ['aaab'], 3, 'aaa'),
    (['ab', 'ab', 'ac', 'z'], ['abac', 'zz'], 3, 'ab'), (['q', 'rs', 't'], ['t', 's'], 2, 'qr'),
    (['qrst'], ['st', 'rs'], 1, 'q'), (['a', 'b'], ['c'], None, None), ([], ['a'], None, None),
    (['a</think>', 'b', 'END', 'x', 'END'], ['END'], 3, 'a</think>b')])
def test_the_first_token_that_completes_a_stop_string_ends_the_text(pieces, strings, kept, text):
    found = first_stop(list(range(len(pieces))), lambda ids: ''.join(pieces[i] for i in ids),
                       strings)
    assert found == (None if kept is None else (kept, text))


# --- thoughts -----------------------------------------------------------------------------------

def thinking(budgets, which=SHORT, limit=4):
    return [replace(request, think=budget) for request, budget in
            zip(asked(which, limit), budgets, strict=True)]


def closes():
    """An encoder whose </think> is what row 3 writes as its sixth token, and whose <think> is what
    row 4 begins with."""
    return Letters(thought=(free()[4].ids[0], free()[3].ids[5], 4))


def test_thoughts_and_direct_rows_share_a_call():
    """Early and forced closes, none at all, and budgets of 0, 1, 2, 5, 6 and more."""
    mark, requests = closes(), []
    for budgets in ((0, 1, 2, 20, 9), (None, 7, None, 5, 1), (3, 9, 0, 6, None),
                    (30, 2, 4, None, 0)):
        requests += thinking(budgets)
    replies = check(requests, encoder=mark)
    opened, closed, newline = mark.thought
    assert same(engine(3, mark).write(requests[::-1]), replies[::-1])
    for request, reply in zip(requests, replies, strict=True):
        if request.think is None:
            assert (reply.close, reply.thought, reply.answered) == ('', 0, len(reply.ids))
            continue
        at = reply.ids.index(closed)
        assert reply.ids.count(closed) == 1 and reply.answered == len(reply.ids) - at - 1
        assert reply.thought == at - (reply.ids[0] == opened)
        if reply.close == 'forced':
            assert reply.thought == request.think
            assert request.think == 0 or reply.ids[at - 1] == newline
        assert '</think>' in reply.text
    assert replies[3].close == 'natural' and replies[3].thought == 5 < requests[3].think
    assert replies[4].ids[0] == opened and replies[4].thought == 9
    assert {reply.close for reply in replies} == {'', 'natural', 'forced'}


def test_ids_that_are_banned_while_thinking_may_be_written_behind_it():
    even = tuple(range(0, plain_loop.MODEL.language.V, 2))
    requests = thinking((6, 9, None, 12, 7), limit=8)
    replies = check(requests, Decoding(banned_thinking=even))
    for request, reply in zip(requests, replies, strict=True):
        free_part = [] if request.think is None else reply.ids[:request.think - 1]
        assert not [i for i in free_part if i % 2 == 0]
        assert [i for i in reply.ids[len(free_part) + 2:] if i % 2 == 0]


def test_a_thought_that_a_stop_or_a_string_ends_stays_open(monkeypatch):
    """And counts what was kept of it, however much the call wrote behind."""
    mark = closes()
    requests = thinking((20, 20, 20, 20, 3))
    string = crossing(3, 2)
    for steps in (1, 4, ROOM):
        called(monkeypatch, steps)
        replies = check(requests, Decoding(stop_strings=(string,)), mark)
        assert (replies[3].finish, replies[3].close, replies[3].answered) == ('string', 'open', 0)
        assert replies[3].thought == len(replies[3].ids) <= 4
        monkeypatch.undo()
    stopped = check(requests, Decoding(stops=(free()[3].ids[2],)), mark)[3]
    assert (stopped.finish, stopped.close, stopped.thought) == ('stop', 'open', 2)


def test_the_nudge_and_the_reference_reach_the_machine():
    requests, mark = thinking((20, 20, 20, 20, 20), limit=6), Letters(thought=(2, 3, -1))
    replies = engine(3, mark).write(requests, Decoding(nudge=1e6))
    assert {(reply.close, reply.thought) for reply in replies} == {('natural', 19)}
    mark = closes()
    replies = engine(3, mark).write(requests, Decoding(reference_compat=True))
    assert replies[3].ids.count(mark.thought[1]) == 2 and replies[3].ids[5] == mark.thought[1]
    assert {len(reply.ids) for reply in replies} == {26}  # budget and limit, marks included


@pytest.mark.parametrize('compat', [False, True])
def test_a_part_of_a_reply_counts_as_the_machine_counted_so_far(compat):
    mark, requests = closes(), thinking((0, 7, 3, 20, 9))
    opened, closed, newline = mark.thought
    mode = Thinking(open=opened, close=closed, newline=newline, reference_compat=compat)
    replies = engine(3, mark).write(requests, Decoding(reference_compat=compat))
    assert recount(mode, None, (5, mark.thought[1]), '') == ('', 0, 2)
    for request, reply in zip(requests, replies, strict=True):
        mind = begin(np.int32([request.think]), np.int32([request.limit]))
        for keep, token in enumerate(reply.ids, 1):
            mind = advance(mode, mind, np.int32([token]))
            counted = endings(mind)[0], int(mind.thought_B[0]), int(mind.answered_B[0])
            assert recount(mode, request.think, reply.ids[:keep], reply.close) == counted


class Spelling(Letters):
    """An encoder of which some tokens are other texts: what a row writes is known before."""

    def __init__(self, texts, thought):
        super().__init__(thought=thought)
        self.texts = texts

    def text(self, ids):
        return ''.join(self.texts.get(i, Letters.text(self, [i])) for i in ids)


@pytest.mark.parametrize('row, close', [(3, 'natural'), (2, 'forced')])
def test_a_close_that_a_thought_spells_in_letters_ends_no_thought(row, close):
    """The answer stands behind the token that closed, whatever letters stood before it."""
    requests = thinking((20, 20, 7, 20, 9), limit=6)
    ids = engine(3, closes()).write(requests)[row].ids
    at = ids.index(closes().thought[1])
    once, more, answered = ids[1], ids[2], ids[at + 2]
    assert len({once, more, answered, *closes().thought}) == 6 and not {once, more} & {*ids[at:]}
    encoder = Spelling({once: '</', more: 'think>', answered: '</think>'}, closes().thought)
    reply = check(requests, encoder=encoder)[row]
    spelled = encoder.text(ids[:at]).count('</think>')
    assert (reply.ids, reply.close, reply.spelled) == (ids, close, spelled) and spelled > 0
    assert encoder.text(ids[at + 1:]).count('</think>') == ids[at:].count(answered) > 0
    assert answer_in(reply.text, True, reply.spelled) == (encoder.text(ids[at + 1:]), True)


def test_letters_alone_leave_a_thought_open():
    requests = thinking((20, 20, 20, 20, 20))
    first, second, *_, third = free()[3].ids[:4]
    encoder = Spelling({first: '</', second: 'think>'}, closes().thought)
    reply = check(requests, Decoding(stops=(third,)), encoder)[3]
    assert (reply.finish, reply.close, reply.thought, reply.spelled) == ('stop', 'open', 3, 1)
    assert '</think>' in reply.text and answer_in(reply.text, True, reply.spelled) == ('', False)


# --- refusals -----------------------------------------------------------------------------------

def text(*ids):
    return Prompt(tokens=np.array(ids, np.int32), image_index=np.full((len(ids), 1), -1, np.int32))


@pytest.mark.parametrize(
    'request_, decoding, message',
    [
        (Request(text(), limit=4), {}, 'request 1: a prompt must end with a token of text'),
        (
            Request(Prompt(tokens=np.int32([5, 0]), image_index=np.int32([[-1], [0]])), limit=4),
            {},
            'end with a token of text',
        ),
        (
            Request(Prompt(tokens=np.int32([0, 5]), image_index=np.int32([[0], [-1]])), limit=4),
            {},
            'image tokens without tiles',
        ),
        (
            Request(
                Prompt(
                    tokens=np.int32([0, 5]),
                    image_index=np.int32([[9 * plain_loop.P], [-1]]),
                    tiles=np.zeros((9, 1)),
                ),
                limit=4,
            ),
            {},
            f'request 1: image_index reaches {9 * plain_loop.P}, but its tiles have',
        ),
        (Request(text(5), limit=4), {'seed': -1}, 'seed -1 is no uint32'),
        (Request(text(5), limit=4), {'forbidden': tuple(range(320))}, 'every token is forbidden'),
        (Request(text(5), limit=0), {}, 'request 1: limit 0 must be at least 1'),
        (Request(text(5), limit=4, think=-1), {}, 'think -1 at least 0 or None'),
        (
            Request(text(5), limit=4, think=3),
            {},
            'request 1 thinks, but the tokenizer has no <think>',
        ),
        (Request(text(5), limit=4, sample=2**32), {}, 'request 1: sample 4294967296 is no uint32'),
        (Request(text(5), limit=4, sample=-1), {}, 'request 1: sample -1 is no uint32'),
        (
            Request(text(5, 320), limit=4),
            {},
            'request 1: token ids 5 to 320 are not all below the 320 rows',
        ),
        (Request(text(5, -1), limit=4), {}, 'request 1: token ids -1 to 5'),
        (Request(text(5), limit=4, target=(320,)), {}, 'request 1: token ids 5 to 320'),
        (Request(text(5), limit=4), {'stop_strings': ('a', '')}, 'a stop string is empty'),
        (
            Request(text(5), limit=4),
            {'stops': (320,)},
            r'token ids \[320\] are outside the vocabulary',
        ),
        (
            Request(text(5), limit=4),
            {'forbidden': (-2,)},
            r'token ids \[-2\] are outside the vocabulary',
        ),
        (
            Request(text(5), limit=4),
            {'banned_thinking': (999,)},
            r'\[999\] are outside the vocabulary',
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_before_work_starts(request_, decoding, message):
    writer = engine(encoder=Letters(thought=(2, -1, 4)))
    with pytest.raises(ValueError, match=message) as error:
        writer.stream([asked((0,))[0], request_], Decoding(**decoding))  # before the first row
    assert '\n' not in str(error.value) and writer.stats.steps == writer.stats.read == 0


def test_a_model_that_cannot_see_refuses_pictures():
    blind = {'language': plain_loop.params()['language']}
    with pytest.raises(ValueError, match='request 0 shows a picture, but the model has no vision'):
        plain_loop.Engine(plain_loop.MODEL, blind, LETTERS, 1).stream(asked(FEW[-1:]))


# --- figures ------------------------------------------------------------------------------------

def test_the_figures_of_an_engine_are_those_of_its_rows():
    requests = asked(TWICE, 9)
    writer = engine(3, refill=False)
    replies = writer.write(requests, Decoding(stops=(free()[1].ids[3],)))
    found, stats = writer.stats.summary(), writer.stats
    written = [len(reply.ids) + (reply.finish == 'stop') for reply in replies]
    assert stats.rows == found['rows'] == 10
    assert stats.tokens == sum(written) < 90
    assert stats.steps == sum(max(written[k:k + 3]) for k in range(0, 10, 3))  # each three at once
    assert stats.slot_steps == 3 * stats.steps
    assert found['slot_occupancy'] == stats.tokens / stats.slot_steps < 1
    lengths = [len(request.prompt.tokens) for request in requests]
    assert stats.read == sum(lengths) - 10  # the last token of a prompt is read by decode
    assert stats.read_padded == sum(ladder(n, SHORTEST) for n in lengths)
    assert found['padding_waste'] == pytest.approx(1 - stats.read / stats.read_padded)
    assert found['tokens_per_second'] == stats.tokens / stats.seconds > 0
    assert set(engine().stats.summary().values()) == {0}


def test_refill_keeps_the_slots_busy():
    """One long reply, and forty short ones that take the other slots one after another."""
    requests = [replace(r, limit=2) for r in asked(8 * SHORT)]
    requests.insert(5, replace(requests[0], limit=60))
    busy = {}
    for refill in (True, False):
        writer = engine(3, refill=refill)
        writer.write(requests)
        busy[refill] = writer.stats.summary()['slot_occupancy']
    assert busy[True] > busy[False] + 0.15


def test_a_step_does_not_pay_for_cache_that_nobody_has_reached(monkeypatch):
    """What decode is given is decided by what is written, not by what might be."""
    plainly, given, made = plain_loop.Engine.call, [], []

    def call(self, program, *args, **static):
        if program is programs.decode:
            given.append((sum(block[0].shape[2] for block in args[1].v), args, static))
        if program is programs.empty_slots:
            made.append(static['ends'][-1])
        return plainly(self, program, *args, **static)
    monkeypatch.setattr(plain_loop.Engine, 'call', call)
    stops = Decoding(stops=tuple(reply.ids[8] for reply in free()))
    replies = [engine().write(asked(SHORT, limit), stops) for limit in (12, 1500)]
    assert same(*replies) and made == [96, 2048]
    assert {live for live, _, _ in given} == {64, 96}  # the longest is 58 tokens and 9 more
    # And this is worth it: the more a step is given, the more it computes.
    work = {}
    for live, args, static in given:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
        work[live] = programs.decode.lower(*shapes, model=plain_loop.MODEL, **static) \
            .cost_analysis()['flops']
    # 2 layers, 3 rows, 32 more positions: scores and mix, 4 heads of width 8.
    assert work[96] - work[64] > 2 * 3 * 32 * 2 * 2 * 4 * 8


@pytest.fixture
def compiled():
    """The number of programs compiled since the test began, none of which is known then."""
    seen = []

    def note(event, seconds, **_):
        if event == '/jax/core/compile/backend_compile_duration':
            seen.append(seconds)
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(note)
    yield seen
    jax.monitoring.unregister_event_duration_listener(note)


def test_no_more_is_compiled_than_there_are_buckets_and_two(compiled):
    requests = asked((*ALL[2:6], *FEW, 15, 19, 8))
    prefixes = {ladder(r.prompt.prefix, SHORTEST) for r in requests if r.prompt.prefix}
    prefills = {ladder(len(r.prompt.tokens) - r.prompt.prefix, SHORTEST) for r in requests}
    reached = {end for r in requests for at in range(r.limit)
               for end in edges(len(r.prompt.tokens) + at)[-1:]}
    assert len(prefixes) == 2 and len(prefills) == 4 and len(reached) == 4
    buckets = len(prefixes) + len(prefills) + len(reached) + 1  # and one shape of picture
    writer = engine(1)
    del compiled[:]
    first = writer.write(requests)
    assert len(compiled) == writer.stats.compiles <= buckets + 2
    assert len(compiled) > buckets - 2  # this very count sees what is compiled
    assert writer.stats.compile_seconds == pytest.approx(sum(compiled))
    del compiled[:]
    assert same(writer.write(requests), first)
    assert same(engine(1).write(requests[::-1]), first[::-1])
    assert not compiled

"""The thinking machine, driven by scripts: the logits favour what a row would write next."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import quick

from downscale.generate.thinking import (
    ANSWER,
    Thinking,
    advance,
    begin,
    endings,
    spent,
    steer,
)

STOP, OPEN, CLOSE, NEWLINE, WAIT, ELSE, WORD = range(7)
V, STEPS = 8, 40
OURS = Thinking(open=OPEN, close=CLOSE, newline=NEWLINE)
COMPAT = Thinking(open=OPEN, close=CLOSE, newline=NEWLINE, reference_compat=True)
BANNED = np.arange(V) == WAIT


def play(thinking, banned_V, budget_B, limit_B, logits_LBV):
    """Greedy decoding of prescribed logits: tokens [L, B], -1 behind a row's end, and the minds."""
    def step(carry, logits_BV):
        mind, over_B = carry
        token_B = jnp.argmax(steer(thinking, mind, banned_V, logits_BV), axis=-1).astype(jnp.int32)
        over_B = over_B | spent(mind) | (token_B == STOP)
        after = advance(thinking, mind, token_B)
        mind = jax.tree.map(lambda old, new: jnp.where(over_B, old, new), mind, after)
        return (mind, over_B), jnp.where(over_B, -1, token_B)
    start = begin(budget_B, limit_B)
    (mind, _), token_LB = jax.lax.scan(step, (start, jnp.zeros(start.phase_B.shape, bool)),
                                       logits_LBV)
    return token_LB, mind


PLAYERS = {thinking: quick(partial(play, thinking)) for thinking in (OURS, COMPAT)}


def drive(rows, thinking=OURS, banned_V=BANNED):
    """What (script, budget, limit) rows write in one batch: a list of ids for each, and the `Mind`.

    A script ends in silence: its last token is favoured to the end. ELSE is second best.
    """
    logits_LBV = np.zeros((STEPS, len(rows), V), np.float32)
    logits_LBV[:, :, ELSE] = 1
    for row, (script, _, _) in enumerate(rows):
        script = [*script, *[script[-1]] * STEPS][:STEPS]
        logits_LBV[np.arange(STEPS), row, script] = 5
    _, budgets, limits = zip(*rows)
    token_LB, mind = PLAYERS[thinking](banned_V, np.int32(budgets), np.int32(limits), logits_LBV)
    written = np.asarray(token_LB).T.tolist()
    return [[token for token in ids if token >= 0] for ids in written], jax.device_get(mind)


def one(script, budget, limit, thinking=OURS):
    """(ids, ending, thought, answered) of a single row."""
    (written,), mind = drive([(script, budget, limit)], thinking)
    return written, endings(mind)[0], int(mind.thought_B[0]), int(mind.answered_B[0])


def test_a_natural_close_is_noticed():
    assert one([WORD, WORD, CLOSE, WORD, STOP], 9, 5) == (
        [WORD, WORD, CLOSE, WORD], 'natural', 2, 1)
    assert one([CLOSE, WORD, STOP], 9, 5) == ([CLOSE, WORD], 'natural', 0, 1)


def test_a_thought_that_never_closes_holds_exactly_its_budget():
    assert one([WORD], 4, 3) == ([WORD] * 3 + [NEWLINE, CLOSE] + [WORD] * 3, 'forced', 4, 3)


def test_a_close_wanted_exactly_at_the_budget():
    early = [WORD, WORD, CLOSE, WORD, STOP]
    assert one(early, 4, 5) == ([WORD, WORD, CLOSE, WORD], 'natural', 2, 1)
    # One token later: the third counted token is the forced newline, the close comes once.
    assert one(early, 3, 5) == ([WORD, WORD, NEWLINE, CLOSE], 'forced', 3, 0)
    assert one(early[:3], 3, 2) == ([WORD, WORD, NEWLINE, CLOSE, ELSE, ELSE], 'forced', 3, 2)


@pytest.mark.parametrize('budget, thought', [(0, []), (1, [NEWLINE]), (2, [WORD, NEWLINE])])
def test_the_smallest_budgets(budget, thought):
    assert one([WORD], budget, 2) == (thought + [CLOSE, WORD, WORD], 'forced', budget, 2)


def test_the_opening_mark_does_not_count_when_it_is_written_first():
    assert one([OPEN, WORD], 4, 1) == (
        [OPEN, WORD, WORD, WORD, NEWLINE, CLOSE, WORD], 'forced', 4, 1)
    # Later, or again, it is a token of the thought like any other: the budget stays exact.
    assert one([OPEN], 4, 1)[0] == [OPEN] * 4 + [NEWLINE, CLOSE, OPEN]
    assert one([WORD, OPEN, WORD], 4, 1)[0] == [WORD, OPEN, WORD, NEWLINE, CLOSE, WORD]


def test_an_answer_is_cut_at_its_limit_whatever_the_thought_took():
    rows = [([WORD], 2, 6), ([CLOSE, WORD], 9, 6), ([WORD], 12, 1), ([WORD], 5, 0)]
    written, mind = drive(rows)
    assert [len(ids) for ids in written] == [2 + 1 + 6, 1 + 6, 12 + 1 + 1, 5 + 1]
    assert spent(mind).all() and mind.answered_B.tolist() == [6, 6, 1, 0]


def test_a_thought_that_stops_is_left_open():
    assert one([WORD, STOP], 9, 5) == ([WORD], 'open', 1, 0)


def test_there_is_exactly_one_close_even_when_the_model_insists():
    rows = [([CLOSE], budget, 6) for budget in range(6)] + [([WORD, CLOSE], 3, 6),
                                                          ([WORD, WORD, CLOSE], 3, 6)]
    for ids in drive(rows)[0]:
        assert ids.count(CLOSE) == 1 and ids[-6:] == [ELSE] * 6


def test_direct_rows_are_untouched():
    assert one([CLOSE, WAIT, OPEN, CLOSE], -1, 5) == (
        [CLOSE, WAIT, OPEN, CLOSE, CLOSE], '', 0, 5)
    assert one([WORD], -1, 0) == ([], '', 0, 0)
    mind, logits_BV = begin(np.int32([-1]), np.int32([4])), np.arange(V, dtype=np.float32)[None]
    for thinking in (OURS, COMPAT):
        np.testing.assert_array_equal(steer(thinking, mind, BANNED, logits_BV), logits_BV)
    assert mind.phase_B.tolist() == [ANSWER]


def test_banned_tokens_are_absent_from_the_thought_and_allowed_behind_it():
    for script, budget in (([WAIT], 5), ([WAIT, WAIT, CLOSE, WAIT], 9)):
        ids = one(script, budget, 3)[0]
        close = ids.index(CLOSE)
        assert close >= 2 and WAIT not in ids[:close] and ids[close + 1:] == [WAIT] * 3


def test_forced_tokens_win_over_a_ban():
    everything = np.ones(V, bool)
    assert drive([([WORD], 1, 2)], banned_V=everything)[0] == [[NEWLINE, CLOSE, WORD, WORD]]
    minds = begin(np.int32([1, 0]), np.int32([2, 2]))
    steered_BV = np.asarray(steer(OURS, minds, everything, jnp.full((2, V), -jnp.inf)))
    assert np.isfinite(steered_BV).sum(-1).tolist() == [1, 1]
    assert steered_BV.argmax(-1).tolist() == [NEWLINE, CLOSE]


@pytest.mark.parametrize('thinking', [OURS, COMPAT])
def test_rows_in_different_phases_do_not_influence_each_other(thinking):
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0 if row % 3 else 1, V, 12).tolist(), int(rng.integers(-1, 9)),
             int(rng.integers(1, 9))) for row in range(47)] + [([WORD, CLOSE, WORD, STOP], 9, 4)]
    together, mind = drive(rows, thinking)
    assert set(endings(mind)) == {'', 'natural', 'forced', 'open'}
    backwards = drive(rows[::-1], thinking)[0][::-1]
    assert together == backwards
    for row in (3, 11, 29):
        twins = drive([rows[row]] * 48, thinking)[0]
        assert twins == [together[row]] * 48


def test_any_script_leaves_a_well_formed_reply():
    rng = np.random.default_rng(1)
    rows = [(rng.integers(0 if row % 2 else 1, V, 30).tolist(), int(rng.integers(0, 20)),
             int(rng.integers(0, 8))) for row in range(48)]
    written, mind = drive(rows)
    for row, (ids, ending) in enumerate(zip(written, endings(mind))):
        _, budget, limit = rows[row]
        assert ids.count(CLOSE) == (ending != 'open')
        close = ids.index(CLOSE) if CLOSE in ids else len(ids)
        thought = close - (ids[:1] == [OPEN])
        assert thought == mind.thought_B[row] and thought <= budget
        assert len(ids[close + 1:]) == mind.answered_B[row] <= limit
        assert WAIT not in ids[:close]
        if ending == 'forced':
            assert thought == budget and (budget == 0 or ids[close - 1] == NEWLINE)
    assert set(endings(mind)) == {'natural', 'forced', 'open'}


def nudged(thinking, thought):
    """Steered logits of `</think>`, newline and a word at `thought` tokens of a budget of 40."""
    mind = begin(np.int32([40]), np.int32([9]))
    mind = mind._replace(thought_B=jnp.int32([thought]), written_B=jnp.int32([thought]))
    logits_BV = np.full((1, V), -5, np.float32)
    logits_BV[0, [CLOSE, NEWLINE]] = -6, -7
    steered_BV = np.asarray(steer(thinking, mind, BANNED, logits_BV))
    return steered_BV[0, [CLOSE, NEWLINE, WORD]].tolist()


def test_the_nudge_moves_a_near_tie_from_95_percent_on():
    gentle = Thinking(open=OPEN, close=CLOSE, newline=NEWLINE, nudge=1.5)
    assert nudged(gentle, 37) == [-6, -7, -5]
    assert nudged(gentle, 38) == [-4.5, -5.5, -5]  # 38 of 40: `</think>` overtakes the word
    assert nudged(OURS, 38) == [-6, -7, -5]
    answering = begin(np.int32([40]), np.int32([9]))._replace(
        phase_B=jnp.int32([ANSWER]), thought_B=jnp.int32([39]))
    assert steer(gentle, answering, BANNED, jnp.zeros((1, V)))[0, NEWLINE] == 0


def test_the_reference_nudges_a_negative_logit_down():
    """Its nudge sets in behind 95 %: at 77 of 80, to have a step before the forced newline."""
    mind = begin(np.int32([80, 80]), np.int32([9, 9]))
    mind = mind._replace(written_B=jnp.int32([76, 77]), thought_B=jnp.int32([76, 77]))
    logits_BV = np.zeros((2, V), np.float32)
    logits_BV[:, [CLOSE, NEWLINE]] = -6, 3
    steered_BV = np.asarray(steer(COMPAT, mind, BANNED, logits_BV))
    np.testing.assert_allclose(steered_BV[:, CLOSE], [-6, -6 * (1 + 77 / 80)], rtol=1e-6)
    np.testing.assert_allclose(steered_BV[:, NEWLINE], [3, -6 * (1 + 77 / 80)], rtol=1e-6)
    gentle = Thinking(open=OPEN, close=CLOSE, newline=NEWLINE, nudge=2.0)
    ours_BV = np.asarray(steer(gentle, mind, BANNED, logits_BV))
    assert ours_BV[:, [CLOSE, NEWLINE]].tolist() == [[-4, 5]] * 2


def test_the_reference_does_not_notice_a_natural_close():
    script = [WORD, CLOSE, WORD]
    assert one(script, 5, 4)[:2] == ([WORD, CLOSE, WORD, WORD, WORD, WORD], 'natural')
    assert one(script, 5, 4, COMPAT)[:2] == (
        [WORD, CLOSE, WORD, WORD, NEWLINE, CLOSE, WORD, WORD, WORD], 'forced')
    # A row that stops before its budget closed by itself, and says so.
    assert one([WORD, CLOSE, WORD, STOP], 9, 4, COMPAT) == ([WORD, CLOSE, WORD], 'natural', 1, 1)


def test_the_reference_counts_from_the_first_token_written():
    script = [OPEN, WORD]
    assert one(script, 4, 1)[0] == [OPEN, WORD, WORD, WORD, NEWLINE, CLOSE, WORD]
    assert one(script, 4, 2, COMPAT)[0] == [OPEN, WORD, WORD, NEWLINE, CLOSE, WORD]
    assert one([OPEN, WORD, STOP], 9, 2)[2] == 1 and one([OPEN, WORD, STOP], 9, 2, COMPAT)[2] == 2


def test_the_reference_bans_for_ever():
    script = [WAIT]
    assert one(script, 3, 4)[0] == [ELSE, ELSE, NEWLINE, CLOSE] + [WAIT] * 4
    assert one(script, 3, 4, COMPAT)[0] == [ELSE, ELSE, NEWLINE, CLOSE] + [ELSE] * 3


def test_the_reference_limits_thought_and_answer_together():
    script = [CLOSE, WORD]
    assert len(one(script, 6, 3)[0]) == 1 + 3
    assert len(one(script, 6, 3, COMPAT)[0]) == 6 + 3
    assert len(one(script, -1, 3, COMPAT)[0]) == 3


def test_the_reference_allows_a_second_close():
    script = [WORD, CLOSE, CLOSE, WORD, STOP]
    assert one(script, 9, 4)[0] == [WORD, CLOSE, ELSE, WORD]
    assert one(script, 9, 4, COMPAT)[0] == [WORD, CLOSE, CLOSE, WORD]
    assert one([CLOSE], 2, 4, COMPAT)[0] == [CLOSE, NEWLINE] + [CLOSE] * 4


def test_a_vocabulary_without_a_newline_spends_its_whole_budget_freely():
    thinking = Thinking(open=OPEN, close=CLOSE, newline=-1)
    PLAYERS[thinking] = quick(partial(play, thinking))
    rows = [([WORD], 3, 2), ([WORD, WORD, CLOSE, WORD, STOP], 3, 2), ([WAIT], 1, 1)]
    written, mind = drive(rows, thinking)
    assert written == [[WORD] * 3 + [CLOSE] + [WORD] * 2, [WORD, WORD, CLOSE, WORD],
                       [ELSE, CLOSE, WAIT]]
    assert endings(mind) == ['forced', 'natural', 'forced']
    assert mind.thought_B.tolist() == [3, 2, 1]

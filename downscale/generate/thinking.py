"""The thought of each row as a state machine: think, forced newline, forced close, answer.

Pure functions on arrays, one entry per row, for use inside jit and while_loop: at every step
`steer` changes the logits and `advance` takes the token that was chosen. Forbid ids before `steer`,
never after it: a forced token must win over every ban.

With budget n a thought that is not closed by the model holds exactly n tokens behind `<think>`,
n - 1 free ones and a forced newline, and is then closed once by force. A vocabulary without a
newline (-1) has none forced: there all n tokens are free.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# In the order in which a row goes through them; a budget of 0 begins with CLOSE.
THINK, FORCE_NEWLINE, CLOSE, ANSWER = range(4)


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """Token ids of `<think>`, `</think>` and the newline, and the rules; static.

    nudge: added to the logits of `</think>` and of the newline from 95 % of the budget on.
    reference_compat: do as the published code of Extract+Think does, defects included: the budget
        counts from the first token written, even `<think>`; from 95 % on the logit of `</think>` is
        multiplied by 1 + written / budget (a negative one sinks) and copied to the newline; a
        natural close goes unnoticed, so that newline and `</think>` are forced at the budget into
        the answer; the ban never ends; budget + limit tokens end the reply.
    """
    open: int
    close: int
    newline: int
    nudge: float = 0.0
    reference_compat: bool = False


class Mind(NamedTuple):
    """Where each row stands; every field is an array [B].

    phase_B: THINK, FORCE_NEWLINE, CLOSE or ANSWER, as it really is even under reference_compat.
    thought_B, answered_B: tokens of the thought (marks excluded) and of the answer so far.
    written_B: all tokens so far. budget_B: -1 is a direct row, without a thought. limit_B: tokens
    the answer may have. forced_B: `</think>` was forced. spent_B: see `spent`.
    """
    phase_B: jax.Array
    thought_B: jax.Array
    answered_B: jax.Array
    written_B: jax.Array
    budget_B: jax.Array
    limit_B: jax.Array
    forced_B: jax.Array
    spent_B: jax.Array


def begin(budget_B: jax.Array, limit_B: jax.Array) -> Mind:
    """Return the `Mind` of rows of which nothing is written, from budgets and answer limits [B].

    A row starts in its thought whether its prompt has opened that or the model is about to. It may
    write budget + limit + 2 tokens: the two marks are extra.
    """
    budget_B = jnp.asarray(budget_B, jnp.int32)
    limit_B = jnp.asarray(limit_B, jnp.int32)
    start_B = jnp.zeros_like(budget_B)
    phase_B = jnp.where(budget_B < 0, ANSWER, _unclosed(start_B, budget_B))
    # A zero of its own for each field: one buffer cannot be donated twice.
    return Mind(
        phase_B=phase_B,
        thought_B=start_B,
        answered_B=jnp.zeros_like(start_B),
        written_B=jnp.zeros_like(start_B),
        budget_B=budget_B,
        limit_B=limit_B,
        forced_B=jnp.zeros_like(start_B, bool),
        spent_B=(phase_B == ANSWER) & (limit_B <= 0),
    )


def _unclosed(counted_B, budget_B):
    """Return the phase of a thought of `counted_B` tokens that is not closed yet."""
    # One token before the budget is used up the newline is due, then the close.
    free_B = jnp.where(counted_B == budget_B - 1, FORCE_NEWLINE, jnp.int32(THINK))
    return jnp.where(counted_B >= budget_B, CLOSE, free_B)


def steer(thinking: Thinking, mind: Mind, banned_V: jax.Array, logits_BV: jax.Array) -> jax.Array:
    """Return logits_BV as float32 [B, V] with ban, nudge and forced tokens applied.

    `banned_V` bool [V] holds while a row thinks; a row that is forced has one finite logit. Behind
    its close a thinking row cannot write `</think>` again. Direct rows are left as they are.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    ids_V = jnp.arange(logits_BV.shape[1])
    is_close_V = ids_V == thinking.close
    is_newline_V = ids_V == thinking.newline
    thinks_B = mind.budget_B >= 0
    # What each row is due to write, which tokens it may not, and whether its budget is nearly used.
    if thinking.reference_compat:
        due_B = jnp.where(~thinks_B | mind.forced_B, ANSWER,
                          _unclosed(mind.written_B, mind.budget_B))
        due_B = _freed(thinking, due_B)
        ban_BV = banned_V & thinks_B[:, None]
        late_B = (due_B == THINK) & (mind.written_B * 20 > mind.budget_B * 19)
        factor_B = 1 + mind.written_B / jnp.maximum(mind.budget_B, 1)
        nudged_BV = (logits_BV[:, thinking.close] * factor_B)[:, None]
    else:
        due_B = _freed(thinking, mind.phase_B)
        ban_BV = (banned_V & (due_B == THINK)[:, None]
                  | is_close_V & (thinks_B & (due_B == ANSWER))[:, None])
        # 95 % in whole numbers, which no rounding moves.
        late_B = (due_B == THINK) & (mind.thought_B * 20 >= mind.budget_B * 19)
        nudged_BV = logits_BV + thinking.nudge
    # Nudge, then ban, then force: each wins over those before it.
    logits_BV = jnp.where((is_close_V | is_newline_V) & late_B[:, None], nudged_BV, logits_BV)
    logits_BV = jnp.where(ban_BV, -jnp.inf, logits_BV)
    forced_BV = jnp.where((due_B == CLOSE)[:, None], is_close_V, is_newline_V)
    free_B = (due_B == THINK) | (due_B == ANSWER)
    return jnp.where(free_B[:, None], logits_BV, jnp.where(forced_BV, 0, -jnp.inf))


def _freed(thinking, phase_B):
    """Return `phase_B` where there is a newline to force; else that step of a thought is free."""
    if thinking.newline >= 0:
        return phase_B
    return jnp.where(phase_B == FORCE_NEWLINE, THINK, phase_B)


def advance(thinking: Thinking, mind: Mind, token_B: jax.Array) -> Mind:
    """Return the `Mind` after `token_B` [B] was written, which is never a stop token."""
    compat = thinking.reference_compat
    phase_B = mind.phase_B
    written_B = mind.written_B + 1
    closes_B = token_B == thinking.close
    # Some models write the mark that opens a thought themselves; it is no token of the thought.
    opens_B = (mind.written_B == 0) & (token_B == thinking.open) & (not compat)
    inside_B = (phase_B == THINK) | (phase_B == FORCE_NEWLINE)
    thought_B = mind.thought_B + (inside_B & ~closes_B & ~opens_B)
    answered_B = mind.answered_B + (phase_B == ANSWER)
    thinks_B = mind.budget_B >= 0
    # The reference closes at its count, whatever was written; we only where a thought is open.
    forces_B = thinks_B & (written_B > mind.budget_B) if compat else phase_B == CLOSE
    phase_B = jnp.where((phase_B == ANSWER) | closes_B, ANSWER, _unclosed(thought_B, mind.budget_B))
    spent_B = (phase_B == ANSWER) & (answered_B >= mind.limit_B)
    if compat:
        spent_B = jnp.where(thinks_B, written_B >= mind.budget_B + mind.limit_B, spent_B)
    return Mind(
        phase_B=phase_B,
        thought_B=thought_B,
        answered_B=answered_B,
        written_B=written_B,
        budget_B=mind.budget_B,
        limit_B=mind.limit_B,
        forced_B=mind.forced_B | forces_B,
        spent_B=spent_B,
    )


def spent(mind: Mind) -> jax.Array:
    """Return whether the answer has all the tokens that it may have, bool [B]."""
    return mind.spent_B


def endings(mind: Mind) -> list[str]:
    """Return how each thought ended: '' (direct row), 'natural', 'forced' or 'open' (never closed).

    Reads arrays on the host. Under reference_compat a close forced into an answer is 'forced' too.
    """
    budgets = np.asarray(mind.budget_B).tolist()
    phases = np.asarray(mind.phase_B).tolist()
    forced = np.asarray(mind.forced_B).tolist()
    return [_ending(*row) for row in zip(budgets, phases, forced)]


def _ending(budget, phase, forced):
    """Return how the thought of one row ended; see `endings`."""
    if budget < 0:
        return ''
    if phase != ANSWER:
        return 'open'
    return 'forced' if forced else 'natural'


def recount(thinking: Thinking, budget: int | None, ids: Sequence[int],
            close: str) -> tuple[str, int, int]:
    """Return (close, thought, answered) of a reply of which a stop string leaves only `ids`.

    `close` is how the thought of the whole reply ended; `budget` is None for a direct row.
    """
    if budget is None:
        return '', 0, len(ids)
    # As `advance` counts on the device, here of ids on the host.
    opened = ids[0] == thinking.open and not thinking.reference_compat
    if thinking.close not in ids:
        return 'open', len(ids) - opened, 0
    if thinking.reference_compat:  # a forced close in the answer may be among what is cut off
        close = 'forced' if len(ids) > budget else 'natural'
    at = ids.index(thinking.close)
    return close, at - opened, len(ids) - at - 1


def spelled(thinking: Thinking, ids: Sequence[int], text_of: Callable[[Sequence[int]], str],
            mark: str) -> int:
    """Return how often a thought writes `mark`, the text of its close, in other tokens."""
    thought = ids[:ids.index(thinking.close)] if thinking.close in ids else ids
    return text_of(thought).count(mark)

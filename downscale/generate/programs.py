"""The compiled programs of the engine: see, prefix, prefill and decode, over a fixed set of slots.

A prompt is cut behind its last image: what comes before is the prefix, read once for all questions
about the same pictures. `prefill` reads the rest but for the last token, which the first step of
`decode` reads, so that prompts and replies are continued by one and the same program.
"""
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from downscale.generate import forward, thinking
from downscale.generate.sampling import Sampling, choose, forbid
from downscale.model.cache import edges, empty_cache, is_flat, opened
from downscale.model.vlm import Vlm
from downscale.sharding import constrain


class Slots(NamedTuple):
    """The rows being written: their cache (see `model/cache.py`), and where each of them stands.

    For each row: the last token, its position, how many were written, the id of its randomness,
    whether it goes on, its mind.
    """
    k: list
    v: list
    token_B: jax.Array
    position_B: jax.Array
    step_B: jax.Array
    sample_B: jax.Array
    active_B: jax.Array
    mind: thinking.Mind


class Shown(NamedTuple):
    """The pictures that each lane is being asked about, and the prefix that shows them.

    They are features [B, I, P, D] and cache blocks, of which `length_B` tokens count. A lane is a
    share of the slots, one per data shard of the mesh.
    """
    features_BIPD: jax.Array
    k: list
    v: list
    length_B: jax.Array


def _placed(model, state):
    """Return `Slots` or `Shown` with the sharding that all programs expect.

    Left to the compiler, each program would return one of its own, and the next program would be
    compiled again for that.
    """
    k_axes, v_axes = ('BSK', 'BSK') if is_flat(model.attention) else ('BKES', 'BKSE')

    def placed(tree, letters):
        return jax.tree.map(lambda leaf: constrain(leaf, letters[:leaf.ndim], model.rules), tree)

    return placed(state._replace(k=(), v=()), 'BIPD')._replace(k=placed(state.k, k_axes),
                                                               v=placed(state.v, v_axes))


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """What a program of `decode` is compiled for.

    Columns of its output (`room`), how tokens are chosen, and the rules of thoughts. Where no row
    `thinks`, no rule `forbids` a token, or nobody asks what a token `costs`, the passes over all
    logits for that are left out.
    """
    room: int
    sampling: Sampling
    mode: thinking.Thinking
    thinks: bool
    forbids: bool
    costs: bool = False


class DecodingRules(NamedTuple):
    """The rules of `Decoding` as arrays.

    The seed, the tokens [V] that end a row, that are never written and that are not written while
    thinking, and how many come before any stop.
    """
    seed: jax.Array
    stops_V: jax.Array
    forbidden_V: jax.Array
    banned_V: jax.Array
    min_new: jax.Array


@partial(jax.jit, static_argnames=('model', 'rows', 'ends'))
def empty_slots(*, model: Vlm, rows: int, ends: tuple[int, ...]) -> Slots:
    """Return slots without any row in them."""
    zero_B = jnp.zeros(rows, jnp.int32)
    k, v = empty_cache(model.language, rows, ends, model.dtype, is_flat(model.attention))
    return _placed(model, Slots(
        k=k,
        v=v,
        token_B=zero_B,
        position_B=zero_B,
        step_B=zero_B,
        sample_B=zero_B.astype(jnp.uint32),
        active_B=zero_B > 0,
        mind=thinking.begin(zero_B - 1, zero_B),
    ))


@partial(jax.jit, static_argnames=('model', 'lanes', 'tiles', 'ends'))
def empty_shown(*, model: Vlm, lanes: int, tiles: int, ends: tuple[int, ...]) -> Shown:
    """Return room for the pictures of one prompt a lane."""
    features_BIPD = jnp.zeros((lanes, tiles, model.vision.P, model.language.D), model.dtype)
    k, v = empty_cache(model.language, lanes, ends, model.dtype, is_flat(model.attention))
    return _placed(model, Shown(
        features_BIPD=features_BIPD, k=k, v=v, length_B=jnp.zeros(lanes, jnp.int32)
    ))


@partial(jax.jit, static_argnames='model', donate_argnames='shown')
def see(params: dict[str, Any], shown: Shown, tiles_BPQ: jax.Array, at: jax.Array, new_B: jax.Array,
        *, model: Vlm) -> Shown:
    """Return `shown` with the features of tile number `at` of every lane where `new_B`."""
    features_BPD = forward.see(model, params, tiles_BPQ)
    before_BPD = jax.lax.dynamic_index_in_dim(shown.features_BIPD, at, 1, keepdims=False)
    features_BPD = jnp.where(new_B[:, None, None], features_BPD, before_BPD)
    features_BIPD = jax.lax.dynamic_update_index_in_dim(shown.features_BIPD, features_BPD, at, 1)
    return _placed(model, shown._replace(features_BIPD=features_BIPD))


@partial(jax.jit, static_argnames='model', donate_argnames='shown')
def prefix(params: dict[str, Any], shown: Shown, tokens_BL: jax.Array, index_BLC: jax.Array,
           weight_BLC: jax.Array | None, length_B: jax.Array, new_B: jax.Array, *,
           model: Vlm) -> Shown:
    """Return `shown` with the prefix of every lane where `new_B`, from its tokens and features."""
    B, L = tokens_BL.shape
    x_BLD = forward.embed(model, params, tokens_BL)
    x_BLD = forward.show(model, params, x_BLD, shown.features_BIPD.reshape(B, -1, x_BLD.shape[-1]),
                         index_BLC, weight_BLC)
    ends = edges(L)
    _, kept = forward.read(model, params, x_BLD, ends)

    def renewed(old_blocks, new_blocks):
        # Blocks that no prefix of this call reaches stay: `length_B` keeps them from being read.
        changed = jax.tree.map(
            lambda old, new: jnp.where(new_B.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
            old_blocks[:len(ends)], new_blocks)
        return changed + old_blocks[len(ends):]

    new_k, new_v = forward.by_block(kept)
    k = renewed(shown.k, new_k)
    v = renewed(shown.v, new_v)
    length_B = jnp.where(new_B, length_B, shown.length_B)
    return _placed(model, shown._replace(k=k, v=v, length_B=length_B))


class Rows(NamedTuple):
    """The prompts that a prefill puts into slots, equally many for each lane, lane by lane.

    Tokens behind the prefix [B, L] (a target may follow), their number without the target, the slot
    within the lane (a place without a prompt names one that does not exist), whether they continue
    the lane's pictures, and what `Slots` and `Mind` begin with.
    """
    tokens_BL: jax.Array
    length_B: jax.Array
    slot_B: jax.Array
    pictured_B: jax.Array
    sample_B: jax.Array
    budget_B: jax.Array
    limit_B: jax.Array


@partial(jax.jit, static_argnames=('model', 'lanes', 'scored'), donate_argnames='slots')
def prefill(params: dict[str, Any], slots: Slots, shown: Shown | None, rows: Rows, *, model: Vlm,
            lanes: int, scored: int) -> tuple[Slots, jax.Array | None]:
    """Return (slots with the rows in them, nats [B, scored] of the tokens behind each prompt).

    `slots` brings the blocks of the cache that the rows can reach. The first of `scored` tokens (a
    multiple of 8; 0: the nats are None) are a row's target; what they leave in the cache stands
    behind the row's position: nothing reads it before it is overwritten.
    """
    L = rows.tokens_BL.shape[1]
    prefix, before_B, room = _continued(model, shown, rows, lanes)
    x_BLD = forward.embed(model, params, rows.tokens_BL)
    x_BLD, kept = forward.read(model, params, x_BLD, edges(L + room), prefix, before_B)
    nll_BL = _nats(model, params, x_BLD, rows, lanes, scored) if scored else None
    fresh = _fresh(rows, before_B, forward.by_block(kept))
    put = partial(_put, slot_B=rows.slot_B, lanes=lanes)
    return _placed(model, jax.tree.map(put, slots, fresh)), nll_BL


def _continued(model, shown, rows, lanes):
    """Return (the lane's prefix for each row, its tokens [B], positions that it may take).

    The prefix is per layer (k blocks, v blocks), as `forward.read` takes it; None without pictures.
    """
    B = len(rows.length_B)
    before_B = jnp.zeros(B, jnp.int32)
    if not shown:
        return None, before_B, 0
    shown = jax.tree.map(lambda leaf: jnp.repeat(leaf, B // lanes, axis=0), shown)
    before_B = jnp.where(rows.pictured_B, shown.length_B, 0)
    k, v = shown.k, shown.v
    if is_flat(model.attention):
        k, v = opened(k, v, model.language.K)
    room = sum(block[0].shape[2] for block in v)
    return forward.by_layer(k, v), before_B, room


def _fresh(rows, before_B, cache):
    """Return the `Slots` [B] that `rows` begin as; `cache` is (k, v) of their tokens.

    The last token of a prompt is read by `decode`: a row begins at the position of that token, and
    what the cache holds there already is written once more.
    """
    k, v = cache
    token_B1 = jnp.take_along_axis(rows.tokens_BL, rows.length_B[:, None] - 1, axis=1)
    last_B = before_B + rows.length_B - 1
    return Slots(
        k=k,
        v=v,
        token_B=token_B1[:, 0],
        position_B=last_B,
        step_B=jnp.zeros_like(rows.length_B),
        sample_B=rows.sample_B,
        active_B=jnp.ones_like(rows.pictured_B),
        mind=thinking.begin(rows.budget_B, rows.limit_B),
    )


def _put(old, new, slot_B, lanes):
    """Return the array `old` [slots, ...] with the rows `new` [B, ...] in the slots of their lane.

    Lanes are split off first, so that no device writes into the slots of another.
    """
    split = old.reshape(lanes, len(old) // lanes, *old.shape[1:])
    new = new.astype(old.dtype).reshape(lanes, len(slot_B) // lanes, *new.shape[1:])
    slot = slot_B.reshape(lanes, len(slot_B) // lanes)
    # 'drop': places without a prompt name a slot that does not exist.
    put_lane = jax.vmap(lambda lane, rows, at: lane.at[at].set(rows, mode='drop'))
    return put_lane(split, new, slot).reshape(old.shape)


def _nats(model, params, x_BLD, rows, lanes, scored):
    """Return the nats [B, scored] of what stands behind the prompts.

    Only those positions go through the product with the vocabulary, the widest of all.
    """
    B, L, D = x_BLD.shape
    at_BL = jnp.minimum(rows.length_B[:, None] + jnp.arange(scored), L - 1)
    x_BLD = jnp.take_along_axis(x_BLD, at_BL[:, :, None] - 1, axis=1)
    targets_BL = jnp.take_along_axis(rows.tokens_BL, at_BL, axis=1)

    def of_eight(part):
        x_BLD, targets_BL = part
        logits_BLV = forward.logits(model, params, x_BLD)
        chosen_BL = jnp.take_along_axis(logits_BLV, targets_BL[:, :, None], axis=2)[:, :, 0]
        return jax.nn.logsumexp(logits_BLV, axis=-1) - chosen_BL

    # Eight rows a product and a lane, whatever else is asked: that would decide how it is summed.
    parts = (x_BLD.reshape(lanes, -1, 8, D).swapaxes(0, 1),
             targets_BL.reshape(lanes, -1, 8).swapaxes(0, 1))
    return jax.lax.map(of_eight, parts).swapaxes(0, 1).reshape(B, scored)


@partial(jax.jit, static_argnames=('model', 'options'), donate_argnames='slots')
def decode(params: dict[str, Any], slots: Slots, rules: DecodingRules, alive_B: jax.Array,
           steps: jax.Array, enough: jax.Array, *, model: Vlm,
           options: DecodeOptions) -> tuple[Slots, jax.Array, jax.Array, jax.Array | None]:
    """Return (slots, tokens [B, room] with -1 where none was written, whether rows are active [B],
    the nats of these tokens where `options.costs`).

    Writes until `steps` <= `room` tokens a row are there, `enough` rows have ended since, none is
    left, or one needs more cache than the blocks that `slots` brings. The token that ends a row is
    among those returned. `alive_B` switches rows off.
    """
    live = sum(block[0].shape[1 if is_flat(model.attention) else 2] for block in slots.v)
    slots = slots._replace(active_B=slots.active_B & alive_B)
    begun_B = slots.active_B
    out_BL = jnp.full((len(alive_B), options.room), -1, jnp.int32)
    nats_BL = jnp.zeros(out_BL.shape, jnp.float32) if options.costs else None

    def unfinished(carry):
        t, slots, _, _ = carry
        ended = (begun_B & ~slots.active_B).sum()
        fits = jnp.where(slots.active_B, slots.position_B, 0).max() < live
        return (
            # This call may write one more token of each row.
            (t < steps)
            # Some row has not ended.
            & slots.active_B.any()
            # So few rows have ended that it does not pay yet to leave and fill their slots.
            & (ended < enough)
            # The next token of the furthest row has a place in the blocks that came along.
            & fits)

    def write(carry):
        t, slots, out_BL, nats_BL = carry
        # 1. A token for every slot: an idle one costs as much, and the product needs company.
        token_B, nats_B, k, v = _next(model, params, slots, rules, options)
        # 2. A stop token ends its row: it is returned, but is no part of thought or answer.
        active_B = slots.active_B
        stopped_B = rules.stops_V[token_B]
        wrote_B = active_B & ~stopped_B
        mind = jax.tree.map(partial(jnp.where, wrote_B),
                            thinking.advance(options.mode, slots.mind, token_B), slots.mind)
        # 3. Column t of what is returned; rows that had ended keep -1 there.
        out_BL = jax.lax.dynamic_update_index_in_dim(
            out_BL, jnp.where(active_B, token_B, -1), t, 1)
        if options.costs:
            nats_BL = jax.lax.dynamic_update_index_in_dim(nats_BL, nats_B, t, 1)
        # 4. The row ends with its stop, or with the last token that its answer may have.
        slots = Slots(
            k=k,
            v=v,
            token_B=jnp.where(active_B, token_B, slots.token_B),
            position_B=slots.position_B + active_B,
            step_B=slots.step_B + active_B,
            sample_B=slots.sample_B,
            active_B=wrote_B & ~thinking.spent(mind),
            mind=mind,
        )
        return t + 1, slots, out_BL, nats_BL

    _, slots, out_BL, nats_BL = jax.lax.while_loop(unfinished, write, (0, slots, out_BL, nats_BL))
    return _placed(model, slots), out_BL, slots.active_B, nats_BL


def _next(model, params, slots, rules, options):
    """Return (the next token of every slot [B], its nats [B], the cache with the one before: k, v).

    The nats, under what it was drawn from, are None unless `options.costs`.
    Bans come before `steer`, never after it: a token that a thought is forced to must win.
    """
    logits_BV, k, v = forward.step(model, params, slots.token_B, slots.position_B,
                                   slots.k, slots.v)
    if options.forbids:
        logits_BV = forbid(logits_BV, rules.forbidden_V, True)
        logits_BV = forbid(logits_BV, rules.stops_V, slots.step_B < rules.min_new)
    if options.thinks:
        logits_BV = thinking.steer(options.mode, slots.mind, rules.banned_V, logits_BV)
    token_B = choose(options.sampling, logits_BV, rules.seed, slots.sample_B, slots.step_B)
    nats_B = None
    if options.costs:
        scaled_BV = logits_BV / (options.sampling.temperature or 1)
        chosen_B1 = jnp.take_along_axis(scaled_BV, token_B[:, None], axis=1)
        nats_B = jax.nn.logsumexp(scaled_BV, axis=-1) - chosen_B1[:, 0]
    return token_B, nats_B, k, v

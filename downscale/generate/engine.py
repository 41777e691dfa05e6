"""Greedy decoding in batches, with the likelihood of given replies on the way.

Rows are padded on the right; each keeps its own positions, so a row's tokens do not depend on
what it is batched with (up to float32 summation order). One program serves every call of equal
static shape: the number of new tokens is an argument, and the loop ends when all rows have.
"""
import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from downscale.data import images
from downscale.model.cache import empty_cache


@dataclass(frozen=True)
class Prompt:
    """One row: token ids [L], the image index [L, C] of each, the tiles uint8 [I, P, Q] they name,
    and where C > 1 the weights [L, C] of the features."""
    tokens: np.ndarray
    image_index: np.ndarray
    tiles: np.ndarray | None = None
    image_weight: np.ndarray | None = None


@dataclass(frozen=True)
class Reply:
    """Generated ids (stop token excluded), whether the length limit cut them off, and the nats of
    the given target (NaN without one)."""
    ids: tuple[int, ...]
    truncated: bool
    nll: float


@dataclass(frozen=True)
class Bucket:
    """Static shape of a call: rows, prompt tokens, tiles per row (0: text only), room to write."""
    rows: int
    length: int
    tiles: int
    room: int


def padded(prompts, targets, bucket, vision, newline):
    """Arrays of `bucket` shape: tokens, lengths and, as needed, weights, tiles, image_index and
    image_weight.

    Missing rows are one padding token long. `targets` (ids per prompt, or None) stand behind the
    prompts and `weights` marks them. `newline` marks `image_newline` in an image_index. ValueError
    when a prompt with its target is longer than the bucket or shows more tiles.
    """
    tokens = np.zeros((bucket.rows, bucket.length), np.int32)
    weights = np.zeros((bucket.rows, bucket.length), np.float32)
    lengths = np.ones(bucket.rows, np.int32)
    for row, prompt in enumerate(prompts):
        n, target = len(prompt.tokens), targets[row] if targets else ()
        if n + len(target) > bucket.length:
            raise ValueError(f'a prompt of {n} tokens and a reply of {len(target)} do not fit the '
                             f'evaluation length {bucket.length}; raise evaluation.length')
        tokens[row, :n], lengths[row] = prompt.tokens, n
        tokens[row, n:n + len(target)] = target
        weights[row, n:n + len(target)] = 1
    batch = {'tokens': tokens, 'lengths': lengths}
    if targets:
        batch['weights'] = weights
    return batch | _shown(prompts, bucket, vision, newline) if bucket.tiles else batch


def _shown(prompts, bucket, vision, newline):
    """tiles float32 [B, I, P, Q], image_index [B, L, C] and, for C > 1, image_weight [B, L, C]."""
    C = prompts[0].image_index.shape[1]
    tiles = np.zeros((bucket.rows, bucket.tiles, vision.P, vision.Q), np.float32)
    index = np.full((bucket.rows, bucket.length, C), -1, np.int32)
    weight = np.zeros(index.shape, np.float32)
    for row, prompt in enumerate(prompts):
        n, shown = len(prompt.tokens), 0 if prompt.tiles is None else len(prompt.tiles)
        if shown > bucket.tiles:
            raise ValueError(f'a prompt of {shown} image tiles does not fit a call of '
                             f'{bucket.tiles}; give it the most tiles of its prompts')
        index[row, :n] = np.where(prompt.image_index == newline, vision.P * bucket.tiles,
                                  prompt.image_index)
        if shown:
            tiles[row, :shown] = images.normalise(prompt.tiles)
        if C > 1:
            weight[row, :n] = prompt.image_weight
    found = {'tiles': tiles, 'image_index': index}
    return found | {'image_weight': weight} if C > 1 else found


@partial(jax.jit, static_argnames=('model', 'room', 'stop'))
def decode(params, batch, limit, *, model, room, stop):
    """(replies [B, room], whether each row stopped [B], nats of the given targets [B] or None).

    Greedy, at most `limit` tokens, `stop`-filled once a row has stopped. Where `batch` has
    `weights`, a target stands behind each prompt and they mark it: the pass that fills the cache
    scores it too, and the reply overwrites it, since no token sees what stands behind it.
    """
    tokens_BL, lengths_B = batch['tokens'], batch['lengths']
    B, L = tokens_BL.shape
    positions_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
    cache = empty_cache(model.language, B, L + room, model.dtype)
    weights_BL = batch.get('weights')
    logits_BLV, cache = model.apply(
        {'params': params}, tokens_BL, positions_BL, None, batch.get('tiles'),
        batch.get('image_index'), batch.get('image_weight'), cache,
        None if 'weights' in batch else lengths_B - 1)
    nll_B = None
    if 'weights' in batch:
        chosen_BL = jnp.take_along_axis(logits_BLV[:, :-1], tokens_BL[:, 1:, None], -1)[:, :, 0]
        nll_BL = jax.nn.logsumexp(logits_BLV[:, :-1], axis=-1) - chosen_BL
        nll_B = (nll_BL * weights_BL[:, 1:]).sum(-1)
        logits_BLV = jnp.take_along_axis(logits_BLV, (lengths_B - 1)[:, None, None], axis=1)
    first_B = jnp.argmax(logits_BLV[:, 0], axis=-1).astype(jnp.int32)

    def unfinished(carry):
        step, _, _, stopped_B, _ = carry
        return (step < limit) & ~stopped_B.all()

    def write(carry):
        step, token_B, cache, stopped_B, out = carry
        token_B = jnp.where(stopped_B, stop, token_B)
        stopped_B = stopped_B | (token_B == stop)
        out = out.at[:, step].set(token_B)
        logits_BLV, cache = model.apply(
            {'params': params}, token_B[:, None], (lengths_B + step)[:, None], cache=cache)
        return step + 1, jnp.argmax(logits_BLV[:, 0], axis=-1), cache, stopped_B, out

    out = jnp.full((B, room), stop, jnp.int32)
    start = (0, first_B, cache, jnp.zeros(B, bool), out)
    _, _, _, stopped_B, out = jax.lax.while_loop(unfinished, write, start)
    return out, stopped_B, nll_B


class Engine:
    """A model and its parameters, ready to write replies and to score given ones."""

    def __init__(self, model, params, encoder, rows, newline):
        self.model, self.params, self.encoder = model, params, encoder
        self.rows, self.newline = rows, newline

    def write(self, prompts, length, tiles, limit, room, targets=None,
              report=lambda done, total: None):
        """A greedy `Reply` for every `Prompt`, in order; at most `limit` <= `room` tokens.

        With `targets` (ids for each prompt) every reply also has `nll`, the nats that the model
        spends on its target. Prompt and target together must fit `length`.
        """
        replies = []
        for start in range(0, len(prompts), self.rows):
            part = prompts[start:start + self.rows]
            given = targets[start:start + self.rows] if targets else None
            bucket = Bucket(self.rows, length, tiles, room)
            batch = padded(part, given, bucket, self.model.vision, self.newline)
            out, stopped, nll = jax.device_get(decode(
                self.params, batch, jnp.int32(limit), model=self.model, room=room,
                stop=self.encoder.stop))
            for row, ids in enumerate(out[:len(part)]):
                ids = ids[:limit].tolist()
                ids = ids[:ids.index(self.encoder.stop)] if self.encoder.stop in ids else ids
                replies.append(Reply(tuple(ids), not bool(stopped[row]),
                                     math.nan if nll is None else float(nll[row])))
            report(len(replies), len(prompts))
        return replies

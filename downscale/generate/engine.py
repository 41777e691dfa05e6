"""Greedy decoding in batches, and the likelihood of given replies.

Rows are padded on the right; each keeps its own positions, so a row's tokens do not depend on
what it is batched with (up to float32 summation order). One program serves every call of equal
static shape: the number of new tokens is an argument, and the loop ends when all rows have.
"""
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from downscale.model.cache import empty_cache


@dataclass(frozen=True)
class Prompt:
    """One row: token ids, the image index of each, the tiles uint8 [I, P, Q] they name."""
    tokens: np.ndarray
    image_index: np.ndarray
    tiles: np.ndarray | None = None


@dataclass(frozen=True)
class Reply:
    """Generated ids (stop token excluded) and whether the length limit cut them off."""
    ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class Bucket:
    """Static shape of a call: rows, prompt tokens, tiles per row (0: text only), room to write."""
    rows: int
    length: int
    tiles: int
    room: int


def padded(prompts, bucket, vision, newline):
    """Arrays of `bucket` shape; missing rows repeat nothing and are one padding token long.

    ValueError when a prompt is longer than the bucket. `newline` marks `image_newline` in an
    image_index; it becomes patches * tiles.
    """
    patches = vision.P
    tokens = np.zeros((bucket.rows, bucket.length), np.int32)
    index = np.full((bucket.rows, bucket.length), -1, np.int32)
    lengths = np.ones(bucket.rows, np.int32)
    for row, prompt in enumerate(prompts):
        n = len(prompt.tokens)
        if n > bucket.length:
            raise ValueError(f'a prompt of {n} tokens does not fit the evaluation length '
                             f'{bucket.length}; raise evaluation.length')
        tokens[row, :n], lengths[row] = prompt.tokens, n
        index[row, :n] = np.where(prompt.image_index == newline, patches * bucket.tiles,
                                  prompt.image_index)
    batch = {'tokens': tokens, 'lengths': lengths}
    if bucket.tiles:
        tiles = np.zeros((bucket.rows, bucket.tiles, patches, vision.Q), np.float32)
        for row, prompt in enumerate(prompts):
            if prompt.tiles is not None:
                tiles[row, :len(prompt.tiles)] = prompt.tiles
        batch |= {'tiles': tiles, 'image_index': index}
    return batch


@partial(jax.jit, static_argnames=('model', 'room', 'stop'))
def decode(params, batch, limit, *, model, room, stop):
    """Greedy replies [B, room] of at most `limit` tokens, `stop`-filled once a row has stopped."""
    tokens_BL, lengths_B = batch['tokens'], batch['lengths']
    B, L = tokens_BL.shape
    positions_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
    cache = empty_cache(model.language, B, L + room, model.dtype)
    logits_BLV, cache = model.apply(
        {'params': params}, tokens_BL, positions_BL, None, batch.get('tiles'),
        batch.get('image_index'), cache, lengths_B - 1)
    first_B = jnp.argmax(logits_BLV[:, 0], axis=-1)

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
    start = (0, first_B.astype(jnp.int32), cache, jnp.zeros(B, bool), out)
    _, _, _, stopped_B, out = jax.lax.while_loop(unfinished, write, start)
    return out, stopped_B


@partial(jax.jit, static_argnames=('model',))
def likelihood(params, batch, *, model):
    """Negative log likelihood [B] in nats of the tokens that `batch['weights']` marks."""
    tokens_BL = batch['tokens']
    B, L = tokens_BL.shape
    positions_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
    segments_BL = (positions_BL < batch['lengths'][:, None]).astype(jnp.int32)
    logits_BLV, _ = model.apply({'params': params}, tokens_BL, positions_BL, segments_BL,
                                batch.get('tiles'), batch.get('image_index'))
    targets_BL = jnp.where(batch['weights'] > 0, tokens_BL, 0)[:, 1:]
    chosen_BL = jnp.take_along_axis(logits_BLV[:, :-1], targets_BL[:, :, None], axis=-1)[:, :, 0]
    nll_BL = jax.nn.logsumexp(logits_BLV[:, :-1], axis=-1) - chosen_BL
    return (nll_BL * batch['weights'][:, 1:]).sum(-1)


class Engine:
    """A model and its parameters, ready to write replies and to score given ones."""

    def __init__(self, model, params, encoder, rows, newline):
        self.model, self.params, self.encoder = model, params, encoder
        self.rows, self.newline = rows, newline

    def _buckets(self, prompts, length, tiles, room, report):
        # Long prompts together: padding to the longest of a batch wastes least.
        for start in range(0, len(prompts), self.rows):
            part = prompts[start:start + self.rows]
            bucket = Bucket(self.rows, length, tiles, room)
            yield part, padded(part, bucket, self.model.vision, self.newline)
            report(min(start + self.rows, len(prompts)), len(prompts))

    def write(self, prompts, length, tiles, limit, room, report=lambda done, total: None):
        """A greedy `Reply` for every `Prompt`, in order; at most `limit` <= `room` tokens."""
        replies = []
        for part, batch in self._buckets(prompts, length, tiles, room, report):
            out, stopped = jax.device_get(decode(
                self.params, batch, jnp.int32(limit), model=self.model, room=room,
                stop=self.encoder.stop))
            for ids, ended in zip(out[:len(part)], stopped):
                ids = ids[:limit].tolist()
                ids = ids[:ids.index(self.encoder.stop)] if self.encoder.stop in ids else ids
                replies.append(Reply(tuple(ids), not bool(ended)))
        return replies

    def score(self, prompts, targets, length, tiles, report=lambda done, total: None):
        """Nats that the model spends on each target (ids), given its prompt; in order."""
        full, values = [], []
        for prompt, ids in zip(prompts, targets, strict=True):
            tokens = np.concatenate([prompt.tokens, np.asarray(ids, np.int32)])
            index = np.concatenate([prompt.image_index, np.full(len(ids), -1, np.int32)])
            full.append(Prompt(tokens, index, prompt.tiles))
        done = 0
        for part, batch in self._buckets(full, length, tiles, 0, report):
            weights = np.zeros(batch['tokens'].shape, np.float32)
            for row, prompt in enumerate(part):
                n = len(targets[done + row])
                weights[row, len(prompt.tokens) - n:len(prompt.tokens)] = 1
            done += len(part)
            nll = likelihood(self.params, {**batch, 'weights': weights}, model=self.model)
            values += np.asarray(nll)[:len(part)].tolist()
        return values

"""Choosing the next token: greedy, temperature, top-k and top-p, each row with its own randomness.

The filters come in the order of Hugging Face's warpers: temperature, top-k, top-p. A token is drawn
as the argmax of its scaled logit plus Gumbel noise, and the noise is a function of (seed, sample,
step, token) alone. So a draw does not depend on the batch, the slot or the order, and neither a
swap of two nearly equal logits nor a token at the edge of the kept set changes another's noise.
"""
import math
import operator
from collections.abc import Collection
from dataclasses import dataclass
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How to choose; static, so part of the jit key. ValueError for a value out of range.

    temperature: 0 is greedy, and then top_k and top_p have no effect.
    top_k: how many of the likeliest tokens stay; 0, or more than there are: all. Of tokens that tie
        at the k-th place those of lower id stay (Hugging Face keeps all of them).
    top_p: the likeliest tokens stay until their mass reaches top_p, counted after top-k; the one
        that crosses it stays, and so do all that tie with it (Hugging Face keeps some of those).
    """
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f'temperature {self.temperature} is not a finite number of at least '
                             '0; 0 is greedy')
        if self.top_k < 0:
            raise ValueError(f'top_k {self.top_k} is negative; 0 keeps all tokens')
        if not 0 < self.top_p <= 1:
            raise ValueError(f'top_p {self.top_p} is outside (0, 1]; 1 keeps all tokens')


def choose(sampling: Sampling, logits_BV: jax.Array, seed: jax.Array, sample_B: jax.Array,
           step_B: jax.Array) -> jax.Array:
    """Return the next token of every row, int32 [B].

    logits_BV may hold -inf for banned tokens; each row needs one finite logit, and greedy takes the
    lower id of a tie. `seed` is a uint32 scalar, `sample_B` the uint32 id of each row's request,
    `step_B` the tokens it has written so far. Equal arguments of a row give an equal token in any
    batch.
    """
    if sampling.temperature == 0:
        return _best(logits_BV)
    logits_BV = logits_BV.astype(jnp.float32)
    if 0 < sampling.top_k < logits_BV.shape[1]:
        logits_BV, ids_BV = jax.lax.top_k(logits_BV, sampling.top_k)  # V: candidates, from here on
    else:
        ids_BV = jnp.broadcast_to(jnp.arange(logits_BV.shape[1], dtype=jnp.int32), logits_BV.shape)
    # Gaps are never negative, so that their bits are in order (see `_nucleus`).
    gap_BV = (logits_BV.max(axis=-1, keepdims=True) - logits_BV) / sampling.temperature
    score_BV = _gumbel(seed, sample_B, step_B, ids_BV) - gap_BV
    if sampling.top_p < 1:
        score_BV = jnp.where(_nucleus(gap_BV, sampling.top_p), score_BV, -jnp.inf)
    best_B = jnp.argmax(score_BV, axis=-1)
    return jnp.take_along_axis(ids_BV, best_B[:, None], axis=1)[:, 0]


def _best(logits_BV):
    """Return the lowest id of the highest logit of each row, int32 [B].

    `argmax` compares pairs: a TPU does so while it computes the logits, but a CPU needs five times
    as long as for two plain reductions.
    """
    return jax.lax.platform_dependent(
        logits_BV, tpu=lambda x: jnp.argmax(x, axis=-1).astype(jnp.int32), default=_in_two_passes)


def _in_two_passes(logits_BV):
    """Return what `_best` does; where all are NaN the last id."""
    V = logits_BV.shape[1]
    best_B1 = logits_BV.max(axis=-1, keepdims=True)
    return jnp.where(logits_BV == best_B1, jnp.arange(V, dtype=jnp.int32), V - 1).min(axis=-1)


def _nucleus(gap_BV, top_p):
    """Return which tokens top-p keeps, bool [B, V].

    `gap_BV` >= 0 is how far each logit is below the best. A token stays while the mass of the
    strictly better ones is below top_p of all. The widest gap that stays is found by bisection over
    the bits of a float, which are in order where it is not negative: 31 sums cost a tenth of
    sorting 32 x 151,936 on CPU.
    """
    bits_BV = jax.lax.bitcast_convert_type(gap_BV, jnp.int32)
    mass_BV = jnp.exp(-gap_BV)
    enough_B = top_p * _total(mass_BV)

    def halve(_, bounds):
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B + 1) // 2
        better_B = _total(jnp.where(bits_BV < middle_B[:, None], mass_BV, 0))
        stays_B = better_B < enough_B
        return jnp.where(stays_B, middle_B, low_B), jnp.where(stays_B, high_B, middle_B - 1)

    low_B = jnp.zeros(gap_BV.shape[0], jnp.int32)  # gap 0, the best token, always stays
    infinity = jnp.full_like(low_B, np.float32(np.inf).view(np.int32))
    widest_B, _ = jax.lax.fori_loop(0, 31, halve, (low_B, infinity))
    return bits_BV <= widest_B[:, None]


def _total(mass_BV):
    """Return the sum of each row, float32 [B], added up in one fixed order.

    `sum` adds in an order that depends on B and on what it is compiled with, and one last bit can
    move a token across the edge of the nucleus. Element by element, 64 slices at a time, the order
    is ours, at the same speed.
    """
    while mass_BV.shape[1] > 1:
        width = -(-mass_BV.shape[1] // 64)
        mass_BV = jnp.pad(mass_BV, ((0, 0), (0, 64 * width - mass_BV.shape[1])))
        parts = [mass_BV[:, part * width:(part + 1) * width] for part in range(64)]
        mass_BV = reduce(operator.add, parts)
    return mass_BV[:, 0]


def _gumbel(seed, sample_B, step_B, ids_BV):
    """Return standard Gumbel noise float32 [B, V] of the tokens `ids_BV`."""
    # The generator is named: a different default of the process must not change the draws.
    key = jax.random.key(seed, impl='threefry2x32')
    sample_key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, sample_B)
    row_B = jax.vmap(jax.random.fold_in)(sample_key_B, step_B)
    token_BV = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(row_B, ids_BV)
    # The words of a folded key are the cipher's output, so they serve as the random bits; asking
    # `jax.random.bits` for more would cost a second cipher block for each of 151,936 tokens.
    first_BV, second_BV = jnp.moveaxis(jax.random.key_data(token_BV), -1, 0)
    uniform_BV = ((first_BV ^ second_BV).astype(jnp.float32) + 0.5) * 2.0 ** -32
    # Small uniforms are the large noises, so all 32 bits count there; 1 itself would be -inf.
    return -jnp.log(-jnp.log1p(-jnp.minimum(uniform_BV, 1 - 2.0 ** -24)))


def mask(ids: Collection[int], vocabulary: int) -> np.ndarray:
    """Return bool [V], True at `ids`; ValueError when one is not below `vocabulary`."""
    outside = [i for i in ids if not 0 <= i < vocabulary]
    if outside:
        raise ValueError(f'token ids {outside[:5]} are outside the vocabulary of {vocabulary} rows')
    mask_V = np.zeros(vocabulary, bool)
    mask_V[list(ids)] = True
    return mask_V


def forbid(logits_BV: jax.Array, banned_V: jax.Array, where_B: jax.Array | bool) -> jax.Array:
    """Return logits_BV with -inf at the tokens `banned_V` (bool [V]) in the rows `where_B`.

    `step_B < min_new` keeps stop tokens away from a beginning; True stands for all rows.
    """
    where_B = jnp.broadcast_to(where_B, logits_BV.shape[:1])
    return jnp.where(banned_V & where_B[:, None], -jnp.inf, logits_BV)

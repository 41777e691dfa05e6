"""Next-token loss without the logits of a whole batch: chunk by chunk, with its gradient.

The gradient of a chunk is computed as soon as its logits are there, so that they are neither kept
nor computed twice: three products with the head, as for whole logits. Across `fsdp` the chips
of the first axis hold a share of the vocabulary each and take the tokens of all of them; what they
hold of the head, of its gradient and of the logits shrinks by their number.
"""
import math
from functools import partial

import jax
import jax.numpy as jnp

from downscale.sharding import Rules, gather, shares

LOGIT_BYTES = 2 ** 29  # of one chunk, float32


def next_token(x_BLD: jax.Array, share_VD: jax.Array, batch: dict[str, jax.Array], *,
               shape: tuple[int, int], rules: Rules) -> tuple[jax.Array, jax.Array]:
    """Return (sum of weighted next-token losses in nats, weighted count of hits) of these rows.

    `x_BLD` is what left the last norm, `share_VD` the head, or the share of it at hand, in its own
    dtype; `shape` is its (V, D). The token at position i is predicted from position i - 1.
    """
    D = x_BLD.shape[-1]
    # The last token of a row has no successor; it stays, so that the count keeps round.
    weights_T = jnp.roll(batch['weights'], -1, axis=1).at[:, -1].set(0).reshape(-1)
    targets_T = jnp.roll(batch['tokens'], -1, axis=1).reshape(-1)
    x_TD = x_BLD.reshape(-1, D)
    _, names = shares('VD', shape, rules)
    return _loss(x_TD, share_VD, targets_T, weights_T, names)


def token_nats(x_BLD: jax.Array, share_VD: jax.Array, batch: dict[str, jax.Array], *,
               shape: tuple[int, int], rules: Rules) -> tuple[jax.Array, jax.Array]:
    """Return (nats of each token, entropy of what it was chosen from), float32 [B, L], no gradient.

    Arguments are those of `next_token`; the first token of a row, which nothing precedes, has 0.
    """
    B, L, D = x_BLD.shape
    targets_T = jnp.roll(batch['tokens'], -1, axis=1).reshape(-1)
    x_TD = x_BLD.reshape(-1, D)
    V = share_VD.shape[0]
    _, names = shares('VD', shape, rules)
    split, ring = _roles(V, names)
    head_VD = _collect(share_VD.astype(x_TD.dtype), split, ring)
    first = jax.lax.axis_index(split) * len(head_VD) if split else 0
    T = len(x_TD)
    size = _chunk(T, LOGIT_BYTES // (4 * V))
    chunks = math.ceil(T / size)

    def chunk(part):
        x_TD, targets_T = (gather(x, 0, split) if split else x for x in part)
        logits_TV = jnp.einsum('TD,VD->TV', x_TD, head_VD, preferred_element_type=jnp.float32)
        most_T = _across(jax.lax.pmax, logits_TV.max(-1), split)
        gap_TV = logits_TV - most_T[:, None]
        target_TV = first + jnp.arange(len(head_VD)) == targets_T[:, None]
        sum_T, mean_T, target_T = _across(jax.lax.psum, (
            jnp.exp(gap_TV).sum(-1), (jnp.exp(gap_TV) * gap_TV).sum(-1),
            jnp.where(target_TV, gap_TV, 0).sum(-1)), split)
        both_NT = jnp.stack([jnp.log(sum_T) - target_T, jnp.log(sum_T) - mean_T / sum_T])
        # Every chip of `split` has those of all: its own are what it brought.
        begin = jax.lax.axis_index(split) * size if split else 0
        return jax.lax.dynamic_slice_in_dim(both_NT, begin, size, axis=1)

    def chunked(x):
        padded = jnp.pad(x, [(0, chunks * size - T)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(chunks, size, *x.shape[1:])

    both_CNT = jax.lax.map(chunk, (chunked(x_TD), chunked(targets_T)))
    both_NBL = both_CNT.swapaxes(0, 1).reshape(2, -1)[:, :T].reshape(2, B, L)
    # A token's own stand where the one before it was: they belong to the next place.
    both_NBL = jnp.roll(both_NBL, 1, axis=2).at[:, :, 0].set(0)
    return both_NBL[0], both_NBL[1]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _loss(x_TD, share_VD, targets_T, weights_T, names):
    return _loss_and_gradient(x_TD, share_VD, targets_T, weights_T, names)[0]


def _loss_and_gradient(x_TD, share_VD, targets_T, weights_T, names):
    """Return ((loss, hits), (gradient of x, gradient of the share of the head))."""
    T, D = x_TD.shape
    V = share_VD.shape[0]
    split, ring = _roles(V, names)
    ways = _size(split)
    size = _chunk(T, LOGIT_BYTES // (4 * V))
    chunks = math.ceil(T / size)

    def chunked(part):
        """Pad the tokens to whole chunks; a padded one has weight 0 and counts nowhere."""
        padded = jnp.pad(part, [(0, chunks * size - T)] + [(0, 0)] * (part.ndim - 1))
        return padded.reshape(chunks, size, *part.shape[1:])

    parts = tuple(chunked(part) for part in (x_TD, targets_T, weights_T))
    head_VD = _collect(share_VD.astype(x_TD.dtype), split, ring)
    first = jax.lax.axis_index(split) * len(head_VD) if split else 0

    def chunk(carry, part):
        """Add loss and gradients of one chunk: its logits, the largest array, live here only."""
        loss, hits, grad_DV = carry
        x_TD, targets_T, weights_T = (gather(x, 0, split) if split else x for x in part)
        logits_TV = jnp.einsum('TD,VD->TV', x_TD, head_VD, preferred_element_type=jnp.float32)
        # Maximum and sum go over all chips that hold a part of the vocabulary.
        most_T = _across(jax.lax.pmax, logits_TV.max(-1), split)
        target_TV = first + jnp.arange(len(head_VD)) == targets_T[:, None]
        exp_TV = jnp.exp(logits_TV - most_T[:, None])
        # The logit of the target lies with one chip of `split`; the others add zero to it.
        target_T = jnp.where(target_TV, logits_TV, 0).sum(-1)
        sum_T, target_T = _across(jax.lax.psum, (exp_TV.sum(-1), target_T), split)
        loss += ((jnp.log(sum_T) + most_T - target_T) * weights_T).sum()
        hits += ((target_T >= most_T) * weights_T).sum()
        # The slope of the loss by a logit is its probability, less 1 for the target.
        slope_TV = exp_TV * (weights_T / sum_T)[:, None]
        slope_TV = (slope_TV - jnp.where(target_TV, weights_T[:, None], 0)).astype(x_TD.dtype)
        grad_DV += jnp.einsum('TV,TD->DV', slope_TV, x_TD, preferred_element_type=jnp.float32)
        grad_TD = jnp.einsum('TV,VD->TD', slope_TV, head_VD, preferred_element_type=jnp.float32)
        if split:
            grad_TD = jax.lax.psum_scatter(grad_TD, split, scatter_dimension=0, tiled=True)
        return (loss, hits, grad_DV), grad_TD.astype(x_TD.dtype)

    # A scan, not vmap: chunks follow one another, so that one set of logits is in memory.
    zero = jnp.float32(0)
    (loss, hits, grad_DV), grads = jax.lax.scan(
        chunk, (zero, zero, jnp.zeros(head_VD.shape[::-1], jnp.float32)), parts)
    grad_TD = grads.reshape(chunks * size, D)[:T]
    # Every chip of `split` has counted the tokens of all of them.
    return (loss / ways, hits / ways), (grad_TD, _spread(grad_DV, split, ring, share_VD.shape))


def _gradient(names, gradients, out):
    grad_TD, grad_VD = gradients
    # Gradients for a loss with slope 1 were made in the forward pass; hits have no gradient.
    scale, _ = out
    return (scale * grad_TD).astype(grad_TD.dtype), scale * grad_VD, None, None


_loss.defvjp(lambda *inputs: _loss_and_gradient(*inputs), _gradient)


def _chunk(T, most):
    """Return the tokens of a chunk, at most `most`.

    It is a multiple of 128 that divides T where there is one: then nothing is padded.
    """
    if most >= T:
        return T
    sizes = range(most // 128 * 128, 0, -128)
    return next((size for size in sizes if T % size == 0), max(most // 128 * 128, 128))


def _roles(V, names):
    """Return those of the mesh axes `names` (that split the vocabulary, that gather the width)."""
    # With a single axis every chip gathers the whole head; with two, one of them splits the rows.
    if len(names) == 2 and V % _size(names[:1]) == 0:
        return names[:1], names[1:]
    return (), names


def _size(names):
    current = jax.sharding.get_abstract_mesh()
    return math.prod(current.shape[name] for name in names)


def _across(reduce, x, names):
    return reduce(x, names) if names else x


def _collect(share_VD, split, ring):
    """Return this chip's rows of the head, all columns, from its columns of all rows."""
    if not split:
        return gather(share_VD, 1, ring) if ring else share_VD
    V, D = share_VD.shape
    ways = _size(split)
    share = jax.lax.all_to_all(share_VD.reshape(ways, V // ways, D), split, 0, 1)
    # Columns lie in the order of both axes, `split` varying slowest.
    return jnp.moveaxis(jax.lax.all_gather(share, ring), 0, 2).reshape(V // ways, -1)


def _spread(grad_DV, split, ring, shape):
    """Return this chip's columns of all rows [V, D] of a gradient, summed over chips.

    It is the way back of `_collect`.
    """
    V, D = shape
    ways = _size(split)
    # The axis that is scattered in front: else each chip gets the sum of everything, and cuts it.
    grad = grad_DV.reshape(ways, -1, D, V // ways).swapaxes(0, 1).reshape(-1, V // ways)
    for name in ring:
        grad = jax.lax.psum_scatter(grad, name, scatter_dimension=0, tiled=True)
    grad = grad.reshape(ways, D, V // ways)
    if split:
        grad = jax.lax.all_to_all(grad, split, 0, 0)
    return grad.transpose(0, 2, 1).reshape(V, D)

"""What the parts of a decoder do on given texts: blocks, neurons of the MLP and groups of heads.

A block is told by its influence (see `depth.py`); a neuron by the mean size of its activation, and
a key/value head, with the query heads that share it, by the mean norm of what they hand on
(Minitron, Muralidharan et al., arXiv 2407.14679, section 2.2; theirs is a norm over the batch).
Everything is measured once, on the whole model.
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from downscale.generate.forward import embed, see, show, unstack
from downscale.model.language import Block, causal_mask
from downscale.model.layers import attend, rotary
from downscale.model.vlm import Vlm


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Means over `tokens` tokens, float64, of blocks, neurons and key/value heads."""
    influence_N: np.ndarray
    neurons_NF: np.ndarray
    heads_NK: np.ndarray
    tokens: int


def measure(model: Vlm, params: dict[str, Any], batches: Iterable[dict[str, Any]],
            report: Callable[[int], object] = lambda done: None) -> Activity:
    """Return the `Activity` of a model on `batches`, as a stage gets them (`data.pipeline.stream`).

    `params` are numpy arrays by group; batches with tiles need a tower among them. `report` is
    called with the batches that are done. ValueError where no batch holds a token.
    """
    apart = unstack(params, model.dtype)
    blocks = apart['language'].pop('blocks')
    begin = jax.jit(partial(_begin, model))
    through = jax.jit(partial(_through, model))
    sums = None
    tokens = 0
    for done, batch in enumerate(batches, 1):
        x_BLD = begin(apart, batch)
        turn = rotary(batch['positions'], model.language.E, model.language.theta)
        parts = []
        for layer in blocks:
            x_BLD, part = through(layer, x_BLD, turn, batch['segments'])
            parts.append(part)
        # In float64: a million tokens are more than float32 adds up.
        stacked = jax.tree.map(lambda *of: np.stack(of).astype(np.float64), *parts)
        sums = stacked if sums is None else jax.tree.map(np.add, sums, stacked)
        tokens += int((np.asarray(batch['segments']) > 0).sum())
        report(done)
    if not tokens:
        raise ValueError('no texts to measure the model on; give some')
    influence_N, neurons_NF, heads_NK = jax.tree.map(lambda total: total / tokens, sums)
    return Activity(influence_N=influence_N, neurons_NF=neurons_NF, heads_NK=heads_NK,
                    tokens=tokens)


def _begin(model, params, batch):
    """Return what goes into the first block, pictures included."""
    x_BLD = embed(model, params, batch['tokens'])
    if 'tiles' not in batch:
        return x_BLD
    B, I, P, Q = batch['tiles'].shape
    features_BPD = see(model, params, batch['tiles'].reshape(B * I, P, Q))
    features_BID = features_BPD.reshape(B, I * P, model.language.D)
    return show(model, params, x_BLD, features_BID, batch['image_index'],
                batch.get('image_weight'))


def _through(model, layer, x_BLD, turn, segments_BL):
    """Return (x after one block, sums over tokens: influence, neurons [F], key/value heads [K])."""
    c = model.language
    mask_BLS = causal_mask(segments_BL)

    def mix(q_BLHE, k_BLKE, v_BLKE):
        mixed_BLHE = attend(q_BLHE, k_BLKE, v_BLKE, mask_BLS)
        return mixed_BLHE, mixed_BLHE  # what is kept comes back beside x

    block = Block(c, model.rules, growth=model.growth)
    (after_BLD, mixed_BLHE), seen = block.apply(
        {'params': layer}, x_BLD, turn, mix, mutable='intermediates',
        capture_intermediates=lambda module, _: module.name == 'mlp_norm')
    # What the MLP reads; its neurons are made of it once more, for they leave it nowhere.
    normed_BLD, = seen['intermediates']['mlp_norm']['__call__']
    gate_BLF = jnp.einsum('BLD,DF->BLF', normed_BLD, layer['mlp']['gate_DF'])
    up_BLF = jnp.einsum('BLD,DF->BLF', normed_BLD, layer['mlp']['up_DF'])
    neuron_BLF = jax.nn.silu(gate_BLF) * up_BLF
    norm_BLH = jnp.linalg.norm(mixed_BLHE.astype(jnp.float32), axis=-1)
    head_BLK = norm_BLH.reshape(*norm_BLH.shape[:2], c.K, -1).sum(-1)
    there_BL = segments_BL > 0
    # Masked before it is summed, for what stands on padding may be anything.
    influence = jnp.where(there_BL, 1 - _cosine(x_BLD, after_BLD), 0).sum()
    size_BLF = jnp.abs(neuron_BLF.astype(jnp.float32))
    neurons_F = jnp.where(there_BL[..., None], size_BLF, 0).sum((0, 1))
    heads_K = jnp.where(there_BL[..., None], head_BLK, 0).sum((0, 1))
    return after_BLD, (influence, neurons_F, heads_K)


def _cosine(x_BLD, y_BLD):
    """Return the cosine similarity [B, L] of two states of each token; 1 where they are equal."""
    x_BLD = x_BLD.astype(jnp.float32)
    y_BLD = y_BLD.astype(jnp.float32)
    # One root of the product: of equal sums it is the sum itself, and the quotient exactly 1.
    sizes_BL = jnp.sqrt((x_BLD * x_BLD).sum(-1) * (y_BLD * y_BLD).sum(-1))
    # A state of zeros has no direction, and nothing turns it.
    there_BL = sizes_BL > 0
    return jnp.where(there_BL, (x_BLD * y_BLD).sum(-1) / jnp.where(there_BL, sizes_BL, 1), 1)

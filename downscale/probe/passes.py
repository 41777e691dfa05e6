"""Forward passes over items: what taps read, and what becomes of the answer without the picture.

Each batch takes one pass for all taps, one without the picture, and one for every band of layers in
which text may not look at the picture. Prompts are those of the joint evaluation. Needs JAX.
"""
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from downscale.evaluate.answers import gold_ids, prompt_of, shown
from downscale.generate.requests import prompt_arrays
from downscale.model.cache import ladder
from downscale.model.language import score
from downscale.model.taps import SITES, Taps
from downscale.model.vision import Tower
from downscale.probe.checkpoints import open_checkpoint
from downscale.results.probes import NO_DEPTH
from downscale.stages.folders import folder_of
from downscale.stages.inputs import encoder_of

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCH = 32
SCORES = 2 ** 28  # attention scores of a layer that may be in memory: 1 GiB
FIRST_TOKENS = 8  # of an answer have a KL of their own; the mean is over all


class Batch(NamedTuple):
    """Prompts [B, L] with the right answer behind each: `length_B` tokens of prompt, and what is to
    be answered, [B, T], -1 where there is nothing. Without pictures `tiles_BIPQ` is None."""
    tokens_BL: np.ndarray
    length_B: np.ndarray
    target_BT: np.ndarray
    tiles_BIPQ: np.ndarray | None
    index_BLC: np.ndarray
    weight_BLC: np.ndarray | None


@partial(jax.jit, static_argnames='model')
def look(params, batch, cut_N, *, model):
    """Return (what taps read or None, log-probabilities [B, T, V] where the answer stands).

    Of taps the five `DEPTHS` are kept, [5, B, D]: of two layers equally near the deeper one.
    """
    length_B = batch.length_B
    T = batch.target_BT.shape[1]
    B, L = batch.tokens_BL.shape
    positions_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
    behind_B1 = (length_B + (batch.target_BT >= 0).sum(axis=1))[:, None]
    at_BT = jnp.minimum(length_B[:, None] - 1 + jnp.arange(T), L - 1)

    def finish(x_BLD, head_VD):
        x_BTD = jnp.take_along_axis(x_BLD, at_BT[:, :, None], axis=1)
        return jax.nn.log_softmax(score(x_BTD, head_VD, tied=True))

    pictures = ()
    taps = None
    if batch.tiles_BIPQ is not None:
        pictures = batch[3:]
        taps = Taps(length_B - 1, cut_N)
    out = model.apply({'params': params}, batch.tokens_BL, positions_BL,
                      (positions_BL < behind_B1).astype(jnp.int32), *pictures, finish=finish,
                      taps=taps)
    if taps is None:
        return None, out
    at = [int(depth * model.language.N + .5) for depth in DEPTHS]
    return {name: x[jnp.array(at)] if x.ndim == 3 else x[None]
            for name, x in out[1].items()}, out[0]


@jax.jit
def told(logits_BTV, target_BT):
    """Return (nats [B] of the right answer, whether it is what greedy decoding would write [B])."""
    there_BT = target_BT >= 0
    chosen_BT = jnp.take_along_axis(logits_BTV, jnp.maximum(target_BT, 0)[:, :, None], 2)[:, :, 0]
    best_BT = jnp.argmax(logits_BTV, axis=2) == target_BT
    return -jnp.where(there_BT, chosen_BT, 0).sum(axis=1), (best_BT | ~there_BT).all(axis=1)


@partial(jax.jit, static_argnames='words')
def divergence(logits_BTV, blind_BTV, *, words):
    """Return KL [B, T] of the first distribution from the second, over the first `words` of the
    rows: the vocabulary may be padded.
    """
    p, q = (jax.nn.log_softmax(x[:, :, :words]) for x in (logits_BTV, blind_BTV))
    return jnp.maximum((jnp.exp(p) * (p - q)).sum(axis=2), 0)


@partial(jax.jit, static_argnames=('vision', 'dtype'))
def _tower(params, tiles_BPQ, *, vision, dtype):
    """Return the tower's features, float32 [B, P, W]."""
    return Tower(vision, dtype=dtype).apply({'params': params}, tiles_BPQ).astype(jnp.float32)


class Looker:
    """A model, its parameters on the device, and how it is asked."""

    def __init__(self, study, experiment):
        self.experiment, self.stage = experiment, experiment.joint_stage
        view = open_checkpoint(folder_of(study, experiment, self.stage))
        self.model, self.params = view.model, jax.device_put(view.params())
        self.encoder = encoder_of(study, experiment, self.stage)
        self.words = self.encoder.tokenizer.get_vocab_size(with_added_tokens=True)
        self.shapes = {}  # tiles -> longest L so far: each shape is a program to compile

    def batch(self, items, condition='image'):
        """Return the `Batch` of some items, with their pictures ('image') or 'blind'."""
        prompts = [prompt_of(self.encoder, item.question.text, shown(item, condition, {}))
                   for item in items]
        targets = [gold_ids(self.encoder, item.question) for item in items]
        tiles = max((len(p.tiles) for p in prompts if p.tiles is not None), default=0)
        most = ladder(max(map(len, targets)), 8)
        L = max(self.shapes.get((tiles, most), 0),
                ladder(max(len(p.tokens) + len(t) for p, t in zip(prompts, targets))))
        self.shapes[tiles, most] = L
        tokens_BL, index_BLC, weight_BLC = prompt_arrays(prompts, L, self.model.vision, tiles, True)
        target_BT = np.full((len(items), most), -1, np.int32)
        for row, (prompt, target) in enumerate(zip(prompts, targets)):
            n = len(prompt.tokens)
            tokens_BL[row, n:n + len(target)] = target
            target_BT[row, :len(target)] = target
        length_B = np.array([len(p.tokens) for p in prompts], np.int32)
        if not tiles:
            return Batch(tokens_BL, length_B, target_BT, None, index_BLC, None)
        vision = self.model.vision
        tiles_BIPQ = np.zeros((len(items), tiles, vision.P, vision.Q), np.uint8)
        for row, prompt in enumerate(prompts):
            if prompt.tiles is not None:
                tiles_BIPQ[row, :len(prompt.tiles)] = prompt.tiles
        return Batch(tokens_BL, length_B, target_BT, tiles_BIPQ, index_BLC, weight_BLC)

    def rows(self, items):
        """Return how many of these items are looked at together: at most `BATCH`, fewer of long
        ones.
        """
        longest = [items[rows[0]] for rows in batches(items, 1)[:1]]
        L = max((self.batch([item]).tokens_BL.shape[1] for item in longest), default=1)
        return max(1, min(BATCH, SCORES // (self.model.language.H * L * L)))

    def patches(self, items):
        """Return what the tower gives for the one picture of each of these items, float32 [items,
        P, W]: the whole picture in one tile, also where it is cut into others as well.
        """
        vision = self.model.vision
        found = np.zeros((len(items), vision.P, vision.W), np.float32)
        one = {}
        for k, item in enumerate(items):
            one.setdefault(item.example.scene_id, []).append(k)
        for part in _parts(list(one.values()), BATCH):
            prompts = [prompt_of(self.encoder, '', items[rows[0]].example.images) for rows in part]
            tiles_BPQ = np.stack([prompt.tiles[0] for prompt in prompts])
            tiles_BPQ = np.pad(tiles_BPQ, ((0, BATCH - len(part)), (0, 0), (0, 0)))
            x_BPW = np.asarray(_tower(self.params['tower'], tiles_BPQ, vision=vision,
                                      dtype=self.model.dtype))
            for rows, x_PW in zip(part, x_BPW):
                found[rows] = x_PW
        return found

    def see(self, items, bands=0, report=lambda done: None):
        """Return ({(site, depth): features [n, width]}, {(site, depth, metric): [n]}) of all items.

        Without `bands` only the features; else also the nats of the right answer, whether greedy
        decoding writes it, with the picture, blind, and cut off band by band; and the KL.
        """
        features = {}
        measures = {}
        most = self.rows(items)
        done = 0
        for rows in batches(items, most):
            full = [*rows, *rows[:1] * (most - len(rows))]
            seen, found = self._see([items[k] for k in full], bands)
            for into, new in ((features, seen), (measures, found)):
                for key, values in new.items():
                    if key not in into:
                        into[key] = np.full((len(items), *values.shape[1:]), np.nan, np.float32)
                    into[key][rows] = values[:len(rows)]
            done += len(rows)
            report(done)
        return features, measures

    def _see(self, items, bands):
        batch = self.batch(items)
        layers = self.model.language.N
        run = partial(look, self.params, model=self.model)
        taps, logits = run(batch, np.zeros(layers, bool))
        depths = {site: DEPTHS if site in ('image', 'answer') else (NO_DEPTH,) for site in SITES}
        features = {(site, depth): np.asarray(taps[site][k]) for site in SITES
                    for k, depth in enumerate(depths[site])}
        if not bands:
            return features, {}
        blind = self.batch(items, 'blind')
        _, without = run(blind, np.zeros(layers, bool))
        kl_BT = np.asarray(divergence(logits, without, words=self.words))
        there_BT = batch.target_BT >= 0
        kl_BT = np.where(there_BT, kl_BT, np.nan)
        measured = {('output', 1.0): told(logits, batch.target_BT),
                    ('blind', NO_DEPTH): told(without, batch.target_BT)}
        band_N = ((np.arange(layers) + .5) / layers * bands).astype(int)
        for band in range(bands):
            _, cut = run(batch, band_N == band)
            measured['knock-out', (band + .5) / bands] = told(cut, batch.target_BT)
        _, cut = run(batch, np.ones(layers, bool))
        measured['knock-out everywhere', NO_DEPTH] = told(cut, batch.target_BT)
        found = {(*key, metric): np.asarray(values, np.float32) for key, pair in measured.items()
                 for metric, values in zip(('nll', 'exact'), pair)}
        found['output', 1.0, 'kl'] = np.nanmean(kl_BT, axis=1)
        for k in range(min(FIRST_TOKENS, kl_BT.shape[1])):
            found[f'token {k + 1}', 1.0, 'kl'] = kl_BT[:, k]
        return features, found


def _parts(rows, most):
    """Return `rows` in lists of at most `most`."""
    return [rows[k:k + most] for k in range(0, len(rows), most)]


def batches(items, most):
    """Return indices of up to `most` items at a time, with as many pictures each and the longest
    first: nearly all have one shape.
    """
    def size(k):
        return -items[k].example.count, -len(items[k].question.text)

    found = []
    for k in sorted(range(len(items)), key=size):
        same = found and items[found[-1][0]].example.count == items[k].example.count
        if same and len(found[-1]) < most:
            found[-1].append(k)
        else:
            found.append([k])
    return found

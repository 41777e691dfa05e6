"""Forward passes over items: what taps read, and what becomes of the answer without the picture.

Each batch takes one pass for all taps, one without the picture, and one for every band of layers in
which text may not look at the picture. Prompts are those of the joint evaluation. Needs JAX.
"""
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from downscale.config import Experiment
from downscale.evaluate.answers import Item, gold_ids, prompt_of, shown
from downscale.generate.requests import prompt_arrays
from downscale.model.cache import ladder
from downscale.model.language import score
from downscale.model.taps import SITES, Taps
from downscale.model.vision import Tower
from downscale.model.vlm import Vlm
from downscale.probe.checkpoints import open_checkpoint
from downscale.probe.readout import Site
from downscale.results.probes import NO_DEPTH
from downscale.runtime.files import PathLike
from downscale.stages import loading
from downscale.stages.folders import folder_of
from downscale.stages.inputs import encoder_of

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCH = 32
SCORES = 2 ** 28  # attention scores of a layer that may be in memory: 1 GiB
FIRST_TOKENS = 8  # of an answer have a KL of their own; the mean is over all


class Batch(NamedTuple):
    """Prompts [B, L] with the right answer behind each.

    `length_B` are the tokens of a prompt, `target_BT` what is to be answered, -1 where there is
    nothing. Without pictures `tiles_BIPQ` is None.
    """
    tokens_BL: np.ndarray
    length_B: np.ndarray
    target_BT: np.ndarray
    tiles_BIPQ: np.ndarray | None
    index_BLC: np.ndarray
    weight_BLC: np.ndarray | None


@partial(jax.jit, static_argnames='model')
def look(params: dict[str, Any], batch: Batch, cut_N: jax.Array, *,
         model: Vlm) -> tuple[dict[str, jax.Array] | None, jax.Array]:
    """Return (what taps read or None, log-probabilities [B, T, V] where the answer stands).

    In the layers where `cut_N` is true text may not look at the picture. Of taps the five `DEPTHS`
    are kept, [5, B, D]: of two layers equally near the deeper one.
    """
    length_B = jnp.asarray(batch.length_B)
    T = batch.target_BT.shape[1]
    B, L = batch.tokens_BL.shape
    positions_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
    behind_B1 = (length_B + (batch.target_BT >= 0).sum(axis=1))[:, None]
    # The token before a place says what stands there: the answer begins at the prompt's last.
    at_BT = jnp.minimum(length_B[:, None] - 1 + jnp.arange(T), L - 1)

    def finish(x_BLD, head_VD):
        # Only here: logits of all places and words would be most of the memory.
        x_BTD = jnp.take_along_axis(x_BLD, at_BT[:, :, None], axis=1)
        return jax.nn.log_softmax(score(x_BTD, head_VD, tied=True))

    pictures = ()
    taps = None
    if batch.tiles_BIPQ is not None:
        pictures = batch[3:]
        taps = Taps(answer_B=length_B - 1, cut_N=cut_N)
    segments_BL = (positions_BL < behind_B1).astype(jnp.int32)
    out: Any = model.apply({'params': params}, batch.tokens_BL, positions_BL, segments_BL,
                           *pictures, finish=finish, taps=taps)
    if taps is None:
        return None, out
    logits_BTV, tapped = out
    at = jnp.array([int(depth * model.language.N + .5) for depth in DEPTHS])
    features = {name: x[at] if x.ndim == 3 else x[None] for name, x in tapped.items()}
    return features, logits_BTV


@jax.jit
def told(logits_BTV: jax.Array, target_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (nats [B] of the right answer, whether it is what greedy decoding would write [B])."""
    there_BT = target_BT >= 0
    chosen_BT = jnp.take_along_axis(logits_BTV, jnp.maximum(target_BT, 0)[:, :, None], 2)[:, :, 0]
    best_BT = jnp.argmax(logits_BTV, axis=2) == target_BT
    return -jnp.where(there_BT, chosen_BT, 0).sum(axis=1), (best_BT | ~there_BT).all(axis=1)


@partial(jax.jit, static_argnames='words')
def divergence(logits_BTV: jax.Array, blind_BTV: jax.Array, *, words: int) -> jax.Array:
    """Return KL [B, T] of the first distribution from the second, over the first `words` words."""
    # The vocabulary may be padded, and what stands behind the words is nothing.
    p = jax.nn.log_softmax(logits_BTV[:, :, :words])
    q = jax.nn.log_softmax(blind_BTV[:, :, :words])
    return jnp.maximum((jnp.exp(p) * (p - q)).sum(axis=2), 0)


@partial(jax.jit, static_argnames=('vision', 'dtype'))
def _tower(params, tiles_BPQ, *, vision, dtype):
    """Return the tower's features, float32 [B, P, W]."""
    return Tower(vision, dtype=dtype).apply({'params': params}, tiles_BPQ).astype(jnp.float32)


class Looker:
    """A model, its parameters on the device, and how it is asked.

    It is that of a cell of the study in `folder` behind `stage`, by default the one that answers;
    without a cell, of the run folder `folder` itself.
    """

    def __init__(self, folder: PathLike, experiment: Experiment | None = None,
                 stage: str = '') -> None:
        if experiment is None:
            view = open_checkpoint(Path(folder).absolute())
            self.encoder = loading.encoder_of(folder, view.config, view.stage)
        else:
            named = stage or experiment.joint_stage
            assert named is not None  # only runs that answer with the picture are probed
            view = open_checkpoint(folder_of(folder, experiment, named))
            self.encoder = encoder_of(folder, experiment, named)
        self.model = view.model
        self.params = jax.device_put(view.params())
        self.words = self.encoder.tokenizer.get_vocab_size(with_added_tokens=True)
        # (tiles, T): longest L so far. Each shape is a program to compile.
        self.shapes: dict[tuple[int, int], int] = {}

    def batch(self, items: Sequence[Item], condition: str = 'image') -> Batch:
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

    def rows(self, items: Sequence[Item]) -> int:
        """Return how many items are looked at together: at most `BATCH`, fewer of long ones."""
        longest = [items[rows[0]] for rows in batches(items, 1)[:1]]
        L = max((self.batch([item]).tokens_BL.shape[1] for item in longest), default=1)
        return max(1, min(BATCH, SCORES // (self.model.language.H * L * L)))

    def length(self, item: Item) -> int:
        """Return how many tokens the prompt of an item has."""
        return len(prompt_of(self.encoder, item.question.text, item.example.images).tokens)

    def patches(self, items: Sequence[Item]) -> np.ndarray:
        """Return what the tower gives for the one picture of each item, float32 [items, P, W].

        It is that of the whole picture in one tile, also where it is cut into others as well.
        """
        vision = self.model.vision
        features = np.zeros((len(items), vision.P, vision.W), np.float32)
        # Each picture passes the tower once, however many items ask about it.
        by_scene = defaultdict(list)
        for k, item in enumerate(items):
            by_scene[item.example.scene_id].append(k)
        for part in _parts(list(by_scene.values()), BATCH):
            prompts = [prompt_of(self.encoder, '', items[rows[0]].example.images) for rows in part]
            tiles_BPQ = np.stack([prompt.tiles[0] for prompt in prompts])
            tiles_BPQ = np.pad(tiles_BPQ, ((0, BATCH - len(part)), (0, 0), (0, 0)))
            x_BPW = np.asarray(_tower(self.params['tower'], tiles_BPQ, vision=vision,
                                      dtype=self.model.dtype))
            for rows, x_PW in zip(part, x_BPW):
                features[rows] = x_PW
        return features

    def see(self, items: Sequence[Item], bands: int = 0,
            report: Callable[[int], object] = lambda done: None
            ) -> tuple[dict[Site, np.ndarray], dict[tuple[str, float, str], np.ndarray]]:
        """Return ({(site, depth): features [n, width]}, {(site, depth, metric): [n]}) of all items.

        Without `bands` only the features; else also the nats of the right answer, whether greedy
        decoding writes it, with the picture, blind, and cut off band by band; and the KL.
        """
        features = {}
        measures = {}
        most = self.rows(items)
        done = 0
        for rows in batches(items, most):
            # A smaller last batch would be another shape to compile.
            full = [*rows, *rows[:1] * (most - len(rows))]
            seen, measured = self._see([items[k] for k in full], bands)
            for into, new in ((features, seen), (measures, measured)):
                for key, values in new.items():
                    if key not in into:
                        into[key] = np.full((len(items), *values.shape[1:]), np.nan, np.float32)
                    into[key][rows] = values[:len(rows)]
            done += len(rows)
            report(done)
        return features, measures

    def _see(self, items, bands):
        """Return (features, measures) of one batch, as `see` does."""
        batch = self.batch(items)
        layers = self.model.language.N
        run = partial(look, self.params, model=self.model)
        # 1. With the picture.
        taps, logits = run(batch, np.zeros(layers, bool))
        features = {}
        for site in SITES:
            depths = DEPTHS if site in ('image', 'answer') else (NO_DEPTH,)
            for k, depth in enumerate(depths):
                features[site, depth] = np.asarray(taps[site][k])
        if not bands:
            return features, {}
        # 2. Without it.
        blind = self.batch(items, 'blind')
        _, without = run(blind, np.zeros(layers, bool))
        answers = {('output', 1.0): told(logits, batch.target_BT),
                   ('blind', NO_DEPTH): told(without, batch.target_BT)}
        # 3. With the picture, which text may not look at in one band of layers, then in all.
        band_N = ((np.arange(layers) + .5) / layers * bands).astype(int)
        for band in range(bands):
            _, cut = run(batch, band_N == band)
            answers['knock-out', (band + .5) / bands] = told(cut, batch.target_BT)
        _, cut = run(batch, np.ones(layers, bool))
        answers['knock-out everywhere', NO_DEPTH] = told(cut, batch.target_BT)
        measured = {}
        for key, (nll_B, exact_B) in answers.items():
            measured[*key, 'nll'] = np.asarray(nll_B, np.float32)
            measured[*key, 'exact'] = np.asarray(exact_B, np.float32)
        # 4. How far the picture moves what is said, over the answer and over its first tokens.
        kl_BT = np.asarray(divergence(logits, without, words=self.words))
        kl_BT = np.where(batch.target_BT >= 0, kl_BT, np.nan)
        measured['output', 1.0, 'kl'] = np.nanmean(kl_BT, axis=1)
        for k in range(min(FIRST_TOKENS, kl_BT.shape[1])):
            measured[f'token {k + 1}', 1.0, 'kl'] = kl_BT[:, k]
        return features, measured


def _parts(rows, most):
    """Return `rows` in lists of at most `most`."""
    return [rows[k:k + most] for k in range(0, len(rows), most)]


def batches(items: Sequence[Item], most: int) -> list[list[int]]:
    """Return indices of up to `most` items at a time, with equally many pictures in each batch.

    The longest come first, so that nearly all batches have one shape.
    """
    def size(k):
        return -items[k].example.count, -len(items[k].question.text)

    rows = []
    for k in sorted(range(len(items)), key=size):
        same = rows and items[rows[-1][0]].example.count == items[k].example.count
        if same and len(rows[-1]) < most:
            rows[-1].append(k)
        else:
            rows.append([k])
    return rows

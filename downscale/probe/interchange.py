"""Interchange: what an answer does when one place of a pass is taken over from another scene.

Two rows of a pass belong together: one about a scene, one about its match (`data/scenes/pairs.py`).
What the answer's log-odds move by, as a share of what they move by when all is taken over, says how
much of the difference passes through that place. Needs JAX.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from downscale.data.records import Example
from downscale.data.scenes.pairs import own_patches
from downscale.evaluate.answers import Item, items_of
from downscale.model.language import score
from downscale.model.taps import Edits, Taps
from downscale.model.vlm import Vlm
from downscale.probe.passes import DEPTHS, Batch, Looker
from downscale.results.probes import NO_DEPTH

PAIRS = 16   # of a pass: twice as many rows


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Two examples with one question each; `own_P` are the patches of the object that it asks for.

    They differ in `field` of what `change` says. `cluster` names the scene.
    """
    field: str
    change: str
    base: Example
    source: Example
    own_P: np.ndarray
    cluster: str


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What passes over pairs gave: all are [pairs].

    `full` are nats that the log-odds of the two answers move by between the two scenes, `effects`
    {(site, depth): nats} that they move by when that place is taken over, `right` whether the first
    scene's answer was given.
    """
    pairs: list[Matched]
    full: np.ndarray
    right: np.ndarray
    effects: dict[tuple[str, float], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Read:
    """What was read of one pass: means and tokens as `Taps` name them, and log-probabilities."""
    taps: dict[str, np.ndarray]
    logits_BV: np.ndarray


@partial(jax.jit, static_argnames='model')
def _pass(params, batch, at_B, spots_BK, edits, *, model: Vlm):
    """Return (what taps read, log-probabilities [B, V] of the token behind `at_B`)."""
    B, L = batch.tokens_BL.shape
    positions_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
    segments_BL = (positions_BL <= at_B[:, None]).astype(jnp.int32)

    def finish(x_BLD, head_VD):
        x_B1D = jnp.take_along_axis(x_BLD, at_B[:, None, None], axis=1)
        return jax.nn.log_softmax(score(x_B1D, head_VD, tied=True)[:, 0])
    taps = Taps(answer_B=at_B, cut_N=jnp.zeros(model.language.N, bool), spots_BK=spots_BK,
                edits=Edits(**edits))
    logits_BV, read = model.apply({'params': params}, batch.tokens_BL, positions_BL, segments_BL,
                                  *batch[3:], finish=finish, taps=taps)
    return read, logits_BV


def layers_of(model: Any) -> list[int]:
    """Return the layers that are looked at: all of a shallow decoder, else five of them."""
    N = model.language.N
    return sorted({int(depth * N + .5) for depth in DEPTHS}) if N > 4 else list(range(N + 1))


def read(looker: Looker, items: Sequence[Item], spots: bool = True) -> Read:
    """Return what single patches, tokens of the picture and the answer's place hold, for all items.

    'patches' [n, P, W], 'connected' [n, P, D], 'spots' [layers, n, P, D], 'answer' [layers, n, D].
    """
    rows = 2 * PAIRS
    parts, logits = [], []
    for start in range(0, len(items), rows):
        part = list(items[start:start + rows])
        batch = looker.batch(part + part[:1] * (rows - len(part)))
        taps, logits_BV = _pass(looker.params, batch, batch.length_B - 1,
                                tokens_of_patches(batch, looker.model.vision.P),
                                {'give_B': np.arange(rows)}, model=looker.model)
        at = jnp.array(layers_of(looker.model))
        keep = {'answer': taps['answer'][at][:, :len(part)]}
        if spots:
            keep |= {'spots': taps['spots'][at][:, :len(part)],
                     'patches': taps['patches'][:len(part)],
                     'connected': taps['connected'][:len(part)]}
        parts.append({name: np.asarray(x) for name, x in keep.items()})
        logits.append(np.asarray(logits_BV[:len(part)]))
    axis = {'answer': 1, 'spots': 1, 'patches': 0, 'connected': 0}
    return Read(taps={name: np.concatenate([part[name] for part in parts], axis[name])
                      for name in parts[0]}, logits_BV=np.concatenate(logits))


def tokens_of_patches(batch: Batch, patches: int) -> np.ndarray:
    """Return the last token [B, P] that shows each patch of a row's one tile.

    ValueError for rows of several tiles, whose patches are other ones in each.
    """
    if batch.tiles_BIPQ is None or batch.tiles_BIPQ.shape[1] != 1:
        raise ValueError('a ledger needs one picture in one tile; set pictures to padded')
    index_BL = batch.index_BLC[:, :, 0]
    spots_BP = np.zeros((len(index_BL), patches), np.int32)
    rows, places = np.nonzero((index_BL >= 0) & (index_BL < patches))
    spots_BP[rows, index_BL[rows, places]] = places
    return spots_BP


def interchange(looker: Looker, pairs: Sequence[Matched],
                report: Callable[[int], object] = lambda done: None) -> tuple[Moved, int]:
    """Return (`Moved`, pairs left out): those whose prompts are not of one length or answers equal.

    Sites: 'tower' and 'connector' (own patches, depth NaN), 'connector, other patches', 'all
    patches'; then, behind each layer (depth 0 to 1), 'own patches', 'other patches', 'question' and
    'answer'.
    """
    usable = [pair for pair in pairs if _alike(looker, pair)]
    moves, kept = [], []
    for start in range(0, len(usable), PAIRS):
        part = usable[start:start + PAIRS]
        moves.append(_moved(looker, part + part[:1] * (PAIRS - len(part)), len(part)))
        kept += part
        report(len(kept))
    if not kept:
        raise ValueError('no pair of scenes whose prompts are of one length and answers differ')
    full, right, effects = zip(*moves, strict=True)
    moved = Moved(pairs=kept, full=np.concatenate(full), right=np.concatenate(right),
                  effects={key: np.concatenate([part[key] for part in effects])
                           for key in effects[0]})
    return moved, len(pairs) - len(kept)


def _alike(looker, pair):
    """Return whether two prompts have their tokens in the same places, and answers that differ."""
    batches = [looker.batch(items_of([example], 1)) for example in (pair.base, pair.source)]
    if pair.base.questions[0].answer == pair.source.questions[0].answer and pair.change in (
            'asked', 'question'):
        return False
    one, other = batches
    return int(one.length_B[0]) == int(other.length_B[0]) and np.array_equal(
        one.index_BLC[0, :one.length_B[0]], other.index_BLC[0, :other.length_B[0]])


def _moved(looker, pairs, count):
    """Return (full, right, effects) of the first `count` pairs of a pass."""
    batch = looker.batch(items_of([pair.base for pair in pairs] +
                                  [pair.source for pair in pairs], 2 * len(pairs)))
    half = len(pairs)
    at_B, answers_BA = _answers(batch, half)
    give_B = np.concatenate([np.arange(half) + half, np.arange(half) + half])
    own_BP = np.stack([pair.own_P for pair in pairs] * 2)
    base_B1 = (np.arange(2 * half) < half)[:, None]   # rows of matches stay as they are
    spots_BK = np.zeros((2 * half, 1), np.int32)

    def odds(**edits):
        _, logits_BV = _pass(looker.params, batch, at_B, spots_BK, {'give_B': give_B, **edits},
                             model=looker.model)
        logits_BV = np.asarray(logits_BV)
        chosen_BA = np.take_along_axis(logits_BV, answers_BA, axis=1)
        return (chosen_BA[:, 1] - chosen_BA[:, 0]), logits_BV
    plain_B, logits_BV = odds()
    right = logits_BV[:half].argmax(axis=1) == answers_BA[:half, 0]
    effects = {}
    for key, edits in _edits(looker, batch, own_BP, base_B1, at_B):
        edited_B, _ = odds(**edits)
        effects[key] = (edited_B - plain_B)[:count]
    return (plain_B[half:] - plain_B[:half])[:count], right[:count], effects


def _answers(batch, half):
    """Return (the place before the first token that tells the answers apart [B], both tokens there
    [B, 2])."""
    targets_BT = batch.target_BT
    at_B = batch.length_B - 1  # a new array, which the places are added to
    answers = np.zeros((2 * half, 2), np.int64)
    for row in range(half):
        first, second = targets_BT[row], targets_BT[row + half]
        # Where nothing was changed the answer is held against that of another pair.
        place = int(np.argmax(first != second))
        token, rival = first[place], second[place]
        if token == rival:
            rivals = targets_BT[:half, 0][targets_BT[:half, 0] != token]
            rival = rivals[0] if len(rivals) else token
        answers[[row, row + half]] = max(token, 0), max(rival, 0)
        at_B[[row, row + half]] += place
    return at_B, answers


def _edits(looker, batch, own_BP, base_B1, at_B):
    """Yield ((site, depth), what is replaced) of every place."""
    model = looker.model
    P, N = model.vision.P, model.language.N
    every_BP = np.broadcast_to(base_B1, own_BP.shape)
    yield ('tower', NO_DEPTH), {'vision_BJ': own_BP & base_B1}
    yield ('connector', NO_DEPTH), {'connector_BJ': own_BP & base_B1}
    yield ('connector, other patches', NO_DEPTH), {'connector_BJ': ~own_BP & base_B1}
    yield ('all patches', NO_DEPTH), {'connector_BJ': every_BP}
    index_BL = batch.index_BLC[:, :, 0]
    shows_BL = (index_BL >= 0) & (index_BL < P)
    own_BL = shows_BL & np.take_along_axis(own_BP, np.clip(index_BL, 0, P - 1), axis=1)
    places_BL = np.arange(index_BL.shape[1])[None]
    answer_BL = places_BL == at_B[:, None]
    question_BL = (index_BL < 0) & (places_BL < at_B[:, None])
    for layer in layers_of(model):
        for site, where_BL in (('own patches', own_BL), ('other patches', shows_BL & ~own_BL),
                               ('question', question_BL), ('answer', answer_BL)):
            states_NBL = np.zeros((N + 1, *where_BL.shape), bool)
            states_NBL[layer] = where_BL & base_B1
            yield (site, layer / N), {'states_NBL': states_NBL}


def matched(pair: Any, cell: Any) -> Matched:
    """Return a `ScenePair` as a `Matched`, for the pictures that a cell sees."""
    vision, side = cell.vision, cell.world.side
    scale = vision.image / side
    x0, y0, x1, y1 = pair.asked.box
    box = (int(x0 * scale), int(y0 * scale), int(np.ceil(x1 * scale)), int(np.ceil(y1 * scale)))
    return Matched(field=pair.field, change=pair.change, base=pair.base, source=pair.source,
                   own_P=own_patches([box], vision.image, vision.patch),
                   cluster=pair.base.scene_id)

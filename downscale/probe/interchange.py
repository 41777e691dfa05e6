"""Interchange: what an answer does when one place of a pass is taken over from another scene.

Two rows of a pass belong together: one about a scene, one about its match (`data/scenes/pairs.py`,
or two pictures of `pair_files.py`). What the answer's log-odds move by, as a share of what they
move by when all is taken over, says how much of the difference passes through that place. Needs
JAX.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from downscale.data.records import Example
from downscale.data.tiling import touched
from downscale.evaluate.answers import gold_ids, item_of, items_of, wording_of
from downscale.evaluate.decoupled import gold_texts
from downscale.model.language import score
from downscale.model.taps import Edits, Taps
from downscale.model.vlm import Vlm
from downscale.probe.passes import DEPTHS, Batch, Looker
from downscale.results.probes import NO_DEPTH
from downscale.stage_table import STAGES

PLACED = ('asked', 'question')  # changes that an answer must follow, so that it passes somewhere
PLAIN = ('nothing', NO_DEPTH)
COPIES = 7  # of a scene in one pass, each with another place taken over


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Two examples with one question each; `own_J` are the patches of the object that it asks for.

    Those are of all tiles, as `tiling.touched` gives them. The two differ in `field` of what
    `change` says. `cluster` names the scene.
    """
    field: str
    change: str
    base: Example
    source: Example
    own_J: np.ndarray
    cluster: str


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What passes over pairs gave: all are [pairs].

    `full` are nats that the log-odds of the two answers move by between the two scenes, `effects`
    {(site, depth): nats} that they move by when that place is taken over, `right` whether the first
    scene's answer was given, `right_source` the same of the second.
    """
    pairs: list[Matched]
    full: np.ndarray
    right: np.ndarray
    right_source: np.ndarray
    effects: dict[tuple[str, float], np.ndarray]


@partial(jax.jit, static_argnames='model')
def _pass(params, batch, at_B, own, edits, *, model: Vlm):
    """Return (what taps read, log-probabilities [B, V] of the token behind `at_B`)."""
    B, L = batch.tokens_BL.shape
    positions_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
    segments_BL = (positions_BL <= at_B[:, None]).astype(jnp.int32)

    def finish(x_BLD, head_VD):
        x_B1D = jnp.take_along_axis(x_BLD, at_B[:, None, None], axis=1)
        return jax.nn.log_softmax(score(x_B1D, head_VD, tied=True)[:, 0])
    taps = Taps(answer_B=at_B, cut_N=jnp.zeros(model.language.N, bool), edits=Edits(**edits), **own)
    logits_BV, read = model.apply({'params': params}, batch.tokens_BL, positions_BL, segments_BL,
                                  *batch[3:], finish=finish, taps=taps)
    return read, logits_BV


def layers_of(model: Any) -> list[int]:
    """Return the layers that are looked at: all of a shallow decoder, else five of them."""
    N = model.language.N
    return sorted({int(depth * N + .5) for depth in DEPTHS}) if N > 4 else list(range(N + 1))


def read(looker: Looker, pairs: Sequence[Matched],
         parts: Sequence[np.ndarray] = ()) -> dict[str, np.ndarray]:
    """Return what `parts` of the first of each pair and the answer's place hold, float32.

    `parts` [O, J] of each pair are the patches of O things (default: `own_J`, one). Means over the
    patches of each, thing after thing: 'own patches' [things, W] behind the tower, 'own connected'
    [things, D] and, of the layers `layers_of`, 'own tokens' [layers, things, D]; and 'answer'
    [layers, n, D], at the place before the first token in which the two right answers differ.
    """
    parts = parts or [pair.own_J[None] for pair in pairs]
    most = max(map(len, parts))
    examples = [pair.base for pair in pairs]
    items = items_of(examples, len(examples))
    rows = _rows(looker, examples)
    place = np.array([_deciding(looker, pair) for pair in pairs])
    at = jnp.array(layers_of(looker.model))
    seen = []
    for start in range(0, len(items), rows):
        part = np.arange(start, min(start + rows, len(items)))
        # A smaller last pass would be another shape to compile.
        full = np.resize(part, rows)
        batch = looker.batch([items[k] for k in full])
        own_BOJ = np.stack([_padded(parts[k], most, batch) for k in full])
        own_BOL = np.stack([shown_by(batch.index_BLC, own_BJ)[0]
                            for own_BJ in own_BOJ.swapaxes(0, 1)], axis=1)
        taps, _ = _pass(looker.params, batch, batch.length_B - 1 + place[full],
                        {'own_BOJ': own_BOJ, 'own_BOL': own_BOL},
                        {'give_B': np.arange(rows)}, model=looker.model)
        there_BO = np.arange(most) < np.array([len(parts[k]) for k in part])[:, None]
        seen.append({name: np.asarray(taps[name])[:len(part)][there_BO]
                     for name in ('own patches', 'own connected')})
        seen[-1] |= {'own tokens': np.asarray(taps['own tokens'][at])[:, :len(part)][:, there_BO],
                     'answer': np.asarray(taps['answer'][at][:, :len(part)])}
    return {name: np.concatenate([each[name] for each in seen], axis=x.ndim - 2)
            for name, x in seen[0].items()}


def _deciding(looker, pair):
    """Return how many tokens of their right answers the two of a pair have in common."""
    first, second = (gold_ids(looker.encoder, example.questions[0])
                     for example in (pair.base, pair.source))
    return next((k for k, both in enumerate(zip(first, second)) if both[0] != both[1]), 0)


def _rows(looker, examples):
    """Return how many rows of these examples fit into a pass, at least two."""
    longest = max(examples, key=lambda example: looker.length(items_of([example], 1)[0]))
    return max(2, looker.rows(items_of([longest], 1)))


def _padded(own_OJ, most, batch):
    """Return masks of patches [most, J] over the tiles of a batch, where a picture may have fewer.
    """
    _, tiles, patches, _ = batch.tiles_BIPQ.shape
    O, J = own_OJ.shape
    return np.pad(own_OJ, ((0, most - O), (0, tiles * patches - J)))


def shown_by(index_BLC: np.ndarray, own_BJ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which tokens [B, L] show a patch of `own_BJ` [B, J], and which show any patch."""
    J = own_BJ.shape[1]
    # The newline is feature J, and no patch. Corners without weight repeat another (`Placed`).
    any_BLC = (index_BLC >= 0) & (index_BLC < J)
    row_B11 = np.arange(len(own_BJ))[:, None, None]
    own_BLC = any_BLC & own_BJ[row_B11, np.clip(index_BLC, 0, J - 1)]
    return own_BLC.any(axis=2), any_BLC.any(axis=2)


def interchange(looker: Looker, pairs: Sequence[Matched],
                report: Callable[[int], object] = lambda done: None,
                others: Sequence[Matched] = ()) -> tuple[Moved, int]:
    """Return (`Moved`, pairs left out): those whose prompts are not of one length or answers equal.

    All pairs have one `change`. Where nothing asked was changed, the answer is held against that of
    another pair, of these or of `others`, and `effects` is empty. Else its sites are 'tower' and
    'connector' (own patches, depth NaN), 'connector, other patches', 'all patches'; then, behind
    each layer (depth 0 to 1), 'own patches', 'other patches', 'question' and 'answer'.
    """
    kept = [pair for pair in pairs if _alike(looker, pair)]
    if not kept:
        raise ValueError('no pair of scenes whose prompts are of one length and answers differ')
    rows = _rows(looker, [pair.base for pair in kept])
    copies = min(COPIES, rows - 1) if pairs[0].change in PLACED else 1
    count = min(len(kept), rows // (copies + 1))
    shown = [*(pair.base for pair in (*kept, *others)), *(pair.source for pair in others)]
    rivals = list(dict.fromkeys(gold_ids(looker.encoder, example.questions[0])
                                for example in shown))
    moves = []
    for start in range(0, len(kept), count):
        part = kept[start:start + count]
        moves.append(_moved(looker, part + part[:1] * (count - len(part)), len(part), rivals,
                            copies))
        report(start + len(part))
    full, right, effects = zip(*moves, strict=True)
    right_2M = np.concatenate(right, axis=1)
    moved = Moved(pairs=kept, full=np.concatenate(full), right=right_2M[0],
                  right_source=right_2M[1],
                  effects={key: np.concatenate([part[key] for part in effects])
                           for key in effects[0]})
    return moved, len(pairs) - len(kept)


def _alike(looker, pair):
    """Return whether two prompts have their tokens in the same places, and answers that differ."""
    batches = [looker.batch(items_of([example], 1)) for example in (pair.base, pair.source)]
    if pair.base.questions[0].answer == pair.source.questions[0].answer and pair.change in PLACED:
        return False
    one, other = batches
    return int(one.length_B[0]) == int(other.length_B[0]) and np.array_equal(
        one.index_BLC[0, :one.length_B[0]], other.index_BLC[0, :other.length_B[0]])


def _moved(looker, pairs, count, rivals, copies):
    """Return (full [M], right [2, M], effects) of the first `count` of M pairs.

    Of a pass the matches are the first rows, and behind them the first scenes stand `copies` times,
    each time with another place taken over: what is taken over is computed once for all of them.
    """
    M = len(pairs)
    batch = looker.batch(items_of([pair.base for pair in pairs] +
                                  [pair.source for pair in pairs], 2 * M))
    at_B, answers_BA = _answers(batch, M, rivals)
    edits = [(PLAIN, {})]
    if pairs[0].change in PLACED:
        own_MJ = np.concatenate([_padded(pair.own_J[None], 1, batch) for pair in pairs])
        edits += _edits(looker, batch.index_BLC[:M], own_MJ, at_B[:M])
    order_R = np.concatenate([M + np.arange(M), np.tile(np.arange(M), copies)])
    batch = Batch(*(x if x is None else x[order_R] for x in batch))
    at_R, answers_RA = at_B[order_R], answers_BA[order_R]
    # Behind its prompt stands the right answer of each row.
    gold_R = np.take_along_axis(batch.tokens_BL, at_R[:, None] + 1, axis=1)[:, 0]
    effects = {}
    for start in range(0, len(edits), copies):
        part = edits[start:start + copies]
        _, logits_RV = _pass(looker.params, batch, at_R, {}, {
            'give_B': np.tile(np.arange(M), copies + 1),
            **_masks(looker, batch, [masks for _, masks in part], M)}, model=looker.model)
        logits_RV = np.asarray(logits_RV)
        chosen_RA = np.take_along_axis(logits_RV, answers_RA, axis=1)
        odds_KM = (chosen_RA[:, 1] - chosen_RA[:, 0]).reshape(copies + 1, M)
        if not start:
            source_M, plain_M = odds_KM[:2]
            right_2M = (logits_RV.argmax(axis=1) == gold_R).reshape(copies + 1, M)[[1, 0]]
        effects |= {key: (odds_M - plain_M)[:count] for (key, _), odds_M in zip(part, odds_KM[1:])}
    del effects[PLAIN]
    return (source_M - plain_M)[:count], right_2M[:, :count], effects


def _masks(looker, batch, edits, M):
    """Return the arguments of `Edits` by which rows M to 2 M have the first of `edits`, and so on.
    """
    R, L = batch.tokens_BL.shape
    J = batch.tiles_BIPQ.shape[1] * batch.tiles_BIPQ.shape[2]
    whole = {'vision_BJ': np.zeros((R, J), bool), 'connector_BJ': np.zeros((R, J), bool),
             'states_NBL': np.zeros((looker.model.language.N + 1, R, L), bool)}
    for k, masks in enumerate(edits, 1):
        for name, mask in masks.items():
            whole[name][..., k * M:(k + 1) * M, :] = mask
    return whole


def _answers(batch, half, rivals):
    """Return (the place before the first token that tells two answers apart [B], both tokens there
    [B, 2])."""
    at_B = batch.length_B - 1  # a new array, which the places are added to
    answers = np.zeros((2 * half, 2), np.int64)
    for row in range(half):
        first, second = (tuple(target_T[target_T >= 0])
                         for target_T in batch.target_BT[[row, row + half]])
        if first == second:
            second = next((rival for rival in rivals if rival != first), None)
        if second is None:
            raise ValueError('all answers are one and the same; a ledger needs two')
        place = next(k for k, pair in enumerate(zip(first, second)) if pair[0] != pair[1])
        answers[[row, row + half]] = first[place], second[place]
        at_B[[row, row + half]] += place
    return at_B, answers


def _edits(looker, index_MLC, own_MJ, at_M):
    """Return [((site, depth), masks of what is replaced in M rows)] of every place."""
    N = looker.model.language.N
    edits = [(('tower', NO_DEPTH), {'vision_BJ': own_MJ}),
             (('connector', NO_DEPTH), {'connector_BJ': own_MJ}),
             (('connector, other patches', NO_DEPTH), {'connector_BJ': ~own_MJ}),
             (('all patches', NO_DEPTH), {'connector_BJ': np.ones_like(own_MJ)})]
    own_ML, shows_ML = shown_by(index_MLC, own_MJ)
    places_ML = np.arange(own_ML.shape[1])[None]
    question_ML = (index_MLC[:, :, 0] < 0) & (places_ML < at_M[:, None])
    for layer in layers_of(looker.model):
        for site, where_ML in (('own patches', own_ML), ('other patches', shows_ML & ~own_ML),
                               ('question', question_ML), ('answer', places_ML == at_M[:, None])):
            states_NML = np.zeros((N + 1, *where_ML.shape), bool)
            states_NML[layer] = where_ML
            edits.append(((site, layer / N), {'states_NBL': states_NML}))
    return edits


def matched(pair: Any, cell: Any, stage: str = '') -> Matched:
    """Return a `ScenePair` as a `Matched`, for the pictures that a cell sees in `stage`.

    Without one it is the stage that answers. A stage that writes is asked for its text, and the
    right one stands in the place of the answer.
    """
    stage = stage or cell.joint_stage
    own_J = _patches(pair.asked, cell, stage)
    base, source = pair.base, pair.source
    # What a writer says of the field stands amid its text: the place is found by `_deciding`.
    if kind := STAGES[stage].writes:
        base, source = (_to_write(example, wording_of(cell), kind) for example in (base, source))
    return Matched(field=pair.field, change=pair.change, base=base, source=source, own_J=own_J,
                   cluster=base.scene_id)


def things(pair: Any, cell: Any, stage: str = '') -> np.ndarray:
    """Return the patches [objects, J] of all objects of a `ScenePair`'s first scene; see `matched`.
    """
    return np.stack([_patches(thing, cell, stage) for thing in pair.objects])


def _patches(thing, cell, stage):
    """Return the patches [J] that an object of a scene touches in what a stage of a cell sees."""
    layout = cell.layout(stage or cell.joint_stage)
    return touched([thing.box], (cell.world.side,) * 2, layout.vision, layout.pictures)


def _to_write(example, wording, kind):
    """Return an example whose one question asks for a `kind` of text about what it had asked."""
    question, = example.questions
    item = item_of(example, question)
    text, = gold_texts([item], kind).values()
    asked = replace(question, text=wording.describe(item, kind), answer=text)
    return replace(example, questions=(asked,))

"""What a probe reads that may look: one query, made of a question's words, attends over patches.

The mean over a picture forgets which patch showed what; this probe finds its patch, and so tells
what the tower could give at most to a reader that looks once. It is asked in families about one
object of one picture. Needs JAX; rows, folds and controls are those of `readout`.
"""
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from downscale.evaluate.answers import Item
from downscale.probe.readout import (
    ONE_OBJECT,
    ProbeRows,
    one_hot,
    principal,
    shuffled,
    split,
    tasks_of,
    vocabulary,
)
from downscale.results.probes import NO_DEPTH

STEPS = 400
RATE = 0.03
DECAY = 1e-3
KEPT_OUT = 5  # one in so many training pictures says after which step to stop


def attend_read(patches: np.ndarray, spare_patches: np.ndarray, asked: Sequence[Item],
                spare: Sequence[Item], dimensions: int,
                seed: int = 0) -> dict[str, dict[tuple[str, float, str], np.ndarray]]:
    """Return {family: {('vision', NO_DEPTH, metric): 0 or 1 of each item}}.

    The metrics are 'attentive' and 'attentive control', the same probe with shuffled answers.

    `patches` and `spare_patches` [items, P, W] are those of `asked` and `spare`, in their order.
    """
    every = np.concatenate([patches, spare_patches])
    measured = {}
    for task, index in tasks_of(asked, spare):
        family = task.names[0]
        folds = task.folds(seed)
        if family not in ONE_OBJECT or not folds:
            continue
        order = shuffled(task, seed)
        # Two targets, trained side by side: the answers, and the same answers shuffled.
        rows = ProbeRows(task.rows.words, task.rows.clusters,
                         np.concatenate([task.labels, task.labels[:, order]]))
        hits = np.zeros((2, task.studied))
        for train, tested in folds:
            x, test_x = _principal(every[index][train], every[index][tested], dimensions)
            guesses = predict(x, rows.at(train), test_x, rows.at(tested), seed)
            for t, guess in enumerate(guesses):
                judged = order[tested] if t else tested
                hits[t, tested] = [task.right(0, k, word)
                                   for k, word in zip(judged, guess, strict=True)]
        measured[family] = {('vision', NO_DEPTH, 'attentive'): hits[0],
                            ('vision', NO_DEPTH, 'attentive control'): hits[1]}
    return measured


def _principal(train, others, dimensions):
    """Return both on the first principal axes of `train` [items, P, W], of unit variance."""
    _, P, W = train.shape
    rows = principal(train.reshape(-1, W), others.reshape(-1, W), dimensions)
    return [(x * np.sqrt(x.shape[1])).reshape(-1, P, x.shape[1]).astype(np.float32) for x in rows]


def predict(x: np.ndarray, train: ProbeRows, test_x: np.ndarray, test: ProbeRows,
            seed: int = 0) -> np.ndarray:
    """Return labels [targets, test items] as a probe for each target of `train` reads them.

    `x` and `test_x` are patches [items, P, dimensions]. Of all steps the one is taken whose loss is
    least on training pictures that the probe does not see.
    """
    words = vocabulary(train.words)
    q = one_hot(train.words, words).astype(np.float32)
    test_q = one_hot(test.words, words).astype(np.float32)
    names = np.unique(train.labels)
    labels = np.searchsorted(names, train.labels)
    kept_out = split(train.clusters, KEPT_OUT, seed) == 0
    seen = kept_out if kept_out.all() else ~kept_out  # of a single picture all is seen
    best = _fit(x, q, labels, seen, kept_out, seed, classes=len(names))
    return names[np.argmax(_scores(best, test_x, test_q), axis=2)]


@jax.jit
@partial(jax.vmap, in_axes=(0, None, None))
def _scores(probe, x_nPd, q_nQ):
    """Return scores [n, classes] of one probe."""
    query_nd = q_nQ @ probe['query_Qd']
    look_nP = jax.nn.softmax(jnp.einsum('nPd,nd->nP', x_nPd, query_nd), axis=1)
    return (jnp.einsum('nP,nPd->nd', look_nP, x_nPd) @ probe['read_dC'] + q_nQ @ probe['word_QC']
            + probe['bias_C'])


@partial(jax.jit, static_argnames='classes')
def _fit(x_nPd, q_nQ, labels_Tn, seen_n, kept_out_n, seed, *, classes):
    """Return the probes of T targets, each after its best step."""
    T = len(labels_Tn)
    Q = q_nQ.shape[1]
    d = x_nPd.shape[2]
    # Only the query starts at random: what is read off a patch is linear and may start at zero.
    query = jax.random.normal(jax.random.key(seed), (T, Q, d)) * d ** -.5
    start = {'query_Qd': query, 'read_dC': jnp.zeros((T, d, classes)),
             'word_QC': jnp.zeros((T, Q, classes)), 'bias_C': jnp.zeros((T, classes))}
    tx = optax.adamw(RATE, weight_decay=DECAY)

    def losses(probe):
        cross_Tn = optax.softmax_cross_entropy_with_integer_labels(
            _scores(probe, x_nPd, q_nQ), labels_Tn)
        return [jnp.where(part, cross_Tn, 0).sum(axis=1) / part.sum()
                for part in (seen_n, kept_out_n)]

    def loss(probe):
        seen_T, kept_out_T = losses(probe)
        # Targets share no weight, so the gradient of the sum is that of each.
        return seen_T.sum(), kept_out_T

    def step(carry, _):
        probe, state, best, least_T = carry
        grads, kept_out_T = jax.grad(loss, has_aux=True)(probe)
        better_T = kept_out_T < least_T

        def keep(new, old):
            ones = (1,) * (new.ndim - 1)
            return jnp.where(better_T.reshape(-1, *ones), new, old)
        # Before the update: the loss that was measured is that of the weights before it.
        best = jax.tree.map(keep, probe, best)
        updates, state = tx.update(grads, state, probe)
        return (optax.apply_updates(probe, updates), state, best,
                jnp.minimum(kept_out_T, least_T)), None

    carry = start, tx.init(start), start, jnp.full(T, jnp.inf)
    return jax.lax.scan(step, carry, None, STEPS)[0][2]

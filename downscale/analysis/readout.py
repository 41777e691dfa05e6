"""What a linear probe can read off features: ridge on a common number of dimensions, with controls.

A probe sees the features of an item and the words of its question, and names one of the answers it
was trained on. It is linear in the features for every word of the question: picture features alone
cannot know which object is asked about. Everything is a closed form over rows (numpy, no JAX).
"""
from dataclasses import dataclass

import numpy as np

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
INNER_FOLDS = 3   # choose the ridge
OUTER_FOLDS = 5   # where there are no other items to train on
MOST_ROWS = 512   # a probe of a task is trained on; more would cost with their cube


@dataclass(frozen=True)
class Rows:
    """Items of one task: the words of their questions, the clusters (pictures), and the labels
    [targets, items] to predict, each an array of text."""
    words: list
    clusters: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.words)

    def at(self, index):
        """The rows at `index`."""
        return Rows([self.words[k] for k in index], self.clusters[index], self.labels[:, index])


def principal(train, others, dimensions):
    """Features on the first principal axes of `train` [items, width], of `train` and of `others`.

    At most `dimensions` are kept, so that wide models get no free capacity; the scale is such that
    a training row has unit length on average. Features that do not vary become zeros.
    """
    train, others = (np.asarray(x, dtype=np.float64) for x in (train, others))
    mean = train.mean(axis=0)
    spread = train - mean
    _, sizes, axes = np.linalg.svd(spread, full_matrices=False)
    axes = axes[:dimensions]
    scale = np.sqrt(np.sum(sizes[:dimensions] ** 2) / len(train))
    scale = 1 / scale if scale > 1e-9 * (np.abs(train).max() + 1e-30) else 0.0
    return spread @ axes.T * scale, (others - mean) @ axes.T * scale


def split(clusters, folds, seed=0):
    """The fold of each item; the items of a cluster share one, folds are equal within a cluster."""
    names, place = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return (order % max(1, min(folds, len(names))))[place]


def shuffled(count, seed=0):
    """The order of labels in the control task: a derangement-like permutation of `count` rows."""
    return np.random.default_rng(seed).permutation(count)


def predict(train_x, train, test_x, test):
    """Predicted labels [targets, test items] of a ridge probe for each target of `train`.

    `train_x` and `test_x` come from `principal`. The ridge of each target is the one with the
    smallest squared error on pictures left out of `train`.
    """
    words = _vocabulary(train.words)
    q, test_q = (_one_hot(rows.words, words) for rows in (train, test))
    kernel = (1 + q @ q.T) * (1 + train_x @ train_x.T)
    across = (1 + test_q @ q.T) * (1 + test_x @ train_x.T)
    targets = [np.unique(labels, return_inverse=True) for labels in train.labels]
    hot = [np.eye(len(names))[place] for names, place in targets]
    columns = np.cumsum([0] + [y.shape[1] for y in hot])
    errors = _left_out(kernel, np.concatenate(hot, axis=1), split(train.clusters, INNER_FOLDS))
    best = [np.argmin([error[start:end].sum() for error in errors])
            for start, end in zip(columns, columns[1:])]
    found = np.empty((len(targets), len(test)), dtype=object)
    for t, (names, _) in enumerate(targets):
        scores = _fit(kernel, hot[t], across, RIDGES[best[t]])
        found[t] = names[np.argmax(scores, axis=1)]
    return found


def _left_out(kernel, hot, folds):
    """Squared error [ridges, columns] on each fold of what was fitted on the others."""
    errors = np.zeros((len(RIDGES), hot.shape[1]))
    for fold in np.unique(folds):
        here, rest = folds == fold, folds != fold
        if not rest.any():  # one picture: nothing to choose by
            continue
        for k, ridge in enumerate(RIDGES):
            guess = _fit(kernel[np.ix_(rest, rest)], hot[rest], kernel[np.ix_(here, rest)], ridge)
            errors[k] += np.sum((guess - hot[here]) ** 2, axis=0)
    return errors


def _fit(kernel, hot, across, ridge):
    """Scores [test items, classes]: the training shares of the classes, and what the ridge adds."""
    mean = hot.mean(axis=0)
    weight = ridge * np.trace(kernel) / len(kernel)
    dual = np.linalg.solve(kernel + weight * np.eye(len(kernel)), hot - mean)
    return mean + across @ dual


def _vocabulary(texts):
    """{(place, word): column} of the words that tell these questions apart."""
    asked = [set(enumerate(text.split())) for text in texts]
    always = set.intersection(*asked)
    return {word: k for k, word in enumerate(sorted(set().union(*asked) - always))}


def _one_hot(texts, words):
    """Questions as vectors of unit length, zeros where no word is known."""
    found = np.zeros((len(texts), len(words)))
    for row, text in enumerate(texts):
        for word in enumerate(text.split()):
            if word in words:
                found[row, words[word]] = 1
    size = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.maximum(size, 1)

"""What a linear probe can read off features: ridge on a common number of dimensions, with controls.

A probe sees the features of an item and the words of its question, and names one of the answers it
was trained on. It is linear in the features for every word of the question: picture features alone
cannot know which object is asked about. Everything is a closed form over rows (numpy, no JAX).
"""
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import solve

from downscale.data.scenes.world import FIELDS
from downscale.results.probes import ASKED, NO_DEPTH, Measured

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
INNER_FOLDS = 3   # choose the ridge
OUTER_FOLDS = 5   # where there are no other items to train on
MOST_ROWS = 1024  # a probe of a task is trained on; more would cost with their cube
FEWEST = 16       # items that a probe is trained on
ONE_OBJECT = {'attribute': 'shape', 'position': 'shape', 'read': 'shape', 'ground': 'shape',
              'content': 'cell'}  # families that ask about one object: what they name it by


@dataclass(frozen=True)
class ProbeRows:
    """Items of one task: the words of their questions, the clusters (pictures), and the labels
    [targets, items] to predict, each an array of text."""
    words: list
    clusters: np.ndarray
    labels: np.ndarray

    def at(self, index):
        """Return the rows at `index`."""
        words = [self.words[k] for k in index]
        return ProbeRows(words, self.clusters[index], self.labels[:, index])


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """What is probed together: `names` of the targets, and the items.

    `labels` [targets, items]; the first `studied` items are the study's.
    """
    names: tuple
    items: list
    labels: np.ndarray
    studied: int

    @cached_property
    def rows(self):
        questions = [item.question for item in self.items]
        return ProbeRows([question.text for question in questions],
                         np.array([question.cluster_id for question in questions]), self.labels)

    def right(self, target, k, guess):
        """Return whether `guess` is the label of item `k`: for a family as its own judge says."""
        if self.names[target].startswith(ASKED):
            return float(guess == self.labels[target, k])
        return self.items[k].judge(guess, False)[2]

    def folds(self, seed):
        """Return [(training, tested)] indices: all of the study by what is not in it, where there
        is enough; else its own pictures, part by part. Empty where there is not enough of
        either.
        """
        tested = np.arange(self.studied)
        clusters = self.rows.clusters
        spare = np.arange(self.studied, len(self.items))
        spare = spare[~np.isin(clusters[spare], clusters[tested])][:MOST_ROWS]
        if len(spare) >= FEWEST:
            return [(spare, tested)]
        fold = split(clusters[tested], OUTER_FOLDS, seed)
        found = [(tested[fold != k][:MOST_ROWS], tested[fold == k]) for k in np.unique(fold)]
        return found if min(len(train) for train, _ in found) >= FEWEST else []


def tasks_of(asked, spare):
    """Return (tasks with the indices of their items in asked + spare): one a family, and what the
    object is like that a question asks about, where it is about one.
    """
    both = [*asked, *spare]
    found = []
    for family in dict.fromkeys(item.question.family for item in asked):
        index = [k for k, item in enumerate(both) if item.question.family == family]
        labels = np.array([[both[k].question.answer for k in index]], dtype=object)
        found.append((_task((family,), both, index, labels, len(asked)), index))
    index = [k for k, item in enumerate(both) if _object(item.question)]
    if index and index[0] < len(asked):
        objects = [_object(both[k].question) for k in index]
        labels = np.array([[one[name] for one in objects] for name in FIELDS], dtype=object)
        names = tuple(ASKED + name for name in FIELDS)
        found.append((_task(names, both, index, labels, len(asked)), index))
    return found


def _task(names, both, index, labels, studied):
    return ProbeTask(
        names=names,
        items=[both[k] for k in index],
        labels=labels,
        studied=sum(k < studied for k in index),
    )


def _object(question):
    """Return {field: value} of the object that a question of the scene world is about; None
    otherwise.
    """
    words = question.extraction.text.split()
    if question.family not in ONE_OBJECT or len(words) < len(FIELDS):
        return None
    at = FIELDS.index(ONE_OBJECT[question.family])
    return dict(zip(FIELDS[at:] + FIELDS[:at], words))


def read_out(features, spare_features, asked, spare, dimensions, seed=0,
             report=lambda done, total: None):
    """Return ({task: Measured} of a linear probe at every site, {task: why there is none}).

    `features` and `spare_features` map (site, rel_depth) to [items, width], of what the study asks
    and of what probes are trained on. Site 'question' holds the words of the question alone.
    'control' is the accuracy of the same probe where answers are shuffled over the items.
    """
    found = {}
    without = {}
    tasks = tasks_of(asked, spare)
    for done, (task, index) in enumerate(tasks):
        folds = task.folds(seed)
        ids = [item.question for item in task.items[:task.studied]]
        for name in task.names:
            found[name] = Measured(item_id=np.array([one.item_id for one in ids]),
                                   cluster_id=np.array([one.cluster_id for one in ids]),
                                   family=not name.startswith(ASKED))
        if not folds:
            without |= dict.fromkeys(task.names, f'{task.studied} items, and fewer than {FEWEST} '
                                     'of other pictures to train on')
            continue
        order = shuffled(task, seed)
        blank = np.zeros((len(index), 1))
        for site, depth in (('question', NO_DEPTH), *features):
            x = blank if site == 'question' else np.concatenate(
                [features[site, depth], spare_features[site, depth]])[index]
            hit, control = _hits(task, x, folds, order, dimensions)
            for t, name in enumerate(task.names):
                found[name].values[site, depth, 'accuracy'] = hit[t]
                if site != 'question':
                    found[name].values[site, depth, 'control'] = control[t]
        report(done + 1, len(tasks))
    return found, without


def shuffled(task, seed):
    """Return another item for every item, whose answer is its label in the control task."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(task.studied), task.studied + rng.permutation(
        len(task.items) - task.studied)])


def _hits(task, x, folds, order, dimensions):
    """Return (hits, hits of the control) [targets, studied items], 0 to 1."""
    rows = ProbeRows(task.rows.words, task.rows.clusters,
                     np.concatenate([task.labels, task.labels[:, order]]))
    targets = len(task.names)
    found = np.zeros((2 * targets, task.studied))
    for train, tested in folds:
        guesses = predict(*_pair(x, rows, train, tested, dimensions))
        for t, guess in enumerate(guesses):
            judged = tested if t < targets else order[tested]
            found[t, tested] = [task.right(t % targets, k, word)
                                for k, word in zip(judged, guess, strict=True)]
    return found[:targets], found[targets:]


def _pair(x, rows, train, tested, dimensions):
    x_train, x_tested = principal(x[train], x[tested], dimensions)
    return x_train, rows.at(train), x_tested, rows.at(tested)


def principal(train, others, dimensions):
    """Return features on the first principal axes of `train` [items, width], of `train` and of
    `others`.

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
    """Return the fold of each item; the items of a cluster share one, folds are equal within a
    cluster.
    """
    names, place = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return (order % max(1, min(folds, len(names))))[place]


def predict(train_x, train, test_x, test):
    """Return predicted labels [targets, test items] of a ridge probe for each target of `train`.

    `train_x` and `test_x` come from `principal`. The ridge of each target is the one with the
    smallest squared error on pictures left out of `train`.
    """
    words = vocabulary(train.words)
    q, test_q = (one_hot(rows.words, words) for rows in (train, test))
    kernel = (1 + q @ q.T) * (1 + train_x @ train_x.T)
    across = (1 + test_q @ q.T) * (1 + test_x @ train_x.T)
    targets = [np.unique(labels, return_inverse=True) for labels in train.labels]
    hot = [np.eye(len(names))[place] for names, place in targets]
    columns = np.cumsum([0] + [y.shape[1] for y in hot])
    errors = _left_out(kernel, np.concatenate(hot, axis=1), split(train.clusters, INNER_FOLDS))
    best = [np.argmin([error[start:end].sum() for error in errors])
            for start, end in zip(columns, columns[1:])]
    found = np.empty((len(targets), len(test.words)), dtype=object)
    for t, (names, _) in enumerate(targets):
        scores = _fit(kernel, hot[t], across, RIDGES[best[t]])
        found[t] = names[np.argmax(scores, axis=1)]
    return found


def _left_out(kernel, hot, folds):
    """Return squared error [ridges, columns] on each fold of what was fitted on the others."""
    errors = np.zeros((len(RIDGES), hot.shape[1]))
    for fold in np.unique(folds):
        here = folds == fold
        rest = folds != fold
        if not rest.any():  # one picture: nothing to choose by
            continue
        for k, ridge in enumerate(RIDGES):
            guess = _fit(kernel[np.ix_(rest, rest)], hot[rest], kernel[np.ix_(here, rest)], ridge)
            errors[k] += np.sum((guess - hot[here]) ** 2, axis=0)
    return errors


def _fit(kernel, hot, across, ridge):
    """Return scores [test items, classes]: the training shares of the classes, and what the ridge
    adds.
    """
    mean = hot.mean(axis=0)
    weight = ridge * np.trace(kernel) / len(kernel)
    dual = solve(kernel + weight * np.eye(len(kernel)), hot - mean, assume_a='pos')
    return mean + across @ dual


def vocabulary(texts):
    """Return {(place, word): column} of the words that tell these questions apart."""
    asked = [set(enumerate(text.split())) for text in texts]
    always = set.intersection(*asked)
    return {word: k for k, word in enumerate(sorted(set().union(*asked) - always))}


def one_hot(texts, words):
    """Return questions as vectors of unit length, zeros where no word is known."""
    found = np.zeros((len(texts), len(words)))
    for row, text in enumerate(texts):
        for word in enumerate(text.split()):
            if word in words:
                found[row, words[word]] = 1
    size = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.maximum(size, 1)

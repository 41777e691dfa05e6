"""What a linear probe can read off features: ridge on a common number of dimensions, with controls.

A probe sees the features of an item and the words of its question, and names one of the answers it
was trained on. It is linear in the features for every word of the question: picture features alone
cannot know which object is asked about. Everything is a closed form over rows (numpy, no JAX).
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import solve

from downscale.data.scenes.world import FIELDS
from downscale.results.probes import ASKED, NO_DEPTH, Measured

if TYPE_CHECKING:
    from downscale.evaluate.answers import Item

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
INNER_FOLDS = 3   # choose the ridge
OUTER_FOLDS = 5   # where there are no other items to train on
MOST_ROWS = 1024  # a probe of a task is trained on; more would cost with their cube
FEWEST = 16       # items that a probe is trained on
ONE_OBJECT = {'attribute': 'shape', 'position': 'shape', 'read': 'shape', 'ground': 'shape',
              'content': 'cell'}  # families that ask about one object: what they name it by


Site = tuple[str, float]  # where features are from, and at which relative depth
Fold = tuple[np.ndarray, np.ndarray]  # indices of the items to train on, and to test on


@dataclass(frozen=True)
class ProbeRows:
    """Items of one task: their questions' words, their clusters (pictures), and what to predict.

    `labels` [targets, items] are texts.
    """
    words: list[str]
    clusters: np.ndarray
    labels: np.ndarray

    def at(self, index: Sequence[int] | np.ndarray) -> 'ProbeRows':
        """Return the rows at `index`."""
        words = [self.words[k] for k in index]
        return ProbeRows(words, self.clusters[index], self.labels[:, index])


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """What is probed together: `names` of the targets, and the items.

    `labels` [targets, items]; the first `studied` items are the study's.
    """
    names: tuple[str, ...]
    items: list['Item']
    labels: np.ndarray
    studied: int

    @cached_property
    def rows(self) -> ProbeRows:
        """The items as probes see them."""
        questions = [item.question for item in self.items]
        return ProbeRows([question.text for question in questions],
                         np.array([question.cluster_id for question in questions]), self.labels)

    def right(self, target: int, k: int, guess: str) -> float:
        """Return 1 where `guess` is the label of item `k`; for a family as its own judge says."""
        if self.names[target].startswith(ASKED):
            return float(guess == self.labels[target, k])
        return self.items[k].judge(guess, False)[2]

    def folds(self, seed: int) -> list[Fold]:
        """Return how items are trained on and tested; empty where there are not enough.

        All of the study is tested by what is not in it, where there is enough; else its own
        pictures, part by part.
        """
        tested = np.arange(self.studied)
        clusters = self.rows.clusters
        spare = np.arange(self.studied, len(self.items))
        spare = spare[~np.isin(clusters[spare], clusters[tested])][:MOST_ROWS]
        if len(spare) >= FEWEST:
            return [(spare, tested)]
        fold = split(clusters[tested], OUTER_FOLDS, seed)
        folds = [(tested[fold != k][:MOST_ROWS], tested[fold == k]) for k in np.unique(fold)]
        return folds if min(len(train) for train, _ in folds) >= FEWEST else []


def tasks_of(asked: Sequence['Item'], spare: Sequence['Item']) -> list[tuple[ProbeTask, list[int]]]:
    """Return (task, indices of its items in asked + spare): one a family, and one of objects.

    The last one has what the object is like that a question asks about, where it is about one.
    """
    both = [*asked, *spare]
    tasks = []
    for family in dict.fromkeys(item.question.family for item in asked):
        index = [k for k, item in enumerate(both) if item.question.family == family]
        answers = [both[k].question.answer for k in index]
        labels = np.array([answers], dtype=object)
        tasks.append((_task((family,), both, index, labels, len(asked)), index))
    index = [k for k, item in enumerate(both) if _object(item.question)]
    if index and index[0] < len(asked):  # the study itself asks about an object
        objects = [_object(both[k].question) for k in index]
        labels = np.empty((len(FIELDS), len(objects)), dtype=object)
        for row, name in zip(labels, FIELDS):
            row[:] = [values[name] for values in objects]
        names = tuple(ASKED + name for name in FIELDS)
        tasks.append((_task(names, both, index, labels, len(asked)), index))
    return tasks


def _task(names, both, index, labels, studied):
    """Return the `ProbeTask` of some of `both`, of which the first `studied` are the study's."""
    return ProbeTask(
        names=names,
        items=[both[k] for k in index],
        labels=labels,
        studied=sum(k < studied for k in index),
    )


def _object(question):
    """Return {field: value} of the object that a question of the scene world is about, or None."""
    words = question.extraction.text.split()
    if question.family not in ONE_OBJECT or len(words) < len(FIELDS):
        return None
    # An extraction begins with what the question names its object by.
    at = FIELDS.index(ONE_OBJECT[question.family])
    return dict(zip(FIELDS[at:] + FIELDS[:at], words))


def read_out(features: dict[Site, np.ndarray], spare_features: dict[Site, np.ndarray],
             asked: Sequence['Item'], spare: Sequence['Item'], dimensions: int, seed: int = 0,
             report: Callable[[int, int], object] = lambda done, total: None
             ) -> tuple[dict[str, Measured], dict[str, str]]:
    """Return ({task: Measured} of a linear probe at every site, {task: why there is none}).

    `features` and `spare_features` map (site, rel_depth) to [items, width], of what the study asks
    and of what probes are trained on. Site 'question' holds the words of the question alone.
    'control' is the accuracy of the same probe where answers are shuffled over the items.
    """
    measured = {}
    without = {}
    tasks = tasks_of(asked, spare)
    for done, (task, index) in enumerate(tasks):
        measured |= _unmeasured(task)
        folds = task.folds(seed)
        if not folds:
            without |= dict.fromkeys(task.names, f'{task.studied} items, and fewer than {FEWEST} '
                                     'of other pictures to train on')
            continue
        order = shuffled(task, seed)
        # Features that say nothing leave a probe the words of the question.
        blank = np.zeros((len(index), 1))
        for site, depth in (('question', NO_DEPTH), *features):
            x = blank if site == 'question' else np.concatenate(
                [features[site, depth], spare_features[site, depth]])[index]
            hits, controls = _hits(task, x, folds, order, dimensions)
            for name, hit, control in zip(task.names, hits, controls):
                measured[name].values[site, depth, 'accuracy'] = hit
                if site != 'question':
                    measured[name].values[site, depth, 'control'] = control
        report(done + 1, len(tasks))
    return measured, without


def _unmeasured(task):
    """Return {name: `Measured` without values} of each target of a task."""
    questions = [item.question for item in task.items[:task.studied]]
    item_id = np.array([question.item_id for question in questions])
    cluster_id = np.array([question.cluster_id for question in questions])
    return {name: Measured(item_id=item_id, cluster_id=cluster_id,
                           family=not name.startswith(ASKED)) for name in task.names}


def shuffled(task: ProbeTask, seed: int) -> np.ndarray:
    """Return another item for every item, whose answer is its label in the control task."""
    rng = np.random.default_rng(seed)
    # The study's among themselves, and the others: neither learns labels of the other.
    return np.concatenate([rng.permutation(task.studied), task.studied + rng.permutation(
        len(task.items) - task.studied)])


def _hits(task, x, folds, order, dimensions):
    """Return (hits, hits of the control) [targets, studied items], 0 to 1."""
    rows = ProbeRows(task.rows.words, task.rows.clusters,
                     np.concatenate([task.labels, task.labels[:, order]]))
    targets = len(task.names)
    hits = np.zeros((2 * targets, task.studied))
    for train, tested in folds:
        x_train, x_tested = principal(x[train], x[tested], dimensions)
        guesses = predict(x_train, rows.at(train), x_tested, rows.at(tested))
        for t, guess in enumerate(guesses):
            judged = tested if t < targets else order[tested]
            hits[t, tested] = [task.right(t % targets, k, word)
                               for k, word in zip(judged, guess, strict=True)]
    return hits[:targets], hits[targets:]


def principal(train: np.ndarray, others: np.ndarray,
              dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `train` and `others` [items, width] on the first principal axes of `train`.

    At most `dimensions` are kept, so that wide models get no free capacity; the scale is such that
    a training row has unit length on average. Features that do not vary become zeros.
    """
    train = np.asarray(train, dtype=np.float64)
    others = np.asarray(others, dtype=np.float64)
    mean = train.mean(axis=0)
    spread = train - mean
    _, sizes, axes = np.linalg.svd(spread, full_matrices=False)
    axes = axes[:dimensions]
    scale = np.sqrt(np.sum(sizes[:dimensions] ** 2) / len(train))
    scale = 1 / scale if scale > 1e-9 * (np.abs(train).max() + 1e-30) else 0.0
    return spread @ axes.T * scale, (others - mean) @ axes.T * scale


def split(clusters: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Return the fold of each item; the items of a cluster share one.

    Folds have equally many clusters, give or take one; never more folds than clusters.
    """
    names, place = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return (order % max(1, min(folds, len(names))))[place]


def predict(train_x: np.ndarray, train: ProbeRows, test_x: np.ndarray,
            test: ProbeRows) -> np.ndarray:
    """Return predicted labels [targets, test items] of a ridge probe for each target of `train`.

    `train_x` and `test_x` come from `principal`. The ridge of each target is the one with the
    smallest squared error on pictures left out of `train`.
    """
    words = vocabulary(train.words)
    q = one_hot(train.words, words)
    test_q = one_hot(test.words, words)
    # The product of two linear kernels: linear in the features for every word of the question.
    kernel = (1 + q @ q.T) * (1 + train_x @ train_x.T)
    across = (1 + test_q @ q.T) * (1 + test_x @ train_x.T)
    targets = [np.unique(labels, return_inverse=True) for labels in train.labels]
    hot = [np.eye(len(names))[place] for names, place in targets]
    # Columns of all targets side by side: each fold is solved once.
    columns = np.cumsum([0] + [y.shape[1] for y in hot])
    errors = _left_out(kernel, np.concatenate(hot, axis=1), split(train.clusters, INNER_FOLDS))
    labels = np.empty((len(targets), len(test.words)), dtype=object)
    for t, ((names, _), (start, end)) in enumerate(zip(targets, pairwise(columns))):
        best = np.argmin([error[start:end].sum() for error in errors])
        scores = _fit(kernel, hot[t], across, RIDGES[best])
        labels[t] = names[np.argmax(scores, axis=1)]
    return labels


def _left_out(kernel, hot, folds):
    """Return squared error [ridges, columns] on each fold of what was fitted on the others."""
    errors = np.zeros((len(RIDGES), hot.shape[1]))
    for fold in np.unique(folds):
        inside = folds == fold
        rest = folds != fold
        if not rest.any():  # one picture: nothing to choose by
            continue
        for k, ridge in enumerate(RIDGES):
            guess = _fit(kernel[np.ix_(rest, rest)], hot[rest], kernel[np.ix_(inside, rest)], ridge)
            errors[k] += np.sum((guess - hot[inside]) ** 2, axis=0)
    return errors


def _fit(kernel, hot, across, ridge):
    """Return scores [test items, classes]: the classes' shares in training, and what ridge adds."""
    mean = hot.mean(axis=0)
    # In units of the mean of the diagonal, so that one ridge means the same for every task.
    weight = ridge * np.trace(kernel) / len(kernel)
    dual = solve(kernel + weight * np.eye(len(kernel)), hot - mean, assume_a='pos')
    return mean + across @ dual


def vocabulary(texts: Sequence[str]) -> dict[tuple[int, str], int]:
    """Return {(place, word): column} of the words that tell these questions apart."""
    asked = [set(enumerate(text.split())) for text in texts]
    always = set.intersection(*asked)
    return {word: k for k, word in enumerate(sorted(set().union(*asked) - always))}


def one_hot(texts: Sequence[str], words: dict[tuple[int, str], int]) -> np.ndarray:
    """Return questions as vectors [texts, words] of unit length, zeros where no word is known."""
    vectors = np.zeros((len(texts), len(words)))
    for row, text in enumerate(texts):
        for word in enumerate(text.split()):
            if word in words:
                vectors[row, words[word]] = 1
    size = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(size, 1)

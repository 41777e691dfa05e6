"""Linear probes on features in which the answer was planted, or not."""
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from downscale.probe import readout
from downscale.probe.readout import ProbeRows, predict, principal, read_out, split
from downscale.results.probes import NO_DEPTH

COLORS = ('red', 'green', 'blue')
SHAPES = ('star', 'ring', 'cross')
DRAW = np.random.default_rng(0)
CODES = DRAW.standard_normal((len(SHAPES), len(COLORS), 24))  # what a shape of a colour adds


@dataclass(frozen=True)
class Item:
    question: object

    def judge(self, guess, marked):
        return guess, True, float(guess == self.question.answer)


def items(count, name, width=24, blind=False):
    """(items, features): pictures of every shape in some colour, two questions about each.

    The features of a picture are the sum of the codes of what it shows, or noise where `blind`.
    """
    found, x = [], []
    for k in range(count):
        colors = DRAW.integers(len(COLORS), size=len(SHAPES))
        feature = CODES[np.arange(len(SHAPES)), colors].sum(0)[:width]
        for s in DRAW.permutation(len(SHAPES))[:2]:
            question = SimpleNamespace(
                item_id=f'{name}{k}/{s}', cluster_id=f'{name}{k}', family='attribute',
                text=f'what color is the {SHAPES[s]}', answer=COLORS[colors[s]],
                extraction=SimpleNamespace(text=f'{SHAPES[s]} K a1 small {COLORS[colors[s]]} ;'))
            found.append(Item(question))
            x.append(DRAW.standard_normal(width) if blind else feature)
    return found, np.array(x, np.float32)


def accuracy(asked, spare, dimensions=24):
    (items_, x), (others, y) = asked, spare
    found, without = read_out({('image', .5): x}, {('image', .5): y}, items_, others, dimensions)
    assert not without
    return {task: {key: values.mean() for key, values in one.values.items()}
            for task, one in found.items()}


def test_what_features_hold_is_read_and_shuffled_answers_are_not():
    found = accuracy(items(40, 'a'), items(150, 'b'))['attribute']
    assert found['image', .5, 'accuracy'] > .95
    assert found['image', .5, 'control'] < .5
    assert found['question', NO_DEPTH, 'accuracy'] < .5


def test_features_without_the_answer_read_as_the_question_alone():
    found = accuracy(items(40, 'a', blind=True), items(150, 'b', blind=True))['attribute']
    assert found['image', .5, 'accuracy'] < .5


def test_the_asked_object_is_probed_as_well():
    found = accuracy(items(40, 'a'), items(150, 'b'))
    assert found['asked color']['image', .5, 'accuracy'] > .95
    assert found['asked shape']['question', NO_DEPTH, 'accuracy'] == 1  # the question names it
    assert set(found) == {'attribute', *(f'asked {f}' for f in ('cell', 'size', 'color', 'shape',
                                                                'char'))}


def test_without_other_pictures_the_own_ones_are_read_part_by_part(monkeypatch):
    trained = []
    whole = readout.predict

    def watched(train_x, train, test_x, test):
        trained.append((set(train.clusters), set(test.clusters)))
        real, control = train.labels.reshape(2, -1, len(train.words))
        assert np.any(real != control)
        return whole(train_x, train, test_x, test)

    monkeypatch.setattr(readout, 'predict', watched)
    asked, (_, none) = items(90, 'a'), items(0, 'b')
    found = accuracy(asked, ([], none.reshape(0, 24)))['attribute']
    assert found['image', .5, 'accuracy'] > .85 and found['image', .5, 'control'] < .55
    assert len(trained) == 2 * 2 * readout.OUTER_FOLDS
    assert all(not train & test for train, test in trained)
    assert set.union(*(test for _, test in trained)) == {f'a{k}' for k in range(90)}


def test_too_few_items_are_said_and_not_probed():
    asked, x = items(4, 'a')
    found, without = read_out({('image', 0.): x}, {('image', 0.): x[:0]}, asked, [], 8)
    assert 'fewer than 16' in without['attribute'] and not found['attribute'].values


def test_a_cluster_that_is_tested_is_never_trained_on(monkeypatch):
    asked, spare = items(40, 'a'), items(60, 'a')  # half of the others show the same pictures
    trained = set()
    whole = readout.predict
    monkeypatch.setattr(readout, 'predict', lambda x, train, y, test: trained.update(
        train.clusters) or whole(x, train, y, test))
    accuracy(asked, spare)
    assert trained == {f'a{k}' for k in range(40, 60)}


def test_the_common_dimension_cuts_what_a_wide_model_may_use():
    wide = DRAW.standard_normal((30, 200))
    train, other = principal(wide, wide[:5], 8)
    assert train.shape == (30, 8) and np.sum(train ** 2) / 30 == pytest.approx(1)
    np.testing.assert_allclose(train[:5], other)
    same, _ = principal(np.ones((30, 4)), np.ones((5, 4)), 8)
    assert not same.any()


def test_folds_keep_pictures_whole():
    clusters = np.repeat([f'c{k}' for k in range(11)], 3)
    fold = split(clusters, 5)
    assert all(len(set(fold[clusters == c])) == 1 for c in set(clusters))
    assert sorted(np.bincount(fold)) == [6, 6, 6, 6, 9]


def test_the_ridge_is_chosen_on_pictures_that_were_left_out():
    """With noise alone the strongest ridge must win, else the guess would follow the noise."""
    words, clusters = ['what'] * 60, np.array([f'c{k}' for k in range(60)])
    labels = np.array([['a'] * 40 + ['b'] * 20], dtype=object)
    rows = ProbeRows(words, clusters, labels)
    x = principal(DRAW.standard_normal((60, 50)), np.zeros((1, 50)), 50)[0]
    guess = predict(x, rows, principal(DRAW.standard_normal((60, 50)), x, 50)[1], rows)[0]
    assert np.mean(guess == 'a') > .9

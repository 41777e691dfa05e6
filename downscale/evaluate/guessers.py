"""What guessers earn that see no picture: the floors of benchmarks and of one's own questions.

They stand in `study.json` under `data.baselines` as those of the scene world do, by family:
`informed` is the mean `chance` of its questions, `majority` the best answer for each wording,
`constant` the best answer for the whole family, `n` the number of questions.
"""
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from downscale.evaluate.answers import Item
from downscale.evaluate.scoring.reading import plain

FEW = 10      # questions of one wording; of fewer the best answer fits by luck, so they are pooled
TRIED = 16    # most frequent answers that may be the best constant one
JUDGED = 5000  # questions of a family that each of them is tried on


def with_priors(items: Sequence[Item]) -> list[Item]:
    """Return `items` with the `chance` of a guesser who knows the answers to each wording.

    Where the chance of the question itself is higher, it stays.
    """
    raised = []
    for item, prior in zip(items, priors(items), strict=True):
        chance = max(item.question.chance, prior)
        question = dataclasses.replace(item.question, chance=chance)
        raised.append(dataclasses.replace(item, question=question))
    return raised


def priors(items: Sequence[Item]) -> list[float]:
    """Return how often the best single answer to the wording of each of `items` is right.

    Wordings of fewer than `FEW` questions are one group in their family.
    """
    wordings = [(item.question.family, plain(item.question.text)) for item in items]
    count = Counter(wordings)
    # Rare wordings fall to None: of one question the best answer is always right.
    groups = [(family, text if count[family, text] >= FEW else None) for family, text in wordings]
    members = defaultdict(list)
    for item, group in zip(items, groups, strict=True):
        members[group].append(item)
    rates = {group: _best_rate(inside) for group, inside in members.items()}
    return [rates[group] for group in groups]


def _best_rate(items):
    """Return the share of `items` that accept the answer which most of them accept."""
    (_, most), = _tally(items).most_common(1)
    return most / len(items)


def _tally(items):
    """Return how many of `items` accept each answer, as it is compared."""
    tally = Counter()
    for item in items:
        answers = item.example.asked.right.answers
        if len(set(answers)) < len(answers):  # of several people: the most frequent is right
            answers = (item.question.answer,)
        tally.update({plain(answer) for answer in answers})
    return tally


def baselines(items: Sequence[Item]) -> dict[str, dict[str, float | int]]:
    """Return {family: what each guesser earns} of the items of benchmarks."""
    families = defaultdict(list)
    prior = defaultdict(list)
    for item, rate in zip(items, priors(items), strict=True):
        families[item.question.family].append(item)
        prior[item.question.family].append(rate)
    floors = {}
    for family, inside in families.items():
        floors[family] = {
            'informed': float(np.mean([item.question.chance for item in inside])),
            'majority': float(np.mean(prior[family])),
            'constant': _constant(inside),
            'n': len(inside),
        }
    return floors


def _constant(items):
    """Return the mean score of the best constant answer, as the items' own judges score it."""
    # Every k-th item, k rounded up, so that at most `JUDGED` stay.
    some = items[::-(-len(items) // JUDGED)]
    golds = Counter(item.question.answer for item in items)
    means = []
    for answer, _ in golds.most_common(TRIED):
        scores = [item.judge(answer, False)[2] for item in some]
        means.append(float(np.mean(scores)))
    return max(means)

"""What no skill at all reaches in a family: the floor that every 'above chance' is above.

It is the highest of three guessers. The informed guess knows what each question gives away
(`chance` of the items). The majority answer is one answer for each wording of a question, as
`data.baselines` of `study.json` holds it. The constant answer is one answer for the whole family.
It is stored there as well, and found here among the golds and all replies of the items themselves:
so a study of any age and any scorer has it, and a model that always answers alike cannot beat it.
"""
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from downscale.results.study import Paired
from downscale.statistics import bootstrap

if TYPE_CHECKING:
    from downscale.analysis.measures import Scored

GUESSERS = {'chance': 'informed guess', 'majority': 'majority answer',
            'constant': 'constant answer'}


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The highest guesser of every family, as one row of `means`.

    `guesses` maps each of `GUESSERS` to its accuracy by family (NaN where nothing tells it),
    `names` a family to its highest guesser.
    """
    means: bootstrap.Means
    guesses: dict
    names: dict


def floor(s: 'Scored', paired: Paired) -> Floor:
    """Return the `Floor` of the items of a pairing, made once for the same items."""
    key = 'floor', paired.key
    if key not in s.made:
        s.made[key] = _floor(s, paired)
    return s.made[key]


def _floor(s, paired):
    means = bootstrap.group_means([paired.chance, _constant(s, paired)], paired.task,
                                  paired.cluster_id, s.resamples)
    stored = s.study.meta.get('data', {}).get('baselines', {})
    known = [stored.get(task, {}) for task in means.groups]
    majority = np.array([guesses.get('majority', np.nan) for guesses in known])
    constant = np.array([guesses.get('constant', np.nan) for guesses in known])
    guesses = {'chance': means.value[0], 'majority': majority,
               'constant': np.fmax(means.value[1], constant)}
    rows = {'chance': 0, 'constant': 1}   # of `means`
    values = []
    draws = []
    names = {}
    for column, task in enumerate(means.groups):
        best = max(GUESSERS, key=lambda name: np.nan_to_num(guesses[name][column], nan=-1))
        highest = guesses[best][column]
        values.append(highest)
        names[task] = GUESSERS[best]
        row = rows.get(best)
        if row is not None and highest == means.value[row, column]:
            draws.append(means.draws[:, row, column])
        else:
            # What is stored is of other questions of the same data, so that it is drawn as it is.
            draws.append(np.full(len(means.draws), highest))
    highest = replace(means, value=np.array(values)[None], draws=np.stack(draws, 1)[:, None])
    return Floor(means=highest, guesses=guesses, names=names)


def _constant(s, paired):
    """Return what the best constant answer of its family scores on every item [items]."""
    answer, item, worth = _answers(s, paired)
    # 1. What each answer is worth in each family, summed over its items.
    _, family = np.unique(paired.task, return_inverse=True)
    families = family.max() + 1
    pairs, slot = np.unique(answer * families + family[item], return_inverse=True)
    total = np.bincount(slot, worth)
    # 2. The best answer of each family: in ascending order the highest comes last.
    best = {}
    for pair in np.argsort(total, kind='stable'):
        best[int(pairs[pair] % families)] = pair
    # 3. Its worth on every item; 0 where it was neither right nor said.
    scores = np.zeros(len(paired.item_id))
    chosen = np.isin(slot, list(best.values()))
    scores[item[chosen]] = worth[chosen]
    return scores


def _answers(s, paired):
    """Return (answer, item, worth) as columns, a row for each answer that is known for an item.

    Answers are numbers of texts and items places in `paired`. An answer is worth 1 where it is the
    gold, and else what any reply of that text has scored.
    """
    items = s.study.items
    count = len(paired.item_id)
    # 1. The place of each row's item in the pairing, -1 where it is not paired.
    _, first, place = np.unique(s.study.codes['item_id'], return_index=True, return_inverse=True)
    names = items['item_id'][first].astype(str)
    at = np.minimum(np.searchsorted(paired.item_id, names), count - 1)
    at = np.where(paired.item_id[at] == names, at, -1)[place]
    asked = at >= 0
    # 2. Texts as numbers, replies and golds in one numbering.
    numbers = {}
    columns = []
    for name in ('pred', 'gold'):
        columns.append([numbers.setdefault(_plain(text), len(numbers))
                        for text in items[name][asked]])
    # 3. The highest score of each answer to each item.
    key = np.concatenate(columns).astype(np.int64) * count + np.tile(at[asked], 2)
    key, slot = np.unique(key, return_inverse=True)
    worth = np.zeros(len(key))
    np.maximum.at(worth, slot, np.concatenate([items['score'][asked], np.ones(asked.sum())]))
    answer, item = np.divmod(key, count)
    return answer, item, worth


def _plain(text):
    """Return an answer as scorers compare it: neither case nor spaces matter."""
    return ' '.join(text.casefold().split())

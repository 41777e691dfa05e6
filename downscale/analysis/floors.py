"""What no skill at all reaches in a family: the floor that every 'above chance' is above.

It is the highest of three guessers. The informed guess knows what each question gives away
(`chance` of the items). The majority answer is one answer for each wording of a question, as
`data.baselines` of `study.json` holds it. The constant answer is one answer for the whole family:
stored there as well, and found here among the golds and all replies of the items themselves, so
that a study of any age and any scorer has it, and whoever answers alike cannot be above it.
"""
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from downscale.results.study import Paired
from downscale.statistics import bootstrap

if TYPE_CHECKING:
    from downscale.analysis.measures import Scored

GUESSERS = {'chance': 'informed guess', 'majority': 'majority answer',
            'constant': 'constant answer'}


@dataclass(frozen=True)
class Floor:
    """`means`: the highest guesser of every family as one row. `guesses` maps each of `GUESSERS` to
    its accuracy by family (NaN where nothing tells it), `names` a family to its highest guesser.
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
    told = {name: np.array([stored.get(task, {}).get(name, np.nan) for task in means.groups])
            for name in ('majority', 'constant')}
    guesses = {'chance': means.value[0], 'majority': told['majority'],
               'constant': np.fmax(means.value[1], told['constant'])}
    # What is stored is of other questions of the same data, so that it is drawn as it is.
    draws = {'chance': means.draws[:, 0], 'majority': None,
             'constant': means.draws[:, 1]}
    value = []
    drawn = []
    names = {}
    for column, task in enumerate(means.groups):
        best = max(GUESSERS, key=lambda name: np.nan_to_num(guesses[name][column], nan=-1))
        names[task] = GUESSERS[best]
        value.append(guesses[best][column])
        own = best != 'majority' and value[-1] == means.value[int(best == 'constant'), column]
        drawn.append(draws[best][:, column] if own else np.full(len(means.draws), value[-1]))
    return Floor(bootstrap.Means(means.groups, np.array(value)[None], np.stack(drawn, 1)[:, None],
                                 means.n, means.clusters), guesses, names)


def _constant(s, paired):
    """Return what the best constant answer of its family scores on every item [items].

    An answer is worth 1 where it is the gold, and else what any reply of that text has scored.
    """
    items = s.study.items
    count = len(paired.item_id)
    ranks, first, place = np.unique(s.study.codes['item_id'], return_index=True,
                                    return_inverse=True)
    names = items['item_id'][first].astype(str)
    at = np.minimum(np.searchsorted(paired.item_id, names), count - 1)
    at = np.where(paired.item_id[at] == names, at, -1)[place]
    answers = {}
    asked = at >= 0
    said, gold = ([answers.setdefault(_plain(text), len(answers)) for text in items[name][asked]]
                  for name in ('pred', 'gold'))
    key = np.concatenate([said, gold]).astype(np.int64) * count + np.tile(at[asked], 2)
    key, slot = np.unique(key, return_inverse=True)
    worth = np.zeros(len(key))
    np.maximum.at(worth, slot, np.concatenate([items['score'][asked], np.ones(asked.sum())]))
    _, family = np.unique(paired.task, return_inverse=True)
    answer, item = np.divmod(key, count)
    pair = answer * (family.max() + 1) + family[item]   # an answer in a family
    pairs, slot = np.unique(pair, return_inverse=True)
    total = np.bincount(slot, worth)
    best = {}
    for k in np.argsort(total, kind='stable'):
        best[int(pairs[k] % (family.max() + 1))] = k    # the highest comes last
    found = np.zeros(count)
    chosen = np.isin(slot, list(best.values()))
    found[item[chosen]] = worth[chosen]
    return found


def _plain(text):
    """Return an answer as scorers compare it: neither case nor spaces matter."""
    return ' '.join(text.casefold().split())

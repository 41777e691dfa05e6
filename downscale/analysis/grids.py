"""Perception x reasoner pairs of a study as arrays: marginal curves, corners, items by class."""
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from downscale.analysis import measures
from downscale.analysis.measures import MODES, Missing, Scored
from downscale.results.study import Cell, pair
from downscale.statistics import bootstrap
from downscale.statistics.shapley import CLASSES, Shares, attribute, partition

SIDES = ('perception', 'reasoner')
GOLD = 'gold'
BRIEF = 'brief'
Panel = dict[tuple[str, str], list[Cell]]  # by the sizes of perception (or GOLD) and reasoner


@dataclass(frozen=True)
class Corners:
    """The four cells of (small, large) x (small, large) of one kind of text and mode, per seed.

    `seeds` maps a seed to {(p, r): cell} with 0 for small and 1 for large, and with p = GOLD where
    the same reasoners answered from the true text. `left_out` are seeds without all four.
    """
    perception: tuple
    reasoner: tuple
    seeds: dict
    left_out: tuple

    def groups(self, keys: Iterable[tuple[int | str, int]]) -> list[list[Cell]]:
        """Return the cells of each key, over seeds."""
        return [[cells[key] for cells in self.seeds.values()] for key in keys]

    @property
    def gold(self) -> bool:
        """Whether both reasoners answered from the true text under every seed."""
        return all((GOLD, r) in cells for cells in self.seeds.values() for r in (0, 1))


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Items by class, in families and 'macro': {family: {class: Interval}}.

    `share` of items, `change` it adds to the drop (all classes: exactly the drop), `drop` by
    family. `gold` maps a class to the accuracy of its items on the true text (large reasoner,
    small reasoner): a perception loss is one if the first is high, a reasoning loss if the second
    is low. It is empty without gold answers. `items` counts them by class, over all families.
    """
    share: dict
    change: dict
    drop: dict
    gold: dict
    items: dict


CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


def panels(s: Scored) -> dict[tuple[str, str], Panel]:
    """Return {(kind of text, mode): {(p size or GOLD, r size): cells}} of all that was evaluated.

    `Missing` when that is none.
    """
    found = {(kind, mode): measures.pair_groups(s, kind, thinking)
             for kind in measures.TEXTS for mode, thinking in MODES.items()}
    found = {name: groups for name, groups in found.items() if groups}
    if not found:
        raise Missing('no perception x reasoner pairs and no gold texts were evaluated')
    return found


def accuracies(s: Scored, groups: Panel) -> dict[tuple[str, str], dict[str, bootstrap.Interval]]:
    """Return {(p size or GOLD, r size): {family or 'macro': Interval}} of one panel."""
    _, alone = measures.each(s, list(groups.values()))
    return {key: _by_family(bootstrap.with_macro(means), np.ones(1), (0, 1))
            for key, means in zip(groups, alone, strict=True)}


def curves(s: Scored,
           groups: Panel) -> dict[str, dict[str, dict[str, dict[str, bootstrap.Interval]]]]:
    """Return {side: {measure: {size: {family or 'macro': Interval}}}} of one panel.

    'at largest': accuracy with the other side at its largest size. 'mean': the mean over all sizes
    of the other side. 'drop at largest' and 'drop of mean': the largest size minus this one. A
    measure is absent where pairs that it needs are.
    """
    keys = list(groups)
    order = [size.name for size in s.sizes]
    sizes = [[name for name in order if any(key[side] == name for key in keys)]
             for side in (0, 1)]
    found = {}
    if not all(sizes):
        return found
    for side, name in enumerate(SIDES):
        own = sizes[side]
        other = sizes[1 - side]
        found[name] = {}
        for measure, levels in (('at largest', other[-1:]), ('mean', other)):
            rows = {size: [(size, level) if side == 0 else (level, size) for level in levels]
                    for size in own}
            weights = {size: _weights(keys, row) for size, row in rows.items()
                       if all(key in keys for key in row)}
            found[name][measure] = {size: _weighted(s, groups, weight, (0, 1))
                                    for size, weight in weights.items()}
            if own[-1] in weights:
                word = 'drop at largest' if measure == 'at largest' else 'drop of mean'
                found[name][word] = {
                    size: _weighted(s, groups, weights[own[-1]] - weight, (-1, 1))
                    for size, weight in weights.items() if size != own[-1]}
    return found


def _weighted(s, groups, weights, bounds):
    """Return a weighted sum of accuracies by family, over the seeds of those that weigh
    anything.
    """
    used = np.flatnonzero(weights)
    cells = list(groups.values())
    _, means, _ = measures.means_of(s, [cells[row] for row in used])
    return _by_family(bootstrap.with_macro(means), weights[used], bounds)


def _weights(keys, row):
    weights = np.zeros(len(keys))
    weights[[keys.index(key) for key in row]] = 1 / len(row)
    return weights


def _by_family(means, weights, bounds):
    return {task: bootstrap.contrast(means, weights, column, bounds)
            for column, task in enumerate(means.groups)}


def corners(s: Scored, groups: Panel) -> Corners:
    """Return the `Corners` of one panel between its smallest and largest sizes; `Missing` without
    them.

    Seeds are compared with themselves: a reasoner reads what perception of its seed has written.
    """
    order = [size.name for size in s.sizes]
    ends = []
    for side, what in enumerate(SIDES):
        have = [name for name in order if any(key[side] == name for key in groups)]
        if len(have) < 2:
            raise Missing(f'an attribution needs two sizes of the {what}, found {len(have)}')
        ends.append((have[0], have[-1]))
    seed_of = {run['run_id']: run['seed'] for run in s.study.meta['runs']}
    seeds = {}
    for p in (GOLD, 0, 1):
        for r in (0, 1):
            key = (p if p == GOLD else ends[0][p], ends[1][r])
            for cell in groups.get(key, ()):
                if p == GOLD or seed_of[cell.p_run] == seed_of[cell.r_run]:
                    seeds.setdefault(seed_of[cell.r_run], {})[p, r] = cell
    whole = {seed: cells for seed, cells in sorted(seeds.items()) if set(CORNERS) <= set(cells)}
    if not whole:
        raise Missing('no seed has all four pairs of smallest and largest sizes')
    # pyrefly: ignore[bad-argument-type]
    return Corners(*ends, whole, tuple(sorted(set(seeds) - set(whole))))


def shares(s: Scored, found: Corners, scale: str = 'accuracy') -> dict[str, Shares]:
    """Return {family or 'macro': Shares} of perception and reasoner between the corners of one
    panel.
    """
    return attribute(_corner_means(s, found.groups(CORNERS)), SIDES, scale)


def all_factors(s: Scored, found: dict[tuple[str, str], Corners],
                scale: str = 'accuracy') -> tuple[tuple[str, ...], dict[str, Shares]]:
    """Return (names, {family or 'macro': Shares}) with thinking and extraction as further factors.

    `found` maps (kind of text, mode) to Corners. Of thinking and extraction those count for which
    every corner was evaluated, over the seeds that all have; `Missing` when that is neither. Brief
    captions are no level of a factor, and left out.
    """
    found = {name: panel for name, panel in found.items() if name[0] != BRIEF}
    kinds, modes = (sorted({name[place] for name in found}) for place in (0, 1))
    if len(found) != len(kinds) * len(modes) or len(found) == 1:
        raise Missing('thinking and extraction were not both on and off at all corners')
    names = (*SIDES, *(['thinking'] if len(modes) > 1 else []),
             *(['extraction'] if len(kinds) > 1 else []))
    same = set.intersection(*(set(panel.seeds) for panel in found.values()))
    ends = {(panel.perception, panel.reasoner) for panel in found.values()}
    if not same or len(ends) > 1:
        raise Missing('the panels have no seed, or not the same sizes, in common')
    groups = [[found[kind, mode].seeds[seed][corner] for seed in sorted(same)]
              for corner in CORNERS for mode in modes for kind in kinds]
    return names, attribute(_corner_means(s, groups), names, scale)


def _corner_means(s, groups):
    return measures.means_of(s, groups)[1]


def items(s: Scored, found: Corners) -> Partition:
    """Return the `Partition` of the items of one panel, averaged over seeds."""
    keys = (*CORNERS, *(((GOLD, 0), (GOLD, 1)) if found.gold else ()))
    paired = pair(s.study, [[cells[key]] for cells in found.seeds.values() for key in keys])
    answers = paired.scores.reshape(len(found.seeds), len(keys), -1)
    split = [partition(one[:4].reshape(2, 2, -1)) for one in answers]
    rows = np.stack([[*weight, *change, change.sum(axis=0)] for weight, change in split])
    count = rows.shape[1]
    weight = np.mean([weight for weight, _ in split], axis=0)
    means = bootstrap.group_means(rows.reshape(-1, rows.shape[2]), paired.task, paired.cluster_id,
                                  s.resamples)
    planned = measures.planned_seeds(s, found.groups(CORNERS))
    means = bootstrap.with_macro(bootstrap.over_seeds(means, len(split), s.resamples, planned))
    share = {}
    moved = {}
    drop = {}
    for column, task in enumerate(means.groups):
        one = [measures.one(means, row, column, bounds=(-1, 1)) for row in range(count)]
        share[task] = {name: measures.one(means, row, column) for row, name in enumerate(CLASSES)}
        moved[task] = dict(zip(CLASSES, one[len(CLASSES):-1], strict=True))
        drop[task] = one[-1]
    gold = {}
    if found.gold:
        right = {r: np.mean([here * one[4 + r] for (here, _), one in zip(
            split, answers, strict=True)], axis=0) for r in (0, 1)}
        gold = {name: tuple(_gold(s, paired, right[r][row], weight[row]) for r in (1, 0))
                for row, name in enumerate(CLASSES)}
    return Partition(
        share=share,
        change=moved,
        drop=drop,
        gold=gold,
        items=dict(zip(CLASSES, weight.sum(axis=1).tolist(), strict=True)),
    )


def _gold(s, paired, right, weight):
    value, draws = bootstrap.ratio(right, weight, paired.cluster_id, s.resamples)
    here = weight > 0
    return bootstrap.interval(value, draws, int(here.sum()), len(set(paired.cluster_id[here])),
                              bounds=(0, 1))


def gold_drops(s: Scored, found: Corners) -> dict[str, dict[str, bootstrap.Interval]]:
    """Return what the texts and the reasoner cost apart: {measure: {family or 'macro': Interval}}.

    'reasoner on gold text': large minus small reasoner, both on the true text. 'text of large
    perception' and 'of small': true text minus theirs, with the large reasoner. Empty without gold.
    """
    if not found.gold:
        return {}
    keys = ((GOLD, 1), (GOLD, 0), (1, 1), (0, 1))
    means = bootstrap.with_macro(_corner_means(s, found.groups(keys)))
    return {name: _by_family(means, np.array(weights), (-1, 1)) for name, weights in (
        ('reasoner on gold text', (1., -1, 0, 0)), ('text of large perception', (1., 0, -1, 0)),
        ('text of small perception', (1., 0, 0, -1)))}


def flip_rate(s: Scored, found: Corners) -> float | None:
    """Return the share of answers that would differ in another repeat; None without repeats.

    Items below this share of the large pair may have changed class by sampling alone.
    """
    rates = []
    for cells in found.seeds.values():
        rows = s.study.cells[cells[1, 1]]
        _, place, repeats = np.unique(s.study.items['item_id'][rows].astype(str),
                                      return_inverse=True, return_counts=True)
        share = np.bincount(place, s.study.items['score'][rows]) / repeats
        many = repeats > 1
        rates += (2 * share * (1 - share) * repeats / np.maximum(repeats - 1, 1))[many].tolist()
    return float(np.mean(rates)) if rates else None

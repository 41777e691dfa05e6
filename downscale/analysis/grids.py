"""Perception x reasoner pairs of a study: accuracies, drops of each side, corners, items by class.

A panel holds the pairs of one kind of text and one mode.
"""
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from downscale.analysis import measures
from downscale.analysis.completeness import completion
from downscale.analysis.measures import GOLD, MODES, Missing, Scored
from downscale.results.study import Cell, pair
from downscale.results.text_kinds import CAPTION, EXTRACTION, TEXT_KINDS
from downscale.statistics import bootstrap
from downscale.statistics.shapley import CLASSES, Shares, attribute, partition

SIDES = ('perception', 'reasoner')
LEVELS = (CAPTION, EXTRACTION)   # of the factor extraction
Panel = dict[tuple[str, str], list[Cell]]  # by the sizes of perception (or GOLD) and reasoner


@dataclass(frozen=True, kw_only=True)
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
        return [self._over_seeds(key) for key in keys]

    def _over_seeds(self, key):
        return [cells[key] for cells in self.seeds.values()]

    @property
    def gold(self) -> bool:
        """Whether both reasoners answered from the true text under every seed."""
        return all({(GOLD, 0), (GOLD, 1)} <= set(cells) for cells in self.seeds.values())


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
    """Return {(kind of text, mode): its panel} of all that was evaluated.

    `Missing` when that is none.
    """
    by_name = {}
    for kind, mode in itertools.product(TEXT_KINDS, MODES):
        groups = measures.pair_groups(s, kind, MODES[mode])
        if groups:
            by_name[kind, mode] = groups
    if not by_name:
        raise Missing('no perception x reasoner pairs and no gold texts were evaluated')
    return by_name


def accuracies(s: Scored, groups: Panel) -> dict[tuple[str, str], dict[str, bootstrap.Interval]]:
    """Return {(p size or GOLD, r size): {family or 'macro': Interval}} of one panel."""
    _, alone = measures.each(s, list(groups.values()))
    return {key: _by_family(means, np.ones(1), (0, 1))
            for key, means in zip(groups, alone, strict=True)}


def grid(s: Scored) -> dict[str, Any]:
    """Return, for every panel, the macro accuracy of its pairs and what shrinking a side costs."""
    return {', '.join(name): _panel(s, groups) for name, groups in panels(s).items()}


def _panel(s, groups):
    accuracy = accuracies(s, groups)
    p_sizes, r_sizes = _sizes(s, groups)
    cells = [{'p': p, 'r': r, 'accuracy': accuracy[p, r]['macro'],
              'completion': completion(s, groups[p, r])[1]} for p, r in sorted(groups)]
    return {'p_sizes': p_sizes, 'r_sizes': r_sizes, 'cells': cells,
            'marginal': _marginal(s, groups, p_sizes, r_sizes)}


def _sizes(s, groups):
    """Return the sizes of perception and those of reasoners in one panel, each small to large."""
    # `GOLD` is no size: it is in no list.
    order = [size.name for size in s.sizes]
    perception = {p for p, _ in groups}
    reasoners = {r for _, r in groups}
    return ([name for name in order if name in perception],
            [name for name in order if name in reasoners])


def _marginal(s, groups, p_sizes, r_sizes):
    """Return the drop of each side, with the other side held at its largest size."""
    if not p_sizes or not r_sizes:
        return {}
    top = (p_sizes[-1], r_sizes[-1])
    low = {'perception': (p_sizes[0], r_sizes[-1]), 'reasoner': (p_sizes[-1], r_sizes[0])}
    drops = {}
    for side, key in low.items():
        if key != top and key in groups and top in groups:
            families = _weighted(s, groups, {top: 1, key: -1}, (-1, 1))
            drops[side] = {'macro': families.pop('macro'), 'families': families}
    if len(drops) == 2:
        # Both drops start at the same pair, so their difference needs the two shrunk pairs only.
        between = _weighted(s, groups, {low['reasoner']: 1, low['perception']: -1}, (-1, 1))
        drops['perception_minus_reasoner'] = between['macro']
    return drops


def curves(s: Scored,
           groups: Panel) -> dict[str, dict[str, dict[str, dict[str, bootstrap.Interval]]]]:
    """Return {side: {measure: {size: {family or 'macro': Interval}}}} of one panel.

    'at largest': accuracy with the other side at its largest size. 'mean': the mean over all sizes
    of the other side. 'drop at largest' and 'drop of mean': the largest size minus this one. A
    measure is absent where pairs that it needs are.
    """
    sizes = _sizes(s, groups)
    if not all(sizes):
        return {}
    by_side = {}
    for side, name in enumerate(SIDES):
        others = sizes[1 - side]
        by_side[name] = {
            **_curve(s, groups, side, sizes[side], others[-1:], ('at largest', 'drop at largest')),
            **_curve(s, groups, side, sizes[side], others, ('mean', 'drop of mean'))}
    return by_side


def _curve(s, groups, side, sizes, others, names):
    """Return accuracies and drops {name: {size: {family or 'macro': Interval}}} of one side.

    Each size is taken with the mean over `others`, sizes of the other side.
    """
    weights = {}
    for size in sizes:
        row = [(size, other) if side == 0 else (other, size) for other in others]
        if all(key in groups for key in row):
            weights[size] = {key: 1 / len(row) for key in groups if key in row}
    accuracy, drop = names
    curve = {accuracy: {size: _weighted(s, groups, weight, (0, 1))
                        for size, weight in weights.items()}}
    largest = sizes[-1]
    if largest not in weights:
        return curve
    curve[drop] = {}
    for size in weights:
        if size != largest:
            both = weights[largest] | {key: -weight for key, weight in weights[size].items()}
            # Sums are taken in the order of the panel: another one would round otherwise.
            both = {key: both[key] for key in groups if key in both}
            curve[drop][size] = _weighted(s, groups, both, (-1, 1))
    return curve


def _weighted(s, groups, weights, bounds):
    """Return a weighted sum of accuracies by family, over the seeds that all its pairs have.

    `weights` maps the pairs to their weight.
    """
    _, means = measures.means_of(s, [groups[key] for key in weights])
    return _by_family(means, np.array(list(weights.values()), dtype=float), bounds)


def _by_family(means, weights, bounds):
    """Return {family or 'macro': Interval} of a weighted sum of the rows of `means`."""
    means = bootstrap.with_macro(means)
    return {task: bootstrap.contrast(means, weights, column, bounds)
            for column, task in enumerate(means.groups)}


def corners(s: Scored, groups: Panel) -> Corners:
    """Return the `Corners` of one panel between its smallest and largest sizes.

    Seeds are compared with themselves: a reasoner reads what perception of its seed has written.
    `Missing` where a side has one size only, or no seed all four pairs.
    """
    ends = []
    for side, sizes in zip(SIDES, _sizes(s, groups), strict=True):
        if len(sizes) < 2:
            raise Missing(f'an attribution needs two sizes of the {side}, found {len(sizes)}')
        ends.append((sizes[0], sizes[-1]))
    perception, reasoner = ends
    seed_of = measures.seed_of_run(s)
    seeds = {}
    for p, r in itertools.product((GOLD, 0, 1), (0, 1)):
        key = (p if p == GOLD else perception[p], reasoner[r])
        for cell in groups.get(key, ()):
            # A pair across seeds would mix two trainings.
            if p == GOLD or seed_of[cell.p_run] == seed_of[cell.r_run]:
                seeds.setdefault(seed_of[cell.r_run], {})[p, r] = cell
    whole = {seed: cells for seed, cells in sorted(seeds.items()) if set(CORNERS) <= set(cells)}
    if not whole:
        raise Missing('no seed has all four pairs of smallest and largest sizes')
    return Corners(perception=perception, reasoner=reasoner, seeds=whole,
                   left_out=tuple(sorted(set(seeds) - set(whole))))


def shares(s: Scored, ends: Corners, scale: str = 'accuracy') -> dict[str, Shares]:
    """Return {family or 'macro': Shares} of perception and reasoner between the ends of a panel."""
    return attribute(_corner_means(s, ends.groups(CORNERS)), SIDES, scale)


def all_factors(s: Scored, ends: dict[tuple[str, str], Corners],
                scale: str = 'accuracy') -> tuple[tuple[str, ...], dict[str, Shares]]:
    """Return (names, {family or 'macro': Shares}) with thinking and extraction as further factors.

    `ends` maps (kind of text, mode) to Corners, other kinds than `LEVELS` unused. Of both factors
    those count of which all corners were evaluated, over the seeds that all have; else `Missing`.
    """
    ends = {name: panel for name, panel in ends.items() if name[0] in LEVELS}
    # In this order 'caption' and 'direct' are the small levels of their factors.
    kinds = sorted({kind for kind, _ in ends})
    modes = sorted({mode for _, mode in ends})
    if len(ends) != len(kinds) * len(modes) or len(ends) < 2:
        raise Missing('thinking and extraction were not both on and off at all corners')
    names: tuple[str, ...] = SIDES
    if len(modes) > 1:
        names += ('thinking',)
    if len(kinds) > 1:
        names += ('extraction',)
    # All panels must share the corners, or a factor would carry the change of a size.
    common = set.intersection(*(set(panel.seeds) for panel in ends.values()))
    sizes = {(panel.perception, panel.reasoner) for panel in ends.values()}
    if not common or len(sizes) > 1:
        raise Missing('the panels have no seed, or not the same sizes, in common')
    # The last factor varies fastest, as `attribute` wants it.
    groups = []
    for corner, mode, kind in itertools.product(CORNERS, modes, kinds):
        panel = ends[kind, mode]
        groups.append([panel.seeds[seed][corner] for seed in sorted(common)])
    return names, attribute(_corner_means(s, groups), names, scale)


def _corner_means(s, groups):
    return measures.means_of(s, groups)[1]


def items(s: Scored, ends: Corners) -> Partition:
    """Return the `Partition` of the items of one panel, averaged over seeds."""
    keys = (*CORNERS, (GOLD, 0), (GOLD, 1)) if ends.gold else CORNERS
    # 1. Score every item in every pair, seed by seed: [seeds, pairs, items].
    cells = [seeded[key] for seeded, key in itertools.product(ends.seeds.values(), keys)]
    paired = pair(s.study, [[cell] for cell in cells])
    answers = paired.scores.reshape(len(ends.seeds), len(keys), -1)
    # 2. Split each seed's items: how much of a class an item is, and what that adds to the drop.
    split = [partition(scores[:4].reshape(2, 2, -1)) for scores in answers]
    # [seeds, classes then their changes then the drop, items]
    rows = np.stack([[*weight, *change, change.sum(axis=0)] for weight, change in split])
    weight = np.mean([weight for weight, _ in split], axis=0)
    # 3. Take means over families and seeds; a row for each class, each change, and the drop.
    means = bootstrap.group_means(rows.reshape(-1, rows.shape[2]), paired.task, paired.cluster_id,
                                  s.resamples)
    planned = measures.planned_seeds(s, ends.groups(CORNERS))
    means = bootstrap.with_macro(bootstrap.over_seeds(means, len(split), s.resamples, planned))
    share = {}
    moved = {}
    drop = {}
    for column, task in enumerate(means.groups):
        share[task] = {name: measures.one(means, row, column) for row, name in enumerate(CLASSES)}
        moved[task] = {name: measures.one(means, row, column, bounds=(-1, 1))
                       for row, name in enumerate(CLASSES, len(CLASSES))}
        drop[task] = measures.one(means, rows.shape[1] - 1, column, bounds=(-1, 1))
    return Partition(
        share=share,
        change=moved,
        drop=drop,
        gold=_gold(s, paired, answers[:, 4:], split, weight) if ends.gold else {},
        items=dict(zip(CLASSES, weight.sum(axis=1).tolist(), strict=True)),
    )


def _gold(s, paired, answers, split, weight):
    """Return {class: (Interval of the large reasoner, of the small one)} on the true text.

    `answers` [seeds, reasoners, items] has the small reasoner first; `weight` [classes, items] is
    the mean over seeds of that in `split`.
    """
    # Weights of an item differ between seeds: its answers count under those of their own seed.
    right = []
    for reasoner in (0, 1):
        right.append(np.mean([of_class * scores[reasoner] for (of_class, _), scores in zip(
            split, answers, strict=True)], axis=0))
    small, large = right
    return {name: (_accuracy_within(s, paired, large[row], weight[row]),
                   _accuracy_within(s, paired, small[row], weight[row]))
            for row, name in enumerate(CLASSES)}


def _accuracy_within(s, paired, right, weight):
    """Return the accuracy of the items of a class; `right` and `weight` are [items]."""
    value, draws = bootstrap.ratio(right, weight, paired.cluster_id, s.resamples)
    inside = weight > 0
    return bootstrap.interval(value, draws, int(inside.sum()),
                              len(set(paired.cluster_id[inside])), bounds=(0, 1))


def gold_drops(s: Scored, ends: Corners) -> dict[str, dict[str, bootstrap.Interval]]:
    """Return what the texts and the reasoner cost apart: {measure: {family or 'macro': Interval}}.

    'reasoner on gold text': large minus small reasoner, both on the true text. 'text of large
    perception' and 'of small': true text minus theirs, with the large reasoner. Empty without gold.
    """
    if not ends.gold:
        return {}
    means = _corner_means(s, ends.groups(((GOLD, 1), (GOLD, 0), (1, 1), (0, 1))))
    weights = {'reasoner on gold text': (1., -1, 0, 0),
               'text of large perception': (1., 0, -1, 0),
               'text of small perception': (1., 0, 0, -1)}
    return {name: _by_family(means, np.array(row), (-1, 1)) for name, row in weights.items()}


def flip_rate(s: Scored, ends: Corners) -> float | None:
    """Return the share of answers that would differ in another repeat; None without repeats.

    Items below this share of the large pair may have changed class by sampling alone.
    """
    rates = []
    for cells in ends.seeds.values():
        rows = s.study.cells[cells[1, 1]]
        _, place, repeats = np.unique(s.study.items['item_id'][rows].astype(str),
                                      return_inverse=True, return_counts=True)
        share = np.bincount(place, s.study.items['score'][rows]) / repeats
        many = repeats > 1
        # Two answers differ with 2 p (1 - p), which n repeats show short by (n - 1) / n.
        rates += (2 * share * (1 - share) * repeats / np.maximum(repeats - 1, 1))[many].tolist()
    return float(np.mean(rates)) if rates else None

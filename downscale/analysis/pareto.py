"""Which ways of answering are worth what they cost: the frontier, and how sure it is."""
from typing import Any

import numpy as np

from downscale.analysis import costs, measures
from downscale.analysis.measures import MODES, Missing, Scored
from downscale.results.study import Cell
from downscale.results.text_kinds import TEXT_KINDS
from downscale.statistics import bootstrap, two_way


def ways(s: Scored) -> dict[str, list[Cell]]:
    """Return {name: cells} of every joint model, at once or explained, and of every pair."""
    cells_of = {}
    for size in s.sizes:
        cells = measures.joint_cells(s, size, 'image')
        if cells:
            cells_of[f'joint {size.name}'] = cells
        explained = measures.explained_cells(s, size, 'image')
        if explained and explained != cells:
            cells_of[f'joint {size.name}, explained'] = explained
    for kind in TEXT_KINDS:
        for mode, thinking in MODES.items():
            for (p, r), cells in measures.pair_groups(s, kind, thinking).items():
                if p != 'gold':
                    cells_of[f'{p} -> {r}, {kind}, {mode}'] = cells
    return cells_of


def ways_by_cost(s: Scored, cost: str = 'params') -> dict[str, Any]:
    """Return the ways of answering by their cost, with macro accuracy and place on the frontier.

    A dict of 'cost', 'rows' (dicts way, cost, accuracy, on, probability; cheapest first) and
    'skipped' ({reason: ways}). A way is on the frontier when none that costs as little or less is
    more accurate; `probability` is the share of resamples in which that is so,
    of those that hold pictures of every family.
    """
    priced = []
    cells = []
    skipped = {}
    for name, group in ways(s).items():
        try:
            price = float(np.mean([costs.of_cell(s, cell, cost) for cell in group]))
        except Missing as reason:
            skipped.setdefault(str(reason), []).append(name)
            continue
        priced.append((price, name))
        cells.append(group)
    if len(priced) < 2:
        raise Missing('a frontier needs two ways of answering with a cost; '
                      f'{"; ".join(skipped) or "nobody answered with a picture"}')
    _, of_ways = measures.each(s, cells)
    # `frontier` wants ascending prices; names decide between equal ones.
    order = sorted(range(len(priced)), key=lambda way: priced[way])
    prices = np.array([priced[way][0] for way in order])
    macros = [bootstrap.macro(of_ways[way]) for way in order]
    on = frontier(prices, np.array([means.value[0, 0] for means in macros]))
    draws_BW = np.stack([two_way.sample(means.draws[:, 0, 0], means.over, s.resamples.seed)
                         for means in macros], axis=1)
    # A draw without pictures of some family has no mean over families.
    shares = frontier(prices, draws_BW[np.isfinite(draws_BW).all(axis=1)]).mean(axis=0)
    rows = []
    for place, way in enumerate(order):
        price, name = priced[way]
        rows.append({'way': name, 'cost': price, 'accuracy': measures.one(macros[place], 0, 0),
                     'on': bool(on[place]), 'probability': float(shares[place])})
    return {'cost': cost, 'unit': costs.COSTS[cost], 'skipped': skipped, 'rows': rows}


def frontier(prices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return whether each way is on the frontier: values [..., ways] at ascending prices [ways].

    Of ways that cost the same only the best ones are.
    """
    # Ways of one price are neighbours: from `start` on to before `stop`.
    start = np.searchsorted(prices, prices, side='left')
    stop = np.searchsorted(prices, prices, side='right')
    best = np.maximum.accumulate(values, axis=-1)
    below = np.concatenate([np.full((*values.shape[:-1], 1), -np.inf), best], axis=-1)[..., start]
    # Above all that is cheaper, and as high as any of the same price.
    return (values > below) & (values >= best[..., stop - 1])

"""What the report says of the perception x reasoner pairs beside their accuracies."""
import itertools
from collections.abc import Iterable
from typing import Any

from downscale.analysis import costs, grids, pareto
from downscale.analysis.measures import Missing, Scored
from downscale.results.items import TableError
from downscale.results.text_kinds import BEST_FIRST, BRIEF
from downscale.statistics.shapley import SCALES

PREFERRED = tuple(itertools.product(BEST_FIRST, ('think', 'direct')))


def shares(s: Scored) -> dict[str, Any]:
    """Return Shapley shares and classes of questions of every kind of text and mode that has its
    ends.

    'macro' {setting: Shares of the macro mean}, 'scales' {setting: {scale: the same}}, 'classes'
    {setting: {'share' | 'change': {class: Interval}}} and 'without' {setting: reason}.
    """
    found = {}
    without = {}
    for name, groups in grids.panels(s).items():
        try:
            found[name] = grids.corners(s, groups)
        except (Missing, TableError) as reason:
            without[', '.join(name)] = str(reason)
    if not found:
        raise Missing('; '.join(without.values()))
    named = {', '.join(name): panel for name, panel in found.items()}
    scales = {name: {scale: grids.shares(s, panel, scale)['macro'] for scale in SCALES}
              for name, panel in named.items()}
    macro = {name: of['accuracy'] for name, of in scales.items()}
    try:
        names, of = grids.all_factors(s, found)
        macro[' x '.join(names) + without_brief(found)] = of['macro']
    except (Missing, TableError) as reason:
        without['all factors'] = str(reason)
    classes = {}
    for name, panel in named.items():
        split = grids.items(s, panel)
        classes[name] = {'share': split.share['macro'], 'change': split.change['macro']}
    return {'macro': macro, 'scales': scales, 'classes': classes, 'without': without}


def without_brief(panels: Iterable[tuple[str, Any]]) -> str:
    """Return what a table over all factors says of brief captions, which are in none of them."""
    return ' (brief captions left out)' if any(kind == BRIEF for kind, _ in panels) else ''


def families(s: Scored) -> dict[str, Any]:
    """Return the grid of every family for one kind of text and mode: the first of `PREFERRED` there
    is.
    """
    panels = grids.panels(s)
    for name in PREFERRED:
        groups = {key: cells for key, cells in panels.get(name, {}).items() if key[0] != grids.GOLD}
        if groups:
            by_pair = grids.accuracies(s, groups)
            order = [size.name for size in s.sizes]
            tasks = [task for task in next(iter(by_pair.values())) if task != 'macro']
            return {'panel': ', '.join(name), 'families': {
                task: {key: of[task] for key, of in by_pair.items()} for task in tasks}, **{
                f'{side}_sizes': [size for size in order if any(key[place] == size
                                                                for key in groups)]
                for place, side in enumerate('pr')}}
    raise Missing('no reasoner answered from a text that perception wrote')


def frontiers(s: Scored) -> dict[str, Any]:
    """Return `ways_by_cost` for every cost that the study tells: 'costs' {cost: result},
    'skipped'.
    """
    found = {}
    skipped = {}
    for cost in costs.COSTS:
        try:
            found[cost] = pareto.ways_by_cost(s, cost)
        except (Missing, TableError) as reason:
            skipped[cost] = str(reason)
    if not found:
        raise Missing('; '.join(dict.fromkeys(skipped.values())))
    return {'costs': found, 'skipped': skipped}

"""What the report says of the perception x reasoner pairs beside their accuracies."""
import itertools
from collections.abc import Iterable
from typing import Any

from downscale.analysis import costs, grids, pareto
from downscale.analysis.measures import Missing, Scored
from downscale.results.items import TableError
from downscale.results.text_kinds import BEST_FIRST
from downscale.statistics.shapley import SCALES

# The paper's own chain first: an extraction, and a reasoner that thinks about it.
PREFERRED = tuple(itertools.product(BEST_FIRST, ('think', 'direct')))


def shares(s: Scored) -> dict[str, Any]:
    """Return Shapley shares and classes of questions of every panel with all four corners.

    A setting is the kind of text and mode of a panel. A dict of 'macro' {setting: Shares of the
    macro mean}, 'scales' {setting: {scale: the same}}, 'classes'
    {setting: {'share' | 'change': {class: Interval}}} and 'without' {setting: reason}.
    """
    # 1. The panels that have all four corners; of the others, why not.
    panels = {}
    without = {}
    for name, groups in grids.panels(s).items():
        try:
            panels[name] = grids.corners(s, groups)
        except (Missing, TableError) as reason:
            without[', '.join(name)] = str(reason)
    if not panels:
        raise Missing('; '.join(without.values()))
    # 2. Shares on both scales and classes of questions, panel by panel.
    scales = {}
    classes = {}
    for name, panel in panels.items():
        setting = ', '.join(name)
        scales[setting] = {scale: grids.shares(s, panel, scale)['macro'] for scale in SCALES}
        split = grids.items(s, panel)
        classes[setting] = {'share': split.share['macro'], 'change': split.change['macro']}
    # 3. Text and mode as further factors, where all panels have the same corners.
    macro = {setting: by_scale['accuracy'] for setting, by_scale in scales.items()}
    try:
        names, by_family = grids.all_factors(s, panels)
        macro[' x '.join(names) + left_out(panels)] = by_family['macro']
    except (Missing, TableError) as reason:
        without['all factors'] = str(reason)
    return {'macro': macro, 'scales': scales, 'classes': classes, 'without': without}


def left_out(panels: Iterable[tuple[str, Any]]) -> str:
    """Return a note for a table over all factors, of the kinds of text that are no level of one."""
    kinds = sorted({kind for kind, _ in panels} - set(grids.LEVELS))
    return f' ({", ".join(kinds)} left out)' if kinds else ''


def families(s: Scored) -> dict[str, Any]:
    """Return the grid of every family for the first of `PREFERRED` that is there."""
    panels = grids.panels(s)
    for name in PREFERRED:
        # Gold texts have no size of perception, and so no row in a grid of sizes.
        groups = {key: cells for key, cells in panels.get(name, {}).items() if key[0] != grids.GOLD}
        if groups:
            return {'panel': ', '.join(name), 'families': _by_family(s, groups),
                    'p_sizes': _sizes(s, {p for p, _ in groups}),
                    'r_sizes': _sizes(s, {r for _, r in groups})}
    raise Missing('no reasoner answered from a text that perception wrote')


def _by_family(s, groups):
    """Return {family: {pair: Interval of its accuracy}}, without the mean over families."""
    by_pair = grids.accuracies(s, groups)
    tasks = [task for task in next(iter(by_pair.values())) if task != 'macro']
    table = {}
    for task in tasks:
        table[task] = {pair: accuracy[task] for pair, accuracy in by_pair.items()}
    return table


def _sizes(s, names):
    """Return those of `names` that are sizes of the study, from the smallest on."""
    return [size.name for size in s.sizes if size.name in names]


def frontiers(s: Scored) -> dict[str, Any]:
    """Return the frontier of every cost that the study tells.

    A dict of 'costs' {cost: `ways_by_cost`} and, for the others, 'skipped' {cost: reason}.
    """
    by_cost = {}
    skipped = {}
    for cost in costs.COSTS:
        try:
            by_cost[cost] = pareto.ways_by_cost(s, cost)
        except (Missing, TableError) as reason:
            skipped[cost] = str(reason)
    if not by_cost:
        raise Missing('; '.join(dict.fromkeys(skipped.values())))
    return {'costs': by_cost, 'skipped': skipped}

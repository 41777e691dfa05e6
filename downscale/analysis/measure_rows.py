"""The numbers of `downscale analyze` in long form: one `Row` per number, the same for all verbs.

Each function takes a `Scored` study and returns (rows, notes). What cannot be computed is a note
with its reason.
"""
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from downscale.analysis import dropoff, flips, gate, grids, measures, pareto
from downscale.analysis.completeness import LIMIT, completion
from downscale.analysis.measures import Missing, Scored
from downscale.results.items import TableError
from downscale.statistics import bootstrap, inference
from downscale.statistics.shapley import SCALES

FEW_DISCORDANT = 25   # below this many changed answers a bootstrap is too coarse: Newcombe as well
THRESHOLDS = (.1, .3, .5, .7, .9)


@dataclass(frozen=True)
class Row:
    """One number; `low` and `high` are NaN for numbers without an interval.

    `clusters` are what the interval is over: pictures, families or runs, as `method` says; from
    three `seeds` on it is over seeds too.
    """
    table: str
    setting: str
    family: str
    what: str
    value: float
    low: float = np.nan
    high: float = np.nan
    n: int = 0
    clusters: int = 0
    method: str = ''
    note: str = ''
    seeds: int = 1


def _row(table, setting, family, what, x, note=''):
    if isinstance(x, bootstrap.Interval):
        return Row(table, setting, family, what, x.value, x.low, x.high, x.n, x.clusters,
                   x.method, note, x.seeds)
    return Row(table, setting, family, what, float(x), note=note)


def drop_rows(s: Scored, size: str = 'n_nonembed') -> tuple[list[Row], list[str]]:
    """Return drop-off by four measures, and drop against visual reliance over families."""
    found = dropoff.drops(s, size)
    notes = []
    setting = f'{found["large"]} - {found["small"]}'
    rows = [_row('drop', setting, task, f'slope per decade of {size}' if what == 'slope' else what,
                 x) for task, of in found['drops'].items() for what, x in of.items()]
    try:
        found = dropoff.reliance(s)
    except Missing as reason:
        return rows, [*notes, f'skipped: {reason}']
    for condition, relied in found['conditions'].items():
        rows += [_row('reliance', f'image - {condition}', task, 'reliance', x)
                 for task, x in relied.items()]
        if condition not in found['relation']:
            notes.append(f'skipped: drop against reliance on {condition} needs '
                         f'{dropoff.FEW_TASKS} tasks, found {len(relied)}')
        for split, x in found['relation'].get(condition, {}).items():
            name = f'image - {condition}, {split}'
            rows += [_row('drop against reliance', name, '', 'Spearman', x.spearman),
                     _row('drop against reliance', name, '', 'slope', x.slope)]
    notes += [f'skipped: no {condition} condition for the largest size'
              for condition in found['missing']]
    return rows, notes


def grid_rows(s: Scored) -> tuple[list[Row], list[str]]:
    """Return accuracy of every perception x reasoner pair, and marginal curves of both sides."""
    rows = []
    notes = [gate.gate(s)['line']]
    for name, groups in grids.panels(s).items():
        setting = ', '.join(name)
        for (p, r), of in grids.accuracies(s, groups).items():
            over = completion(s, groups[p, r])[1].over
            rows += [_row('pairs', setting, task, f'{p} -> {r}', x, _unfinished(over, task))
                     for task, x in of.items()]
        for side, of in grids.curves(s, groups).items():
            rows += [_row(f'{side}: {measure}', setting, task, size, x)
                     for measure, sizes in of.items() for size, tasks in sizes.items()
                     for task, x in tasks.items()]
    return rows, notes


def _unfinished(over, task):
    bad = [family for family in over if task in (family, 'macro')]
    return f'over {LIMIT:.0%} unfinished or unparsed: {", ".join(bad)}' if bad else ''


def attribution_rows(s: Scored) -> tuple[list[Row], list[str]]:
    """Return Shapley shares of perception and reasoner with their interaction, and items by
    class.
    """
    rows = []
    notes = [gate.gate(s)['line']]
    found = {}
    for name, groups in grids.panels(s).items():
        try:
            found[name] = panel = grids.corners(s, groups)
            rows += _panel_rows(s, ', '.join(name), panel)
        except (Missing, TableError) as reason:
            notes.append(f'{", ".join(name)}: skipped: {reason}')
            continue
        notes += _panel_notes(s, ', '.join(name), panel)
    if not rows:
        raise Missing('; '.join(notes))
    try:
        for scale in SCALES:
            names, of = grids.all_factors(s, found, scale)
            rows += _share_rows('all factors', ' x '.join(names) + flips.without_brief(found), of,
                                scale)
    except (Missing, TableError) as reason:
        notes.append(f'all factors: skipped: {reason}')
    return rows, notes


def _panel_rows(s, setting, panel):
    rows = []
    for scale in SCALES:
        rows += _share_rows('shares', setting, grids.shares(s, panel, scale), scale)
    split = grids.items(s, panel)
    for table, of in (('items by class', split.share), ('what classes add to the drop',
                                                        split.change)):
        rows += [_row(table, setting, task, what, x) for task, classes in of.items()
                 for what, x in classes.items()]
    rows += [_row('what classes add to the drop', setting, task, 'drop', x)
             for task, x in split.drop.items()]
    rows += [_row('items by class, on gold text', setting, '', f'{what}, {who} reasoner', x)
             for what, pair in split.gold.items()
             for who, x in zip(('large', 'small'), pair, strict=True)]
    rows += [_row('control on gold text', setting, task, what, x)
             for what, of in grids.gold_drops(s, panel).items() for task, x in of.items()]
    return rows


def _share_rows(table, setting, of, scale):
    rows = []
    for task, found in of.items():
        rows += [_row(table, setting, task, f'{name} ({scale})', x)
                 for name, x in (('total', found.total), *found.shares.items())]
        rows += [_row(table, setting, task, f'{" x ".join(group)} ({scale})', x,
                      'interaction larger than an interval' if group in found.flagged else '')
                 for group, x in found.interactions.items()]
    return rows


def _panel_notes(s, setting, panel):
    p = panel.perception
    r = panel.reasoner
    notes = [f'{setting}: perception {p[0]} to {p[1]}, reasoner {r[0]} to {r[1]}, '
             f'seeds {", ".join(map(str, panel.seeds))}'
             + ('' if panel.gold else ', no answers on gold text')]
    if panel.left_out:
        notes.append(f'{setting}: seeds without all four pairs are left out: {panel.left_out}')
    rate = grids.flip_rate(s, panel)
    if rate is not None:
        notes.append(f'{setting}: {rate:.3f} of the large pair\'s answers differ between repeats; '
                     'classes below that share may be sampling')
    for key, cells in zip(grids.CORNERS, panel.groups(grids.CORNERS), strict=True):
        over = completion(s, cells)[1].over
        if over:
            notes.append(f'{setting}: {p[key[0]]} -> {r[key[1]]}: {_unfinished(over, "macro")}')
    return notes


def pareto_rows(s: Scored, cost: str) -> tuple[list[Row], list[str]]:
    """Return cost, accuracy and probability of being on the frontier of every way of answering."""
    found = pareto.ways_by_cost(s, cost)
    rows = []
    for one in found['rows']:
        table = f'accuracy against {found["unit"]}'
        note = 'on the frontier' if one['on'] else ''
        rows += [Row(table, one['way'], '', found['unit'], one['cost']),
                 _row(table, one['way'], '', 'accuracy', one['accuracy'], note),
                 Row(table, one['way'], '', 'P(on the frontier)', one['probability'])]
    return rows, [f'skipped: {len(ways)} ways: {reason}'
                  for reason, ways in found['skipped'].items()]


def compare_rows(s: Scored, sizes: Sequence[str] | None = None) -> tuple[list[Row], list[str]]:
    """Return sizes against each other on the same items: differences, p values and power; runs by
    IQM.

    `sizes` names two; without them every pair is compared. p values are adjusted over families
    (Benjamini-Hochberg) and, for the macro mean, over pairs of sizes (Holm).
    """
    have = {size.name: size for size in s.sizes if measures.joint_cells(s, size, 'image')}
    unknown = [name for name in sizes or () if name not in have]
    if unknown:
        raise ValueError(f'no size {unknown[0]!r} answered with the picture; there are '
                         f'{", ".join(have)}')
    chosen = [name for name in have if not sizes or name in sizes]
    if len(chosen) < 2:
        raise Missing(f'a comparison needs two sizes that answered with the picture, found '
                      f'{len(chosen)}')
    rows = []
    tests = []
    for small, large in itertools.combinations(chosen, 2):
        paired, means, _ = measures.means_of(s, [measures.joint_cells(s, have[name], 'image')
                                                 for name in (large, small)])
        rows += _difference_rows(f'{large} - {small}', paired, bootstrap.with_macro(means))
        tests.append(next(row for row in rows[::-1] if row.what == 'p' and row.family == 'macro'))
    rows += [_row('differences', test.setting, 'macro', 'p, Holm over pairs of sizes', p)
             for test, p in zip(tests, bootstrap.holm([test.value for test in tests]), strict=True)]
    return rows + _run_rows(s, [have[name] for name in chosen]), _seed_notes(have, chosen)


def _difference_rows(setting, paired, means):
    rows = []
    for column, task in enumerate(means.groups):
        n = means.n[column]
        clusters = means.clusters[column]
        x = measures.one(means, 0, column, minus=1)
        draws = means.draws[:, 0, column] - means.draws[:, 1, column]
        seeds = means.seeds, means.planned
        error = inference.standard_error(draws, clusters, *seeds)
        here = slice(None) if task == 'macro' else paired.task == task
        first, second = paired.scores[:, here]
        rows += [_row('differences', setting, task, what, value) for what, value in (
            ('difference', x), ('p', inference.p_value(x.value, draws, clusters, *seeds)),
            ('difference seen with 80 % power', inference.detectable_difference(error)))]
        if x.value and error > 0 and not bootstrap.covers_seeds(*seeds):  # items do not mend seeds
            rows.append(_row('differences', setting, task, 'items for 80 % power at this size',
                             inference.items_needed(x.value, error ** 2 * n)))
        binary = np.all((first == np.round(first)) & (second == np.round(second)))
        if task != 'macro' and binary:
            rows.append(_row('differences', setting, task, 'p, exact McNemar (items alone)',
                             bootstrap.mcnemar(first, second)))
            if np.sum(first != second) < FEW_DISCORDANT:
                rows.append(Row('differences', setting, task, 'difference (items alone)', x.value,
                                *inference.newcombe(first, second), n, n, 'Newcombe'))
    single = [row for row in rows if row.what == 'p' and row.family != 'macro']
    return rows + [_row('differences', setting, row.family, 'p, Benjamini-Hochberg over families',
                        p) for row, p in zip(single, inference.benjamini_hochberg(
                            [row.value for row in single]), strict=True)]


def _run_rows(s, sizes):
    """Return runs x families of every size: IQM, performance profile, and P(larger is better)."""
    rows = []
    scores = {}
    for size in sizes:
        scores[size.name] = np.concatenate([
            measures.of_run(s, cell).value for cell in measures.joint_cells(s, size, 'image')])
        rows.append(_row('runs', size.name, '', 'IQM', inference.iqm_interval(scores[size.name])))
        rows += [_row('runs', size.name, '', f'share above {level}', share) for level, share in
                 zip(THRESHOLDS, inference.performance_profile(scores[size.name], THRESHOLDS),
                     strict=True)]
    return rows + [_row('runs', f'{large} - {small}', '', 'P(larger is better)',
                        inference.better(scores[large], scores[small]))
                   for small, large in itertools.combinations(scores, 2)]


def _seed_notes(have, chosen):
    few = [name for name in chosen if len(have[name].seeds) < inference.FEW_RUNS]
    return [f'fewer than {inference.FEW_RUNS} seeds for {", ".join(few)}: intervals cover the '
            'choice of pictures, not of training seeds'] if few else []

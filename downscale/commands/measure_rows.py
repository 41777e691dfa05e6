"""The numbers of `downscale analyze` in long form: one `Row` per number, the same for all verbs.

Each public function takes a `Scored` study and returns (rows, notes). What cannot be computed is a
note with its reason.
"""
import itertools
from collections.abc import Sequence

import numpy as np

from downscale.analysis import drops, flips, gate, grids, measures, pareto
from downscale.analysis.completeness import LIMIT, completion
from downscale.analysis.measures import Missing, Row, Scored
from downscale.results.items import TableError
from downscale.statistics import bootstrap, inference, power, proportions, two_way
from downscale.statistics.shapley import SCALES

FEW_DISCORDANT = 25   # below this many changed answers a bootstrap is too coarse: Newcombe as well
THRESHOLDS = (.1, .3, .5, .7, .9)


def _row(table, setting, family, what, x, note=''):
    """Return the `Row` of an `Interval` or of a plain number."""
    place = {'table': table, 'setting': setting, 'family': family, 'what': what, 'note': note}
    if isinstance(x, bootstrap.Interval):
        return Row(**place, value=x.value, low=x.low, high=x.high, n=x.n, clusters=x.clusters,
                   method=x.method, seeds=x.seeds)
    return Row(**place, value=float(x))


def drop_rows(s: Scored, size: str = 'n_nonembed') -> tuple[list[Row], list[str]]:
    """Return drop-off by four measures, and drop against visual reliance over families."""
    result = drops.drop_off(s, size)
    setting = f'{result["large"]} - {result["small"]}'
    rows = []
    for task, intervals in result['drops'].items():
        for what, x in intervals.items():
            name = f'slope per decade of {size}' if what == 'slope' else what
            rows.append(_row('drop', setting, task, name, x))
    try:
        reliance = drops.reliance(s)
    except Missing as reason:
        return rows, [f'skipped: {reason}']
    notes = []
    for condition, tasks in reliance['conditions'].items():
        rows += [_row('reliance', f'image - {condition}', task, 'reliance', x)
                 for task, x in tasks.items()]
        if condition not in reliance['relation']:
            notes.append(f'skipped: drop against reliance on {condition} needs '
                         f'{drops.FEW_TASKS} tasks, found {len(tasks)}')
        # Both ways of choosing the axes are shown: their gap is what shared noise makes.
        for split, trend in reliance['relation'].get(condition, {}).items():
            name = f'image - {condition}, {split}'
            rows += [_row('drop against reliance', name, '', 'Spearman', trend.spearman),
                     _row('drop against reliance', name, '', 'slope', trend.slope)]
    notes += [f'skipped: no {condition} condition for the largest size'
              for condition in reliance['missing']]
    return rows, notes


def grid_rows(s: Scored) -> tuple[list[Row], list[str]]:
    """Return accuracy of every perception x reasoner pair, and marginal curves of both sides."""
    rows = []
    notes = [gate.gate(s)['line']]
    for name, groups in grids.panels(s).items():
        setting = ', '.join(name)
        for (p, r), tasks in grids.accuracies(s, groups).items():
            # A low accuracy may be one of finishing, so that the note stands beside it.
            over = completion(s, groups[p, r])[1].over
            rows += [_row('pairs', setting, task, f'{p} -> {r}', x, _unfinished(over, task))
                     for task, x in tasks.items()]
        for side, measures_of_side in grids.curves(s, groups).items():
            for measure, sizes in measures_of_side.items():
                rows += _task_rows(f'{side}: {measure}', setting, sizes)
    return rows, notes


def _task_rows(table, setting, intervals):
    """Return the rows of {what: {family: Interval}}."""
    rows = []
    for what, tasks in intervals.items():
        rows += [_row(table, setting, task, what, x) for task, x in tasks.items()]
    return rows


def _unfinished(over, task):
    bad = [family for family in over if task in (family, 'macro')]
    return f'over {LIMIT:.0%} unfinished or unparsed: {", ".join(bad)}' if bad else ''


def attribution_rows(s: Scored) -> tuple[list[Row], list[str]]:
    """Return Shapley shares of both sides with their interaction, and items by class."""
    rows = []
    notes = [gate.gate(s)['line']]
    ends = {}
    for name, groups in grids.panels(s).items():
        setting = ', '.join(name)
        try:
            ends[name] = grids.corners(s, groups)
            rows += _panel_rows(s, setting, ends[name])
        # One broken or incomplete panel leaves the others as they are.
        except (Missing, TableError) as reason:
            notes.append(f'{setting}: skipped: {reason}')
            continue
        notes += _panel_notes(s, setting, ends[name])
    if not rows:
        raise Missing('; '.join(notes))
    try:
        for scale in SCALES:
            names, shares = grids.all_factors(s, ends, scale)
            setting = ' x '.join(names) + flips.left_out(ends)
            rows += _share_rows('all factors', setting, shares, scale)
    except (Missing, TableError) as reason:
        notes.append(f'all factors: skipped: {reason}')
    return rows, notes


def _panel_rows(s, setting, panel):
    """Return the rows of one panel between its corners."""
    rows = []
    for scale in SCALES:
        rows += _share_rows('shares', setting, grids.shares(s, panel, scale), scale)
    split = grids.items(s, panel)
    for table, tasks in (('items by class', split.share),
                         ('what classes add to the drop', split.change)):
        for task, classes in tasks.items():
            rows += [_row(table, setting, task, what, x) for what, x in classes.items()]
    rows += [_row('what classes add to the drop', setting, task, 'drop', x)
             for task, x in split.drop.items()]
    for what, (large, small) in split.gold.items():
        rows += [_row('items by class, on gold text', setting, '', f'{what}, {who} reasoner', x)
                 for who, x in (('large', large), ('small', small))]
    return rows + _task_rows('control on gold text', setting, grids.gold_drops(s, panel))


def _share_rows(table, setting, shares, scale):
    rows = []
    for task, parts in shares.items():
        rows += [_row(table, setting, task, f'{name} ({scale})', x)
                 for name, x in (('total', parts.total), *parts.shares.items())]
        for group, x in parts.interactions.items():
            note = 'interaction larger than an interval' if group in parts.flagged else ''
            rows.append(_row(table, setting, task, f'{" x ".join(group)} ({scale})', x, note))
    return rows


def _panel_notes(s, setting, panel):
    """Return what a reader of one panel's attribution has to know of its seeds and answers."""
    p = panel.perception
    r = panel.reasoner
    seeds = ', '.join(map(str, panel.seeds))
    gold = '' if panel.gold else ', no answers on gold text'
    notes = [f'{setting}: perception {p[0]} to {p[1]}, reasoner {r[0]} to {r[1]}, '
             f'seeds {seeds}{gold}']
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
    result = pareto.ways_by_cost(s, cost)
    rows = []
    for way in result['rows']:
        table = f'accuracy against {result["unit"]}'
        name = way['way']
        note = 'on the frontier' if way['on'] else ''
        rows += [_row(table, name, '', result['unit'], way['cost']),
                 _row(table, name, '', 'accuracy', way['accuracy'], note),
                 _row(table, name, '', 'P(on the frontier)', way['probability'])]
    return rows, [f'skipped: {len(ways)} ways: {reason}'
                  for reason, ways in result['skipped'].items()]


def compare_rows(s: Scored, sizes: Sequence[str] | None = None) -> tuple[list[Row], list[str]]:
    """Return differences of sizes on the same items, with p values and power; runs by IQM.

    `sizes` names two; without them every pair is compared. p values are adjusted over families
    (Benjamini-Hochberg) and, for the macro mean, over pairs of sizes (Holm).
    """
    by_name = {size.name: size for size in measures.answering_sizes(s)}
    unknown = [name for name in sizes or () if name not in by_name]
    if unknown:
        raise ValueError(f'no size {unknown[0]!r} answered with the picture; there are '
                         f'{", ".join(by_name)}')
    chosen = [size for name, size in by_name.items() if not sizes or name in sizes]
    if len(chosen) < 2:
        raise Missing(f'a comparison needs two sizes that answered with the picture, found '
                      f'{len(chosen)}')
    rows = []
    tests = []
    for small, large in itertools.combinations(chosen, 2):
        paired, means = measures.means_of(s, [measures.joint_cells(s, size, 'image')
                                              for size in (large, small)])
        rows += _difference_rows(f'{large.name} - {small.name}', paired,
                                 bootstrap.with_macro(means))
        # The newest p of a macro mean is that of this pair of sizes.
        tests.append(next(row for row in rows[::-1] if row.what == 'p' and row.family == 'macro'))
    # Pairs of sizes are few, and no error among them is wanted; of many families a few are.
    adjusted = inference.holm([test.value for test in tests])
    rows += [_row('differences', test.setting, 'macro', 'p, Holm over pairs of sizes', p)
             for test, p in zip(tests, adjusted, strict=True)]
    return rows + _run_rows(s, chosen), _seed_notes(chosen)


def _difference_rows(setting, paired, means):
    """Return the rows of two sizes (those of `means`): tests by family, then adjusted over them."""
    rows = []
    for column, task in enumerate(means.groups):
        x = measures.one(means, 0, column, minus=1)
        rows += _test_rows(setting, task, x, means, column)
        if task != 'macro':
            rows += _item_rows(setting, task, x, paired)
    tests = [row for row in rows if row.what == 'p' and row.family != 'macro']
    adjusted = inference.benjamini_hochberg([row.value for row in tests])
    name = 'p, Benjamini-Hochberg over families'
    return rows + [_row('differences', setting, row.family, name, p)
                   for row, p in zip(tests, adjusted, strict=True)]


def _test_rows(setting, task, x, means, column):
    """Return the rows of a difference `x`, its p value and power, pictures moving together."""
    draws = means.draws[:, 0, column] - means.draws[:, 1, column]
    clusters = means.clusters[column]
    error = inference.standard_error(draws, clusters, means.over)
    visible = inference.detectable_difference(error)
    if means.over.shown and error > 0:
        visible = power.smallest_effect(*two_way.error(draws, means.over, clusters))
    rows = [_row('differences', setting, task, 'difference', x),
            _row('differences', setting, task, 'p',
                 inference.p_value(x.value, draws, clusters, means.over)),
            _row('differences', setting, task, 'difference seen with 80 % power',
                 visible)]
    # More items do not mend the spread between seeds.
    if x.value and error > 0 and not means.over.wanted:
        # error^2 n: the variance of one item, with what questions of one picture share.
        rows.append(_row('differences', setting, task, 'items for 80 % power at this size',
                         inference.items_needed(x.value, error ** 2 * x.n)))
    return rows


def _item_rows(setting, task, x, paired):
    """Return the tests that take items alone, of a family whose answers are right or wrong."""
    first, second = paired.scores[:, paired.task == task]
    # Repeats and seeds are averaged, so that an answer may be half right.
    if not np.all((first == np.round(first)) & (second == np.round(second))):
        return []
    rows = [_row('differences', setting, task, 'p, exact McNemar (items alone)',
                 inference.mcnemar(first, second))]
    if np.sum(first != second) < FEW_DISCORDANT:
        low, high = proportions.newcombe(first, second)
        rows.append(Row(table='differences', setting=setting, family=task,
                        what='difference (items alone)', value=x.value, low=low, high=high,
                        n=x.n, clusters=x.n, method='Newcombe'))
    return rows


def _run_rows(s, sizes):
    """Return runs x families of every size: IQM, performance profile, and P(larger is better)."""
    rows = []
    scores = {}
    for size in sizes:
        cells = measures.joint_cells(s, size, 'image')
        # Every run by itself: these statistics are over runs, and take pictures as they are.
        scores[size.name] = np.concatenate([measures.of_run(s, cell).value for cell in cells])
        rows.append(_row('runs', size.name, '', 'IQM', inference.iqm_interval(scores[size.name])))
        profile = inference.performance_profile(scores[size.name], THRESHOLDS)
        rows += [_row('runs', size.name, '', f'share above {level}', share)
                 for level, share in zip(THRESHOLDS, profile, strict=True)]
    # `scores` runs from the smallest size on, so that the first of each pair is the small one.
    return rows + [_row('runs', f'{large} - {small}', '', 'P(larger is better)',
                        inference.better(scores[large], scores[small]))
                   for small, large in itertools.combinations(scores, 2)]


def _seed_notes(sizes):
    few = [size.name for size in sizes if len(size.seeds) < inference.FEW_RUNS]
    if not few:
        return []
    return [f'fewer than {inference.FEW_RUNS} seeds for {", ".join(few)}: intervals cover the '
            'choice of pictures, not of training seeds']

"""Laws of size over the runs of a study: final losses, isoFLOP budgets and learning rates.

A run's final loss is the mean of its last tenth, and infinite where it diverged. Tokens are those
that its steps have room for, the same for every seed.
"""
import re
from collections import Counter
from typing import Any

import numpy as np

from downscale.accounting import totals
from downscale.analysis import costs, floors, measures
from downscale.analysis.measures import Missing, Scored
from downscale.laws import learning_rates
from downscale.laws.extrapolation import holdout
from downscale.laws.fits import Fit, fit
from downscale.laws.forms import CHINCHILLA, POWER, Saturating
from downscale.laws.isoflop import isoflop
from downscale.results.study_file import read_object
from downscale.results.text_kinds import TEXT_KINDS
from downscale.results.trained import planned_tokens
from downscale.statistics import bootstrap

STAGES = ('text', 'instruct')   # whose loss is a law of size: all parts that grow are trained
REACH = 4      # a curve is drawn to so many times the largest size
GRID = 60      # points of a drawn curve
# What the training loop says of a loss or gradient that is not finite.
NOT_FINITE = re.compile(r'(loss|norm) -?(nan|inf)')


def finals(s: Scored, stage: str) -> dict[str, np.ndarray]:
    """Return columns of the ended runs of a stage, a row each.

    They are cell, size, seed, n, tokens, loss, rate and planned. n is n_nonembed, `rate` that of
    the language model (NaN where it is not trained). `planned` marks the runs of the study itself,
    beside those of a sweep over rates or budgets. Runs that failed otherwise than by diverging are
    left out.
    """
    runs = set()
    for size in s.sizes:
        runs.update(size.runs)
    rows = []
    for (cell, name), trained in sorted(costs.stages_of(s).items()):
        loss = _final(s, cell, name) if name == stage else None
        if loss is not None:
            rows.append({'cell': cell, 'size': trained.size, 'seed': trained.seed,
                         'n': totals(trained.language)['n_nonembed'],
                         'tokens': planned_tokens(trained.stage), 'loss': loss,
                         'planned': cell in runs,
                         'rate': trained.stage['rates'].get('language', np.nan)})
    if not rows:
        raise Missing(f'no finished {stage} stage with a loss and its experiment.json')
    columns = {}
    for key in rows[0]:
        columns[key] = np.array([row[key] for row in rows])
    return columns


def _final(s, cell, stage):
    """Return the final loss of a run; inf where it diverged, None where it has none."""
    folder = s.study.root / 'cells' / cell / stage
    failed = read_object(folder / 'FATAL.json')
    if failed is not None:
        # The loop ends with the loss that was not finite.
        return np.inf if NOT_FINITE.search(str(failed.get('reason', ''))) else None
    seen = s.study.curves.get((cell, stage))
    if seen is None or not len(seen['loss']) or not (folder / 'DONE.json').is_file():
        return None
    loss = float(np.mean(seen['loss'][-max(1, round(learning_rates.LAST * len(seen['loss']))):]))
    return loss if np.isfinite(loss) else np.inf


def _columns(s, stage):
    """Return (`finals` of the study's runs and of those with a budget, budgets, diverged cells).

    Budgets are a column, '' where a row has none. Runs that diverged are named in the last list,
    and in no row.
    """
    columns = finals(s, stage)
    budgets = s.study.meta.get('budgets', {})
    budget = np.array([str(budgets.get(cell, '')) for cell in columns['cell']])
    wanted = columns['planned'] | (budget != '')
    whole = np.isfinite(columns['loss'])
    keep = wanted & whole
    return ({key: column[keep] for key, column in columns.items()}, budget[keep],
            columns['cell'][wanted & ~whole].tolist())


def losses_by_size(s: Scored) -> dict[str, dict[str, Any]]:
    """Return {stage: loss law}: the `Fit`, its hold-out, its curve and the points, or the reason.

    With three numbers of tokens or more the law has two inputs, else one. Held out are the runs
    of most compute, in all their seeds. Runs that diverged have no loss to fit; they are named.
    """
    by_stage = {}
    why = []
    for stage in STAGES:
        try:
            by_stage[stage] = _loss_law(s, stage)
        except (Missing, ValueError) as reason:
            why.append(f'{stage}: {reason}')
    if not by_stage:
        raise Missing('; '.join(why))
    return by_stage


def _loss_law(s, stage):
    """Return the law of one stage's loss; `Missing` or ValueError where there is none."""
    columns, _, diverged = _columns(s, stage)
    # Any exponent of tokens fits two numbers of them.
    two = len(set(columns['tokens'])) >= 3
    law = CHINCHILLA if two else POWER
    x = np.column_stack([columns['n'], columns['tokens']]) if two else columns['n']
    draws = len(s.resamples.weights)
    # FLOPs as 6 N D, for the order of runs and the reach of the hold-out.
    compute = columns['n'] * columns['tokens'] * 6
    # A thousand fits are enough for percentiles, and each takes its time.
    options = {'runs': columns['cell'], 'draws': min(draws, 1000)}
    fitted = fit(law, x, columns['loss'], **options)
    try:
        beyond = holdout(law, x, columns['loss'], compute, compute.max(), **options)
        most = compute.max()
    except ValueError as reason:
        # Too few points below the largest compute: the law stands without a hold-out.
        beyond = str(reason)
        most = None
    # The curve is drawn at the number of tokens that most runs saw, of equals the largest.
    usual = columns['tokens'][columns['planned']]
    often = Counter((usual if len(usual) else columns['tokens']).tolist())
    tokens = max(often, key=lambda count: (often[count], count))
    return {'fit': fitted, 'holdout': beyond, 'tokens': tokens, 'diverged': diverged,
            'points': _points(columns, columns['tokens'] == tokens, most),
            'curve': curve(fitted, columns['n'], tokens if two else None)}


def _points(columns, shown, most):
    """Return the mean loss of each size over its `shown` runs, `held` where they were held out.

    Held out are those of `most` compute, None for no hold-out.
    """
    rows = []
    for n in sorted(set(columns['n'][shown])):
        runs = shown & (columns['n'] == n)
        compute = 6 * n * columns['tokens'][runs][0]
        rows.append({'size': str(columns['size'][runs][0]), 'n': int(n),
                     'loss': float(columns['loss'][runs].mean()), 'runs': int(runs.sum()),
                     'held': bool(most is not None and compute >= most)})
    return rows


def curve(fitted: Fit, n: np.ndarray, tokens: float | None = None) -> list[dict[str, Any]]:
    """Return the fitted law on a grid from the smallest n to `REACH` times the largest, as dicts.

    A law of two inputs is drawn at one number of `tokens`.
    """
    grid = np.geomspace(n.min(), n.max() * REACH, GRID)
    x = grid if tokens is None else np.column_stack([grid, np.full(GRID, tokens)])
    return [{'n': float(size), 'value': y.value, 'low': y.low, 'high': y.high,
             'inside': bool(size <= n.max())}
            for size, y in zip(grid, fitted.predict_intervals(x), strict=True)]


def laws(s: Scored) -> dict[str, dict[str, Any]]:
    """Return the laws of size with points and curves, {title: law}.

    They are those of the losses by stage, and of the macro accuracy.
    """
    by_title = {}
    why = []
    try:
        by_title = {f'loss of stage {stage}': law for stage, law in losses_by_size(s).items()}
    except Missing as reason:
        why.append(str(reason))
    try:
        by_title['macro accuracy'] = accuracy_by_size(s)
    except Missing as reason:
        why.append(f'accuracy: {reason}')
    if not by_title:
        raise Missing('; '.join(why))
    return by_title


def accuracy_by_size(s: Scored) -> dict[str, Any]:
    """Return the saturating law of the macro accuracy over runs.

    A dict of 'fit', 'chance' (the floor), 'curve' and 'points', a row each size.
    """
    groups = []
    n = []
    names = []
    for size in s.sizes:
        for cell in measures.joint_cells(s, size, 'image'):
            # A point for each run, so that seeds are resampled like other runs.
            groups.append([cell])
            n.append(size.n_nonembed)
            names.append(size.name)
    if not groups:
        raise Missing('no model was asked with the picture')
    paired = measures.pair(s.study, groups)
    y = np.array([measures.of_run(s, cell).value.mean() for cell, in groups])
    # The mean over families, as the accuracies are.
    floor = float(floors.floor(s, paired).means.value.mean())
    n = np.array(n, dtype=float)
    try:
        fitted = fit(Saturating(chance=floor), n, y, runs=[group[0].p_run for group in groups],
                     draws=min(len(s.resamples.weights), 1000))
    except ValueError as reason:
        raise Missing(str(reason)) from None
    points = []
    for name in dict.fromkeys(names):
        of_size = np.array(names) == name
        points.append({'size': name, 'n': int(n[of_size][0]), 'held': False,
                       'value': float(y[of_size].mean())})
    return {'fit': fitted, 'chance': floor, 'points': points, 'curve': curve(fitted, n)}


def budgets(s: Scored, stage: str = 'text') -> dict[str, Any]:
    """Return the `Isoflop` over the runs that have a budget in `study.json`, and its points."""
    if not s.study.meta.get('budgets'):
        raise Missing('study.json declares no budgets ({cell: FLOPs})')
    columns, budget, diverged = _columns(s, stage)
    columns = {key: column[budget != ''] for key, column in columns.items()}
    budget = budget[budget != '']
    if not len(budget):
        raise Missing(f'no run with a budget has finished stage {stage}')
    try:
        fitted = isoflop(columns['n'], columns['loss'], budget,
                         draws=min(len(s.resamples.weights), 1000))
    except ValueError as reason:
        raise Missing(str(reason)) from None
    diverged = [cell for cell in diverged if cell in s.study.meta['budgets']]
    points = [{'budget': str(name), 'n': int(n), 'loss': float(loss)}
              for name, n, loss in zip(budget, columns['n'], columns['loss'], strict=True)]
    return {'fit': fitted, 'diverged': diverged, 'points': points}


def rates(s: Scored, stage: str = 'text') -> dict[str, Any]:
    """Return loss against learning rate: 'choices' {size: RateChoice}, 'alarms', 'seeds', 'stage'.

    Of each size the runs of one number of tokens, that with the most rates; seeds that were not
    trained at all of them are left out. A size that diverged at every rate is an alarm.
    """
    runs = _rate_runs(s, stage)
    if not runs:
        raise Missing(f'no size was trained at several learning rates (stage {stage})')
    choices = {}
    alarms = []
    for size, trained in runs.items():
        try:
            choice, doubts = learning_rates.choose_all({size: trained})
        except ValueError as reason:
            choice = {}
            doubts = [str(reason)]
        choices = choices | choice
        alarms = alarms + doubts
    if not choices:
        raise Missing('; '.join(alarms))
    seeds = {}
    for size in choices:
        seeds[size] = len({run.seed for run in runs[size]})
    return {'stage': stage, 'choices': choices, 'alarms': alarms, 'seeds': seeds}


def _rate_runs(s, stage):
    """Return {size: its `RateRun`s} of sizes with several rates, whose seeds were trained at all.
    """
    columns = finals(s, stage)
    budgeted = s.study.meta.get('budgets', {})
    losses_of = {}   # size: tokens: rate: seed: loss
    for row in np.argsort(columns['n'], kind='stable'):
        # Runs with a budget differ in their steps on purpose: they are no sweep over rates.
        if np.isfinite(columns['rate'][row]) and columns['cell'][row] not in budgeted:
            by_tokens = losses_of.setdefault(str(columns['size'][row]), {})
            by_rate = by_tokens.setdefault(columns['tokens'][row], {})
            by_seed = by_rate.setdefault(float(columns['rate'][row]), {})
            by_seed[int(columns['seed'][row])] = float(columns['loss'][row])
    runs = {}
    for size, by_tokens in losses_of.items():
        # Rates compare at one number of tokens only.
        losses = max(by_tokens.values(), key=len)
        seeds = set.intersection(*map(set, losses.values()))
        if len(losses) > 1 and seeds:
            runs[size] = []
            for rate, by_seed in losses.items():
                runs[size] += [learning_rates.RateRun(rate, seed, by_seed[seed])
                               for seed in sorted(seeds)]
    return runs


def flips(s: Scored) -> dict[str, Any]:
    """Return {comparison: {what: Interval}}: shares of questions that change between the ends.

    Comparisons: joint, and the perception and the reasoner side of every kind of text and mode,
    the other side at its largest. `right to wrong` - `wrong to right` is the drop.
    """
    ends = {}
    sizes = [size for size in s.sizes if measures.joint_cells(s, size, 'image')]
    if len(sizes) > 1:
        ends[f'joint, {sizes[-1].name} to {sizes[0].name}'] = [
            measures.joint_cells(s, size, 'image') for size in (sizes[-1], sizes[0])]
    for kind in TEXT_KINDS:
        for mode, thinking in measures.MODES.items():
            groups = measures.pair_groups(s, kind, thinking)
            top, low_p, low_r = _corners(s, groups)
            for side, low in (('perception', low_p), ('reasoner', low_r)):
                if low != top and low in groups and top in groups:
                    ends[f'{side}, {kind}, {mode}'] = [groups[top], groups[low]]
    if not ends:
        raise Missing('needs two sizes that answered the same questions')
    return {name: _flips(s, *groups) for name, groups in ends.items()}


def _corners(s, groups):
    """Return the pairs (perception, reasoner) of the largest sizes, and with either side smallest.

    They are None where no size of the study is on a side.
    """
    p_sizes = {p for p, _ in groups}
    r_sizes = {r for _, r in groups}
    p = [size.name for size in s.sizes if size.name in p_sizes]
    r = [size.name for size in s.sizes if size.name in r_sizes]
    if not p or not r:
        return None, None, None
    return (p[-1], r[-1]), (p[0], r[-1]), (p[-1], r[0])


def _flips(s, large, small):
    """Return {what: Interval} of the mean over families, from `large` to `small` cells."""
    by_seed = [measures.by_seed(s, cells) for cells in (large, small)]
    both = sorted(set(by_seed[0]) & set(by_seed[1]))
    if not both:
        raise Missing('no seed answered at both ends')
    groups = []
    for seed in both:
        groups += [cells[seed] for cells in by_seed]
    paired = measures.pair(s.study, groups)
    # Scores may be means of repeats, taken as independent: then an item is a share of each.
    # Large and small take turns, seed by seed.
    first = paired.scores[0::2]
    second = paired.scores[1::2]
    # [seeds, 4, items], flattened seed by seed as `over_seeds` wants it.
    rows = np.stack([first * (1 - second), (1 - first) * second, first * second,
                     (1 - first) * (1 - second)], axis=1)
    means = bootstrap.group_means(rows.reshape(-1, rows.shape[2]), paired.task, paired.cluster_id,
                                  s.resamples)
    planned = measures.planned_seeds(s, (large, small))
    whole = bootstrap.macro(bootstrap.over_seeds(means, len(both), s.resamples, planned))
    names = ('right to wrong', 'wrong to right', 'right at both', 'wrong at both')
    return {name: measures.one(whole, row, 0) for row, name in enumerate(names)}

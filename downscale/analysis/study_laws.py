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
from downscale.statistics import bootstrap

STAGES = ('text', 'instruct')   # whose loss is a law of size: all parts that grow are trained
REACH = 4      # a curve is drawn to so many times the largest size
GRID = 60      # points of a drawn curve
# What the training loop says of a loss or gradient that is not finite.
NOT_FINITE = re.compile(r'(loss|norm) -?(nan|inf)')


def finals(s: Scored, stage: str) -> dict[str, np.ndarray]:
    """Return columns of the ended runs of a stage: cell, size, seed, n, tokens, loss, rate,
    planned.

    n is n_nonembed, `rate` that of the language model (NaN where it is not trained). `planned`
    marks the runs of the study itself, beside those of a sweep over rates or budgets. Runs that
    failed otherwise than by diverging are left out.
    """
    runs = {run for size in s.sizes for run in size.runs}
    rows = []
    for (cell, name), one in sorted(costs.stages_of(s).items()):
        loss = _final(s, cell, name) if name == stage else None
        if loss is not None:
            rows.append({'cell': cell, 'size': one.size, 'seed': one.seed,
                         'n': totals(one.language)['n_nonembed'],
                         'tokens': costs.planned_tokens(one.stage), 'loss': loss,
                         'planned': cell in runs,
                         'rate': one.stage['rates'].get('language', np.nan)})
    if not rows:
        raise Missing(f'no finished {stage} stage with a loss and its experiment.json')
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


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
    """Return (`finals` of the study's runs and of those with a budget, each row's budget ('')),
    without runs that diverged, and the names of those.
    """
    found = finals(s, stage)
    budgets = s.study.meta.get('budgets', {})
    budget = np.array([str(budgets.get(cell, '')) for cell in found['cell']])
    wanted = found['planned'] | (budget != '')
    whole = np.isfinite(found['loss'])
    keep = wanted & whole
    return ({key: column[keep] for key, column in found.items()}, budget[keep],
            found['cell'][wanted & ~whole].tolist())


def losses_by_size(s: Scored) -> dict[str, dict[str, Any]]:
    """Return {stage: loss law}: the `Fit`, its hold-out, its curve and the points, or the reason.

    With three numbers of tokens or more the law has two inputs, else one. Held out are the runs
    of most compute, in all their seeds. Runs that diverged have no loss to fit; they are named.
    """
    found = {}
    why = []
    for stage in STAGES:
        try:
            found[stage] = _loss_law(s, stage)
        except (Missing, ValueError) as reason:
            why.append(f'{stage}: {reason}')
    if not found:
        raise Missing('; '.join(why))
    return found


def _loss_law(s, stage):
    columns, _, diverged = _columns(s, stage)
    two = len(set(columns['tokens'])) >= 3
    law = CHINCHILLA if two else POWER
    x = np.column_stack([columns['n'], columns['tokens']]) if two else columns['n']
    draws = len(s.resamples.weights)
    compute = columns['n'] * columns['tokens'] * 6
    options = {'runs': columns['cell'], 'draws': min(draws, 1000)}
    fitted = fit(law, x, columns['loss'], **options)
    try:
        held = holdout(law, x, columns['loss'], compute, compute.max(), **options)
    except ValueError as reason:
        held = str(reason)
    usual = columns['tokens'][columns['planned']]
    often = Counter((usual if len(usual) else columns['tokens']).tolist())
    tokens = max(often, key=lambda count: (often[count], count))
    here = columns['tokens'] == tokens
    return {'fit': fitted, 'holdout': held, 'tokens': tokens, 'diverged': diverged,
            'points': _points(columns, here, compute.max() if not isinstance(held, str) else None),
            'curve': curve(fitted, columns['n'], tokens if two else None)}


def _points(columns, here, most):
    """Return mean loss of each size over its runs, `held` where they were held out."""
    rows = []
    for n in sorted(set(columns['n'][here])):
        mine = here & (columns['n'] == n)
        compute = 6 * n * columns['tokens'][mine][0]
        rows.append({'size': str(columns['size'][mine][0]), 'n': int(n),
                     'loss': float(columns['loss'][mine].mean()), 'runs': int(mine.sum()),
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
    """Return {title: a law of size with its points and curve}: losses by stage and the macro
    accuracy.
    """
    found = {}
    why = []
    try:
        found = {f'loss of stage {stage}': part for stage, part in losses_by_size(s).items()}
    except Missing as reason:
        why.append(str(reason))
    try:
        found['macro accuracy'] = accuracy_by_size(s)
    except Missing as reason:
        why.append(f'accuracy: {reason}')
    if not found:
        raise Missing('; '.join(why))
    return found


def accuracy_by_size(s: Scored) -> dict[str, Any]:
    """Return the saturating law of the macro accuracy over runs: fit, chance (the floor), curve,
    points.
    """
    groups = []
    n = []
    points = []
    for size in s.sizes:
        for cell in measures.joint_cells(s, size, 'image'):
            groups.append([cell])
            n.append(size.n_nonembed)
            points.append(size.name)
    if not groups:
        raise Missing('no model was asked with the picture')
    paired = measures.pair(s.study, groups)
    y = np.array([measures.of_run(s, cell).value.mean() for cell, in groups])
    floor = float(floors.floor(s, paired).means.value.mean())
    n = np.array(n, dtype=float)
    try:
        fitted = fit(Saturating(chance=floor), n, y, runs=[group[0].p_run for group in groups],
                     draws=min(len(s.resamples.weights), 1000))
    except ValueError as reason:
        raise Missing(str(reason)) from None
    rows = [{'size': name, 'n': int(n[points.index(name)]), 'held': False,
             'value': float(y[[one == name for one in points]].mean())}
            for name in dict.fromkeys(points)]
    return {'fit': fitted, 'chance': floor, 'points': rows, 'curve': curve(fitted, n)}


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
        found = isoflop(columns['n'], columns['loss'], budget,
                        draws=min(len(s.resamples.weights), 1000))
    except ValueError as reason:
        raise Missing(str(reason)) from None
    diverged = [cell for cell in diverged if cell in s.study.meta['budgets']]
    return {'fit': found, 'diverged': diverged, 'points': [
        {'budget': str(name), 'n': int(n), 'loss': float(loss)}
        for name, n, loss in zip(budget, columns['n'], columns['loss'], strict=True)]}


def rates(s: Scored, stage: str = 'text') -> dict[str, Any]:
    """Return loss against learning rate: {size: lr.Choice} over sizes with several rates, and
    alarms.

    Of each size the runs of one number of tokens, that with the most rates; seeds that were not
    trained at all of them are left out. A size that diverged at every rate is an alarm.
    """
    columns = finals(s, stage)
    budget = s.study.meta.get('budgets', {})
    found = {}
    for row in np.argsort(columns['n'], kind='stable'):
        if np.isfinite(columns['rate'][row]) and columns['cell'][row] not in budget:
            one = found.setdefault(str(columns['size'][row]), {}).setdefault(
                columns['tokens'][row], {})
            one.setdefault(float(columns['rate'][row]), {})[int(columns['seed'][row])] = float(
                columns['loss'][row])
    runs = {}
    for size, by_tokens in found.items():
        losses = max(by_tokens.values(), key=len)
        seeds = set.intersection(*(set(mine) for mine in losses.values()))
        if len(losses) > 1 and seeds:
            runs[size] = [
                learning_rates.RateRun(rate, seed, mine[seed])
                for rate, mine in losses.items()
                for seed in sorted(seeds)
            ]
    if not runs:
        raise Missing(f'no size was trained at several learning rates (stage {stage})')
    choices = {}
    alarms = []
    for size, mine in runs.items():
        try:
            choice, told = learning_rates.choose_all({size: mine})
        except ValueError as reason:
            choice = {}
            told = [str(reason)]
        choices = choices | choice
        alarms = alarms + told
    if not choices:
        raise Missing('; '.join(alarms))
    return {'stage': stage, 'choices': choices, 'alarms': alarms,
            'seeds': {size: len({run.seed for run in runs[size]}) for size in choices}}


def flips(s: Scored) -> dict[str, Any]:
    """Return {comparison: {what: Interval}}: shares of questions that change between the ends.

    Comparisons: joint, and the perception and the reasoner side of every kind of text and mode,
    the other side at its largest. `right to wrong` - `wrong to right` is the drop.
    """
    found = {}
    have = [size for size in s.sizes if measures.joint_cells(s, size, 'image')]
    if len(have) > 1:
        found[f'joint, {have[-1].name} to {have[0].name}'] = [
            measures.joint_cells(s, size, 'image') for size in (have[-1], have[0])]
    for kind in TEXT_KINDS:
        for mode, thinking in measures.MODES.items():
            groups = measures.pair_groups(s, kind, thinking)
            p, r = ([size.name for size in s.sizes if any(key[side] == size.name
                                                          for key in groups)] for side in (0, 1))
            for side, other in (('perception', (p[:1], r[-1:])), ('reasoner', (p[-1:], r[:1]))):
                low, top = ((*a, *b) for a, b in (other, (p[-1:], r[-1:])))
                if low != top and low in groups and top in groups:
                    found[f'{side}, {kind}, {mode}'] = [groups[top], groups[low]]
    if not found:
        raise Missing('needs two sizes that answered the same questions')
    return {name: _flips(s, *groups) for name, groups in found.items()}


def _flips(s, large, small):
    seeds = [measures.by_seed(s, cells) for cells in (large, small)]
    both = sorted(set(seeds[0]) & set(seeds[1]))
    if not both:
        raise Missing('no seed answered at both ends')
    paired = measures.pair(s.study, [side[seed] for seed in both for side in seeds])
    first = paired.scores[0::2]
    second = paired.scores[1::2]
    rows = np.stack([first * (1 - second), (1 - first) * second, first * second,
                     (1 - first) * (1 - second)], axis=1)
    means = bootstrap.group_means(rows.reshape(-1, rows.shape[2]), paired.task, paired.cluster_id,
                                  s.resamples)
    planned = measures.planned_seeds(s, (large, small))
    whole = bootstrap.macro(bootstrap.over_seeds(means, len(both), s.resamples, planned))
    names = ('right to wrong', 'wrong to right', 'right at both', 'wrong at both')
    return {name: measures.one(whole, row, 0) for row, name in enumerate(names)}

"""L(N, D) by family: the loss of the right answer over parameters and tokens of training.

The points are the levels of a factor that is the steps of a stage, such as its forks: D are the
tokens that the stage has room for, N the parameters without embeddings. The loss is the mean
negative log likelihood of the right answer, in nats, with the picture and without a thought: unlike
accuracy it has no floor at a guess.
"""
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from downscale.analysis import costs, measures
from downscale.analysis.contrasts import families_of
from downscale.analysis.measures import Missing, Scored
from downscale.analysis.varied.levels import KINDS, at_level
from downscale.laws.fits import Fit, fit
from downscale.laws.forms import CHINCHILLA
from downscale.results import factors
from downscale.results.trained import planned_tokens
from downscale.statistics.bootstrap import Interval

STEPS = re.compile(r'stages\.(\w+)\.steps')
EXPONENTS = ('alpha', 'beta')   # of parameters and of tokens


def by_family(s: Scored) -> dict[str, Any]:
    """Return the laws of families and kinds of family, and how the exponents of kinds differ.

    'stage' whose steps are varied, 'laws' {family or kind: Fit}, 'missing' {family: why it has no
    law}, 'differences' {exponent: Interval of visual minus knowledge}, of kinds with a law.
    """
    stage, rows = points(s)
    visual, knowledge = families_of(s)
    parts = {kind: tasks for kind, tasks in zip(KINDS, (visual, knowledge), strict=True) if tasks}
    parts |= {task: {task} for task in sorted(visual) + sorted(knowledge)}
    laws = {}
    missing = {}
    draws = min(len(s.resamples.weights), 1000)
    for name, tasks in parts.items():
        try:
            laws[name] = _law(rows, tasks, draws)
        except ValueError as reason:
            missing[name] = str(reason)
    if not laws:
        raise Missing('; '.join(f'{name}: {reason}' for name, reason in list(missing.items())[:1]))
    differences = {}
    if set(KINDS) <= set(laws):
        differences = compared(laws['visual'], laws['knowledge'])
    return {'stage': stage, 'laws': laws, 'missing': missing, 'differences': differences}


def points(s: Scored) -> tuple[str, list[dict[str, Any]]]:
    """Return (stage, a row for each run: its trunk, n, tokens and loss {family: nats}).

    `Missing` where no stage's steps were varied, or answers have no likelihood.
    """
    meta = s.study.meta
    names = [factor for factor in factors.levels_of(meta) if STEPS.fullmatch(factor)]
    if not names:
        raise Missing('the steps of no stage were varied by themselves')
    factor = names[0]
    stage = STEPS.fullmatch(factor)[1]
    trained = costs.stages_of(s)
    seeds = measures.seed_of_run(s)
    rows = []
    for level in factors.levels_of(meta)[factor]:
        at = at_level(s, factor, level)
        for size in measures.answering_sizes(at):
            for cell in measures.joint_cells(at, size, 'image'):
                if (cell.p_run, stage) in trained:
                    loss = _losses(at, cell)
                    rows.append({'trunk': f'{size.name}-s{seeds[cell.p_run]}', 'loss': loss,
                                 'n': size.n_nonembed, 'tokens': planned_tokens(
                                     trained[cell.p_run, stage].stage)})
    if not rows or not any(row['loss'] for row in rows):
        raise Missing('no answers with the picture and a likelihood at several steps')
    return stage, rows


def _losses(s, cell):
    """Return {family: mean loss of the right answer} of a cell; families without one are absent."""
    rows = s.study.cells[cell]
    nll = s.study.items['nll_gold'][rows]
    task = s.study.items['task'][rows]
    known = {name: nll[task == name] for name in np.unique(task)}
    return {name: float(values.mean()) for name, values in known.items()
            if np.all(np.isfinite(values))}


def _law(rows: Sequence[dict[str, Any]], tasks: set[str], draws: int) -> Fit:
    """Return the law of the mean loss over families; ValueError where it cannot be fitted."""
    whole = [row for row in rows if tasks <= row['loss'].keys()]
    if not whole:
        raise ValueError('its answers have no likelihood')
    x = [(row['n'], row['tokens']) for row in whole]
    y = [np.mean([row['loss'][task] for task in sorted(tasks)]) for row in whole]
    # Forks of one trunk share their data and most of their weights: trunks are drawn, not forks.
    return fit(CHINCHILLA, x, y, runs=[row['trunk'] for row in whole], draws=draws)


def compared(one: Fit, other: Fit) -> dict[str, Interval]:
    """Return {exponent: Interval} of one law minus another, of the same runs, draw by draw.

    Without enough runs, or where the draws of both are not of the same resamples, the interval has
    no ends.
    """
    drawn = [fitted.law.natural(fitted.drawn, fitted.centre) for fitted in (one, other)]
    best = [fitted.law.natural(fitted.theta[None], fitted.centre) for fitted in (one, other)]
    paired = one.draws == other.draws and one.n == other.n and np.array_equal(one.centre,
                                                                             other.centre)
    differences = {}
    for name in EXPONENTS:
        value = float(best[0][name][0] - best[1][name][0])
        draws = drawn[0][name] - drawn[1][name] if paired else np.zeros(0)
        differences[name] = one.interval(value, draws, False)
    return differences

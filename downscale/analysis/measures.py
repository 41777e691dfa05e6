"""The numbers of the report: accuracy, drops, image reliance, perception x reasoning grid.

Every function takes a `Scored` study and returns plain dicts whose leaves are `Interval`s, so
that the page, the figures and report.json print the same numbers. A part that cannot be computed
raises `Missing` with the reason.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from downscale.analysis import floors
from downscale.analysis.completeness import completion
from downscale.results.items import TEXT_KINDS
from downscale.results.study import STAGES, Cell, Paired, Study, pair
from downscale.statistics import bootstrap
from downscale.statistics.inference import ratio_interval

MODES = {'direct': False, 'think': True}
TEXTS = TEXT_KINDS[1:]   # that perception writes; 'brief' is a caption cut short


class Missing(Exception):
    """A part of the report has no data; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """One model size with the runs (seeds) that trained it."""
    name: str
    n_total: int
    n_nonembed: int
    n_vision: int
    runs: tuple
    seeds: tuple


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A study with its sizes (small to large) and the resamples that all numbers share; `whole` is
    the study with the answers of `apart` runs, where there are any."""
    study: Study
    sizes: tuple
    resamples: bootstrap.Resamples
    whole: Study | None = None
    made: dict = field(default_factory=dict, repr=False)   # means of cells, made once


def scored(study: Study, bootstraps: int = 2000, seed: int = 0) -> Scored:
    """Return the study with one resampling of all its pictures; without the answers of `apart`
    runs.
    """
    out = apart(study.meta)
    whole = study
    if out:
        note = (f'{len(out)} runs differ from others of their size in more than the seed and are '
                f'in no number of sizes, only in learning rates: {", ".join(sorted(out))}')
        study = replace(study, notes=(*study.notes, note), cells={
            cell: rows for cell, rows in study.cells.items() if not out & {cell.p_run, cell.r_run}})
    return Scored(
        study=study,
        sizes=sizes_of(study.meta),
        resamples=bootstrap.resample(study.items['cluster_id'], bootstraps, seed),
        whole=whole,
    )


def apart(meta: dict[str, Any]) -> set[str]:
    """Return names of the runs that are no seeds of their size: where a sweep has trained it under
    several settings, those that change any.
    """
    settings = {}
    for run in meta['runs']:
        settings.setdefault(run['size'], set()).add(run.get('changes', ''))
    return {run['run_id'] for run in meta['runs']
            if run.get('changes') and len(settings[run['size']]) > 1}


def sizes_of(meta: dict[str, Any]) -> tuple[Size, ...]:
    """Return sizes in the order of their total parameter count, of the runs that are not
    `apart`.
    """
    runs = {}
    out = apart(meta)
    for run in meta['runs']:
        if run['run_id'] not in out:
            runs.setdefault(run['size'], []).append(run)
    return tuple(sorted(map(_size, runs.values()), key=lambda size: (size.n_total, size.name)))


def _size(runs):
    """Return the `Size` of runs that differ in their seed only."""
    first = runs[0]
    return Size(
        name=first['size'],
        n_total=first['n_total'],
        n_nonembed=first['n_nonembed'],
        n_vision=first['n_vision'],
        runs=tuple(sorted(run['run_id'] for run in runs)),
        seeds=tuple(sorted({run['seed'] for run in runs})),
    )


def with_apart(s: Scored) -> Scored:
    """Return the same with the answers of all runs; those that are `apart` are sizes of their
    own.
    """
    out = apart(s.study.meta)
    alone = [_size([run]) for run in s.study.meta['runs'] if run['run_id'] in out]
    return replace(s, study=s.whole or s.study, sizes=(*s.sizes, *alone))


def families(s: Scored) -> list[str]:
    """Return families with visual ones first, as every table and figure lists them."""
    items = s.study.items
    kinds = sorted(set(zip(items['category'], items['task'], strict=True)), reverse=True)
    visual = sorted({task for kind, task in kinds if kind == 'visual'})
    return visual + sorted({task for _, task in kinds} - set(visual))


def joint_cells(s: Scored, size: Size, condition: str) -> list[Cell]:
    """Return cells where the vision-language model of this size answered by itself.

    Thinking cells are used only when the study has no direct ones.
    """
    cells = [cell for cell in s.study.cells if not cell.r_run and cell.condition == condition]
    direct = any(not cell.thinking for cell in s.study.cells if not cell.r_run)
    return sorted(cell for cell in cells if cell.p_run in size.runs
                  and cell.thinking == (not direct))


def means_of(s: Scored,
             groups: Sequence[Sequence[Cell]]) -> tuple[Paired, bootstrap.Means, np.ndarray]:
    """Return the pairing, its means and mean chance [groups, families] of groups of cells to
    compare.

    Each is over the seeds that all groups have. The draws are over pictures, and over seeds where
    `stats.FEW_SEEDS` were planned for each. `Missing` when no seed is in all groups.
    """
    planned = planned_seeds(s, groups)
    groups = _common_seeds(s, groups)
    # pyrefly: ignore[bad-argument-type]
    paired = pair(s.study, [cells for group in groups for cells in group])
    _make_means(s, [cell for group in groups for cells in group for cell in cells])
    count = len(groups[0])
    rows = [[np.mean([s.made[cell][part] for cell in cells], axis=0) for part in (0, 1)]
            for group in groups for cells in group]
    weights = bootstrap.seed_weights(s.resamples, count, planned)
    value = np.stack([value for value, _ in rows]).reshape(len(groups), count, -1).mean(axis=1)
    draws = np.stack([draws for _, draws in rows]).reshape(
        len(groups), count, len(weights), -1)
    chance = _chance(s, paired)
    scores = paired.scores.reshape(len(groups), count, -1).mean(axis=1)
    means = replace(chance, value=value, draws=np.einsum('bs,rsbg->brg', weights, draws),
                    seeds=count, planned=planned)
    return replace(paired, scores=scores), means, chance


def planned_seeds(s: Scored, groups: Sequence[Sequence[Cell]]) -> int:
    """Return how many seeds the study has for each of these groups of cells, were none missing."""
    seeds = {run: size.seeds for size in s.sizes for run in size.runs}
    return min(len(set.intersection(*(set(seeds[run]) for cell in cells for run in cell[:2]
                                      if run))) for cells in groups)


def _common_seeds(s, groups):
    """Return [[cells of a seed] of every seed that all groups have] of each group."""
    seeded = [by_seed(s, cells) for cells in groups]
    common = sorted(set.intersection(*map(set, seeded)))
    if not common:
        raise Missing('no seed has all that is compared; there are seeds ' + ' and '.join(
            ', '.join(map(str, sorted(group))) for group in seeded))
    return [[group[seed] for seed in common] for group in seeded]


def of_run(s: Scored, cell: Cell) -> bootstrap.Means:
    """Return the means of one run by itself, over pictures only."""
    _make_means(s, [cell])
    chance = _chance(s, pair(s.study, [[cell]]))
    value, draws = s.made[cell]
    return replace(chance, value=value[None], draws=draws[:, None])


def each(s: Scored, groups: Sequence[Sequence[Cell]]) -> tuple[Paired, list[bootstrap.Means]]:
    """Return the pairing, and the means of each of the groups of cells over all of its own
    seeds.
    """
    return pair(s.study, groups), [means_of(s, [cells])[1] for cells in groups]


def _make_means(s, cells):
    """Values [families] and draws [bootstraps, families] of these cells are in `s.made`."""
    missing = [cell for cell in dict.fromkeys(cells) if cell not in s.made]
    if missing:
        paired = pair(s.study, [[cell] for cell in missing])
        means = bootstrap.group_means(paired.scores, paired.task, paired.cluster_id, s.resamples)
        for row, cell in enumerate(missing):
            s.made[cell] = means.value[row], means.draws[:, row]


def _chance(s, paired):
    """Return the mean chance by family as `stats.Means` of one row, made once for the same
    items.
    """
    key = paired.key
    if key not in s.made:
        s.made[key] = bootstrap.group_means(
            paired.chance, paired.task, paired.cluster_id, s.resamples
        )
    return s.made[key]


def by_seed(s: Scored, cells: Sequence[Cell]) -> dict[int, list[Cell]]:
    """Return {seed: cells of it}; a pair has the seed of its reasoner."""
    seed_of = {run['run_id']: run['seed'] for run in s.study.meta['runs']}
    found = {}
    for cell in cells:
        found.setdefault(seed_of[cell.r_run or cell.p_run], []).append(cell)
    return found


def one(means: bootstrap.Means, row: int, column: int, bounds: tuple[float, float] = (0, 1),
        minus: int | None = None) -> bootstrap.Interval:
    """Return interval of one mean, or of its paired difference from row `minus`."""
    value = means.value[row, column]
    draws = means.draws[:, row, column]
    if minus is not None:
        value = value - means.value[minus, column]
        draws = draws - means.draws[:, minus, column]
        bounds = (-1, 1)
    return means.interval(value, draws, column, bounds)


def accuracy(s: Scored) -> dict[str, Any]:
    """Return accuracy of every size by family and in the macro mean, on the picture."""
    groups = {size: joint_cells(s, size, 'image') for size in s.sizes}
    groups = {size: cells for size, cells in groups.items() if cells}
    if not groups:
        raise Missing('no model was asked with the picture (joint rows, condition image)')
    paired, found = each(s, list(groups.values()))
    found = dict(zip([size.name for size in groups], map(bootstrap.with_macro, found), strict=True))
    floor = floors.floor(s, paired)
    columns = {task: column for column, task in enumerate(floor.means.groups)}
    rows = {task: {**_guesses(floor, columns[task]), 'guesser': floor.names[task],
                   'sizes': {name: one(means, 0, columns[task]) for name, means in found.items()}}
            for task in families(s) if task in columns}
    macro = {**_guesses(floor, slice(None)), 'guesser': '',
             'sizes': {name: one(means, 0, -1) for name, means in found.items()}}
    ended = {size.name: completion(s, cells) for size, cells in groups.items()}
    for task, row in rows.items():
        row['completion'] = {name: by_family[task] for name, (by_family, _) in ended.items()}
    macro['completion'] = {name: mean for name, (_, mean) in ended.items()}
    return {'families': rows, 'n_total': {size.name: size.n_total for size in groups},
            'macro': macro}


def _guesses(floor, columns):
    """Return the guessers and the floor of a family, or their means over families; None where
    unknown.
    """
    found = {name: float(np.mean(of[columns])) for name, of in floor.guesses.items()}
    return {**{name: None if np.isnan(value) else value for name, value in found.items()},
            'floor': float(np.mean(floor.means.value[0, columns]))}


def relative(means: bootstrap.Means, floor: bootstrap.Means, column: int, large: int = 0,
             small: int = 1) -> bootstrap.Interval:
    """Return the chance-corrected drop: that from row `large` to `small` over (large - floor).

    The only definition there is: `ratio_interval`, unbounded where large may be at its floor.
    """
    value = means.value[:, column]
    draws = means.draws[:, :, column]
    fall = value[large] - value[small], draws[:, large] - draws[:, small]
    room = value[large] - floor.value[0, column], draws[:, large] - floor.draws[:, 0, column]
    return ratio_interval(fall, room, means.n[column], means.clusters[column], seeds=means.seeds,
                          planned=means.planned)


def drops(s: Scored) -> dict[str, Any]:
    """Return largest minus smallest size by family, with the same pictures drawn for both."""
    have = [size for size in s.sizes if joint_cells(s, size, 'image')]
    if len(have) < 2:
        raise Missing(f'a drop needs two sizes that answered with the picture, found {len(have)}')
    small = have[0]
    large = have[-1]
    paired, means, _ = means_of(s, [joint_cells(s, size, 'image') for size in (large, small)])
    floor = floors.floor(s, paired).means
    whole = bootstrap.macro(means)
    floor_whole = bootstrap.macro(floor)
    binary = bool(np.all((paired.scores == 0) | (paired.scores == 1)))
    rows = {task: {'absolute': one(means, 0, column, minus=1),
                   'relative_chance': relative(means, floor, column),
                   'p_mcnemar': _mcnemar(paired, task) if binary else None}
            for column, task in enumerate(means.groups)}
    if binary:
        adjusted = bootstrap.holm([row['p_mcnemar'] for row in rows.values()])
        for row, p_value in zip(rows.values(), adjusted, strict=True):
            row['p_holm'] = float(p_value)
    order = sorted(rows, key=lambda task: (-rows[task]['absolute'].value, task))
    result = {'large': large.name, 'small': small.name,
              'families': {task: rows[task] for task in order},
              'macro': {'absolute': one(whole, 0, 0, minus=1),
                        'relative_chance': relative(whole, floor_whole, 0)}}
    if len(order) > 1:
        first, second = (means.groups.index(task) for task in order[:2])
        fall = means.draws[:, 0] - means.draws[:, 1]
        result['lead'] = bootstrap.interval(
            rows[order[0]]['absolute'].value - rows[order[1]]['absolute'].value,
            fall[:, first] - fall[:, second], means.n[[first, second]].sum(),
            bootstrap.effective(means.clusters[[first, second]]), bounds=(-2, 2), seeds=means.seeds,
            planned=means.planned)
    return result


def _mcnemar(paired, task):
    here = paired.task == task
    return bootstrap.mcnemar(paired.scores[0, here], paired.scores[1, here])


def reliance(s: Scored) -> dict[str, Any]:
    """Return what the largest model loses without the picture or with another one, beside the
    drop.
    """
    result = drops(s)
    found = {}
    large = next(size for size in s.sizes if size.name == result['large'])
    base = joint_cells(s, large, 'image')
    for condition in ('blind', 'shuffled'):
        cells = joint_cells(s, large, condition)
        if cells:
            _, means, _ = means_of(s, [base, cells])
            found[condition] = {task: one(means, 0, column, minus=1)
                                for column, task in enumerate(means.groups)}
    if not found:
        raise Missing(f'no blind and no shuffled condition for the largest model ({large.name})')
    return {'large': large.name, 'conditions': found,
            'missing': [c for c in ('blind', 'shuffled') if c not in found],
            'drop': {task: row['absolute'] for task, row in result['families'].items()}}


def grid(s: Scored) -> dict[str, Any]:
    """Return macro accuracy of every perception x reasoner pair, per kind of text and mode, with
    drops.
    """
    result = {}
    for kind in TEXTS:
        for mode, thinking in MODES.items():
            panel = _panel(s, pair_groups(s, kind, thinking))
            if panel:
                result[f'{kind}, {mode}'] = panel
    if not result:
        raise Missing('no perception x reasoner pairs and no gold texts were evaluated')
    return result


def pair_groups(s: Scored, kind: str, thinking: bool) -> dict[tuple[str, str], list[Cell]]:
    """Return {(perception size or 'gold', reasoner size): cells} of one kind of text and mode."""
    home = {run: size.name for size in s.sizes for run in size.runs}
    groups = {}
    for cell in sorted(cell for cell in s.study.cells if cell.r_run and cell.text_kind == kind
                       and cell.thinking == thinking):
        p_size = home[cell.p_run] if cell.p_run else 'gold'
        groups.setdefault((p_size, home[cell.r_run]), []).append(cell)
    return groups


def _panel(s, groups):
    if not groups:
        return None
    keys = list(groups)
    _, alone = each(s, list(groups.values()))
    order = [size.name for size in s.sizes]
    p_sizes = [name for name in order if any(p == name for p, _ in keys)]
    r_sizes = [name for name in order if any(r == name for _, r in keys)]
    value = {key: one(bootstrap.macro(means), 0, 0) for key, means in zip(keys, alone, strict=True)}
    return {'p_sizes': p_sizes, 'r_sizes': r_sizes,
            'cells': [{'p': p, 'r': r, 'accuracy': value[p, r],
                       'completion': completion(s, groups[p, r])[1]} for p, r in sorted(value)],
            'marginal': _marginal(s, p_sizes, r_sizes, groups)}


def _marginal(s, p_sizes, r_sizes, groups):
    """Drop of each side, with the other side held at its largest size."""
    if not p_sizes or not r_sizes:
        return {}
    top = (p_sizes[-1], r_sizes[-1])
    drop = {}
    for side, low in (('perception', (p_sizes[0], top[1])), ('reasoner', (top[0], r_sizes[0]))):
        if low != top and low in groups and top in groups:
            means = bootstrap.with_macro(means_of(s, [groups[top], groups[low]])[1])
            found = {task: one(means, 0, column, minus=1)
                     for column, task in enumerate(means.groups)}
            drop[side] = {'macro': found.pop('macro'), 'families': found}
    low_p = (p_sizes[0], top[1])
    low_r = (top[0], r_sizes[0])
    if len(drop) == 2:
        # both drops start at the same pair, so their difference needs the two shrunk pairs only
        whole = bootstrap.macro(means_of(s, [groups[low_r], groups[low_p]])[1])
        drop['perception_minus_reasoner'] = one(whole, 0, 0, minus=1)
    return drop


def losses(s: Scored) -> dict[str, Any]:
    """Return training curves by stage, and the last loss of every run."""
    home = {run: size.name for size in s.sizes for run in size.runs}
    stages = {}
    last = []
    order = {stage: place for place, stage in enumerate(STAGES)}
    for run, stage in sorted(s.study.curves, key=lambda key: (order.get(key[1], 99), key[1],
                                                              key[0])):
        curve = s.study.curves[run, stage]
        # runs of a sweep over rates or budgets have parts of their own
        if not len(curve['loss']) or run not in home and stage != 'tower':
            continue
        axis = 'tokens' if np.all(np.isfinite(curve['tokens'])) else 'step'
        stages.setdefault(stage, []).append({
            'run_id': run, 'size': home.get(run, run.split('-')[0]), 'axis': axis,
            'x': curve[axis], 'loss': curve['loss']})
        last.append({'stage': stage, 'run_id': run, 'steps': int(curve['step'][-1]),
                     'last_loss': float(curve['loss'][-1])})
    if not stages:
        raise Missing('no metrics.jsonl with a loss under cells/')
    return {'sizes': [size.name for size in s.sizes], 'stages': stages, 'last': last}

"""The first tables of the report: accuracy by family, kind of family and size, skills, losses."""
from collections.abc import Collection
from typing import Any

import numpy as np

from downscale.analysis import costs, floors
from downscale.analysis.completeness import completion
from downscale.analysis.contrasts import families_of, over, visual_minus_knowledge
from downscale.analysis.measures import (
    Missing,
    Scored,
    answering_sizes,
    each,
    families,
    joint_cells,
    means_of,
    of_run,
    one,
    seed_of_run,
    size_of_run,
    with_apart,
)
from downscale.results.items import TableError
from downscale.stage_table import STAGES
from downscale.statistics import bootstrap
from downscale.statistics.learnt import appearance, has_learnt, probability

KINDS = ('visual', 'knowledge')   # of families, as `contrasts.families_of` tells them
# Beside these, two runs must have been trained alike to be looks at one skill.
STEPS = ('steps', 'save_every', 'warmup', 'forks', 'trunk', 'parents')
GAP = .25   # of what there is above the floor


def by_family(s: Scored) -> dict[str, Any]:
    """Return the accuracy of every size by family and in the macro mean, on the picture."""
    groups = {size: joint_cells(s, size, 'image') for size in answering_sizes(s)}
    if not groups:
        raise Missing('no model was asked with the picture (joint rows, condition image)')
    # Every size over all of its own seeds: nothing is compared here.
    paired, means = each(s, list(groups.values()))
    sizes = [size.name for size in groups]
    by_size = dict(zip(sizes, map(bootstrap.with_macro, means), strict=True))
    floor = floors.floor(s, paired)
    columns = {task: column for column, task in enumerate(floor.means.groups)}
    # A family that only readers were asked has no column here.
    tasks = [task for task in families(s) if task in columns]
    ended = {size.name: completion(s, cells) for size, cells in groups.items()}
    rows = {}
    for task in tasks:
        column = columns[task]
        intervals = {name: one(means, 0, column) for name, means in by_size.items()}
        completions = {name: by_family[task] for name, (by_family, _) in ended.items()}
        rows[task] = {**_guesses(floor, column), 'guesser': floor.names[task],
                      'sizes': intervals, 'completion': completions}
    # The last column is the macro mean. It has no best guesser: families differ in theirs.
    macro = {**_guesses(floor, slice(None)), 'guesser': '',
             'sizes': {name: one(means, 0, -1) for name, means in by_size.items()},
             'completion': {name: mean for name, (_, mean) in ended.items()}}
    return {'families': rows, 'n_total': {size.name: size.n_total for size in groups},
            'macro': macro}


def _guesses(floor, columns):
    """Return guessers and floor of a family, or their means over families; None where unknown."""
    guesses = {}
    for name, by_family in floor.guesses.items():
        value = float(np.mean(by_family[columns]))
        guesses[name] = None if np.isnan(value) else value
    return {**guesses, 'floor': float(np.mean(floor.means.value[0, columns]))}


def losses(s: Scored) -> dict[str, Any]:
    """Return the training curves by stage, and the last loss of every run.

    The curve of a stage that learns from a reward is that: its objective is near 0 throughout.
    """
    sizes = size_of_run(s)
    # In the order of training; stages that the table does not know come last.
    order = {stage: place for place, stage in enumerate(STAGES)}
    stages = {}
    last = []
    for run, stage in sorted(s.study.curves, key=lambda key: (order.get(key[1], 99), key[1],
                                                              key[0])):
        curve = s.study.curves[run, stage]
        # Runs of a sweep over rates or budgets have parts of their own; a tower has no size.
        shared = stage in STAGES and STAGES[stage].shared
        if not len(curve['loss']) or run not in sizes and not shared:
            continue
        # A stage that counts no tokens, or not in every row, is drawn over its steps.
        axis = 'tokens' if np.all(np.isfinite(curve['tokens'])) else 'step'
        size = sizes[run].name if run in sizes else run.split('-')[0]
        what = 'reward' if 'reward' in curve else 'training loss'
        stages.setdefault(stage, []).append({
            'run_id': run, 'size': size, 'axis': axis, 'x': curve[axis], 'what': what,
            'y': curve['reward' if what == 'reward' else 'loss']})
        last.append({'stage': stage, 'run_id': run, 'steps': int(curve['step'][-1]),
                     'last_loss': float(curve['loss'][-1])})
    if not stages:
        raise Missing('no metrics.jsonl with a loss under cells/')
    return {'sizes': [size.name for size in s.sizes], 'stages': stages, 'last': last}


def by_kind(s: Scored) -> dict[str, Any]:
    """Return accuracy by size for both kinds of family, and what they lose between the ends.

    'sizes' {size: parameters of its language model without embeddings}, 'kinds' {kind: dict},
    'difference' (the drop of visual families minus that of knowledge, None where one is absent). A
    kind has 'families', 'sizes' {size: Interval}, 'seeds' {size: {seed: accuracy}}, 'guesses'
    {guesser or 'floor': accuracy, None where unknown} and 'drop' (None with a single size).
    """
    sizes = answering_sizes(s)
    if not sizes:
        raise Missing('no model was asked with the picture (joint rows, condition image)')
    kinds = {}
    for kind, tasks in zip(KINDS, families_of(s), strict=True):
        if tasks:
            kinds[kind] = _kind(s, sizes, tasks)
    difference = None
    if len(sizes) > 1 and len(kinds) == len(KINDS):
        difference = visual_minus_knowledge(s, '').effect
    return {'sizes': {size.name: size.n_nonembed for size in sizes}, 'kinds': kinds,
            'difference': difference}


def _kind(s, sizes, tasks):
    """Return what `by_kind` says of the families `tasks`."""
    groups = [joint_cells(s, size, 'image') for size in sizes]
    names = [size.name for size in sizes]
    drop = None
    if len(sizes) > 1:
        drop = over(s, [groups[-1], groups[0]], ((1, -1), tasks))
    by_size = [over(s, [cells], ((1,), tasks)) for cells in groups]
    by_seed = [_by_seed(s, cells, tasks) for cells in groups]
    return {'families': sorted(tasks), 'sizes': dict(zip(names, by_size, strict=True)),
            'seeds': dict(zip(names, by_seed, strict=True)),
            'guesses': _guesses_of_kind(s, groups[-1], tasks), 'drop': drop}


def _by_seed(s, cells, tasks):
    """Return {seed: mean accuracy over `tasks`}, each of one run."""
    seed_of = seed_of_run(s)
    seeds = {}
    for cell in cells:
        means = of_run(s, cell)
        seeds[seed_of[cell.p_run]] = float(means.value[0, _columns(means.groups, tasks)].mean())
    return seeds


def _guesses_of_kind(s, cells, tasks):
    """Return {guesser or 'floor': its mean over `tasks`}, None where nothing tells it."""
    floor = floors.floor(s, means_of(s, [cells])[0])
    return _guesses(floor, _columns(floor.means.groups, tasks))


def _columns(groups: Collection[str], tasks: Collection[str]) -> list[int]:
    """Return the places of `tasks` among the groups of means."""
    return [column for column, name in enumerate(groups) if name in tasks]


# Skills that are there or not; see `statistics.learnt`.

def learnt(s: Scored) -> dict[str, Any]:
    """Return P(learnt) by family and size, which families are there or not, and when they appear.

    A dict of 'families' {family: {size: Interval}}, 'runs' {family: {size: {seed: accuracy}}},
    'threshold' {family: accuracy from which a run has learnt it}, 'split' (families that some runs
    of a size learnt and others by far did not: the mean over its seeds is that of no run) and
    'steps' {size: {family: Appearance}}, where a size was trained for several numbers of steps.
    """
    sizes = answering_sizes(s)
    if not sizes:
        raise Missing('no model was asked with the picture (joint rows, condition image)')
    floor = _best_guess(s, [joint_cells(s, size, 'image') for size in sizes])
    seed_of = seed_of_run(s)
    runs = {task: {} for task in families(s) if task in floor}
    for size in sizes:
        for cell in joint_cells(s, size, 'image'):
            for task, accuracy in _accuracies(s, cell).items():
                runs[task].setdefault(size.name, {})[seed_of[cell.p_run]] = accuracy
    by_family = {}
    split = []
    for task, by_size in runs.items():
        by_family[task] = {}
        for size, by_seed in by_size.items():
            there = sum(has_learnt(accuracy, floor[task]) for accuracy in by_seed.values())
            by_family[task][size] = probability(there, len(by_seed))
            if task not in split and _apart(list(by_seed.values()), floor[task]):
                split.append(task)
    return {'families': by_family, 'runs': runs, 'split': split, 'steps': _steps(s),
            'threshold': {task: (1 + floor[task]) / 2 for task in runs}}


def _apart(accuracies, floor):
    """Return whether some runs have learnt a family and others, by a wide gap, have not."""
    there = [accuracy for accuracy in accuracies if has_learnt(accuracy, floor)]
    lacking = [accuracy for accuracy in accuracies if not has_learnt(accuracy, floor)]
    # Runs on both sides of the threshold and near to each other are one crowd.
    return bool(there and lacking and min(there) - max(lacking) > GAP * (1 - floor))


def _best_guess(s, groups):
    """Return {family: accuracy of the best guess}."""
    means = floors.floor(s, each(s, groups)[0]).means
    return dict(zip(means.groups, means.value[0].tolist(), strict=True))


def _accuracies(s, cell):
    """Return {family: accuracy} of one run."""
    means = of_run(s, cell)
    return dict(zip(means.groups, means.value[0].tolist(), strict=True))


def _steps(s):
    """Return {size: {family: Appearance}} of sizes whose seeds were looked at after several steps.

    Looks are runs, also those of a sweep, that were trained alike but for their numbers of steps.
    """
    try:
        trained = costs.stages_of(s)
    except TableError:
        return {}   # `validate` names the file
    s = with_apart(s)
    seed_of = seed_of_run(s)
    looks = {}   # (size, how it was trained): {seed: {steps: cell}}
    for cell in sorted(s.study.cells):
        if not cell.r_run and cell.condition == 'image' and not cell.thinking:
            size, alike, steps = _training(trained, cell.p_run)
            by_seed = looks.setdefault((size, alike), {})
            by_seed.setdefault(seed_of[cell.p_run], {})[steps] = cell
    by_size = {}
    for (size, _), by_seed in looks.items():
        common = sorted(set.intersection(*map(set, by_seed.values())))
        if len(common) > 1 and size not in by_size:
            by_size[size] = _appearances(s, by_seed, common)
    return by_size


def _training(trained, run):
    """Return (size, all settings of a run's stages but their steps, the sum of their steps)."""
    queue = [(cell, name) for cell, name in trained
             if cell == run and not STAGES[name].writes and not STAGES[name].reads]
    stages = {}
    while queue:
        cell, name = key = queue.pop()
        if key in trained and not STAGES[name].shared:
            stages[name] = trained[key]
            # What a fork has not trained itself is of its trunk.
            queue += [parent for parent in trained[key].parents if parent[0] != run]
    if not stages:
        return '', '', 0
    alike = [(name, sorted((key, str(value)) for key, value in stage.stage.items()
                           if key not in STEPS)) for name, stage in sorted(stages.items())]
    return (next(iter(stages.values())).size, str(alike),
            sum(int(stage.stage.get('steps', 0)) for stage in stages.values()))


def _appearances(s, by_seed, steps):
    """Return {family: Appearance} from {seed: {steps: cell}}, over the steps of all seeds."""
    seeds = sorted(by_seed)
    floor = _best_guess(s, [[by_seed[seed][count] for seed in seeds] for count in steps])
    accuracies = {(seed, count): _accuracies(s, by_seed[seed][count])
                  for seed in seeds for count in steps}
    by_family = {}
    for task, guess in floor.items():
        there = [[has_learnt(accuracies[seed, count][task], guess) for count in steps]
                 for seed in seeds]
        by_family[task] = appearance(steps, np.array(there))
    return by_family

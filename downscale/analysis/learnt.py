"""Which skills are there at which size, in how many seeds, and after how many steps they appear.

A skill is a family of questions that the joint models answered with the picture; see
`statistics.learnt` for when a run has learnt it.
"""
from typing import Any

import numpy as np

from downscale.analysis import costs, floors, measures
from downscale.analysis.measures import Missing, Scored
from downscale.results.items import TableError
from downscale.stage_table import STAGES
from downscale.statistics.learnt import appearance, has_learnt, probability

# Beside these, two runs must have been trained alike to be looks at one skill.
STEPS = ('steps', 'save_every', 'warmup')
GAP = .25   # of what there is above the floor


def learnt(s: Scored) -> dict[str, Any]:
    """Return P(learnt) by family and size, which families are there or not, and when they appear.

    A dict of 'families' {family: {size: Interval}}, 'runs' {family: {size: {seed: accuracy}}},
    'threshold' {family: accuracy from which a run has learnt it}, 'split' (families that some runs
    of a size learnt and others by far did not: the mean over its seeds is that of no run) and
    'steps' {size: {family: Appearance}}, where a size was trained for several numbers of steps.
    """
    sizes = measures.answering_sizes(s)
    if not sizes:
        raise Missing('no model was asked with the picture (joint rows, condition image)')
    floor = _floor(s, [measures.joint_cells(s, size, 'image') for size in sizes])
    seed_of = measures.seed_of_run(s)
    runs = {task: {} for task in measures.families(s) if task in floor}
    for size in sizes:
        for cell in measures.joint_cells(s, size, 'image'):
            for task, accuracy in _accuracies(s, cell).items():
                runs[task].setdefault(size.name, {})[seed_of[cell.p_run]] = accuracy
    families = {}
    split = []
    for task, by_size in runs.items():
        families[task] = {}
        for size, by_seed in by_size.items():
            there = sum(has_learnt(accuracy, floor[task]) for accuracy in by_seed.values())
            families[task][size] = probability(there, len(by_seed))
            if task not in split and _apart(list(by_seed.values()), floor[task]):
                split.append(task)
    return {'families': families, 'runs': runs, 'split': split, 'steps': _steps(s),
            'threshold': {task: (1 + floor[task]) / 2 for task in runs}}


def _apart(accuracies, floor):
    """Return whether some runs have learnt a family and others, by a wide gap, have not."""
    there = [accuracy for accuracy in accuracies if has_learnt(accuracy, floor)]
    lacking = [accuracy for accuracy in accuracies if not has_learnt(accuracy, floor)]
    # Runs on both sides of the threshold and near to each other are one crowd.
    return bool(there and lacking and min(there) - max(lacking) > GAP * (1 - floor))


def _floor(s, groups):
    """Return {family: accuracy of the best guess}."""
    means = floors.floor(s, measures.each(s, groups)[0]).means
    return dict(zip(means.groups, means.value[0].tolist(), strict=True))


def _accuracies(s, cell):
    """Return {family: accuracy} of one run."""
    means = measures.of_run(s, cell)
    return dict(zip(means.groups, means.value[0].tolist(), strict=True))


def _steps(s):
    """Return {size: {family: Appearance}} of sizes whose seeds were looked at after several steps.

    Looks are runs, also those of a sweep, that were trained alike but for their numbers of steps.
    """
    try:
        trained = costs.stages_of(s)
    except TableError:
        return {}   # `validate` names the file
    s = measures.with_apart(s)
    seed_of = measures.seed_of_run(s)
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
    stages = {name: stage for (cell, name), stage in trained.items()
              if cell == run and not STAGES[name].writes and name != 'reason'}
    if not stages:
        return '', '', 0
    alike = [(name, sorted((key, str(value)) for key, value in stage.stage.items()
                           if key not in STEPS)) for name, stage in sorted(stages.items())]
    return (next(iter(stages.values())).size, str(alike),
            sum(int(stage.stage.get('steps', 0)) for stage in stages.values()))


def _appearances(s, by_seed, steps):
    """Return {family: Appearance} from {seed: {steps: cell}}, over the steps of all seeds."""
    seeds = sorted(by_seed)
    floor = _floor(s, [[by_seed[seed][count] for seed in seeds] for count in steps])
    accuracies = {(seed, count): _accuracies(s, by_seed[seed][count])
                  for seed in seeds for count in steps}
    found = {}
    for task, guess in floor.items():
        there = [[has_learnt(accuracies[seed, count][task], guess) for count in steps]
                 for seed in seeds]
        found[task] = appearance(steps, np.array(there))
    return found

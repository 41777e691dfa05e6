"""The first tables of the report: accuracy by family and size, and the training losses."""
from typing import Any

import numpy as np

from downscale.analysis import floors
from downscale.analysis.completeness import completion
from downscale.analysis.measures import (
    Missing,
    Scored,
    answering_sizes,
    each,
    families,
    joint_cells,
    one,
    size_of_run,
)
from downscale.stage_table import STAGES
from downscale.statistics import bootstrap


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
    """Return the training curves by stage, and the last loss of every run."""
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
        stages.setdefault(stage, []).append({
            'run_id': run, 'size': size, 'axis': axis, 'x': curve[axis], 'loss': curve['loss']})
        last.append({'stage': stage, 'run_id': run, 'steps': int(curve['step'][-1]),
                     'last_loss': float(curve['loss'][-1])})
    if not stages:
        raise Missing('no metrics.jsonl with a loss under cells/')
    return {'sizes': [size.name for size in s.sizes], 'stages': stages, 'last': last}

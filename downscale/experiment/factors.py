"""The factors of a study: the settings in which cells of one size differ, with each cell's level.

They are read off the cells, not off the sweep, so that a fork is a level of its stage's steps, and
what a zipped sweep changes with the size is no factor.
"""
import dataclasses
from collections.abc import Sequence
from typing import Any

from downscale.config import Experiment

# What tells cells apart by design, follows from the size, or says where and not what is trained.
LEFT_OUT = ('name', 'size', 'seed', 'language', 'stages', 'budget', 'label', 'origin', 'mesh',
            'trained_as', 'remat', 'unroll', 'attention')
# Of a stage; rates are chosen, not compared, in a part of the report of their own.
OF_STAGE = ('name', 'parents', 'trunk', 'forks', 'save_every', 'rates', 'distil')


def factors_of(experiments: Sequence[Experiment]) -> dict[str, dict[str, Any]]:
    """Return {path of a setting: {cell: its value}} of the factors, of the cells that have it.

    Shared cells and those of a budget, whose steps go with their size, have none.
    """
    cells = [cell for cell in experiments if not cell.is_shared and not cell.budget]
    by_name = {cell.name: cell for cell in cells}
    settings = {cell.name: _settings(cell, by_name) for cell in cells}
    factors = {}
    for path in dict.fromkeys(path for values in settings.values() for path in values):
        levels = {name: values[path] for name, values in settings.items() if path in values}
        by_size = {}
        for name, level in levels.items():
            by_size.setdefault(by_name[name].size, [])
            if level not in by_size[by_name[name].size]:
                by_size[by_name[name].size].append(level)
        if any(len(known) > 1 for known in by_size.values()):
            factors[path] = levels
    return factors


def _settings(cell, by_name):
    """Return {path: value} of what may be a factor of a cell; a fork's are those of its trunk."""
    fork = next((stage for stage in cell.stages if stage.trunk), None)
    if fork is not None:
        # Its other settings only serve to make it what a run of so many steps would be.
        return {**_settings(by_name[fork.trunk], by_name), f'stages.{fork.name}.steps': fork.steps}
    value = dataclasses.asdict(cell) | {'world': cell.world.declared()}
    paths = _flat({key: value[key] for key in value if key not in LEFT_OUT}, '')
    for stage in value['stages']:
        kept = {key: part for key, part in stage.items() if key not in OF_STAGE}
        kept['teacher'] = _taught(stage)
        paths |= _flat(kept, f'stages.{stage["name"]}.')
    return paths


def _taught(stage):
    """Return who teaches a stage and by which share of its loss, as one level."""
    # A share alone would be a factor of which a stage without a teacher has no level.
    share = '' if stage['distil'] == 1 else f'{stage["distil"]:g} x '
    return share + stage['teacher'] if stage['teacher'] else 'none'


def _flat(value, prefix):
    """Return {path: value} of nested mappings; what is no mapping is a value."""
    paths = {}
    for key, part in value.items():
        if isinstance(part, dict):
            paths |= _flat(part, f'{prefix}{key}.')
        else:
            paths[f'{prefix}{key}'] = part
    return paths

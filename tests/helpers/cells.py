"""Cells of our own study files."""
import copy
import dataclasses
import json
from functools import cache

from roots import ROOT

from downscale.experiment import file
from downscale.experiment.expansion import cells_of


@cache
def resolve(study, *overrides):
    study_config, sweep = file.load_study(study, overrides)
    with study_config.unlocked():
        del study_config['platform']
    return cells_of(study_config, sweep)


def smoke(*overrides):
    return resolve(str(ROOT / 'tests/data/three_sizes.py'), *overrides)


@cache
def _plain():
    cell = next(cell for cell in smoke() if cell.name == 'w64d2-s0')
    return json.loads(json.dumps(dataclasses.asdict(cell)))


def plain():
    """A cell as JSON gives it back, to be damaged."""
    return copy.deepcopy(_plain())

"""A stage's folder: which cell may continue in it."""
import dataclasses
from functools import cache
from pathlib import Path

import pytest

from downscale import cli, experiment, stages

ROOT = Path(__file__).parents[1]


@cache
def smoke():
    config, sweep = cli.load_study(str(ROOT / 'experiments' / 'smoke.py'), ())
    with config.unlocked():
        del config['platform']
    return experiment.cells(config, sweep)


@pytest.mark.parametrize('cell', smoke(), ids=lambda cell: cell.name)
def test_a_cell_may_continue_in_its_own_folder(tmp_path, cell):
    """What was saved equals what is asked for, in whatever order a mapping was written."""
    experiment.save(cell, tmp_path)
    stages.refuse_other(tmp_path, cell)


def test_another_cell_may_not_and_hears_what_differs(tmp_path):
    cell = smoke()[-1]
    experiment.save(cell, tmp_path)
    other = dataclasses.replace(cell, seed=cell.seed + 1, unroll=cell.unroll + 1)
    with pytest.raises(ValueError, match=r'other settings \(seed, unroll\)'):
        stages.refuse_other(tmp_path, other)

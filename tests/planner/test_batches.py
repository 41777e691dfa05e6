"""The shapes that are planned with are those that are trained with."""
from pathlib import Path

import jax
import pytest
from jax.sharding import SingleDeviceSharding

from downscale.data.pipeline import stream
from downscale.experiment import file
from downscale.planner.batches import batch_of
from downscale.stages import inputs

EXPERIMENTS = Path(__file__).parents[2] / 'experiments'


@pytest.mark.parametrize('study', ['micro_study.py:dry', 'micro2.py:dry'])
def test_a_planned_batch_is_the_one_that_the_stream_makes(tmp_path, study):
    _, cells = file.open_cells(f'{EXPERIMENTS}/{study}', [])
    inputs.prepare(tmp_path, cells[0])
    for stage in {stage.name: stage for cell in cells for stage in cell.stages}.values():
        cell = next(cell for cell in cells if stage in cell.stages)
        sampler, seed = inputs.sampler_of(tmp_path, cell, stage)
        batch = next(iter(stream(sampler, seed)))
        shape = next(each for each in sampler.shapes if len(batch['tokens']) == each.batch
                     and batch['tokens'].shape[1] == each.length)
        if shape != stage.shape:  # a smaller bucket; plans are made for the largest
            continue
        planned = batch_of(cell, stage, SingleDeviceSharding(jax.devices()[0]))
        assert {name: (each.shape, str(each.dtype)) for name, each in planned.items()} == {
            name: (each.shape, str(each.dtype)) for name, each in batch.items()}

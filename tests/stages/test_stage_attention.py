"""What is said and noted of a stage's attention and speed, and what is refused before it begins."""
import contextlib
import dataclasses
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from cells import smoke

from downscale import accounting
from downscale.config import Data, Evaluation
from downscale.data.buckets import Shape
from downscale.stages import attention, training
from downscale.stages.inputs import prepare
from downscale.train.log import Log

H200 = SimpleNamespace(platform='gpu', device_kind='NVIDIA H200', compute_capability='9.0')


def cell_of(*stages, **change):
    """The last cell of the smoke study with some of its stages."""
    cell = smoke()[-1]
    return dataclasses.replace(cell, stages=tuple(cell.stage(name) for name in stages), **change)


def grid_of(device, size=1):
    return SimpleNamespace(devices=np.array([device] * size, object), size=size)


def test_each_shape_of_a_stage_has_its_own_program():
    cell = cell_of('text', dtype='bfloat16')
    text = dataclasses.replace(cell.stage('text'), length=64, buckets=(Shape(32, 63, 0),))
    assert attention.programs(cell, text, grid_of(H200)) == {63: 'xla', 64: 'cudnn'}
    assert set(attention.programs(cell, text, grid_of(H200), stacked=True).values()) == {'xla'}
    asked = dataclasses.replace(cell, attention='cudnn')
    with pytest.raises(ValueError, match=rf"^{cell.name}, stage text: attention 'cudnn' cannot be: "
                                         'cuDNN trains rows of even length, not of 63'):
        attention.programs(asked, text, grid_of(H200))


def test_a_study_says_its_attention_in_one_line_for_all_cells(monkeypatch):
    cells = [cell_of('text', 'align'), cell_of('text')]
    lengths = sorted({stage.length for stage in cells[0].stages})
    assert list(attention.lines(cells)) == [
        f'attention: xla for rows of {", ".join(map(str, lengths))} tokens '
        '(there is no kernel for a CPU)']
    monkeypatch.setattr(attention, 'grid_of', lambda cell: grid_of(
        SimpleNamespace(platform='gpu', device_kind='NVIDIA H300', compute_capability='9.0')))
    first, last = attention.lines(cells)  # float32
    assert 'xla' in first and '(not cudnn: cuDNN needs dtype bfloat16, not float32)' in first
    assert last.startswith('NVIDIA H300 is not among the GPUs whose peak is known')
    for asked, why in (('cudnn', 'dtype bfloat16'), ('splash', 'is for TPUs, and this is a GPU')):
        with pytest.raises(ValueError, match=why):
            list(attention.lines([dataclasses.replace(cells[0], attention=asked)]))


def test_a_step_at_the_peak_takes_its_flops_over_all_devices():
    cell = cell_of('align')
    stage = dataclasses.replace(cell.stage('align'), batch=8, length=96, tiles=1)
    flops = accounting.train_flops(cell.language, cell.vision, rows=8, length=96, tiles=8,
                                   groups=('connector',))['total']
    assert tuple(stage.trainable) == ('connector',)
    assert attention.ideal_seconds(cell, stage, grid_of(H200, 4)) == {
        (96, 1): flops / (4 * 989.4e12)}
    # A name that only resembles one of the table has no peak: a part of a GPU, or another board.
    other = SimpleNamespace(device_kind='NVIDIA H200 MIG 1g.18gb', platform='gpu')
    assert attention.ideal_seconds(cell, stage, grid_of(other)) == {}


def test_mfu_is_the_share_of_time_that_the_peak_would_take(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: clock[0])
    log = Log(tmp_path, 0, 0, 'none', None, {(64, 0): 0.25, (128, 2): 1.0})
    small = {'tokens': np.zeros((2, 64))}
    large = {'tokens': np.zeros((2, 128)), 'tiles': np.zeros((2, 2, 16, 48))}
    batches = iter([small] * 10 + [large] * 11)
    with contextlib.closing(log):
        for step in range(20):
            log.timed(batches)
            if step == 19:
                log.timed(batches)  # the next batch is read before a step is written
            clock[0] += 2
            log.write(step, 7, 1.0, {'loss': 1.0, 'grad_norm': 1.0})
    rows = [json.loads(line) for line in (tmp_path / 'timing.jsonl').read_text().splitlines()]
    assert [row['mfu'] for row in rows] == [10 * 0.25 / 20, (10 * 0.25 + 10 * 1.0) / 40]


def test_a_trained_stage_notes_its_attention_and_no_mfu_without_a_peak(tmp_path):
    cell = cell_of('text', evaluation=Evaluation(), data=Data(train=8, validation=1, test=1))
    text = dataclasses.replace(cell.stage('text'), steps=10)
    cell = dataclasses.replace(cell, stages=(text,))
    prepare(tmp_path, cell)
    training.train_stage(tmp_path, cell, 'text', tracker='none')
    folder = tmp_path / 'cells' / cell.name / 'text'
    done = json.loads((folder / 'DONE.json').read_text())
    assert done == {'hash': cell.hash, 'steps': 10, 'attention': {str(text.length): 'xla'},
                    'device': 'cpu'}
    assert 'mfu' not in json.loads((folder / 'timing.jsonl').read_text())
    asked = dataclasses.replace(cell, attention='cudnn')
    with pytest.raises(ValueError, match='cudnn is for NVIDIA GPUs, and this is a CPU'):
        training.train_stage(tmp_path / 'other', asked, 'text', tracker='none')
    assert not (tmp_path / 'other').exists()

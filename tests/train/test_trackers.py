"""Trackers: what they show, and that no fault of theirs reaches a run."""
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from downscale.train import trackers
from downscale.train.log import Log
from downscale.train.trackers import Tracker


def shown(folder):
    """{tag: [(step, value)]} as TensorBoard itself reads a folder."""
    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)]
            for tag in found.Tags()['scalars']}


def log(folder, first, rows, tracker='tensorboard'):
    """Rows of steps `first` + 1 and on, each with its loss, written as the train loop does."""
    opened = Log(folder, first, 0, tracker)
    for step, loss in enumerate(rows, first):
        opened.write(step, 7, 0.5, {'loss': np.float32(loss), 'grad_norm': np.float32(1)})
    opened.close()


def test_tensorboard_shows_what_the_run_folder_says(tmp_path):
    log(tmp_path, 0, [3.5, 2.5, 1.5] + 9 * [1])
    found = shown(tmp_path / 'tensorboard')
    assert found['loss'] == [(1, 3.5), (2, 2.5), (3, 1.5), *((step, 1) for step in range(4, 13))]
    assert found['tokens'] == [(step, 7 * step) for step in range(1, 13)]
    assert [step for step, _ in found['tokens_per_s'] + found['input_share']] == [10, 10]


def test_what_a_resumed_run_writes_again_is_shown_once(tmp_path):
    log(tmp_path, 0, [3, 2, 1, 0.5])
    log(tmp_path, 2, [1.25, 0.75, 0.25])
    assert len(list((tmp_path / 'tensorboard').iterdir())) == 2
    assert shown(tmp_path / 'tensorboard')['loss'] == [
        (1, 3), (2, 2), (3, 1.25), (4, 0.75), (5, 0.25)]


def test_without_a_tracker_nothing_is_written(tmp_path):
    log(tmp_path, 0, [1], 'none')
    assert not (tmp_path / 'tensorboard').exists()


def test_a_tracker_that_cannot_start_is_named_once_and_the_run_goes_on(tmp_path, capfd):
    (tmp_path / 'tensorboard').write_text('a file is in the way')
    log(tmp_path, 0, [3, 2])
    said = capfd.readouterr().err
    assert said.count('\n') == 1 and said.startswith('tracker tensorboard: ')
    assert 'training goes on without it' in said
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 2


@pytest.fixture
def fake_wandb(monkeypatch):
    """A module that notes what is asked of it; `fails` is the step from which the network is gone.
    """
    module = types.ModuleType('wandb')
    module.begun, module.rows, module.ended, module.fails = [], [], [], 99

    def note(row, step):
        if step >= module.fails:
            raise OSError('no network')
        module.rows.append((step, row))

    def init(**given):
        module.begun.append(given)
        return types.SimpleNamespace(log=note, finish=lambda: module.ended.append(True))
    module.init = init
    monkeypatch.setitem(sys.modules, 'wandb', module)
    return module


def test_wandb_gets_the_rows_of_a_run_that_is_named_after_its_folder(tmp_path, fake_wandb):
    folder = tmp_path / 'mine' / 'cells' / 'w32d2-s0' / 'text'
    folder.mkdir(parents=True)
    log(folder, 4, [2.5], 'wandb')
    given, = fake_wandb.begun
    assert (given['project'], given['name']) == ('mine', 'w32d2-s0/text')
    assert given['resume'] == 'allow' and given['id'] == 'mine-w32d2-s0-text'
    (step, row), = fake_wandb.rows
    assert step == 5 and row['loss'] == 2.5 and fake_wandb.ended == [True]


def test_a_tracker_that_breaks_later_is_named_once_and_left_alone(tmp_path, fake_wandb, capfd):
    fake_wandb.fails = 2
    folder = tmp_path / 's' / 'cells' / 'c' / 'text'
    folder.mkdir(parents=True)
    log(folder, 0, [3, 2, 1], 'wandb')
    assert capfd.readouterr().err == ('tracker wandb: no network; training goes on without it\n')
    assert [step for step, _ in fake_wandb.rows] == [1] and not fake_wandb.ended
    assert len((folder / 'metrics.jsonl').read_text().splitlines()) == 3


def test_a_missing_library_is_named_before_work_starts(monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(ImportError, match=r"pip install 'downscale\[wandb\]'"):
        trackers.choose('wandb')
    assert trackers.choose('tensorboard') == trackers.choose(None) == 'tensorboard'


def test_the_writer_brings_no_other_framework_along():
    code = ('import sys\nfrom downscale.train.trackers import Tracker\nimport tempfile\n'
            'Tracker("tensorboard", tempfile.mkdtemp(), 0).close()\n'
            'sys.exit(sum(name in sys.modules for name in ("tensorflow", "torch", "grpc")))')
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


def test_a_row_costs_less_than_a_hundredth_of_the_smallest_step(tmp_path):
    """20 ms: the step of the smoke study's smallest size on one idle core.

    Processor time, and the quickest of many rows: what else runs here can only add to it.
    """
    tracker, row = Tracker('tensorboard', tmp_path, 0), dict.fromkeys('abcdef', 1.0)
    tracker.write(0, row)
    costs = []
    for step in range(0, 1000, 20):
        began = time.process_time()
        for offset in range(20):
            tracker.write(step + offset, row)
        costs.append((time.process_time() - began) / 20)
    assert min(costs) < 0.01 * 20e-3
    tracker.close()

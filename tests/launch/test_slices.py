"""Two slices that are not there, of two processes each: they train what one process trains."""
import dataclasses
import json
import signal

import numpy as np
import pytest
from local_jobs import STUDY, attempt, leaves_of, logs, run_of, spec_of, told
from waiting import LIMIT, wait_until

from downscale.launch.backends import local
from downscale.runtime import exits
from downscale.train import checkpoint

ROUNDING = ('optimizer.eps=1e-5',)  # with less, Adam makes steps of what is rounding alone
TWO = '2xcpu:2x1'
# Four processes on a machine of two cores may stand still for some seconds.
SILENCE = {'DOWNSCALE_HEARTBEAT_SECONDS': '24', 'DOWNSCALE_INITIALIZATION_SECONDS': '200'}


@pytest.fixture(scope='module')
def study_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('study') / 'tiny.py'
    path.write_text(STUDY)
    return path


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in SILENCE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope='module')
def alone(tmp_path_factory, study_file):
    """The run folder of one process of four devices."""
    run = tmp_path_factory.mktemp('alone')
    spec = spec_of(study_file, run, 'cpu:1x4', ROUNDING)
    assert attempt(spec) == exits.DONE, logs(spec)
    return run


def kill(spec, ranks, once, monkeypatch):
    """Let the first of `ranks` stand still in step 14, then kill them all; the exit code."""
    monkeypatch.setenv('HARM', f'{ranks[0]},SIGSTOP,14,{once}')
    group = local.Group(spec)
    try:
        wait_until(lambda: once.exists() or group.code() is not None)
        assert once.exists(), logs(spec)
        for rank in ranks:
            group.processes[rank].send_signal(signal.SIGKILL)
        return group.wait(LIMIT)
    finally:
        group.signal(signal.SIGKILL)
        monkeypatch.delenv('HARM')


def furthest(one, other):
    """The largest difference of losses, and of a parameter as a share of its largest number.

    The rows of both and the places in their data must be the same.
    """
    rows, others = ([json.loads(line) for line in (
        run_of(run) / 'metrics.jsonl').read_text().splitlines()] for run in (one, other))
    assert [(row['step'], row['tokens'], row['weight']) for row in rows] == [
        (row['step'], row['tokens'], row['weight']) for row in others]
    steps = [checkpoint.latest(str(run_of(run))) for run in (one, other)]
    assert len({(step / 'data' / 'metadata').read_text() for step in steps}) == 1
    losses = max(abs(row['loss'] / again['loss'] - 1) for row, again in zip(rows, others))
    leaves, again = (leaves_of(step / 'params') for step in steps)
    assert leaves.keys() == again.keys()
    params = [np.abs(leaf - again[name]).max() / np.abs(leaf).max()
              for name, leaf in leaves.items() if 'k_bias' not in name]  # its gradient is rounding
    return losses, max(params)


@pytest.mark.slow
@pytest.mark.parametrize('before, after', [
    (TWO, TWO), (TWO, 'cpu:2x1'), ('cpu:2x1', TWO)], ids=['same', 'fewer', 'more'])
def test_a_cell_whose_slice_is_killed_goes_on_over_as_many_slices_or_others(
        alone, study_file, tmp_path, monkeypatch, before, after):
    spec = spec_of(study_file, tmp_path / 'run', before, ROUNDING)
    last = list(range(4))[2:] if before == TWO else [1]
    code = kill(spec, last, tmp_path / 'once', monkeypatch)
    assert exits.ending(code).restart == 'counted', logs(spec)
    assert {line.partition(':')[0] for said in logs(spec)[:last[0]] for line in said} == {'error'}
    spec = dataclasses.replace(spec, topology=after)
    assert attempt(spec) == exits.DONE, logs(spec, 1)
    first, second = told(spec)
    assert first[:3] == (exits.LOST, 0, 10) and second == (exits.DONE, 10, 40, 0)
    losses, params = furthest(alone, spec.run)
    print(f'{before} then {after}: losses {losses:.1e}, parameters {params:.1e}')
    assert losses <= 1e-5 and params <= 1e-5


@pytest.mark.slow
def test_a_data_axis_that_slices_cannot_share_is_refused(study_file, tmp_path):
    spec = spec_of(study_file, tmp_path / 'run', TWO, ('mesh.data=1', 'mesh.fsdp=4'))
    assert attempt(spec) == exits.FATAL
    assert all(said == [logs(spec)[0][0]] for said in logs(spec)[:1])
    assert 'data 1 does not divide over 2 slices (1 % 2 = 1)' in logs(spec)[0][0]

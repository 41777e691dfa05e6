"""A study that makes its small models itself, from stages to the figure of its report."""
import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from roots import ROOT

import downscale
from downscale import config
from downscale.accounting import stored_bytes
from downscale.commands import main
from downscale.experiment.file import open_cells
from downscale.results.study import load_study
from downscale.results.trained import read_stages
from downscale.runtime.files import read_json
from downscale.stages import training
from downscale.stages.folders import folder_of

STUDY = f'{ROOT}/experiments/shrink.py:dry'


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shrink') / 'study'
    assert main.main(['study', STUDY, '--out', str(folder), '--quiet', '--jobs', '1']) == 0
    return folder


def stage(study, cell, name):
    model, params, _, experiment = downscale.load(study / 'cells' / cell / name)
    return model, params, experiment


def test_what_was_cut_is_part_of_what_was_trained(study):
    _, before, _ = stage(study, 'w64d4-s0', 'instruct')
    model, after, experiment = stage(study, 'w64d4-d3-s0', 'shrink')
    note = read_json(study / 'cells/w64d4-d3-s0/shrink/shrink.json')
    assert model.language.N == 3 and len(note['layers']) == 3 and note['tokens'] > 1000
    assert sorted(np.argsort(note['influence'])[1:]) == note['layers']
    np.testing.assert_array_equal(after['language']['blocks']['mlp']['up_DF'],
                                  before['language']['blocks']['mlp']['up_DF'][note['layers']])
    for part in ('tower', 'connector'):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
    # muP multiplied the embedding by 8; here the weights say so.
    np.testing.assert_array_equal(after['language']['embedding_VD'],
                                  8 * before['language']['embedding_VD'])
    assert note['bytes'] == stored_bytes(experiment.language)
    assert note['fingerprint'] and note['source'].endswith('w64d4-s0/instruct')


def test_what_heals_starts_from_what_was_cut_and_moves(study):
    _, cut, _ = stage(study, 'w64d4-d3-s0', 'shrink')
    _, healed, _ = stage(study, 'w64d4-d3-s0', 'heal')
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), cut, healed)
    assert 0 < max(jax.tree.leaves(moved)) < 0.1


def test_weights_of_few_bits_are_on_their_grid_where_they_are_asked(study):
    _, params, experiment = stage(study, 'w64d4-int8-s0', 'shrink')
    gate_NDF = params['language']['blocks']['mlp']['gate_DF']
    group = experiment.stage('shrink').group
    for column in gate_NDF.reshape(-1, group, gate_NDF.shape[-1])[0].T:
        step = np.abs(column).max() / 127
        np.testing.assert_allclose(column / step, np.rint(column / step), atol=1e-3)


def test_runs_say_how_they_came_to_their_size_and_what_they_take(study):
    runs = {run['run_id']: run for run in read_json(study / 'study.json')['runs']}
    assert {name: run['way'] for name, run in runs.items()} == {
        'w64d4-s0': 'trained', 'w64d4-d3-s0': 'pruned + healed', 'w64d4-int8-s0': 'quantised'}
    base, pruned, quantised = (runs[name]['bytes'] for name in runs)
    assert base == stored_bytes(config.load(study / 'cells/w64d4-s0/instruct').language)
    assert base / 2 < quantised < 0.6 * base < pruned < base


def test_the_report_has_a_line_a_way_and_compares_sizes_of_one_way_only(study):
    report = read_json(study / 'report/report.json')
    points = report['ways']['points']
    assert [(point['way'], point['size']) for point in points] == [
        ('trained', 'w64d4'), ('pruned + healed', 'w64d4-d3'), ('quantised', 'w64d4-int8')]
    with (study / 'report/ways.csv').open() as rows:
        assert len(list(csv.DictReader(rows))) == len(points) * len(report['ways']['kinds'])
    assert (study / 'report/ways.png').stat().st_size > 5000
    assert list(report['answer']['sizes']) == ['w64d4']
    html = (study / 'report/report.html').read_text()
    assert 'Accuracy against bytes' in html and 'pruned + healed' in html
    assert not [row for row in load_study(study).unfinished]


def test_costs_of_a_small_model_hold_those_of_the_one_it_is_cut_from(study):
    stages = read_stages(study)
    cut = stages['w64d4-int8-s0', 'shrink']
    assert cut.parents == (('w64d4-s0', 'instruct'),)
    assert 0 < cut.flops < stages['w64d4-s0', 'instruct'].flops / 2  # a forward pass alone


def test_the_stage_is_done_once_and_goes_on_after_an_interruption(study, monkeypatch):
    _, cells = open_cells(STUDY, [])
    cell = next(cell for cell in cells if cell.name == 'w64d4-d3-s0')
    folder = folder_of(study, cell, 'shrink')
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}
    training.train_stage(study, cell, 'shrink')
    # Killed between its weights and its end: the weights are not made again.
    (folder / 'DONE.json').unlink()
    training.train_stage(study, cell, 'shrink')
    after = {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}
    assert [path.name for path in after if after[path] != before[path]] in (
        ['DONE.json'], ['DONE.json', 'experiment.json'], ['experiment.json', 'DONE.json'])
    assert json.loads((folder / 'DONE.json').read_text())['hash'] == cell.hash


def test_a_group_that_comes_from_nowhere_is_named(study):
    _, cells = open_cells(STUDY, ["stages.shrink.parents={'language': 'instruct'}"])
    cell = next(cell for cell in cells if cell.name == 'w64d4-d3-s0')
    with pytest.raises(ValueError, match='say nothing of connector, .*tower'):
        training.train_stage(study.parent / 'study', _renamed(cell), 'shrink')


def _renamed(cell):
    """The cell under another name, so that it has a folder of its own."""
    return dataclasses.replace(cell, name='other-s0')

"""A study that makes its small models itself, from stages to the figure of its report."""
import csv
import dataclasses
import json
import shutil

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
from downscale.sharding import mesh
from downscale.shrink.quantise import on_grid
from downscale.sizes import BASE, Parametrisation
from downscale.stage_config import Stage
from downscale.stages import training
from downscale.stages.folders import folder_of
from downscale.stages.start import start_params

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
    _, before, _ = stage(study, 'w32d2-s0', 'instruct')
    model, after, experiment = stage(study, 'w32d2-d1-s0', 'shrink')
    note = read_json(study / 'cells/w32d2-d1-s0/shrink/shrink.json')
    assert model.language.N == len(note['layers']) == 1 and note['tokens'] > 1000
    assert sorted(np.argsort(note['influence'])[1:]) == note['layers']
    np.testing.assert_array_equal(after['language']['blocks']['mlp']['up_DF'],
                                  before['language']['blocks']['mlp']['up_DF'][note['layers']])
    for part in ('tower', 'connector'):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
    # muP multiplied the embedding by 8; here the weights say so.
    np.testing.assert_array_equal(after['language']['embedding_VD'],
                                  8 * before['language']['embedding_VD'])
    assert note['bytes'] == stored_bytes(experiment.language)
    assert note['fingerprint'] and note['source'] == 'w32d2-s0/instruct'
    assert note['parametrisation'] == 'mup'


def test_what_heals_starts_from_what_was_cut_and_moves(study):
    _, cut, _ = stage(study, 'w32d2-d1-s0', 'shrink')
    _, healed, _ = stage(study, 'w32d2-d1-s0', 'heal')
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), cut, healed)
    assert 0 < max(jax.tree.leaves(moved)) < 0.1


def test_weights_of_few_bits_are_on_their_grid_where_they_are_asked(study):
    for cell, source, bits in (('w32d2-int8-s0', 'w32d2-s0/instruct', 8),
                               ('w32d2-d1-int4-s0', 'w32d2-d1-s0/heal', 4)):
        _, params, experiment = stage(study, cell, 'shrink')
        _, before, _ = stage(study, *source.split('/'))
        gate_NDF = before['language']['blocks']['mlp']['gate_DF']
        made_NDF = params['language']['blocks']['mlp']['gate_DF']
        np.testing.assert_array_equal(made_NDF, on_grid(gate_NDF, bits,
                                                        experiment.stage('shrink').group))
        assert (made_NDF != gate_NDF).mean() > .9


def test_runs_say_how_they_came_to_their_size_and_what_they_take(study):
    runs = {run['run_id']: run for run in read_json(study / 'study.json')['runs']}
    ways = {name: run['way'] for name, run in runs.items()}
    distilled = next(name for name, way in ways.items() if way == 'distilled')
    assert ways == {
        'w64d2-s0': 'trained', 'w32d2-s0': 'trained', 'w32d2-d1-s0': 'pruned + healed',
        'w32d2-int8-s0': 'quantised', 'w32d2-d1-int4-s0': 'pruned + healed + quantised',
        distilled: 'distilled'}
    assert runs[distilled]['changes'] == 'distilled' and 'teacher-w64d2' in distilled
    base, pruned, quantised, both = (runs[f'w32d2{cut}-s0']['bytes'] for cut in (
        '', '-d1', '-int8', '-d1-int4'))
    assert base == runs[distilled]['bytes']
    assert base == stored_bytes(config.load(study / 'cells/w32d2-s0/instruct').language)
    assert base / 2 < quantised < 0.6 * base < pruned < base and both < pruned / 3


def test_the_report_has_a_line_a_way_and_compares_sizes_of_one_way_only(study):
    report = read_json(study / 'report/report.json')
    points = report['ways']['points']
    assert [(point['way'], point['size']) for point in points] == [
        ('trained', 'w32d2'), ('trained', 'w64d2'), ('distilled', 'w32d2 distilled'),
        ('pruned + healed', 'w32d2-d1'), ('quantised', 'w32d2-int8'),
        ('pruned + healed + quantised', 'w32d2-d1-int4')]
    with (study / 'report/ways.csv').open() as rows:
        assert len(list(csv.DictReader(rows))) == len(points) * len(report['ways']['kinds'])
    assert (study / 'report/ways.png').stat().st_size > 5000
    assert list(report['answer']['sizes']) == ['w32d2', 'w64d2']
    html = (study / 'report/report.html').read_text()
    assert 'Accuracy against bytes' in html and 'pruned + healed' in html
    assert not [row for row in load_study(study).unfinished]


def test_costs_of_a_small_model_hold_those_of_the_one_it_is_cut_from(study):
    stages = read_stages(study)
    cut = stages['w32d2-int8-s0', 'shrink']
    assert cut.parents == (('w32d2-s0', 'instruct'),)
    assert 0 < cut.flops < stages['w32d2-s0', 'instruct'].flops / 2  # a forward pass alone


def test_the_stage_is_done_once_and_goes_on_after_an_interruption(study, monkeypatch):
    _, cells = open_cells(STUDY, [])
    cell = next(cell for cell in cells if cell.name == 'w32d2-d1-s0')
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
    _, cells = open_cells(STUDY, [])
    cell = next(cell for cell in cells if cell.name == 'w32d2-d1-s0')
    alone = dataclasses.replace(cell.stage('shrink'), parents={'language': 'w32d2/instruct'})
    with pytest.raises(ValueError, match='say nothing of connector, .*tower'):
        training.train_stage(study, dataclasses.replace(cell, name='other-s0', stages=(alone,)),
                             'shrink')
    shutil.rmtree(study / 'cells/other-s0')


def test_the_stage_of_a_tower_is_no_language_model(study, tmp_path, capsys):
    assert main.main(['shrink', str(study / 'cells/tower-s0/tower'), '--to',
                      str(tmp_path / 'made'), '--bits', '8', '--quiet']) == 1
    assert 'is a tower alone' in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_trained_stage_is_measured_on_its_own_texts_and_starts_another_study(study, tmp_path):
    source = study / 'cells/w32d2-s0/instruct'
    assert main.main(['shrink', str(source), '--to', str(tmp_path / 'made'), '--layers', '0,1',
                      '--hidden', '40', '--quiet']) == 0
    # A model that stands alone may be moved.
    moved = shutil.move(tmp_path / 'made', tmp_path / 'elsewhere')
    model, params, tokenizer, cell = downscale.load(moved)
    assert model.language.F == 40 and model.growth == BASE
    assert cell.size == 'w32d2-f40' and not cell.stages and tokenizer.get_vocab_size() > 20
    begun = start_params('unused', dataclasses.replace(
        cell, imports=dict.fromkeys(('language', 'tower', 'connector'), str(moved)),
        stages=(HEAL,)), HEAL)
    for group in ('language', 'tower', 'connector'):
        jax.tree.map(np.testing.assert_array_equal, begun[group], params[group])


def test_a_run_of_a_mup_study_starts_another_with_what_it_computes(study):
    """What muP multiplies by stands in no tensor: a study of its weights alone was another model.
    """
    source = study / 'cells/w32d2-s0/instruct'
    model, before, _, cell = downscale.load(source)
    assert model.growth != BASE
    heir = dataclasses.replace(cell, name='heir-s0', parametrisation=Parametrisation(),
                               imports=dict.fromkeys(('language', 'tower', 'connector'),
                                                     str(source)), stages=(HEAL,))
    begun = start_params('unused', heir, HEAL)
    np.testing.assert_array_equal(begun['language']['embedding_VD'],
                                  8 * before['language']['embedding_VD'])
    gain = model.growth.output / 8  # the embedding is the head as well
    np.testing.assert_allclose(begun['language']['final_norm']['scale_D'],
                               gain * before['language']['final_norm']['scale_D'])
    jax.tree.map(np.testing.assert_array_equal, begun['tower'], before['tower'])
    placed = start_params('unused', heir, HEAL, mesh(2, 2, 1))
    jax.tree.map(np.testing.assert_array_equal, placed, begun)


HEAL = Stage(name='instruct', steps=1, batch=1, length=72, tiles=1, parents={},
             rates=dict(language=1e-3), trainable=('language',))

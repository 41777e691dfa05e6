"""A stage with a teacher through its own entry point: what it leaves, and what a kill may not
change."""
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from roots import ROOT

from downscale.accounting import forward_flops
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.results.curves import teachers as told
from downscale.results.study import READ
from downscale.results.trained import read_stages
from downscale.runtime import exits
from downscale.runtime.files import write_json
from downscale.stages import teachers, training
from downscale.stages.folders import folder_of
from downscale.stages.inputs import prepare
from downscale.stages.loading import load
from downscale.stages.start import grid_of, start_shapes
from downscale.train.checkpoint import latest, stored_leaves

SMALLER = ('data.train=8', 'data.validation=1', 'data.test=1', 'stages.text.steps=4',
           'stages.text.batch=8', 'stages.text.turns=3', 'stages.text.save_every=2')
POINTS = [{'size': 'w32d2', 'seed': 0, 'stages': ['text'], 'stages.text.teacher': 'w64d2/text'},
          {'size': 'w64d2', 'seed': 0, 'stages': ['text']}]


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """(folder in which the teacher is trained, the student's cell, the teacher's)."""
    folder = tmp_path_factory.mktemp('taught')
    study_config, _ = file.load_study(str(ROOT / 'tests/data/three_sizes.py'), SMALLER)
    with study_config.unlocked():
        del study_config['platform']
    _, student, teacher = cells_of(study_config, POINTS)
    prepare(folder, student, among=(student, teacher))
    with pytest.raises(ValueError, match="its teacher 'w64d2/text' is not trained to its end"):
        training.train_stage(folder, student, 'text')
    assert not (folder / 'cells').exists()
    training.train_stage(folder, teacher, 'text')
    return folder, student, teacher


@pytest.fixture(scope='module')
def trained(study):
    folder, student, _ = study
    training.train_stage(folder, student, 'text')
    return folder_of(folder, student, 'text')


def copied(study, to):
    """A copy of the study in which the student has not begun, and the student's folder."""
    folder, student, _ = study
    shutil.copytree(folder, to, dirs_exist_ok=True)
    own = folder_of(to, student, 'text')
    if own.exists():
        shutil.rmtree(own)
    return own


def params(folder):
    return {jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(load(folder)[1])}


def rows(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_every_row_has_the_divergence_and_the_cross_entropy(study, trained):
    folder, _, teacher = study
    for row in rows(trained):
        assert row['loss'] == row['kl'] > 0 and row['cross_entropy'] > 0
    assert 'kl' not in rows(folder_of(folder, teacher, 'text'))[0]


def test_checkpoints_hold_the_student_alone(study, trained):
    folder, student, teacher = study
    for cell in (student, teacher):
        wanted = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
                  for path, leaf in jax.tree_util.tree_leaves_with_path(
                      start_shapes(cell, cell.stage('text')))}
        step = latest(folder_of(folder, cell, 'text'))
        assert {name: shape for name, (shape, _) in stored_leaves(step).items()} == wanted
    # Nor does the optimiser hold anything of it: as many bytes as of the student without a teacher.
    sizes = {path.parent.parent.name: sum(file.stat().st_size for file in path.rglob('*')
                                          if file.is_file()) for path in trained.glob(
                                              'checkpoints/*/train')}
    held = sum(leaf.size * 4 for leaf in jax.tree.leaves(start_shapes(
        student, student.stage('text'))))
    assert sizes and all(2 * held <= size < 3 * held for size in sizes.values())


def test_a_stopped_run_ends_with_the_same_bits(study, trained, tmp_path, monkeypatch):
    own = copied(study, tmp_path)
    _, student, _ = study
    run = training._stage_run
    monkeypatch.setattr(training, '_stage_run', lambda *args, **named: dataclasses.replace(
        run(*args, **named), stop=lambda step: step == 3))
    with pytest.raises(exits.Preempted):
        training.train_stage(tmp_path, student, 'text')
    monkeypatch.undo()
    training.train_stage(tmp_path, student, 'text')
    assert (own / 'metrics.jsonl').read_bytes() == (trained / 'metrics.jsonl').read_bytes()
    one, two = params(own), params(trained)
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, two[name], err_msg=name)


def test_a_run_does_not_go_on_under_another_teacher(study, trained, tmp_path):
    folder, student, _ = study
    own = copied(study, tmp_path)
    shutil.copytree(trained, own)
    (own / 'DONE.json').unlink()
    note = json.loads((own / teachers.NOTE).read_text())
    assert note['teacher'] == 'w64d2-s0/text' and note['step'] == 4
    write_json(own / teachers.NOTE, {**note, 'hash': 'another', 'step': 7})
    with pytest.raises(ValueError, match=r'was begun with another teacher \(hash, step\); give'):
        training.train_stage(tmp_path, student, 'text')


def test_a_mesh_that_does_not_divide_the_teacher_is_refused_before_the_folder_is_touched(
        study, tmp_path):
    own = copied(study, tmp_path)
    _, student, teacher = study
    where = folder_of(tmp_path, teacher, 'text') / 'experiment.json'
    value = json.loads(where.read_text())
    value['language'] |= {'K': 1, 'H': 3}
    where.write_text(json.dumps(value))
    cell = dataclasses.replace(student, mesh=dataclasses.replace(student.mesh, data=2, tensor=2))
    with pytest.raises(ValueError, match="stage text: its teacher 'w64d2/text': .*1 % 2"):
        training.train_stage(tmp_path, cell, 'text')
    assert not own.exists()


def test_matrices_of_a_teacher_are_in_the_dtype_that_it_computes_in(study):
    folder, student, teacher = study
    grid, stage = grid_of(student), student.stage('text')
    half = teachers.of_cell(dataclasses.replace(teacher, dtype='bfloat16'), 'text', student, stage,
                            grid)
    shapes = teachers.shapes_of(half.model, stage)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        gain = 'scale' in str(path[-1].key)
        assert leaf.dtype == ('float32' if gain else 'bfloat16'), path
    placed = teachers.params_of(folder, student, stage, half.model, grid)
    exact = params(folder_of(folder, teacher, 'text'))
    for path, leaf in jax.tree_util.tree_leaves_with_path(placed):
        np.testing.assert_allclose(np.float32(leaf), exact[jax.tree_util.keystr(path)], rtol=1e-2)


def test_the_analysis_tells_the_teacher_its_flops_and_the_cross_entropy(study, trained):
    folder, student, teacher = study
    line, = told(folder)
    assert line == (f'{student.name}/text learns from w64d2-s0/text: its loss is 1.0 x KL(teacher '
                    '|| student), the rest cross-entropy.')
    assert f'cells/*/*/{teachers.NOTE}' in READ
    flops = read_stages(folder)[student.name, 'text'].flops
    stage = student.stage('text')
    reads = forward_flops(teacher.language, rows=stage.batch, length=stage.length)['total']
    (trained / teachers.NOTE).rename(trained / 'aside')
    try:
        alone = read_stages(folder)[student.name, 'text'].flops
    finally:
        (trained / 'aside').rename(trained / teachers.NOTE)
    assert flops - alone == reads * stage.steps

"""A whole study through the console: killed at any moment, it ends as if it had not been."""
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from compiling import xla_flags
from roots import ROOT
from waiting import LIMIT, wait_until

from downscale.config import save
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.experiment.sweeps import axis, product
from downscale.results.items import read_items
from downscale.study.preparation import prepare
from downscale.study.tasks import Task, tasks_of, urgency
from downscale.study.workers import Queue

STUDY = '''
from ml_collections import ConfigDict

def get_config(arg=''):
    rates = dict(language=3e-3)
    common = dict(batch=8, length=176, tiles=0, rates=rates, save_every=2)
    return ConfigDict(dict(
        study='tiny', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=1, W=32, H=2, F=64, patch=20, image=80),
        world=dict(min_objects=2, max_objects=3, n_facts=8),
        data=dict(train=24, validation=4, test=6),
        stages=dict(text=dict(steps=8, **common), reason=dict(steps=8, **common)),
        evaluation=dict(scenes=4, batch=32, write=64, think=16, texts=['caption'])))

def sweep(arg=''):
    return [dict(size='w32d1', seed=0)]
'''


def smoke_cells():
    study_config, sweep = file.load_study(ROOT / 'experiments' / 'smoke.py', [])
    with study_config.unlocked():
        del study_config['platform']
    return cells_of(study_config, sweep)


def test_every_task_comes_after_the_tasks_it_needs():
    seen = set()
    for task in tasks_of(smoke_cells()):
        assert seen.issuperset(task.needs), task.name
        seen.add(task.name)


def test_a_task_is_more_urgent_than_whatever_waits_for_it():
    tasks = tasks_of(smoke_cells())
    value = urgency(tasks)
    for task in tasks:
        for need in task.needs:
            assert value[need] > value[task.name]


def test_a_thousand_cells_are_ordered_in_no_time():
    """All reasoners of a seed read what all its cells write, so needs grow with the square."""
    shared, cell = [cell for cell in smoke_cells() if cell.name in ('tower-s0', 'w32d1-s0')]
    many = [shared, *(dataclasses.replace(cell, name=f'w32d1-s0-{k}') for k in range(1000))]
    began = time.process_time()
    tasks = tasks_of(many)
    order = urgency(tasks)
    assert time.process_time() - began < 1
    assert len(tasks) == len(order) > 8000 and max(len(task.needs) for task in tasks) == 2001


def test_the_urgency_of_a_task_is_the_cost_of_the_longest_chain_that_it_starts():
    def task(name, cost, *needs):
        return Task(name=name, experiment=None, stage='', kind='train', needs=needs, cost=cost)
    tasks = [task('a', 1), task('b', 5), task('c', 2, 'a'), task('d', 7, 'a'), task('e', 1, 'c')]
    assert urgency(tasks) == {'a': 8, 'b': 5, 'c': 3, 'd': 7, 'e': 1}


def test_a_stage_without_room_for_its_texts_is_refused_before_any_begins(tmp_path):
    config, sweep = file.load_study(ROOT / 'experiments' / 'smoke.py', [
        'stages.tower.length=24', 'data.train=20', 'data.validation=2', 'data.test=4',
        'evaluation.scenes=2'])
    with config.unlocked():
        del config['platform']
    cells = cells_of(config, sweep)
    with pytest.raises(ValueError, match=r'^stage tower: .* do not fit a row of 24 tokens'):
        prepare(tmp_path, 'smoke', cells, True)
    assert not (tmp_path / 'study.json').exists() and not (tmp_path / 'cells').exists()
    # A stage that has begun is told by its own run; what stands behind it is looked at.
    (tmp_path / 'cells' / 'tower-s0' / 'tower').mkdir(parents=True)
    prepare(tmp_path, 'smoke', cells, True)


def piece(seed, test=4, steps=2):
    config, sweep = file.load_study(f'{ROOT}/experiments/smoke.py:{seed}', [
        'data.train=20', 'data.validation=2', f'data.test={test}', 'evaluation.scenes=2',
        f'stages.text.steps={steps}'])
    with config.unlocked():
        del config['platform']
    return cells_of(config, sweep)


def begin(study, cells, *names):
    for cell in cells:
        if cell.name in names:
            save(cell, study / 'cells' / cell.name / cell.stages[0].name)


def test_what_an_earlier_piece_has_begun_stays_part_of_the_study(tmp_path, capsys):
    """A study that is run seed by seed is one study: its report reads all that is there."""
    def stands():
        value = json.loads((tmp_path / 'study.json').read_text())
        runs = [run['run_id'] for run in value['runs']]
        assert len(runs) == len(set(runs)) and set(value['stages']) >= set(runs)
        return set(runs)
    first = {cell.name: cell for cell in piece(0)}
    prepare(tmp_path, 'smoke', list(first.values()), True)
    begin(tmp_path, first.values(), 'tower-s0', 'w32d1-s0')  # the others never began
    second = {cell.name for cell in piece(1) if not cell.is_shared}
    capsys.readouterr()
    prepare(tmp_path, 'smoke', piece(1), False)
    assert stands() == second | {'w32d1-s0'}
    assert '2 cells of earlier commands stay part of this study: tower-s0, w32d1-s0' in ' '.join(
        capsys.readouterr().out.split())
    # All at once, and again: nothing is there twice, and nothing is earlier.
    prepare(tmp_path, 'smoke', [*first.values(), *piece(1)], True)
    assert stands() == second | {name for name, cell in first.items() if not cell.is_shared}
    # Of another study, or of other questions, nothing is taken over.
    prepare(tmp_path, 'another', piece(1), True)
    assert stands() == second
    begin(tmp_path, piece(1), 'tower-s1', 'w32d1-s1')
    prepare(tmp_path, 'another', piece(0, test=5), True)
    assert not stands() & second


def test_a_piece_of_other_settings_is_refused(tmp_path):
    """Seeds of a study that differ in more than the seed would be averaged into one number."""
    prepare(tmp_path, 'smoke', piece(0), True)
    begin(tmp_path, piece(0), 'tower-s0', 'w32d1-s0')
    with pytest.raises(ValueError, match='^w32d1-s0 in .* was begun under other settings than '
                                         'w32d1-s1 has now; put them back'):
        prepare(tmp_path, 'smoke', piece(1, steps=3), True)
    # Nothing was written for it, and the piece as it was declared still fits.
    prepare(tmp_path, 'smoke', piece(1), True)


def test_a_cell_of_an_earlier_piece_needs_those_that_it_goes_on_from(tmp_path):
    prepare(tmp_path, 'smoke', piece(0), True)
    begin(tmp_path, piece(0), 'w32d1-s0')
    with pytest.raises(ValueError, match='^w32d1-s0 in .* goes on from tower-s0, whose folder is '
                                         'gone; delete that of w32d1-s0 too'):
        prepare(tmp_path, 'smoke', piece(1), True)


def start(folder, study_file):
    command = [sys.executable, '-m', 'downscale.commands.main', 'study', str(study_file), '--out',
               str(folder), '--jobs', '1', '--quiet']
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla_flags()}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(folder, study_file):
    process = start(folder, study_file)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output


def results(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for pattern in
            ('cells/*/*/metrics.jsonl', 'evaluations/*/items.parquet')
            for path in sorted(folder.glob(pattern))}


@pytest.mark.slow
def test_a_killed_study_ends_with_the_same_bytes_as_an_undisturbed_one(tmp_path):
    """Killed in a trunk, in a fork of it, and in what learns from it and comes behind.

    The small cell stands first, waits for the stage of the large one, and learns from it.
    """
    study_file = tmp_path / 'tiny.py'
    study_file.write_text(STUDY.replace(
        'text=dict(steps=8,', 'text=dict(steps=12, forks=(6,), decay=0.5,').replace(
        "[dict(size='w32d1', seed=0)]", """[
            {'size': 'w32d1', 'seed': 0, 'stages.text.teacher': 'w64d2/text',
             'stages.text.distil': 0.5}, {'size': 'w64d2', 'seed': 0}]"""))
    finish(tmp_path / 'whole', study_file)
    tables = list((tmp_path / 'whole' / 'evaluations').glob('*/items.parquet'))
    assert tables and all(read_items(path).num_rows > 0 for path in tables)
    small = min((path.parent.name for path in (tmp_path / 'whole').glob('cells/w32d1*/text')),
                key=len)

    folder = tmp_path / 'killed'
    for moment in ('w64d2-s0/text/checkpoints/4', 'w64d2-s0-steps6/text/checkpoints/4',
                   f'{small}/reason/checkpoints/2'):
        process = start(folder, study_file)
        saved = folder / 'cells' / moment
        wait_until(lambda saved=saved, ended=process.poll: saved.exists() or ended() is not None)
        assert process.poll() is None
        assert not moment.startswith('w64d2-s0/') or not (folder / 'cells' / small).exists()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finish(folder, study_file)
    assert len(results(folder)) == 2 * 2 * 3  # a trunk and a fork of two sizes, twice trained
    assert results(folder) == results(tmp_path / 'whole')
    levels = json.loads((folder / 'study.json').read_text())['factors']['stages.text.steps']
    assert sorted(levels.values()) == [6, 6, 12, 12]
    rows = (folder / 'cells' / small / 'text' / 'metrics.jsonl').read_text().splitlines()
    last = json.loads(rows[-1])
    assert last['loss'] == pytest.approx((last['kl'] + last['cross_entropy']) / 2, rel=1e-6)
    html = (folder / 'report' / 'report.html').read_text()
    assert f'{small}/text learns from w64d2-s0/text: its loss is 0.5 x KL(teacher || student)' \
        in html

    done = folder / 'cells' / small / 'text' / 'DONE.json'
    before = done.stat().st_mtime_ns
    finish(folder, study_file)
    assert done.stat().st_mtime_ns == before
    assert json.loads(done.read_text())['steps'] == 12


def lookup_cells(rates=(1e-3, 3e-3, 1e-2), sizes=('w32d2',)):
    """Cells of two text stages that differ in their rate, of each size."""
    study_config, _ = file.load_study(ROOT / 'experiments' / 'lookup.py', [])
    with study_config.unlocked():
        del study_config['platform']
    return cells_of(study_config, product(axis('size', sizes), axis('seed', [0]), axis(
        'stages.text.rates.language', rates)))


def started(queue):
    """Names of what a queue starts now, a list for each worker, without the words they share."""
    found = queue.next()
    for tasks in found:
        queue.running[object()] = tasks
    return [[task.name.replace('-s0-language', ' ') for task in tasks] for tasks in found]


def queue_of(cells, jobs, together):
    return Queue('study', tasks_of(cells), cells, jobs, together, 'none')


@pytest.mark.parametrize('jobs, together, wanted', [
    (1, 1, [['w32d2 0.001/text']]),
    (1, 8, [['w32d2 0.001/text', 'w32d2 0.003/text', 'w32d2 0.01/text']]),
    (1, 2, [['w32d2 0.001/text', 'w32d2 0.003/text']]),
    (2, 8, [['w32d2 0.001/text', 'w32d2 0.003/text'], ['w32d2 0.01/text']]),
    (4, 8, [['w32d2 0.001/text'], ['w32d2 0.003/text'], ['w32d2 0.01/text']]),
])
def test_cells_of_one_program_start_together_and_no_worker_stands_idle(jobs, together, wanted):
    assert started(queue_of(lookup_cells(), jobs, together)) == wanted


def test_cells_of_two_sizes_share_no_program_and_stages_wait_for_their_own():
    queue = queue_of(lookup_cells((1e-3, 1e-2), ('w32d2', 'w64d2')), 1, 8)
    assert started(queue) == [['w64d2 0.001/text', 'w64d2 0.01/text']]  # the larger is urgent
    assert not queue.next()  # the worker is taken
    (tasks,) = queue.running.values()
    queue.running.clear()
    queue.done.add(tasks[0].name)
    queue.failed[tasks[1].name] = 'a reason'
    assert started(queue) == [['w64d2 0.001/reason']]
    assert queue.failed['w64d2-s0-language0.01/reason'] is None


@pytest.mark.parametrize(('devices', 'kept'), [(1, True), (4, False)])
def test_compiled_programs_are_kept_for_one_cpu_device_and_not_for_several(tmp_path, devices, kept):
    script = ('import jax, sys; from downscale.study.workers import use_cache; '
              'use_cache(sys.argv[1]); '
              'jax.config.update("jax_persistent_cache_min_compile_time_secs", 0); '
              'jax.jit(lambda x: x + 1)(jax.numpy.arange(4.))')
    flags = f'--xla_force_host_platform_device_count={devices}'
    folder = tmp_path / 'programs'
    subprocess.run([sys.executable, '-c', script, folder], check=True, cwd=ROOT, env={
        **os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags,
        'JAX_COMPILATION_CACHE_DIR': str(folder)})
    assert (folder.is_dir() and any(folder.iterdir())) == kept


@pytest.mark.slow
def test_a_study_trains_cells_together_and_one_that_fails_stops_no_other(tmp_path):
    """At one of the rates of the sweep nothing stays finite."""
    study_file, folder = tmp_path / 'tiny.py', tmp_path / 'study'
    study_file.write_text(STUDY.replace(', reason=dict(steps=8, **common)', '').replace(
        "[dict(size='w32d1', seed=0)]", """[
            {'size': 'w32d1', 'seed': 0, 'stages.text.rates.language': rate}
            for rate in (1e-3, 1e-2, 1e38)]"""))
    command = [sys.executable, '-m', 'downscale.commands.main', 'study', str(study_file), '--out',
               str(folder), '--jobs', '1', '--together', '4']
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={
        **os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla_flags()})
    assert ran.returncode == 1, ran.stdout + ran.stderr
    names = [f'w32d1-s0-language{rate}/text' for rate in ('0.001', '0.01', '1e+38')]
    assert f'together: {", ".join(names)}' in ran.stdout
    assert f'failed: {names[2]}: step ' in ran.stdout
    assert f'1 of 3 tasks failed ({names[2]}: step ' in ran.stderr
    assert [(folder / 'cells' / name / 'DONE.json').exists() for name in names] == [1, 1, 0]
    assert (folder / 'cells' / names[2] / 'FATAL.json').exists()
    assert len(list(folder.glob('cells/*/text/tensorboard/events.*'))) == 3

"""Sizes that are cut from others: what their names mean, and what their cells start from."""
from dataclasses import replace

import pytest
from ml_collections import ConfigDict
from roots import ROOT

from downscale import config
from downscale.experiment import file
from downscale.experiment.expansion import cells_of, language_of
from downscale.experiment.shrunk import base_of, bits_of, label, way_of
from downscale.sizes import Parametrisation
from downscale.study.preparation import budgets_of, ways_of
from downscale.study.tasks import tasks_of

SHRINK = {'size': 'w32d2-d1', 'seed': 0, 'stages': ('shrink', 'heal')}
BASE = {'size': 'w32d2', 'seed': 0}


def cells(*points, **changes):
    """The cells of a study with stages that cut and heal."""
    study_config, _ = file.load_study(str(ROOT / 'tests/data/three_sizes.py'), [])
    value = study_config.to_dict()
    see = value['stages']['instruct']
    value['stages']['shrink'] = {key: see[key] for key in ('batch', 'length', 'tiles')} | {
        'steps': 1}
    value['stages']['heal'] = dict(see)
    for path, part in changes.items():
        *parents, last = path.split('__')
        node = value
        for name in parents:
            node = node[name]
        node[last] = part
    made = ConfigDict(value)
    del made['platform']
    return {cell.name: cell for cell in cells_of(made, points)}


@pytest.mark.parametrize('size, sizes', [
    ('w64d4-d2', dict(N=2)), ('w64d4-f96', dict(F=96)), ('w64d4-h2', dict(H=2, K=1)),
    ('w64d4-int4', {}), ('w64d4-d3-f100-h2-int8', dict(N=3, F=100, H=2, K=1)),
    ('w96d5-d3', dict(N=3))])
def test_a_size_names_what_is_cut(size, sizes):
    base = language_of('micro', base_of(size), 320)
    assert language_of('micro', size, 320) == replace(base, **sizes)
    assert label(base_of(size), base, language_of('micro', size, 320), bits_of(size)) == size


def test_published_sizes_are_cut_as_well():
    whole = language_of('smollm2', '135m', 0)
    assert language_of('smollm2', '135m-d15', 0) == replace(whole, N=15)
    assert language_of('smollm2', '135m-d15-f768-h6', 0) == replace(whole, N=15, F=768, H=6, K=2)


@pytest.mark.parametrize('size', ['w64d4-d0', 'w64d4-d02', 'w64d4-int3', 'w64d4-f96-d2', 'w64d4-',
                                  'w64d4-d2-d1', '-d2', 'w64d4-h'])
def test_a_size_that_says_nothing_is_refused(size):
    with pytest.raises(ValueError, match='unknown micro size') as error:
        language_of('micro', size, 320)
    assert '\n' not in str(error.value) and len(str(error.value)) <= 300


def test_heads_are_cut_in_whole_groups():
    with pytest.raises(ValueError, match='w64d4-h3.*2 share a key/value head; the nearest is'):
        language_of('micro', 'w64d4-h3', 320)


def test_a_cut_cell_starts_from_its_base_and_heals_from_what_is_left():
    made = cells(BASE, SHRINK)
    cell = made['w32d2-d1-s0']
    assert [stage.name for stage in cell.stages] == ['shrink', 'heal']
    assert set(cell.stage('shrink').parents.values()) == {'w32d2/instruct'}
    assert set(cell.stage('heal').parents.values()) == {'shrink'}
    assert set(cell.stage('heal').parents) == {'language', 'tower', 'connector', 'image_newline_D'}
    assert cell.joint_stage == 'heal' and cell.language.N == 1
    tasks = {task.name: task for task in tasks_of(list(made.values()))}
    assert tasks['w32d2-d1-s0/shrink'].needs == ('w32d2-s0/instruct',)
    assert tasks['w32d2-d1-s0/heal'].needs == ('w32d2-d1-s0/shrink',)
    assert tasks['evaluate joint w32d2-d1-s0'].needs == ('w32d2-d1-s0/heal',)
    # Other cells have neither stage unless they name it.
    assert not {'shrink', 'heal'} & {stage.name for stage in made['w32d2-s0'].stages}


@pytest.mark.parametrize('stage, parents', [
    ('instruct', dict.fromkeys(('language', 'tower', 'connector', 'image_newline_D'), 'shrink')),
    ('caption', dict.fromkeys(('language', 'tower', 'connector', 'image_newline_D'), 'shrink')),
    ('text', {'language': 'shrink'}), ('reason', {'language': 'shrink'})])
def test_any_stage_can_heal(stage, parents):
    made = cells(BASE, {**SHRINK, 'stages': ('shrink', stage)})
    assert made['w32d2-d1-s0'].stage(stage).parents == parents


def test_later_stages_follow_the_healed_one():
    cell = cells(BASE, {**SHRINK, 'stages': ('shrink', 'heal', 'caption', 'extract')})[
        'w32d2-d1-s0']
    assert set(cell.stage('caption').parents.values()) == {'heal'}
    assert set(cell.stage('extract').parents.values()) == {'caption'}


def test_what_is_quantised_was_healed_where_its_size_was_cut():
    made = cells(BASE, SHRINK, {'size': 'w32d2-int8', 'seed': 0, 'stages': ('shrink',)},
                 {'size': 'w32d2-d1-int4', 'seed': 0, 'stages': ('shrink',)})
    assert set(made['w32d2-int8-s0'].stage('shrink').parents.values()) == {'w32d2/instruct'}
    assert set(made['w32d2-d1-int4-s0'].stage('shrink').parents.values()) == {'w32d2-d1/heal'}
    assert [made[name].stage('shrink').bits for name in (
        'w32d2-d1-s0', 'w32d2-int8-s0', 'w32d2-d1-int4-s0')] == [0, 8, 4]
    assert made['w32d2-int8-s0'].joint_stage == 'shrink'
    ways = {name: way_of(cell, made) for name, cell in made.items()}
    assert ways == {
        'tower-s0': 'trained', 'w32d2-s0': 'trained', 'w32d2-d1-s0': 'pruned + healed',
        'w32d2-int8-s0': 'quantised', 'w32d2-d1-int4-s0': 'pruned + healed + quantised'}


@pytest.mark.parametrize(('changes', 'way'), [
    ({'stages.instruct.teacher': 'w64d2/instruct'}, 'distilled'),
    ({'stages.text.teacher': 'w64d2/text'}, 'distilled'),
    ({'stages.instruct.teacher': 'w64d2/instruct', 'stages.instruct.distil': 0.}, 'trained'),
    ({'stages.extract.teacher': 'w64d2/extract'}, 'trained'),  # it writes, and answers nothing
    ({'stages.reason.teacher': 'w64d2/reason'}, 'trained')])
def test_a_size_is_distilled_where_what_answers_followed_a_teacher(changes, way):
    made = cells({'size': 'w64d2', 'seed': 0}, BASE | changes)
    found = {way_of(cell, made) for cell in made.values() if cell.size == 'w32d2'}
    assert way in found and found <= {way, 'trained'}


def test_ways_are_a_factor_where_there_are_several():
    assert ways_of([{'run_id': 'a', 'way': 'trained'}, {'run_id': 'b', 'way': 'trained'}]) == {}
    assert ways_of([{'run_id': 'a', 'way': 'trained'}, {'run_id': 'b', 'way': 'quantised'}]) == {
        'way': {'a': 'trained', 'b': 'quantised'}}


def test_a_cut_cell_computes_as_standard_whatever_its_study_says():
    mup = dict(kind='mup', base_width=32, base_depth=2, input=8.0)
    made = cells(BASE, SHRINK, parametrisation=mup)
    assert made['w32d2-s0'].parametrisation.kind == 'mup'
    assert made['w32d2-d1-s0'].parametrisation == Parametrisation()
    with pytest.raises(ValueError, match='a cell that is shrunk computes as standard'):
        cells(BASE, {**SHRINK, 'parametrisation.input': 8.0})


def test_cells_that_cut_nothing_keep_their_hash_and_their_file(tmp_path):
    cell = cells(BASE, SHRINK)['w32d2-d1-s0']
    config.save(cell, tmp_path)
    assert config.load(tmp_path) == cell
    text = (tmp_path / 'experiment.json').read_text()
    assert text.count('"by"') == text.count('"bits"') == 1   # of shrink alone
    heal = cells(BASE, SHRINK, stages__shrink__by='position')['w32d2-d1-s0']
    assert heal.hash != cell.hash
    assert cells(BASE)['w32d2-s0'].hash == cells(BASE, SHRINK)['w32d2-s0'].hash
    assert budgets_of([cell]) == {}


@pytest.mark.parametrize('points, changes, message', [
    ((BASE, {'size': 'w32d2-int8', 'seed': 0}), {}, 'made by the stage shrink'),
    ((BASE, {'size': 'w32d2-int8', 'seed': 0, 'stages': ('shrink', 'heal')}), {},
     'stage heal would train weights of 8 bits away'),
    ((SHRINK,), {}, "unknown stage 'w32d2/instruct'"),
    ((BASE, SHRINK), dict(stages__shrink__bits=4), 'bits is of the size'),
    ((BASE, SHRINK), dict(stages__shrink__by='influense'), "did you mean 'influence'"),
    ((BASE, SHRINK), dict(stages__shrink__group=0), 'group = 0 must be at least 1'),
    ((BASE, SHRINK), dict(stages__shrink__trainable=('language',)), 'trains nothing'),
    ((BASE, SHRINK), dict(stages__heal__trainable=()), 'must have at least 1 entries'),
    ((BASE, SHRINK), dict(stages__heal__by='position'), 'stage heal: by is for the stage shrink'),
    ((BASE, {**SHRINK, 'size': 'w32d2-d3'}), {}, 'cannot be cut from w32d2-s0'),
    ((BASE, {'size': 'w64d2', 'seed': 0, 'stages': ('shrink',),
             'stages.shrink.parents': {'language': 'w32d2/instruct'}}), {},
     'cannot be cut from w32d2-s0: its size w64d2 must be w32d2 with fewer'),
])
def test_what_cannot_be_is_refused_in_one_line_before_any_work(points, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        cells(*points, **changes)
    assert '\n' not in str(error.value) and len(str(error.value)) <= 300

"""Sweeps: what combinations give, what is refused, and that cells differ by what a point says."""
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roots import ROOT

from downscale import config
from downscale.experiment import file, names, sweeps
from downscale.experiment.expansion import cells_of
from downscale.experiment.sweeps import axis, product, union, zipped
from downscale.runtime.files import read_json
from downscale.stages.folders import folder_of, refuse_other
from downscale.study.preparation import _run_row, prepare

SMOKE = str(ROOT / 'tests/data/three_sizes.py')
RATE = 'stages.text.rates.language'
SIZES, SEEDS = axis('size', ['w32d2', 'w64d2']), axis('seed', [0, 1])


def smoke_cells(sweep, more=None):
    study_config, _ = file.load_study(SMOKE, ())
    with study_config.unlocked():
        del study_config['platform']
        study_config.update(more or {})
    return cells_of(study_config, sweep)


def test_a_product_has_every_combination_and_the_last_varies_fastest():
    assert product(SIZES, SEEDS) == [
        {'size': 'w32d2', 'seed': 0}, {'size': 'w32d2', 'seed': 1},
        {'size': 'w64d2', 'seed': 0}, {'size': 'w64d2', 'seed': 1}]
    assert product(SIZES, []) == [] and product(SIZES) == SIZES


def test_zipped_sweeps_go_in_step():
    assert zipped(SIZES, SEEDS) == [{'size': 'w32d2', 'seed': 0}, {'size': 'w64d2', 'seed': 1}]


def test_a_union_keeps_the_order():
    assert union(SIZES, axis('size', ['w64d4'])) == axis('size', ['w32d2', 'w64d2', 'w64d4'])


def test_one_value_of_a_key_may_come_from_two_sweeps():
    both = product(axis('size', ['w32d2']), product(axis('size', ['w32d2']), SEEDS))
    assert both == product(axis('size', ['w32d2']), SEEDS)


@pytest.mark.parametrize('combined, message', [
    (lambda: product(SIZES, SIZES), "cannot have size 'w32d2' and 'w64d2'"),
    (lambda: zipped(SIZES, axis('size', ['w64d2', 'w32d2'])), 'cannot have size'),
    (lambda: zipped(SIZES, axis('seed', [0, 1, 2])), r'one length, not of \[2, 3\]'),
    (lambda: union(SIZES, axis('size', ['w64d2'])), "the point {'size': 'w64d2'} twice"),
    (lambda: axis('seed', [1, 1]), 'twice'),
])
def test_what_cannot_be_combined_is_refused_in_one_line(combined, message):
    with pytest.raises(ValueError, match=message) as error:
        combined()
    assert '\n' not in str(error.value)


def test_a_point_changes_its_own_cell_only_and_names_it():
    one = product(axis('size', ['w32d2']), axis('seed', [0]))
    both = zipped(axis(RATE, [1e-3, 1e-2]), axis('stages.reason.rates.language', [1e-3, 1e-2]),
                  axis('optimizer.weight_decay', [0.0, 0.1]))
    slow, fast, plain = smoke_cells(union(product(one, both), one))[1:]
    assert [cell.name for cell in (plain, slow, fast)] == [
        'w32d2-s0', 'w32d2-s0-language0.001-weight_decay0.0',
        'w32d2-s0-language0.01-weight_decay0.1']
    rates = [[cell.stage(name).rates['language'] for name in ('text', 'reason', 'instruct')]
             for cell in (plain, slow, fast)]
    assert rates == [[4e-3] * 3, [1e-3, 1e-3, 4e-3], [1e-2, 1e-2, 4e-3]]
    assert [cell.optimizer.weight_decay for cell in (plain, slow, fast)] == [0, 0, 0.1]
    assert len({cell.hash for cell in (plain, slow, fast)}) == 3


def test_the_tower_of_a_seed_is_untouched_by_what_its_cells_change():
    point = {'size': 'w32d2', 'seed': 0}
    assert smoke_cells([point])[0].hash == smoke_cells([{**point, 'optimizer.b1': 0.5}])[0].hash


@pytest.mark.parametrize('point, message', [
    ({'stages.text.rates.langage': 1e-3}, "unknown key 'langage'; did you mean 'language'"),
    ({'stages.txt.rates.language': 1e-3}, "unknown key 'txt'; did you mean 'text'"),
    ({'optimiser.b1': 0.9}, "unknown key 'optimiser.b1'; did you mean 'optimizer'"),
    ({'optimizer.b3': 0.9}, "unknown key 'b3'; did you mean"),
    ({'data.trian': 10}, "unknown key 'trian'; did you mean 'train'"),
    ({'data': {'train': 10}}, "unknown key 'data'"),
    ({'evaluation': 3}, "unknown key 'evaluation'"),
    ({'evaluation.thinks': 10}, "unknown key 'thinks'; did you mean 'think'"),
    ({'vision.patches': 10}, "unknown key 'patches'; did you mean 'patch'"),
    ({'world.n_facts': 'x'}, "n_facts = 'x' must be of type int"),
    ({'trained_as': 'w32d2-s0'}, "unknown key 'trained_as'"),
    ({'stages.tower.steps': 3}, 'share the tower'),
    ({'stages': ('txt',)}, "unknown stage 'txt'; did you mean 'text'"),
    ({'stages.text.steps': 'many'}, "steps = 'many' must be of type int"),
    ({'sed': 1}, "unknown key 'sed'; did you mean 'seed'"),
])
def test_a_wrong_key_of_a_point_is_named_with_the_nearest(point, message):
    with pytest.raises(ValueError, match=message) as error:
        smoke_cells([{'size': 'w32d2', 'seed': 0, **point}])
    assert '\n' not in str(error.value)


WEIRD = [
    'data/built/a', 'data/built/b', 'data/built/A', ('language', 'connector'), ('language',),
    [{'batch': 4, 'length': 24, 'tiles': 0}], [{'tiles': 0, 'length': 25, 'batch': 4}], {}, [],
    {'b': 1, 2: {'c': None}}, None, '', ' ', '.', '..', '-rf', '--', '~', 'ünï', '🔥', '猫' * 300,
    'x' * 300, 'x' * 299, 'a\nb', 'a b', 'a,b', "it's", '"q"', '$(reboot)', '`x`', 'a\x00b',
    '../../etc', '/etc', 'C:\\x', 'Aa', 'aA', 1, 1.5, 1e-3, 1e-5, 1e22, -0.5, True, False,
    float('nan'), float('inf'), 10 ** 60, 'con', 'a=b', '%2f', 'a;b', 'a|b', '*', '?', '\ud800']
SAFE = re.compile('[a-z0-9][a-z0-9._+-]*')


def test_whatever_a_value_is_its_cell_has_a_short_safe_name_of_its_own():
    points = [{'size': 'w32d2', 'seed': 0, 'stages.text.mixture': value} for value in WEIRD]
    found = [sweeps.name_of(point) for point in points]
    assert len(set(found)) == len(WEIRD)
    for name in found:
        assert SAFE.fullmatch(name) and len(name) <= names.LONGEST and '..' not in (name, name[:2])
    for form in (names.GOOGLE, names.KUBERNETES):
        labels = [names.label(name, form) for name in found]
        assert len(set(labels)) == len(labels) and all(map(form.fullmatch, labels))


@given(st.lists(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6), min_size=2, max_size=2))
@settings(max_examples=300, deadline=None)
def test_any_two_values_have_two_safe_names_or_one_where_they_are_written_alike(values):
    one, other = (sweeps.name_of({'size': 'w32d2', 'seed': 0, 'stages.text.mixture': value})
                  for value in values)
    assert SAFE.fullmatch(one) and len(one) <= names.LONGEST
    assert (one == other) == (names.digest(values[0]) == names.digest(values[1])
                              or str(values[0]) == str(values[1]))


def test_many_changes_give_a_name_that_is_cut_and_still_its_own():
    points = [{'size': 'w32d2', 'seed': 0, **{
        f'stages.{stage}.{key}': value + last for stage in ('text', 'align', 'instruct')
        for key in ('steps', 'save_every', 'turns', 'batch', 'length')
        for value in (len(stage) * len(key) * 1000,)}} for last in (0, 1)]
    one, other = map(sweeps.name_of, points)
    assert one != other and len(one) == len(other) == names.LONGEST


def test_two_changes_of_one_mixture_train_in_two_folders_inside_the_study():
    sweep = product(axis('size', ['w32d2']), axis('seed', [0]),
                    axis('stages.text.mixture', ['data/a', 'data/b', '../../c']))
    cells = list(smoke_cells(sweep)[1:])
    folders = {folder_of('s', cell, 'text') for cell in cells}
    assert {folder.parent.parent for folder in folders} == {Path('s/cells')} and len(folders) == 3
    assert [file.find_cell(cells, cell.name) for cell in cells] == cells


@pytest.mark.parametrize('sweep, message', [
    ([], r'sweep\(\) gives \[\]; it must give a list of points'), (None, 'gives None'),
    (5, 'gives 5'), ([5], 'the point 5 of the sweep must be a mapping'),
    ([{'size': 'w32d2', 'seed': '0'}], "seed '0' must be of type int"),
    ([{'size': 'w32d2', 'seed': True}], 'seed True must be of type int'),
    ([{'size': 'w32d2', 'seed': -1}], 's-1.seed = -1 must be at least 0'),
    ([{'size': 'w32d2', 'seed': 2 ** 32}], 'seed = 4294967296 must be at least 0 and at most'),
    ([{'size': 32, 'seed': 0}], 'size 32 must be of type str'),
    ([{'size': 'w32d²', 'seed': 0}], 'unknown micro size'),
    ([{'size': 'w032d2', 'seed': 0}], 'unknown micro size'),
    ([{'size': 'w32d2', 'seed': 0, 'stages': None}], 'stages None must be a list of names'),
    ([{'size': 'w32d2', 'seed': 0, 'imports': None}], 'imports None must be of type dict'),
    ([{'size': 'w32d2', 'seed': 0, RATE: rate} for rate in (1, 1.0)], 'twice'),
    ([{'size': 'w32d2', 'seed': 0, 'stages.text.mixture': 'x' * 5000,
       'stages.align.mixture': 'y' * 5000, 'data.x' * 200: 1}], 'unknown key'),
])
def test_a_sweep_of_another_form_is_refused_in_one_short_line(sweep, message):
    with pytest.raises(ValueError, match=message) as error:
        smoke_cells(sweep)
    assert '\n' not in str(error.value) and len(str(error.value)) <= 300


def test_a_parent_of_the_size_is_not_taken_for_one_that_the_cell_trains_itself():
    """A repair by two stages, whose second would not have gone on from the first."""
    plain = {'size': 'w32d2', 'seed': 0}
    groups = ('language', 'tower', 'connector')
    both = {**plain, 'stages': ('instruct', 'extract'), 'stages.instruct.steps': 3,
            'stages.instruct.parents': dict.fromkeys(groups, '{size}/align')}
    size_of = dict.fromkeys(groups, '{size}/instruct')
    with pytest.raises(ValueError, match="stage extract, parents: {size}/instruct is that of "
                                         "w32d2-s0, and this cell trains its own; write 'instruct' "
                                         "or '/w32d2-s0/instruct'"):
        smoke_cells([plain, both | {'stages.extract.parents': size_of}])
    for name in ('instruct', '/w32d2-s0/instruct'):
        cell = smoke_cells([plain, both | {'stages.extract.parents': dict.fromkeys(
            groups, name)}])[-1]
        assert [stage.name for stage in cell.stages] == ['instruct', 'extract']
    # What goes on in its own stage means that of the plain cell, as does one that trains no other.
    smoke_cells([plain, both | {'stages.instruct.parents': size_of, 'stages': ('instruct',)}])
    smoke_cells([plain, {**plain, 'stages': ('extract',), 'stages.extract.steps': 3,
                         'stages.extract.parents': size_of}])


def test_a_stage_that_starts_from_none_of_its_cell_is_refused_at_once():
    """It would wait for ever."""
    for parents, message in (({'language': 'txt'}, "unknown stage 'txt'; did you mean 'text'"),
                             ({'language': 'reason'}, "unknown stage 'reason'"),
                             ({'language': 'other/text'}, "unknown stage 'other/text'")):
        with pytest.raises(ValueError, match=f'stage align, parents: {message}'):
            smoke_cells([{'size': 'w32d2', 'seed': 0, 'stages.align.parents': parents}])


def test_a_point_without_size_or_seed_and_cells_of_one_name_are_refused():
    with pytest.raises(ValueError, match='has no size and no seed'):
        smoke_cells([{RATE: 1e-3}])
    both = [{'size': 'w32d2', 'seed': 0, f'stages.{stage}.steps': 3} for stage in ('text', 'align')]
    with pytest.raises(ValueError, match='two cells would be called w32d2-s0-steps3'):
        smoke_cells(both)


def test_study_json_says_what_a_run_changes():
    one, changed = [{'size': 'w32d2', 'seed': 0, **more} for more in ({}, {RATE: 1e-3})]
    assert [_run_row(cell, {})['changes'] for cell in smoke_cells([one, changed])[1:]] == [
        '', 'language0.001']


def test_a_budget_is_a_label_that_study_json_keeps(tmp_path):
    """It changes neither the name nor the hash of a cell, and a run goes on under another."""
    plain, = smoke_cells([{'size': 'w32d2', 'seed': 0}])[1:]
    steps = zipped(axis('size', ['w32d2', 'w64d2']), axis('stages.text.steps', [40, 20]))
    point = product(steps, axis('seed', [0]), axis('budget', ['1e10']))
    small, large = smoke_cells(point)[1:]
    assert (small.name, large.name) == ('w32d2-s0-steps40', 'w64d2-s0-steps20')
    assert smoke_cells([{'size': 'w32d2', 'seed': 0, 'budget': '1e9'}])[1].hash == plain.hash
    config.save(plain, tmp_path)
    refuse_other(tmp_path, replace(plain, budget='1e9'))
    prepare(tmp_path / 'run', 'tiny', [plain, small, large], True)
    assert read_json(tmp_path / 'run' / 'study.json')['budgets'] == {
        small.name: '1e10', large.name: '1e10'}


def test_a_label_is_what_a_run_is_told_to_change(tmp_path):
    """It changes neither the name nor the hash of a cell; a run goes on under another."""
    point = {'size': 'w32d2', 'seed': 0, RATE: 1e-3}
    plain, = smoke_cells([point])[1:]
    named, = smoke_cells([point | {'label': 'slow'}])[1:]
    assert (named.name, named.hash, named.label) == (plain.name, plain.hash, 'slow')
    assert _run_row(named, {})['changes'] == 'slow'
    assert (plain.name, _run_row(plain, {})['changes']) == ('w32d2-s0-language0.001',
                                                            'language0.001')
    config.save(plain, tmp_path)
    refuse_other(tmp_path, named)
    config.save(named, tmp_path)
    assert config.load(tmp_path).label == 'slow'


def test_a_piece_keeps_the_labels_of_others_and_gives_its_own_to_all_seeds(tmp_path):
    def piece(seed, *changes):
        cells = smoke_cells([{'size': 'w32d2', 'seed': seed, **more} for more in changes])
        prepare(tmp_path, 'tiny', cells, True)
        for cell in cells:
            config.save(replace(cell, label=''),
                        tmp_path / 'cells' / cell.name / cell.stages[0].name)
        runs = read_json(tmp_path / 'study.json')['runs']
        return {run['run_id']: run['changes'] for run in runs}
    slow, slower = {RATE: 1e-3}, {RATE: 1e-4}
    assert piece(0, slow, slower | {'label': 'very'}) == {
        'w32d2-s0-language0.001': 'language0.001', 'w32d2-s0-language0.0001': 'very'}
    assert piece(1, slow | {'label': 'slow'}) == {
        'w32d2-s0-language0.001': 'slow', 'w32d2-s0-language0.0001': 'very',
        'w32d2-s1-language0.001': 'slow'}
    # A label that is taken away goes for all seeds, and one that is not named stays as it was.
    assert piece(2, slow) == {
        **{f'w32d2-s{seed}-language0.001': 'language0.001' for seed in (0, 1, 2)},
        'w32d2-s0-language0.0001': 'very'}


@pytest.mark.parametrize(('more', 'line'), [
    ([{RATE: 1e-3, 'label': 'a'}, {RATE: 2e-3, 'label': 'a'}],
     "w32d2-s0-language0.001 and w32d2-s0-language0.002 would both be called 'a' in tables"),
    ([{RATE: 1e-3}, {RATE: 2e-3, 'label': 'language0.001'}],  # what the other is called without one
     "would both be called 'language0.001' in tables"),
    *(([{RATE: 1e-3, 'label': label}], 'must be a line of at most 60 characters')
      for label in ('a\nb', '  ', ' a', 'x' * 61, 'a\x1b[31m')),
    ([{'label': 'plain'}], "label 'plain' is for what a point changes"),
    ([{'budget': '1e9', 'label': 'b'}], "label 'b' is for what a point changes"),
    ([{RATE: 1e-3, 'label': 3}], 'label 3 must be of type str')])
def test_a_label_names_one_thing(more, line):
    with pytest.raises(ValueError, match=line) as caught:
        smoke_cells([{'size': 'w32d2', 'seed': 0, **each} for each in more])
    assert len(str(caught.value)) <= 300


def test_seeds_and_sizes_share_a_label_and_forks_have_their_own():
    points = product(axis('size', ['w32d2', 'w64d2']), axis('seed', [0, 1]),
                     [{RATE: 1e-3, 'stages.text.decay': .4, 'stages.text.forks': (20,),
                       'label': 'slow'}])
    found = {(cell.size, cell.seed, cell.label, 'steps20' in cell.name)
             for cell in smoke_cells(points) if not cell.is_shared}
    assert found == {(size, seed, label, label != 'slow') for size in ('w32d2', 'w64d2')
                     for seed in (0, 1) for label in ('slow', 'slow steps20')}


def test_a_labelled_cell_that_is_asked_otherwise_trains_nothing():
    points = [{'size': 'w32d2', 'seed': 0}, {
        'size': 'w32d2', 'seed': 0, 'evaluation.think': 8, 'label': 'short thoughts'}]
    plain, asked = (cell for cell in smoke_cells(points) if not cell.is_shared)
    assert (asked.trained_as, asked.label) == (plain.name, 'short thoughts')


def test_labels_are_for_points_alone():
    with pytest.raises(ValueError, match='label is declared by the points of sweep'):
        smoke_cells([{'size': 'w32d2', 'seed': 0}], {'label': 'x'})


def test_the_same_point_given_twice_is_refused_before_any_work():
    point = {'size': 'w32d2', 'seed': 0}
    for again in ([point, point], [point, dict(point)]):  # one object twice, two that are equal
        with pytest.raises(ValueError, match='the sweep has the point .* twice'):
            smoke_cells(again)

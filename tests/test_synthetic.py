"""Synthetic studies: their truth is what they draw from, and their files are those of a study."""
import numpy as np
import pytest

from downscale.analysis import measures, synth
from downscale.analysis.planted.study import NOTHING, RELIANCE, Planted
from downscale.results.study import load_study, pair


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp('synthetic') / 'study'
    return synth(3, place, sizes=2, seeds=2, items=48)


def test_answers_are_right_as_often_as_the_truth_says():
    found = synth(1, sizes=2, seeds=1, items=8_000, planted=Planted(seed=0.))
    paired = {cell: pair(found.study, [[cell]]) for cell in found.study.cells}
    off = []
    for cell, one in paired.items():
        sizes = cell._replace(p_run=cell.p_run.partition('-')[0],
                              r_run=cell.r_run.partition('-')[0])
        for task in RELIANCE:
            here = one.scores[0][one.task == task]
            truth = found.truth['accuracy'][sizes][task]
            off.append((here.mean() - truth) / np.sqrt(truth * (1 - truth) / len(here)))
    # luck is shared by all cells, so that these are not as many independent numbers
    assert len(off) == 28 * len(RELIANCE)
    assert np.abs(off).max() < 4.5 and .4 < np.sqrt(np.mean(np.square(off))) < 1.6


def test_nothing_planted_leaves_nothing_to_find():
    truth = synth(1, sizes=2, seeds=1, items=16, planted=NOTHING).truth
    small = {name: value for name, value in truth['claims'].items() if abs(value) > 1e-9}
    assert set(small) <= {'chain_minus_joint'} and abs(small.get('chain_minus_joint', 0)) < .01
    assert max(map(abs, truth['shares'].values())) < 1e-9
    planted = synth(1, sizes=2, seeds=1, items=16).truth
    assert planted['claims']['visual_minus_knowledge'] > .15
    assert planted['shares']['perception'] + planted['shares']['reasoner'] == pytest.approx(
        np.mean([planted['accuracy'][top][task] - planted['accuracy'][low][task]
                 for task in RELIANCE for top, low in [_ends(planted)]]))


def _ends(truth):
    cells = [cell for cell in truth['accuracy'] if cell.text_kind == 'extraction'
             and cell.thinking and cell.p_run and cell.p_run == cell.r_run]
    return cells[-1], cells[0]


def test_the_folder_holds_what_a_real_study_holds(folder):
    study = load_study(folder.folder)
    assert study.unfinished == () and study.notes == ()
    assert {size.seeds for size in measures.sizes_of(study.meta)} == {(0, 1)}
    assert list(folder.folder.glob('pictures/*-0.png'))
    # experiment.json is one that a checkpoint is rebuilt from
    from downscale import config
    cell = config.load(folder.folder / 'cells' / 'w32d2-s1' / 'extract')
    assert (cell.size, cell.seed, cell.stage('extract').parents['tower']) == (
        'w32d2', 1, 'instruct')


def test_equal_seeds_give_equal_studies_and_other_seeds_others(folder, tmp_path):
    again = synth(3, tmp_path / 'again', sizes=2, seeds=2, items=48).study
    assert again.input_hash == folder.study.input_hash
    assert synth(4, tmp_path / 'other', sizes=2, seeds=2, items=48).study.input_hash \
        != again.input_hash
    inside = synth(3, sizes=2, seeds=2, items=48, full=True).study
    assert set(inside.cells) == set(again.cells)
    for cell in inside.cells:
        np.testing.assert_array_equal(*(pair(one, [[cell]]).scores for one in (inside, again)))


def test_a_folder_with_something_in_it_and_senseless_sizes_are_refused(folder):
    with pytest.raises(ValueError, match='is not empty; give a new folder'):
        synth(0, folder.folder, sizes=2, seeds=1, items=16)
    with pytest.raises(ValueError, match='synth needs 2 to 8 sizes'):
        synth(0, sizes=9)

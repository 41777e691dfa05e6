"""What a caption tells of its scene: right, left out, made up and broken off, in both worlds."""
import json

import numpy as np
import pytest
from roots import ROOT

from downscale.commands import main
from downscale.config import save
from downscale.data.scenes.world import FIELDS
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.probe.captions import ALL, OTHER, caption_rows, told
from downscale.results.items import read_texts, write_texts
from downscale.results.text_kinds import CAPTION
from downscale.stages import inputs
from downscale.study.preparation import prepare

STAGES = ('tower', 'text', 'align', 'instruct', 'caption', 'extract', 'reason')
TRUE = 'heart c 2 large red A ; ring d 8 small blue C ;'


@pytest.mark.parametrize(('caption', 'expected'), [
    (TRUE, [1, 1, 1, 1, 1, 1]),
    ('ring d 8 small blue C ; heart c 2 large red A ;', [1, 1, 1, 1, 1, 1]),  # in any order
    ('heart c 2 large red A ;', [.5] * 6),                                     # one left out
    (f'{TRUE} star a 1 large red A ;', [2 / 3] * 6),                           # one made up
    (f'{TRUE} {TRUE}', [.5] * 6),                                              # all said twice
    ('heart c 2 large blue A ; ring d 7 small blue C', [1, 1, .5, 1, .5, 1]),
    ('heart c 2 large red A ; ring d', [1, 1, .5, .5, .5, .5]),                # broken off
    ('heart c 2 large red A A A ; ring d 8 small blue C ;', [1] * 6),
    ('', [0] * 6), (' ; ; ', [0] * 6)])
def test_a_field_is_told_where_its_word_stands_in_the_record_that_is_meant(caption, expected):
    np.testing.assert_allclose(told(caption, TRUE), expected)


def test_records_are_matched_so_that_most_words_agree():
    """Each on its own would take the first object twice."""
    twins = 'ring a 1 large red A ; ring a 2 large red A ;'
    np.testing.assert_allclose(told('ring a 1 large red B ; ring a 1 large red A ;', twins),
                               [1, 1, .5, 1, 1, .5])


def written(folder, writers, study='smoke', settings=(), scenes=8):
    """A study of three seeds in which the runs of `writers` {size: function of a true caption and a
    seed} have written captions."""
    config, _ = file.load_study(ROOT / 'experiments' / f'{study}.py', [
        'data.train=20', 'data.validation=2', 'data.test=8', 'evaluation.scenes=8', *settings])
    with config.unlocked():
        del config['platform']
    cells = cells_of(config, [dict(size=size, seed=seed) for size in ('w64d2', 'w32d1')
                              for seed in (0, 1, 2)])
    prepare(folder, 'tiny', cells, True)
    library = inputs.library_of(folder, cells[0], 'test')
    examples = [library.example(index) for index in range(scenes)]
    for cell in cells:
        if cell.size in writers:
            save(cell, folder / 'cells' / cell.name / 'text')
            path = folder / 'evaluations' / f'caption-{cell.name}' / 'texts.parquet'
            path.parent.mkdir(parents=True)
            write_texts(path, [
                {'item_id': question.item_id, 'p_run': cell.name, 'text_kind': CAPTION,
                 'question': question.text, 'prompt': 'describe', 'n_tokens': 9,
                 'truncated': False, 'text': writers[cell.size](example.caption, cell.seed)}
                for example in examples for question in example.questions])
    return folder


def true(caption, seed):
    return caption


def without_sizes(caption, seed):
    return caption.replace('large', '?').replace('small', '?')


def of_one_seed(caption, seed):
    return caption if seed == 0 else ''


def values(folder):
    rows, notes = caption_rows(folder, 200)
    return {(row.table, row.family): row for row in rows}, notes


@pytest.mark.parametrize(('study', 'settings', 'fields'), [
    ('smoke', (), FIELDS), ('micro2', ('stages.instruct.forks=()',),
                            ('shape', 'column', 'row', 'size', 'color', 'char'))])
def test_a_scenes_own_caption_tells_all_and_what_is_not_said_is_not_told(
        tmp_path, study, settings, fields):
    found, notes = values(written(tmp_path, {'w64d2': true, 'w32d1': without_sizes}, study,
                                  settings))
    assert not notes
    # Means first, the small size first, seeds side by side.
    assert list(dict.fromkeys(table for table, _ in found)) == [
        'w32d1, mean over seeds', 'w64d2, mean over seeds', *(
            f'{size}-s{seed}' for size in ('w32d1', 'w64d2') for seed in (0, 1, 2)), OTHER]
    for field in (*fields, ALL):
        for run in ('w64d2, mean over seeds', 'w64d2-s1'):
            assert found[run, field].value == 1
        left = {'size': 0, ALL: 1 - 1 / len(fields)}.get(field, 1)
        assert found['w32d1, mean over seeds', field].value == pytest.approx(left)
    assert 0 < found[OTHER, ALL].value < .8


def test_the_interval_of_a_mean_covers_seeds(tmp_path):
    found, _ = values(written(tmp_path, {'w64d2': of_one_seed}))
    mean = found['w64d2, mean over seeds', ALL]
    assert mean.value == pytest.approx(1 / 3) and (mean.low, mean.high) == (0, 1)
    assert mean.seeds == 3 and found['w64d2-s0', ALL].seeds == 1


def test_captions_of_three_pictures_stay_out(tmp_path):
    """Their records begin with the picture's name."""
    found, notes = values(written(tmp_path, {'w64d2': true}, settings=[
        'data.similarity_share=0.5', *(f'stages.{stage}.length=400' for stage in STAGES),
        *(f'stages.{stage}.tiles=3' for stage in STAGES if stage not in ('text', 'reason'))]))
    assert found['w64d2-s0', ALL].value == 1 and found['w64d2-s0', ALL].clusters == 4
    assert not notes


def test_a_study_of_three_pictures_alone_has_nothing_to_hold(tmp_path):
    folder = written(tmp_path, {'w64d2': true}, settings=[
        'data.similarity_share=1.0', *(f'stages.{stage}.length=400' for stage in STAGES),
        *(f'stages.{stage}.tiles=3' for stage in STAGES if stage not in ('text', 'reason'))])
    with pytest.raises(ValueError, match='asks about several pictures at once only'):
        caption_rows(folder, 200)


def test_the_console_prints_means_and_leaves_all_in_files(tmp_path, capsys):
    folder = written(tmp_path / 'run', {'w64d2': true, 'w32d1': without_sizes})
    argv = ['analyze', 'captions', str(folder), '--bootstraps', '200']
    capsys.readouterr()
    assert main.main(argv) == 0
    said = capsys.readouterr().out
    assert 'w32d1, mean over seeds' in said and OTHER in said and 'w32d1-s0' not in said
    assert {path.name for path in (folder / 'analysis').iterdir()} == {
        'captions.json', 'captions.csv', 'captions.png'}
    assert 'w32d1-s0' in (folder / 'analysis' / 'captions.csv').read_text()
    assert main.main([*argv, '--json']) == 0
    assert json.loads(capsys.readouterr().out)['verb'] == 'captions'


def test_a_writer_of_a_part_is_left_out_by_name(tmp_path):
    folder = written(tmp_path, {'w64d2': true})
    path = folder / 'evaluations' / 'caption-w64d2-s1' / 'texts.parquet'
    rows = read_texts(path).to_pylist()
    write_texts(path, [row for row in rows if 'test-000003' not in row['item_id']])
    found, notes = values(folder)
    assert notes == ['w64d2-s1: left out, since it has captions of 7 of 8 scenes']
    assert 'w64d2-s1' not in {table for table, _ in found}


def test_what_cannot_be_held_against_scenes_is_one_line(tmp_path, capsys):
    folder = written(tmp_path, {})
    assert main.main(['analyze', 'captions', str(folder)]) == 1
    assert 'no run has written captions; name caption in evaluation.texts' in \
        capsys.readouterr().err

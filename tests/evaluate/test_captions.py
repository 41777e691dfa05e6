"""What a caption tells of its scene: right, left out, made up and broken off, in both worlds."""
import json
from functools import partial

import numpy as np
import pytest
from roots import ROOT

from downscale.commands import main
from downscale.config import save
from downscale.data.scenes.kinds import kind_of
from downscale.data.scenes.questions import caption_of
from downscale.evaluate.captions import ALL, OTHER, caption_rows, fields_of, told
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.results.items import write_texts
from downscale.results.text_kinds import CAPTION
from downscale.stages import inputs
from downscale.study.preparation import prepare

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


def cells(*settings):
    """Two sizes and three seeds of a study that would write captions of eight scenes."""
    config, _ = file.load_study(ROOT / 'experiments' / 'smoke.py', [
        'data.train=20', 'data.validation=2', 'data.test=8', 'evaluation.scenes=8', *settings])
    with config.unlocked():
        del config['platform']
    return cells_of(config, [dict(size=size, seed=seed) for size in ('w32d1', 'w64d2')
                             for seed in (0, 1, 2)])


def written(folder, writers, settings=(), scenes=8):
    """A study folder in which each run of `writers` {size: text of a true one} has captioned."""
    made = cells(*settings)
    prepare(folder, 'smoke', made, True)
    library = inputs.library_of(folder, made[0], 'test')
    examples = [library.example(index) for index in range(scenes)]
    for cell in made:
        if cell.size not in writers or cell.is_shared:
            continue
        save(cell, folder / 'cells' / cell.name / 'text')
        path = folder / 'evaluations' / f'caption-{cell.name}' / 'texts.parquet'
        path.parent.mkdir(parents=True)
        write_texts(path, [
            {'item_id': question.item_id, 'p_run': cell.name, 'text_kind': CAPTION,
             'question': question.text, 'prompt': 'describe',
             'text': writers[cell.size](example.caption, cell.seed), 'n_tokens': 9,
             'truncated': False} for example in examples for question in example.questions])
    return folder


def recoloured(caption, seed):
    return caption.replace('red', 'blue')


def nothing(caption, seed):
    return ''


def of_one_seed(caption, seed):
    return caption if seed == 0 else ''


def test_the_worlds_own_captions_tell_all_and_those_of_others_do_not():
    for settings, fields in (
            ([], ('shape', 'cell', 'size', 'color', 'char')),
            (['world.kind=clutter'], ('shape', 'column', 'row', 'size', 'color', 'char'))):
        del settings
        assert fields

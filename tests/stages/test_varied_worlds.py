"""Cells of one study that see different worlds: each has its own scenes, all one tokenizer."""
import dataclasses

import pytest
import small

from downscale.config import Data, Evaluation, Experiment
from downscale.data.scenes.facts import vocabulary
from downscale.data.tokens import load_tokenizer
from downscale.runtime.files import read_json
from downscale.stages import inputs
from downscale.study.preparation import prepare

PLAIN = Experiment(name='w32d1-s0', size='w32d1', seed=0, language=small.language(), vision=None,
                   world=small.WORLD, data=Data(train=4, validation=1, test=2,
                                                similarity_share=0.0),
                   evaluation=Evaluation(scenes=2))
FACTS = dataclasses.replace(PLAIN, name='w32d1-s0-n_facts16',
                            world=dataclasses.replace(small.WORLD, n_facts=16))
FEWER = dataclasses.replace(PLAIN, name='w32d1-s0-train3',
                            data=dataclasses.replace(PLAIN.data, train=3))


def test_each_cell_reads_the_scenes_of_its_own_world(tmp_path):
    prepare(tmp_path, 'varied', [PLAIN, FACTS, FEWER], True)
    lengths = [len(inputs.library_of(tmp_path, cell, 'train')) for cell in (PLAIN, FACTS, FEWER)]
    assert lengths == [4, 4, 3]
    folders = {inputs.library_of(tmp_path, cell, 'test').source.folder
               for cell in (PLAIN, FACTS, FEWER)}
    assert len(folders) == 3
    # What opens the folder without a cell sees the data of the first.
    assert inputs.library(str(tmp_path), 'test').source.folder == inputs.library_of(
        tmp_path, PLAIN, 'test').source.folder
    known = load_tokenizer(tmp_path / 'tokenizer.json').get_vocab().keys()
    assert known >= {*vocabulary(PLAIN.world), *vocabulary(FACTS.world)}
    assert set(vocabulary(FACTS.world)) - set(vocabulary(PLAIN.world))
    meta = read_json(tmp_path / 'study.json')
    assert meta['factors'] == {
        'world.n_facts': {PLAIN.name: 8, FACTS.name: 16, FEWER.name: 8},
        'data.train': {PLAIN.name: 4, FACTS.name: 4, FEWER.name: 3}}
    assert meta['data']['hash'] == inputs.data_hash(PLAIN)


def test_a_world_whose_words_the_tokenizer_lacks_is_refused(tmp_path):
    inputs.prepare(tmp_path, PLAIN)
    before = (tmp_path / 'tokenizer.json').read_bytes()
    with pytest.raises(ValueError, match=r'tokenizer.json lacks \d+ words of the worlds'):
        inputs.prepare(tmp_path, FACTS)
    assert (tmp_path / 'tokenizer.json').read_bytes() == before
    inputs.prepare(tmp_path, PLAIN)

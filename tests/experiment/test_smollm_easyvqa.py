"""The study of a pretrained model on pictures of others: its data and its cells."""
import json
from importlib import util

import pytest
from easy_vqa_package import QUESTIONS, write_package

from downscale.data.corpora.build import build
from downscale.data.corpora.build_settings import Settings
from downscale.data.corpora.mixture import Corpus
from downscale.evaluate.question_files import own_questions
from downscale.experiment.expansion import cells_of
from downscale.experiment.file import load_study


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """The data folder that the study makes of a tiny package."""
    root = tmp_path_factory.mktemp('easy_vqa')
    write_package(root / 'packages')
    return root, root / 'data'


def module(path):
    """The module of an experiment's file."""
    spec = util.spec_from_file_location('loaded', path)
    loaded = util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def written(data):
    root, folder = data
    return module('experiments/smollm_easyvqa.py').write_data(root / 'packages', folder, 2)


def test_a_conversation_holds_one_question_and_the_test_pictures_are_others(data):
    assert written(data) == (4, 16, 8)
    _, folder = data
    rows = json.loads((folder / 'train.json').read_text())
    assert all(len(row['conversations']) == 2 for row in rows)
    assert len({row['id'] for row in rows}) == len(rows)
    questions = own_questions(folder / 'test.jsonl')
    assert [question.family for question in questions[:4]] == [
        'color', 'shape', 'there', 'not there']
    assert [(question.text, question.target.gold) for question in questions[:4]] == list(QUESTIONS)
    assert questions[0].pictures() == ((folder / 'test' / '0.png').read_bytes(),)


def test_the_mixture_takes_every_row_with_its_picture(data, tmp_path):
    written(data)
    mixture = module('experiments/mixtures/easy_vqa.py').get_mixture()
    build(mixture, tmp_path / 'built', Settings(root=data[1]))
    corpus = Corpus(tmp_path / 'built')
    assert len(corpus) == 20 and len(corpus.record(0).talk.images) == 1


@pytest.mark.parametrize(('pairs', 'caption'), [
    ([('what color is the shape?', 'red'), ('what shape is present?', 'circle')], 'red circle'),
    ([('what color is the circle?', 'red')], 'red circle'),
    ([('what is the red shape?', 'circle')], 'red circle'),
    ([('is a red shape present?', 'yes'), ('is no circle present?', 'no')], 'red circle'),
    ([('is a red shape present?', 'no'), ('what shape is present?', 'circle')], ''),
    ([('is there not a red shape?', 'yes'), ('is there a circle?', 'yes')], '')])
def test_a_caption_says_what_questions_and_answers_tell(pairs, caption):
    assert module('experiments/smollm_easyvqa.py').caption_of(pairs) == caption


@pytest.mark.parametrize('arg', ['', 'quick'])
def test_every_depth_is_a_cell_of_its_own_import(arg):
    config, sweep = load_study(f'experiments/smollm_easyvqa.py:{arg}', ())
    with config.unlocked():
        del config['platform']
    found = cells_of(config, sweep)
    depths = {'': (30, 15, 8), 'quick': (8, 4)}[arg]
    assert [cell.language.N for cell in found] == list(depths)
    assert [cell.imports['language'] for cell in found] == [
        f'models/smollm2-135m-d{depth}' for depth in depths]
    assert all(cell.stages[0].trainable == ('tower', 'connector') for cell in found)

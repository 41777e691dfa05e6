"""Prompts are data: what is rendered, what a hash tells apart, and what a wrong file says."""
import json

import pytest
import small

from downscale.data.records import IMAGE
from downscale.data.scenes.conversations import describe_prompt, reasoner_prompt
from downscale.evaluate import prompts
from downscale.evaluate.answers import items_of


@pytest.fixture(scope='module')
def questions():
    return [item.question for item in items_of(small.library('test').source, 8)]


def written(tmp_path, change=lambda value: None, base='paper'):
    """The path of a copy of a shipped file, changed."""
    value = json.loads((prompts.FOLDER / f'{base}.json').read_text())
    change(value)
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps(value))
    return path


def test_micro_asks_what_the_models_of_the_scene_world_are_trained_on(questions):
    micro = prompts.load('micro')
    assert micro.describe('caption') == micro.describe('caption', 'x') == describe_prompt()
    for question in questions:
        assert micro.describe('extract', question.extraction.information) \
            == describe_prompt(question)
        for text in ('', 'a red circle at a1 ;', question.extraction.text):
            for mode in prompts.MODES:
                assert micro.reason(mode, text, question.text) == reasoner_prompt(text, question)


def test_texts_of_users_are_inserted_as_they_are():
    paper = prompts.load('paper')
    odd = r'{question} {} {{0}} %s \1 \g<0> {description} {nothing} $x'
    for mode in prompts.MODES:
        found = paper.reason(mode, odd, f'why {odd}')
        assert found.count(odd) == 2 and f'Question: why {odd}' in found
    assert odd in paper.describe('extract', odd)
    assert odd in paper.inform(odd)
    micro = prompts.load('micro')
    assert micro.reason('direct', odd, odd) == f'{odd} {odd}'


def test_an_image_mark_in_a_text_asks_for_no_picture():
    for name in ('micro', 'paper'):
        found = prompts.load(name)
        rendered = [found.reason('think', f'a {IMAGE} b', 'q'), found.inform(IMAGE),
                    found.reason('direct', 'd', IMAGE), found.describe('extract', IMAGE)]
        assert not any(IMAGE in text for text in rendered)
        assert all('image>' in text for text in rendered)


def test_the_paper_s_rules_about_borders_are_kept():
    paper = prompts.load('paper')
    assert paper.describe('extract', 'the sky').endswith('the sky.')
    assert paper.describe('extract', 'the sky.').endswith('the sky.')
    assert not paper.describe('extract', 'the sky.').endswith('..')
    for opened in ('Question: why?', 'hint: look\nQuestion: why?', 'QUESTION: why?'):
        assert f'\n{opened}\n' in paper.reason('think', 'd', opened)
    assert '\nQuestion: why?\n' in paper.reason('think', 'd', 'why?')
    assert paper.reason('think', 'd', 'q') != paper.reason('direct', 'd', 'q')


def test_information_is_asked_for_with_pairs_and_read_without_the_mark():
    paper = prompts.load('paper')
    asked = paper.inform('How many?')
    assert asked.count('Question:') == asked.count('Contents to observe:') == 6
    assert asked.endswith('Question: How many?\nContents to observe:')
    for reply in ('Contents to observe: the cups', ' the cups\n',
                  'contents to observe:\nthe\ncups'):
        assert paper.information_in(reply) == 'the cups'


def test_the_hash_tells_every_field_but_the_remark(tmp_path):
    paper = prompts.load('paper')
    assert prompts.load(written(tmp_path)).hash == paper.hash != prompts.load('micro').hash
    assert prompts.load(written(tmp_path, lambda v: v.update(about='x'))).hash == paper.hash
    seen = {paper.hash}
    for name in vars(paper):
        if name not in ('about', 'information_pairs', *prompts.LIMITS):
            def change(value, name=name):
                value[name] = [*value[name], 'x'] if isinstance(value[name], list) \
                    else value[name] + '!'
            seen.add(prompts.load(written(tmp_path, change)).hash)
    seen.add(prompts.load(written(tmp_path, lambda v: v['information_pairs'].pop())).hash)
    assert len(seen) == len(vars(paper)) - len(prompts.LIMITS)
    for name in prompts.LIMITS:  # each row records the limits that it was written under
        other = prompts.load(written(tmp_path, lambda v, name=name: v.update({name: 9})))
        assert other.hash == paper.hash and vars(other)[name] == 9


@pytest.mark.parametrize('change, message', [
    (lambda v: v.update(captoin='x'), "unknown field 'captoin'; did you mean 'caption'"),
    (lambda v: v.pop('extract'), "missing field 'extract'"),
    (lambda v: v.update(caption=3), "'caption' must be a text"),
    (lambda v: v.pop('think_tokens'), "missing field 'think_tokens'"),
    (lambda v: v.update(think_tokens='9'), "'think_tokens' must be a number of tokens"),
    (lambda v: v.update(answer_tokens=0), "'answer_tokens' must be a number of tokens"),
    (lambda v: v.update(question_starts='hint:'), "'question_starts' must be a list of texts"),
    (lambda v: v.update(question_starts=['']), "'question_starts' must be a list of texts"),
    (lambda v: v.update(information_pairs=[['q', 'a']]), 'must be a list of'),
    (lambda v: v.update(extract='{informaton}'), "'informaton'; did you mean 'information'"),
    (lambda v: v.update(extract='look'), 'extract: missing placeholder {information}'),
    (lambda v: v.update(caption='{question}'), "caption: unknown placeholder 'question'"),
    (lambda v: v.update(reason_think='{description}'), 'reason_think: missing placeholder'),
    (lambda v: v.update(caption=f'{IMAGE} describe'), 'holds the image mark')])
def test_a_wrong_file_is_one_line_with_the_nearest_name(tmp_path, change, message):
    with pytest.raises(ValueError) as error:
        prompts.load(written(tmp_path, change))
    assert message in str(error.value) and '\n' not in str(error.value)
    assert f'{tmp_path.name}/mine.json' in str(error.value)  # the front of a long path is cut


def test_a_missing_or_damaged_file_says_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="unknown prompts 'papr'; did you mean 'paper'"):
        prompts.load('papr')
    (tmp_path / 'bad.json').write_text('{"caption": ')
    with pytest.raises(ValueError, match='no readable JSON'):
        prompts.load(tmp_path / 'bad.json')
    (tmp_path / 'list.json').write_text('[]')
    with pytest.raises(ValueError, match='must be a JSON object, not a list'):
        prompts.load(str(tmp_path / 'list.json'))

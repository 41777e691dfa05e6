"""Every column of a row is used, left out and counted, or refused by its name."""
import pytest

from downscale.data.corpora.cells import Rejected
from downscale.data.corpora.columns import ASIDE, IDS, KNOWN, parts_of
from downscale.data.corpora.options import ASK_LETTER

PICTURE = b'picture'
QUESTION = {'question': 'q?', 'answer': 'red'}
CAT = f'q?\nA. dog\nB. cat\nC. cow\n{ASK_LETTER}'


def texts(row, **more):
    return [turn.text for turn in parts_of(row, 'ask', **more).turns]


def refusal(row, **more):
    with pytest.raises(Rejected) as caught:
        parts_of(row, 'ask', **more)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 240
    return str(caught.value)


@pytest.mark.parametrize('cells, pictures', [
    *(({name: 'a.png'}, ('a.png',)) for name in (
        'image', 'images', 'image_path', 'img', 'file_name', 'picture', 'jpg')),
    ({'images': ['a', 'b']}, ('a', 'b')), ({'image': ['a']}, ('a',)), ({'image': [['a']]}, ('a',)),
    ({'image': {'bytes': PICTURE, 'path': 'a'}}, (PICTURE,)),
    ({'image': {'bytes': None, 'path': 'a'}}, ('a',)),
    ({'images': [{'bytes': PICTURE}, {'path': 'b'}]}, (PICTURE, 'b')),
    ({'image': 'a', 'images': []}, ('a',)), ({'image': 'a', 'images': ['a']}, ('a',)),
    ({'image': '', 'images': ['a', 'b']}, ('a', 'b')), ({'image': None, 'img': 'a'}, ('a',)),
    ({'image': {'bytes': None, 'path': None}, 'file_name': 'a'}, ('a',)),
    ({'image': {'bytes': PICTURE}, 'file_name': 'a.png'}, (PICTURE,)),
    ({'file_name': 'a.png', 'image': PICTURE}, (PICTURE,)),
    ({'image_2': 'b', 'image_10': 'c', 'image_1': 'a', 'image_3': None}, ('a', 'b', 'c')),
    ({'image': float('nan')}, ()), ({'images': [None]}, ())])
def test_pictures_are_taken_from_every_column_that_holds_them(cells, pictures):
    assert parts_of({**QUESTION, **cells}, 'ask').pictures == pictures


@pytest.mark.parametrize('cells, message', [
    ({'image': 'a', 'img': 'b'}, "columns 'image' and 'img' hold different pictures"),
    ({'image': 'a', 'images': ['a', 'b']}, "'image' and 'images' hold different"),
    ({'image': PICTURE, 'images': [PICTURE, PICTURE]}, 'different pictures'),
    ({'image': 'a', 'image_2': 'b'}, "'image' and 'image_2'"),
    ({'image': 5}, 'image is int'), ({'images': ['a', None]}, 'images is NoneType'),
    ({'video': 'a.mp4'}, "video: column 'video': videos are not read"),
    ({'Image': 'a'}, "unknown column: 'Image'; did you mean 'image'?"),
    ({' image': 'a'}, "' image'; did you mean 'image'?"),
    ({'image_paht': 'a'}, "'image_paht'; did you mean 'image_path'? Source(ignore="),
    ({'photo': PICTURE}, "unknown column: 'photo'"), ({'x' * 900: 1}, 'unknown column'),
    ({'a\nb': 1}, 'unknown column'), ({7: 1}, 'unknown column'), ({'AB': 'x'}, "'AB'")])
def test_what_cannot_be_read_is_refused_by_its_name(cells, message):
    assert message in refusal({**QUESTION, **cells})


@pytest.mark.parametrize('row, message', [
    ({'conversations': [{'from': 'human', 'value': 'q'}], 'caption': 'c'},
     "'caption' beside 'conversations'"), ({**QUESTION, 'text': 'c'}, "'text' beside 'question'"),
    ({'caption': 'c', 'answer': 'a'}, "'answer' beside 'caption'"),
    ({'texts': [{'user': 'q', 'assistant': 'a'}], 'A': 'x'}, "unknown column: 'A'"),
    ({'conversations': [{'from': 'human', 'value': 'q', 'weight': 0.5}]}, "'weight' of a turn"),
    ({'messages': [{'role': 'user', 'content': [{'type': 'image', 'url': 'x'}]}]}, 'part of a'),
    ({'system': 's', 'conversations': [{'from': 'system', 'value': 's'}]}, 'beside a system turn'),
    ({'question': 'q', 'anwser': 'a'}, "did you mean 'answer'?"),
    ({'prompt': 'q', 'response': 'a'}, "unknown column: 'prompt'")])
def test_no_text_is_dropped_unseen(row, message):
    assert message in refusal(row)


def test_what_is_left_out_is_counted_and_what_is_empty_as_well():
    row = {**QUESTION, 'id': 3, 'lecture': 'l', 'source': None, 'unknown_to_all': ' ', 'hint': 'h',
           'label': 4, 'images': []}
    assert parts_of(row, 'ask', ('label', 'hint')).aside == {
        'lecture': True, 'source': False, 'unknown_to_all': False, 'label': True, 'hint': True,
        'images': False}
    assert "'label'" in refusal(row)
    assert texts(row, ignore=('label', 'hint'))[0] == 'q?'
    assert texts(row, ignore=('label',))[0] == 'Context: h\nQuestion: q?'
    assert not set(KNOWN) & ASIDE and not set(IDS) & ASIDE


@pytest.mark.parametrize('options', [
    {'options': ['dog', 'cat', 'cow']}, {'choices': ['dog', 'cat', 'cow', None]},
    {'options': "['dog', 'cat', 'cow']"}, {'options': '["dog", "cat", "cow"]'},
    {'options': {'A': 'dog', 'B': 'cat', 'C': 'cow'}},
    {'choices': {'text': ['dog', 'cat', 'cow'], 'label': ['A', 'B', 'C']}},
    {'A': 'dog', 'B': 'cat', 'C': 'cow', 'D': float('nan')}])
@pytest.mark.parametrize('answer', ['B', ' (B) ', 'B.', 'b', 'cat', 'Cat', ['B'], ['cat', 'B']])
def test_options_become_a_multiple_choice_question_and_its_letter(options, answer):
    assert texts({'question': 'q?', 'answer': answer, **options}) == [CAT, 'B']


@pytest.mark.parametrize('options, answer, right', [
    (['dog', 'cat', 'cow'], 1, 'B'), (['dog', 'cat', 'cow'], '0', 'A'), ([2, 5], 5, 'B'),
    ({'1': 'dog', '2': 'cat'}, 1, 'A'), (['False', 'True'], True, 'B'), ('[]', 'red', 'red'),
    ({'A': 'dog', 'C': 'cow'}, 'C', 'B')])
def test_an_answer_is_a_number_a_label_or_a_text(options, answer, right):
    assert texts({'question': 'q?', 'answer': answer, 'options': options})[1] == right


@pytest.mark.parametrize('options, answer, message', [
    (['dog', 'cat'], 2, "answer '2' names none of 2 options"),
    (['dog', 'cat'], 'cow', "'cow' names none"), (['B', 'A'], 'A', 'names A and B of 2'),
    (['1', '2', '3'], '2', 'names B and C'), (['dog', 'cat'], ['A', 'B'], '2 options are right'),
    (['dog', 'cat'], 1.0, 'answer is float'), (['dog'], 'A', '1 options'),
    (['dog', '', 'cat'], 'A', 'an option before the last is empty'),
    ('dog, cat', 'A', "options are the text 'dog, cat', which is no list"),
    ([{'bytes': b'x'}, 'cat'], 'A', 'an option is dict'), (['x'] * 11, 'A', '11 options')])
def test_an_answer_that_two_readings_could_have_is_rejected(options, answer, message):
    assert message in refusal({'question': 'q?', 'answer': answer, 'options': options})


def test_options_that_stand_in_the_question_are_not_repeated():
    row = {'question': 'q?\nA. dog\nB: cat', 'A': 'dog', 'B': 'cat', 'answer': 'A'}
    assert texts(row) == [f'q?\nA. dog\nB: cat\n{ASK_LETTER}', 'A']
    both = {'question': 'q', 'answer': 'a', 'options': ['a', 'b'], 'A': 'a', 'B': 'b'}
    assert 'options in options and A' in refusal(both)


def test_numbered_marks_put_pictures_in_their_order():
    row = {'question': 'Is <image 2> like <image 1>?', 'answer': 'no', 'image_1': 'a',
           'image_2': 'b', 'image_5': 'c'}
    parts = parts_of(row, 'ask')
    assert parts.pictures == ('c', 'b', 'a')
    assert parts.turns[0].text == '<image>\nIs <image> like <image>?'
    assert 'shows the pictures [7]' in refusal({**row, 'question': '<image 7>'})
    assert 'shows the pictures [1]' in refusal({**QUESTION, 'question': '<image 1>'})


def test_messages_of_parts_and_a_column_system_are_turns():
    row = {'images': ['a'], 'system': 'be brief', 'messages': [
        {'role': 'user', 'content': [{'type': 'image', 'text': None, 'index': 0},
                                     {'type': 'text', 'text': 'what?', 'index': None}]},
        {'role': 'assistant', 'content': 'a cat', 'from': None}]}
    assert texts(row) == ['be brief', '<image>what?', 'a cat']


def test_answers_that_agree_are_one_and_whole_numbers_are_texts():
    assert texts({'question': 'q', 'answer': 3}) == ['q', '3']
    assert texts({'question': 'q', 'answer': 'x', 'answers': [{'answer': 'x'}]}) == ['q', 'x']
    assert 'is none of answers' in refusal({'question': 'q', 'answer': 'x', 'answers': ['y']})
    assert 'answer is float' in refusal({'question': 'q', 'answer': 0.5})

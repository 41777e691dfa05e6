"""Questions from files: what a wrong line says, what to look at, and how an answer is read."""
import json

import pytest
from question_file import fails, question_file

from downscale.evaluate.asked import informed, open_questions
from downscale.evaluate.scoring.reading import answer_of, plain


@pytest.mark.parametrize('change, told', [
    ({'qustion': 'x'}, "unknown field: 'qustion'; did you mean 'question'"),
    ({'question': None}, "missing field: 'question'"), ({'images': 'a.png'}, "no picture 'a.png'"),
    ({'images': [3]}, 'images is int'), ({'answer': 3.5}, 'answer must be a text'),
    ({'answer': {'a': 1}}, 'answer must be a text'), ({'images': None}, "'images' is in some rows"),
    ({'id': True}, 'id must be a text'), ({'id': 'q0'}, "id 'q0' stands in line 1 already"),
    ({'images': ['none.png']}, "no picture 'none.png'"),
    ({'images': ['../picture.png']}, 'leaves its folder'), ({'question': ' '}, 'is empty'),
    ({'images': ['questions.jsonl']}, 'unreadable picture'), ({'video': 'a.mp4'}, "'video'"),
    ({'question': '<image>\nwhat'}, 'holds the image mark'),
    ({'question': 'what is <image 1>?'}, 'holds the image mark'),
    ({'question': 'say <|im_end|>'}, 'chat token'), ({'image': 'other.png'}, 'different pictures'),
    ({'options': ['a'], 'answer': 'a'}, '1 options'),
    ({'options': ['a', 'b'], 'answer': 2}, 'names none of 2 options'),
    ({'question': 'half \ud800'}, 'half a surrogate pair')])
def test_a_wrong_line_is_named_by_its_number(tmp_path, change, told):
    path = question_file(tmp_path, (1, change))
    fails(lambda: open_questions(path), 'questions.jsonl: line 2: ', told)


def test_what_is_no_data_is_refused(tmp_path):
    fails(lambda: open_questions(tmp_path / 'x.txt'), 'neither the folder of a study nor')
    fails(lambda: open_questions(tmp_path / 'x.jsonl'), 'no file', error=FileNotFoundError)
    fails(lambda: open_questions(tmp_path), 'data.json', error=FileNotFoundError)
    path = question_file(tmp_path, count=0)
    fails(lambda: open_questions(path), 'holds no question')
    path.write_text('[1]\n')
    fails(lambda: open_questions(path), 'entry 1: must be a JSON object')
    fails(lambda: open_questions(path, limit=0), '--limit 0')


def test_information_comes_from_a_file_by_id_or_by_number(tmp_path):
    questions = open_questions(question_file(tmp_path))
    path = tmp_path / 'look.json'
    for names in (('q0', 'q1', 'q2', 'more'), ('0', '1', '2')):
        path.write_text(json.dumps({name: f'look at {k}' for k, name in enumerate(names)}))
        found = informed(questions, path)
        assert [asked.information for asked in found.asked] == [f'look at {k}' for k in range(3)]
        assert found.hash != questions.hash
    path.write_text(json.dumps({'q0': 'x', '1': 'y'}))
    fails(lambda: informed(questions, path), 'lacks 2 of 3 questions')
    fails(lambda: informed(questions, tmp_path / 'x'), 'no file of information',
          error=FileNotFoundError)
    for text in ('["x"]', '{"q0": 3}', '{'):
        path.write_text(text)
        fails(lambda: informed(questions, path), 'look.json')


# --- reading answers ----------------------------------------------------------------------------

@pytest.mark.parametrize('text, gold, wanted', [
    ('Answer: B', 'B', 'B'), ('so\nAnswer: B\n', 'B', 'B'), ('**Answer:** B', 'B', 'B'),
    ('**Answer**: **B**', 'B', 'B'), (r'Answer: \boxed{B}', 'B', 'B'), ('answer : (b) red', 'B',
                                                                       'B'),
    ('B. red', 'C', 'B'), ('B', 'B', 'B'), ('A cat sits there', 'A', ''), ('Because', 'B', ''),
    ('Answer: A\nno\nAnswer: C', 'A', 'C'), ('Answer:', 'B', ''), ('', 'B', ''),
    ('Answer: red.', 'red', 'red'), ('it is\nred', 'red', 'red'), ('Answer: A cat', 'A cat',
                                                                  'A cat'),
    ('I think\n\n"Red"', None, 'Red'), ('', None, '')])
def test_an_answer_is_read_as_it_stands_and_never_guessed(text, gold, wanted):
    assert answer_of(text, True, gold) == wanted


def test_the_judge_compares_words_and_letters_and_not_their_dress(tmp_path):
    assert plain(' The  Cat. ') == plain('the cat') and plain('Ｒed') == plain('red')
    assert plain('a') != plain('b') and plain('1.5') == '1.5'
    questions = open_questions(question_file(tmp_path, (1, {'answer': 'B'}), (2, {'answer': None})))
    red, letter, unknown = questions.asked
    assert questions.judge(red, 'so\nAnswer: Red.') == ('Red', True, 1.0)
    assert questions.judge(red, 'blue') == ('blue', True, 0.0)
    assert questions.judge(letter, 'Answer: B) yes') == ('B', True, 1.0)
    assert questions.judge(letter, 'a long story') == ('', False, 0.0)
    assert questions.judge(unknown, 'x') == ('x', True, None)


def test_votes_are_those_of_ten_people_and_any_accepted_spelling_is_right(tmp_path):
    people = [{'answer': text, 'answer_id': k} for k, text in enumerate(['red'] * 9 + ['blue'])]
    votes, plain_votes, spellings = open_questions(question_file(
        tmp_path, (0, {'answer': people, 'scorer': 'vqa'}),
        (1, {'answer': ['red'] * 9 + ['blue'], 'scorer': 'vqav2'}),
        (2, {'answer': ['red', 'crimson']}))).asked
    questions = open_questions(tmp_path / 'questions.jsonl')
    for asked in (votes, plain_votes):
        assert [questions.judge(asked, text)[2] for text in ('red', 'blue')] \
            == [1.0, pytest.approx(9 / 10 / 3)]
    assert [questions.judge(spellings, text)[2] for text in ('crimson', 'red', 'blue')] == [1, 1, 0]
    for count in (2, 9, 11):
        path = question_file(tmp_path, (1, {'answer': ['red'] * count, 'scorer': 'vqa'}))
        fails(lambda: open_questions(path), f'line 2: other scorer: vqa counts the answers of 10 '
              f'people, and here are {count}')

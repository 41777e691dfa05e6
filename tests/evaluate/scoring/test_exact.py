"""exact-2: one clear answer in any usual dress is read, several answers and none get no credit."""
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roots import DATA

from downscale.commands.main import main
from downscale.evaluate.scoring.statements import behind_thought
from downscale.evaluate.scoring.table import SCORERS, verdicts
from downscale.evaluate.scoring.targets import Target

TEXTS = {'A': 'a kettle', 'B': 'two spoons', 'C': 'a ladle', 'D': 'no cutlery'}
OPTIONS = tuple(TEXTS.items())
REPLIES = json.loads((DATA / 'replies.json').read_text())


def exact(text, gold, choices=OPTIONS, **more):
    answers = gold if isinstance(gold, tuple) else (gold,)
    return verdicts(text, Target(answers=answers, choices=choices, **more), ['exact-2'])['exact-2']


# A person reads B in every one of them.
@pytest.mark.parametrize('text', REPLIES['B'])
def test_one_clear_answer_is_read_in_its_dress(text):
    assert exact(text, 'B').value == 'B'


@pytest.mark.parametrize('text', REPLIES['none'])
def test_several_answers_and_none_get_no_credit(text):
    for gold in 'ABCD':
        found = exact(text, gold)
        assert (found.value, found.score, found.parsed) == ('', 0.0, False)


@pytest.mark.parametrize('gold', ['B', '(B)', 'b', 'B.', '\uff22', '[B]', '**B**', 'two spoons', '1',  # noqa: E501
                                  'Two spoons.', 'B. two spoons', '(B) two spoons'])
def test_golds_are_read_as_replies_are(gold):
    for text in ('B', '(B)', 'B. two spoons', 'Answer: B', 'two spoons'):
        assert exact(text, gold).score == 1.0
    assert exact('A', gold).score == exact('A or B', gold).score == 0.0


def test_options_may_have_other_keys_and_texts_inside_one_another():
    numbers = (('1', 'red'), ('2', 'dark red'), ('3', 'blue'))
    assert exact('Answer: 2', '2', numbers).value == '2'
    assert exact('dark red', '2', numbers).value == '2' and exact('red', '1', numbers).value == '1'
    arabic = (('\u0623', 'x'), ('\u0628', 'y'))
    assert exact('\u0627\u0644\u0625\u062c\u0627\u0628\u0629: \u0628', '\u0628', arabic).score == 1.0  # noqa: E501
    digits = tuple(zip('ABCD', ('1', '13', '3', '1.3')))
    assert exact('Answer: 13', 'B', digits).value == 'B'
    assert exact('Answer: 1.3', 'B', digits).value == 'D'
    ten = tuple((letter, f'thing {letter}') for letter in 'ABCDEFGHIJ')
    assert exact('I think it is a dog', 'I', ten).value == '' == exact('A dog', 'A', ten).value
    assert exact('J', 'J', ten).value == 'J'


def test_a_letter_is_read_where_no_option_is_known():
    assert exact('Answer: E', 'E', ()).score == 1.0 and exact('E or F', 'E', ()).score == 0.0


@pytest.mark.parametrize('text, gold', [
    ('red', 'red'), ('Answer: Red.', 'red'), ('**Answer:** red', 'red'), ('It is red.', 'red'),
    ('Answer:\nred', 'Red'), ('The answer is red because it shines.', 'red'), ('"red"', 'red'),
    ('red\n\nBecause the ball has that colour.', 'red'), ('it is\nred', 'red'),
    (r'\boxed{\text{red}}', 'red'), ('<answer>red</answer>', 'red'), ('{"answer": "red"}', 'red'),
    ('Answer: red (the ball)', 'red'), ('a red ball', 'red ball'), ('Answer: 4', '4'),
    ('There are 4 spoons.', '4'), ('four', '4'), ('**4**', '4'), ('4.0', '4'), ('1,000', '1000'),
    ('Answer: two dogs', '2 dogs'), ('Answer: 45%', '45%'), ('-3', '-3'),
    ('\uff11\uff12', '12'), ('\u7b54\u6848\uff1ared\u3002', 'red'), ('Answer: blue. Answer: red', 'red')])  # noqa: E501
def test_words_and_numbers_are_read_in_their_dress(text, gold):
    assert exact(text, gold, ()).score == 1.0


@pytest.mark.parametrize('text, gold', [
    ('red or blue', 'red'), ('red, blue', 'red'), ('blue', 'red'), ('', 'red'), ('not red', 'red'),
    ('3 or 4', '4'), ('40', '4'), ('4.5', '4'), ('-4', '4'), ('yes 4', '4'), ('4 - 5', '4'),
    ('red (or blue)', 'red'), ('I do not know', 'red'), ('red. Or blue.', 'red')])
def test_other_words_and_several_get_no_credit(text, gold):
    assert exact(text, gold, ()).score == 0.0


def test_any_of_several_accepted_answers_is_right():
    accepted = ('7 km', '7 kilometres')
    assert exact('Answer: 7 kilometres', accepted, ()).score == 1.0
    assert exact('7 miles', accepted, ()).score == 0.0
    assert exact('Answer: C', ('B', 'C')).score == 1.0 and exact('B or C', ('B', 'C')).score == 0.0


# --- properties ---------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from(('kettle', 'spoon', 'ladle', 'fork', 'table', 'copper', 'old')),
                 min_size=1, max_size=3, unique=True).map(' '.join)
FOUR = st.lists(WORDS, min_size=4, max_size=4, unique=True).filter(
    lambda texts: not any(one != other and one in other for one in texts for other in texts))
KEY = st.sampled_from(['{k}', '({k})', '[{k}]', '{k}.', '{k})', '**{k}**', '"{k}"', '{k}. {t}',
                       '({k}) {t}', '{k}: {t}', '{k} ({t})', '{k} - {t}', '**{k}. {t}**', '{t}',
                       'option {k}', 'Option ({k})', '$\\boxed{{{k}}}$', '\\boxed{{\\text{{{k}}}}}'])  # noqa: E501
MARK = st.sampled_from(['', 'Answer: ', 'Answer:\n', '**Answer:** ', '### Answer\n', 'answer is ',
                        'The answer is ', 'So the final answer is: ', 'The correct option is ',
                        'I choose ', '\u7b54\u6848\uff1a', 'Let me see.\nThe table is set.\nAnswer: '])  # noqa: E501
REST = st.sampled_from(['', '.', '\n', '\n\nBecause it stands there.', '\n\nExplanation: it shines.'])  # noqa: E501


@settings(max_examples=400, deadline=None)
@given(FOUR, st.sampled_from('ABCD'), st.sampled_from('ABCD'), KEY, MARK, REST)
def test_any_dress_of_any_option_is_read_rightly(texts, right, said, key, mark, rest):
    choices = tuple(zip('ABCD', texts))
    reply = mark + key.format(k=said, t=dict(choices)[said]) + rest
    assert exact(reply, right, choices).value == said
    assert exact(reply, right, choices).score == float(said == right)


JOIN = st.sampled_from([', ', ' or ', ' and ', '/', ' & ', '\n', ' ', '; ', '. ', ': ', ') or '])
FORM = st.sampled_from(['{k}', '({k})', '{k}. {t}', '{k}) {t}', '{t}', '**{k}**'])


@settings(max_examples=400, deadline=None)
@given(FOUR, st.sampled_from('ABCD'), FORM, JOIN, st.sampled_from(['', 'Answer: ', 'Both ']))
def test_all_options_together_are_no_choice(texts, right, form, join, mark):
    choices = tuple(zip('ABCD', texts))
    reply = mark + join.join(form.format(k=k, t=t) for k, t in choices)
    assert exact(reply, right, choices).score == 0.0


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='ABCDabcd .,:()*\n/answer isno{}\\"', max_size=60))
def test_no_reply_is_right_for_two_golds(text):
    """Whatever it says, a constant reply earns what one constant option earns."""
    assert sum(exact(text, gold).score for gold in 'ABCD') <= 1.0
    assert sum(exact(text, gold, ()).score for gold in ('yes', 'no')) <= 1.0
    assert sum(exact(text, gold, ()).score for gold in ('1', '2', '3')) <= 1.0


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["I can't tell.", 'Sorry, I cannot help with that.', 'Unknown', 'None of them',  # noqa: E501
                        'I am not sure', 'Cannot determine the answer', 'No answer', 'N/A', '?']),
       FOUR, st.sampled_from('ABCD'), MARK)
def test_a_refusal_is_never_right(refusal, texts, right, mark):
    found = exact(mark + refusal, right, tuple(zip('ABCD', texts)))
    assert (found.score, found.parsed) == (0.0, False)


# --- thoughts, old rules and the command -----------------------------------------------------------  # noqa: E501

def test_a_thought_ends_at_its_first_mark_and_later_marks_belong_to_the_answer():
    assert behind_thought('<think>A</think>Answer: B </think>') == 'Answer: B </think>'
    assert behind_thought('so A</think>B') == 'B' and behind_thought('<think>it is B') == ''
    assert behind_thought('Answer: B <think>or A') == 'Answer: B '
    target = Target(answers=('B',), choices=OPTIONS)
    reply = 'Answer: B\n\nI closed my thought with </think> and'
    assert verdicts(reply, target, ['exact-2'], behind=True)['exact-2'].value == 'B'
    assert verdicts(reply, target, ['exact-1'], behind=True)['exact-1'].value == ''


def test_the_published_version_stays_as_it_was():
    assert SCORERS['exact-1'].version == 'downscale 1'
    for text, value in (('Answer:\nB', ''), ('Answer: A, B', 'A'), ('Answer: B', 'B'), ('b', 'B'),
                        ('Answer: B (two spoons)', ''), (r'\boxed{\text{B}}', '')):
        assert verdicts(text, Target(answers=('B',), choices=OPTIONS))['exact-1'].value == value


def test_dressed_golds_reach_published_rules_as_letters():
    for gold in ('(B)', 'B.', 'two spoons'):
        found = verdicts('B', Target(answers=(gold,), choices=OPTIONS))
        assert found['lmms_v04'].score == found['vlmevalkit'].score == 1.0
        assert found['exact-1'].score == float(gold == 'B.')


def test_rescore_reads_the_default_first_and_keeps_free_texts_free(tmp_path, capsys):
    path = tmp_path / 'x.json'
    path.write_text(json.dumps([{'text': 'B', 'gold': 'B'}, {'text': '2', 'gold': '2'},
                                {'text': 'C', 'gold': '2'}, {'text': 'one cat', 'gold': 'A'}]))
    assert main(['rescore', str(path), '--json', '--scorers', 'exact-2']) == 0
    values = [row['exact-2'] for row in json.loads(capsys.readouterr().out)]
    assert values == ['B', '2', 'C', 'A']
    assert main(['rescore', str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ['exact-2', '4', '0.7500']

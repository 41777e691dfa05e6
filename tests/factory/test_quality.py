"""The checks of the factory catch what is planted and leave the rest alone."""
import planted
import pytest

from downscale.factory import entail, leak, quality

PAIRS = (('What color is the car?', 'red'), ('How many dogs are there?', '2'),
         ('Is the cup left of the plate?', 'yes'))
GOOD = {'statements': 'The car is red.\nThere are two dogs.\nThe cup is left of the plate.',
        'information': 'the car, the dogs, and where cup and plate are',
        'descriptions': 'A red car stands before a house. There are two dogs on the lawn. On a '
                        'table the cup is left of the plate, and the sky is clear.'}


def rows(finish='stop', **texts):
    found = {step: {'text': text, 'finish': finish, 'tokens_out': 9}
             for step, text in (GOOD | texts).items()}
    return found | {'judgements': None}


def failing(finish='stop', **texts):
    checks = quality.check(PAIRS, rows(finish, **texts), {}, False)
    return {name for name, reasons in checks.items() if reasons}


def counts(wanted, got):
    """(recall, precision) of pairs of truth values."""
    both = sum(w and g for w, g in zip(wanted, got, strict=True))
    return both / sum(wanted), both / sum(got)


def test_a_good_row_passes_every_check():
    assert failing() == set()


@pytest.mark.parametrize(('check', 'texts'), [
    ('refusal', {'descriptions': "I'm sorry, but I can’t see the picture that you mean here."}),
    ('refusal', {'statements': 'As an AI I cannot answer that.'}),
    ('rubbish', {'descriptions': '<p>' + GOOD['descriptions'] + '</p>'}),
    ('rubbish', {'descriptions': '{"description": "' + GOOD['descriptions'] + '"}'}),
    ('rubbish', {'information': 'the car \x07 and the dogs'}),
    ('rubbish', {'information': ''}),
    ('rubbish', {'information': '#### ---- ==== ++++'}),
    ('language', {'descriptions': GOOD['descriptions'] + ' Справа стоит дом.'}),
    ('repetition', {'descriptions': GOOD['descriptions'] + ' It is a car.' * 3}),
    ('repetition', {'information': 'the car ' + 'and the dogs ' * 9}),
    ('length', {'information': 'car'}),
    ('length', {'descriptions': ' '.join(f'{GOOD["descriptions"]} No. {k}' for k in range(60))}),
    ('statements', {'statements': 'The car is red.\nThe cup is left of the plate.'}),
    ('leak', {'information': 'the red car, the dogs, cup and plate'}),
    ('entailed', {'descriptions': 'A red car stands before a house on a quiet street. The cup is '
                                  'left of the plate.'}),
    ('contradiction', {'descriptions': GOOD['descriptions'] + ' The car is blue.'})])
def test_each_check_sees_its_own_fault(check, texts):
    assert check in failing(**texts)


def test_a_text_that_was_cut_off_is_no_use():
    assert 'truncated' in failing('length') and 'truncated' in failing('content_filter')


def test_words_that_look_like_faults_are_none():
    for text in ('The sign says "I cannot see you" in red.', 'He reads 1 1 1 2 off a scale.',
                 'Naïve café owners greet the señor in a 3 < 4 contest.'):
        assert failing(descriptions=GOOD['descriptions'] + ' ' * 400 + text) == set(), text


def test_a_failed_reply_is_a_reason_and_spoils_no_other_check():
    checks = quality.check(PAIRS, rows() | {'descriptions': None}, {'descriptions': 'HTTP 500'},
                           False)
    assert checks['reply'] == ['descriptions: HTTP 500'] and 'entailed' not in checks


def test_statements_lose_bullets_and_numbers():
    text = 'Statements:\n- The car is red.\n2. Two dogs.\n * It rains\n\n3) 5 cats.'
    assert quality.statements_of(text) == ['The car is red.', 'Two dogs.', 'It rains', '5 cats.']


def test_a_judge_is_read_and_an_unreadable_one_is_a_reason():
    told = rows() | {'judgements': {'text': '1: yes\nStatement 2: No\n3. yes', 'finish': 'stop'}}
    found = quality.check(PAIRS, told, {}, True)['judge']
    assert found == ['not in the description: There are two dogs.']
    told['judgements']['text'] = 'all fine'
    assert quality.check(PAIRS, told, {}, True)['judge'] == ['no verdict to read']


def test_options_and_letters_are_read_off_questions():
    pair = ('Which is it?\nA. a cat\nB. a dog\nC. a bird', 'B')
    assert leak.plain(pair) == ('Which is it?', 'a dog')
    assert leak.options('What is that (A) x (B) y')[1] == {'A': 'x', 'B': 'y'}
    assert leak.options('Is plan A. better?') == ('Is plan A. better?', {})


def test_what_another_question_says_is_no_leak():
    pairs = (('what is at a1', 'circle'), ('what color is the circle', 'red'))
    assert leak.leaks(pairs, 'look at a1 and the circle') == []
    assert len(leak.leaks(pairs[:1], 'look at a1 and the circle')) == 1


@pytest.mark.parametrize('cases', ['LEAKS', 'LATER_LEAKS', 'HELD_LEAKS'])
def test_planted_leaks_are_found(cases, capsys):
    cases = vars(planted)[cases]
    got = [bool(leak.leaks(((question, answer),), text)) for question, answer, text, _ in cases]
    recall, precision = counts([case[3] for case in cases], got)
    with capsys.disabled():
        print(f'\nleaks: recall {recall:.2f}, precision {precision:.2f} of {len(cases)}')
    assert recall >= 7 / 8 and precision == 1


@pytest.mark.parametrize('cases', ['CLAIMS', 'LATER_CLAIMS', 'HELD_CLAIMS'])
def test_planted_contradictions_are_found(cases, capsys):
    cases = vars(planted)[cases]
    verdicts = [entail.judge(*case[:3]) for case in cases]
    denied = counts([case[3] == 'denies' for case in cases], [bool(v.against) for v in verdicts])
    said = counts([case[3] == 'says' for case in cases],
                  [v.entailed and not v.against for v in verdicts])
    with capsys.disabled():
        print(f'\ncontradictions: recall {denied[0]:.2f}, precision {denied[1]:.2f}; entailed: '
              f'recall {said[0]:.2f}, precision {said[1]:.2f} of {len(cases)}')
    assert denied[0] >= 12 / 13 and denied[1] == 1 and said[0] >= .85 and said[1] >= 9 / 10

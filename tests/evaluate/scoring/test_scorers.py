"""Option scorers: the published verdicts, what sets rules apart, and texts that break readers."""
import json
import random

import pytest
from roots import DATA

from downscale.evaluate.scoring import option_letters
from downscale.evaluate.scoring.table import SCORERS, unfit, verdicts
from downscale.evaluate.scoring.targets import Target

FIXTURE = json.loads((DATA / 'mcq_scorers.json').read_text())
NAMES = ('lmms_v04', 'ref_stage2', 'lmms_v07_letter', 'vlmevalkit', 'vmcbench')
OPTIONS = tuple(option_letters.COMPARISON.items())
# (text, gold, verdict of each of NAMES), as the originals gave them.
VERDICTS = [
    ('Because', 'B', 1.0, 1.0, 'B', None, None),
    ('A cat', 'A', 1.0, 1.0, 'A', 'A', 'A'),
    ('(b) x', 'B', 1.0, 1.0, '', None, None),
    ('(', 'B', 0.0, 0.0, '', None, None),
    ('option', 'A', 0.0, 0.0, '', None, None),
    ('the answer is  b', 'B', 0.0, 0.0, '', 'B', None),
    ('Answer: c\nso', 'C', 0.0, 0.0, 'A', None, None),
    ('x\nso ANSWER :\tB. yes', 'B', 0.0, 1.0, 'B', 'B', 'B'),
    ('Answer: A Answer: B', 'A', 1.0, 1.0, 'B', None, 'B'),
    ('The best option is (B) because D', 'B', 0.0, 0.0, 'D', None, 'B'),
    ('**B**', 'B', 0.0, 0.0, 'B', 'B', None),
    ('b', 'B', 1.0, 1.0, '', None, None),
    ('I choose C over D', 'D', 0.0, 0.0, 'D', None, 'D'),
    ('Z', 'A', 0.0, 0.0, '', 'Z', None),
    ("I can't process this file.", 'A', 0.0, 0.0, '', 'Z', None),
    ('A B C D E F', 'A', 1.0, 1.0, 'A', None, 'D'),
    ('B or not to be that is', 'B', 1.0, 1.0, 'B', None, 'B'),
    ('the answer is **b**', 'B', 0.0, 0.0, '', 'B', None),
    ('two dogs and three birds', 'B', 0.0, 0.0, '', None, None),
    ('TWO DOGS', 'B', 0.0, 0.0, 'G', 'B', None),
    ('Failed to obtain answer via API: B', 'B', 0.0, 0.0, 'B', None, 'B'),
    ('정답은 C', 'C', 0.0, 0.0, 'C', 'C', 'C'),
    ('选D', 'D', 0.0, 0.0, 'D', None, None),
    ('...', 'A', 0.0, 0.0, '', None, None),
    ('E', 'E', 1.0, 1.0, 'E', None, None),
    ('It shows two dogs on the grass', 'B', 0.0, 0.0, '', 'B', 'B'),
    ('(A) or B. yes', 'B', 0.0, 0.0, 'A', None, 'A'),
    ('The answer is (B) or (A) or (B) here', 'A', 0.0, 0.0, 'A', None, 'B'),
    ('B is what we see', 'B', 1.0, 1.0, 'B', None, 'B'),
    ('B is what see', 'B', 1.0, 1.0, 'B', 'B', 'B'),
]
LONG = [start + piece * (100000 // len(piece)) for start, piece in (
    ('', 'A'), ('answer is', ' '), ('', 'Answer: '), ('Answer', '*'), ('A.', '\n'), ('', '\x00'),
    ('', '[1'), ('<think>', '</think>'), ('', 'answer is '), ('', '\\boxed{'))]


def values(text, gold):
    return {name: verdict.value
            for name, verdict in verdicts(text, Target(answers=(gold,), choices=OPTIONS)).items()}


def test_every_published_verdict_is_reproduced():
    assert len(FIXTURE) == 72
    for row in FIXTURE:
        found = values(row['text'], row['gold'])
        for name in row.keys() - {'text', 'gold'}:
            assert (found[name], type(found[name])) == (row[name], type(row[name])), (name, row)


@pytest.mark.parametrize('row', VERDICTS, ids=lambda row: row[0][:20])
def test_other_texts_get_the_verdicts_of_the_originals(row):
    text, gold, *wanted = row
    found = values(text, gold)
    assert [found[name] for name in NAMES] == wanted


def test_a_verdict_hangs_on_the_texts_of_the_options_where_the_rule_says_so():
    assert option_letters.vlmevalkit('the red one', {'A': 'red', 'B': 'blue'}) == 'A'
    assert option_letters.vlmevalkit('the red one', dict.fromkeys('AB', '')) is None
    assert option_letters.vlmevalkit('red and blue', {'A': 'red', 'B': 'blue'}) is None
    assert option_letters.vmcbench('I am sure that it is red', {'A': 'red', 'B': 'blue'}) == 'A'
    assert option_letters.vmcbench('I am sure that it is', dict.fromkeys('AB', '')) is None


def test_what_cannot_be_read_is_unparsed_and_never_a_guess():
    found = verdicts('no idea whatsoever', Target(answers=('A',), choices=OPTIONS))
    assert not any(verdict.parsed or verdict.score for verdict in found.values())
    refused = verdicts("I can't process this file.", Target(answers=('A',), choices=OPTIONS))[
        'vlmevalkit'
    ]
    assert (refused.value, refused.parsed) == ('Z', False)
    # A wrong letter is an answer, for the rules that only say right or wrong as well.
    wrong = verdicts('C', Target(answers=('A',), choices=OPTIONS))
    assert all(verdict.parsed and not verdict.score for name, verdict in wrong.items()
               if name != 'interleave') and wrong['interleave'].parsed


def test_long_and_odd_texts_are_judged_in_time_and_by_every_scorer():
    for text in LONG:
        for answers in (('A',), ('red',), ('yes',), ('x', 'y', 'z'), ('[0, 0, 1, 1]',)):
            assert verdicts(text, Target(answers=answers, choices=OPTIONS))


@pytest.mark.parametrize('count', [2, 3, 9, 11])
def test_an_accepted_spelling_is_right_under_every_scorer_that_takes_lists(count):
    target = Target(answers=tuple(f'crimson{k}' for k in range(count)))
    for answer in target.answers:
        found = verdicts(answer, target)
        assert set(found) == {'exact-2', 'exact-1'}
        assert all(verdict.score == 1.0 for verdict in found.values())
    assert unfit('vqa', target) == (f'vqa counts the answers of 10 people, and here are {count}; '
                                    'of accepted spellings exact-2 takes each')


def test_ten_answers_are_votes():
    target = Target(answers=('red',) * 2 + ('blue',) * 8)
    for name in ('vqa', 'vqav2', 'vqav2_v04'):
        assert not unfit(name, target)
        assert verdicts('red', target)[name].score == pytest.approx((8 * 2 / 3 + 2 / 3) / 10)
        assert verdicts('blue', target)[name].score == 1.0


def test_a_verdict_depends_on_the_text_alone():
    texts = [''.join(random.Random(k).choices('AB(). \nanswer:is<>', k=30)) for k in range(50)]
    before = [values(text, 'A') for text in texts]
    assert [values(text, 'A') for text in reversed(texts)] == before[::-1]


def test_scorers_have_versions_and_our_own_ignores_thoughts():
    assert all(scorer.version for scorer in SCORERS.values())
    assert values('<think>A</think>Answer: B', 'B')['exact-1'] == 'B'
    assert values('so A</think>B', 'B')['exact-1'] == 'B'
    assert values('<think>it is B', 'B')['exact-1'] == ''


def test_the_harness_strips_closed_thoughts_from_stored_replies_only():
    text, target = '<think>The answer is A</think>two dogs', Target(answers=('A',), choices=OPTIONS)
    assert verdicts(text, target)['lmms_v07_letter'].value == 'A'
    assert verdicts(text, target, stored=True)['lmms_v07_letter'].value == ''
    assert verdicts('<think>The answer is A', target, stored=True)['lmms_v07_letter'].value == 'A'
    assert verdicts('A</think>B', target, stored=True)['lmms_v07_letter'].value == 'B'
    assert verdicts('<think>x</think>A', target, stored=True)['lmms_v04'].value == 0.0

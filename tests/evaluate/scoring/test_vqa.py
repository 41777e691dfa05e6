"""VQA accuracy: the normaliser's published pairs and oddities, and agreement with people."""
import copy
import json

import pytest
from roots import DATA

from downscale.evaluate.scoring.vqa import agreement, normal, soft, soft_vqav2, soft_vqav2_v04

FIXTURE = json.loads((DATA / 'vqa_normaliser.json').read_text())


@pytest.mark.parametrize('text, wanted', FIXTURE['norm'])
def test_published_pairs_are_reproduced(text, wanted):
    assert normal(text) == wanted


@pytest.mark.parametrize('text, answers, wanted', FIXTURE['soft'])
def test_published_agreement_is_reproduced_and_leaves_the_answers_alone(text, answers, wanted):
    before = copy.deepcopy(answers)
    assert soft(text, answers) == wanted == soft(text, answers)
    assert answers == before


def test_only_the_first_32_full_stops_go():
    assert normal('x.' * 32) == 'x' * 32
    assert normal('x.' * 33) == 'x' * 33 + '.'
    assert normal('3.5') == '3.5' and normal('.5') == '.5'


def test_a_comma_in_a_number_takes_the_marks_away_everywhere():
    assert normal('a-b') == 'b' and normal('x-y') == 'x y' and normal('x- y') == 'x y'
    # the words are split first, so that no comma is left there
    assert normal('1,000 x-y') == '1000 x y'
    answers = ['1000 xy'] * 9 + ['other']
    assert soft_vqav2('1,000 x-y', answers) == 1.0 and soft('1,000 x-y', answers) == 0.0


def test_contractions_are_spelled_and_numbers_are_digits():
    assert normal('DONT') == "don't" and normal('the Ten cats') == '10 cats'
    assert normal("whats") == "what's" and normal("let's") == "let 's"


def test_three_others_are_full_agreement():
    people = ['a'] * 3 + ['b'] * 7
    # each of the three is left out once and then has two others
    assert agreement('a', people) == pytest.approx((7 + 3 * 2 / 3) / 10)
    assert agreement('b', people) == 1.0 and agreement('c', people) == 0.0
    assert agreement('a', ['a'] + ['b'] * 9) == pytest.approx(9 / 3 / 10)


def test_the_versions_of_vqav2_part_where_all_people_agree():
    same, apart = ['Two'] * 10, ['Two'] * 9 + ['2']
    assert soft_vqav2('2', same) == 1.0 and soft_vqav2_v04('2', same) == 0.0
    assert soft_vqav2('2', apart) == soft_vqav2_v04('2', apart) == 1.0
    # no words are split for VQAv2: a question mark beside a letter becomes a blank
    assert soft_vqav2("Bob's", ["Bob's"] * 9 + ['x']) == 1.0 and normal("Bob's") == "bob 's"

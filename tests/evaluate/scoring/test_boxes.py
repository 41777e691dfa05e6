"""Boxes and short answers: overlaps by hand, the published defect, and where rules part."""
import pytest

from downscale.evaluate.scoring.boxes import box_in, box_of, coin, coin_compat, iou, refcoco
from downscale.evaluate.scoring.short_answers import (
    coin_equal,
    coin_imagenet,
    coin_ocrvqa,
    coin_scienceqa,
    interleave_choice,
    lmms_interleave,
    preferred,
    rouge_l,
    same_words,
)
from downscale.evaluate.scoring.table import verdicts
from downscale.evaluate.scoring.targets import Target
from downscale.evaluate.scoring.yes_no import pope, yes_or_no

HALF = '[0.0, 0.0, 0.5, 1.0]'
ALL = '[0.0, 0.0, 1.0, 1.0]'


def test_overlap_is_intersection_over_union():
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert iou((0, 0, 1, 1), (0, 0, 1, 1)) == 1.0 and iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0


@pytest.mark.parametrize('box', [(0, 0, 0, 0), (1, 1, 0, 0), (0, 0, 1e308, 1e308),
                                 (float('nan'),) * 4, (float('inf'),) * 4])
def test_a_box_without_an_area_overlaps_nothing(box):
    assert iou(box, box) in (0.0, 1.0) and iou((0, 0, 0, 0), box) == 0.0
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0


def test_exactly_a_half_is_enough_for_refcoco_and_not_for_coin():
    assert refcoco(HALF, ALL) == 1.0 and coin(HALF, ALL) == 0.0
    assert coin('[0.0, 0.0, 0.51, 1.0]', ALL) == 1.0


def test_the_first_four_numbers_in_brackets_are_the_box():
    assert box_in('at [0.1, 0.2,0.3 ,0.4] and [1,1,1,1]') == (0.1, 0.2, 0.3, 0.4)
    assert box_in('[0.1, 0.2, 0.3]') is None and box_in('0.1, 0.2, 0.3, 0.4') is None
    assert coin('no box', ALL) is None is refcoco('', ALL)
    assert box_of('[0, 0, 1, 1]') == box_of('0,0,1,1')
    for wrong in ('[0, 0, 1]', '[0, 0, 1, nan]', 'x'):
        with pytest.raises(ValueError):
            box_of(wrong)


def test_the_published_defect_hangs_on_the_digits_that_are_printed():
    gold = '[0.25, 0.3, 0.75, 0.9]'
    # '[0.25,0.3,0.75,0.9]' ends in '0.'; another digit or a number of three letters survives
    assert coin_compat('[0.25,0.3,0.75,0.9]', gold) == 0.0
    assert coin('[0.25,0.3,0.75,0.9]', gold) == 1.0
    assert coin_compat('[0.25,0.3,0.75,0.90]', gold) == 1.0
    assert coin_compat('[0.25,0.3,0.75,1.0]', '[0.25, 0.3, 0.75, 1.0]') == 1.0
    assert coin_compat('nothing', gold) is None


def test_a_reply_without_a_box_is_unparsed_and_wrong():
    found = verdicts('the dog', Target(answers=(ALL,)))
    assert {name: (verdict.score, verdict.parsed) for name, verdict in found.items()} == {
        'exact-2': (0.0, False), 'coin': (0.0, False), 'coin_compat': (0.0, False),
        'refcoco': (0.0, False)}


# --- short answers ----------------------------------------------------------------------------

def test_equality_ignores_case_and_no_more_than_each_rule_says():
    assert coin_equal('YES', 'yes') == 1.0 and coin_equal('yes.', 'yes') == 0.0
    assert same_words('Yes.', 'yes') == 1.0 and same_words('yes it is', 'yes') == 0.0
    assert coin_ocrvqa('Unanswerable', 'unanswerable') == 0.0
    assert coin_ocrvqa('The Cat', 'the cat') == 1.0


def test_imagenet_takes_a_part_either_way_but_no_empty_reply():
    assert coin_imagenet('tabby', 'tabby cat') == coin_imagenet('a tabby', 'tabby') == 1
    assert coin_imagenet('', 'tabby') == 0.0 == coin_imagenet('Tabby', 'tabby cat')


@pytest.mark.parametrize('text, letter', [('B', 'B'), ('B. red', 'B'), ('(b) red', 'B'), ('A cat',
                         'A'), ('I think B', ''), ('the answer is C', 'C'), ('E', ''), ('', '')])
def test_scienceqa_takes_the_first_lone_letter(text, letter):
    assert coin_scienceqa(text, 4) == letter


def test_yes_is_exact_for_pope_and_a_first_word_for_us():
    assert pope(' YES\n', 'yes') == 1.0 and pope('Yes.', 'yes') == 0.0
    assert yes_or_no('**Yes**, there is') == 'yes' and yes_or_no('No.') == 'no'
    assert yes_or_no('Nothing') == yes_or_no('there is') == ''


def test_a_choice_is_worth_the_people_who_made_it():
    assert preferred('A', 0.25) == 0.75 and preferred('B', 0.25) == 0.25
    assert preferred('A', 0.5) == preferred('B', 0.5) == 0.5
    found = verdicts('Answer: B', Target(answers=('B',), share=0.8))['preferred']
    assert (found.value, found.score) == ('B', 0.8)
    none = verdicts('both', Target(answers=('B',), share=0.5))['preferred']
    assert (none.score, none.parsed) == (0.0, False)


# --- several pictures ----------------------------------------------------------------------------

def test_rouge_is_the_f1_of_words_in_common_order():
    # 2 of 3 said and 2 of 4 right words are in common
    assert rouge_l('the cat sat', 'the black cat ran') == pytest.approx(4 / 7, abs=1e-6)
    assert rouge_l('cat the', 'the cat') == pytest.approx(0.5, abs=1e-6)
    assert rouge_l('', 'the cat') == 0.0 and rouge_l('x', '?') is None
    assert rouge_l('x ' * 256 + 'cat', 'cat') == 0.0  # letters behind 512 do not count


def test_choices_of_several_pictures_are_equal_words_or_a_letter_between_colons():
    assert interleave_choice('Left.', 'left') == 1.0
    assert interleave_choice('answer: B', 'b') == 1.0 == lmms_interleave('B. x', 'b')
    assert interleave_choice('B. x', 'b') == 0.0


# --- every form, and scales ---------------------------------------------------------------------

GOLD = '[0.25, 0.3, 0.75, 0.9]'


@pytest.mark.parametrize('text', [
    GOLD, '(0.25,0.3),(0.75,0.9)', '<box>(0.25, 0.3), (0.75, 0.9)</box>',
    '[[0.25, 0.3, 0.75, 0.9]]', '0.25, 0.3, 0.75, 0.9',
    '```json\n[{"bbox_2d": [0.25, 0.3, 0.75, 0.9], "label": "dog"}]\n```',
    '[25%, 30%, 75%, 90%]', '{"x1": 0.25, "y1": 0.3, "x2": 0.75, "y2": 0.9}', '[.25, .3, .75, .9]',
    '{"x": 0.25, "y": 0.3, "width": 0.5, "height": 0.6}', 'from (0.25, 0.3) to (0.75, 0.9)',
    'Answer: [0.25, 0.3, 0.75, 0.9]', '<bbox>0.25 0.3 0.75 0.9</bbox>', '[-0.01, 0.3, 0.75, 0.9]'])
def test_a_box_is_read_in_every_form_in_use(text):
    found = verdicts(text, Target(answers=(GOLD,)))['exact-2']
    assert (found.score, found.parsed, found.other_scale) == (1.0, True, False)


@pytest.mark.parametrize('text', ['[250, 300, 750, 900]', '[25, 30, 75, 90]',
                                  '<box>(160,144),(480,432)</box>'])
def test_another_scale_is_an_outcome_of_its_own(text):
    found = verdicts(text, Target(answers=(GOLD,)))['exact-2']
    assert (found.value, found.score, found.parsed) == ('other scale', 0.0, False)
    assert verdicts('[250, 300, 750, 900]', Target(answers=(GOLD,)))['refcoco'].other_scale


@pytest.mark.parametrize('text', ['[160, 144, 480, 432]', '[250, 300, 750, 900]', GOLD])
def test_scales_are_converted_where_the_size_of_the_picture_is_known(text):
    for gold in (GOLD, '[160, 144, 480, 432]'):
        assert verdicts(text, Target(answers=(gold,), size=(640, 480)))['exact-2'].score == 1.0
    beyond = verdicts('[5000, 1, 6000, 2]', Target(answers=(GOLD,), size=(640, 480)))['exact-2']
    assert beyond.value == 'other scale'


@pytest.mark.parametrize('text', ['', '[0.1, 0.2, 0.3]', f'{GOLD} or [0.1, 0.1, 0.2, 0.2]',
                                  '[0.5, 0.5, 0.25, 0.6]', '[1e999, 0, 1e999, 1]'])
def test_no_box_several_and_none_with_corners_in_order_are_unparsed(text):
    found = verdicts(text, Target(answers=(GOLD,)))['exact-2']
    assert (found.value, found.score, found.parsed) == ('', 0.0, False)


@pytest.mark.parametrize('said, texts', [
    ('yes', ('Yes.\nA kettle stands there.', 'No doubt there is one: yes', 'The answer is yes.',
             '**Yes**\n\n- a kettle', 'There is a kettle.', 'No. Wait, yes.', '\u662f\u7684')),
    ('no', ('No\n\nThe table is empty.', 'There is no kettle.', "I don't see any kettle.", 'no.',
            'The image does not contain a kettle.', 'Answer: No, there is not.')),
    ('', ('Yes or no', 'Yes/No', 'Yes\nNo', 'No idea.', 'I cannot see the image.', 'Note', ''))])
def test_yes_and_no_are_read_where_a_reply_says_one_of_them(said, texts):
    assert {yes_or_no(text) for text in texts} == {said}

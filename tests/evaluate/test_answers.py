"""From a question to a prompt and from a reply to a row: what is shown, found and scored."""
import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import small
import small_bpe

from downscale.config import Evaluation
from downscale.data.chat import CHATS
from downscale.data.records import Turn
from downscale.data.scenes.conversations import MIXTURES, THINK, answer_text
from downscale.data.tiling import NEWLINE
from downscale.data.tokens import Encoder, Layout
from downscale.evaluate.answers import (
    Asking,
    answer_in,
    following,
    gold_ids,
    items_of,
    prompt_of,
    row,
    shown,
    thought_in,
)
from downscale.evaluate.decoupled import GOLD, answer, brief_texts, describe, gold_texts
from downscale.evaluate.joint import joint
from downscale.generate.engine import Stats
from downscale.generate.replies import Replies
from downscale.generate.requests import Reply
from downscale.results.items import ITEMS, LATER, read_items, write_items
from downscale.sizes import Pictures
from downscale.values import hash_of


@pytest.fixture(scope='module')
def items():
    return items_of(small.library('test').source, 8)


def test_every_question_of_the_first_scenes_is_asked_once_and_in_order(items):
    source = small.library('test').source
    wanted = [question for i in range(8) for question in source[i].questions]
    assert [item.question for item in items] == wanted
    assert len({item.question.item_id for item in items}) == len(items) > 50
    assert items_of(source, 2) == items[:sum(len(source[i].questions) for i in range(2))]
    assert all(item.question in item.example.questions for item in items)


def test_the_condition_decides_which_pictures_are_shown(items):
    numbers = {len(item.example.images) for item in items}
    assert numbers == {1, 3}
    pictures = {item.example.scene_id: item.example.images for item in items}
    for item in items:
        own = item.example.images
        assert shown(item, 'blind', {}) == ()
        assert shown(item, 'image', {}) == own
        shuffled = shown(item, 'shuffled', following(items))
        assert len(shuffled) == len(own)
        assert shuffled in [other for name, other in pictures.items()
                            if name != item.example.scene_id]
        assert not set(shuffled) & set(own)


def test_shuffling_lends_every_picture_to_exactly_one_other_scene(items):
    lent = {}
    for item in items:
        lent.setdefault(item.example.scene_id, set()).add(shown(item, 'shuffled', following(items)))
    assert all(len(given) == 1 for given in lent.values())  # the questions of a scene share one
    assert len(set.union(*lent.values())) == len(lent)


def test_a_lone_scene_cannot_be_shown_another_picture(items):
    """It would be asked with its own, and the control would score like the real thing."""
    lone = [item for item in items if item.example.scene_id == items[0].example.scene_id]
    with pytest.raises(ValueError, match='shuffled'):
        following(lone)


def test_a_prompt_is_what_training_shows_up_to_the_answer(items):
    """The joint question, and the reasoner's with either thought; the prompt is never learnt."""
    encoder = small.encoder()
    item = items[0]
    question, example = item.question, item.example
    prompt = prompt_of(encoder, question.text, example.images)
    talk = next(talk for seed in range(99) if (talk := MIXTURES['instruct'](
        small.library('test'), 0, np.random.default_rng(seed), small.WORLD, 1, ' ')).turns[1].text
        == question.answer and talk.turns[0].text.endswith(question.text))
    trained = encoder.encode(talk.turns, pictures=encoder.layout.cut(example.images)[0])
    n = len(prompt.tokens)
    np.testing.assert_array_equal(prompt.tokens, trained['tokens'][:n])
    np.testing.assert_array_equal(prompt.image_index, trained['image_index'][:n])
    assert (*trained['tokens'][n:].tolist(),) == gold_ids(encoder, question)
    for thought in ('', question.trace.text, question.trace.scan):
        think = bool(thought)
        prompt = prompt_of(encoder, question.text, thinking=think)
        trained = encoder.encode(
            [
                Turn(role='user', text=question.text, supervised=False),
                Turn(
                    role='assistant',
                    text=answer_text(question, thought),
                    supervised=True,
                    thinking=think,
                ),
            ]
        )
        n = len(prompt.tokens)
        np.testing.assert_array_equal(prompt.tokens, trained['tokens'][:n])
        assert not trained['weights'][:n].any() and trained['weights'][n:].all()
        rest = encoder.text(trained['tokens'][n:])
        assert answer_in(rest, think) == (question.answer, True)
        assert think or (*trained['tokens'][n:].tolist(),) == gold_ids(encoder, question)


def test_a_reasoner_never_learns_whether_to_think():
    """Else half of its `<think>` would be followed by `</think>`, and greedy decoding would not."""
    encoder, kinds = small.encoder(), set()
    for seed in range(40):
        talk = MIXTURES['reason'](small.library(), 0, np.random.default_rng(seed), small.WORLD, 2,
                                  ' ')
        for turn in talk.turns[1::2]:
            assert not turn.text.startswith(THINK[1]) and (THINK[1] in turn.text) == turn.thinking
            kinds.add(turn.thinking)
        arrays = encoder.encode(talk.turns)
        opens = arrays['tokens'] == encoder.tokenizer.token_to_id(THINK[0])
        assert opens.any() and not arrays['weights'][opens].any()
    assert kinds == {True, False}


def test_a_prompt_carries_its_tiles_and_a_blind_one_has_none(items):
    encoder = small.encoder()
    item = next(item for item in items if len(item.example.images) == 3)
    prompt = prompt_of(encoder, item.question.text, item.example.images)
    placed, tiles = encoder.layout.cut(item.example.images)
    assert prompt.tiles.shape == (3, small.VISION.P, small.VISION.Q)
    np.testing.assert_array_equal(prompt.tiles, tiles)
    blind = prompt_of(encoder, item.question.text)
    assert blind.tiles is None and (blind.image_index == -1).all()
    np.testing.assert_array_equal(blind.tokens,
                                  prompt.tokens[sum(picture.tokens for picture in placed):])
    assert blind.prefix == 0 and blind.prefix_hash == ''
    assert prompt.prefix == len(prompt.tokens) - len(blind.tokens)


class Asked:
    """An engine that notes what it is asked, and answers with the number of the request."""

    def __init__(self, encoder):
        self.encoder, self.calls, self.stats = encoder, [], Stats()

    def stream(self, asked):
        self.calls.append(asked)
        for k, request in reversed(list(enumerate(asked))):
            yield k, Reply(
                ids=(k, k),
                text=f'{THINK[1]} {k}' if request.think is not None else f'{k}',
                finish='stop',
                nll=math.nan if request.target is None else float(k),
                close='' if request.think is None else 'natural',
                thought=0,
                answered=1,
            )


CELL = SimpleNamespace(evaluation=Evaluation(answer=5, write=33, think=21), name='w32d1-s0')


@pytest.mark.parametrize('pictures', [small.PADDED, Pictures('anyres', 1, ((2, 2),))])
def test_the_joint_test_asks_every_question_under_every_condition(items, pictures, tmp_path):
    engine = Asked(small.encoder(pictures))
    found = joint(Replies(engine, tmp_path, []), CELL, items, 'd')
    conditions, n = Evaluation().conditions, len(items)
    assert [row['condition'] for row in found] == [name for name in conditions for _ in items]
    assert [row['item_id'] for row in found] == 3 * [item.question.item_id for item in items]
    assert [row['pred'] for row in found] == 3 * [str(k) for k in range(n)]
    for condition, asked in zip(conditions, engine.calls, strict=True):
        assert {(r.limit, r.think, r.sample) for r in asked} == {(5, None, 0)}
        for request, item in zip(asked, items, strict=True):
            assert request.target == gold_ids(engine.encoder, item.question)
            assert (request.prompt.tiles is None) == (condition == 'blind')
        # Questions about one picture share what is read of it; each scene has its own.
        prefixes = {}
        for request, item in zip(asked, items, strict=True):
            prefixes.setdefault(item.example.scene_id, set()).add(request.prompt.prefix_hash)
        assert all(len(found) == 1 for found in prefixes.values())
        assert len(set.union(*prefixes.values())) == (1 if condition == 'blind' else 8)


def test_a_caption_is_written_once_a_picture_and_an_extraction_once_a_question(items, tmp_path):
    for kind, count in (('caption', 8), ('extraction', None)):
        engine = Asked(small.encoder())
        texts = describe(Replies(engine, tmp_path, []), CELL, items, kind)
        (asked,) = engine.calls
        assert len(asked) == (count or len({(item.example.scene_id, text['prompt'])
                                            for item, text in zip(items, texts)}))
        assert {(r.limit, r.think, r.target) for r in asked} == {(33, None, None)}
        assert [text['item_id'] for text in texts] == [item.question.item_id for item in items]
        for text, item in zip(texts, items, strict=True):
            request = asked[int(text['text'])]
            wanted = prompt_of(engine.encoder, text['prompt'], item.example.images)
            np.testing.assert_array_equal(request.prompt.tokens, wanted.tokens)
            assert request.prompt.prefix_hash == wanted.prefix_hash


def test_a_reasoner_answers_from_every_text_with_a_thought_and_without(items, tmp_path):
    engine = Asked(small.encoder())
    texts = {(GOLD, 'caption'): gold_texts(items, 'caption'),
             ('w64d2-s0', 'extraction'): {item.question.item_id: 'red' for item in items}}
    found = answer(Replies(engine, tmp_path, []), CELL, items, texts, 'd')
    (asked,) = engine.calls
    assert [each['pred'] for each in found] == [str(k) for k in range(4 * len(items))]
    for name in ('eval_id', 'prompt_hash'):
        assert len({each[name] for each in found}) == 4
    for each, request, item in zip(found, asked, 4 * items, strict=True):
        gold, think = each['p_run'] == GOLD, each['thinking']
        assert (each['condition'], each['text_kind']) == (
            ('gold_text', 'caption') if gold else ('image', 'extraction'))
        assert (request.limit, request.think) == (5, 21 if think else None)
        # A likelihood of the answer without its thought would say nothing.
        assert request.target == (None if think else gold_ids(engine.encoder, item.question))
        assert math.isnan(each['nll_gold']) == think
        text = engine.encoder.text(request.prompt.tokens)
        assert item.question.text in text and request.prompt.tiles is None
        assert (item.example.caption if gold else 'red') in text


def test_a_tiled_prompt_keeps_its_weights_and_text_behind_it_has_none(items):
    encoder = small.encoder(Pictures('anyres', 1, ((2, 2),)))
    item = next(item for item in items if len(item.example.images) == 1)
    (placed,), tiles = encoder.layout.cut(item.example.images)
    prompt = prompt_of(encoder, item.question.text, item.example.images, thinking=True)
    np.testing.assert_array_equal(prompt.tiles, tiles)
    np.testing.assert_array_equal(prompt.image_index[:placed.tokens], placed.index_LC)
    np.testing.assert_array_equal(prompt.image_weight[:placed.tokens], placed.weight_LC)
    assert len(prompt.tokens) == len(prompt.image_index) == len(prompt.image_weight)
    assert prompt.image_index.max(where=prompt.image_index < NEWLINE, initial=0) == 5 * 4 - 1
    assert (prompt.image_index[placed.tokens:] == -1).all()
    assert not prompt.image_weight[placed.tokens:].any()


def test_the_gold_tokens_are_the_answer_and_the_stop_token(items):
    encoder = small.encoder()
    for item in items:
        ids = gold_ids(encoder, item.question)
        assert ids[-1] == encoder.stop and ids.count(encoder.stop) == 1
        assert encoder.text(ids) == item.question.answer


@pytest.mark.parametrize('text, thinking, wanted', [
    (' red ', False, ('red', True)), ('', False, ('', False)), ('  ', False, ('', False)),
    ('a1 red </think> red', True, ('red', True)), ('</think> red', True, ('red', True)),
    ('a1 red', True, ('', False)), ('a1 </think>', True, ('', False)), ('', True, ('', False)),
    ('a </think> b </think> c', True, ('b </think> c', True)),
    ('a1 </think> red', False, ('a1 </think> red', True))])
def test_the_answer_stands_behind_a_closed_thought(text, thinking, wanted):
    assert answer_in(text, thinking) == wanted


@pytest.mark.parametrize('text, thinking, spelled, wanted', [
    ('red', False, 0, ''), ('a </think> red', False, 0, ''), ('a1 </think> red', True, 0, 'a1 '),
    ('a1', True, 0, 'a1'), ('a </think> b </think> c', True, 0, 'a '),
    ('a </think> b </think> c', True, 1, 'a </think> b '),
    ('a </think> b', True, 1, 'a </think> b')])
def test_a_thought_and_its_answer_are_all_of_a_reply(text, thinking, spelled, wanted):
    assert thought_in(text, thinking, spelled) == wanted
    answer, closed = answer_in(text, thinking, spelled)
    if thinking and closed:
        assert f'{wanted}</think> {answer}' == text


def rows_of(item, text, **changes):
    encoder = small.encoder()
    thinking = changes.get('thinking', False)
    close = 'natural' if THINK[1] in text else 'open' if thinking else ''
    reply = Reply(
        ids=(*encoder.ids(text),),
        text=text,
        finish='stop',
        nll=1.5,
        close=close,
        thought=int(thinking),
        answered=1,
    )
    return row(item, reply, Asking(**{'eval_id': 'e', 'condition': 'image', 'data_hash': 'd',
                                      'prompt_hash': 'p', 'p_run': 'w32d1-s0', **changes}))


def test_a_row_fits_the_table_of_items_exactly(items, tmp_path):
    found = [rows_of(item, item.question.answer) for item in items]
    assert list(found[0]) == [*ITEMS.names, *LATER.names]
    assert pa.Table.from_pylist(found, schema=ITEMS).schema == ITEMS
    write_items(tmp_path / 'items.parquet', found)
    table = read_items(tmp_path / 'items.parquet').to_pylist()
    found = [{name: row[name] for name in ITEMS.names} for row in found]
    assert sorted(table, key=lambda r: r['item_id']) == sorted(found, key=lambda r: r['item_id'])


def test_a_row_scores_the_answer_and_keeps_what_was_said(items):
    for item in items:
        right, wrong = item.question.answer, item.question.distractors[0]
        assert (rows_of(item, right)['score'], rows_of(item, wrong)['score']) == (1.0, 0.0)
    item = items[0]
    good = rows_of(item, f'a1 </think> {item.question.answer}', thinking=True)
    assert (good['score'], good['parse_ok'], good['pred']) == (1, True, item.question.answer)
    open_thought = rows_of(item, item.question.answer, thinking=True)
    assert (open_thought['score'], open_thought['parse_ok'], open_thought['pred']) == (0, False, '')
    assert (good['n_think_tokens'], good['close'], open_thought['close']) == (1, 'natural', 'open')
    cut = row(
        item,
        Reply(ids=(9,), text='a1', finish='length', nll=math.nan, close='', thought=0, answered=1),
        Asking(eval_id='e', condition='image', data_hash='d', prompt_hash='p'),
    )
    assert cut['truncated'] and math.isnan(cut['nll_gold']) and cut['n_gen_tokens'] == 1
    assert good['nll_gold'] == 1.5 and not good['truncated']
    assert good['item_id'] == item.question.item_id and good['task'] == item.question.family


def test_the_hash_knows_values_and_not_the_order_of_keys():
    assert hash_of({'a': 1, 'b': [2]}) == hash_of({'b': [2], 'a': 1})
    assert len({hash_of(value) for value in ({'a': 1}, {'a': 2}, {'b': 1}, [1], ['1'])}) == 5


def test_a_brief_caption_is_its_start_as_long_as_the_extraction_of_the_same_item(items):
    encoder = small.encoder()
    captions, extractions = (gold_texts(items, kind) for kind in ('caption', 'extraction'))
    brief, cut = brief_texts(captions, extractions, encoder), 0
    for item, caption in captions.items():
        words = len(extractions[item].split())  # one token each
        assert brief[item].split() == caption.split()[:words]
        cut += brief[item] != caption
    assert len(brief) == len(items) and cut > len(items) / 2


@pytest.mark.parametrize('chat', [name for name in CHATS if name not in ('plain', 'micro')])
def test_a_picture_is_asked_about_as_published_data_shows_it(chat):
    """In LLaVA's form a line break follows the pictures: a token of its own, or part of one."""
    library, encoder = small.library(), Encoder(small_bpe.tokenizer(), CHATS[chat],
                                                Layout(small.VISION, small.PADDED))
    lone, several = (next(k for k in range(99) if library.example(k).count == count)
                     for count in (1, 3))
    for index in (lone, several):
        example = library.example(index)
        marks = ' '.join(['<image>'] * example.count)

        def encoded(text, pngs=example.images):
            return encoder.encode([Turn(role='user', text=text, supervised=False)], True,
                                  pictures=encoder.layout.cut(pngs)[0])['tokens'].tolist()

        asked = prompt_of(encoder, 'Two or three?', example.images).tokens.tolist()
        assert asked == encoded(f'{marks}\nTwo or three?')
        moved = CHATS[chat].after_image and index == lone
        assert (asked == encoded(f'{marks} Two or three?')) == bool(moved)
        talk = MIXTURES['instruct'](library, index, np.random.default_rng(0), small.WORLD, 1,
                                    CHATS[chat].after_pictures)
        assert talk.turns[0].text.startswith(f'{marks}\n')

"""Chat formats: the text of published templates, what of it is learnt, and how a reply begins."""
import json
from dataclasses import replace

import pytest
import small
import small_bpe
from roots import DATA

from downscale.data.chat import CHATS, render
from downscale.data.records import IMAGE, Turn
from downscale.data.tiling import place
from downscale.data.tokens import Encoder, Layout
from downscale.sizes import Pictures, VisionConfig

# [chat, [[role, text]], reply, thinking, text]: rendered with Jinja from the templates that Qwen3's
# tokenizer_config.json and SmolLM2's GGUF file hold.
RENDERED = json.loads((DATA / 'chats.json').read_text())
SYSTEM = '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
HEADER = '<|im_start|>assistant\n'
EMPTY = '<think>\n\n</think>\n\n'

TOWER, FLAT = VisionConfig(layers=1, W=8, H=1, F=8, patch=8, image=8), Pictures('flat')


def text_of(chat, turns, reply=False, thinking=None):
    return ''.join(text for text, _ in render(chat, turns, reply, thinking))


def encoder(chat, tokenizer=None):
    chat = CHATS[chat] if isinstance(chat, str) else chat
    return Encoder(tokenizer or small_bpe.tokenizer(), chat, Layout(TOWER, FLAT))


def encode(own, turns, reply=False, thinking=None):
    """Arrays of `turns`, with a picture of one token for every mark."""
    marks = sum(turn.text.count(IMAGE) for turn in turns)
    return own.encode(turns, reply, thinking, (place(8, 8, TOWER, FLAT),) * marks)


def learnt(own, turns):
    """Runs of learnt tokens as text, in order."""
    arrays, runs, before = encode(own, turns), [], -2
    for spot in (arrays['weights'] > 0).nonzero()[0]:
        runs += [[]] if spot != before + 1 else []
        runs[-1].append(int(arrays['tokens'][spot]))
        before = spot
    assert set(arrays['weights'].tolist()) <= {0.0, 1.0}
    return [own.tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def talk(*texts, supervised=True):
    """User and assistant in turns; what the assistant says is learnt."""
    return [
        Turn(
            role='assistant' if k % 2 else 'user', text=text, supervised=bool(k % 2) and supervised
        )
        for k, text in enumerate(texts)
    ]


@pytest.mark.parametrize('supervised', [False, True])
@pytest.mark.parametrize('name', ['qwen3', 'smollm2'])
def test_text_is_what_the_published_template_renders(name, supervised):
    cases = [case for case in RENDERED if case[0] == name]
    assert len(cases) > 10
    for _, turns, reply, thinking, text in cases:
        turns = [Turn(role=role, text=said, supervised=supervised) for role, said in turns]
        assert text_of(CHATS[name], turns, reply, thinking) == text


def test_tokens_of_a_prompt_are_those_of_its_whole_text():
    """A line break that begins a turn may merge with the one that ends the turn's header."""
    merged = 0
    for name, turns, reply, thinking, text in RENDERED:
        own = encoder(name)
        turns = [Turn(role=role, text=said, supervised=False) for role, said in turns]
        tokens = encode(own, turns, reply, thinking)['tokens'].tolist()
        assert tokens == own.ids(text)
        apart = [i for turn in turns for i in own.ids(turn.text)]
        merged += own.ids('\n\n')[0] in set(tokens) - set(apart)
    assert merged


def test_perception_opens_with_the_fixed_system_turn_unless_it_has_one():
    turns = talk('What is it?', 'red')
    said = '<|im_start|>user\nWhat is it?<|im_end|>\n' + HEADER + 'red<|im_end|>\n'
    assert text_of(CHATS['chatml'], turns) == SYSTEM + said
    own = [Turn(role='system', text='Be brief.', supervised=False), *turns]
    assert text_of(CHATS['chatml'], own) == '<|im_start|>system\nBe brief.<|im_end|>\n' + said
    assert text_of(CHATS['chatml'], turns[:1], reply=True) == SYSTEM + said.partition('red')[0]


@pytest.mark.parametrize('given,wanted', [
    (f'What is it? {IMAGE}', f'{IMAGE}\nWhat is it?'),
    (f'What {IMAGE} is it?\n', f'{IMAGE}\nWhat  is it?'),
    (f'{IMAGE} What is it?', f'{IMAGE}\nWhat is it?'),
    (f'{IMAGE}\nWhat is it? ', f'{IMAGE}\nWhat is it? '),
    (f'first {IMAGE} and {IMAGE}', f'first {IMAGE} and {IMAGE}'),
    ('What is it? ', 'What is it? ')])
def test_only_a_lone_image_moves_to_the_front_of_its_turn(given, wanted):
    turn = f'<|im_start|>user\n{wanted}<|im_end|>\n'
    assert (
        text_of(CHATS['chatml'], [Turn(role='user', text=given, supervised=False)]) == SYSTEM + turn
    )
    assert f'user\n{given}<|im_end|>' in text_of(
        CHATS['qwen3'], [Turn(role='user', text=given, supervised=False)]
    )


def test_the_connector_stage_is_images_caption_and_line_break():
    turns = talk(f'Describe it. {IMAGE} And {IMAGE}', 'a red square.')
    own = encoder('plain')
    assert text_of(CHATS['plain'], turns) == f'{IMAGE}{IMAGE}a red square.\n'
    assert learnt(own, turns) == ['a red square.\n']
    assert encode(own, turns)['image_index'][:3, 0].tolist() == [0, 1, -1]


@pytest.mark.parametrize('name', ['chatml', 'qwen3', 'smollm2'])
def test_the_reply_and_its_stop_token_are_learnt_and_nothing_else(name):
    turns = [
        Turn(role='system', text='Be brief.', supervised=False),
        *talk('Two\n', 'three', 'and', 'five.\n'),
    ]
    prefix = EMPTY if name == 'qwen3' else ''
    assert learnt(encoder(name), turns) == ['three<|im_end|>', 'five.\n<|im_end|>']
    assert text_of(CHATS[name], turns).endswith(f'{HEADER}{prefix}five.\n<|im_end|>\n')
    assert learnt(encoder(name), talk('Two', 'three', supervised=False)) == []


def test_a_thought_is_learnt_where_the_template_keeps_it():
    thought = '<think>\nTwo and three.\n</think>\n\n'
    turns = talk('Two', f'{thought}five', 'and', f'{thought}three')
    assert learnt(encoder('qwen3'), turns) == ['five<|im_end|>', f'{thought}three<|im_end|>']
    assert thought not in text_of(CHATS['qwen3'], turns[:2] + talk('Two'), reply=True)


@pytest.mark.parametrize('thinking', [False, True])
@pytest.mark.parametrize('name', ['chatml', 'qwen3', 'smollm2', 'micro'])
def test_training_goes_on_where_the_prompt_of_a_reply_ends(name, thinking):
    own = encoder(name, small.tokenizer() if name == 'micro' else None)
    thought = '<think>\nTwo\n</think>\n\n' if thinking else ''
    said = {'micro': f'{"red </think> " if thinking else ""}blue',
            'qwen3': thought + 'five'}.get(name, 'five')
    prompt = encode(own, talk('what is at'), reply=True, thinking=thinking)
    trained = encode(
        own,
        [
            *talk('what is at'),
            Turn(role='assistant', text=said, supervised=True, thinking=thinking),
        ],
    )
    n = len(prompt['tokens'])
    assert trained['tokens'][:n].tolist() == prompt['tokens'].tolist()
    assert len(trained['tokens']) > n
    assert not prompt['weights'].any()
    assert not trained['weights'][:n].any() and trained['weights'][n]


def test_a_reply_begins_as_thinking_says():
    begun = {(name, thinking): render(CHATS[name], talk('what'), True, thinking)[-1]
             for name in CHATS if name != 'plain' for thinking in (None, False, True)}
    assert {weight for _, weight in begun.values()} == {0}
    for name in ('chatml', 'smollm2'):
        assert {begun[name, thinking][0] for thinking in (None, False, True)} == {HEADER}
    assert begun['qwen3', None] == begun['qwen3', True] == (HEADER, 0)
    assert begun['qwen3', False] == (HEADER + EMPTY, 0)
    assert [begun['micro', thinking][0] for thinking in (None, False, True)] == [
        '<|im_start|>', '<|im_start|><think> </think>', '<|im_start|><think>']


def test_the_legacy_loss_learns_headers_and_structure_everywhere():
    legacy = replace(CHATS['chatml'], legacy_structural_loss=True)
    turns = [Turn(role='system', text='a\nb', supervised=False), *talk(f'{IMAGE} Two', 'three'),
             *talk('and', 'five', supervised=False)]
    assert learnt(encoder(legacy), turns) == [
        '<|im_start|>', '\n', '\n', '<|im_end|>\n<|im_start|>', '\n',  # system, and a user's header
        '\n', f'<|im_end|>\n{HEADER}three<|im_end|>\n<|im_start|>',    # behind the image; the reply
        '\n', '<|im_end|>\n<|im_start|>', '\n', '<|im_end|>\n']        # turns that are not learnt
    one, other = encode(encoder(legacy), turns), encode(encoder('chatml'), turns)
    assert one['tokens'].tolist() == other['tokens'].tolist()
    assert not one['weights'][one['image_index'][:, 0] >= 0].any()
    assert (one['weights'] >= other['weights']).all()


def test_a_legacy_loss_whose_line_break_is_no_token_is_refused():
    legacy = {name: replace(CHATS[name], legacy_structural_loss=True) for name in CHATS}
    with pytest.raises(ValueError, match=r"needs '\\n' to be one token of the tokenizer, not 0"):
        encoder(legacy['chatml'], small.tokenizer())
    own = encoder(legacy['micro'], small.tokenizer())
    assert learnt(own, talk('what', 'red', supervised=False)) == ['<|im_start|>', '<|im_end|>']
    caption = talk(IMAGE, 'a red square.')
    assert learnt(encoder(legacy['plain']), caption) == ['a red square.\n']


def test_a_role_without_a_format_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown role 'tool'.*system, user, assistant"):
        render(CHATS['qwen3'], [Turn(role='tool', text='x', supervised=False)])


def test_a_format_is_named_by_its_hash_and_the_loss_is_no_part_of_it():
    assert len({chat.hash for chat in CHATS.values()}) == len(CHATS)
    for chat in CHATS.values():
        assert replace(chat, legacy_structural_loss=True).hash == chat.hash
        assert replace(chat, direct=chat.direct + ' ').hash != chat.hash

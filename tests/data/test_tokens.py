"""Text to ids: which tokens are learnt, where images go, and what a broken tokenizer says."""
from dataclasses import replace

import numpy as np
import pytest
import small

from downscale.data.chat import CHATS
from downscale.data.records import IMAGE, Turn
from downscale.data.tiling import NEWLINE, place
from downscale.data.tokens import (
    SPECIAL,
    Encoder,
    Layout,
    load_tokenizer,
    train_tokenizer,
)
from downscale.sizes import Pictures, VisionConfig

TOWER = VisionConfig(layers=1, W=8, H=1, F=8, patch=4, image=8)
MICRO_CHAT, CHATML = CHATS['micro'], CHATS['chatml']
WORDS = ('what', 'is', 'at', 'a1', 'b2', 'red', 'blue')


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(train_tokenizer(WORDS, tmp_path / 'tokenizer.json'))


def encoder(tokenizer, mode='padded', chat=MICRO_CHAT):
    return Encoder(tokenizer, chat, Layout(TOWER, Pictures(mode)))


def test_exactly_the_supervised_turns_and_their_stop_tokens_are_learnt(tokenizer):
    turns = [
        Turn(role='user', text='what is at a1', supervised=False),
        Turn(role='assistant', text='red', supervised=True),
        Turn(role='user', text='what is at b2', supervised=False),
        Turn(role='assistant', text='blue red', supervised=True),
        Turn(role='user', text='at', supervised=False),
        Turn(role='assistant', text='a1', supervised=False),
    ]
    arrays = encoder(tokenizer).encode(turns)
    learnt = [tokenizer.id_to_token(int(t)) for t in arrays['tokens'][arrays['weights'] > 0]]
    assert learnt == ['red', '<|im_end|>', 'blue', 'red', '<|im_end|>']
    assert set(arrays['weights'].tolist()) == {0.0, 1.0}
    everything = [tokenizer.id_to_token(int(t)) for t in arrays['tokens']]
    assert ' '.join(everything) == (
        'what is at a1 <|im_start|> red <|im_end|> what is at b2 <|im_start|> blue red <|im_end|> '
        'at <|im_start|> a1 <|im_end|>')


def test_a_reply_leaves_an_open_assistant_header(tokenizer):
    turns = [Turn(role='user', text='what is at a1', supervised=False)]
    for chat, last in ((MICRO_CHAT, '<|im_start|>'), (CHATML, '<unk>')):
        own = encoder(tokenizer, chat=chat)
        closed, opened = own.encode(turns), own.encode(turns, reply=True)
        n = len(closed['tokens'])
        assert opened['tokens'][:n].tolist() == closed['tokens'].tolist()
        assert opened['tokens'][n:].tolist() == own.ids(chat.assistant[0])
        assert tokenizer.id_to_token(int(opened['tokens'][-1])) == last
        assert not opened['weights'].any()


def test_a_reply_after_a_finished_exchange_keeps_the_earlier_stop_token(tokenizer):
    own = encoder(tokenizer)
    turns = [
        Turn(role='user', text='a1', supervised=False),
        Turn(role='assistant', text='red', supervised=True),
        Turn(role='user', text='b2', supervised=False),
    ]
    tokens = own.encode(turns, reply=True)['tokens'].tolist()
    assert tokens.count(own.stop) == 1
    assert tokens[-1] != own.stop


@pytest.mark.parametrize('mode', ['padded', 'flat'])
def test_an_image_takes_its_patches_and_a_newline_where_the_layout_has_one(tokenizer, mode):
    own, newline = encoder(tokenizer, mode), mode == 'padded'
    arrays = own.encode([Turn(role='user', text=f'{IMAGE} at {IMAGE} a1', supervised=True)],
                        pictures=(place(9, 9, TOWER, own.layout.pictures),) * 2)
    tail, (index,) = [NEWLINE] * newline, arrays['image_index'].T
    assert index.tolist() == [0, 1, 2, 3, *tail, -1, 4, 5, 6, 7, *tail, -1]
    assert (arrays['tokens'][index >= 0] == own.pad).all()
    assert arrays['weights'][index >= 0].sum() == 0
    assert own.layout.newline == newline and 'image_weight' not in arrays


def test_an_image_of_many_tiles_takes_as_many_tokens_as_it_is_placed_on(tokenizer):
    """The second picture's features begin behind all tiles of the first."""
    own = encoder(tokenizer, 'anyres')
    wide, small_one = (place(*size, TOWER, own.layout.pictures) for size in ((50, 16), (8, 8)))
    assert wide.tiles > 2 == small_one.tiles and (wide.weight_LC[:, 1:] > 0).any()
    arrays = own.encode([Turn(role='user', text=f'at {IMAGE} a1 b2 {IMAGE}', supervised=True)],
                        pictures=(wide, small_one))
    index, weight = arrays['image_index'], arrays['image_weight']
    first, second = slice(1, 1 + wide.tokens), slice(3 + wide.tokens, None)
    for text in (0, 1 + wide.tokens, 2 + wide.tokens):
        assert (index[text] == -1).all() and arrays['weights'][text] == 1
    assert len(arrays['tokens']) == 3 + wide.tokens + small_one.tokens
    assert index[first].tolist() == wide.index_LC.tolist()
    assert weight[first].tolist() == wide.weight_LC.tolist()
    shifted = small_one.index_LC + wide.tiles * TOWER.P
    assert index[second].tolist() == np.where(small_one.index_LC == NEWLINE, NEWLINE,
                                              shifted).tolist()
    assert weight[second].tolist() == small_one.weight_LC.tolist()


@pytest.mark.parametrize('text, count', [(IMAGE, 0), ('at', 1), (f'{IMAGE} {IMAGE}', 1)])
def test_marks_and_pictures_must_agree_in_number(tokenizer, text, count):
    own, marks = encoder(tokenizer), text.count(IMAGE)
    with pytest.raises(ValueError, match=f'{marks} image marks .* for {count} pictures') as caught:
        own.encode([Turn(role='user', text=text, supervised=False)],
                   pictures=(place(9, 9, TOWER, own.layout.pictures),) * count)
    assert '\n' not in str(caught.value)


def test_a_model_without_a_tower_takes_text_and_refuses_pictures(tokenizer):
    own = Encoder(tokenizer, MICRO_CHAT, Layout(None))
    assert own.layout.cut(()) == ((), None)
    assert (
        own.encode([Turn(role='user', text='red', supervised=False)])['image_index'] == -1
    ).all()
    with pytest.raises(ValueError, match='no vision tower'):
        own.layout.cut((b'',))


def test_the_same_words_give_the_same_tokenizer_bytes(tmp_path):
    first = train_tokenizer(WORDS, tmp_path / 'a.json').read_bytes()
    assert train_tokenizer(WORDS[::-1] + WORDS, tmp_path / 'b.json').read_bytes() == first
    assert train_tokenizer(WORDS[:-1], tmp_path / 'c.json').read_bytes() != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.json', 'b.json', 'c.json']


def test_padding_is_token_zero_and_every_word_has_its_own_id(tokenizer):
    assert tokenizer.token_to_id('<pad>') == encoder(tokenizer).pad == 0
    ids = [tokenizer.token_to_id(word) for word in (*SPECIAL, *WORDS)]
    assert sorted(ids) == list(range(len(SPECIAL) + len(WORDS)))


def test_text_of_ids_ends_at_the_stop_token(tokenizer):
    own = encoder(tokenizer)
    assert own.text([*own.ids('red a1'), own.stop, *own.ids('blue')]) == 'red a1'


def test_every_text_of_the_world_is_known_to_its_tokenizer():
    unknown = small.encoder().tokenizer.token_to_id('<unk>')
    for index in range(len(small.library())):
        example = small.library().example(index)
        texts = [example.caption]
        for question in example.questions:
            texts += [question.text, question.answer, question.trace.text, question.trace.scan,
                      question.extraction.text, question.extraction.information]
        for text in texts:
            assert unknown not in small.encoder().ids(text), text


def test_a_missing_tokenizer_is_one_line_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no tokenizer at .*none\.json') as caught:
        load_tokenizer(tmp_path / 'none.json')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('content', ['not json at all', '{}', '', '{"model": 3}'])
def test_a_garbage_tokenizer_is_one_line_that_names_the_file(tmp_path, content):
    path = tmp_path / 'tokenizer.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=r'tokenizer\.json is not a readable') as caught:
        load_tokenizer(path)
    assert '\n' not in str(caught.value)


def test_a_binary_tokenizer_is_one_line_that_names_the_file(tmp_path):
    path = tmp_path / 'tokenizer.json'
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match='is not a readable'):
        load_tokenizer(path)


def test_more_tokens_than_embedding_rows_is_refused_with_both_numbers(tmp_path):
    path, size = train_tokenizer(WORDS, tmp_path / 'tokenizer.json'), len(SPECIAL) + len(WORDS)
    load_tokenizer(path, size)
    with pytest.raises(ValueError, match=f'{size} tokens.*only {size - 1} rows') as caught:
        load_tokenizer(path, size - 1)
    assert '\n' not in str(caught.value)


def test_a_tokenizer_without_the_stop_token_is_refused(tokenizer):
    with pytest.raises(ValueError, match='no token'):
        Encoder(tokenizer, replace(MICRO_CHAT, stop='<halt>'), Layout(TOWER))


def test_words_may_come_from_an_iterator(tmp_path):
    path = train_tokenizer(iter(('red', 'blue', 'red')), tmp_path / 'tokenizer.json')
    known = load_tokenizer(path).get_vocab()
    assert {'red', 'blue'} <= known.keys()

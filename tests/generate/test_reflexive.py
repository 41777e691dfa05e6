"""Reflexive tokens: the published list where it applies, and the rule everywhere else."""
import json

import pytest
from roots import ROOT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from downscale.generate.reflexive import (
    KEYWORDS,
    listing,
    matching,
    published_list,
    reflexive_ids,
)


def tokenizer(texts):
    """A byte-level tokenizer of whole tokens, as `{id: text}` says."""
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {cut.pre_tokenize_str(text)[0][0]: i for i, text in texts.items()}
    made = Tokenizer(models.WordLevel(vocab, unk_token=''))
    made.decoder = decoders.ByteLevel()
    return made


def published():
    return {int(i): text for i, text in published_list()['tokens'].items()}


def test_the_published_list_is_complete_and_says_where_it_comes_from():
    found = published()
    assert len(found) == 189 and list(found) == sorted(found) and max(found) < 99_154
    assert sum(text.strip().casefold() in KEYWORDS for text in found.values()) == 86
    assert found[14190] == 'Wait' and found[13824] == ' Wait' and found[714] == ' but'
    assert 'e9635aa' in published_list()['origin'] and 'Qwen3' in published_list()['vocabulary']


def test_a_vocabulary_with_the_published_words_gets_the_published_list():
    qwen = tokenizer(published() | {5: ' ignored', 99_200: ' wait!'})
    assert reflexive_ids(qwen) == published()


@pytest.mark.parametrize('change', [{714: ' bit'}, {98_212: ' debut'}])
def test_one_word_at_another_place_and_the_rule_takes_over(change):
    other = tokenizer(published() | change | {99_200: ' wait!'})
    found = reflexive_ids(other)
    assert found == matching(other) and 99_200 in found and found != published()
    assert set(change).isdisjoint(found)


def test_a_vocabulary_without_the_published_ids_is_searched():
    assert list(reflexive_ids(tokenizer({0: 'wait', 1: 'weight'}))) == [0]


def test_the_rule_finds_each_keyword_with_spaces_case_and_punctuation():
    texts = [form for word in KEYWORDS
             for form in (word, ' ' + word, word.upper(), f' "{word.title()},', f'_{word}\n')]
    texts += ['doublecheck', ' Double-Check', '…but', '“Oh', '—but']
    found = matching(tokenizer(dict(enumerate(texts))))
    assert list(found.values()) == texts


def test_the_rule_leaves_longer_words_and_symbols_alone():
    innocent = ['attribute', ' otherwise', 'checked', ' waiting', 'début', 'nowhere', ' ', '...',
                '-', 'b', '0', 'ohm', 'double', 'but2', 'a but b',
                'b_ut', 'n-ow']
    assert list(matching(tokenizer(dict(enumerate([*innocent, 'but']))))) == [len(innocent)]


def test_special_tokens_are_never_banned():
    made = tokenizer({0: 'but', 1: 'x'})
    made.add_special_tokens(['wait', '<now>'])
    assert matching(made) == {0: 'but'}


def test_a_vocabulary_without_reflexive_words_is_an_error_not_an_empty_ban():
    with pytest.raises(ValueError, match='none of the 2 tokens .* is a reflexive word') as error:
        reflexive_ids(tokenizer({0: 'red', 1: 'square'}))
    assert '\n' not in str(error.value)


def test_a_user_can_see_what_is_banned():
    assert listing({714: ' but', 77: '\tnow'}).split('\n') == [
        "     714  ' but'", "      77  '\\tnow'"]


def test_the_data_file_is_packaged():
    setup = (ROOT / 'setup.cfg').read_text()
    assert 'downscale.generate = reflexive_qwen3.json' in setup
    path = ROOT / 'downscale/generate/reflexive_qwen3.json'
    assert json.loads(path.read_text(encoding='utf-8')) == published_list()

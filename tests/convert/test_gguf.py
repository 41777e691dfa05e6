"""GGUF files written here and read back: names, rows, tokenizer; each bad file is one line."""
import json
import math
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import small_bpe

from downscale.convert.gguf import read_gguf
from downscale.sizes import LanguageConfig

gguf = pytest.importorskip('gguf')
KIND = gguf.GGMLQuantizationType
SPARE = 6  # embedding rows behind the last token
SIZE = LanguageConfig(N=2, D=32, H=4, K=2, E=16, F=64, V=0, theta=1e5, eps=1e-5)
SIZES = {
    'llama': replace(SIZE, E=8),
    'qwen2': replace(SIZE, qkv_bias=True, tie=False),
    'qwen3': replace(SIZE, qk_norm=True),  # heads times head width is not the width
}
NAMES = {'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm', 'lm_head': 'output',
         'model.layers': 'blk', 'input_layernorm': 'attn_norm', 'self_attn.q_proj': 'attn_q',
         'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
         'self_attn.o_proj': 'attn_output', 'self_attn.q_norm': 'attn_q_norm',
         'self_attn.k_norm': 'attn_k_norm', 'post_attention_layernorm': 'ffn_norm',
         'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down'}


def vocabulary(tokenizer):
    """Tokens in order of their ids, and their types in GGUF."""
    known = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(known, key=known.get)
    kinds = dict.fromkeys(small_bpe.CONTROL, 3) | dict.fromkeys(small_bpe.USER_DEFINED, 4)
    return tokens, [kinds.get(token, 1) for token in tokens]


def merges(tokenizer):
    return [' '.join(pair) for pair in json.loads(tokenizer.to_str())['model']['merges']]


def weights(arch):
    """{Hugging Face name: float32 array} of a random decoder of this family."""
    c = size(arch)
    q, kv, rng = c.H * c.E, c.K * c.E, np.random.default_rng(0)
    layer = {'input_layernorm.weight': (c.D,), 'post_attention_layernorm.weight': (c.D,),
             'self_attn.q_proj.weight': (q, c.D), 'self_attn.k_proj.weight': (kv, c.D),
             'self_attn.v_proj.weight': (kv, c.D), 'self_attn.o_proj.weight': (c.D, q),
             'mlp.gate_proj.weight': (c.F, c.D), 'mlp.up_proj.weight': (c.F, c.D),
             'mlp.down_proj.weight': (c.D, c.F)}
    if c.qkv_bias:
        layer |= {'self_attn.q_proj.bias': (q,), 'self_attn.k_proj.bias': (kv,),
                  'self_attn.v_proj.bias': (kv,)}
    if c.qk_norm:
        layer |= {'self_attn.q_norm.weight': (c.E,), 'self_attn.k_norm.weight': (c.E,)}
    shapes = {'model.embed_tokens.weight': (c.V, c.D), 'model.norm.weight': (c.D,)}
    if not c.tie:
        shapes['lm_head.weight'] = (c.V, c.D)
    shapes |= {f'model.layers.{n}.{name}': shape for n in range(c.N)
               for name, shape in layer.items()}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def size(arch):
    return replace(SIZES[arch], V=len(vocabulary(small_bpe.tokenizer())[0]) + SPARE)


def stored(arch, name, array):
    """(GGUF name, the array as such a file keeps it)."""
    for theirs, ours in NAMES.items():
        name = re.sub(rf'{re.escape(theirs)}(?=\.)', ours, name)
    if arch == 'llama' and re.search(r'attn_[qk]\.', name):
        # Values i and i + E / 2 of a head turn together; such a file keeps them side by side.
        E, rows = size(arch).E, []
        for head in range(len(array) // E):
            for i in range(E // 2):
                rows += [head * E + i, head * E + i + E // 2]
        array = array[rows]
    return name, array


def write(path, arch='llama', kind='F32', cut=small_bpe.qwen_cut, drop=(), tensors=None, **extra):
    """A GGUF file of a random decoder; `extra` metadata comes last, `drop` is left out."""
    c, tokenizer = size(arch), small_bpe.tokenizer(cut)
    tokens, kinds = vocabulary(tokenizer)
    keys = {'block_count': c.N, 'embedding_length': c.D, 'feed_forward_length': c.F,
            'attention.head_count': c.H, 'attention.head_count_kv': c.K,
            'attention.layer_norm_rms_epsilon': c.eps, 'rope.freq_base': c.theta}
    if c.H * c.E != c.D:
        keys |= {'attention.key_length': c.E}
    meta = {f'{arch}.{key}': value for key, value in keys.items()} | {
        'tokenizer.ggml.model': 'gpt2',
        'tokenizer.ggml.pre': 'qwen2' if cut is small_bpe.qwen_cut else 'smollm',
        'tokenizer.ggml.tokens': tokens + [f'[PAD{k}]' for k in range(SPARE)],
        'tokenizer.ggml.token_type': kinds + [5] * SPARE,
        'tokenizer.ggml.merges': merges(tokenizer), 'tokenizer.chat_template': 'a template'}
    writer = gguf.GGUFWriter(path, extra.pop('architecture', arch))
    adders = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32,
              list: writer.add_array}
    for key, value in (meta | {key.replace('__', '.'): v for key, v in extra.items()}).items():
        if key not in drop:
            adders[type(value)](key, value)
    for name, array in (tensors or weights(arch)).items():
        name, array = stored(arch, name, array)
        if name not in drop:
            chosen = KIND['F32' if array.ndim == 1 else kind]
            writer.add_tensor(name, gguf.quants.quantize(array, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize('arch', SIZES)
def test_a_model_comes_back_under_hugging_face_names(arch, tmp_path):
    model, wanted = read_gguf(write(tmp_path / 'x.gguf', arch)), weights(arch)
    assert model.language == size(arch)
    assert model.architecture == {'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM',
                                  'qwen3': 'Qwen3ForCausalLM'}[arch]
    assert model.files['tokenizer_config.json']['chat_template'] == 'a template'
    assert model.tensors.keys() == wanted.keys()
    for name, array in wanted.items():
        assert model.tensors[name].shape == array.shape
        np.testing.assert_array_equal(model.tensors[name].read(), array, name)


@pytest.mark.parametrize('kind', ['F16', 'BF16', 'Q8_0', 'Q4_1'])
def test_a_quantised_weight_is_read_as_the_package_dequantises_it(kind, tmp_path):
    model = read_gguf(write(tmp_path / 'x.gguf', 'llama', kind))
    for name, array in weights('llama').items():
        values = model.tensors[name].read()
        assert values.dtype == model.tensors[name].dtype == np.float32
        chosen = KIND['F32' if array.ndim == 1 else kind]
        wanted = gguf.quants.dequantize(gguf.quants.quantize(array, chosen), chosen)
        np.testing.assert_array_equal(values, wanted, name)
        assert array.ndim == 1 or np.any(values != array)


@pytest.mark.parametrize('kind', ['F32', 'Q8_0'])
def test_some_rows_are_those_of_the_whole_weight(kind, tmp_path):
    for tensor in read_gguf(write(tmp_path / 'x.gguf', 'llama', kind)).tensors.values():
        whole = tensor.read()
        for start, stop in ((0, 1), (3, 11), (5, None)):
            np.testing.assert_array_equal(tensor.read(start, stop), whole[start:stop])


@pytest.mark.parametrize('cut', [small_bpe.qwen_cut, small_bpe.smollm_cut])
def test_the_tokenizer_gives_the_ids_of_the_one_it_was_written_from(cut, tmp_path):
    wanted = small_bpe.tokenizer(cut)
    found = read_gguf(write(tmp_path / 'x.gguf', cut=cut)).tokenizer
    for text in (*small_bpe.AWKWARD, *small_bpe.TEXT, 'ab 12 <think> 345<|im_end|>'):
        ids = wanted.encode(text, add_special_tokens=False).ids
        assert found.encode(text, add_special_tokens=False).ids == ids
        assert found.pre_tokenizer.pre_tokenize_str(text) == \
            wanted.pre_tokenizer.pre_tokenize_str(text)
        for skip in (False, True):
            assert found.decode(ids, skip_special_tokens=skip) == wanted.decode(
                ids, skip_special_tokens=skip)
    assert found.get_vocab(with_added_tokens=True) == wanted.get_vocab(with_added_tokens=True)


def test_the_two_ways_to_cut_text_differ(tmp_path):
    ids = {cut: read_gguf(write(tmp_path / cut.__name__, cut=cut)).tokenizer.encode('99 !\n\n').ids
           for cut in (small_bpe.qwen_cut, small_bpe.smollm_cut)}
    assert len(set(map(tuple, ids.values()))) == 2


def refused(path, error=ValueError):
    """The one line that `read_gguf` says about a file."""
    with pytest.raises(error) as caught:
        read_gguf(path)
    text = str(caught.value)
    assert '\n' not in text and (error is ImportError or str(path) in text)
    return text


@pytest.mark.parametrize('content', [b'', b'GG', b'PK\3\4' + bytes(99), b'not a model at all'])
def test_what_is_no_gguf_file_is_said(content, tmp_path):
    path = tmp_path / 'x.gguf'
    path.write_bytes(content)
    assert 'is not a GGUF file' in refused(path)
    assert 'no file' in refused(tmp_path / 'none.gguf', FileNotFoundError)


def test_a_truncated_file_is_said_wherever_it_ends(tmp_path):
    whole = write(tmp_path / 'x.gguf').read_bytes()
    path = tmp_path / 'cut.gguf'
    for k in range(60):
        path.write_bytes(whole[:5 + k * (len(whole) - 6) // 59])
        assert 'is truncated' in refused(path), k


def test_absurd_lengths_ask_for_no_memory(tmp_path):
    path = write(tmp_path / 'x.gguf')
    head = path.read_bytes()[:24]
    path.write_bytes(head + (2 ** 60).to_bytes(8, 'little') + bytes(100))
    assert 'is truncated or damaged' in refused(path)


def test_a_file_that_shrinks_after_it_was_opened_is_said(tmp_path):
    path = write(tmp_path / 'x.gguf')
    tensor = read_gguf(path).tensors['model.layers.1.mlp.down_proj.weight']
    path.write_bytes(path.read_bytes()[:tensor.offset + 4 * math.prod(tensor.shape) - 1])
    with pytest.raises(ValueError, match='ended while it was read'):
        tensor.read()


@pytest.mark.parametrize('extra,said', [
    ({'architecture': 'gemma3'}, "'gemma3' is not supported; supported are llama, qwen2, qwen3"),
    ({'llama__rope__scaling__type': 'linear'}, 'rope.scaling.type = linear'),
    ({'llama__rope__scaling__factor': 8.0}, 'rope.scaling.factor = 8.0'),
    ({'llama__rope__dimension_count': 4}, '4 of the 8 values of a head'),
    ({'llama__attention__head_count_kv': 3}, '4 query heads are not a multiple of 3'),
    ({'llama__feed_forward_length': 96}, 'mis-shaped: blk.0.ffn_down.weight (32, 64) instead'),
    ({'llama__block_count': 3}, 'missing: blk.2.attn_k.weight'),
    ({'llama__block_count': 1}, 'unexpected: blk.1.attn_k.weight'),
    ({'llama__block_count': [2]}, 'metadata llama.block_count is [2], not a positive number'),
    ({'llama__attention__head_count': 0}, 'head_count is 0, not a positive number'),
    ({'drop': ['llama.embedding_length']}, 'metadata llama.embedding_length is None'),
    ({'drop': ['token_embd.weight']}, 'there is no tensor token_embd.weight'),
    ({'drop': ['blk.1.ffn_up.weight']}, 'missing: blk.1.ffn_up.weight (1 of 20 tensors)'),
    ({'drop': ['tokenizer.ggml.merges']}, 'there is no metadata tokenizer.ggml.merges'),
    ({'tokenizer__ggml__merges': ['a zzz']}, 'the tokenizer is damaged'),
    ({'tokenizer__ggml__tokens': ['a'] * 3}, '3 tokens, 1 different ones'),
    ({'tokenizer__ggml__model': 'llama'}, "tokenizer 'llama' cut by 'qwen2'"),
    ({'tokenizer__ggml__pre': 'llama-bpe'},
     "cut by 'llama-bpe' is not supported; supported is gpt2 cut by qwen2 or smollm"),
    ({'split__count': 3}, 'this is one of 3 parts')])
def test_what_cannot_be_read_is_one_line_that_says_why(extra, said, tmp_path):
    text = refused(write(tmp_path / 'x.gguf', **extra))
    assert said in text


def test_more_tokens_than_embedding_rows_is_refused(tmp_path):
    given = weights('llama')
    given['model.embed_tokens.weight'] = given['model.embed_tokens.weight'][:99]
    assert 'for 99 embedding rows' in refused(write(tmp_path / 'x.gguf', tensors=given))


def test_scaling_of_kind_none_is_no_scaling(tmp_path):
    assert read_gguf(write(tmp_path / 'x.gguf', llama__rope__scaling__type='none')).language.N == 2


@pytest.mark.parametrize('place,value,said', [(4, 1, 'GGUF version 1'), (4, 3 << 24, 'version')])
def test_another_version_or_byte_order_is_said(place, value, said, tmp_path):
    path = write(tmp_path / 'x.gguf')
    data = bytearray(path.read_bytes())
    data[place:place + 4] = value.to_bytes(4, 'little')
    path.write_bytes(data)
    assert said in refused(path)


def test_a_type_that_cannot_be_dequantised_is_said(tmp_path):
    path = write(tmp_path / 'x.gguf')
    data = path.read_bytes()
    name = b'token_embd.weight'
    place = data.index(name) + len(name) + 4 + 16  # behind its rank and two dimensions
    for kind in (24, 250):  # int8, and a type that does not exist
        path.write_bytes(data[:place] + kind.to_bytes(4, 'little') + data[place + 4:])
        assert f'ggml type {kind}' in refused(path)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / 'x.gguf')
    monkeypatch.setitem(sys.modules, 'gguf', None)
    assert "pip install 'downscale[gguf]'" in refused(path, ImportError)

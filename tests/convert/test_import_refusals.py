"""Imports that must not pass: one line that says why, before any weight is read."""
import shutil

import numpy as np
import pytest
from hub_models import FOLDER, llava_qwen3, paths, rewrite

from downscale.convert.shards import open_tensors, write_tensors
from downscale.convert.source import open_source

REFUSED = {
    'architecture': ('qwen3', {'architectures': ['MambaForCausalLM']},
                     "unsupported architecture 'MambaForCausalLM'; supported are Qwen3ForCausalLM"),
    'no architecture': ('qwen3', {'architectures': None, 'model_type': 'mamba'}, 'unsupported'),
    'quantised': ('qwen3', {'quantization_config': {'bits': 4}}, 'are quantised'),
    'old scaling': ('llama', {'rope_parameters': None, 'rope_theta': 5e5, 'rope_scaling':
                              {'type': 'linear', 'factor': 2.0}}, "scaling of type 'linear'"),
    'new scaling': ('llama', {'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 5e5}},
                    "scaling of type 'llama3'"),
    'layered rope': ('llama', {'rope_parameters': {'full_attention': {'rope_type': 'default'}}},
                     'rotary scaling'),
    'partial rope': ('llama', {'rope_parameters': {'rope_type': 'default', 'rope_theta': 5e5,
                                                   'partial_rotary_factor': 0.5}}, 'a part of'),
    'activation': ('qwen2', {'hidden_act': 'gelu'}, "hidden_act 'gelu'"),
    'bias': ('llama', {'attention_bias': True}, 'attention_bias'),
    'qwen3 bias': ('qwen3', {'attention_bias': True}, 'attention_bias'),
    'mlp bias': ('llama', {'mlp_bias': True}, 'mlp_bias'),
    'layer types': ('qwen2', {'layer_types': ['full_attention', 'sliding_attention']}, 'sliding'),
    'window': ('qwen2', {'layer_types': None, 'use_sliding_window': True, 'sliding_window': 8,
                         'max_window_layers': 1}, 'sliding-window attention, which is not impl'),
    'head lost': ('qwen2', {'tie_word_embeddings': False},
                  r'missing lm_head.weight \(48, 32\).*"tie_word_embeddings"'),
    'vocabulary': ('qwen2', {'vocab_size': 50},
                   r'embed_tokens.weight: stored \(48, 32\), config \(50, 32\)'),
    'heads': ('qwen3', {'num_key_value_heads': 3}, 'not a multiple of 3 key/value heads'),
    'depth': ('qwen3', {'num_hidden_layers': 1}, 'tensors do not match.*unexpected model.layers.1'),
    'deeper': ('llama', {'num_hidden_layers': 3}, '9 tensors do not match.*missing model.layers.2'),
    'tower': ('siglip_vision', {'hidden_act': 'quick_gelu'}, "vision hidden_act 'quick_gelu'"),
    'colours': ('siglip_vision', {'num_channels': 1}, '1 colour channels'),
    'feature list': ('onevision_qwen3', {'vision_feature_layer': [-1, -2]}, 'vision_feature_layer'),
    'feature class': ('onevision_qwen3', {'vision_feature_select_strategy': 'default'},
                      'the selection of image features'),
    'feature deep': ('onevision_qwen3', {'vision_feature_layer': -4}, '3 unused of 2 vision'),
    'inner kind': ('onevision_qwen3', {'text_config': {'model_type': 'gemma'}}, "type 'gemma'"),
    'inner tower': ('onevision_qwen3', {'vision_config': {'model_type': 'clip_vision_model'}},
                    "vision model_type 'clip_vision_model'"),
    'connector act': ('onevision_qwen3', {'projector_hidden_act': 'relu'}, "activation 'relu'"),
    'connector bias': ('onevision_qwen3', {'multimodal_projector_bias': False}, 'without bias'),
    'aspect': ('onevision_qwen3', {'vision_aspect_ratio': 'anyres'}, "image_aspect_ratio 'anyres'"),
    'pinpoints': ('onevision_qwen3', {'image_grid_pinpoints': [[18, 20]]}, 'multiples of the'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_the_model_does_not_do_is_refused_in_one_line(case, tmp_path):
    name, config, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        open_source(rewrite(name, tmp_path / 'm', config=config))
    assert '\n' not in str(error.value) and 'config.json' in str(error.value) or case == 'heads'


@pytest.mark.parametrize('config, message', [
    ({'mm_projector_type': 'linear'}, "connector 'linear'"),
    ({'mm_patch_merge_type': 'spatial'}, "mm_patch_merge_type 'spatial'"),
    ({'mm_patch_merge_type': 'flat'}, "'anyres_max_4' pictures with flat merging"),
    ({'vision_config': 'absent', 'mm_vision_tower': 'openai/clip'}, "vision tower 'openai/clip'"),
    ({'image_grid_pinpoints': '384 x 384'}, 'no list of multiples')])
def test_what_the_reference_could_do_and_we_do_not_is_refused(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_source(llava_qwen3(tmp_path / 'llava', **config))


def test_missing_unexpected_and_misshapen_tensors_are_listed_together(tmp_path):
    folder = rewrite('llama', tmp_path / 'm', drop=['model.norm.weight', 'lm_head.weight'],
                     add={'lm_head.weight': np.zeros((48, 31), np.float32),
                          'model.extra': np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=': 3 tensors do not match') as error:
        open_source(folder)
    for part in (r'missing model.norm.weight (32,)', 'unexpected model.extra (3,)',
                 'lm_head.weight: stored (48, 31), config (48, 32)'):
        assert part in str(error.value)


def test_layers_of_different_dtypes_are_refused(tmp_path):
    name = 'model.layers.1.mlp.up_proj.weight'
    old = open_tensors(FOLDER / 'llama')[name].read()
    folder = rewrite('llama', tmp_path / 'm')
    tensors = {n: t.read() for n, t in open_tensors(folder).items()}
    tensors[name] = old.astype(np.float16)
    write_tensors(folder / 'model.safetensors', [(n, a.dtype, a.shape) for n, a in tensors.items()],
                  iter(tensors.values()))
    with pytest.raises(ValueError, match='language/blocks/mlp/up_DF: float16 and float32 in diff'):
        open_source(folder)


@pytest.mark.parametrize('damage, message', [
    (lambda data: data[:-5], 'it is truncated: download'),
    (lambda data: data + b'x', 'its header says'),
    (lambda data: data[:6], 'truncated or no safetensors file'),
    (lambda data: data[:100], 'truncated or no safetensors file'),
    (lambda data: data[:8] + b'{"a' + data[11:], 'damaged header'),
    (lambda data: data.replace(b'"F32"', b'"I32"', 1), 'has dtype I32, not one of BF16, F16, F32'),
    (lambda data: data.replace(b'[48,32]', b'[48,33]', 1), 'does not fill its')])
def test_a_damaged_file_is_noticed_before_it_is_read(damage, message, tmp_path):
    folder = rewrite('llama', tmp_path / 'm')
    path = folder / 'model.safetensors'
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        open_source(folder)
    assert str(path.parent) in str(error.value) and '\n' not in str(error.value)


def test_pickled_weights_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='is no folder; give the local folder'):
        open_source(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='no .*config.json; give the folder'):
        open_source(tmp_path)
    shutil.copy(FOLDER / 'llama' / 'config.json', tmp_path)
    with pytest.raises(FileNotFoundError, match='download the weights'):
        open_source(tmp_path)
    (tmp_path / 'pytorch_model.bin').write_bytes(b'never read')
    with pytest.raises(ValueError, match='only pickled weights .*safe_serialization=True'):
        open_source(tmp_path)
    (tmp_path / 'config.json').write_text('{"a": ')
    with pytest.raises(ValueError, match='config.json is damaged .*download it again'):
        open_source(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    folder = rewrite('llama', tmp_path / 'm')
    leaf = paths(open_source(folder).leaves)['language/head_DV']
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match='ended while it was read'):
        leaf.read()

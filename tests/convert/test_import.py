"""Imports: what transformers computed comes out of our model, and what would not is refused."""
import json
import shutil
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
import small
from hub_models import FOLDER, NAMES, TOKENS, build, compute, llava_qwen3, paths, rewrite, values

from downscale.convert.leaves import CHUNK_BYTES, turn
from downscale.convert.shards import INDEX, open_tensors, write_tensors
from downscale.convert.source import open_source
from downscale.data.images import patchify
from downscale.model.connector import Connector
from downscale.model.init import abstract_params
from downscale.model.vision import Tower
from downscale.model.vlm import Vlm
from downscale.sizes import SIGLIP, Pictures

TEXTS = ('qwen3', 'qwen2', 'llama')


def logits(source, tree, tokens):
    positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
    model = Vlm(source.language, source.vision)
    return small.quick(model.apply)({'params': {'language': tree['language']}}, tokens, positions,
                                    np.ones_like(tokens))


def computed(source, name):
    """{name: array} of our model, for the names of `expected.npz`."""
    tree, found = values(source), {}
    if source.language:
        tokens = TOKENS if name in TEXTS else TOKENS % 38
        found['logits'] = logits(source, tree, tokens)
    if source.vision:
        pictures = np.load(FOLDER / name / 'expected.npz')['pictures']
        patches = np.stack([patchify(p, source.vision.patch) for p in pictures])
        found['features'] = small.quick(Tower(source.vision).apply)(
            {'params': tree['tower']}, patches)
        if source.language:
            found['projected'] = Connector(source.language.D).apply(
                {'params': tree['connector']}, found['features'])
    return found


@pytest.mark.parametrize('name', NAMES)
def test_an_imported_model_computes_what_transformers_did(name):
    expected = np.load(FOLDER / name / 'expected.npz')
    found = computed(open_source(FOLDER / name), name)
    assert found.keys() == set(expected.files) - {'pictures'}
    for key, array in found.items():
        assert np.std(expected[key]) > 0.1
        np.testing.assert_allclose(array, expected[key], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize('name', NAMES)
def test_the_stored_numbers_are_what_transformers_computes_today(name):
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    expected = np.load(FOLDER / name / 'expected.npz')
    found = compute(name, build(name))
    assert found.keys() == set(expected.files)
    for key, array in found.items():
        np.testing.assert_allclose(array, expected[key], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize('name', NAMES)
def test_the_leaves_are_those_that_the_model_declares(name):
    source = open_source(FOLDER / name)
    found = {key: tuple(leaf.shape) for key, leaf in paths(source.leaves).items()}
    # The groups that are missing stand in from another model.
    other = open_source(FOLDER / 'onevision_qwen3')
    model = Vlm(source.language or other.language, source.vision or other.vision)
    declared = abstract_params(model, tuple(source.leaves))
    assert found == {key: leaf.shape for key, leaf in paths(declared).items()}


@pytest.mark.parametrize('name', ['qwen3', 'qwen2', 'onevision_qwen3'])
def test_any_part_of_a_leaf_is_that_part_of_the_whole(name):
    draw = np.random.default_rng(0)
    for key, leaf in paths(open_source(FOLDER / name).leaves).items():
        whole = leaf.read()
        assert whole.shape == leaf.shape and whole.dtype == leaf.dtype
        for _ in range(12):
            bounds = [np.sort(draw.integers(0, size + 1, 2)) for size in leaf.shape]
            index = tuple(slice(None) if draw.random() < 0.3 else slice(int(a), int(b))
                          for a, b in bounds)
            np.testing.assert_array_equal(leaf.read(index), whole[index], err_msg=f'{key} {index}')


class Counted:
    """A tensor that counts the values it gives."""

    def __init__(self, tensor):
        self.tensor, self.shape, self.dtype, self.count = tensor, tensor.shape, tensor.dtype, 0

    def read(self, start=0, stop=None):
        array = self.tensor.read(start, stop)
        self.count += array.size
        return array


def test_a_chunk_of_a_leaf_reads_no_more_than_its_values(monkeypatch):
    monkeypatch.setattr('downscale.convert.leaves.CHUNK_BYTES', 2000)
    cut = 0
    for name in ('qwen3', 'qwen2'):
        for key, leaf in paths(open_source(FOLDER / name).leaves).items():
            counted = tuple(Counted(tensor) for tensor in leaf.tensors)
            leaf = replace(leaf, tensors=counted)
            part = leaf.read(tuple(slice(0, size) for size in leaf.chunk))
            assert sum(tensor.count for tensor in counted) == part.size, key
            cut += leaf.chunk != leaf.shape
    assert cut > 10  # the embedding, the head and most stacked leaves


def test_chunks_are_small_and_nearly_equal():
    leaf = paths(open_source(FOLDER / 'qwen3').leaves)['language/head_DV']
    big = replace(leaf, name='head_DV', shape=(2048, 151936), dtype=np.dtype('f2'), tensors=())
    assert big.chunk[0] == 2048 and -151936 % big.chunk[1] < 20  # rows of padding
    assert CHUNK_BYTES / 2 < 2048 * big.chunk[1] * 2 <= CHUNK_BYTES
    assert leaf.chunk == leaf.shape


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('shape', [(1, 1), (16, 33), (35, 7)])
def test_turning_is_transposing(shape, dtype):
    source = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    target = np.zeros(shape[::-1], dtype)
    turn(source, target)
    np.testing.assert_array_equal(target, source.T)


# Names that were published at some time, from those that transformers saves today.
OLDER = {
    'qwen3': ('qwen3', lambda n: n),
    'siglip_vision': ('siglip_vision', lambda n: f'vision_model.{n}'),
    'llava_hf': ('onevision_qwen3',
                 lambda n: n.replace('vision_tower.', 'vision_tower.vision_model.')),
    'in_memory': ('onevision_qwen3', lambda n: 'lm_head.weight' if 'lm_head' in n else
                  'model.' + n.replace('language_model.model.', 'language_model.')),
}


@pytest.mark.parametrize('case', OLDER)
def test_names_of_other_times_are_known(case, tmp_path):
    name, rename = OLDER[case]
    old = rewrite(name, tmp_path / 'old', rename, add={
        'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(3, np.float32)}
        if case == 'qwen3' else ())
    one, other = paths(values(open_source(old))), paths(values(open_source(FOLDER / name)))
    assert one.keys() == other.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, other[key])


def test_the_references_layout_is_the_same_model(tmp_path):
    source = open_source(llava_qwen3(tmp_path / 'llava'))
    same = open_source(FOLDER / 'onevision_qwen3')
    assert (source.language, source.vision) == (same.language, same.vision)
    one, other = paths(values(source)), paths(values(same))
    assert one.keys() == other.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, other[key])
    assert source.pictures == Pictures('anyres', 4, ((1, 2), (2, 2), (3, 1)))
    assert same.pictures == Pictures('anyres', 9, ((1, 1), (2, 1), (1, 2), (2, 2)))


@pytest.mark.parametrize('config, mode', [
    ({'image_aspect_ratio': 'square', 'mm_patch_merge_type': 'flat'}, 'flat'),
    ({'image_aspect_ratio': 'pad'}, 'padded')])
def test_how_pictures_are_cut_is_read_from_the_config(config, mode, tmp_path):
    folder = llava_qwen3(tmp_path / 'llava', **config)
    if mode == 'flat':  # the connector stage has no newline
        with pytest.raises(ValueError, match='unexpected model.image_newline'):
            open_source(folder)
    else:
        assert open_source(folder).pictures.mode == mode


def test_without_a_vision_config_the_tower_is_the_published_one(tmp_path):
    folder = llava_qwen3(tmp_path / 'llava', vision_config='absent',
                         image_grid_pinpoints=[[384, 384]])
    with pytest.raises(ValueError, match=r'missing .*layers\.10\.layer_norm1\.bias \(1152,\)'):
        open_source(folder)
    assert SIGLIP['so400m-patch14-384'].layers == 26


def test_what_is_left_out_is_said():
    assert open_source(FOLDER / 'siglip_vision').notes == (
        'left out vision block 2, which the tower does not run',
        'left out, unused by design: head, post_layernorm')
    text = 'left out, unused by design: head, logit_bias, logit_scale, post_layernorm, text_model'
    assert open_source(FOLDER / 'siglip').notes[-1] == text
    assert open_source(FOLDER / 'qwen3').notes == ()


def test_a_tower_read_at_its_last_but_one_block_has_one_block_less(tmp_path):
    folder = rewrite('onevision_qwen3', tmp_path / 'm', config={'vision_feature_layer': -2})
    source = open_source(folder)
    assert source.vision.layers == 1
    assert source.leaves['tower']['blocks']['q_WHE'].shape[0] == 1
    assert source.notes[0].startswith('left out vision block 1')


def test_a_stored_head_that_equals_its_embedding_is_left_out(tmp_path):
    head = open_tensors(FOLDER / 'qwen2')['model.embed_tokens.weight'].read()
    source = open_source(rewrite('qwen2', tmp_path / 'same', add={'lm_head.weight': head}))
    assert source.language.tie and 'head_DV' not in source.leaves['language']
    assert 'equals the embedding' in source.notes[0]
    head[-1, -1] += 1
    with pytest.raises(ValueError, match='lm_head.weight differs from the embedding.*to false'):
        open_source(rewrite('qwen2', tmp_path / 'other', add={'lm_head.weight': head}))


def test_shards_are_read_through_their_index(tmp_path):
    whole, folder = open_tensors(FOLDER / 'qwen3'), tmp_path / 'parts'
    folder.mkdir()
    shutil.copy(FOLDER / 'qwen3' / 'config.json', folder)
    weight_map = {}
    for k in range(3):
        names = sorted(whole)[k::3]
        arrays = [whole[name].read() for name in names]
        write_tensors(folder / f'part-{k}.safetensors',
                      [(name, a.dtype, a.shape) for name, a in zip(names, arrays)], iter(arrays))
        weight_map |= {name: f'part-{k}.safetensors' for name in names}
    (folder / INDEX).write_text(json.dumps({'weight_map': weight_map}))
    one, other = values(open_source(folder)), values(open_source(FOLDER / 'qwen3'))
    jax.tree.map(np.testing.assert_array_equal, one, other)

    (folder / INDEX).write_text(json.dumps({'weight_map': {
        **weight_map, 'gone': 'part-0.safetensors'}}))
    with pytest.raises(ValueError, match='places gone in part-0.safetensors, which does not'):
        open_source(folder)
    (folder / 'part-1.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='names part-1.safetensors, which is not there'):
        open_source(folder)
    (folder / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match='2 safetensors files and no .*; download the ind'):
        open_source(folder)


@pytest.mark.parametrize('prefix', ['language_model.model.', 'model.language_model.', ''])
def test_a_decoder_is_found_under_every_prefix(tmp_path, prefix):
    whole = open_source(FOLDER / 'qwen3')
    other = open_source(rewrite('qwen3', tmp_path / 'm', rename=lambda name: name.replace(
        'model.', prefix, 1) if name.startswith('model.') else name))
    one, two = paths(values(whole)), paths(values(other))
    for key, array in one.items():
        np.testing.assert_array_equal(array, two[key])


def test_tied_values_stored_under_the_name_of_the_head_are_the_embedding(tmp_path):
    folder = rewrite('qwen2', tmp_path / 'm', rename=lambda name: 'lm_head.weight'
                     if name == 'model.embed_tokens.weight' else name)
    np.testing.assert_array_equal(values(open_source(folder))['language']['embedding_VD'],
                                  values(open_source(FOLDER / 'qwen2'))['language']['embedding_VD'])


def test_buffers_that_are_no_weights_are_left_out_with_a_note(tmp_path):
    folder = shutil.copytree(FOLDER / 'qwen3', tmp_path / 'm')
    path = folder / 'model.safetensors'
    data = path.read_bytes()
    length = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:8 + length])
    end = len(data) - 8 - length
    header['model.layers.0.self_attn.bias'] = {'dtype': 'BOOL', 'shape': [2, 2],
                                               'data_offsets': [end, end + 4]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + length:] + b'abcd')
    source = open_source(folder)
    assert 'left out buffers that are no weights: model.layers.0.self_attn.bias' in source.notes
    np.testing.assert_array_equal(values(source)['language']['embedding_VD'],
                                  values(open_source(FOLDER / 'qwen3'))['language']['embedding_VD'])


def test_a_stale_index_beside_a_whole_file_does_not_count(tmp_path):
    folder = shutil.copytree(FOLDER / 'qwen3', tmp_path / 'm')
    (folder / INDEX).write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}')
    assert any(INDEX in note for note in open_source(folder).notes)

"""Exports: what was imported is written again bit by bit, and transformers computes the same."""
import json
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
import small
from hub_models import FOLDER, NAMES, TOKENS, build, compute, llava_qwen3, paths, rewrite, values

from downscale.convert import write
from downscale.convert.shards import INDEX, open_tensors
from downscale.convert.side_files import SIDE_FILES
from downscale.convert.source import open_source
from downscale.convert.write import export_folder
from downscale.convert.write_config import check_format
from downscale.model.init import init_params
from downscale.model.vlm import Vlm
from downscale.sizes import LANGUAGE, SIGLIP, Pictures

FORMATS = {'qwen3': 'qwen3', 'qwen2': 'qwen2', 'llama': 'llama', 'onevision_qwen2':
           'llava_onevision', 'onevision_qwen3': 'llava_onevision', 'llava_qwen3': 'llava_qwen_3'}


def export(source, to, form, **changes):
    export_folder(to, form, **{**dict(
        leaves=source.leaves, language=source.language, vision=source.vision,
        pictures=source.pictures, base=source.config, files=source.files), **changes})
    return to


def assert_same(source, other):
    assert (source.language, source.vision, source.pictures) == (
        other.language, other.vision, other.pictures)
    one, two = paths(values(source)), paths(values(other))
    assert one.keys() == two.keys()
    for key, array in one.items():
        assert array.dtype == two[key].dtype
        np.testing.assert_array_equal(array.view(np.uint8), two[key].view(np.uint8), err_msg=key)


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('name', FORMATS)
def test_what_is_exported_is_imported_bit_by_bit(name, dtype, tmp_path):
    if name == 'llava_qwen3':
        folder = llava_qwen3(tmp_path / 'in', cast=dtype)
    else:
        folder = rewrite(name, tmp_path / 'in', cast=dtype)
    source = open_source(folder)
    out = export(source, tmp_path / 'out', FORMATS[name])
    assert_same(source, open_source(out))
    config = json.loads((out / 'config.json').read_text())
    assert config['dtype'] == np.dtype(dtype).name
    # Every key is kept; those that the other generation of transformers reads are added.
    text = config.get('text_config', config)
    for before, after in ((source.config, config),
                          (source.config.get('text_config', source.config), text)):
        assert not [key for key, value in before.items() if after[key] != value
                    and key not in ('dtype', 'vision_config', 'text_config')]
    assert text['rope_theta'] == text['rope_parameters']['rope_theta'] == source.language.theta
    assert config['torch_dtype'] == config['dtype']
    # The tensors too, under the names of today.
    before, after = open_tensors(folder), open_tensors(out)
    for name in before.keys() & after.keys():
        if 'post_layernorm' not in name:
            np.testing.assert_array_equal(before[name].read(), after[name].read())
    assert len(before) == len(after)


def test_a_model_of_our_own_is_exported_without_any_config(tmp_path):
    model = small.model(2)
    model = replace(model, language=replace(model.language, theta=500.0, eps=1e-5))
    tree = init_params(model, 3)
    for form, pictures in (('llava_qwen_3', Pictures('padded')), ('llava_qwen_3', Pictures('flat')),
                           ('llava_onevision', Pictures('anyres', 4, ((1, 2), (2, 1))))):
        out = tmp_path / f'{form}-{pictures.mode}'
        export_folder(out, form, jax.tree.map(Held, tree), model.language, model.vision, pictures)
        source = open_source(out)
        assert (source.language, source.vision) == (model.language, model.vision)
        assert source.pictures == (replace(Pictures(), mode=pictures.mode)
                                   if pictures.mode != 'anyres' else pictures)
        found = paths(values(source))
        assert ('image_newline_D' in found) == (pictures.mode != 'flat')
        for key, array in found.items():
            np.testing.assert_array_equal(array, paths(tree)[key])


class Held:
    """A leaf that is in memory."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def read(self):
        return self.array


def test_large_models_are_cut_into_shards_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(write, 'MOST_SHARD_BYTES', 20_000)
    source = open_source(FOLDER / 'qwen3')
    out = export(source, tmp_path / 'out', 'qwen3')
    shards = sorted(path.name for path in out.glob('*.safetensors'))
    assert shards[0] == f'model-00001-of-{len(shards):05d}.safetensors' and len(shards) > 3
    index = json.loads((out / INDEX).read_text())
    assert sorted(set(index['weight_map'].values())) == shards
    tensors = open_tensors(out)
    assert index['metadata']['total_size'] == sum(t.read().nbytes for t in tensors.values())
    for shard in shards:
        assert sum(t.read().nbytes for t in tensors.values() if t.path.name == shard) <= 20_000
    assert_same(source, open_source(out))


def test_side_files_travel_and_code_does_not(tmp_path):
    folder = rewrite('qwen3', tmp_path / 'in')
    for name in (*SIDE_FILES, 'modeling_qwen3.py', 'README.md'):
        (folder / name).write_text(name)
    out = export(open_source(folder), tmp_path / 'out', 'qwen3')
    assert {path.name for path in out.iterdir()} == {*SIDE_FILES, 'config.json',
                                                     'model.safetensors'}
    assert all((out / name).read_text() == name for name in SIDE_FILES)


def test_a_failed_export_leaves_nothing_and_a_folder_in_use_is_kept(tmp_path):
    source, out = open_source(FOLDER / 'qwen3'), tmp_path / 'out'
    with pytest.raises(FileNotFoundError):
        export(source, out, 'qwen3', files=[tmp_path / 'gone.json'])
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    export(source, out, 'qwen3')  # an empty folder is no obstacle
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(FileExistsError, match='out is there already; give another folder'):
        export(source, out, 'qwen3')
    assert sorted(path.name for path in out.iterdir()) == before


@pytest.mark.parametrize('name, form, changes, message', [
    ('qwen3', 'gguf', {}, "unknown export format 'gguf'; known are qwen3, qwen2, llama"),
    ('qwen3', 'siglip', {}, "unknown export format 'siglip'"),
    ('qwen2', 'qwen3', {}, 'the language model computes what qwen2 does'),
    ('onevision_qwen2', 'llava_qwen_3', {}, 'the language model computes what qwen2 does'),
    ('qwen3', 'llava_qwen_3', {}, 'needs a vision tower'),
    ('siglip_vision', 'qwen3', {}, 'needs a language model'),
    ('onevision_qwen3', 'llava_onevision', {'pictures': Pictures('padded')}, 'as llava_qwen_3'),
    ('qwen3', 'qwen3', {'leaves': {'language': {}}}, 'language/embedding_VD: missing, sizes say')])
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
        name, form, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        export(open_source(FOLDER / name), tmp_path / 'out', form, **changes)
    assert '\n' not in str(error.value) and list(tmp_path.iterdir()) == []


def test_no_published_format_has_every_mixture(tmp_path):
    source = open_source(FOLDER / 'qwen2')
    for language, message in ((replace(source.language, qk_norm=True), 'both qk_norm and qkv_bias'),
                              (replace(source.language, E=16), r'4 \* 16 is not 32')):
        with pytest.raises(ValueError, match=message):
            export(source, tmp_path / 'out', 'qwen2', language=language)


def test_dtypes_that_no_format_knows_are_refused(tmp_path):
    source = open_source(FOLDER / 'qwen3')
    leaves = jax.tree.map(lambda leaf: Held(leaf.read().astype(np.float64)), source.leaves)
    with pytest.raises(ValueError, match='embedding_VD: dtype float64 is not one of BF16'):
        export(source, tmp_path / 'out', 'qwen3', leaves=leaves)


@pytest.mark.parametrize('name', [name for name in NAMES if not name.startswith('siglip')])
def test_transformers_computes_the_same_from_an_exported_folder(name, tmp_path):
    pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    out = export(open_source(FOLDER / name), tmp_path / 'out', FORMATS[name])
    kind = type(build(name))
    for base in (None, open_source(FOLDER / name).config):  # written afresh, and from the import's
        out = export(open_source(FOLDER / name), tmp_path / f'out-{base is None}', FORMATS[name],
                     base=base, image_token=39)
        model, told = kind.from_pretrained(out, output_loading_info=True)
        assert not any(told[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
        expected = np.load(FOLDER / name / 'expected.npz')
        for key, array in compute(name, model.eval()).items():
            np.testing.assert_allclose(array, expected[key], atol=2e-5, rtol=2e-5)
    assert transformers.AutoConfig.from_pretrained(out).model_type == FORMATS[name]


def test_our_own_model_computes_the_same_in_transformers(tmp_path):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    model = Vlm(small.language(2), None)
    tree = init_params(Vlm(small.language(2), small.VISION), 3, ('language',))
    export_folder(tmp_path / 'out', 'qwen3', jax.tree.map(Held, tree), model.language)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out').eval()
    positions = np.tile(np.arange(TOKENS.shape[1]), (len(TOKENS), 1))
    ours = small.quick(model.apply)({'params': tree}, TOKENS, positions, np.ones_like(TOKENS))
    with torch.no_grad():
        np.testing.assert_allclose(ours, theirs(torch.tensor(TOKENS)).logits, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize('family, advice', [
    ('qwen3', 'export it as llava_qwen_3'), ('smollm2', 'no published form holds such a model')])
def test_advice_names_a_form_that_can_hold_the_run(family, advice):
    language = next(iter(LANGUAGE[family].values()))
    with pytest.raises(ValueError, match=advice):
        check_format('llava_onevision', language, SIGLIP['micro'], Pictures('flat'))

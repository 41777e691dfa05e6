"""Models in and out of run folders, opened again, and compared with what their originals gave."""
import json
import shutil

import hub_models
import jax
import numpy as np
import pytest
from roots import DATA, ROOT

import downscale
from downscale import config, sharding
from downscale.commands import main
from downscale.convert import exchange
from downscale.convert.parity import parity
from downscale.data.tokens import train_tokenizer
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.shrink.depth import kept_layers
from downscale.stages.start import start_params
from downscale.train.checkpoint import latest, stored_leaves

TINY = DATA / 'llava_qwen3_tiny'


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp('imported') / 'tiny'
    exchange.import_model(TINY, folder)
    return folder


def arrays(folder):
    """{leaf path: array} of a run folder."""
    _, params, _, _ = downscale.load(folder)
    return {jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def test_a_checkpoint_computes_what_its_original_did():
    found = parity(TINY)
    assert found['passed'] and found['greedy_equal'] and found['token_count_equal']
    assert set(found['relative_error']) == {
        'pixel_values', 'vision_features_head', 'projected_head', 'inputs_embeds_head',
        'inputs_embeds_tail', 'logits_last', 'text_logits'}


@pytest.mark.parametrize('name', ['vision_features_head', 'inputs_embeds_tail', 'logits_last',
                                  'text_logits', 'greedy_ids', 'inputs_embeds_shape',
                                  'pixel_values'])
def test_parity_notices_every_array_that_differs(tmp_path, name):
    folder = shutil.copytree(TINY, tmp_path / 'tiny')
    with np.load(TINY / 'expected.npz') as expected:
        changed = dict(expected)
    values = changed[name].copy()
    values.flat[1] += 1 if values.dtype.kind == 'i' else np.abs(values).max() / 10
    np.savez(folder / 'expected.npz', **{**changed, name: values})
    assert not parity(folder)['passed']


def test_parity_answers_on_the_console(capsys):
    assert main.main(['parity', str(TINY), '--json']) == 0
    assert json.loads(capsys.readouterr().out)['passed'] is True
    assert main.main(['parity', str(DATA)]) == 1
    assert 'expected.npz' in capsys.readouterr().err


def test_what_was_imported_opens_in_three_lines(imported):
    model, params, tokenizer, cell = downscale.load(imported)
    tokens = np.array([[5, 6, 7]])
    logits = model.apply({'params': params}, tokens, tokens * 0 + np.arange(3), tokens * 0 + 1)
    assert logits.shape == (1, 3, cell.language.V) and tokenizer is None
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))


def test_an_imported_model_lands_on_any_mesh(imported):
    mesh = sharding.mesh(data=2, fsdp=2)
    _, params, _, _ = downscale.load(imported, mesh, 'bfloat16')
    leaf = params['language']['embedding_VD']
    assert leaf.dtype == 'bfloat16' and len(leaf.sharding.device_set) == 4
    np.testing.assert_allclose(np.asarray(leaf, np.float32),
                               downscale.load(imported)[1]['language']['embedding_VD'], rtol=1e-2)


@pytest.mark.parametrize('form', ['llava_qwen_3', 'llava_onevision'])
def test_import_of_an_export_is_bit_identical(imported, tmp_path, form):
    exchange.export_model(imported, tmp_path / 'out', form)
    exchange.import_model(tmp_path / 'out', tmp_path / 'again')
    before, after = arrays(imported), arrays(tmp_path / 'again')
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert config.load(tmp_path / 'again').vision == config.load(imported).vision


def test_the_language_model_of_a_pair_can_be_exported_alone(imported, tmp_path):
    exchange.export_model(imported, tmp_path / 'out', 'qwen3')
    exchange.import_model(tmp_path / 'out', tmp_path / 'again')
    _, params, _, cell = downscale.load(tmp_path / 'again')
    assert set(params) == {'language'} and cell.vision is None


def test_side_files_go_along(tmp_path):
    source = shutil.copytree(TINY, tmp_path / 'source')
    (source / 'chat_template.jinja').write_text('{{ messages }}')
    (source / 'code.py').write_text('raise SystemExit')
    exchange.import_model(source, tmp_path / 'run')
    exchange.export_model(tmp_path / 'run', tmp_path / 'out', 'llava_qwen_3')
    for name in ('chat_template.jinja', 'generation_config.json'):
        assert (tmp_path / 'out' / name).read_text() == (source / name).read_text()
    assert not (tmp_path / 'run' / 'code.py').exists()
    before, after = (json.loads((folder / 'config.json').read_text())
                     for folder in (source, tmp_path / 'out'))
    assert before.pop('vision_config').items() <= after['vision_config'].items()
    assert {key: after.get(key) for key in before} == before


def test_a_failed_import_leaves_nothing_and_a_folder_in_use_is_kept(imported, tmp_path, capsys):
    source = shutil.copytree(TINY, tmp_path / 'source')
    weights = source / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main.main(['import', str(source), '--to', str(tmp_path / 'run'), '--quiet']) == 1
    assert capsys.readouterr().err.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['source']
    assert main.main(['import', str(TINY), '--to', str(imported), '--quiet']) == 1
    assert 'another folder' in capsys.readouterr().err and latest(imported).is_dir()


def test_a_tokenizer_of_more_tokens_than_the_embedding_is_refused(tmp_path, capsys):
    source = shutil.copytree(TINY, tmp_path / 'source')
    train_tokenizer([f'w{k}' for k in range(400)], source / 'tokenizer.json')
    assert main.main(['import', str(source), '--to', str(tmp_path / 'run'), '--quiet']) == 1
    assert 'embedding only 320 rows' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_pinpoints_may_be_written_as_a_range(imported, tmp_path):
    source = shutil.copytree(TINY, tmp_path / 'source')
    study_config = json.loads((source / 'config.json').read_text())
    study_config['image_grid_pinpoints'] = '(1x1),...,(6x6)'
    (source / 'config.json').write_text(json.dumps(study_config))
    assert exchange.open_model(source, 'x').experiment.pictures == \
        config.load(imported).pictures


def test_a_study_starts_from_what_was_imported(imported):
    """Groups without a stage of their own come from the imports, the others as ever."""
    smoke = ROOT / 'experiments' / 'smoke.py'
    study_config, sweep = file.load_study(smoke, ())
    study_config = study_config.copy_and_resolve_references()
    with study_config.unlocked():
        del study_config['platform'], study_config.stages['text'], study_config.stages['tower']
        del study_config['parametrisation']  # what is imported has learnt without
        study_config.imports = dict(language=str(imported), tower=str(imported))
    cell = cells_of(study_config, sweep)[0]
    assert cell.stage('align').parents == {} == cell.stage('reason').parents
    assert set(cell.stage('instruct').parents.values()) == {'align'}
    source = config.load(imported)
    cell = config.Experiment(**{**vars(cell), 'language': source.language,
                                'vision': source.vision})
    params = start_params('unused', cell, cell.stage('align'))
    stored = arrays(imported)
    np.testing.assert_array_equal(params['language']['embedding_VD'],
                                  stored["['language']['embedding_VD']"])
    np.testing.assert_array_equal(params['tower']['patch_QW'], stored["['tower']['patch_QW']"])
    assert (params['connector']['first_WD'] != stored["['connector']['first_WD']"]).any()
    assert stored_leaves(latest(imported))


# --- a part of the layers -------------------------------------------------------------------------

def test_a_count_keeps_evenly_spaced_layers_with_both_ends():
    assert kept_layers('30', 30) == list(range(30))
    assert kept_layers('2', 30) == [0, 29]
    assert kept_layers('8', 30) == [0, 4, 8, 12, 17, 21, 25, 29]
    assert kept_layers('0, 2,5', 6) == [0, 2, 5]
    for N in range(2, 40):
        for count in range(2, N + 1):
            layers = kept_layers(str(count), N)
            assert len(set(layers)) == count and (layers[0], layers[-1]) == (0, N - 1)
            gaps = np.diff(layers)
            assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize('text', ['1', '0', '3', '-1', 'a', '0,0', '1,0', '0,2', '0,', '9' * 5000])
def test_layers_that_are_not_there_are_refused_before_any_work(tmp_path, capsys, text):
    assert main.main(['import', str(TINY), '--to', str(tmp_path / 'run'), '--quiet',
                      f'--layers={text}']) == 1
    line = capsys.readouterr().err
    assert line.startswith('error: --layers') and line.count('\n') == 1 and len(line) <= 300
    assert not list(tmp_path.iterdir())


def test_kept_layers_are_the_named_ones_and_sizes_follow(tmp_path):
    stored = hub_models.open_tensors(hub_models.FOLDER / 'qwen3')
    deeper = {name.replace(f'layers.{n}.', f'layers.{n + 2}.'): tensor.read() * 3
              for n in (0, 1) for name, tensor in stored.items() if f'layers.{n}.' in name}
    source = hub_models.rewrite('qwen3', tmp_path / 'hf', add=deeper, config={
        'num_hidden_layers': 4, 'layer_types': ['full_attention'] * 4}.items())
    notes = exchange.import_model(source, tmp_path / 'run', layers='0,3')
    assert notes[-1] == 'kept 2 of 4 layers of the language model: 0, 3'
    exchange.export_model(tmp_path / 'run', tmp_path / 'out', 'qwen3')
    study_config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert study_config['num_hidden_layers'] == len(study_config['layer_types']) == 2
    before, after = (hub_models.open_tensors(folder) for folder in (source, tmp_path / 'out'))
    for name in after:
        np.testing.assert_array_equal(
            after[name].read(), before[name.replace('layers.1.', 'layers.3.')].read(), name)
    exchange.import_model(tmp_path / 'out', tmp_path / 'again')
    assert config.load(tmp_path / 'again').language.N == 2
    with pytest.raises(ValueError, match='a tower alone'):
        exchange.import_model(hub_models.FOLDER / 'siglip', tmp_path / 'tower', layers='2')

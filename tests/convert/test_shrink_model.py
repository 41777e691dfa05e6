"""`downscale shrink`: a folder as an import's, that everything else takes; and what it refuses."""
import json
import re
import shutil

import hub_models
import jax
import numpy as np
import pytest

import downscale
from downscale import config
from downscale.commands import main
from downscale.convert import exchange
from downscale.data.tokens import train_tokenizer
from downscale.runtime.files import read_json


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
    """A language model of four layers in a published form, with a tokenizer, imported."""
    root = tmp_path_factory.mktemp('models')
    stored = hub_models.open_tensors(hub_models.FOLDER / 'qwen3')
    deeper = {name.replace(f'layers.{n}.', f'layers.{n + 2}.'): tensor.read() * 3
              for n in (0, 1) for name, tensor in stored.items() if f'layers.{n}.' in name}
    source = hub_models.rewrite('qwen3', root / 'hf', add=deeper, config={
        'num_hidden_layers': 4, 'layer_types': ['full_attention'] * 4}.items())
    train_tokenizer({'a', 'cat', 'and', 'dog', 'the', 'moon', 'tonight'},
                    source / 'tokenizer.json')
    shutil.copy(hub_models.FOLDER / 'qwen3/generation_config.json', source)
    exchange.import_model(source, root / 'qwen3')
    return root / 'qwen3'


def run(*words):
    return main.main(['shrink', *map(str, words), '--quiet'])


def values(folder):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in
            jax.tree_util.tree_leaves_with_path(downscale.load(folder)[1])}


def test_layers_by_position_are_those_of_an_import(imported, tmp_path, capsys):
    language = config.load(imported).language
    assert run(imported, '--to', tmp_path / 'made', '--layers', 2, '--by', 'position') == 0
    exchange.import_model(imported.with_name('hf'), tmp_path / 'direct', layers='2')
    made, direct = values(tmp_path / 'made'), values(tmp_path / 'direct')
    assert made.keys() == direct.keys()
    for name, leaf in made.items():
        np.testing.assert_array_equal(leaf, direct[name], err_msg=name)
    said = capsys.readouterr().out
    assert f'layers: 0, {language.N - 1}' in said and 'bytes' in said
    note = read_json(tmp_path / 'made/shrink.json')
    assert note['source'] == str(imported) and note['by'] == 'position'
    assert config.load(tmp_path / 'made').hash == read_json(tmp_path / 'made/DONE.json')['hash']


def test_what_is_shrunk_is_exported_and_imported_again(imported, tmp_path):
    texts = tmp_path / 'texts.txt'
    texts.write_text('a cat and a dog\n\nthe moon tonight\n' * 9)
    language = config.load(imported).language
    hidden = language.F // 2
    assert run(imported, '--to', tmp_path / 'made', '--hidden', hidden, '--data', texts,
               '--bits', 8, '--group', 4) == 0
    exchange.export_model(tmp_path / 'made', tmp_path / 'out', 'qwen3')
    out = json.loads((tmp_path / 'out/config.json').read_text())
    assert out['intermediate_size'] == hidden
    # What our sizes do not have is that of the source, whose side files went along.
    assert out['max_position_embeddings'] == 64
    assert (tmp_path / 'out/generation_config.json').is_file()
    exchange.import_model(tmp_path / 'out', tmp_path / 'again')
    made, again = values(tmp_path / 'made'), values(tmp_path / 'again')
    for name, leaf in made.items():
        np.testing.assert_array_equal(leaf, again[name], err_msg=name)
    assert read_json(tmp_path / 'made/shrink.json')['tokens'] == 9 * 8


@pytest.mark.parametrize('words, message', [
    ((), 'nothing to do'),
    (('--layers', 99), 'keep 2 to'),
    (('--layers', '0,0'), 'give each layer once'),
    (('--hidden', 10 ** 6, '--data', 'texts'), 'cannot keep 1000000 hidden units'),
    (('--heads', 3), 'no whole groups'),
    (('--bits', 8, '--group', 7), 'a group of 7 inputs does not divide the width'),
    (('--layers', 2, '--data', 'missing'), 'missing'),
    (('--layers', 2, '--data', 'empty'), 'holds no text'),
    (('--layers', 2, '--data', 'binary'), 'no text in UTF-8'),
    (('--layers', 2), 'give --data FILE'),
    (('--layers', 2, '--by', 'position', '--data', 'texts'), 'leave it out'),
])
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(
        imported, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'texts').write_text('a text\n')
    (tmp_path / 'empty').write_text(' \n')
    (tmp_path / 'binary').write_bytes(b'\xff\xfe\x00')
    before = sorted(tmp_path.iterdir())
    assert run(imported, '--to', 'made', *words) == 1
    line = capsys.readouterr().err
    assert line.startswith('error: ') and message in line
    assert line.count('\n') == 1 and len(line) <= 300
    assert sorted(tmp_path.iterdir()) == before


def test_a_source_that_is_missing_damaged_or_no_language_model_is_named(imported, tmp_path, capsys):
    tower = tmp_path / 'tower'
    exchange.import_model(hub_models.FOLDER / 'siglip', tower)
    damaged = tmp_path / 'damaged'
    shutil.copytree(imported, damaged)
    largest = max((path for path in (damaged / 'checkpoints').rglob('*') if path.is_file()),
                  key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    there = tmp_path / 'there'
    there.mkdir()
    (there / 'a file').touch()
    for source, to, message in ((tmp_path / 'none', 'made', 'is .* a run folder'),
                                (tower, 'made', 'a tower alone'), (damaged, 'made', 'is damaged'),
                                (imported, 'there', 'is there already')):
        assert run(source, '--to', tmp_path / to, '--bits', 8, '--group', 8) == 1
        line = capsys.readouterr().err
        assert line.count('\n') == 1 and len(line) <= 300
        assert re.search(message, line), line
    assert not (tmp_path / 'made').exists()

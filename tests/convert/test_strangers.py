"""Damaged and unusual folders of published models: right, or one line of at most 300 characters.

What is changed in a file is drawn by hypothesis; `outcome` says what came of it.
"""
import json
import shutil
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
import small_bpe
from hub_models import FOLDER
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_gguf import write as write_gguf

from downscale.convert import exchange
from downscale.convert.shards import INDEX
from downscale.data.tokens import train_tokenizer

TEMPLATE = ("{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
            "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
            "{% endif %}")
SIDE = {
    'tokenizer_config.json': {'chat_template': TEMPLATE, 'bos_token': '<|endoftext|>',
                              'eos_token': {'content': '<|im_end|>'}, 'pad_token': None},
    'generation_config.json': {'eos_token_id': [1, 2], 'temperature': 0.6, 'pad_token_id': 0},
    'preprocessor_config.json': {
        'image_mean': [0.5] * 3, 'image_std': [0.5] * 3, 'rescale_factor': 1 / 255, 'resample': 3,
        'size': {'height': 18, 'width': 18}, 'do_resize': True, 'do_normalize': True,
        'image_grid_pinpoints': [[18, 18], [18, 36], [36, 18], [36, 36]]}}
FORMS = ('config.json', *SIDE, INDEX)
COMMON = settings(max_examples=300, deadline=None, derandomize=True,
                  suppress_health_check=list(HealthCheck))
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), st.text(max_size=8),
    st.just('x' * 5000), st.lists(st.integers(-2, 400), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.sampled_from(['gelu', 'yarn', 'Qwen9', '../x', {'rope_type': 'yarn', 'factor': 2.0},
                     {'type': 'linear'}, {'height': 1, 'width': 2}, 0.25, 1e400]))


@cache
def folder():
    """A small model that sees, with every file that decides how it is asked."""
    import tempfile
    place = Path(tempfile.mkdtemp()) / 'hub'
    shutil.copytree(FOLDER / 'onevision_qwen2', place)
    (place / 'expected.npz').unlink()
    config = json.loads((place / 'config.json').read_text())
    train_tokenizer(['a', 'b'], place / 'tokenizer.json')
    for name, value in SIDE.items():
        (place / name).write_text(json.dumps(value))
    shutil.copy(place / 'model.safetensors', place / 'a.safetensors')
    return place, config


def outcome(source):
    """'right', or the one line that refuses `source`."""
    try:
        opened = exchange.open_model(source, 'x')
    except (ValueError, FileNotFoundError) as error:
        line = str(error).replace(str(Path(source).parent), '')
        assert '\n' not in line and len(line) <= 300, line
        return line
    assert all('\n' not in note and len(note) <= 300 for note in opened.notes)
    return 'right'


def places(value, path=()):
    """The paths to every entry of nested dicts and lists."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) \
        if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


@st.composite
def changed(draw, value):
    """JSON text of `value` with an entry replaced, added or removed; or cut, or no JSON."""
    value = json.loads(json.dumps(value))
    kind = draw(st.sampled_from(['replace', 'replace', 'replace', 'add', 'remove', 'cut', 'bytes']))
    if kind == 'bytes':
        return draw(st.binary(max_size=40))
    *path, last = draw(st.sampled_from([place for place in places(value) if place]))
    node = value
    for key in path:
        node = node[key]
    if kind == 'replace':
        node[last] = draw(VALUES)
    elif kind == 'remove':
        del node[last]
    elif kind == 'add' and isinstance(node, dict):
        node[draw(st.text(max_size=6))] = draw(VALUES)
    data = json.dumps(value).encode()
    return data[:draw(st.integers(0, len(data)))] if kind == 'cut' else data


@pytest.mark.parametrize('name', FORMS)
@COMMON
@given(data=st.data())
def test_a_changed_json_file_is_read_or_refused_in_one_line(name, data):
    place, config = folder()
    whole = {'config.json': config, **SIDE, INDEX: {
        'metadata': {}, 'weight_map': {'image_newline': 'a.safetensors'}}}[name]
    text = data.draw(changed(whole))
    before = (place / name).read_bytes() if (place / name).is_file() else None
    (place / name).write_bytes(text)
    if name == INDEX:
        (place / 'model.safetensors').rename(place / 'away')
    try:
        outcome(place)
    finally:
        if name == INDEX:
            (place / 'away').rename(place / 'model.safetensors')
        if before is None:
            (place / name).unlink()
        else:
            (place / name).write_bytes(before)


@COMMON
@given(at=st.integers(0, 10_000), change=st.binary(min_size=1, max_size=4), cut=st.booleans())
def test_changed_bytes_of_a_safetensors_header_are_noticed(at, change, cut):
    place, _ = folder()
    path = place / 'model.safetensors'
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], 'little')
    at %= length
    path.write_bytes(whole[:at] + change + (b'' if cut else whole[at + len(change):]))
    try:
        outcome(place)
    finally:
        path.write_bytes(whole)


@cache
def gguf_file():
    import tempfile
    path = write_gguf(Path(tempfile.mkdtemp()) / 'x.gguf', tokenizer__chat_template=TEMPLATE)
    assert outcome(path) == 'right'
    reader = gguf.GGUFReader(path)
    return path, path.read_bytes(), min(int(tensor.data_offset) for tensor in reader.tensors)


@COMMON
@given(at=st.integers(0, 10 ** 6), change=st.binary(min_size=1, max_size=8), data=st.data())
def test_changed_bytes_of_a_gguf_header_are_noticed(at, change, data):
    path, whole, length = gguf_file()
    # Half of them where the numbers are: in the first bytes, and among the tensors.
    at = data.draw(st.sampled_from([at % length, at % 64, length - 1 - at % 600]))
    path.write_bytes(whole[:at] + change + whole[at + len(change):])
    outcome(path)


def test_the_fuzz_sees_tracebacks_and_long_lines(monkeypatch):
    place, _ = folder()
    assert outcome(place) == 'right'
    for error in (KeyError('x'), ValueError('x' * 301), ValueError('a\nb')):
        def raises(*_, error=error):
            raise error
        monkeypatch.setattr(exchange, 'open_model', raises)
        with pytest.raises((AssertionError, KeyError)):
            outcome(place)


def test_the_tokenizer_of_the_tests_is_read_as_well(tmp_path):
    place = shutil.copytree(FOLDER / 'qwen3', tmp_path / 'm')
    small_bpe.tokenizer().save(str(place / 'tokenizer.json'))
    assert 'the embedding only 48 rows' in outcome(place)
    assert np.load(FOLDER / 'qwen3' / 'expected.npz')

"""A study, two checkpoints and a chain of an earlier version open with equal numbers.

`tests/data/earlier_run.tar.xz` was written before the rooms of the package were laid out anew: the
study of `tiny.py` (its other checkpoints removed), a chain over two questions, and what that
version printed of them.
"""
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import downscale
from downscale.commands.main import main
from downscale.config import load
from downscale.generate.engine import Engine
from downscale.stages.folders import is_done, refuse_other

ARCHIVE = Path(__file__).parent / 'data' / 'earlier_run.tar.xz'
CHAIN = ['extract-think', '--data', 'q.jsonl', '--perception', 'run/cells/w32d2-s0/instruct',
         '--reasoner', 'run/cells/w32d2-s0/reason', '--out', 'chain', '--describe-tokens', '12',
         '--think-tokens', '12', '--quiet']


@pytest.fixture(scope='module')
def unpacked(tmp_path_factory):
    """The folder that the archive is unpacked in."""
    folder = tmp_path_factory.mktemp('earlier')
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter='data')
    return folder


@pytest.fixture
def earlier(unpacked, tmp_path, monkeypatch):
    """A copy of it as the working directory."""
    shutil.copytree(unpacked, tmp_path / 'earlier')
    monkeypatch.chdir(tmp_path / 'earlier')
    return tmp_path / 'earlier'


@pytest.mark.parametrize('stage', ['instruct', 'reason'])
def test_a_checkpoint_loads_with_its_tokenizer_and_computes_the_same(earlier, stage):
    model, params, tokenizer, cell = downscale.load(f'run/cells/w32d2-s0/{stage}')
    told = json.loads((earlier / 'loaded.json').read_text())[stage]
    tokens_BL = np.int32([[5, 9, 13, 21, 34, 55]])
    positions_BL = np.arange(6, dtype=np.int32)[None]
    logits_BLV = model.apply({'params': {'language': params['language']}}, tokens_BL, positions_BL,
                             np.ones((1, 6), np.int32))
    assert (cell.hash, tokenizer.get_vocab_size()) == (told['hash'], told['vocab'])
    np.testing.assert_allclose(logits_BLV[0, -1, :8], told['logits'], atol=1e-5)
    np.testing.assert_allclose(np.mean(logits_BLV), told['mean'], atol=1e-5)


def test_a_finished_study_is_still_finished(earlier):
    folder = earlier / 'run' / 'cells' / 'w32d3-s0' / 'extract'
    cell = load(folder)
    assert is_done(folder, cell)
    refuse_other(folder, cell)


def test_its_report_has_the_same_numbers(earlier):
    assert main(['report', 'run']) == 0
    now = json.loads((earlier / 'run' / 'report' / 'report.json').read_text())
    then = json.loads((earlier / 'report.json').read_text())
    # What the report tells since; everything that it printed before is there as it was.
    assert set(now) - set(then) == {'answer', 'constant', 'learnt'}
    # One p value of a drop, which names its test, took the place of `p_mcnemar`.
    assert now['drops'].pop('test') == 'McNemar'
    for row in now['drops']['families'].values():
        row['p_mcnemar'] = row.pop('p')
    # Of less than nothing there is no share: this largest size is clearly below every guess.
    rows = [now['drops']['macro'], *now['drops']['families'].values()]
    shares = [row.pop('relative_chance') for row in rows]
    assert all('nothing' in share['method'] and share['value'] is None for share in shares)
    for row in (then['drops']['macro'], *then['drops']['families'].values()):
        del row['relative_chance']
    # A warning names the groups behind the worst one.
    for rows in now['warnings'].values():
        for row in rows:
            assert len(row.pop('next')) == min(row['groups'], 3) - 1
    # An interval says its error and degrees, a claim its p, the gate of which texts it is.
    now['gate'].pop('kind')
    for row in now['claims']:
        del row['p'], row['p_holm']
    assert {name: without(now[name], 'error', 'degrees') for name in then} == then


def without(value, *names):
    """A JSON value whose intervals lack these fields."""
    if isinstance(value, list):
        return [without(part, *names) for part in value]
    if not isinstance(value, dict):
        return value
    left_out = names if 'method' in value else ()
    return {name: without(part, *names) for name, part in value.items() if name not in left_out}


def test_its_replies_are_scored_the_same(earlier, capsys):
    answers, = earlier.glob('chain/answer-*.jsonl')
    printed = (earlier / 'rescored.json').read_text()
    assert main(['rescore', str(answers), '--json']) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(printed)


def test_its_chain_goes_on_where_it_ended(earlier, monkeypatch):
    """The models have the fingerprints that they had, so that nothing is written anew."""
    files = {path.name: path.read_bytes() for path in (earlier / 'chain').iterdir()}
    monkeypatch.setattr(Engine, 'write', None)
    monkeypatch.setattr(Engine, 'stream', None)
    assert main(CHAIN) == 0
    assert {path.name: path.read_bytes() for path in (earlier / 'chain').iterdir()} == files

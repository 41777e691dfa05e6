"""Checkpoints as an analysis opens them: elsewhere, leaf by leaf, checked, and compared."""
import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small
from compiling import xla_flags
from roots import ROOT

from downscale import config
from downscale.config import Experiment
from downscale.model.init import init_params
from downscale.probe.checkpoints import diff, open_checkpoint
from downscale.sharding import Rules, mesh, shardings
from downscale.stage_config import Stage
from downscale.train import checkpoint

STAGE = Stage(
    name='instruct',
    steps=1,
    batch=8,
    length=112,
    tiles=3,
    rates=dict(language=1e-3),
    trainable=('language',),
    parents={},
)
GATE, NORM = 'language/blocks/mlp/gate_DF', 'language/final_norm/scale_D'
AGAIN = '''
import sys, jax
from downscale.probe.checkpoints import open_checkpoint
view = open_checkpoint(sys.argv[1])
print(len(jax.devices()), repr(float(abs(view.leaf('language/blocks/mlp/gate_DF')).sum())))
'''


def save(folder, params, depth=2):
    """The run folder of an instruct stage that left these parameters at step 7."""
    manager = checkpoint.open_manager(folder, every=1)
    manager.save(7, args=ocp.args.Composite(params=ocp.args.PyTreeSave(params),
                                            meta=ocp.args.JsonSave({})))
    manager.close()
    config.save(
        Experiment(
            name=f'w32d{depth}-s0',
            size='w32',
            seed=0,
            language=small.language(depth),
            vision=small.VISION,
            pictures=small.PADDED,
            stages=(STAGE,),
        ),
        folder,
    )
    return folder


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """(folder, parameters) of a checkpoint whose leaves lay on four devices."""
    params = init_params(small.model(2), 5)
    laid = jax.device_put(params, shardings(params, mesh(fsdp=4), Rules()))
    return save(tmp_path_factory.mktemp('a') / 'instruct', laid), params


def test_a_checkpoint_of_four_devices_opens_on_one(written):
    env = {**os.environ, 'XLA_FLAGS': xla_flags(), 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run([sys.executable, '-c', AGAIN, str(written[0])], cwd=ROOT, env=env,
                          capture_output=True, text=True, check=False)
    gate_NDF = written[1]['language']['blocks']['mlp']['gate_DF']
    assert done.stdout.split() == ['1', repr(float(abs(gate_NDF).sum()))], done.stderr


def test_a_view_knows_all_and_reads_what_is_asked_for(written, monkeypatch):
    view = open_checkpoint(written[0])
    assert (view.stage, view.step, view.config.name) == ('instruct', 7, 'w32d2-s0')
    assert view.leaves[GATE] == ((2, 32, small.language().F), 'float32')
    part = view.params(['connector'])
    assert set(part) == {'connector'} and all(type(x) is np.ndarray for x in jax.tree.leaves(part))
    read = []
    whole = checkpoint.read_leaves
    monkeypatch.setattr(checkpoint, 'read_leaves',
                        lambda step, tree: read.append(jax.tree.leaves(tree)) or whole(step, tree))
    np.testing.assert_array_equal(view.leaf(NORM), written[1]['language']['final_norm']['scale_D'])
    assert [len(leaves) for leaves in read] == [1]
    with pytest.raises(KeyError, match="did you mean 'language/final_norm/scale_D'"):
        view.leaf('language/final_norm/scale')
    with pytest.raises(ValueError, match="unknown group 'conector'; did you mean 'connector'"):
        view.params(['conector'])


def test_a_checkpoint_of_another_model_is_refused_with_the_first_ten_leaves(written, tmp_path):
    params = jax.tree.map(np.asarray, written[1])
    folder = save(tmp_path / 'instruct', params, depth=3)
    with pytest.raises(ValueError, match=r'11 leaves .*stored \(2, .*model \(3, .*and 1 more'):
        open_checkpoint(folder)


def test_a_foreign_group_and_another_dtype_are_refused(written, tmp_path):
    params = jax.tree.map(np.asarray, written[1])
    params['language']['final_norm']['scale_D'] = np.ones(32, np.float16)
    folder = save(tmp_path / 'instruct', {**params, 'adapter': {'low_DF': np.zeros((2, 2))}})
    with pytest.raises(ValueError, match='3 leaves') as error:
        open_checkpoint(folder)
    assert f'{NORM}: stored as float16, model float32' in str(error.value)
    assert 'unexpected adapter/low_DF' in str(error.value)
    cell = config.load(folder)
    config.save(dataclasses.replace(cell, stages=()), folder)  # an import may have any
    with pytest.raises(ValueError, match='1 leaves .*adapter'):
        open_checkpoint(folder)


def test_a_diff_gives_the_planted_change_and_its_rank(written, tmp_path):
    params = jax.tree.map(np.array, written[1])
    gate_NDF = params['language']['blocks']['mlp']['gate_DF']
    one = np.random.default_rng(0).standard_normal(gate_NDF.shape)
    one = one[:, :, :1] * one[:, :1]  # of rank one in each layer
    gate_NDF += (.1 * np.linalg.norm(gate_NDF) / np.linalg.norm(one) * one).astype(np.float32)
    params['connector'] = jax.tree.map(lambda x: 3 * x, params['connector'])
    after = open_checkpoint(save(tmp_path / 'instruct', params))
    rows, groups = diff(after, open_checkpoint(written[0]))
    rows = {row['leaf']: row for row in rows}
    assert rows[GATE]['change'] == pytest.approx(.1, rel=1e-5)
    assert rows[GATE]['change_rank'] == pytest.approx(1, rel=1e-4)
    exact = np.mean([np.sum(m ** 2) / np.linalg.norm(m, 2) ** 2 for m in gate_NDF])
    assert rows[GATE]['rank'] == pytest.approx(exact, rel=1e-4)
    assert rows[NORM] == {'leaf': NORM, 'group': 'language', 'change': 0.0, 'rank': None,
                          'change_rank': None}
    assert groups['connector'] == pytest.approx(2) and groups['tower'] == 0
    assert 0 < groups['language'] < .1


def test_a_diff_of_two_models_says_where_they_differ(written, tmp_path):
    other = save(tmp_path / 'instruct', init_params(small.model(1), 5), depth=1)
    with pytest.raises(ValueError, match=r'stored \(1, .*model \(2, '):
        diff(open_checkpoint(other), open_checkpoint(written[0]))

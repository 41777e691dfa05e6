"""Sharding is read off names, refuses what it does not know, and does not change what is learnt."""
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from downscale.model.init import abstract_params, init_params, init_tree
from downscale.model.tower_words import WordModel, abstract_word_params
from downscale.model.vlm import Vlm
from downscale.sharding import (
    Rules,
    batch_sharding,
    constrain,
    leaf_axes,
    mesh,
    param_spec,
    shardings,
    spec,
)
from downscale.sizes import MICRO, QWEN3, SIGLIP, VisionConfig, scale
from downscale.train.step import gradients

SMALL = replace(scale(MICRO['w64d2'], 32, 2, vocabulary=64), K=2, H=4)
TOWER = VisionConfig(layers=2, W=16, H=2, F=32, patch=2, image=4)
MODEL = Vlm(SMALL, TOWER)
MESHES = {'data=4': {'data': 4}, 'fsdp=4': {'data': 1, 'fsdp': 4},
          'data=2 x fsdp=2': {'data': 2, 'fsdp': 2},
          'fsdp=2 x 2': {'data': 1, 'fsdp': 4, 'ring': 2},
          'tensor=2 x data=2': {'data': 2, 'tensor': 2}}


def test_a_letter_without_a_rule_raises():
    with pytest.raises(KeyError, match='no sharding rule'):
        spec('BX', Rules().activations)
    with pytest.raises(KeyError, match="'F'"):
        spec('DF', (('D', 'fsdp'),))
    # A leaf whose name holds a letter that nobody defined.
    with pytest.raises(ValueError, match='unknown axis letters'):
        shardings({'up_DX': jnp.zeros((4, 4))}, mesh(), Rules())


def test_a_name_that_disagrees_with_its_rank_raises():
    with pytest.raises(ValueError, match='its name says'):
        shardings({'up_DF': jnp.zeros(4)}, mesh(), Rules())


def test_a_mesh_axis_is_used_once_and_by_the_first_letter():
    assert spec('DD', Rules().params) == PartitionSpec(('fsdp', 'fsdp_ring'), None)
    assert spec('BLF', Rules().activations) == PartitionSpec(
        ('data', 'fsdp', 'fsdp_ring'), None, 'tensor')


def test_what_does_not_divide_raises_with_the_arithmetic():
    with pytest.raises(ValueError, match=r'axis D of 6 does not divide over 4 .*6 % 4 = 2'):
        shardings({'up_DF': jnp.zeros((6, 8))}, mesh(1, 4), Rules())
    with pytest.raises(ValueError, match=r'axis K of 2 .*2 % 4 = 2'):
        shardings(abstract_params(MODEL, ('language',)), mesh(1, 1, 4), Rules())
    for sizes in ((3,), (-1, 3), (-1, -1), (2, 1, 1)):
        with pytest.raises(ValueError, match='must multiply to 4'):
            mesh(*sizes)


def test_a_width_that_all_of_fsdp_does_not_divide_is_split_over_one_ring():
    target = mesh(1, 4, ring=2)
    assert param_spec('WF', (6, 8), target, Rules()) == PartitionSpec('fsdp_ring', None)
    assert param_spec('WF', (8, 8), target, Rules()) == PartitionSpec(('fsdp', 'fsdp_ring'), None)
    assert param_spec('ND', (3, 8), target, Rules()) == PartitionSpec(None, None)
    with pytest.raises(ValueError, match=r'axis W of 7 does not divide over 4 .*7 % 4 = 3'):
        param_spec('WF', (7, 8), target, Rules())
    with pytest.raises(ValueError, match=r'fsdp 4 does not divide into rings of 3'):
        mesh(1, 4, ring=3)


@pytest.mark.parametrize(('language', 'vision'), [
    (MICRO['w64d3'], SIGLIP['micro']), (QWEN3['0.6b'], SIGLIP['so400m-patch14-384'])])
def test_every_leaf_of_the_model_gets_a_sharding(language, vision):
    tree = abstract_params(Vlm(language, vision))
    shards = shardings(tree, mesh(1, 2, 2), Rules())
    assert jax.tree.structure(shards) == jax.tree.structure(tree)
    for (path, leaf), shard in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(shards),
                                   strict=True):
        axes = leaf_axes(path, leaf)
        assert isinstance(shard, NamedSharding) and len(axes) == leaf.ndim == len(shard.spec)
        # Every matrix is really split; a vector stays whole.
        if len(axes.lstrip('N')) > 1 and {'D', 'W', 'F', 'H', 'K', 'V'} & set(axes):
            assert not shard.is_fully_replicated, jax.tree_util.keystr(path)


def test_constrain_splits_on_four_devices_and_leaves_one_alone():
    x_BLD, rules = jnp.zeros((8, 4, 6)), Rules()
    target = mesh(2, 2)
    with jax.set_mesh(target):
        y_BLD = jax.jit(lambda x: constrain(x, 'BLD', rules))(x_BLD)
    assert y_BLD.sharding.is_equivalent_to(
        NamedSharding(target, PartitionSpec(('data', 'fsdp', 'fsdp_ring'))), 3)
    assert y_BLD.addressable_shards[0].data.shape == (2, 4, 6)
    with jax.set_mesh(mesh(devices=jax.devices()[:1])):
        assert constrain(x_BLD, 'BLD', rules) is x_BLD
    assert constrain(x_BLD, 'BLD', rules) is x_BLD


@pytest.fixture(scope='module')
def batch():
    """Four rows: text, one image, two images, two packed segments and padding."""
    draw = np.random.default_rng(0)
    index_BL = np.full((4, 16), -1, np.int32)
    index_BL[1, 2:6], index_BL[1, 6] = np.arange(4), 8
    index_BL[2, 1:9] = np.arange(8)
    segments_BL = np.ones((4, 16), np.int32)
    segments_BL[3, 7:12], segments_BL[3, 12:] = 2, 0
    weights_BL = ((index_BL < 0) & (segments_BL > 0)).astype(np.float32)
    return {'tokens': draw.integers(0, 64, (4, 16), dtype=np.int32),
            'positions': np.tile(np.arange(16, dtype=np.int32), (4, 1)), 'segments': segments_BL,
            'weights': weights_BL, 'image_index': index_BL[:, :, None],
            'tiles': draw.uniform(-1, 1, (4, 2, TOWER.P, TOWER.Q)).astype(np.float32)}


def run(target, batch):
    """(gradients, loss, weight) of the whole model on the mesh `target`, everything sharded."""
    params = init_params(MODEL, 0)
    shards = shardings(params, target, MODEL.rules)
    params = jax.device_put(params, shards)
    batch = jax.device_put(batch, batch_sharding(target, MODEL.rules))

    def step(params, batch):
        grads, loss, _, weight = gradients(MODEL, 'tokens', params, {}, batch, 1)
        return jax.lax.with_sharding_constraint(grads, shards), loss, weight
    with jax.set_mesh(target):
        return jax.jit(step)(params, batch)


@pytest.fixture(scope='module')
def alone(batch):
    """What one device computes."""
    return jax.tree.map(np.asarray, run(mesh(devices=jax.devices()[:1]), batch))


@pytest.mark.slow
@pytest.mark.parametrize('sizes', MESHES.values(), ids=MESHES.keys())
def test_every_mesh_has_the_loss_and_gradients_of_one_device(sizes, batch, alone):
    grads, loss, weight = run(mesh(**sizes), batch)
    assert weight == alone[2] == batch['weights'][:, 1:].sum()
    np.testing.assert_allclose(loss, alone[1], rtol=1e-6)
    for (path, leaf), expected in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(alone[0]),
                                      strict=True):
        # Summation order differs, so the error is relative to the largest. Measured in float32:
        # 5e-6 between meshes, 2e-6 on one device with the rows reversed; in float64 8e-15.
        # The key bias of the tower shifts all scores of a query alike; its gradient is rounding.
        largest = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=1e-5 * largest,
                                   err_msg=jax.tree_util.keystr(path))
    split = [leaf for leaf in jax.tree.leaves(grads) if not leaf.sharding.is_fully_replicated]
    assert bool(split) == any(axis != 'data' for axis in sizes if sizes[axis] > 1)


STEPS = {'data=4': dict(data=4), 'fsdp=4': dict(data=1, fsdp=4),
         'data=2 x tensor=2': dict(data=2, tensor=2), 'fsdp=2 x 2': dict(data=1, fsdp=4, ring=2)}


def three_steps(target, batch):
    """The losses of three plain gradient steps on the mesh `target`; Adam would hide a scale."""
    shards = shardings(abstract_params(MODEL), target, MODEL.rules)
    params = jax.device_put(init_params(MODEL, 0), shards)
    batch = jax.device_put(batch, batch_sharding(target, MODEL.rules))

    @jax.jit
    def step(params, batch):
        grads, loss, *_ = gradients(MODEL, 'tokens', params, {}, batch, 1)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
        return jax.lax.with_sharding_constraint(params, shards), loss
    losses = []
    with jax.set_mesh(target):
        for _ in range(3):
            params, loss = step(params, batch)
            losses.append(float(loss))
    return losses


@pytest.fixture(scope='module')
def losses_alone(batch):
    return three_steps(mesh(devices=jax.devices()[:1]), batch)


@pytest.mark.slow
@pytest.mark.parametrize('sizes', STEPS.values(), ids=STEPS.keys())
def test_every_mesh_learns_the_same_in_three_steps(sizes, batch, losses_alone):
    assert losses_alone[0] - losses_alone[2] > 0.1
    np.testing.assert_allclose(three_steps(mesh(**sizes), batch), losses_alone, rtol=1e-5)


def word_gradients(target):
    """(gradients, loss, hits) of the tower stage for eight rows."""
    draw = np.random.default_rng(0)
    model = WordModel(TOWER, 16)
    batch = {'tiles': draw.uniform(-1, 1, (8, TOWER.P, TOWER.Q)).astype(np.float32),
             'tokens': draw.integers(0, 16, (8, 6), dtype=np.int32),
             'segments': np.ones((8, 6), np.int32)}
    params = init_tree(abstract_word_params(model), 0)
    with jax.set_mesh(target):
        return jax.jit(lambda params, batch: gradients(model, 'words', params, {}, batch, 1)[:3])(
            jax.device_put(params, shardings(params, target, model.rules)), batch)


@pytest.mark.parametrize('sizes', [(2, 2, 1), (1, 2, 2)])
def test_a_tower_learns_the_same_words_on_every_mesh(sizes):
    grads, *numbers = word_gradients(mesh(devices=jax.devices()[:1]))
    others, *other_numbers = word_gradients(mesh(*sizes, devices=jax.devices()))
    np.testing.assert_allclose(other_numbers, numbers, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5 * largest, rtol=0)

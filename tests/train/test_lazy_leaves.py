"""Leaves that are read as they are stored or placed: never whole, never half a step."""
import json
import threading
import time
import weakref
from itertools import product

import jax
import ml_dtypes
import numpy as np
import pytest
import small

from downscale.model.init import abstract_params, init_params
from downscale.sharding import Rules, mesh, shardings
from downscale.train import checkpoint, lazy_leaves


class Fake:
    """A lazy leaf over an array; knows which parts were asked for and how many are alive."""

    alive, most, lock = 0, 0, threading.Lock()

    def __init__(self, array, rows=1):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.chunk, self.parts = (rows, *array.shape[1:]), []

    def read(self, index=()):
        part = np.array(self.array[index])
        self.parts.append(index)
        with Fake.lock:
            Fake.alive += 1
            Fake.most = max(Fake.most, Fake.alive)
        weakref.finalize(part, self.freed)
        return part

    def freed(self):
        with Fake.lock:
            Fake.alive -= 1


@pytest.fixture
def tree():
    """Leaves of three dtypes; their chunks cut every one of them in parts, some unevenly."""
    draw = np.random.default_rng(0).standard_normal
    Fake.alive = Fake.most = 0
    return {'language': {'embedding_VD': Fake(draw((37, 8)).astype(ml_dtypes.bfloat16), 5),
                         'blocks': {'scale_D': Fake(draw((3, 8)).astype(np.float16))}},
            'image_newline_D': Fake(draw(8).astype(np.float32), 8)}


def arrays(tree):
    return jax.tree.map(lambda leaf: leaf.array, tree)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.map(lambda x: x.dtype, one) == jax.tree.map(lambda x: x.dtype, other)


def targets(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def test_saved_leaves_come_back_in_their_own_dtypes(tree, tmp_path):
    lazy_leaves.save_leaves(tmp_path, tree, {'source': 'here'}, step=3)
    found = checkpoint.load_params(tmp_path, targets(tree))
    assert_same(found, arrays(tree))
    assert_same(jax.tree.map(lambda leaf: leaf.read(), lazy_leaves.open_leaves(tmp_path)), found)
    wide = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), targets(tree))
    assert_same(checkpoint.load_params(tmp_path, wide),
                jax.tree.map(lambda array: array.astype(np.float32), arrays(tree)))
    step = checkpoint.latest(tmp_path)
    assert step.name == '3'
    assert json.loads((step / 'meta' / 'metadata').read_text()) == {'source': 'here'}
    assert checkpoint.stored_leaves(step)['language/embedding_VD'] == ((37, 8), 'bfloat16')


def test_every_part_is_read_once_and_few_are_alive_at_once(tree, tmp_path):
    tree['language']['embedding_VD'] = leaf = Fake(np.ones((500, 4), np.float32), 2)
    lazy_leaves.save_leaves(tmp_path, tree, {})
    assert sorted(part[0].start for part in leaf.parts) == list(range(0, 500, 2))
    assert 1 < Fake.most <= lazy_leaves.READERS
    assert Fake.alive == 0


def test_a_save_that_fails_leaves_no_step_and_can_be_repeated(tree, tmp_path):
    good, tree['language']['blocks']['scale_D'] = tree['language']['blocks']['scale_D'], None
    bad = Fake(good.array)
    bad.read = lambda index: (_ for _ in ()).throw(OSError('the disk is gone'))
    tree['language']['blocks']['scale_D'] = bad
    with pytest.raises(OSError, match='the disk is gone'):
        lazy_leaves.save_leaves(tmp_path, tree, {})
    with pytest.raises(FileNotFoundError, match='no complete checkpoint'):
        checkpoint.latest(tmp_path)
    tree['language']['blocks']['scale_D'] = good
    lazy_leaves.save_leaves(tmp_path, tree, {})
    assert_same(checkpoint.load_params(tmp_path, targets(tree)), arrays(tree))
    with pytest.raises(FileExistsError, match='0 is there already; give another folder'):
        lazy_leaves.save_leaves(tmp_path, tree, {})


def test_a_slow_reader_is_overlapped_with_others(tmp_path):
    leaf, asleep = Fake(np.ones((8, 4), np.float32)), []
    read = leaf.read

    def slow(index):
        begin = time.monotonic()
        time.sleep(0.05)
        asleep.append((begin, time.monotonic()))
        return read(index)
    leaf.read = slow
    lazy_leaves.save_leaves(tmp_path, {'x_BD': leaf}, {})
    pairs = [(a, b) for a, b in product(asleep, asleep) if a is not b]
    assert any(a[0] < b[0] < a[1] for a, b in pairs)


def whole_model():
    params = init_params(small.model(2), 1)
    return jax.tree.map(Fake, params), params


def test_an_imported_step_is_loaded_onto_a_mesh(tmp_path):
    leaves, params = whole_model()
    lazy_leaves.save_leaves(tmp_path, leaves, {})
    target = abstract_params(small.model(2))
    where = shardings(target, mesh(fsdp=2, data=2), Rules())
    found = checkpoint.load_params(tmp_path, jax.tree.map(
        lambda leaf, shard: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shard),
        target, where))
    assert_same(found, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == where


def test_leaves_are_placed_where_they_belong_and_only_in_part_read():
    leaves, params = whole_model()
    where = shardings(params, mesh(fsdp=4), Rules())
    found = lazy_leaves.place(leaves, where)
    assert_same(found, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == where
    kernel = leaves['language']['blocks']['mlp']['gate_DF']
    sizes = [np.zeros(kernel.shape)[part].size for part in kernel.parts]
    assert sizes == [np.prod(kernel.shape) // 4] * 4

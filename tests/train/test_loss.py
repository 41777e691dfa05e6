"""The loss in chunks is the loss of whole logits, with its gradient, on every mesh."""
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from downscale.sharding import BATCH_AXES, Rules, mesh, param_spec
from downscale.train import loss as loss_module
from downscale.train.loss import next_token

B, L, D, V = 4, 24, 16, 64
RULES = Rules()
MESHES = {'fsdp=4': dict(data=1, fsdp=4), 'fsdp=2 x 2': dict(data=1, fsdp=4, ring=2),
          'data=2 x fsdp=2': dict(data=2, fsdp=2), 'data=4': dict(data=4)}


@pytest.fixture(scope='module')
def given():
    draw = np.random.default_rng(0)
    return {'x': draw.standard_normal((B, L, D), np.float32),
            'head': draw.standard_normal((V, D), np.float32),
            'tokens': draw.integers(0, V, (B, L), dtype=np.int32),
            'weights': draw.random((B, L)).astype(np.float32)}


def whole(given):
    """(loss, hits), and the gradients of the loss, from the logits of the whole batch."""
    weights_BL = given['weights'][:, 1:]

    def total(x_BLD, head_VD):
        logits_BLV = (x_BLD @ head_VD.T)[:, :-1]
        nats_BL = optax.softmax_cross_entropy_with_integer_labels(
            logits_BLV, given['tokens'][:, 1:])
        hits_BL = logits_BLV.argmax(-1) == given['tokens'][:, 1:]
        return (nats_BL * weights_BL).sum(), (hits_BL * weights_BL).sum()
    return jax.value_and_grad(total, (0, 1), has_aux=True)(given['x'], given['head'])


def in_chunks(given, target):
    """The same by `next_token`, each device with its rows and its share of the head."""
    head = param_spec('VD', (V, D), target, RULES)
    rows = PartitionSpec(BATCH_AXES)

    def per_device(x_BLD, share_VD, batch):
        def total(x_BLD, share_VD):
            return next_token(x_BLD, share_VD, batch, shape=(V, D), rules=RULES)
        numbers, grads = jax.value_and_grad(total, (0, 1), has_aux=True)(x_BLD, share_VD)
        rest = tuple(name for name in BATCH_AXES if name not in jax.tree.leaves(tuple(head)))
        return jax.lax.psum(numbers, BATCH_AXES), (grads[0], jax.lax.psum(grads[1], rest))

    batch = {name: given[name] for name in ('tokens', 'weights')}
    with jax.set_mesh(target):
        return jax.jit(jax.shard_map(
            per_device, in_specs=(rows, head, rows), out_specs=(PartitionSpec(), (rows, head)),
            axis_names=set(BATCH_AXES), check_vma=False))(given['x'], given['head'], batch)


def same(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(('copies', 'tokens'), [(20, 1920), (20, 700), (21, 700), (21, 1)])
def test_chunks_give_the_loss_hits_and_gradients_of_whole_logits(
        given, copies, tokens, monkeypatch):
    """1,920 tokens as one chunk and as three; 2,016, of which no round chunk is a share."""
    monkeypatch.setattr(loss_module, 'LOGIT_BYTES', tokens * 4 * V)
    batch = {name: jnp.tile(given[name], (copies, 1)) for name in ('tokens', 'weights')}
    x_BLD = jnp.tile(given['x'], (copies, 1, 1))

    def total(x_BLD, head_VD):
        return next_token(x_BLD, head_VD, batch, shape=(V, D), rules=RULES)
    program = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True)).lower(
        x_BLD, given['head']).compile()
    (value, hits), (grad_BLD, grad_VD) = program(x_BLD, given['head'])
    widest = max(int(rows) for rows in re.findall(rf'f32\[(\d+),{V}\]', program.as_text()))
    assert widest <= max(tokens, 128)
    (expected, expected_hits), (expected_BLD, expected_VD) = whole(given)
    np.testing.assert_allclose(value, copies * expected, rtol=2e-5)
    np.testing.assert_allclose(hits, copies * expected_hits, rtol=2e-5)
    np.testing.assert_allclose(grad_BLD[:B], expected_BLD, atol=2e-5)
    np.testing.assert_allclose(grad_VD, copies * expected_VD, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize('sizes', MESHES.values(), ids=MESHES.keys())
def test_every_mesh_gives_the_loss_and_gradients_of_whole_logits(given, sizes):
    same(in_chunks(given, mesh(**sizes)), whole(given))


def test_a_vocabulary_that_does_not_divide_is_gathered(given):
    """63 rows do not split over two: the head is gathered, the numbers stay."""
    odd = {**given, 'head': given['head'][:63], 'tokens': given['tokens'] % 63}
    target = mesh(1, 4, ring=2)
    head = param_spec('VD', (63, D), target, RULES)
    batch = {name: odd[name] for name in ('tokens', 'weights')}
    rows = PartitionSpec(BATCH_AXES)

    def per_device(x_BLD, share_VD, batch):
        total = partial(next_token, batch=batch, shape=(63, D), rules=RULES)
        numbers, grads = jax.value_and_grad(total, (0, 1), has_aux=True)(x_BLD, share_VD)
        return jax.lax.psum(numbers, BATCH_AXES), grads
    with jax.set_mesh(target):
        found = jax.jit(jax.shard_map(
            per_device, in_specs=(rows, head, rows), out_specs=(PartitionSpec(), (rows, head)),
            axis_names=set(BATCH_AXES), check_vma=False))(odd['x'], odd['head'], batch)
    same(found, whole(odd))

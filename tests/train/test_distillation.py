"""A loss with a teacher is that of whole logits, on every mesh, and leaves all else as it was."""
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.sharding import PartitionSpec

from downscale.config import Optimizer
from downscale.model.init import init_params
from downscale.model.vlm import Vlm
from downscale.sharding import BATCH_AXES, Rules, batch_sharding, mesh, param_spec, shardings
from downscale.sizes import LANGUAGE, Parametrisation, scale
from downscale.train import loss as loss_module
from downscale.train.loss import Distillation, next_token
from downscale.train.run import TeacherModel
from downscale.train.state import new_state
from downscale.train.step import compiled_step, gradients

RULES = Rules()
FORWARD, REVERSE = Distillation(1.0), Distillation(1.0, reverse=True)


# --- by hand ----------------------------------------------------------------------------------

def two_words(distil):
    """((loss, hits, KL, cross-entropy), gradients of x and head) of one token of two words."""
    batch = {'tokens': np.array([[0, 1]], np.int32), 'weights': np.array([[0, .5]], np.float32)}
    x_BLD = jnp.array([[[.3, -.7], [0, 0]]])
    head_VD = jnp.array([[1., 2.], [-1., .5]])
    taught = jnp.array([[[.2, .1, .9], [0, 0, 0]]]), jnp.array([[1., 0, 2.], [.5, -1., 0]])

    def total(x_BLD, head_VD):
        loss, *sums = next_token(x_BLD, head_VD, batch, shape=(2, 2), rules=RULES, distil=distil,
                                 taught=taught)
        return loss, sums
    (loss, sums), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(x_BLD, head_VD)
    return (loss, *sums), grads


def by_hand(share, reverse):
    """The same with nothing but exp and log: of two words a sigmoid is the whole distribution."""
    q = 1 / (1 + math.exp((-.3 - .35) - (.3 - 1.4)))     # of word 0: logits -1.1 and -.65
    p = 1 / (1 + math.exp((.1 - .1) - (.2 + 1.8)))       # of word 0: logits 2 and 0
    ends = [(q, p), (1 - q, 1 - p)] if reverse else [(p, q), (1 - p, 1 - q)]
    kl = sum(one * math.log(one / other) for one, other in ends)
    cross_entropy = -math.log(1 - q)                     # word 1 is the right one
    if reverse:
        slope = q * (math.log(q / p) - kl)
    else:
        slope = q - p
    # By the logit of word 0; that of word 1 is the negative, for both sum to none.
    slope = .5 * (share * slope + (1 - share) * q)
    x, head = (.3, -.7), ((1., 2.), (-1., .5))
    numbers = [.5 * (share * kl + (1 - share) * cross_entropy), .5, .5 * kl, .5 * cross_entropy]
    grad_x = [slope * (one - other) for one, other in zip(*head)]
    return numbers, grad_x, [[slope * value for value in x], [-slope * value for value in x]]


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('share', [1.0, .25, 0.0])
def test_two_words_have_the_loss_and_gradients_that_one_writes_by_hand(share, reverse):
    sums, (grad_BLD, grad_VD) = two_words(Distillation(share, reverse))
    numbers, grad_x, grad_head = by_hand(share, reverse)
    np.testing.assert_allclose(sums, numbers, rtol=1e-5)
    np.testing.assert_allclose(grad_BLD[0], [grad_x, [0, 0]], atol=1e-6)
    np.testing.assert_allclose(grad_VD, grad_head, atol=1e-6)
    if share:
        assert two_words(FORWARD)[0][2] != two_words(REVERSE)[0][2]


# --- whole logits, chunks and meshes ----------------------------------------------------------

B, L, D, V = 4, 24, 16, 64
MESHES = {'fsdp=4': dict(data=1, fsdp=4), 'fsdp=2 x 2': dict(data=1, fsdp=4, ring=2),
          'data=2 x fsdp=2': dict(data=2, fsdp=2), 'data=4': dict(data=4)}


@cache
def given(C=8, rows=V):
    """A batch, and the states and heads of a student of width D and a teacher of width C."""
    draw = np.random.default_rng(0)
    return {'x': draw.standard_normal((B, L, D), np.float32),
            'head': draw.standard_normal((rows, D), np.float32),
            'taught': draw.standard_normal((B, L, C), np.float32),
            'taught_head': draw.standard_normal((rows, C), np.float32),
            'tokens': draw.integers(0, rows, (B, L), dtype=np.int32),
            'weights': draw.random((B, L)).astype(np.float32)}


def whole(given, distil):
    """(sums, gradients) from the logits of the whole batch, differentiated by JAX."""
    weights_BL = given['weights'][:, 1:]

    def total(x_BLD, head_VD):
        student = jax.nn.log_softmax((x_BLD @ head_VD.T)[:, :-1])
        teacher = jax.nn.log_softmax((given['taught'] @ given['taught_head'].T)[:, :-1])
        if distil.reverse:
            student, teacher = teacher, student
        kl = ((jnp.exp(teacher) * (teacher - student)).sum(-1) * weights_BL).sum()
        if distil.reverse:
            student, teacher = teacher, student
        targets = given['tokens'][:, 1:]
        nats = -jnp.take_along_axis(student, targets[..., None], -1)[..., 0]
        cross_entropy = (nats * weights_BL).sum()
        hits = ((student.argmax(-1) == targets) * weights_BL).sum()
        return distil.share * kl + (1 - distil.share) * cross_entropy, (hits, kl, cross_entropy)
    (loss, rest), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(given['x'], given['head'])
    return (loss, *rest), grads


def in_chunks(given, distil, target):
    """The same by `next_token`, each device with its rows and its shares of both heads."""
    head, taught_head = (param_spec('VD', given[name].shape, target, RULES)
                         for name in ('head', 'taught_head'))
    rows = PartitionSpec(BATCH_AXES)

    def per_device(x_BLD, share_VD, taught, batch):
        def total(x_BLD, share_VD):
            loss, *sums = next_token(x_BLD, share_VD, batch, shape=given['head'].shape, rules=RULES,
                                     distil=distil, taught=taught)
            return loss, sums
        (loss, sums), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(x_BLD, share_VD)
        rest = tuple(name for name in BATCH_AXES if name not in jax.tree.leaves(tuple(head)))
        return jax.lax.psum((loss, *sums), BATCH_AXES), (grads[0], jax.lax.psum(grads[1], rest))

    batch = {name: given[name] for name in ('tokens', 'weights')}
    with jax.set_mesh(target):
        return jax.jit(jax.shard_map(
            per_device, in_specs=(rows, head, (rows, taught_head), rows),
            out_specs=(PartitionSpec(), (rows, head)), axis_names=set(BATCH_AXES),
            check_vma=False))(given['x'], given['head'], (given['taught'], given['taught_head']),
                              batch)


def same(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('distil', [FORWARD, REVERSE, Distillation(.3), Distillation(.3, True)])
@pytest.mark.parametrize('sizes', MESHES.values(), ids=MESHES.keys())
def test_every_mesh_gives_the_loss_and_gradients_of_whole_logits(sizes, distil):
    same(in_chunks(given(), distil, mesh(**sizes)), whole(given(), distil))


@pytest.mark.parametrize(('C', 'rows'), [(10, V), (8, 63), (7, 63)])
def test_a_teacher_whose_head_lies_otherwise_than_the_students_says_the_same(C, rows):
    """A width of 10 lies across one ring of two, 7 across nothing; 63 rows do not split."""
    if C == 7:
        sizes = dict(data=4)
    else:
        sizes = dict(data=1, fsdp=4, ring=2)
    same(in_chunks(given(C, rows), FORWARD, mesh(**sizes)), whole(given(C, rows), FORWARD))


@pytest.mark.parametrize('tokens', [128, 40])
def test_chunks_of_some_tokens_give_what_whole_logits_give(tokens, monkeypatch):
    monkeypatch.setattr(loss_module, 'LOGIT_BYTES', 2 * tokens * 4 * V)
    many = {name: np.tile(given()[name], (5,) + (1,) * (given()[name].ndim - 1))
            for name in ('x', 'taught', 'tokens', 'weights')}
    many = {**given(), **many}
    found = in_chunks(many, Distillation(.3), mesh(devices=jax.devices()[:1]))
    same(found, whole(many, Distillation(.3)))


def test_the_step_holds_the_logits_of_neither_model(monkeypatch):
    """Temporaries of the compiled gradient: a few chunks, and not [B, L, V]."""
    rows, length, words = 4, 2048, 4096
    monkeypatch.setattr(loss_module, 'LOGIT_BYTES', 2 * 256 * 4 * words)

    def temporaries(taught):
        def total(x_BLD, head_VD, batch, taught):
            loss, *sums = next_token(x_BLD, head_VD, batch, shape=(words, D), rules=RULES,
                                     distil=taught and FORWARD, taught=taught)
            return loss, sums
        shape = jax.ShapeDtypeStruct
        batch = {'tokens': shape((rows, length), jnp.int32),
                 'weights': shape((rows, length), jnp.float32)}
        program = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True)).lower(
            shape((rows, length, D), jnp.float32), shape((words, D), jnp.float32), batch,
            taught).compile()
        return program.memory_analysis().temp_size_in_bytes

    taught = (jax.ShapeDtypeStruct((rows, length, 8), jnp.float32),
              jax.ShapeDtypeStruct((words, 8), jnp.float32))
    logits = rows * length * words * 4
    chunk = 256 * words * 4
    assert temporaries(taught) < 10 * chunk < logits / 3
    assert temporaries(taught) > temporaries(None)


# --- the step ---------------------------------------------------------------------------------

WIDE = Parametrisation(kind='mup', base_width=32, base_depth=1, input=4.0, output=2.0)
STUDENT, LARGE = (scale(LANGUAGE['micro']['w64d2'], width, depth, small.ROWS)
                  for width, depth in ((64, 1), (128, 2)))  # of 2 and 4 key heads
GROUPS = ('language', 'connector')
RATES = {'language': jnp.float32(3e-3), 'connector': jnp.float32(3e-3)}


def wide():
    """A teacher of another width and depth, in a parametrisation of its own."""
    return Vlm(LARGE, small.VISION, growth=WIDE.growth(LARGE))


@cache
def picture_batch():
    return next(small.batches('instruct', seed=2))


def taught_by(model, distil=FORWARD):
    return TeacherModel(model=model, distil=distil)


@cache
def gradient(data=1, fsdp=1, tensor=1, accumulate=1):
    """(gradients, loss, hits, weight, KL, cross-entropy) with the wide teacher on a mesh."""
    target = mesh(data, fsdp, tensor, devices=jax.devices()[:data * fsdp * tensor])
    model = Vlm(STUDENT, small.VISION)
    params, taught = init_params(model, 0), init_params(wide(), 1)
    with jax.set_mesh(target):
        params, taught = (jax.device_put(tree, shardings(tree, target, RULES))
                          for tree in (params, taught))
        batch = jax.device_put(picture_batch(), batch_sharding(target, RULES))
        run = small.quick(lambda params, taught, batch: gradients(
            model, 'tokens', params, {}, batch, accumulate,
            teacher=taught_by(wide(), Distillation(.5)), taught=taught))
        return jax.device_get(run(params, taught, batch))


@pytest.mark.parametrize('other', [
    dict(accumulate=2), dict(fsdp=4), dict(fsdp=2, tensor=2), dict(data=2, tensor=2)])
def test_micro_batches_and_meshes_change_neither_gradient_nor_numbers(other):
    (one, *numbers), (two, *others) = gradient(), gradient(**other)
    np.testing.assert_allclose(others, numbers, rtol=1e-5)
    loss, _, _, kl, cross_entropy = numbers
    assert kl > .01 and loss == pytest.approx(.5 * kl + .5 * cross_entropy, rel=1e-6)
    one, two = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (one, two))
    largest = {name: np.abs(value).max() for name, value in one.items()}
    for name in one:
        # As in `test_train.py`: a bias of all keys cancels, its gradient is rounding alone.
        allowed = max(2e-5 * largest[name], 1e-7 * max(largest.values()))
        np.testing.assert_allclose(two[name], one[name], atol=allowed, rtol=0, err_msg=str(name))


def test_the_multipliers_of_a_teacher_are_its_own():
    """With those of the base its distribution, and so the KL, is another."""
    batch, taught = picture_batch(), init_params(wide(), 1)
    params = init_params(small.model(), 0)

    def kl(model):
        return small.quick(lambda params: gradients(
            small.model(), 'tokens', params, {}, batch, 1, teacher=taught_by(model),
            taught=taught)[4])(params)
    assert abs(kl(wide()) - kl(Vlm(LARGE, small.VISION))) > .01


@pytest.mark.parametrize('reverse', [False, True])
def test_a_teacher_that_is_the_student_has_nothing_to_teach(reverse):
    params = init_params(small.model(), 0)
    with jax.set_mesh(mesh(devices=jax.devices()[:1])):
        grads, loss, _, _, kl, cross_entropy = jax.jit(lambda params: gradients(
            small.model(), 'tokens', params, {}, picture_batch(), 1, teacher=taught_by(
                small.model(), Distillation(1.0, reverse)), taught=params))(params)
        plain, *_ = jax.jit(lambda params: gradients(
            small.model(), 'tokens', params, {}, picture_batch(), 1))(params)
    assert abs(loss) < 1e-6 and abs(kl) < 1e-6 and cross_entropy > 1
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    for leaf in jax.tree.leaves(grads):
        np.testing.assert_allclose(leaf, 0, atol=1e-6 * largest)


def steps(teacher=None, taught=()):
    """(state, [metrics]) of three compiled steps."""
    target = mesh(devices=jax.devices()[:1])
    with jax.set_mesh(target):
        state = jax.device_put(new_state(init_params(small.model(), 0), Optimizer(), GROUPS))
        step = compiled_step(small.model(), 'tokens', Optimizer(), GROUPS, target, (), teacher)
        rows = []
        for _ in range(3):
            state, metrics = step(state, picture_batch(), RATES, *taught)
            rows.append(jax.device_get(metrics))
    return state, rows


def test_a_share_of_nothing_is_plain_training_bit_by_bit_with_the_kl_beside_it():
    told = steps(taught_by(wide(), Distillation(0.0)), (init_params(wide(), 1),))
    plain = steps()
    for one, other in zip(jax.tree.leaves(told[0]), jax.tree.leaves(plain[0]), strict=True):
        np.testing.assert_array_equal(one, other)
    for row, alone in zip(told[1], plain[1], strict=True):
        assert {name: row[name] for name in alone} == alone
        assert row['kl'] > .01 and row['cross_entropy'] == row['loss']


def test_a_student_comes_nearer_to_its_teacher_which_stays_as_it_is():
    taught = init_params(wide(), 1)
    before = jax.tree.map(np.copy, taught)
    state, rows = steps(taught_by(wide()), (taught,))
    assert rows[2]['kl'] < rows[0]['kl']
    assert rows[0]['loss'] == rows[0]['kl'] != rows[0]['cross_entropy']
    jax.tree.map(np.testing.assert_array_equal, before, taught)
    assert jax.tree.structure(state) == jax.tree.structure(steps()[0])

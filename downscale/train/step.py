"""One train step for every stage: loss, gradient of the trainable groups, update."""
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from downscale.model.tower_words import WordModel
from downscale.model.vlm import Vlm
from downscale.sharding import BATCH_AXES, batch_sharding, shardings, specs
from downscale.train.loss import next_token, token_nats
from downscale.train.optimizer import scaled, transform
from downscale.train.run import TeacherModel
from downscale.train.state import split

if TYPE_CHECKING:
    from downscale.config import Optimizer

BESIDE = ('kl', 'cross_entropy')  # metrics of a stage with a teacher, in the order of its sums


def token_loss(model: Vlm, params: dict[str, Any], batch: dict[str, jax.Array],
               teacher: TeacherModel | None = None, taught: Any = None) -> tuple[jax.Array, ...]:
    """Return (sum of weighted next-token losses in nats, sum of weights, weighted count of hits).

    `batch['weights']` marks targets: the token at position i is predicted from position i - 1. With
    a `teacher`, whose parameters are `taught`, the sums of `BESIDE` stand behind.
    """
    shape = model.language.V, model.language.D
    read = [batch.get(name) for name in (
        'tokens', 'positions', 'segments', 'tiles', 'image_index', 'image_weight')]
    finish = partial(next_token, batch=batch, shape=shape, rules=model.rules)
    if teacher is not None:
        # Its hidden states and its head, for `next_token` to make logits of chunk by chunk.
        states = teacher.model.apply({'params': taught}, *read, finish=lambda x_BLD, head: (
            x_BLD, head))
        finish = partial(finish, distil=teacher.distil, taught=states)
    loss, *sums = model.apply({'params': params}, *read, finish=finish)
    # pyrefly: ignore[bad-return]
    return loss, batch['weights'][:, 1:].sum(), *sums


def word_loss(model: WordModel, params: dict[str, Any],
              batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the cross-entropy of telling which words the caption of each picture holds.

    Same form as `token_loss`: (sum over pictures and words of the vocabulary, number of pictures,
    those with all words right). Where the batch has `patches`, of telling each word from the
    patches of its thing: (sum over words, their number, those told before all that are not of it).
    """
    if 'patches' in batch:
        return _placed_word_loss(model, params, batch)
    logits_BV = model.apply({'params': params}, batch['tiles'])
    B = len(logits_BV)
    # `max` and not `set`: padding shares token ids with words, and must not unset one.
    held_BV = jnp.zeros(logits_BV.shape, bool).at[
        jnp.arange(B)[:, None], batch['tokens']].max(batch['segments'] > 0)
    loss = optax.sigmoid_binary_cross_entropy(logits_BV, held_BV).sum()
    hits = ((logits_BV > 0) == held_BV).all(1).sum()
    return loss, jnp.float32(B), hits.astype(jnp.float32)


def _placed_word_loss(model, params, batch):
    """Return `word_loss` where each word has patches."""
    # Padding and the token that ends a reply are of no patch, and so have no part in the sums.
    patches_BLP = batch['patches']
    logits_BLV = model.apply({'params': params}, batch['tiles'], patches_BLP)
    told_BL = patches_BLP.any(-1)
    own_BL = jnp.take_along_axis(logits_BLV, batch['tokens'][..., None], -1)[..., 0]
    loss = (jax.nn.logsumexp(logits_BLV, -1) - own_BL) * told_BL
    # A thing has several words, none of them first: a word is right among as many as it has.
    other_BMP = patches_BLP.astype(jnp.int32)
    common_BLM = jnp.einsum('BLP,BMP->BLM', patches_BLP, other_BMP)
    size_BL = patches_BLP.sum(-1)
    alike_BLM = (common_BLM == size_BL[:, :, None]) & (common_BLM == size_BL[:, None])
    before_BL = (logits_BLV > own_BL[..., None]).sum(-1)
    hits = (before_BL < alike_BLM.sum(-1)) & told_BL
    return loss.sum(), told_BL.sum().astype(jnp.float32), hits.sum().astype(jnp.float32)


def policy_loss(model: Vlm, params: dict[str, Any],
                batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return what `token_loss` does for what the model wrote, weighed by `batch['slopes']`.

    A slope is that of the objective by the log-probability of a token (see `policy/slopes.py`), so
    that the gradient is that of the objective, while the value is not: it is known before.
    `batch['weights']` are what the sum is divided by.
    """
    shape = model.language.V, model.language.D
    loss, hits = _of_policy(model, params, batch, partial(
        next_token, batch={'tokens': batch['tokens'], 'weights': batch['slopes']}, shape=shape,
        rules=model.rules))
    return loss, batch['weights'][:, 1:].sum(), hits


def policy_nats(model: Vlm, params: dict[str, Any],
                batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return (nats, entropy) [B, L] of every token of a batch that a policy wrote."""
    return _of_policy(model, params, batch, partial(
        token_nats, batch=batch, shape=(model.language.V, model.language.D), rules=model.rules))


def _of_policy(model, params, batch, finish):
    """Return what `finish` makes of the rows of a policy, at the temperature it wrote with."""
    def tempered(x_BLD, share_VD):
        # What is divided are the logits; before the head it costs nothing.
        x_BLD = x_BLD / batch['temperature'][:, None, None].astype(x_BLD.dtype)
        return finish(x_BLD, share_VD)
    return model.apply(
        {'params': params}, batch['tokens'], batch['positions'], batch['segments'],
        batch.get('tiles'), batch.get('image_index'), batch.get('image_weight'), finish=tempered)


LOSSES = {'tokens': token_loss, 'words': word_loss, 'policy': policy_loss}


def gradients(model: Vlm | WordModel, loss: str, moving: dict[str, Any], frozen: dict[str, Any],
              batch: dict[str, jax.Array], accumulate: int, teacher: TeacherModel | None = None,
              taught: Any = None) -> tuple[Any, ...]:
    """Return (grads of the mean loss, loss, hits, weight) over `accumulate` equal micro-batches.

    The mean is over the whole batch's weight, so micro-batches change memory, not the result. On a
    mesh, each device takes its rows and holds its shares of the parameters; the model gathers them,
    `tensor` is left to the partitioner. The parameters `taught` of a `teacher` are shared out
    likewise, and the means of `BESIDE` stand behind. ValueError where rows do not divide.
    """
    sums_of = partial(_sums, model, loss, accumulate, teacher)
    still = frozen, {} if taught is None else taught
    # A single device takes the plain path, which is also what a run of stacked cells needs.
    current = jax.sharding.get_abstract_mesh()
    if current.empty or current.size == 1:
        sums = sums_of(moving, still, batch)
    else:
        # Only the batch axes are handled by hand; axes such as `tensor` stay out of these specs.
        shares = partial(specs, target=current, rules=model.rules)
        by_batch = _by_batch((shares(moving), shares(still)))

        def per_device(moving, still, batch):
            grads, numbers = sums_of(moving, still, batch)
            # A gathered weight's gradient comes back summed over the devices that share it.
            rest = jax.tree.map(lambda parts: tuple(
                name for name in BATCH_AXES if name not in jax.tree.leaves(tuple(parts))),
                by_batch[0], is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
            grads = jax.tree.map(lambda grad, names: jax.lax.psum(grad, names), grads, rest)
            return grads, jax.lax.psum(numbers, BATCH_AXES)

        sums = jax.shard_map(
            per_device, in_specs=(*by_batch, PartitionSpec(BATCH_AXES)),
            out_specs=(by_batch[0], PartitionSpec()), axis_names=set(BATCH_AXES),
            check_vma=False)(moving, still, batch)
    grads, (value, weight, hits, *beside) = sums
    # The loop refuses a batch without weight; any other caller gets 0 instead of NaN.
    weight = jnp.maximum(weight, 1e-9)
    beside = [total / weight for total in beside]
    return (jax.tree.map(lambda g: g / weight, grads), value / weight, hits / weight, weight,
            *beside)


def _by_batch(tree):
    """Return PartitionSpecs with the batch axes alone, of a tree of them."""
    return jax.tree.map(
        lambda parts: PartitionSpec(*[_within(part, BATCH_AXES) for part in parts]),
        tree, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def _within(part, names):
    """Return the mesh axes of one part of a PartitionSpec that are among `names`."""
    part = (part,) if isinstance(part, str) else tuple(part or ())
    return tuple(name for name in part if name in names) or None


def _sums(model, loss, accumulate, teacher, moving, still, batch):
    """Return (grads, (value, weight, hits, ...)), summed over the rows at hand.

    `still` are the parameters that nothing moves: (frozen ones of the model, those of `teacher`).
    """
    frozen, taught = still
    # Not among what is differentiated: the backward pass stops before the teacher.
    by_loss = LOSSES[loss]
    if teacher is not None:
        by_loss = partial(by_loss, teacher=teacher, taught=taught)

    def total(moving, part):
        value, *sums = by_loss(model, {**moving, **frozen}, part)
        return value, tuple(sums)

    grad = jax.value_and_grad(total, has_aux=True)
    rows = len(batch['tokens'])
    if rows % accumulate:
        raise ValueError(f'{rows} rows of a device do not divide into {accumulate} micro-batches '
                         f'({rows} % {accumulate} = {rows % accumulate})')
    if accumulate == 1:
        (value, aux), grads = grad(moving, batch)
        return grads, (value, *aux)
    # Micro-batches one after another: a scan holds the activations of one of them.
    parts = jax.tree.map(
        lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), batch)

    def add(carry, part):
        (value, aux), grads = grad(moving, part)
        return jax.tree.map(jnp.add, carry, (grads, (value, *aux))), None

    zeros = (jnp.float32(0),) * (3 if teacher is None else 3 + len(BESIDE))
    start = jax.tree.map(jnp.zeros_like, moving), zeros
    return jax.lax.scan(add, start, parts)[0]


def train_step(state: dict[str, Any], batch: dict[str, jax.Array], rates: dict[str, Any], *,
               model: Vlm | WordModel, loss: str, optimizer: 'Optimizer',
               trainable: tuple[str, ...], teacher: TeacherModel | None = None,
               taught: Any = None) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Return the state after one update, and its metrics (float32 scalars, still on the device)."""
    moving, frozen = split(state['params'], trainable)
    grads, value, hits, weight, *beside = gradients(
        model, loss, moving, frozen, batch, optimizer.accumulate, teacher=teacher, taught=taught)
    tx = transform(optimizer, model.growth)
    updates, opt_state = tx.update(grads, state['opt_state'], moving)
    # pyrefly: ignore[bad-argument-type]
    moving = optax.apply_updates(moving, scaled(updates, rates, model.growth))
    metrics = {'loss': value, 'accuracy': hits, 'grad_norm': optax.tree.norm(grads),
               'weight': weight, **dict(zip(BESIDE, beside))}
    state = {'step': state['step'] + 1, 'params': {**moving, **frozen}, 'opt_state': opt_state}
    return state, metrics


@lru_cache
def compiled_step(model: Vlm | WordModel, loss: str, optimizer: 'Optimizer',
                  trainable: tuple[str, ...], mesh: Mesh,
                  attention: tuple[tuple[int, str], ...] = (),
                  teacher: TeacherModel | None = None) -> Callable:
    """Return `train_step` under jit, with the shardings of `mesh` and the state donated.

    It takes (state, batch, rates) and, with a `teacher`, its parameters, which stay as they are.
    `attention` are (tokens of a row, program of `model/attention.py`) of every shape of a batch;
    without any it is that of `model`. Memoised, so stages and cells of one process that agree in
    these values share a program.
    """
    if teacher is not None and not teacher.distil.share:
        return _told_beside(model, loss, optimizer, trainable, mesh, attention, teacher)
    programs = dict(attention)

    def step(state, batch, rates, taught=None):
        length = batch['tokens'].shape[1]
        by_shape = model
        if programs:
            by_shape = model.clone(attention=programs[length])
        shards = shardings(state, mesh, model.rules)
        state, metrics = train_step(state, batch, rates, model=by_shape, loss=loss,
                                    optimizer=optimizer, trainable=trainable,
                                    teacher=teacher and teacher.for_rows(length), taught=taught)
        return jax.lax.with_sharding_constraint(state, shards), metrics

    given = (None, batch_sharding(mesh, model.rules), None)
    return jax.jit(step, donate_argnums=0,
                   in_shardings=given if teacher is None else (*given, None))


def _told_beside(model, loss, optimizer, trainable, mesh, attention, teacher):
    """Return `compiled_step` of a teacher that has no share of the loss: its KL is told alone.

    It is a program of its own, for in one program plain training would be rounded otherwise.
    """
    plain = compiled_step(model, loss, optimizer, trainable, mesh, attention)
    programs = dict(attention)

    @partial(jax.jit, in_shardings=(None, batch_sharding(mesh, model.rules), None))
    def divergence(params, batch, taught):
        length = batch['tokens'].shape[1]
        by_shape = model.clone(attention=programs[length]) if programs else model
        return gradients(by_shape, loss, {}, params, batch, optimizer.accumulate,
                         teacher=teacher.for_rows(length), taught=taught)[4]

    def step(state, batch, rates, taught):
        # First, for the step takes the memory of the state that it is given.
        kl = divergence(state['params'], batch, taught)
        state, metrics = plain(state, batch, rates)
        return state, {**metrics, 'kl': kl, 'cross_entropy': metrics['loss']}
    return step


@lru_cache
def compiled_nats(model: Vlm, mesh: Mesh, attention: tuple[tuple[int, str], ...] = ()) -> Callable:
    """Return `policy_nats` of (params, batch) under jit, with the shardings of `mesh`.

    `attention` is that of `compiled_step`.
    """
    programs = dict(attention)

    def nats(params, batch):
        by_shape = model
        if programs:
            by_shape = model.clone(attention=programs[batch['tokens'].shape[1]])
        if mesh.size == 1:
            return policy_nats(by_shape, params, batch)
        by_batch = _by_batch(specs(params, mesh, model.rules))
        rows = PartitionSpec(BATCH_AXES)
        return jax.shard_map(partial(policy_nats, by_shape), in_specs=(by_batch, rows),
                             out_specs=(rows, rows), axis_names=set(BATCH_AXES),
                             check_vma=False)(params, batch)

    return jax.jit(nats, in_shardings=(None, batch_sharding(mesh, model.rules)))

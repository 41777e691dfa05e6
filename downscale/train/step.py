"""One train step for every stage: loss, gradient of the trainable groups, update."""
from functools import lru_cache

import jax
import jax.numpy as jnp
import optax

from downscale.sharding import batch_sharding
from downscale.train.optimizer import scaled, transform
from downscale.train.state import split, state_shardings


def token_loss(model, params, batch):
    """(sum of weighted next-token losses in nats, sum of weights, weighted count of hits).

    `batch['weights']` marks targets: the token at position i is predicted from position i - 1.
    """
    logits_BLV = model.apply(
        {'params': params}, batch['tokens'], batch['positions'], batch['segments'],
        batch.get('tiles'), batch.get('image_index'), batch.get('image_weight'))
    weights_BL = batch['weights'][:, 1:]
    targets_BL = batch['tokens'][:, 1:]
    logits_BLV = logits_BLV[:, :-1]
    loss_BL = optax.softmax_cross_entropy_with_integer_labels(logits_BLV, targets_BL)
    # The maximum is shared with the loss; argmax is a pass of its own, and slow on CPU.
    of_target_BL = jnp.take_along_axis(logits_BLV, targets_BL[:, :, None], axis=-1)[:, :, 0]
    hits_BL = of_target_BL >= logits_BLV.max(axis=-1)
    return (loss_BL * weights_BL).sum(), weights_BL.sum(), (hits_BL * weights_BL).sum()


def pair_loss(model, params, batch):
    """Sigmoid image-text loss (SigLIP): every image against every text of the batch.

    Same form as `token_loss`: (sum over images, number of images, images whose own text wins).
    """
    logits_BB = model.apply({'params': params}, batch['tiles'], batch['tokens'],
                            batch['segments'])
    B = logits_BB.shape[0]
    signs_BB = 2 * jnp.eye(B) - 1
    loss = -jax.nn.log_sigmoid(signs_BB * logits_BB).sum()
    hits = (jnp.argmax(logits_BB, axis=1) == jnp.arange(B)).sum()
    return loss, jnp.float32(B), hits.astype(jnp.float32)


LOSSES = {'tokens': token_loss, 'pairs': pair_loss}


def gradients(model, loss, moving, frozen, batch, accumulate):
    """(grads of the mean loss, loss, hits, weight) over `accumulate` equal micro-batches.

    The mean is over the whole batch's weight, so micro-batches change memory, not the result.
    """
    def total(moving, part):
        value, weight, hits = LOSSES[loss](model, {**moving, **frozen}, part)
        return value, (weight, hits)

    grad = jax.value_and_grad(total, has_aux=True)
    if accumulate == 1:
        (value, (weight, hits)), grads = grad(moving, batch)
    else:
        parts = jax.tree.map(
            lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), batch)

        def add(carry, part):
            (value, aux), grads = grad(moving, part)
            return jax.tree.map(jnp.add, carry, (value, aux, grads)), None

        zero = jax.tree.map(jnp.zeros_like, moving)
        start = (jnp.float32(0), (jnp.float32(0), jnp.float32(0)), zero)
        (value, (weight, hits), grads), _ = jax.lax.scan(add, start, parts)
    weight = jnp.maximum(weight, 1e-9)
    return jax.tree.map(lambda g: g / weight, grads), value / weight, hits / weight, weight


def train_step(state, batch, rates, *, model, loss, optimizer, trainable):
    """The state after one update, and its metrics (float32 scalars, still on the device)."""
    moving, frozen = split(state['params'], trainable)
    grads, value, hits, weight = gradients(
        model, loss, moving, frozen, batch, optimizer.accumulate)
    updates, opt_state = transform(optimizer).update(grads, state['opt_state'], moving)
    moving = optax.apply_updates(moving, scaled(updates, rates))
    metrics = {'loss': value, 'accuracy': hits, 'grad_norm': optax.global_norm(grads),
               'weight': weight}
    state = {'step': state['step'] + 1, 'params': {**moving, **frozen}, 'opt_state': opt_state}
    return state, metrics


@lru_cache
def compiled_step(model, loss, optimizer, trainable, mesh):
    """`train_step` under jit, with input and output shardings of `mesh` and the state donated.

    Memoised, so stages and cells of one process that agree in these values share a program.
    """
    def step(state, batch, rates):
        shards = state_shardings(state, mesh, model.rules)
        state, metrics = train_step(state, batch, rates, model=model, loss=loss,
                                    optimizer=optimizer, trainable=trainable)
        return jax.lax.with_sharding_constraint(state, shards), metrics

    return jax.jit(step, donate_argnums=0,
                   in_shardings=(None, batch_sharding(mesh, model.rules), None))

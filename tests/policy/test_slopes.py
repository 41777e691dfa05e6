"""Slopes: the gradient that they give is that of the objective, written out as one reads it."""
import jax
import jax.numpy as jnp
import numpy as np
import plain_loop
import pytest
import small

from downscale.model.init import init_params
from downscale.policy import slopes
from downscale.sharding import batch_sharding, mesh, shardings
from downscale.stage_config import PolicySettings
from downscale.train.step import compiled_nats, policy_loss

B, L, G = 4, 12, 2
MODEL = plain_loop.MODEL  # whose heads two devices can share


def batch(seed=0, temperature=1.0):
    rng = np.random.default_rng(seed)
    return {'tokens': rng.integers(7, small.ROWS, (B, L)).astype(np.int32),
            'segments': np.ones((B, L), np.int32),
            'positions': np.tile(np.arange(L, dtype=np.int32), (B, 1)),
            'temperature': np.full(B, temperature, np.float32)}


def own():
    """Rows have 5, 6, 7 and 8 tokens of their own, at their ends."""
    return np.arange(L) >= L - 5 - np.arange(B)[:, None]


@pytest.fixture(scope='module')
def params():
    return {'language': init_params(MODEL, 3)['language']}


@pytest.fixture(scope='module')
def others(params):
    """Parameters near `params`: those that wrote, and those that the stage began with."""
    def moved(seed, by):
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda leaf: np.asarray(
            leaf + by * rng.standard_normal(leaf.shape).astype(np.float32)), params)
    return moved(1, .03), moved(2, .05)


def log_probabilities(params, arrays):
    """As one reads it: the whole logits, a softmax, the token's entry."""
    logits = MODEL.apply({'params': params}, arrays['tokens'], arrays['positions'],
                         arrays['segments'])
    logits = logits / arrays['temperature'][:, None, None]
    found = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    found = jnp.take_along_axis(found, arrays['tokens'][:, 1:, None], axis=2)[..., 0]
    return jnp.pad(found, [(0, 0), (1, 0)])


REWARD = np.array([1., 0., .2, .7])


def objective(policy, norm, now, then, start, mask):
    """The loss of a method from log-probabilities, in the words of its paper."""
    if policy.method == 'dpo':
        gain = jnp.where(mask, now - start, 0).sum(1)
        margins = policy.kl * jnp.stack([gain[0] - gain[1], gain[3] - gain[2]])
        return -jax.nn.log_sigmoid(margins).mean()
    share = mask / mask.sum(1, keepdims=True) if norm == 'example' else mask.astype(float)
    if policy.method == 'rejection':
        share = share * np.array([1, 0, 0, 1])[:, None]
        return -(now * share).sum() / share.sum()
    gain = np.array([1, -1, -1, 1])[:, None]  # of two, each is one deviation from their mean
    ratio = jnp.exp(now - then)
    low, high = policy.clip
    value = jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - low, 1 + high) * gain)
    gap = start - now
    return -((value - policy.kl * (jnp.exp(gap) - gap - 1)) * share).sum() / share.sum()


@pytest.mark.parametrize('norm', ['token', 'example'])
@pytest.mark.parametrize('method', ['grpo', 'rejection', 'dpo'])
def test_the_gradient_is_that_of_the_objective(params, others, method, norm):
    policy = PolicySettings(method=method, group=G, kl=.3, clip=(.1, .15), temperature=.7)
    arrays, mask = batch(temperature=.7), own()
    then, start = (np.asarray(log_probabilities(other, arrays)) for other in others)
    value, grads = jax.value_and_grad(lambda params: objective(
        policy, norm, log_probabilities(params, arrays), then, start, mask))(params)
    now = np.asarray(log_probabilities(params, arrays))
    found = slopes.slopes_of(policy, norm, slopes.Written(
        own_BL=mask, now_BL=now, then_BL=then, start_BL=start, reward_B=REWARD,
        solved_B=np.array([1., 0., 1., 1.])))
    assert found.loss == pytest.approx(float(value), abs=1e-5)
    if method == 'grpo':
        assert 0 < found.clipped < 1  # else the test has no clipped tokens
    made = {**arrays, 'slopes': found.slopes_BL.astype(np.float32),
            'weights': found.weights_BL.astype(np.float32)}

    def total(params):
        loss, weight, _ = policy_loss(MODEL, params, made)
        return loss / weight
    ours = jax.grad(total)(params)
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(grads),
                                   jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(other, leaf, atol=1e-5, err_msg=str(path))


def test_on_policy_the_gradient_is_the_analytic_one_of_two_tokens():
    # A policy over two tokens, of which the first has probability p and is worth 1. Drawn in just
    # that proportion, the mean over a group is the expectation: its slope by the logit is
    # p (1 - p), over the deviation of the reward.
    p = .75
    logit = np.log(p / (1 - p))
    policy = PolicySettings(group=4, kl=0)
    chosen = np.array([0, 0, 0, 1])
    own_BL = np.array([[False, True]] * 4)
    now = np.where(chosen, np.log(1 - p), np.log(p))[:, None] * own_BL
    found = slopes.slopes_of(policy, 'token', slopes.Written(
        own_BL=own_BL, now_BL=now, then_BL=now, start_BL=None, reward_B=1. - chosen,
        solved_B=1. - chosen))

    def loss(logit):
        log_p = jnp.stack([jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)])
        return -(found.slopes_BL[:, 1] * log_p[chosen]).sum() / found.weights_BL.sum()
    deviation = np.sqrt(p * (1 - p))
    assert float(jax.grad(loss)(logit)) == pytest.approx(-p * (1 - p) / deviation, abs=1e-5)


def test_groups_that_agree_teach_nothing():
    reward = np.array([.1, .1, .1, .3, .2, .1]) + 0.7
    gains = slopes.advantages(reward, 3)
    assert (gains[:3] == 0).all() and gains[3:].sum() == pytest.approx(0)
    assert gains[3] > 1 and slopes.mixed(reward, 3).tolist() == [False, True]
    # A sum of thirds is not exactly thrice their mean.
    assert (slopes.advantages(np.array([1 / 3 + .1] * 7), 7) == 0).all()


def test_rejection_learns_nothing_where_nobody_answers():
    mask = own()
    found = slopes.slopes_of(PolicySettings(method='rejection', group=G), 'token', slopes.Written(
        own_BL=mask, now_BL=np.zeros((B, L)), then_BL=np.zeros((B, L)), start_BL=None,
        reward_B=REWARD, solved_B=np.array([0., 0., 0., 1.])))
    assert found.weights_BL[:3].sum() == 0 and (found.weights_BL[3] == mask[3]).all()


@pytest.mark.parametrize('shape', [(1, 1, 1), (4, 1, 1), (1, 4, 1), (2, 2, 1), (1, 2, 2)])
def test_nats_and_entropies_are_those_of_whole_logits(params, monkeypatch, shape):
    # Chunks of the vocabulary smaller than the batch, and one that does not divide it.
    monkeypatch.setattr('downscale.train.loss.LOGIT_BYTES', 4 * small.ROWS * 10)
    devices = jax.devices()[:int(np.prod(shape))]
    grid = mesh(*shape, devices=devices)
    arrays = batch(temperature=1.3)
    placed = jax.device_put(params, shardings(params, grid, MODEL.rules))
    rows = jax.device_put(arrays, batch_sharding(grid, MODEL.rules))
    compiled_nats.cache_clear()
    with jax.set_mesh(grid):
        nats, entropy = compiled_nats(MODEL, grid)(placed, rows)
    np.testing.assert_allclose(-nats, log_probabilities(params, arrays), atol=1e-5)
    logits = MODEL.apply({'params': params}, arrays['tokens'], arrays['positions'],
                         arrays['segments']) / 1.3
    log_p = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    np.testing.assert_allclose(entropy[:, 1:], -(jnp.exp(log_p) * log_p).sum(-1), atol=1e-4)
    assert (nats[:, 0] == 0).all() and (entropy[:, 0] == 0).all()

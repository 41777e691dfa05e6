"""The tower stage: which words does the caption of a picture hold?"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from downscale.model.init import init_tree
from downscale.model.tower_words import WordModel, abstract_word_params
from downscale.model.vision import Tower
from downscale.train.step import word_loss

WORDS = 7


@pytest.fixture(scope='module')
def batch():
    draw = np.random.default_rng(0)
    return {'tiles': draw.uniform(-1, 1, (3, small.VISION.P, small.VISION.Q)).astype(np.float32),
            'tokens': np.array([[1, 2, 2, 0], [3, 0, 0, 0], [4, 5, 6, 1]], np.int32),
            'segments': np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], np.int32)}


@pytest.fixture(scope='module')
def model():
    return WordModel(small.VISION, WORDS)


@pytest.fixture(scope='module')
def params(model):
    return init_tree(abstract_word_params(model), 0)


def test_the_loss_is_the_cross_entropy_of_every_word(batch, model, params):
    """A word that occurs twice counts once, and padding is no word."""
    logits = np.asarray(model.apply({'params': params}, batch['tiles']), np.float64)
    held = np.zeros((3, WORDS), bool)
    for row, words in enumerate(([1, 2], [3], [4, 5, 6, 1])):
        held[row, words] = True
    expected = np.log1p(np.exp(np.where(held, -logits, logits))).sum()
    loss, count, hits = word_loss(model, params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert count == 3
    assert hits == ((logits > 0) == held).all(1).sum()


def test_one_patch_is_enough_to_tell_a_word(batch, model, params):
    """A word's score is that of the patch that tells it best, by the tower's own features."""
    x_BPW = np.asarray(Tower(small.VISION).apply({'params': params['tower']}, batch['tiles']))
    x_BPW = x_BPW - x_BPW.mean(-1, keepdims=True)
    x_BPW /= np.sqrt((x_BPW ** 2).mean(-1, keepdims=True) + small.VISION.eps)
    bias_V = np.arange(WORDS) / 10
    expected = (x_BPW @ params['word_WV']).max(1) + bias_V
    found = model.apply({'params': {**params, 'word_bias_V': bias_V}}, batch['tiles'])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_word_that_is_told_of_a_place_is_told_by_the_patches_there(batch, model, params):
    P = small.VISION.P
    patches = np.zeros((3, 4, P), bool)
    patches[0, :2, :2] = patches[0, 2, 1] = True   # two words of a thing, one of another
    patches[2, 3] = True                           # of the rest nothing is told
    x_BPW = np.asarray(Tower(small.VISION).apply({'params': params['tower']}, batch['tiles']))
    x_BPW = x_BPW - x_BPW.mean(-1, keepdims=True)
    x_BPW /= np.sqrt((x_BPW ** 2).mean(-1, keepdims=True) + small.VISION.eps)
    scores = x_BPW @ params['word_WV']
    means = [scores[0, :2].mean(0), scores[0, :2].mean(0), scores[0, 1], scores[2].mean(0)]
    best, second = np.argsort(-means[0])[:2].tolist()
    words = [second, best, 2, 1]
    tokens = batch['tokens'].copy()
    tokens[0, :3], tokens[2, 3] = words[:3], words[3]
    expected = sum(np.log(np.exp(mean).sum()) - mean[word]
                   for mean, word in zip(means, words, strict=True))
    ranks = [(mean > mean[word]).sum() for mean, word in zip(means, words, strict=True)]
    loss, count, hits = word_loss(model, params, batch | {'patches': patches, 'tokens': tokens})
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert count == 4
    # Two words of a thing may be in either order.
    assert ranks[:2] == [1, 0]
    assert hits == sum(rank < most for rank, most in zip(ranks, (2, 2, 1, 1), strict=True))


def test_the_words_of_three_pictures_are_learnt(batch, model, params):
    @jax.jit
    def step(params):
        (loss, (_, hits)), grads = jax.value_and_grad(
            lambda p: (lambda loss, count, hits: (loss, (count, hits)))(
                *word_loss(model, p, batch)), has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.03 * g, params, grads), loss, hits
    params = jax.tree.map(jnp.asarray, params)
    losses = []
    for _ in range(60):
        params, loss, hits = step(params)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 4 and hits == 3

"""A smaller model: what does nothing is cut first without a trace; muP goes into the weights."""
from dataclasses import replace

import jax
import numpy as np
import pytest
import small

from downscale.model.init import init_params
from downscale.shrink.depth import influential, spaced
from downscale.shrink.measure import measure
from downscale.shrink.transform import Shrinking, folded, shrink
from downscale.sizes import BASE, Growth, cut

DEPTH = 3
STAGE = dict(batch=4, length=176, tiles=3)


def batch():
    return next(small.batches('instruct', **STAGE))


@pytest.fixture
def model():
    return small.model(DEPTH)


@pytest.fixture
def params(model):
    """Random weights of a small model that sees."""
    return jax.tree.map(np.array, init_params(model, 0))


def logits(model, params, rows):
    return np.asarray(jax.jit(model.apply)(
        {'params': params}, rows['tokens'], rows['positions'], rows['segments'],
        rows['tiles'], rows['image_index'], rows.get('image_weight')))


def smaller(model, params, rows, **how):
    after = cut(model.language, *[how.pop(name, None) for name in ('layers', 'hidden', 'heads')])
    made, done = shrink(model, params, Shrinking(after=after, **how), [rows])
    return model.clone(language=after), made, done


def with_idle_block(params, layer):
    """A block whose branches write nothing hands on what it gets."""
    blocks = params['language']['blocks']
    blocks['attention']['o_HED'][layer] = 0
    blocks['mlp']['down_FD'][layer] = 0
    return params


@pytest.mark.parametrize('layer', range(DEPTH))
def test_a_block_that_does_nothing_has_no_influence_and_goes_first(model, params, layer):
    rows = batch()
    params = with_idle_block(params, layer)
    activity = measure(model, params, [rows])
    assert activity.influence_N[layer] == 0
    assert (np.delete(activity.influence_N, layer) > 1e-3).all()
    less, made, done = smaller(model, params, rows, layers=DEPTH - 1)
    assert done['layers'] == [n for n in range(DEPTH) if n != layer]
    np.testing.assert_array_equal(logits(less, made, rows), logits(model, params, rows))


def test_influence_is_one_less_the_mean_cosine_of_what_goes_in_and_comes_out(model, params):
    """By another program: the model cut behind each block, without a last norm that matters."""
    rows = batch()
    states = []
    for depth in range(1, DEPTH + 1):
        blocks = jax.tree.map(lambda leaf, depth=depth: leaf[:depth], params['language']['blocks'])
        until = model.clone(language=replace(model.language, N=depth))
        got = {}

        def keep(x_BLD, table, got=got):
            # The last norm only scales each token here: its gain is 1, and a cosine has no scale.
            got['x'] = x_BLD
            return x_BLD
        until.apply({'params': {**params, 'language': {**params['language'], 'blocks': blocks}}},
                    rows['tokens'], rows['positions'], rows['segments'], rows['tiles'],
                    rows['image_index'], rows.get('image_weight'), finish=keep)
        states.append(np.asarray(got['x'], np.float64))
    there = rows['segments'] > 0
    activity = measure(model, params, [rows])
    assert activity.tokens == there.sum() and not there.all()
    for layer in range(1, DEPTH):
        x, y = states[layer - 1][there], states[layer][there]
        cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        assert activity.influence_N[layer] == pytest.approx(1 - cosine.mean(), abs=2e-5)


def test_what_is_measured_is_the_mean_over_all_tokens_of_all_batches(model, params):
    rows = small.batches('instruct', **STAGE)
    first, second = next(rows), next(rows)
    one, two, both = (measure(model, params, some) for some in (
        [first], [second], [first, second]))
    assert both.tokens == one.tokens + two.tokens
    for name in ('influence_N', 'neurons_NF', 'heads_NK'):
        mean = (vars(one)[name] * one.tokens + vars(two)[name] * two.tokens) / both.tokens
        np.testing.assert_allclose(vars(both)[name], mean, rtol=1e-5)
    # What stands on padding counts nowhere.
    padded = {**first, 'tokens': np.where(first['segments'] > 0, first['tokens'], 7)}
    np.testing.assert_allclose(measure(model, params, [padded]).neurons_NF, one.neurons_NF,
                               rtol=1e-6)


def test_neurons_that_are_silent_go_first_each_layer_its_own(model, params):
    rows = batch()
    F = model.language.F
    rng = np.random.default_rng(0)
    silent = [np.sort(rng.choice(F, 24, replace=False)) for _ in range(DEPTH)]
    for layer, neurons in enumerate(silent):
        # Either half of the gate silences a neuron.
        params['language']['blocks']['mlp']['up_DF'][layer][:, neurons[::2]] = 0
        params['language']['blocks']['mlp']['gate_DF'][layer][:, neurons[1::2]] = 0
    less, made, _ = smaller(model, params, rows, hidden=F - 24)
    for layer, neurons in enumerate(silent):
        np.testing.assert_array_equal(
            made['language']['blocks']['mlp']['down_FD'][layer],
            np.delete(params['language']['blocks']['mlp']['down_FD'][layer], neurons, 0))
    np.testing.assert_allclose(logits(less, made, rows), logits(model, params, rows), atol=2e-5)


def test_heads_that_hand_on_nothing_go_first_with_those_that_share_their_keys():
    language = replace(small.language(2), H=6, K=3, qkv_bias=True)
    model = small.model(2).clone(language=language)
    params = jax.tree.map(np.array, init_params(model, 0))
    attention = params['language']['blocks']['attention']
    for layer, idle in enumerate((2, 0)):
        attention['v_DKE'][layer][:, idle] = 0
    rows = batch()
    less, made, _ = smaller(model, params, rows, heads=4)
    after = made['language']['blocks']['attention']
    assert (less.language.H, less.language.K) == (4, 2)
    # Query heads 2 k and 2 k + 1 read the keys of head k.
    np.testing.assert_array_equal(after['q_DHE'][0], attention['q_DHE'][0][:, :4])
    np.testing.assert_array_equal(after['q_DHE'][1], attention['q_DHE'][1][:, 2:])
    np.testing.assert_array_equal(after['k_bias_KE'][1], attention['k_bias_KE'][1][1:])
    np.testing.assert_allclose(logits(less, made, rows), logits(model, params, rows), atol=2e-5)


def test_what_sees_is_carried_along_untouched():
    model = small.model(2).clone(language=replace(small.language(2), K=2))
    params = jax.tree.map(np.array, init_params(model, 0))
    _, made, done = smaller(model, params, batch(), layers=1, hidden=32, heads=1, bits=4, group=8)
    for group in ('tower', 'connector', 'image_newline_D'):
        assert made[group] is params[group]
    assert done['sizes'] == {'N': 1, 'F': 32, 'H': 1, 'K': 1}
    assert sum(leaf.size for leaf in jax.tree.leaves(made['language'])) == done['parameters']


def test_positions_need_no_texts_and_are_those_of_an_import(model, params):
    _, made, done = smaller(model, params, None, layers=2, by='position')
    assert done['layers'] == spaced(2, DEPTH) == [0, 2] and 'influence' not in done
    np.testing.assert_array_equal(made['language']['blocks']['mlp']['up_DF'],
                                  params['language']['blocks']['mlp']['up_DF'][[0, 2]])
    how = Shrinking(after=cut(model.language, 2), layers=(1, 2))
    made, done = shrink(model, params, how, None)
    assert done['layers'] == [1, 2]
    np.testing.assert_array_equal(made['language']['blocks']['mlp']['up_DF'],
                                  params['language']['blocks']['mlp']['up_DF'][1:])


@pytest.mark.parametrize('tie', [True, False])
def test_a_model_of_mup_is_one_of_the_standard_kind_with_other_weights(tie):
    growth = Growth(width=1.5, depth=2.0, input=8.0, head=4.0)
    language = replace(small.language(2), tie=tie)
    model = small.model(2).clone(language=language, growth=growth)
    params = jax.tree.map(np.array, init_params(model, 0))
    rows = batch()
    standard = {**params, 'language': folded(params['language'], growth, tie)}
    before = logits(model, params, rows)
    np.testing.assert_allclose(logits(model.clone(growth=BASE), standard, rows), before,
                               atol=2e-5 * np.abs(before).max())
    assert np.abs(logits(model.clone(growth=BASE), params, rows) - before).max() > 0.1


def test_of_equal_layers_the_later_stay_and_what_is_no_number_is_refused():
    assert influential(np.array([.5, .1, .1, .3]), 2) == [0, 3]
    assert influential(np.array([.1, .1, .1]), 2) == [1, 2]
    with pytest.raises(ValueError, match='must be numbers'):
        influential(np.array([.1, np.nan]), 1)


@pytest.mark.parametrize('changes, how, message', [
    (dict(N=4), {}, 'cannot keep 4 layers: the model has 3'),
    (dict(F=97), {}, 'cannot keep 97 hidden units: the model has 96'),
    (dict(H=2, K=2), {}, '2 query heads on 2 key/value heads cannot be cut from 2 on 1'),
    (dict(D=16), {}, 'D would change as well'),
    (dict(tie=False), {}, 'tie would change as well'),
    ({}, dict(bits=4, group=5), 'a group of 5 inputs does not divide the width of 32; 4 divides'),
    (dict(F=90), dict(bits=8, group=16), '16 inputs does not divide hidden units of 90; 2 divides'),
    ({}, dict(bits=4, group=0), 'a group of 0'),
    ({}, dict(bits=3, group=8), '3 bits: give 8 or 4'),
])
def test_what_cannot_be_cut_is_refused_in_one_line(model, changes, how, message):
    with pytest.raises(ValueError, match=message) as error:
        Shrinking(after=replace(model.language, **changes), **how).check(model.language)
    assert '\n' not in str(error.value) and len(str(error.value)) <= 300

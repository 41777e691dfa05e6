"""muP and CompleteP: roles by name, what they multiply, and that activations change alike."""
import dataclasses
import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from cells import plain

from benchmarks import coordinate_check
from downscale import config
from downscale.config import Experiment, Optimizer
from downscale.convert import exchange
from downscale.generate import forward
from downscale.model.cache import edges
from downscale.model.init import abstract_params, init_params, init_tree
from downscale.model.tower_words import WordModel, abstract_word_params
from downscale.model.vlm import Vlm
from downscale.mup import multipliers, role_of, roles
from downscale.sharding import mesh
from downscale.sizes import BASE, Growth, Parametrisation
from downscale.stage_table import GROUPS
from downscale.stages.models import model_of
from downscale.train.optimizer import scaled, transform
from downscale.train.state import new_state
from downscale.train.step import compiled_step, gradients
from downscale.values import from_dict

GROWN = Growth(width=4.0, depth=2.0)
FULL = replace(small.language(2), tie=False, qkv_bias=True, qk_norm=True)
MUP = {'kind': 'mup', 'base_width': 32, 'base_depth': 1}
# One leaf of each role, some of them in blocks.
FEW = {'language': {'embedding_VD': (6, 4), 'head_DV': (4, 6), 'final_norm': {'scale_D': (4,)},
                    'blocks': {'mlp': {'up_DF': (2, 4, 8)}, 'mlp_norm': {'scale_D': (2, 4)}}},
       'connector': {'first_WD': (3, 4), 'second_DD': (4, 4), 'first_bias_D': (4,)},
       'tower': {'patch_QW': (5, 3)}, 'image_newline_D': (4,)}


def by_name(tree):
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@cache
def whole():
    """The shapes of a model that has every kind of leaf."""
    return abstract_params(Vlm(FULL, small.VISION))


# --- roles ------------------------------------------------------------------------------------

def test_every_leaf_has_the_role_that_its_axes_say():
    found = by_name(roles(whole()))
    tower = {name for name in found if name.startswith('tower/')}
    assert {found.pop(name) for name in tower} == {'frozen'}
    expected = {'language/embedding_VD': 'embed', 'image_newline_D': 'embed',
                'language/head_DV': 'readout', 'connector/first_WD': 'connector_in',
                'connector/second_DD': 'hidden'}
    expected |= {f'language/blocks/{name}': 'hidden' for name in (
        'attention/q_DHE', 'attention/k_DKE', 'attention/v_DKE', 'attention/o_HED', 'mlp/gate_DF',
        'mlp/up_DF', 'mlp/down_FD')}
    expected |= {f'language/{name}': 'norm' for name in (
        'final_norm/scale_D', 'blocks/attention_norm/scale_D', 'blocks/mlp_norm/scale_D',
        'blocks/attention/q_scale_E', 'blocks/attention/k_scale_E')}
    expected |= {f'language/blocks/attention/{name}': 'bias' for name in (
        'q_bias_HE', 'k_bias_KE', 'v_bias_KE')}
    expected |= {f'connector/{name}': 'bias' for name in ('first_bias_D', 'second_bias_D')}
    assert found == expected
    words = by_name(roles(abstract_word_params(WordModel(small.VISION, 16))))
    assert len(words) > 15 and set(words.values()) == {'frozen'}


@pytest.mark.parametrize('group, name', [
    ('language', 'memory_PE'), ('language', 'gate'), ('adapter', 'up_DF'), ('language', 'step_V')])
def test_a_leaf_without_a_role_is_an_error_that_names_it(group, name):
    leaf = {group: {'blocks': {name: np.zeros(())}}}
    with pytest.raises(ValueError, match=f'parameter {group}/blocks/{name} has no role: name it'):
        init_tree(leaf, 0)


def test_layers_in_a_scan_have_the_multipliers_and_the_spread_of_layers_alone():
    stacked = {'language': whole()['language']}
    alone = {'language': {**stacked['language'], 'blocks': jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
        stacked['language']['blocks'])}}
    assert multipliers(stacked, GROWN) == multipliers(alone, GROWN)
    language = replace(FULL, N=8)
    tree = by_name(init_params(Vlm(language, small.VISION, growth=GROWN), 0, ('language',)))
    for name, fan_in in (('attention/q_DHE', language.D), ('mlp/down_FD', language.F),
                         ('attention/o_HED', language.H * language.E)):
        assert tree[f'language/blocks/{name}'].std() == pytest.approx(fan_in ** -0.5, rel=0.05)


# --- what they multiply -----------------------------------------------------------------------

def test_multipliers_follow_the_table_and_are_floats():
    found = multipliers(whole(), GROWN)
    role, init, rate, decay, eps = (by_name(tree) for tree in (
        roles(whole()), found.init, found.rate, found.decay, found.eps))
    for name in role:
        hidden, wide = role[name] == 'hidden', role[name] in ('embed', 'readout')
        assert init[name] == (2.0 if wide else 1.0), name
        assert rate[name] == (0.25 if hidden else 1.0), name
        assert decay[name] * rate[name] == 1.0, name
        assert eps[name] == (1.0 if role[name] == 'frozen' else
                             0.125 if '/blocks/' in name else 0.25), name
        assert {type(tree[name]) for tree in (init, rate, decay, eps)} == {float}
    for tree in vars(multipliers(whole(), BASE)).values():
        assert set(jax.tree.leaves(tree)) == {1.0}


def test_embedding_and_head_start_with_the_spread_of_the_base_at_any_width():
    base = Vlm(FULL, small.VISION)
    wide = Vlm(replace(FULL, D=4 * FULL.D), small.VISION, growth=Growth(width=4.0, depth=1.0))
    first, second = (by_name(init_params(model, 0, ('language', 'image_newline_D')))
                     for model in (base, wide))
    for name in ('language/embedding_VD', 'language/head_DV'):
        assert second[name].std() == pytest.approx(first[name].std(), rel=0.05)
    assert second['image_newline_D'].std() == pytest.approx(FULL.D ** -0.5, rel=0.2)


def random_leaves(seed):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: draw.standard_normal(shape, np.float32), FEW,
                        is_leaf=lambda node: isinstance(node, tuple))


def steps(tx, growth, params):
    """Parameters after 3 updates with random gradients at rate 0.1, and the optimiser's state."""
    @small.quick
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        updates = scaled(updates, dict.fromkeys(GROUPS, 0.1), growth)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for seed in range(3):
        params, state = step(params, state, random_leaves(seed))
    return params, state


SETTINGS = Optimizer(eps=0.3, weight_decay=0.5, clip=1e9)


def test_each_leaf_moves_by_adam_with_its_own_rate_decay_and_epsilon():
    params = random_leaves(9)
    found = by_name(steps(transform(SETTINGS, GROWN), GROWN, params)[0])
    factors = {name: by_name(tree) for name, tree in vars(multipliers(params, GROWN)).items()}
    for name, leaf in by_name(params).items():
        matrix = not name.rpartition('_')[0].endswith(('scale', 'bias', 'newline'))
        mean = square = 0
        for seed in range(3):
            grad = by_name(random_leaves(seed))[name]
            mean, square = 0.9 * mean + 0.1 * grad, 0.95 * square + 0.05 * grad ** 2
            size = np.sqrt(square / (1 - 0.95 ** (seed + 1))) + 0.3 * factors['eps'][name]
            update = mean / (1 - 0.9 ** (seed + 1)) / size
            update += 0.5 * factors['decay'][name] * matrix * leaf
            leaf = leaf - 0.1 * factors['rate'][name] * update
        np.testing.assert_allclose(found[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)


def test_at_the_base_nothing_changes_by_a_bit_and_the_state_has_the_same_leaves_everywhere():
    params = random_leaves(9)
    settings = replace(SETTINGS, clip=1.0)
    plain_adam = optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.9, 0.95, 0.3, mu_dtype='float32'),
        optax.add_decayed_weights(0.5, mask=lambda tree: jax.tree_util.tree_map_with_path(
            lambda path, _: not path[-1].key.rpartition('_')[0].endswith(
                ('scale', 'bias', 'newline')), tree)))
    for one, two in zip(*(jax.tree.leaves(steps(tx, BASE, params))
                          for tx in (plain_adam, transform(settings))), strict=True):
        np.testing.assert_array_equal(one, two)
    assert jax.tree.structure(transform(settings, GROWN).init(params)) == \
        jax.tree.structure(plain_adam.init(params))


def grad_sizes(width, depth):
    """Root mean square of each leaf's gradient at the start, of a model as large as that."""
    model = coordinate_check.model_of('mup', width, depth)
    batch = {name: leaf for name, leaf in coordinate_check.batch_of(0).items()
             if name not in ('tiles', 'image_index')}
    params = init_params(model, 0, ('language',))
    grads = small.quick(lambda params: gradients(model, 'tokens', params, {}, batch, 1)[0])(params)
    return {name: float(np.sqrt((leaf ** 2).mean())) for name, leaf in by_name(grads).items()
            }, by_name(multipliers(params, model.growth).eps)


def test_epsilon_shrinks_as_the_gradients_do():
    base, ones = grad_sizes(32, 2)
    large, eps = grad_sizes(128, 8)
    assert set(ones.values()) == {1.0} and len(set(eps.values())) == 2
    for name in base:
        if 'scale_E' not in name:  # gains that all heads share add up more with the width
            assert 0.3 < large[name] / base[name] / eps[name] < 4, name


# --- the forward pass -------------------------------------------------------------------------

TOKENS = np.arange(2 * 8).reshape(2, 8) % small.ROWS
PLACES, ONES = np.tile(np.arange(8), (2, 1)), np.ones((2, 8), int)


def logits_of(growth, tie=True):
    model = Vlm(replace(small.language(2), tie=tie), small.VISION, growth=growth)
    params = init_params(model.clone(growth=BASE), 0, ('language',))
    return model, params, small.quick(model.apply)({'params': params}, TOKENS, PLACES, ONES)


@pytest.mark.parametrize('tie', [True, False])
def test_logits_are_divided_by_the_width_and_branches_by_the_depth(tie):
    _, params, base = logits_of(BASE, tie)
    np.testing.assert_allclose(logits_of(Growth(width=4.0, depth=1.0), tie)[2], base / 4, rtol=1e-5)
    model, _, deep = logits_of(Growth(width=1.0, depth=2.0), tie)
    halved = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf / 2 if path[-1].key in ('o_HED', 'down_FD') else leaf, params)
    expected = small.quick(model.clone(growth=BASE).apply)({'params': halved}, TOKENS, PLACES, ONES)
    np.testing.assert_allclose(deep, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(deep - base).max() > 0.1


def test_embeddings_and_what_the_head_reads_have_multipliers_of_their_own():
    _, params, base = logits_of(BASE, False)
    found = logits_of(Growth(width=2.0, input=8.0, head=8.0), False)[2]
    params['language']['embedding_VD'] = 8 * params['language']['embedding_VD']
    model = Vlm(replace(small.language(2), tie=False), small.VISION)
    louder = small.quick(model.apply)({'params': params}, TOKENS, PLACES, ONES)
    np.testing.assert_allclose(found, 4 * louder, rtol=1e-4, atol=1e-5)
    assert np.abs(louder - base).max() > 0.1
    assert Parametrisation(input=8.0, output=4.0).growth(FULL) == Growth(input=8.0, head=4.0)
    assert Parametrisation(
        kind='mup', base_width=FULL.D, base_depth=1, input=8.0, output=4.0
    ).growth(FULL) == Growth(width=1.0, depth=FULL.N, input=8.0, head=4.0)
    with pytest.raises(ValueError, match='input = 0.0 must be above 0'):
        Parametrisation(input=0)


def test_decoding_knows_the_multipliers():
    model, params, logits = logits_of(replace(GROWN, input=8.0, head=3.0))
    layers = jax.device_put(forward.unstack(params, 'float32'))

    @small.quick
    def read(tokens):
        x, _ = forward.read(model, layers, forward.embed(model, layers, tokens), edges(8))
        return forward.logits(model, layers, x)
    np.testing.assert_allclose(read(TOKENS), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_mesh_with_micro_batches_trains_the_same_model():
    model = small.model().clone(growth=GROWN)
    batch, found = next(small.batches('text', tiles=0)), []
    for optimizer, devices in ((Optimizer(), mesh(devices=jax.devices()[:1])),
                               (Optimizer(accumulate=2), mesh(1, 4))):
        with jax.set_mesh(devices):
            state = new_state(init_params(model, 0, ('language',)), optimizer, ('language',))
            step = compiled_step(model, 'tokens', optimizer, ('language',), devices)
            state, metrics = step(state, batch, {'language': jnp.float32(1e-2)})
            found.append(jax.device_get((state['opt_state'], metrics['loss'])))
    for one, two in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4 * max(np.abs(one).max(), 1e-9))


# --- the coordinate check ---------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize('axis, sizes', [('width', (32, 256)), ('depth', (2, 16))])
def test_activations_change_alike_under_mup_and_not_otherwise(axis, sizes):
    for kind in ('mup', 'standard'):
        found, _ = coordinate_check.slopes(kind, axis, sizes, seeds=(0,))
        assert coordinate_check.faults(kind, axis, found) == []
        assert coordinate_check.faults({'mup': 'standard', 'standard': 'mup'}[kind], axis, found)


def test_the_coordinate_check_can_fail():
    assert coordinate_check.slope((32, 64, 128), (1.0, 2.0, 4.0)) == pytest.approx(1)
    flat = {'attention': 0.0, 'mlp': 0.1, 'stream': -0.1, 'share': 0.0, 'logits': -0.4}
    assert coordinate_check.faults('mup', 'width', flat) == []
    assert len(coordinate_check.faults('standard', 'width', flat)) == 2
    assert len(coordinate_check.faults('standard', 'depth', flat)) == 2
    for name, value in (('mlp', 0.2), ('mlp', -0.2), ('logits', 0.2), ('stream', -0.2)):
        assert len(coordinate_check.faults('mup', 'width', flat | {name: value})) == 1
    level = flat | {'logits': 0.0, 'stream': -0.4}
    assert coordinate_check.faults('mup', 'depth', level) == []
    assert len(coordinate_check.faults('mup', 'depth', level | {'share': -0.2})) == 1


# --- the experiment ---------------------------------------------------------------------------

def cell(**change):
    return from_dict(Experiment, plain() | {'imports': {}, 'parametrisation': {}} | change)


def test_a_cell_knows_its_base_and_keeps_it_in_its_file(tmp_path):
    found = cell(parametrisation=MUP)
    language = found.language
    assert model_of(found).growth == Growth(width=language.D / 32, depth=language.N / 1)
    assert model_of(found, 'tower').growth == BASE and model_of(cell()).growth == BASE
    config.save(found, tmp_path)
    assert config.load(tmp_path) == found
    at_base = cell(parametrisation=MUP | {'base_width': language.D, 'base_depth': language.N})
    # The same frozen model is the same program, and starts from the same values.
    assert model_of(at_base) == model_of(cell()) and hash(model_of(at_base)) == hash(
        model_of(cell())
    )
    assert len({found.hash, at_base.hash, cell().hash}) == 3


def test_cells_from_before_there_was_a_choice_keep_their_hash():
    before = plain() | {'imports': {}}
    before.pop('parametrisation', None)
    assert from_dict(Experiment, before).hash == cell().hash
    assert 'parametrisation' in dataclasses.asdict(cell())


@pytest.mark.parametrize('change, message', [
    ({'kind': 'ntk'}, "unknown kind of parametrisation 'ntk'; known are standard, mup"),
    ({'base_width': 0}, 'base_width 0 and base_depth 1 must say at which size'),
    ({'base_width': 33}, r'width 33: H \(query heads\) = .* is not whole'),
])
def test_a_base_that_cannot_be_is_refused_before_any_work(change, message):
    with pytest.raises(ValueError, match=message):
        cell(parametrisation=MUP | change)


def test_mup_is_refused_for_imported_models_and_at_export(tmp_path):
    with pytest.raises(ValueError, match="not for imports of .'language'.; leave it out"):
        cell(parametrisation=MUP, imports={'language': 'x', 'tower': 'y'})
    cell(parametrisation=MUP, imports={'tower': 'y'})
    config.save(cell(parametrisation=MUP), tmp_path)
    with pytest.raises(ValueError, match='parametrisation mup multiplies branches and logits'):
        exchange.export_model(tmp_path, tmp_path / 'out', 'qwen3')


def test_the_role_of_a_leaf_does_not_depend_on_its_place_in_the_group():
    key = jax.tree_util.DictKey
    assert role_of((key('language'), key('up_DF'))) == 'hidden'
    assert math.isclose(multipliers({'language': {'up_DF': 0}}, GROWN).rate['language']['up_DF'],
                        1 / 4)

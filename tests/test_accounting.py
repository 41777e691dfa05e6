"""The hand counts against published models, the parameter trees and the compiled program."""
import math
import random
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from downscale import accounting
from downscale.generate import forward
from downscale.model.cache import edges, empty_cache
from downscale.model.init import abstract_params, init_params
from downscale.model.vlm import Vlm
from downscale.sizes import LANGUAGE, MICRO, QWEN2, QWEN3, SIGLIP, SMOLLM2, VisionConfig, scale

SO400M = SIGLIP['so400m-patch14-384']
PUBLISHED = [
    (QWEN3['0.6b'], 596_049_920), (QWEN3['1.7b'], 1_720_574_976), (QWEN3['4b'], 4_022_468_096),
    (QWEN3['8b'], 8_190_735_360), (QWEN2['0.5b'], 494_032_768), (SMOLLM2['135m'], 134_515_008),
    (SMOLLM2['360m'], 361_821_120), (SMOLLM2['1.7b'], 1_711_376_384)]
ROWS = [(f'{family}-{name}', row) for family, table in LANGUAGE.items()
        for name, row in table.items()]
SMALL = scale(MICRO['w64d3'], 32, 2, vocabulary=96)
TINY_TOWER = VisionConfig(layers=2, W=24, H=3, F=40, patch=4, image=12)
# The compiled program may only differ by products so small that XLA turns them into reductions.
BAND = 0.001


def tree_size(language, vision, parts):
    """The parameters of the named groups, counted on the abstract tree."""
    tree = abstract_params(Vlm(language, vision), parts)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(('row', 'count'), PUBLISHED)
def test_the_published_counts_come_out_exactly(row, count):
    assert accounting.totals(row)['n_total'] == count
    assert tree_size(row, SO400M, ('language',)) == count


@pytest.mark.parametrize(('size', 'millions'),
                         [('0.6b', 2.23), ('1.7b', 6.56), ('4b', 9.51), ('8b', 21.5)])
def test_the_published_connector_sizes_come_out(size, millions):
    assert accounting.parameters(QWEN3[size], SO400M)['connector'] == pytest.approx(
        millions * 1e6, rel=2e-3)


def test_the_published_vision_and_whole_model_sizes_come_out():
    assert accounting.parameters(QWEN3['0.6b'], SO400M)['tower'] == pytest.approx(397.7e6, rel=2e-4)
    wholes = [accounting.totals(QWEN3[size], SO400M)['n_total'] / 1e6 for size in QWEN3]
    assert wholes == pytest.approx([996.0, 2125, 4430, 8610], rel=5e-4)
    nonembed = [accounting.totals(QWEN3[size])['n_nonembed'] / 1e6 for size in QWEN3]
    assert nonembed == pytest.approx([440.5, 1409.4, 3633.5, 6946.1], abs=0.05)


@pytest.mark.parametrize('row', [row for _, row in ROWS], ids=[name for name, _ in ROWS])
def test_every_row_counts_what_its_tree_holds(row):
    for vision in (SO400M, TINY_TOWER):
        parts = accounting.parameters(row, vision)
        language = parts['embedding'] + parts['decoder'] + parts['head']
        assert tree_size(row, vision, ('language',)) == language
        assert tree_size(row, vision, ('tower',)) == parts['tower']
        assert tree_size(row, vision, ('connector',)) == parts['connector']
        assert tree_size(row, vision, ('image_newline_D',)) == parts['newline']
        assert sum(parts.values()) == accounting.totals(row, vision)['n_total']


def test_random_points_of_the_width_by_depth_grid_count_what_their_trees_hold():
    draw = random.Random(0)
    bases = [MICRO['w64d3'], QWEN3['8b'], QWEN2['0.5b'], SMOLLM2['360m']]
    for _ in range(12):
        base = draw.choice(bases)
        step = base.D // math.gcd(base.H, base.K, base.F, base.D)
        point = scale(base, step * draw.randint(1, 6), draw.randint(1, 9), draw.randint(50, 900))
        assert accounting.totals(point)['n_total'] == tree_size(point, SO400M, ('language',))


def test_the_groups_of_a_stage_partition_the_model():
    row, everything = QWEN3['0.6b'], accounting.totals(QWEN3['0.6b'], SO400M)
    each = {group: accounting.trainable(row, SO400M, (group,))
            for group in accounting.GROUPS}
    assert sum(each.values()) == everything['n_total'] == accounting.trainable(row, SO400M)
    assert each['language'] == 596_049_920 + row.D
    assert each['connector'] + each['tower'] == everything['n_vision']
    assert accounting.trainable(row, SO400M, ()) == 0
    for wrong in (('towers',), 'tower'):
        with pytest.raises(ValueError, match='groups'):
            accounting.trainable(row, SO400M, wrong)


def test_an_untied_head_counts_once_among_the_active_parameters():
    tied, untied = QWEN3['4b'], QWEN3['8b']
    assert accounting.totals(tied)['n_active'] == accounting.totals(tied)['n_total']
    counts = accounting.totals(untied)
    assert counts['n_total'] - counts['n_active'] == untied.V * untied.D


def test_cache_bytes_per_token_are_the_published_ones():
    assert accounting.kv_bytes(QWEN3['0.6b']) == accounting.kv_bytes(QWEN3['1.7b']) == 114_688
    assert accounting.kv_bytes(QWEN3['4b']) == accounting.kv_bytes(QWEN3['8b']) == 147_456
    for size, dtype in ((4, 'float32'), (2, 'bfloat16')):
        cache = jax.eval_shape(lambda dtype=dtype: empty_cache(SMALL, 3, edges(150), dtype))
        held = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
        assert held == 3 * 192 * accounting.kv_bytes(SMALL, size)


# What follows compiles a real step and counts the matrix products in it.

def dims(text):
    return [int(d) for d in text.split(',') if d]


def dot_flops(hlo):
    """Matrix-product FLOPs of an optimised HLO text, loop bodies times their trip counts."""
    bodies, entry, name = {}, None, None
    for line in hlo.splitlines():
        head = re.match(r'(ENTRY )?%([\w.-]+) .*\{$', line)
        if head:
            name = head[2]
            entry = name if head[1] else entry
        bodies.setdefault(name, []).append(line)
    shapes = {body: dict(re.findall(r'%([\w.-]+) = \w+\[([\d,]*)\]', '\n'.join(lines)))
              for body, lines in bodies.items()}

    def flops(body):
        total = 0
        for line in bodies[body]:
            dot = re.search(r' = \w+\[([\d,]*)\]\S* dot\((?:\S+ )?%([\w.-]+),', line)
            if dot:
                left = dims(shapes[body][dot[2]])
                summed = dims(re.search(r'lhs_contracting_dims=\{([\d,]*)\}', line)[1])
                total += 2 * math.prod(dims(dot[1])) * math.prod(left[d] for d in summed)
            assert 'custom-call' not in line or 'matmul' not in line, line
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            assert trips or ' while(' not in line, 'a loop without a trip count'
            for called in re.findall(r'(?:calls|to_apply|body)=%([\w.-]+)', line):
                total += (int(trips[1]) if trips else 1) * flops(called)
        return total
    return flops(entry)


def compiled(lowered):
    """The optimised HLO; machine code, which nobody runs, is made without LLVM's optimisation."""
    return lowered.compile(compiler_options={'xla_backend_optimization_level': 0}).as_text()


def compiled_step(language, groups, B=2, L=20, I=2, images=True, remat='none', unroll=1):
    """The optimised HLO of value_and_grad of the mean cross-entropy, only `groups` trained."""
    model = Vlm(language, TINY_TOWER, remat=remat, unroll=unroll)
    parts = ('language', 'tower', 'connector', 'image_newline_D') if images else ('language',)
    params = abstract_params(model, parts)
    trained = {name for name in params if name in groups
               or (name == 'image_newline_D' and 'language' in groups)}
    tokens = jax.ShapeDtypeStruct((B, L), jnp.int32)
    tiles = jax.ShapeDtypeStruct((B, I, TINY_TOWER.P, TINY_TOWER.Q), jnp.float32)
    index = jax.ShapeDtypeStruct((B, L, 1), jnp.int32)
    tiles, index = (tiles, index) if images else (None, None)

    def loss(free, frozen, tokens_BL, positions_BL, tiles_BIPQ, image_index_BLC):
        logits_BLV = model.apply({'params': free | frozen}, tokens_BL, positions_BL,
                                    jnp.ones_like(tokens_BL), tiles_BIPQ, image_index_BLC)
        picked = jnp.take_along_axis(logits_BLV, tokens_BL[:, :, None], axis=2)[:, :, 0]
        return jnp.mean(jax.nn.logsumexp(logits_BLV, axis=-1) - picked)

    free = {name: leaf for name, leaf in params.items() if name in trained}
    frozen = {name: leaf for name, leaf in params.items() if name not in trained}
    step = jax.jit(jax.value_and_grad(loss))
    return compiled(step.lower(free, frozen, tokens, tokens, tiles, index))


# One unrolled program, in which nothing is a loop; the scanned ones compile in half the time.
STEPS = {
    'tower frozen, unrolled': (('connector', 'language'), {'unroll': 8}),
    'text only': (('language',), {'images': False}),
    'all trained, untied': (accounting.GROUPS, {'untied': True}),
    'align': (('connector',), {}),
    'tower alone': (('tower',), {}),
    'all trained, remat': (accounting.GROUPS, {'remat': 'full'}),
    'align, remat': (('connector',), {'remat': 'full'}),
}


@pytest.mark.parametrize(('groups', 'how'), STEPS.values(), ids=STEPS.keys())
def test_train_flops_are_those_of_the_compiled_step(groups, how):
    how = dict(how)
    language = replace(SMALL, tie=not how.pop('untied', False))
    counted = dot_flops(compiled_step(language, groups, **how))
    images = how.get('images', True)
    formula = accounting.train_flops(
        language, TINY_TOWER, rows=2, length=20, tiles=4 if images else 0, groups=groups,
        remat=how.get('remat', 'none') == 'full')
    assert counted == pytest.approx(formula['total'], rel=BAND), (counted, formula)


def test_forward_prefill_and_decode_flops_are_those_of_the_compiled_program():
    model = Vlm(SMALL, TINY_TOWER)
    params = abstract_params(model, ('language',))
    layers = forward.unstack(init_params(model, 0, ('language',)), model.dtype)
    block, column = jax.ShapeDtypeStruct((2, 20), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.int32)

    def count(function, *shapes):
        return dot_flops(compiled(jax.jit(function).lower(*shapes)))

    whole = count(lambda p, t: model.apply({'params': p}, t, t, t), params, block)
    expected = accounting.forward_flops(SMALL, rows=2, length=20)
    assert whole == pytest.approx(expected['total'], rel=BAND)
    assert expected['total'] == expected['language'] + expected['head']

    def read(layers, tokens_BL, last_B):
        x_BLD, kept = forward.read(model, layers, forward.embed(model, layers, tokens_BL), (20,))
        x_B1D = jnp.take_along_axis(x_BLD, last_B[:, None, None], axis=1)
        return forward.logits(model, layers, x_B1D), kept

    prefill = accounting.forward_flops(SMALL, rows=2, length=20, head_positions=2)
    assert count(read, layers, block, column) == pytest.approx(prefill['total'], rel=BAND)
    for ends in ((12,), (64, 128)):
        k, v = jax.eval_shape(lambda ends=ends: empty_cache(SMALL, 2, ends))
        decode = count(partial(forward.step, model), layers, column, column, k, v)
        assert decode == pytest.approx(2 * accounting.decode_flops(SMALL, ends[-1]), rel=BAND)


def test_the_price_of_long_sequences_is_the_6nd_rule_and_attention_on_top():
    row, tokens = QWEN3['4b'], 8 * 2048
    priced = accounting.train_flops(row, rows=8, length=2048, groups=('language',))
    attention = 12 * row.N * row.H * row.E * 2048 * tokens
    rule = 6 * accounting.totals(row)['n_active'] * tokens
    assert priced['total'] - attention == pytest.approx(rule, rel=1e-3)
    assert priced['backward'] == 2 * priced['forward']


def test_remat_keeps_the_block_inputs_and_no_wider_array():
    rows, length = 3, 20
    hlo = {remat: compiled_step(SMALL, ('language',), B=rows, L=length, images=False,
                                remat=remat) for remat in ('none', 'full')}

    def stacked(text):
        found = re.findall(rf'f32\[({SMALL.N},{rows}(?:,\d+){{2,4}})\]', text)
        return {shape: 4 * math.prod(dims(shape)) for shape in found}
    kept = stacked(hlo['full'])
    assert set(kept) == {f'{SMALL.N},{rows},{length},{SMALL.D}'}
    assert sum(kept.values()) == 4 * SMALL.N * rows * length * SMALL.D
    assert sum(stacked(hlo['none']).values()) > 4 * sum(kept.values())

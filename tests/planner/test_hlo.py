"""Facts of compiled programs: against arithmetic, against `accounting.py`, against traps."""
import gzip
import os
import re
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest
from roots import DATA, ROOT

from downscale.planner import hlo

LAYERS, ROWS, WIDTH, HIDDEN = 3, 256, 256, 512


@pytest.fixture(scope='module')
def scanned():
    """The gradient of three scanned, rematerialised layers of two products, compiled for v5e:2x2.

    Each device has 256 rows and a quarter of the weights; width 256, hidden width 512, bfloat16.
    """
    return gzip.decompress((DATA / 'scanned_mlp_v5e_2x2.hlo.gz').read_bytes()).decode()


def test_a_loop_counts_as_often_as_it_runs(scanned):
    """Two products forward, one again, four backward: the last one's output needs no gradient."""
    product = 2 * ROWS * WIDTH * HIDDEN
    found = hlo.facts(scanned)
    assert found['flops'] == LAYERS * 7 * product
    assert found['endless_loops'] == 0 and found['uncosted_flops'] == 0
    once = re.sub(r'constant\(3\)', 'constant(1)', scanned)
    assert hlo.facts(once)['flops'] == found['flops'] / LAYERS


def test_a_collective_that_spans_several_fusions_counts_once(scanned):
    """Each weight is gathered twice a layer, and its gradient scattered once."""
    weight = 2 * WIDTH * HIDDEN
    found = hlo.facts(scanned)
    assert found['collectives']['all-gather'] == {'count': LAYERS * 4, 'bytes': LAYERS * 4 * weight}
    assert len(re.findall(r' all-gather\(', scanned)) > 6
    scattered = found['collectives']['reduce-scatter']
    assert scattered == {'count': LAYERS, 'bytes': LAYERS * 2 * weight}
    assert 'all-reduce' not in found['collectives'] and not found['largest_all_reduce']['bytes']
    assert found['wire_bytes'] == LAYERS * 6 * weight


def test_the_compilers_estimate_is_summed_over_loops(scanned):
    """More than what stands in the text, less than three times that."""
    text = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', scanned)))
    assert text < hlo.facts(scanned)['estimated_cycles'] < LAYERS * text


TEXT = '''HloModule plain, is_scheduled=true

%body (state: (s32[], f32[8,16], f32[16,16])) -> (s32[], f32[8,16], f32[16,16]) {
  %state = (s32[], f32[8,16], f32[16,16]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %kept = s32[]{:T(128)} copy(%i)
  %two = s32[] constant(2)
  %next = s32[] add(%kept, %two)
  %x = f32[8,16] get-tuple-element(%state), index=1
  %w = f32[16,16] get-tuple-element(%state), index=2
  %y = f32[8,16] dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %sum = f32[8,16] all-reduce(%y), channel_id=1, to_apply=%add, metadata={op_name="psum"}
  ROOT %out = (s32[], f32[8,16], f32[16,16]) tuple(%next, %sum, %w)
}

%condition (state: (s32[], f32[8,16], f32[16,16])) -> pred[] {
  %state = (s32[], f32[8,16], f32[16,16]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %most = s32[] constant(10)
  ROOT %less = pred[] compare(%i, %most), direction=LT
}

ENTRY %main (x: f32[8,16], w: f32[16,16]) -> f32[8,16] {
  %x = f32[8,16] parameter(0)
  %w = f32[16,16] parameter(1)
  %zero = s32[] constant(0)
  %kernel.7 = f32[8,16] custom-call(%x), custom_call_target="tpu_custom_call", attributes={kernel={
"metadata": "several lines",
}}, metadata={op_name="attention"}, backend_config={"estimated_cycles":"5"}
  %start = (s32[], f32[8,16], f32[16,16]) tuple(%zero, %kernel.7, %w)
  %loop = (s32[], f32[8,16], f32[16,16]) while(%start), condition=%condition, body=%body
  ROOT %end = f32[8,16] get-tuple-element(%loop), index=1
}
'''


def test_a_loop_that_steps_by_two_runs_half_as_often():
    found = hlo.facts(TEXT)
    assert found['flops'] == 5 * 2 * 8 * 16 * 16
    assert hlo.facts(TEXT.replace('constant(10)', 'constant(9)'))['flops'] == found['flops']
    assert hlo.facts(TEXT.replace('constant(2)', 'constant(1)'))['flops'] == 2 * found['flops']


def test_an_all_reduce_moves_twice_what_it_holds_and_the_largest_is_named():
    found = hlo.facts(TEXT)
    assert found['collectives'] == {'all-reduce': {'count': 5, 'bytes': 5 * 8 * 16 * 4}}
    assert found['wire_bytes'] == 2 * 5 * 8 * 16 * 4
    assert found['largest_all_reduce'] == {'bytes': 8 * 16 * 4, 'times': 5, 'operation': 'psum'}


def test_lines_of_a_kernels_metadata_hide_nothing_behind_them():
    found = hlo.facts(TEXT)
    assert found['kernels'] == {'kernel': 1} and found['estimated_cycles'] == 5
    assert list(hlo.parse(TEXT).computations['main']) == [
        'x', 'w', 'zero', 'kernel.7', 'start', 'loop', 'end']


def test_what_runs_on_a_sparse_core_ends_where_it_says_so():
    marked = TEXT.replace('\n}\n', '\n}, execution_thread="sparsecore"\n', 1)
    assert marked != TEXT
    assert hlo.parse(marked).computations.keys() == hlo.parse(TEXT).computations.keys()
    assert hlo.facts(marked) == hlo.facts(TEXT)


def test_a_loop_whose_end_depends_on_data_counts_once():
    """Its condition holds a constant all the same: the room of a cache, which is no trip count."""
    text = TEXT.replace('  ROOT %less', '  %less').replace(
        'direction=LT\n', 'direction=LT\n  %go = pred[] constant(true)\n'
        '  ROOT %both = pred[] and(%less, %go)\n', 1)
    text = text.replace('%next = s32[] add(%kept, %two)',
                        '%next = s32[] add(%kept, %two), backend_config={"estimated_cycles":"70"}')
    found = hlo.facts(text)
    assert (found['endless_loops'], found['flops']) == (1, 2 * 8 * 16 * 16)
    assert (found['estimated_cycles'], found['endless_cycles']) == (75, 70)
    assert hlo.facts(TEXT)['endless_cycles'] == 0


def test_a_reduction_that_is_fused_with_its_slice_is_a_reduce_scatter():
    text = '''HloModule fused
%all-reduce-scatter.3 (x: f32[64,8]) -> f32[16,8] {
  %x = f32[64,8] parameter(0)
  %sum = f32[64,8] all-reduce(%x), channel_id=4, to_apply=%add
  ROOT %own = f32[16,8] dynamic-slice(%sum), dynamic_slice_sizes={16,8}
}
ENTRY %main (x: f32[64,8]) -> f32[16,8] {
  %x = f32[64,8] parameter(0)
  ROOT %own = f32[16,8] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
}
'''
    found = hlo.facts(text)
    assert found['collectives'] == {'reduce-scatter': {'count': 1, 'bytes': 64 * 8 * 4}}
    assert found['largest_all_reduce']['bytes'] == 0


@pytest.mark.parametrize(('window', 'labels', 'shapes', 'flops'), [
    # Eight heads of which each output meets one tap: padding is no work.
    ('window={size=8 pad=7_7 rhs_reversal=1}, ', 'bf0_i0o->b0f',
     ('f32[50,8,128]', 'f32[50,32,1]', 'f32[32,8,128]'), 2 * 50 * 128 * 32 * 8),
    # A batched product: 5 x 4 batches written as dilated axes.
    ('window={size=5x4 stride=4x3 lhs_dilate=5x4}, ', '01bf_01io->01bf',
     ('f32[5,4,2,128]', 'f32[5,4,2,16]', 'f32[5,4,16,128]'), 2 * 5 * 4 * 2 * 16 * 128),
    ('', 'bf_io->bf', ('f32[6,9]', 'f32[6,7]', 'f32[7,9]'), 2 * 6 * 9 * 7),
    # A convolution over 6 positions with 3 taps, its two ends padded: 5 + 6 + 5 terms.
    ('window={size=3 pad=1_1}, ', 'b0f_0io->b0f',
     ('f32[2,6,4]', 'f32[2,6,5]', 'f32[3,5,4]'), 2 * 2 * 4 * 5 * 16),
])
def test_products_written_as_convolutions_count_only_what_meets_a_value(window, labels, shapes,
                                                                       flops):
    out, left, right = shapes
    text = f'''HloModule one
ENTRY %main (a: {left}, b: {right}) -> {out} {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %c = {out} convolution(%a, %b), {window}dim_labels={labels}
}}
'''
    assert hlo.facts(text)['flops'] == flops


def test_a_collective_counts_its_larger_side_however_it_is_written():
    def one(op, given, result):
        return hlo.facts(f'''HloModule one
ENTRY %main (x: {given}) -> {result} {{
  %x = {given} parameter(0)
  ROOT %y = {result} {op}(%x), channel_id=1
}}
''')['collectives']
    assert one('reduce-scatter', 'f32[64,8]', 'f32[16,8]')['reduce-scatter']['bytes'] == 2048
    assert one('all-gather', 'bf16[16,8]', 'bf16[64,8]')['all-gather']['bytes'] == 1024
    started = one('all-gather-start', 'bf16[16,8]', '(bf16[16,8], bf16[64,8])')
    assert started == {'all-gather': {'count': 1, 'bytes': 1024}}
    # What is converted on the way is moved as it arrives.
    assert one('all-reduce', 'f32[64,8]', 'bf16[64,8]')['all-reduce']['bytes'] == 1024


def test_a_text_without_entry_is_refused():
    with pytest.raises(ValueError, match='no ENTRY'):
        hlo.parse('module @jit_f {\n}\n')


def test_the_branch_with_most_work_counts():
    def branch(name, width):
        return f'''%{name} (x: f32[4,4]) -> f32[4,4] {{
  %x = f32[4,4] parameter(0)
  %w = f32[4,{width}] constant(0)
  %h = f32[4,{width}] dot(%x, %w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %y = f32[4,4] slice(%h)
}}
'''
    text = 'HloModule two\n' + branch('small', 4) + branch('large', 40) + '''
ENTRY %main (p: s32[], x: f32[4,4]) -> f32[4,4] {
  %p = s32[] parameter(0)
  %x = f32[4,4] parameter(1)
  ROOT %y = f32[4,4] conditional(%p, %x, %x), branch_computations={%small, %large}
}
'''
    assert hlo.facts(text)['flops'] == 2 * 4 * 4 * 40


def test_cpu_programs_are_counted_too():
    """So that the counts can be tied to arithmetic wherever JAX runs."""
    def loss(w_NDF, x_BD):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_BD, w_NDF)[0].sum()
    shapes = (jax.ShapeDtypeStruct((5, 48, 48), jnp.float32),
              jax.ShapeDtypeStruct((40, 48), jnp.float32))
    text = jax.jit(jax.grad(loss)).lower(*shapes).compile().as_text()
    assert hlo.facts(text)['flops'] == pytest.approx(5 * 3 * 2 * 40 * 48 * 48, rel=0.001)


@pytest.mark.skipif(find_spec('libtpu') is None, reason="no TPU compiler: pip install '.[tpu]'")
def test_a_tpu_program_has_the_flops_of_the_formula():
    """In a process of its own: libtpu is not unloaded, and reads its environment once."""
    import subprocess
    import sys

    from downscale.planner.pool import ENVIRONMENT
    code = '''
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from downscale.planner import hlo
device = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices[0]
where = SingleDeviceSharding(device)
x = jax.ShapeDtypeStruct((64, 256), jnp.bfloat16, sharding=where)
w = jax.ShapeDtypeStruct((256, 384), jnp.bfloat16, sharding=where)
print(hlo.facts(jax.jit(lambda x, w: x @ w).lower(x, w).compile().as_text())['flops'])
'''
    done = subprocess.run([sys.executable, '-c', code], env={**os.environ, **ENVIRONMENT},
                          cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert done.stdout.split()[-1] == str(2 * 64 * 256 * 384), done.stderr[-300:]

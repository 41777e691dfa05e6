"""Plans: what is compiled, once and no more; what fits; what is said when something does not."""
import dataclasses
import importlib.metadata
import json
import subprocess
import time
from importlib.util import find_spec
from types import SimpleNamespace

import fake_plan
import pytest
from fake_compiler import rule
from fake_plan import TOWER, cell, stage

from downscale import accounting
from downscale.config import Evaluation, MeshSize, Optimizer
from downscale.data.buckets import Shape
from downscale.planner import bounds, hardware, nearest, pool, table
from downscale.planner.formulas import formula
from downscale.planner.plan import row
from downscale.planner.programs import ProgramRequest, Use, Wish, uses
from downscale.planner.topologies import topology
from downscale.runtime.progress import progress_bars
from downscale.sizes import MICRO

TPU_COMPILER = find_spec('libtpu') is not None


@pytest.fixture
def planned(tmp_path, monkeypatch):
    return fake_plan.planner(tmp_path, monkeypatch)


# --- what is compiled -------------------------------------------------------------------------

def test_seeds_and_like_stages_share_programs(planned):
    stages = stage('instruct'), stage('extract', steps=7)
    plan, compiled = planned([cell(seed, stages=stages) for seed in range(3)], only=('train',))
    assert len(plan['cells']) == 6 and compiled == ['train 64 1024']
    plan, compiled = planned([cell(0), cell(1), cell(0, 'w32d2')], only=('decode',))
    assert len(plan['cells']) == 6 and len(compiled) == 4


def test_a_repeated_plan_compiles_nothing_and_says_the_same(planned):
    first, compiled = planned([cell()])
    assert compiled == ['decode 8 2048', 'decode 8 512', 'prefill 1 2048', 'prefix 1 2048',
                        'see 1 0', 'train 64 1024']
    again, compiled = planned([cell()])
    assert compiled == [] and again == first
    _, compiled = planned([cell()], only=('train',), seq=512)
    assert compiled == ['train 64 512']


def test_whatever_decides_a_program_is_in_its_key(monkeypatch):
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '1')
    place = topology('v5e:4x4')

    def key(**change):
        return pool.key_of(uses([cell(**change)], place, Wish(only=('train',)))[0].request)
    same = {key(), key(seed=4), key(stages=(stage(steps=9),)), key(evaluation=Evaluation(batch=3)),
            key(chat='chatml')}
    assert len(same) == 1
    other = [key(remat='none'), key(dtype='float32'), key(mesh=MeshSize(2, -1, 1)), key(unroll=2),
             key(optimizer=Optimizer(accumulate=2)), key(size='w64d3'),
             key(stages=(stage(tiles=4),))]
    assert len({*same, *other}) == 1 + len(other)
    monkeypatch.setattr(pool, 'source_hash', lambda: 'edited')
    assert key() not in same


@pytest.fixture
def clock(monkeypatch):
    """A clock of the pool that stands still until, of so many programs, only one still runs."""
    started, awaited = [], []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)

    def seconds():
        running = [process for process in started if process.poll() is None]
        return 1000.0 if len(started) in awaited and len(running) == 1 else 0.0
    monkeypatch.setattr(pool, 'time', SimpleNamespace(monotonic=seconds, sleep=time.sleep))
    monkeypatch.setattr(pool, 'subprocess', SimpleNamespace(
        Popen=Recorded, DEVNULL=subprocess.DEVNULL))
    return awaited


def test_a_program_that_takes_too_long_or_dies_is_one_line_and_the_plan_goes_on(planned, clock):
    clock += [3, 3 + 2]
    stages = stage('text', length=7, tiles=0), stage('instruct', length=8), stage('caption')
    plan, compiled = planned([cell(stages=stages)], only=('train',), limit=2.0)
    text, instruct, caption = plan['cells']
    assert text['error'] == 'not compiled within --limit 2 s'
    assert 'ended with code 9 (something broke)' in instruct['error']
    assert caption['fits'] and len(compiled) == 3
    # What failed is tried again, what is known is not.
    _, compiled = planned([cell(stages=stages)], only=('train',), limit=2.0)
    assert compiled == ['train 64 7', 'train 64 8']


def test_a_compiler_that_refuses_is_quoted(planned):
    plan, _ = planned([cell(stages=(stage(length=9),))], only=('train',))
    assert plan['cells'][0]['error'] == 'INTERNAL: no such thing'
    assert plan['cells'][0]['fits'] is None
    assert 'w64d2-s0/extract: INTERNAL: no such thing' in table.lines(plan)
    _, compiled = planned([cell(stages=(stage(length=9),))], only=('train',))
    assert compiled == ['train 64 9']


# --- what fits --------------------------------------------------------------------------------

def test_what_does_not_fit_says_by_how_much_and_what_would(planned):
    """8 rows a device of 3 GiB each; four micro-batches of two are the fewest that fit."""
    plan, compiled = planned([cell(stages=(stage(batch=128, length=3072),))], only=('train',),
                             propose=True)
    found = plan['cells'][0]
    assert (found['fits'], found['hbm_gib'], found['hbm_limit_gib']) == (False, 24, 15.75)
    near = found['proposal']
    assert near['fits'] and near['change'] == 'optimizer.accumulate=2'
    assert (near['rows'], near['per_chip_batch'], near['accumulate']) == (128, 4, 2)
    assert len(compiled) == 2
    said = next(line for line in table.lines(plan) if 'does not fit' in line)
    assert '24.00 of 15.75 GiB, 8.25 too many' in said and 'optimizer.accumulate=2' in said


def test_proposals_are_compiled_when_they_are_asked_for(planned):
    cells = [cell(stages=(stage(batch=128, length=3072),))]
    plan, compiled = planned(cells, only=('train',))
    assert compiled == ['train 128 3072'] and plan['cells'][0]['proposal'] is None
    said, = [line for line in table.lines(plan) if 'does not fit' in line]
    assert '24.00 of 15.75 GiB' in said and 'with --propose compiles what does' in said
    # What is known is not compiled again.
    plan, compiled = planned(cells, only=('train',), propose=True)
    assert len(compiled) == 1 and plan['cells'][0]['proposal']['fits']
    said, = [line for line in table.lines(plan) if 'does not fit' in line]
    assert '--propose' not in said and 'optimizer.accumulate=2' in said


def test_programs_without_any_fit_say_so_and_those_of_one_round_are_tried_together(planned):
    def refuse(request):
        if request.mesh != (1, 16, 1):
            raise ValueError('no other mesh')
    stages = stage(batch=16, length=20000), stage('caption', batch=64, length=8192)
    plan, compiled = planned([cell(stages=stages)], only=('train',), refuse=refuse,
                             propose=True)
    huge, large = plan['cells']
    assert huge['fits'] is False and huge['proposal'] is None
    assert large['proposal']['change'] == 'optimizer.accumulate=4' and len(compiled) == 3
    assert any('nothing smaller that was tried fits' in line for line in table.lines(plan))


def test_decoding_that_does_not_fit_is_proposed_fewer_rows(planned):
    plan, _ = planned([cell(evaluation=Evaluation(batch=100))], only=('decode',), text_only=True,
                      propose=True)
    near = plan['cells'][1]['proposal']
    assert near['change'] == f'{near["slots"]} rows' and 60 <= near['slots'] <= 78
    assert near['fits']


def test_what_sees_beside_too_large_a_cache_is_proposed_fewer_rows_and_not_compiled_again(
        monkeypatch):
    monkeypatch.setattr(pool, 'versions', lambda: {})  # of a compiler that is not asked here
    gib = 2 ** 30
    for kind in ('see', 'prefix'):
        use, = [use for use in uses([cell()], topology('v5e:4x4'), Wish(only=('prefill',)))
                if use.request.kind == kind]
        use = dataclasses.replace(use, beside=8 * gib, beside_slot=2 * gib)
        fewer = nearest.smaller(use, 8 + 2 * use.request.slots, 15.75, lambda request: True)
        assert nearest.change(use.request, fewer) == '3 rows'
        assert pool.key_of(fewer) == pool.key_of(use.request)
        heavy = dataclasses.replace(use, beside=13 * gib)
        split = nearest.smaller(heavy, 29.0, 15.75, lambda request: True)
        assert nearest.change(use.request, split) == 'mesh data=1 x fsdp=1 x tensor=2'


def request(**change):
    found = uses([cell()], topology('v5e:4x4'), Wish(only=('train',)))[0].request
    value = {**found.cell, **change.pop('cell', {})}
    return dataclasses.replace(found, cell=value, **change)


def changes(asked, used=40.0, divides=lambda request: True):
    return nearest.change(asked, smaller(asked, used, divides))


def smaller(asked, used, divides):
    return nearest.smaller(Use(name='cell/train', request=asked, steps=None), used, 15.75, divides)


def test_the_least_change_comes_first():
    assert changes(request(cell={'remat': 'dots'})) == 'remat=full'
    assert changes(request()) == 'optimizer.accumulate=4'
    assert changes(request(), used=20.0) == 'optimizer.accumulate=2'
    alone = request(rows=16)
    assert changes(dataclasses.replace(alone, mesh=(4, 4, 1))) == 'mesh data=2 x fsdp=8 x tensor=1'
    # Where no width can be split further the heads are, and the global batch stays.
    split = smaller(alone, None, lambda request: request.mesh[2] < 4)
    assert (split.mesh, split.rows, split.accumulate) == ((1, 8, 2), 16, 2)
    assert smaller(alone, None, lambda request: False) is None


def test_what_an_engine_holds_beside_a_program_counts(planned):
    """Prefill does not take the tower, decoding at 512 tokens not the cache behind them."""
    plan, _ = planned([cell()], only=('prefill', 'decode'))
    found = {(part['kind'], part['length']): part['hbm_gib'] for part in plan['cells']}
    parts = accounting.parameters(MICRO['w64d2'], TOWER)
    seeing = 2 * (parts['tower'] + parts['connector'] + parts['newline'])
    cached = 8 * accounting.kv_bytes(MICRO['w64d2'])
    gib = 2 ** 30
    assert found['prefill', 2048] - 1.6 == pytest.approx(seeing / gib, rel=1e-6)
    assert found['decode', 2048] - 1.6 == pytest.approx(seeing / gib, rel=1e-6)
    assert found['decode', 512] - 1.6 == pytest.approx((seeing + 1536 * cached) / gib, rel=1e-6)
    text = 2 * (sum(parts.values())) - seeing
    assert found['see', 0] - 1.6 == pytest.approx(
        (text + 2 * parts['newline'] + 2048 * cached) / gib, rel=1e-6)


# --- figures ----------------------------------------------------------------------------------

def test_a_step_takes_between_its_slowest_part_and_all_parts(planned):
    """197 GFLOP, 819 MB and 400 MB at the peaks of v5e are one millisecond each."""
    plan, _ = planned([cell()], only=('train',))
    found = plan['cells'][0]
    assert found['step_s'] == pytest.approx((1.002e-3, 3.002e-3), rel=2e-3)
    assert found['chip_hours'] == pytest.approx([100 * end * 16 / 3600 for end in found['step_s']])
    assert found['usd'] == pytest.approx([1.2 * hours for hours in found['chip_hours']])
    assert found['usd_spot'] == pytest.approx([0.24 * found['chip_hours'][0],
                                               0.60 * found['chip_hours'][1]])
    assert plan['prices_as_of'] in table.lines(plan)[-1]


def test_decoding_is_told_by_the_step(planned):
    plan, _ = planned([cell()], only=('decode',))
    assert [(found['estimated_cycles'], found['cycles_once']) for found in plan['cells']] == [
        (3, 2), (3, 2)]
    assert any('more once for every 32 steps' in line for line in table.lines(plan))


def test_each_shape_of_a_stage_is_a_program_and_the_total_lies_between_them(planned):
    both = stage(batch=32, length=2048)
    both = dataclasses.replace(both, buckets=(Shape(64, 512, 2),))
    plan, compiled = planned([cell(stages=(both,))], only=('train',))
    assert compiled == ['train 32 2048', 'train 64 512']
    small, large = plan['cells']
    small['chip_hours'], large['chip_hours'] = (1.0, 2.0), (10.0, 30.0)
    total = next(line for line in table.lines(plan) if line.startswith('all stages'))
    assert '1-30 chip-hours' in total
    assert len(planned([cell(stages=(both,))], only=('train',), seq=512)[0]['cells']) == 1


def test_what_is_updated_in_place_is_not_written_again_by_serving():
    facts = {'memory_bytes': {'argument': 8, 'output': 5, 'alias': 4, 'temp': 0}, 'wire_bytes': 0}
    chip = dataclasses.replace(hardware.chip('v5e'), hbm_bandwidth=1.0)
    assert bounds.interval(facts, 0, chip, serving=True)['memory_s'] == 9
    assert bounds.interval(facts, 0, chip, serving=False)['memory_s'] == 13


def test_the_formula_is_that_of_accounting_and_attention_is_a_part_of_it():
    train = uses([cell()], topology('v5e:4x4'), Wish(only=('train',)))[0].request
    whole = formula(train)
    expected = accounting.train_flops(MICRO['w64d2'], TOWER, rows=64, length=1024, tiles=64 * 3,
                                      remat=True)
    assert whole['total'] == expected['total']
    assert whole['model'] == expected['total'] - expected['recompute']
    c = MICRO['w64d2']
    # Forward, twice backward, and once again.
    assert whole['attention'] == 4 * 64 * 1024 ** 2 * c.N * 4 * c.H * c.E
    decode = uses([cell()], topology('v5e:4x4'), Wish(only=('decode',)))[-1].request
    step = formula(decode)
    assert step['model'] == 8 * accounting.decode_flops(c, 2048)
    # Each query meets both key heads of the flat cache, one of them with zeros.
    assert c.K == 2 and step['total'] == step['model'] + step['attention']


def test_flops_of_a_kernel_are_added_by_formula_and_said(monkeypatch):
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '1')
    use = uses([cell()], topology('v5e:4x4'), Wish(only=('train',)))[0]
    priced = formula(use.request)
    facts = rule(json.loads(json.dumps(dataclasses.asdict(use.request))))
    facts['flops'] = (priced['total'] - priced['attention']) // 16
    assert row(use, facts)['flops_agree'] is False
    found = row(use, {**facts, 'kernels': {'splash': 2}})
    assert found['flops_agree'] and found['flops_compiled'] == found['flops_formula']
    lines = table.lines({'cells': [found], 'proposed': False, 'method': '', 'prices_as_of': ''})
    assert any('run in kernels (splash) and are counted by formula' in line for line in lines)


def test_rows_have_what_is_promised_of_them(planned):
    plan, _ = planned([cell()])
    promised = {'name', 'topology', 'chips', 'hbm_gib', 'hbm_limit_gib', 'fits', 'compile_s',
                'estimated_cycles', 'flops_formula', 'flops_compiled', 'collective_bytes',
                'chip_hours', 'usd', 'mesh', 'parameters', 'tokens_per_step', 'mfu_bound'}
    assert all(promised <= set(found) for found in plan['cells'])
    assert json.loads(json.dumps(plan)) == json.loads(json.dumps(plan, sort_keys=True))


def test_text_only_and_per_chip_batch_narrow_what_is_asked():
    cells = [cell(stages=(stage('align'), stage()), optimizer=Optimizer(accumulate=2))]
    found = uses(cells, topology('v5e:4x4'), Wish(text_only=True, per_chip_batch=3, seq=256))
    assert {part.request.kind for part in found} == {'train', 'prefill', 'decode'}
    train = [part.request for part in found if part.request.kind == 'train']
    assert all((r.rows, r.length, r.tiles) == (96, 256, 0) for r in train)
    assert train[0].stage['trainable'] == ('language',) and train[0].cell['vision'] is None
    assert [part.request.rows for part in found if part.request.kind == 'decode'] == [3, 3]


# --- the real compiler ------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.skipif(not TPU_COMPILER, reason="no TPU compiler: pip install '.[tpu]'")
def test_compiled_programs_have_the_flops_of_the_formula(tmp_path):
    """Train, prefill and decode of a small model; a step costs what is live, not what there is.

    There is no formula for the tower stage, but a program.
    """
    small = cell(stages=(stage('tower', 8, 48, 1), stage('align', 8, 256),
                         stage('extract', 8, 256)))
    place = topology('v5e:2x2')
    wanted = [*uses([small], place, Wish(only=('train',))),
              *uses([small], place, Wish(only=('prefill', 'decode'), seq=256))]
    with progress_bars(quiet=True) as bars:
        facts = pool.Pool(tmp_path, 2, 300.0, bars).facts(
            [(use.name, use.request) for use in wanted])
    rows = [row(use, facts[pool.key_of(use.request)]) for use in wanted]
    assert [found['error'] for found in rows] == [None] * 8
    assert [found['flops_agree'] for found in rows] == [None] + [True] * 7
    assert all(found['fits'] for found in rows)
    short, full = rows[-2:]
    assert short['length'] < full['length'] and short['slots'] == full['slots']
    assert short['flops_compiled'] < full['flops_compiled']
    assert short['estimated_cycles'] < full['estimated_cycles']


@pytest.mark.slow
@pytest.mark.skipif(not TPU_COMPILER, reason="no TPU compiler: pip install '.[tpu]'")
def test_two_and_four_slices_compile_and_count_what_moves_within_one(tmp_path):
    """As many rows a chip: memory stays. Gradients that cross slices are no collectives to hlo."""
    rows = {}
    for slices in (1, 2, 4):
        small = cell(mesh=MeshSize(slices, -1, 1), stages=(stage('extract', 16 * slices, 256, 1),))
        use, = uses([small], topology(f'{slices}xv5e:2x4'), Wish(only=('train',)))
        with progress_bars(quiet=True) as bars:
            facts = pool.Pool(tmp_path, 2, 900.0, bars).facts([(use.name, use.request)])
        rows[slices] = row(use, facts[pool.key_of(use.request)])
    one, two, four = rows.values()
    assert [found['error'] for found in rows.values()] == [None] * 3
    assert all(found['fits'] and found['flops_agree'] for found in rows.values())
    assert two['chips'] == 16 and four['chips'] == 32
    assert one['flops_compiled'] == two['flops_compiled'] == four['flops_compiled']
    assert two['collective_bytes'] == four['collective_bytes']
    assert two['hbm_gib'] == pytest.approx(four['hbm_gib'], rel=0.01)
    for kind, count in one['collective_bytes'].items():
        assert two['collective_bytes'][kind] == pytest.approx(count, rel=0.01), kind


def test_a_use_and_a_request_say_nothing_of_a_cell_that_its_program_does_not_need():
    found = {field.name for kind in (Use, ProgramRequest) for field in dataclasses.fields(kind)}
    assert not {'seed', 'data', 'world', 'rates'} & found
    request = uses([cell()], topology('v5e:4x4'), Wish(only=('train',)))[0].request
    assert not {'seed', 'name', 'world', 'data', 'evaluation', 'stages'} & set(request.cell)


def test_the_benchmark_gates_exact_figures_and_never_the_estimate():
    from benchmarks.compiled_programs import GATED, compared
    before = {'step': dict.fromkeys((*GATED, 'estimated_cycles'), 100)}

    def grown(**change):
        return compared(before, {'step': {**before['step'], **change}, 'new': before['step']})[1]
    assert grown() == [] and grown(flops=105) == [] and grown(estimated_cycles=900) == []
    assert [grown(**{key: 106}) for key in GATED] == [[f'step {key}'] for key in GATED]
    assert compared({'step': dict.fromkeys(before['step'], 0)}, before)[1] == [
        f'step {key}' for key in GATED]
    # Only decode has bytes that a step moves.
    train = {key: value for key, value in before['step'].items() if key != 'moved_bytes'}
    lines, found = compared({'step': train}, {'step': train})
    assert not found and not any('moved' in line for line in lines)


def test_a_plan_knows_every_file_that_a_worker_imports():
    found = {path.relative_to(pool.PACKAGE).as_posix() for path in pool.sources()}
    assert {'planner/worker.py', 'mup.py', 'data/tiling.py', 'model/layers.py', 'sharding.py',
            'planner/hardware.json'} <= found
    assert not any(name.startswith(('analysis/', 'evaluate/')) for name in found)


def test_an_added_import_is_seen(tmp_path):
    package = tmp_path / 'small'
    (package / 'planner').mkdir(parents=True)
    files = {'__init__.py': '', 'planner/__init__.py': '', 'planner/worker.py': 'import os\n',
             'letters.py': 'x = 1\n', 'sizes.py': 'def f():\n    from small import letters\n'}
    for name, text in files.items():
        (package / name).write_text(text)

    def names():
        return [path.name for path in pool.sources(package, 'small.planner.worker')]
    assert names() == ['worker.py']
    (package / 'planner' / 'worker.py').write_text('from small.sizes import f\n')
    assert set(names()) == {'__init__.py', 'worker.py', 'letters.py', 'sizes.py'}

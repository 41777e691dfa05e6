"""What a plan says of a stage with a teacher: its program, its FLOPs, its memory."""
import dataclasses
import importlib.metadata
from importlib.util import find_spec

import jax
import pytest
from fake_plan import RATES, TOWER, cell, stage

from downscale import accounting
from downscale.config import Optimizer
from downscale.planner import nearest, pool
from downscale.planner.cells import experiment_of, teacher_of
from downscale.planner.formulas import formula, teacher_bytes
from downscale.planner.plan import row
from downscale.planner.programs import Wish, uses
from downscale.planner.topologies import topology
from downscale.runtime.progress import progress_bars
from downscale.sharding import mesh
from downscale.sizes import MICRO
from downscale.stages.teachers import shapes_of

TRAIN = Wish(only=('train',))


def pair(distil=1.0, reference='/w64d4-s0/extract', batch=64, length=1024, **teacher):
    """A cell that a larger one teaches, and that larger one."""
    own = stage(batch=batch, length=length)
    taught = dataclasses.replace(own, teacher=reference, distil=distil)
    return [cell(stages=(taught,)), cell(size='w64d4', stages=(own,), **teacher)]


def requests(place='v5e:4x4', wish=TRAIN, **made):
    return [use.request for use in uses(pair(**made), topology(place), wish)]


def test_a_program_without_a_teacher_is_asked_for_as_before(monkeypatch):
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '1')
    taught, plain = requests()
    assert set(plain.stage) == {'name', 'trainable'}
    keys = {pool.key_of(request) for request in (
        taught, requests(distil=.5)[0], requests(distil=0.0)[0])}
    assert len(keys) == 1  # a share is a number of the program, and not another one
    others = [pool.key_of(request) for request in (
        plain, requests(dtype='float32')[0],
        uses([cell()], topology('v5e:4x4'), TRAIN)[0].request)]
    assert len({*keys, *others}) == 4


def test_the_formula_adds_what_the_teacher_reads():
    taught, _ = requests()
    alone = uses([cell()], topology('v5e:4x4'), TRAIN)[0].request
    reads = accounting.forward_flops(MICRO['w64d4'], TOWER, rows=64, length=1024, tiles=64 * 3)
    for name in ('total', 'model'):
        assert formula(taught)[name] - formula(alone)[name] == reads['total']
    c = MICRO['w64d4']
    assert formula(taught)['attention'] - formula(alone)['attention'] == \
        64 * 1024 ** 2 * c.N * 4 * c.H * c.E


def test_the_memory_of_a_teacher_is_that_of_the_dtype_in_which_it_computes():
    taught, plain = requests()
    assert teacher_bytes(plain) == 0
    assert teacher_bytes(taught) == 2 * sum(accounting.parameters(MICRO['w64d4'], TOWER).values())
    assert teacher_bytes(requests(dtype='float32')[0]) == 2 * teacher_bytes(taught)
    experiment = experiment_of(taught)
    model = teacher_of(experiment, taught, mesh(devices=jax.devices()[:1])).model
    leaves = jax.tree_util.tree_leaves_with_path(shapes_of(model, experiment.stages[0]))
    held = sum(leaf.size * leaf.dtype.itemsize for _, leaf in leaves)
    gains = sum(leaf.size for path, leaf in leaves if 'scale' in str(path[-1].key))
    assert held == teacher_bytes(taught) + 2 * gains
    text, = (use.request for use in uses(pair(), topology('v5e:4x4'), dataclasses.replace(
        TRAIN, text_only=True)) if use.name.startswith('w64d2'))
    assert teacher_bytes(text) == 2 * sum(accounting.parameters(MICRO['w64d4']).values())


def test_more_micro_batches_do_not_shrink_a_teacher():
    """Of 8 GiB beside the teacher 1.9 fit: an eighth of the batch at a time, not a half."""
    use = uses(pair(), topology('v5e:4x4'), TRAIN)[0]
    deep = dataclasses.asdict(dataclasses.replace(MICRO['w64d4'], N=10_000))
    teacher = use.request.stage['teacher']
    teacher = {**teacher, 'cell': {**teacher['cell'], 'language': deep}}
    request = dataclasses.replace(use.request, mesh=(1, 1, 1),
                                  stage={**use.request.stage, 'teacher': teacher})
    held = teacher_bytes(request) / 2 ** 30
    assert held > .5
    smaller = nearest.smaller(dataclasses.replace(use, request=request), held + 8, held + 1.9,
                              lambda request: True)
    assert smaller.accumulate == 8


def test_a_teacher_that_is_not_in_the_study_is_refused():
    with pytest.raises(ValueError, match="unknown teacher '/w64d3-s0/extract'; did you mean '"):
        requests(reference='/w64d3-s0/extract')


@pytest.mark.slow
@pytest.mark.skipif(find_spec('libtpu') is None, reason="no TPU compiler: pip install '.[tpu]'")
def test_the_compiled_program_has_these_flops_and_holds_the_teacher(tmp_path):
    cells = pair(batch=8, length=256)
    alone = cell(stages=(stage(batch=8, length=256),), optimizer=Optimizer())
    wanted = [*uses(cells, topology('v5e:2x2'), TRAIN)[:1],
              *uses([alone], topology('v5e:2x2'), TRAIN)]
    with progress_bars(quiet=True) as bars:
        facts = pool.Pool(tmp_path, 2, 300.0, bars).facts(
            [(use.name, use.request) for use in wanted])
    taught, plain = (row(use, facts[pool.key_of(use.request)]) for use in wanted)
    assert [taught['error'], plain['error']] == [None, None]
    assert taught['flops_agree'] and plain['flops_agree']
    arguments = [found['memory_bytes']['argument'] for found in (taught, plain)]
    # Arrays this narrow lie in tiles that they do not fill.
    share = teacher_bytes(wanted[0].request) / 4
    assert share < arguments[0] - arguments[1] < 4 * share
    assert set(RATES) == set(wanted[0].request.stage['trainable'])

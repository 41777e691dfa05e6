"""Lower and compile one program for TPUs that are not there, and write its facts: one process each.

`python -m downscale.planner.worker REQUEST.json FACTS.json`. A process holds libtpu and the memory
of one compilation, and may be killed when it takes too long. The TPU compiler runs on a CPU; the
topology is a description of devices that nobody has.
"""
import json
import os
import re
import sys
import threading
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from downscale import config
from downscale.data.images import corners
from downscale.generate import forward, programs, thinking
from downscale.generate.sampling import Sampling
from downscale.model.cache import edges, kept_axes
from downscale.model.init import abstract_params
from downscale.model.tower_words import abstract_word_params
from downscale.planner import hlo
from downscale.planner.programs import ProgramRequest
from downscale.planner.topologies import topology
from downscale.runtime.files import write_json
from downscale.sharding import batch_sharding, mesh, shardings, spec
from downscale.stage_table import STAGES
from downscale.stages.models import model_of
from downscale.train.state import abstract, new_state
from downscale.train.step import compiled_step
from downscale.values import from_dict

GIB = 2 ** 30
WRITTEN = 32  # tokens that one call of decode may write, as in `generate/engine.py`


def experiment_of(request):
    """Return the `Experiment` of a request, with one stage where one is trained."""
    stages = []
    sizes = dict(zip(('data', 'fsdp', 'tensor'), request.mesh))
    if request.stage is not None:
        groups = list(request.stage['trainable'])
        stages = [{'name': request.stage['name'], 'steps': 1, 'batch': request.rows,
                   'length': request.length, 'tiles': request.tiles, 'trainable': groups,
                   'rates': dict.fromkeys(groups, 1.0), 'parents': {}}]
    cell = {key: part for key, part in request.cell.items() if part is not None}
    return from_dict(config.Experiment, {
        **cell, 'name': 'cell', 'size': 'any', 'seed': 0, 'mesh': sizes, 'stages': stages,
        'language': request.cell['language'], 'vision': request.cell['vision']})


def params_of(model, request):
    """Return ShapeDtypeStructs of the parameters that a program holds."""
    if request.kind == 'train' and STAGES[request.stage['name']].loss == 'words':
        return abstract_word_params(model)
    newline = ['image_newline_D'] * model.newline
    parts = {'see': ['tower', 'connector'], 'prefix': ['language', *newline]}.get(
        request.kind, ['language', 'tower', 'connector', *newline] if request.tiles
        else ['language'])
    return abstract_params(model, tuple(parts))


def refuse(request):
    """Raise ValueError, with the arithmetic, where the mesh does not divide a parameter; nothing is
    compiled for it."""
    cell = experiment_of(request)
    model = model_of(cell, request.stage['name'] if request.stage else 'instruct')
    shardings(params_of(model, request), mesh(*request.mesh, devices=devices_of(request)),
              model.rules)


# --- lowering ---------------------------------------------------------------------------------

def devices_of(request):
    """Return the devices of a request; a program of fewer than a host's chips takes the first
    ones.
    """
    place = topology(request.topology)
    if request.devices != place.devices:
        place = place.least(request.devices)
    shape = f'{place.generation}:{place.shape}'
    options = {}
    if place.chips == 1:
        options['chips_per_host_bounds'] = [1, 1, 1]
    if place.slices > 1:
        options['num_slices'] = place.slices
    found = topologies.get_topology_desc(platform='tpu', topology_name=shape, **options).devices
    return found[:request.devices]


def lowered_train(cell, request, target, params):
    """Return the lowered train step of the cell's only stage, on the mesh `target`."""
    stage, = cell.stages
    model = model_of(cell, stage.name)
    groups = tuple(stage.trainable)
    state = jax.eval_shape(lambda: new_state(
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params), cell.optimizer,
        groups))
    state = abstract(state, shardings(state, target, model.rules))
    rates = {group: jax.ShapeDtypeStruct((), jnp.float32) for group in groups}
    batch = _batch(cell, stage, batch_sharding(target, model.rules))
    step = compiled_step(model, stage.kind.loss, cell.optimizer, groups, target)
    return step.lower(state, batch, rates)


def _batch(cell, stage, where):
    """Return the leaves that `data/pipeline.py` makes for a stage, as ShapeDtypeStructs."""
    B = stage.batch
    L = stage.length
    I = stage.tiles
    vision = cell.vision
    captioned = stage.kind.rows == 'captioned'
    leaves = {'tokens': ((B, L), 'int32'), 'segments': ((B, L), 'int32')}
    if not captioned:
        leaves |= {'positions': ((B, L), 'int32'), 'weights': ((B, L), 'float32')}
    if I:
        leaves['tiles'] = (B, *(() if captioned else (I,)), vision.P, vision.Q), 'uint8'
    if I and not captioned:
        C = corners(cell.layout(stage.name).pictures)
        leaves['image_index'] = (B, L, C), 'int32'
        if C > 1:
            leaves['image_weight'] = (B, L, C), 'float32'
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
            for name, (shape, dtype) in leaves.items()}


def lowered_served(cell, request, target, params):
    """Return the lowered program of the engine: see, prefix, prefill or decode."""
    model = model_of(cell).clone(kernels=True)
    rules = model.rules
    place = _Placing(target, rules)
    params = place.params(params, model.dtype)
    B = request.rows
    L = request.length
    ends = edges(max(L, 1))
    if request.kind in ('see', 'prefix'):
        shown = place.state(jax.eval_shape(lambda: programs.empty_shown(
            model=model, lanes=B, tiles=request.tiles, ends=ends)))
        new_B = place.rows((B,), bool)
        if request.kind == 'see':
            tiles_BPQ = place.rows((B, model.vision.P, model.vision.Q), 'uint8')
            args = params, shown, tiles_BPQ, place.whole((), 'int32'), new_B
            return programs.see.lower(*args, model=model)
        C = corners(cell.pictures)
        args = (params, shown, place.rows((B, ends[-1]), 'int32'),
                place.rows((B, ends[-1], C), 'int32'),
                place.rows((B, ends[-1], C), 'float32') if C > 1 else None,
                place.rows((B,), 'int32'), new_B)
        return programs.prefix.lower(*args, model=model)
    slots = place.state(jax.eval_shape(lambda: programs.empty_slots(
        model=model, rows=request.slots, ends=ends)))
    if request.kind == 'prefill':
        kinds = ('int32', 'int32', 'bool', 'uint32', 'int32', 'int32')
        rows = programs.Rows(place.rows((B, ends[-1]), 'int32'),
                             *(place.rows((B,), kind) for kind in kinds))
        args = params, slots, None, rows
        return programs.prefill.lower(*args, model=model, lanes=1, scored=0)
    V = (model.language.V,)
    heed = programs.DecodingRules(place.whole((), 'uint32'),
                                  *(place.whole(V, 'bool') for _ in range(3)),
                                  place.whole((), 'int32'))
    args = (params, slots, heed, place.rows((B,), 'bool'), place.whole((), 'int32'),
            place.whole((), 'int32'))
    return programs.decode.lower(*args, model=model, room=WRITTEN, sampling=Sampling(),
                                 mode=thinking.Thinking(0, 1, 2), thinks=True,
                                 forbids=False)


class _Placing:
    """ShapeDtypeStructs of what the engine passes to its programs, sharded as it shards them."""

    def __init__(self, target, rules):
        self.target = target
        self.table = rules.activations
        self.rules = rules

    def whole(self, shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype,
                                    sharding=NamedSharding(self.target, PartitionSpec()))

    def rows(self, shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.target, self.rules))

    def params(self, params, dtype):
        """Return what `forward.unstack` makes of them."""
        found = jax.eval_shape(partial(forward.unstack, dtype=dtype), params)
        return abstract(found, shardings(found, self.target, self.rules))

    def state(self, state):
        """Return `Slots` or `Shown`, placed as every program leaves them."""
        def by(letters):
            def one(leaf):
                axes = letters[:leaf.ndim]
                where = NamedSharding(self.target, spec(axes, self.table))
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
            return one
        rest = jax.tree.map(by('BIPD'), state._replace(k=(), v=()))
        k_axes, v_axes = kept_axes(True)
        return rest._replace(k=jax.tree.map(by(k_axes), state.k),
                             v=jax.tree.map(by(v_axes), state.v))


# --- compiling --------------------------------------------------------------------------------

def lowered(request):
    """Return the lowered program of a request."""
    cell = experiment_of(request)
    target = mesh(*request.mesh, devices=devices_of(request))
    # Shapes are found out before: on this mesh nothing can be computed, not even a zero.
    params = params_of(
        model_of(cell, request.stage['name'] if request.stage else 'instruct'), request
    )
    with jax.set_mesh(target):
        make = lowered_train if request.kind == 'train' else lowered_served
        return make(cell, request, target, params)


def compiled_facts(request):
    """Return the facts of a request: see `hlo.facts`, and memory, seconds and the cache's room.

    A program that needs more memory than a device has, as the compiler says it, has `fits` False,
    `hbm_gib` and `hbm_limit_gib`, and no other facts.
    """
    began = time.perf_counter()
    program = lowered(request)
    room = edges(max(request.length, 1))[-1] if request.kind != 'train' else request.length
    found = {'room': room, 'lower_s': time.perf_counter() - began}
    began = time.perf_counter()
    used = time.process_time()
    try:
        compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        found |= {**exhausted(str(error)), 'fits': False}
        compiled = None
    # Seconds of the clock, and of all cores: other work on the machine changes only the first.
    found |= {'compile_s': time.perf_counter() - began, 'cpu_s': time.process_time() - used}
    if compiled is None:
        return found
    memory = compiled.memory_analysis()
    bytes_by = {'argument': memory.argument_size_in_bytes, 'temp': memory.temp_size_in_bytes,
                'output': memory.output_size_in_bytes, 'alias': memory.alias_size_in_bytes}
    held = sum(bytes_by.values()) - 2 * bytes_by['alias']
    return {**found, **hlo.facts(compiled.as_text()), 'memory_bytes': bytes_by,
            'hbm_gib': held / GIB}


def exhausted(message):
    """Return {'hbm_gib', 'hbm_limit_gib'} that an out-of-memory message of the compiler tells.

    One form speaks of temporaries; it means all, arguments and outputs included (libtpu 0.0.42).
    """
    sizes = {'K': 2 ** -20, 'M': 2 ** -10, 'G': 1, 'T': 2 ** 10}
    number = r'([\d.]+)([KMGT])'
    found = re.search(rf'Used {number}\S* of {number}\S* hbm', message) or re.search(
        rf'temporaries \({number}\S*\) exceeds available HBM \({number}', message)
    if not found:
        return {'hbm_gib': None, 'hbm_limit_gib': None}
    used, unit, limit, limit_unit = found.groups()
    return {'hbm_gib': float(used) * sizes[unit], 'hbm_limit_gib': float(limit) * sizes[limit_unit]}


def _end_with_parent():
    """A worker left behind would hold the compiler and a core."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def main(argv):
    """Compile what the first file asks for; facts, or the reason of a failure, go to the second."""
    _end_with_parent()
    value = json.loads(Path(argv[0]).read_text())
    request = ProgramRequest(**{**value, 'mesh': tuple(value['mesh'])})
    try:
        found = compiled_facts(request)
    except Exception as error:  # any failure must reach the plan as one line
        text = str(error).strip().splitlines() or [type(error).__name__]
        found = {'error': text[0]}
    write_json(Path(argv[1]), found)


if __name__ == '__main__':
    main(sys.argv[1:])

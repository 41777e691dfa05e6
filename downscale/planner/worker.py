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
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from downscale import config
from downscale.data.tiling import corners
from downscale.generate import forward, programs, thinking
from downscale.generate.sampling import Sampling
from downscale.model.cache import edges
from downscale.planner import hlo, traffic
from downscale.planner.batches import batch_of
from downscale.planner.cells import experiment_of, model_of_request, params_of, teacher_of
from downscale.planner.programs import ProgramRequest
from downscale.planner.topologies import topology
from downscale.runtime.files import write_json
from downscale.sharding import batch_sharding, mesh, shardings, spec
from downscale.stages import attention, teachers
from downscale.stages.models import model_of
from downscale.train.state import abstract, new_state
from downscale.train.step import compiled_step

GIB = 2 ** 30
DRAWN = Sampling(temperature=.6, top_k=20, top_p=.95)  # of thoughts, as Qwen3's model card says
WRITTEN = 32  # tokens that one call of decode may write, as in `generate/engine.py`


def refuse(request: ProgramRequest) -> None:
    """Raise ValueError where the mesh does not divide a parameter, or attention cannot be as asked.

    Nothing is compiled for it.
    """
    cell = experiment_of(request)
    model = model_of_request(cell, request)
    target = mesh(*request.mesh, devices=devices_of(request))
    shardings(params_of(model, request), target, model.rules)
    teacher = teacher_of(cell, request, target)
    if teacher is not None:
        shardings(teachers.shapes_of(teacher.model, cell.stages[0]), target, model.rules)
    for stage in cell.stages:
        attention.choices(cell, stage, target)


# --- lowering ---------------------------------------------------------------------------------

def devices_of(request: ProgramRequest) -> Sequence[jax.Device]:
    """Return the devices of a request: the first ones, where it has fewer than a whole slice."""
    place = topology(request.topology)
    if request.devices != place.devices:
        place = place.least(request.devices)
    # The compiler takes one slice's shape and the number of slices apart.
    shape = f'{place.generation}:{place.shape}'
    options = {}
    if place.chips == 1:
        options['chips_per_host_bounds'] = [1, 1, 1]
    if place.slices > 1:
        options['num_slices'] = place.slices
    every = topologies.get_topology_desc(platform='tpu', topology_name=shape, **options).devices
    return every[:request.devices]


def lowered_train(cell: config.Experiment, request: ProgramRequest, target: Mesh,
                  params: Any) -> jax.stages.Lowered:
    """Return the lowered train step of the cell's only stage, on the mesh `target`."""
    stage, = cell.stages
    model = model_of_request(cell, request)
    groups = tuple(stage.trainable)
    teacher = teacher_of(cell, request, target)

    def first_state():
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
        return new_state(zeros, cell.optimizer, groups)
    # Only shapes are made: the zeros never exist.
    state = jax.eval_shape(first_state)
    state = abstract(state, shardings(state, target, model.rules))
    rates = {group: jax.ShapeDtypeStruct((), jnp.float32) for group in groups}
    batch = batch_of(cell, stage, batch_sharding(target, model.rules))
    # pyrefly: ignore[bad-argument-type]
    step = compiled_step(model, stage.kind.loss, cell.optimizer, groups, target,
                         tuple(attention.programs(cell, stage, target).items()), teacher)
    if teacher is None:
        return step.lower(state, batch, rates)
    taught = teachers.shapes_of(teacher.model, stage)
    return step.lower(state, batch, rates,
                      abstract(taught, shardings(taught, target, model.rules)))


def lowered_served(cell: config.Experiment, request: ProgramRequest, target: Mesh,
                   params: Any) -> jax.stages.Lowered:
    """Return the lowered program of the engine: see, prefix, prefill or decode."""
    model = model_of(cell).clone(attention='splash')  # the order of the cache on a TPU
    place = _Placing(target, model.rules)
    params = place.params(params, model.dtype)
    ends = edges(max(request.length, 1))
    if request.kind in ('see', 'prefix'):
        shown = place.state(jax.eval_shape(lambda: programs.empty_shown(
            model=model, lanes=request.rows, tiles=request.tiles, ends=ends)))
        if request.kind == 'see':
            return _lowered_see(model, request, place, params, shown)
        return _lowered_prefix(model, request, place, params, shown, corners(cell.pictures))
    slots = place.state(jax.eval_shape(lambda: programs.empty_slots(
        model=model, rows=request.slots, ends=ends)))
    if request.kind == 'prefill':
        return _lowered_prefill(model, request, place, params, slots)
    return _lowered_decode(model, request, place, params, slots)


def _lowered_see(model, request, place, params, shown):
    """Return the lowered program that turns tiles into features."""
    B = request.rows
    tiles_BPQ = place.rows((B, model.vision.P, model.vision.Q), 'uint8')
    return programs.see.lower(params, shown, tiles_BPQ, place.whole((), 'int32'),
                              place.rows((B,), bool), model=model)


def _lowered_prefix(model, request, place, params, shown, C):
    """Return the lowered program that reads the part of a prompt that has pictures."""
    B = request.rows
    L = edges(max(request.length, 1))[-1]
    tokens_BL = place.rows((B, L), 'int32')
    index_BLC = place.rows((B, L, C), 'int32')
    weight_BLC = place.rows((B, L, C), 'float32') if C > 1 else None
    length_B = place.rows((B,), 'int32')
    new_B = place.rows((B,), bool)
    return programs.prefix.lower(params, shown, tokens_BL, index_BLC, weight_BLC, length_B, new_B,
                                 model=model)


def _lowered_prefill(model, request, place, params, slots):
    """Return the lowered program that reads prompts, several rows at a time."""
    B = request.rows
    L = edges(max(request.length, 1))[-1]
    kinds = ('int32', 'int32', 'bool', 'uint32', 'int32', 'int32')
    rows = programs.Rows(place.rows((B, L), 'int32'), *(place.rows((B,), kind) for kind in kinds))
    return programs.prefill.lower(params, slots, None, rows, model=model, lanes=1, scored=0)


def _lowered_decode(model, request, place, params, slots):
    """Return the lowered program that writes up to `WRITTEN` tokens of every slot."""
    V = (model.language.V,)
    rules = programs.DecodingRules(place.whole((), 'uint32'),
                                   *(place.whole(V, 'bool') for _ in range(3)),
                                   place.whole((), 'int32'))
    number = place.whole((), 'int32')
    options = programs.DecodeOptions(
        room=WRITTEN, sampling=DRAWN if request.drawn else Sampling(), thinks=True, forbids=False,
        mode=thinking.Thinking(open=0, close=1, newline=2))
    return programs.decode.lower(params, slots, rules, place.rows((request.rows,), 'bool'), number,
                                 number, model=model, options=options)


class _Placing:
    """ShapeDtypeStructs of what the engine passes to its programs, sharded as it shards them."""

    def __init__(self, target, rules):
        self.target = target
        self.table = rules.activations
        self.rules = rules

    def whole(self, shape, dtype):
        """Return an array of which every device has all."""
        return jax.ShapeDtypeStruct(shape, dtype,
                                    sharding=NamedSharding(self.target, PartitionSpec()))

    def rows(self, shape, dtype):
        """Return an array whose first axis is split like the rows of a batch."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.target, self.rules))

    def params(self, params, dtype):
        """Return what `forward.unstack` makes of parameters."""
        unstacked = jax.eval_shape(partial(forward.unstack, dtype=dtype), params)
        return abstract(unstacked, shardings(unstacked, self.target, self.rules))

    def state(self, state):
        """Return `Slots` or `Shown`, placed as every program leaves them."""
        rest = self._placed(state._replace(k=(), v=()), 'BIPD')
        # Flat blocks, as on every TPU.
        return rest._replace(k=self._placed(state.k, 'BSK'), v=self._placed(state.v, 'BSK'))

    def _placed(self, tree, letters):
        """Return a tree of arrays whose axes are `letters`, or the first of them."""
        def place(leaf):
            where = NamedSharding(self.target, spec(letters[:leaf.ndim], self.table))
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        return jax.tree.map(place, tree)


# --- compiling --------------------------------------------------------------------------------

def lowered(request: ProgramRequest) -> jax.stages.Lowered:
    """Return the lowered program of a request."""
    cell = experiment_of(request)
    target = mesh(*request.mesh, devices=devices_of(request))
    # Shapes are worked out before: on this mesh nothing can be computed, not even a zero.
    params = params_of(model_of_request(cell, request), request)
    with jax.set_mesh(target):
        make = lowered_train if request.kind == 'train' else lowered_served
        return make(cell, request, target, params)


def compiled_facts(request: ProgramRequest) -> dict[str, Any]:
    """Return the facts of a request: see `hlo.facts`, and memory, seconds and the cache's room.

    Those of decode hold `moved_bytes` as well, which one step moves to and from HBM. A program that
    needs more memory than a device has, as the compiler says it, has `fits` False, `hbm_gib` and
    `hbm_limit_gib`, and no other facts.
    """
    began = time.perf_counter()
    program = lowered(request)
    room = edges(max(request.length, 1))[-1] if request.kind != 'train' else request.length
    facts = {'room': room, 'lower_s': time.perf_counter() - began}
    began = time.perf_counter()
    used = time.process_time()
    try:
        compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        facts |= {**exhausted(str(error)), 'fits': False}
        compiled = None
    # Seconds of the clock, and of all cores: other work on the machine changes only the first.
    facts |= {'compile_s': time.perf_counter() - began, 'cpu_s': time.process_time() - used}
    if compiled is None:
        return facts
    memory = compiled.memory_analysis()
    bytes_by = {'argument': memory.argument_size_in_bytes, 'temp': memory.temp_size_in_bytes,
                'output': memory.output_size_in_bytes, 'alias': memory.alias_size_in_bytes}
    # What is aliased is counted as an argument, as an output and as itself, and held once.
    together = sum(bytes_by.values()) - 2 * bytes_by['alias']
    text = compiled.as_text() or ''
    if request.kind == 'decode':
        facts['moved_bytes'] = traffic.moved(text, endless=True)
    return {**facts, **hlo.facts(text), 'memory_bytes': bytes_by, 'hbm_gib': together / GIB}


def exhausted(message: str) -> dict[str, float | None]:
    """Return {'hbm_gib', 'hbm_limit_gib'} as an out-of-memory message of the compiler says them.

    Both are None where the message has another form.
    """
    sizes = {'K': 2 ** -20, 'M': 2 ** -10, 'G': 1, 'T': 2 ** 10}
    number = r'([\d.]+)([KMGT])'
    # The second form speaks of temporaries, but counts arguments and outputs too (libtpu 0.0.42).
    match = re.search(rf'Used {number}\S* of {number}\S* hbm', message) or re.search(
        rf'temporaries \({number}\S*\) exceeds available HBM \({number}', message)
    if not match:
        return {'hbm_gib': None, 'hbm_limit_gib': None}
    used, unit, limit, limit_unit = match.groups()
    return {'hbm_gib': float(used) * sizes[unit], 'hbm_limit_gib': float(limit) * sizes[limit_unit]}


def _end_with_parent():
    """Start a thread that ends this process when its parent is gone.

    A worker left behind would hold the compiler and a core.
    """
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str]) -> None:
    """Compile the request in the first file; write its facts, or why it failed, to the second."""
    _end_with_parent()
    value = json.loads(Path(argv[0]).read_text())
    value['mesh'] = tuple(value['mesh'])  # a list in JSON
    request = ProgramRequest(**value)
    try:
        facts = compiled_facts(request)
    except Exception as error:  # any failure must reach the plan as one line
        text = str(error).strip().splitlines() or [type(error).__name__]
        facts = {'error': text[0]}
    write_json(Path(argv[1]), facts)


if __name__ == '__main__':
    main(sys.argv[1:])

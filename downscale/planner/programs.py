"""Which programs a study needs on a topology, as plain requests: equal requests are one program.

A request holds everything that decides a program and nothing else: seeds, data, rates and steps are
left out, and prefill and decode depend on the size of the models only.
"""
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from downscale.accounting import kv_bytes
from downscale.accounting import parameters as parts_of
from downscale.planner.formulas import parameters
from downscale.planner.topologies import Topology, topology
from downscale.stage_table import STAGES

if TYPE_CHECKING:
    from downscale.config import Experiment  # the help of `downscale plan` reads this module

KINDS = ('train', 'prefill', 'decode')
SERVED = 2048  # tokens that a row may hold when nothing else is asked for
READ = 256  # tokens that one prefill reads where as many are waiting (`generate/engine.py`)
# Fields of an Experiment that no program depends on.
_FREE = ('name', 'size', 'seed', 'world', 'data', 'stages', 'evaluation', 'imports', 'chat',
         'legacy_structural_loss', 'tokenizer', 'mesh', 'budget', 'label')


@dataclass(frozen=True, kw_only=True)
class ProgramRequest:
    """One program: `kind` is 'train', 'see', 'prefix', 'prefill' or 'decode'.

    `mesh` are the devices along data, fsdp and tensor. `rows` are those of all devices and
    `length` the tokens of a row: of a batch, of a prompt, or those that decoding attends to.
    `tiles` are image tiles of a row, `slots` the rows of the engine's cache. `cell` is an
    Experiment without what no program depends on, `stage` the trained groups and the stage whose
    layout holds (None where nothing is trained), with what decides the part of its `teacher`.
    `drawn` tokens are sampled, as Qwen3's recipe for thoughts does, others the likeliest.
    """
    kind: str
    topology: str
    mesh: tuple[int, int, int]
    rows: int
    length: int
    tiles: int
    cell: dict[str, Any]
    stage: dict[str, Any] | None = None
    slots: int = 0
    drawn: bool = False

    @property
    def devices(self) -> int:
        """JAX devices of the mesh."""
        return math.prod(self.mesh)

    @property
    def chips(self) -> float:
        """Chips of the mesh: half of one, where a chip shows two devices and one is used."""
        return self.devices / topology(self.topology).chip.devices

    @property
    def accumulate(self) -> int:
        """Micro-batches of a step."""
        return self.cell['optimizer']['accumulate'] if self.kind == 'train' else 1


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the command line narrows or changes; None leaves the cells as they are.

    `propose` asks for what does fit in place of what does not, a few more programs to compile.
    """
    only: tuple[str, ...] = KINDS
    per_chip_batch: int | None = None
    seq: int | None = None
    text_only: bool = False
    propose: bool = False

    def __post_init__(self):
        for option, value in (('per-chip-batch', self.per_chip_batch), ('seq', self.seq)):
            if value is not None and value < 1:
                raise ValueError(f'--{option} {value} must be at least 1')


@dataclass(frozen=True, kw_only=True)
class Use:
    """A program and what a cell does with it.

    `name` is cell/stage, `steps` how often it runs: None, as long as questions come. Of several
    shapes nobody knows the shares, so each is told as if all batches had it. An engine keeps the
    whole model and a cache for all its slots: `beside` are bytes of weights, and `beside_slot`
    bytes of cache for each slot, that it holds on all devices of the program while that runs.
    """
    name: str
    request: ProgramRequest
    steps: int | None
    beside: int = 0
    beside_slot: int = 0

    @property
    def beside_bytes(self) -> int:
        """Bytes on one device that the program itself does not take."""
        together = self.beside + self.beside_slot * self.request.slots
        return together // self.request.devices


def uses(cells: Sequence['Experiment'], place: Topology, wish: Wish) -> list[Use]:
    """Return every `Use` of every cell on `place`, trained programs before served ones.

    ValueError in one line, with the arithmetic, where a mesh or a batch does not divide.
    """
    from downscale.experiment import teachers  # the help of the command needs none
    programs = []
    for cell in cells:
        for stage in cell.stages if 'train' in wish.only and not cell.trained_as else ():
            teacher = teachers.find(cells, cell, stage) if stage.teacher else None
            programs += [Use(name=f'{cell.name}/{stage.name}', request=request,
                             steps=stage.steps - stage.first_step)
                         for request in _trained(cell, stage, teacher, place, wish)]
            if stage.kind.rows == 'written' and not (stage.tiles and wish.text_only):
                programs.append(_writing(cell, stage, place))
    # A tower cell trains the shared tower and answers nothing.
    for cell in cells:
        if cell.language is not None and not cell.is_shared:
            programs += _served(cell, place, wish)
    return programs


def _trained(cell, stage, teacher, place, wish):
    """Yield the train programs of one stage, one for each shape of its batches.

    `teacher` is (its cell, the name of its stage), None without one.
    """
    groups = tuple(stage.trainable)
    if not groups:  # nothing is trained
        return
    if wish.text_only:
        if 'language' not in groups:
            return
        groups = ('language',)
    where = f'{cell.name}/{stage.name} on {place.name}'
    mesh = _mesh(cell.mesh, place, where)
    # Buckets of one length would be one program.
    for shape in [stage.shape] if wish.seq else stage.shapes:
        rows = shape.batch
        if wish.per_chip_batch:
            rows = wish.per_chip_batch * place.chips * cell.optimizer.accumulate
        tiles = 0 if wish.text_only else shape.tiles
        _divides(rows, cell.optimizer.accumulate, mesh, where)
        yield ProgramRequest(
            kind='train',
            topology=place.name,
            mesh=mesh,
            rows=rows,
            length=wish.seq or shape.length,
            tiles=tiles,
            cell=_essence(cell, tiles),
            stage={'name': _layout(stage.name, tiles), 'trainable': groups,
                   **_taught(teacher, tiles)},
        )


def _writing(cell, stage, place):
    """Return the decode program with which a stage writes its own rows, beside its train state.

    Every device writes its share of a batch, each token a step of all of them.
    """
    policy = stage.policy
    ways = math.gcd(cell.mesh.tensor, place.devices // place.hosts)
    # Rows of different devices never meet, so each device is an engine of its own.
    lanes = place.devices // ways
    rows = math.ceil(stage.batch * policy.updates * policy.tries / lanes)
    request = ProgramRequest(kind='decode', topology=place.name, mesh=(1, 1, ways), rows=rows,
                             length=stage.length, tiles=0, cell=_essence(cell, 0), slots=rows)
    # Weights and two moments in float32, and the start where the distance from it counts.
    copies = 3 + policy.measures
    state = 4 * copies * sum(parts_of(cell.language, cell.vision if stage.tiles else None).values())
    return Use(name=f'{cell.name}/{stage.name} writes', request=request,
               steps=stage.steps // policy.updates * policy.write * lanes,
               beside=state * ways // place.devices)


def _taught(teacher, tiles):
    """Return what of a teacher decides the program of a stage, {} without one."""
    if teacher is None:
        return {}
    cell, name = teacher
    # Any share of the loss is one program.
    return {'teacher': {'cell': _essence(cell, tiles), 'stage': _layout(name, tiles)}}


def _layout(stage, tiles):
    """Return the stage whose layout of rows a stage has: stages of one layout share programs."""
    kind = STAGES.get(stage)  # a teacher may be a folder
    if kind is not None and kind.layout == 'flat':  # the sizes of its rows are its own
        return stage
    return 'instruct' if tiles else 'text'


def _served(cell, place, wish):
    """Return prefill and decode of one cell: on one device, or on as many as the heads are split
    over.

    Each host decodes for itself, and rows of different devices never meet, so the programs of one
    device are those of all.
    """
    ways = cell.mesh.tensor
    if place.devices % ways:
        raise ValueError(f'{cell.name} on {place.name}: tensor={ways} does not divide '
                         f'{place.devices} devices ({place.devices} % {ways} = '
                         f'{place.devices % ways})')
    length = wish.seq or SERVED
    sees = cell.vision is not None and not wish.text_only
    width = 2 if cell.dtype == 'bfloat16' else 4
    slot_bytes = kv_bytes(cell.language, width)
    whole = sum(parts_of(cell.language, cell.vision if sees else None).values())
    served = []
    for request in _served_requests(cell, place, wish, sees):
        # Prefill and decode take the cache of their slots themselves.
        cached = request.length if request.kind in ('prefill', 'decode') else 0
        served.append(Use(name=f'{cell.name}/{request.kind}', request=request, steps=None,
                          beside=width * (whole - parameters(request)),
                          beside_slot=slot_bytes * (length - cached)))
    return served


def _served_requests(cell, place, wish, sees):
    """Return the programs of the engine, in the order in which a question passes them."""
    # As `evaluate.run` splits heads: over the devices of one host alone.
    ways = math.gcd(cell.mesh.tensor, place.devices // place.hosts)
    length = wish.seq or SERVED
    rows = cell.evaluation.batch
    if wish.per_chip_batch:
        rows = max(1, wish.per_chip_batch * ways // place.chip.devices)
    text = ProgramRequest(kind='prefill', topology=place.name, mesh=(1, 1, ways),
                          rows=max(1, READ // length), length=length, tiles=0,
                          cell=_essence(cell, 0), slots=rows)
    requests = []
    if 'prefill' in wish.only and sees:
        image = replace(text, rows=1, cell=_essence(cell, 1))
        requests.append(replace(image, kind='see', length=0, tiles=1))
        requests.append(replace(image, kind='prefix', tiles=length // cell.vision.P + 1))
    if 'prefill' in wish.only:
        requests.append(text)
    if 'decode' in wish.only:
        # At two live lengths: what a step costs must follow what is live.
        requests += [replace(text, kind='decode', rows=rows, length=live)
                     for live in sorted({max(64, length // 4), length})]
    return requests


def _essence(cell, tiles):
    """Return the fields of a cell that decide its programs; a text-only program has no tower."""
    value = {key: part for key, part in dataclasses.asdict(cell).items() if key not in _FREE}
    return value if tiles else {**value, 'vision': None, 'pictures': None}


def _mesh(size, place, where):
    """Return (data, fsdp, tensor) of a `MeshSize` on `place`, with -1 replaced.

    ValueError, with the arithmetic, where the mesh has not as many devices as `place`.
    """
    sizes = [size.data, size.fsdp, size.tensor]
    count = place.devices
    # One -1 takes whatever devices the other axes leave.
    known = math.prod(part for part in sizes if part != -1)
    if sizes.count(-1) == 1 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if -1 in sizes or math.prod(sizes) != count:
        asked = f'data {size.data} x fsdp {size.fsdp} x tensor {size.tensor}'
        raise ValueError(f'{where}: mesh {asked} gives multiples of {known}, not its {count} '
                         f'devices; change it by --set mesh.fsdp=N (mesh.data, mesh.tensor)')
    # Between slices there is only the data-centre network: gradients may cross it, weights not.
    if sizes[0] % place.slices:
        raise ValueError(f'{where}: {place.slices} slices are joined by the data axis, but data '
                         f'{sizes[0]} % {place.slices} = {sizes[0] % place.slices}; --set '
                         f'mesh.data={place.slices}')
    return tuple(sizes)


def _divides(rows, accumulate, mesh, where):
    """Raise ValueError unless the rows divide into micro-batches, and those over the mesh."""
    ways = accumulate * mesh[0] * mesh[1]
    if rows % ways:
        nearest = max(1, round(rows / ways)) * ways
        raise ValueError(
            f'{where}: batch {rows} does not divide over {accumulate} micro-batches x data '
            f'{mesh[0]} x fsdp {mesh[1]} ({rows} % {ways} = {rows % ways}); the nearest is '
            f'{nearest}')

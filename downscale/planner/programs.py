"""Which programs a study needs on a topology, as plain requests: equal requests are one program.

A request holds everything that decides a program and nothing else: seeds, data, rates and steps are
left out, and prefill and decode depend on the size of the models only.
"""
import dataclasses
import math
from dataclasses import dataclass, replace

from downscale.accounting import decode_flops, forward_flops, kv_bytes, train_flops
from downscale.accounting import parameters as parts_of
from downscale.planner.topologies import topology
from downscale.sizes import LanguageConfig, VisionConfig
from downscale.stage_table import STAGES

KINDS = ('train', 'prefill', 'decode')
SERVED = 2048  # tokens that a row may hold when nothing else is asked for
READ = 256  # tokens that one prefill reads where as many are waiting (`generate/engine.py`)
# Fields of an Experiment that no program depends on.
_FREE = ('name', 'size', 'seed', 'world', 'data', 'stages', 'evaluation', 'imports', 'chat',
         'legacy_structural_loss', 'tokenizer', 'mesh', 'budget')


@dataclass(frozen=True, kw_only=True)
class ProgramRequest:
    """One program: `kind` is 'train', 'see', 'prefix', 'prefill' or 'decode'.

    `mesh` are the devices along data, fsdp and tensor. `rows` are those of all devices and
    `length` the tokens of a row: of a batch, of a prompt, or those that decoding attends to.
    `tiles` are image tiles of a row, `slots` the rows of the engine's cache. `cell` is an
    Experiment without what no program depends on, `stage` the trained groups and the stage whose
    layout holds (None where nothing is trained).
    """
    kind: str
    topology: str
    mesh: tuple[int, int, int]
    rows: int
    length: int
    tiles: int
    cell: dict
    stage: dict | None = None
    slots: int = 0

    @property
    def devices(self):
        return math.prod(self.mesh)

    @property
    def chips(self):
        return self.devices / topology(self.topology).chip.devices

    @property
    def accumulate(self):
        return self.cell['optimizer']['accumulate'] if self.kind == 'train' else 1


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the command line narrows or changes; None leaves the cells as they are."""
    only: tuple[str, ...] = KINDS
    per_chip_batch: int | None = None
    seq: int | None = None
    text_only: bool = False

    def __post_init__(self):
        for name in ('per_chip_batch', 'seq'):
            if vars(self)[name] is not None and vars(self)[name] < 1:
                raise ValueError(f'--{name.replace("_", "-")} {vars(self)[name]} must be at least '
                                 '1')


@dataclass(frozen=True, kw_only=True)
class Use:
    """A program and what a cell does with it: `name` is cell/stage, `steps` how often it runs
    (None: as long as questions come; of several shapes nobody knows the shares, so each is told
    as if all batches had it). An engine keeps the whole model and a cache for all its
    slots: `beside` are bytes of weights, and `beside_slot` bytes of cache for each slot, that it
    holds on all devices of the program while that runs.
    """
    name: str
    request: ProgramRequest
    steps: int | None
    beside: int = 0
    beside_slot: int = 0

    @property
    def beside_bytes(self):
        """Bytes on one device that the program itself does not take."""
        held = self.beside + self.beside_slot * self.request.slots
        return held // self.request.devices


def uses(cells, place, wish):
    """Return every `Use` of every cell on the `Topology` `place`, trained programs before served
    ones.

    ValueError in one line, with the arithmetic, where a mesh or a batch does not divide.
    """
    found = []
    for cell in cells:
        if 'train' in wish.only:
            for stage in cell.stages:
                found += [Use(name=f'{cell.name}/{stage.name}', request=request, steps=stage.steps)
                          for request in _trained(cell, stage, place, wish)]
    for cell in cells:
        if cell.language is not None and not cell.is_shared:
            found += _served(cell, place, wish)
    return found


def _trained(cell, stage, place, wish):
    """Yield the train programs of one stage, one for each shape of its batches."""
    groups = tuple(stage.trainable)
    if wish.text_only:
        if 'language' not in groups:
            return
        groups = ('language',)
    where = f'{cell.name}/{stage.name} on {place.name}'
    mesh = _mesh(cell.mesh, place, where)
    # Buckets of one length would be one program.
    for shape in [stage.shape] if wish.seq else stage.shapes:
        rows = shape.batch
        length = shape.length
        tiles = shape.tiles
        if wish.per_chip_batch:
            rows = wish.per_chip_batch * place.chips * cell.optimizer.accumulate
        tiles = 0 if wish.text_only else tiles
        _divides(rows, cell.optimizer.accumulate, mesh, where)
        name = 'instruct' if tiles else 'text'
        if stage.kind.layout == 'flat':  # the sizes of its rows are its own
            name = stage.name
        yield ProgramRequest(
            kind='train',
            topology=place.name,
            mesh=mesh,
            rows=rows,
            length=wish.seq or length,
            tiles=tiles,
            cell=_essence(cell, tiles),
            stage={'name': name, 'trainable': groups},
        )


def _served(cell, place, wish):
    """Return prefill and decode of one cell: on one device, or on as many as the heads are split
    over.

    Each host decodes for itself, and rows of different devices never meet, so the programs of one
    device are those of all. Decoding is planned at two live lengths: what a step costs must follow
    what is live.
    """
    ways = cell.mesh.tensor
    if place.devices % ways:
        raise ValueError(f'{cell.name} on {place.name}: tensor={ways} does not divide '
                         f'{place.devices} devices ({place.devices} % {ways} = '
                         f'{place.devices % ways})')
    mesh = (1, 1, ways)
    length = wish.seq or SERVED
    rows = cell.evaluation.batch
    if wish.per_chip_batch:
        rows = max(1, wish.per_chip_batch * ways // place.chip.devices)
    sees = cell.vision is not None and not wish.text_only
    text = _essence(cell, 0)
    found = []
    if 'prefill' in wish.only and sees:
        image = _essence(cell, 1)
        found += [
            ProgramRequest(
                kind='see',
                topology=place.name,
                mesh=mesh,
                rows=1,
                length=0,
                tiles=1,
                cell=image,
                slots=rows,
            ),
            ProgramRequest(
                kind='prefix',
                topology=place.name,
                mesh=mesh,
                rows=1,
                length=length,
                tiles=length // cell.vision.P + 1,
                cell=image,
                slots=rows,
            ),
        ]
    if 'prefill' in wish.only:
        found.append(
            ProgramRequest(
                kind='prefill',
                topology=place.name,
                mesh=mesh,
                rows=max(1, READ // length),
                length=length,
                tiles=0,
                cell=text,
                slots=rows,
            )
        )
    if 'decode' in wish.only:
        found += [
            ProgramRequest(
                kind='decode',
                topology=place.name,
                mesh=mesh,
                rows=rows,
                length=live,
                tiles=0,
                cell=text,
                slots=rows,
            )
            for live in sorted({max(64, length // 4), length})
        ]
    width = 2 if cell.dtype == 'bfloat16' else 4
    whole = sum(parts_of(cell.language, cell.vision if sees else None).values())
    cached = ('prefill', 'decode')  # these take the cache of their slots themselves
    return [
        Use(
            name=f'{cell.name}/{request.kind}',
            request=request,
            steps=None,
            beside=width * (whole - parameters(request)),
            beside_slot=kv_bytes(cell.language, width)
            * (length - (request.length if request.kind in cached else 0)),
        )
        for request in found
    ]


def _essence(cell, tiles):
    """Return the fields of a cell that decide its programs; a text-only program has no tower."""
    value = {key: part for key, part in dataclasses.asdict(cell).items() if key not in _FREE}
    return value if tiles else {**value, 'vision': None, 'pictures': None}


def _mesh(size, place, where):
    """Return (data, fsdp, tensor) of a `MeshSize` on `place`, -1 replaced; ValueError with
    arithmetic.
    """
    sizes = [size.data, size.fsdp, size.tensor]
    count = place.devices
    known = math.prod(part for part in sizes if part != -1)
    if sizes.count(-1) == 1 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if -1 in sizes or math.prod(sizes) != count:
        said = ' x '.join(f'{name} {part}' for name, part in zip(('data', 'fsdp', 'tensor'),
                          (size.data, size.fsdp, size.tensor)))
        raise ValueError(f'{where}: mesh {said} gives multiples of {known}, not its {count} '
                         f'devices; change it by --set mesh.fsdp=N (mesh.data, mesh.tensor)')
    if sizes[0] % place.slices:
        raise ValueError(f'{where}: {place.slices} slices are joined by the data axis, but data '
                         f'{sizes[0]} % {place.slices} = {sizes[0] % place.slices}; --set '
                         f'mesh.data={place.slices}')
    return tuple(sizes)


def _divides(rows, accumulate, mesh, where):
    """Raise ValueError when the rows do not divide into micro-batches and those over the data
    axes.
    """
    ways = accumulate * mesh[0] * mesh[1]
    if rows % ways:
        nearest = max(1, round(rows / ways)) * ways
        raise ValueError(
            f'{where}: batch {rows} does not divide over {accumulate} micro-batches x data '
            f'{mesh[0]} x fsdp {mesh[1]} ({rows} % {ways} = {rows % ways}); the nearest is '
            f'{nearest}')


# --- what the formulas say --------------------------------------------------------------------

def configs(request):
    """Return (LanguageConfig, VisionConfig or None) of a request."""
    language = request.cell['language']
    vision = request.cell['vision']
    return LanguageConfig(**language), vision and VisionConfig(**vision)


def formula(request):
    """Return {'total', 'model', 'attention'}: FLOPs of one step on all devices, by `accounting.py`.

    'model' leaves out what remat computes again, as MFU does; 'attention' are the scores and values
    of the decoder, which a Pallas kernel may compute. None where there is no formula: the tower
    stage scores words, and what a policy between 'none' and 'full' computes again is the compiler's
    affair.
    """
    language, vision = configs(request)
    rows = request.rows
    length = request.length
    if request.kind == 'train':
        if STAGES[request.stage['name']].loss == 'words':
            return None
        if request.cell['remat'] not in ('none', 'full'):
            return None
        return _train_formula(request, language, vision)
    if request.kind == 'decode':
        total = rows * decode_flops(language, length)
        attention = rows * 4 * language.N * language.H * language.E * length
    else:
        total = _read_flops(request, language, vision, rows, length)
        # Twice the rows of half the length do the same work but for half the attention.
        attention = 2 * (total - _read_flops(request, language, vision, 2 * rows, length / 2))
    return {'total': int(total), 'model': int(total), 'attention': int(attention)}


def _read_flops(request, language, vision, rows, length):
    """Return FLOPs of reading prompts: nothing needs more of the last block than its keys and
    values.
    """
    if request.kind == 'see':
        found = forward_flops(language, vision, rows=rows, length=0,
                                         tiles=request.tiles, head_positions=0)
        return found['tower'] + found['connector']
    blocks = forward_flops(replace(language, N=language.N - 1), rows=rows,
                                      length=length, head_positions=0)
    return blocks['language'] + 4 * rows * length * language.D * language.K * language.E


def _train_formula(request, language, vision):
    def price(rows, length):
        return train_flops(
            language, vision, rows=rows, length=length, tiles=request.rows * request.tiles,
            groups=request.stage['trainable'], remat=request.cell['remat'] == 'full',
            head_positions=request.rows * request.length)
    whole = price(request.rows, request.length)
    halves = price(2 * request.rows, request.length / 2)
    return {'total': whole['total'], 'model': whole['forward'] + whole['backward'],
            'attention': int(2 * (whole['total'] - halves['total']))}


def parameters(request):
    """Return parameters that the program holds: all of the model, or those of its part."""
    language, vision = configs(request)
    parts = parts_of(language, vision)
    if request.kind == 'see':
        return parts['tower'] + parts['connector']
    if request.kind in ('prefill', 'prefix', 'decode') or not request.tiles:
        return parts['embedding'] + parts['decoder'] + parts['head']
    return sum(parts.values())


def with_accumulation(request, micro):
    """Return `request` with `micro` micro-batches to a step: the global batch stays."""
    optimizer = {**request.cell['optimizer'], 'accumulate': micro}
    return replace(request, cell={**request.cell, 'optimizer': optimizer})

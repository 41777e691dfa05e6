"""What the formulas of `accounting.py` say of a program, before it is compiled."""
from dataclasses import replace
from typing import TYPE_CHECKING

from downscale.accounting import decode_flops, forward_flops, train_flops
from downscale.accounting import parameters as parts_of
from downscale.sizes import LanguageConfig, VisionConfig
from downscale.stage_table import STAGES

if TYPE_CHECKING:
    from downscale.planner.programs import ProgramRequest


def configs(request: 'ProgramRequest') -> tuple[LanguageConfig, VisionConfig | None]:
    """Return the sizes of a request's language model and, where it has one, of its tower."""
    return _sizes_of(request.cell)


def _sizes_of(cell):
    """Return (LanguageConfig, VisionConfig or None) of the essence of a cell."""
    language = cell['language']
    vision = cell['vision']
    return LanguageConfig(**language), vision and VisionConfig(**vision)


def teacher_sizes(request: 'ProgramRequest') -> tuple[LanguageConfig, VisionConfig | None] | None:
    """Return the sizes of the teacher of a train program; None without one."""
    teacher = (request.stage or {}).get('teacher')
    return teacher and _sizes_of(teacher['cell'])


def formula(request: 'ProgramRequest') -> dict[str, int] | None:
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
        return _train_formula(request)
    if request.kind == 'decode':
        model = rows * decode_flops(language, length)
        attention = rows * 4 * language.N * language.H * language.E * length
        # In a flat cache a query meets all key heads of its device, all but one with zeros.
        total = model + attention * (language.K // request.mesh[2] - 1)
    else:
        model = total = _read_flops(request, language, vision, rows, length)
        # Twice the rows of half the length do the same work but for half the attention.
        attention = 2 * (total - _read_flops(request, language, vision, 2 * rows, length / 2))
    return {'total': int(total), 'model': int(model), 'attention': int(attention)}


def _read_flops(request, language, vision, rows, length):
    """Return FLOPs of reading prompts, or, of 'see', of the tower and the connector."""
    if request.kind == 'see':
        flops = forward_flops(language, vision, rows=rows, length=0, tiles=request.tiles,
                              head_positions=0)
        return flops['tower'] + flops['connector']
    # Nothing needs more of the last block than its keys and values.
    blocks = forward_flops(replace(language, N=language.N - 1), rows=rows, length=length,
                           head_positions=0)
    return blocks['language'] + 4 * rows * length * language.D * language.K * language.E


def _train_formula(request):
    """Return the `formula` of one train step."""
    def price(rows, length):
        read = {'rows': rows, 'length': length, 'tiles': request.rows * request.tiles,
                'head_positions': request.rows * request.length}
        flops = train_flops(*configs(request), **read, groups=request.stage['trainable'],
                            remat=request.cell['remat'] == 'full')
        taught = 0
        if teacher_sizes(request):
            taught = forward_flops(*teacher_sizes(request), **read)['total']
        return flops['total'] + taught, flops['forward'] + flops['backward'] + taught
    # As in `formula`: twice the rows of half the length, for the share of attention.
    total, model = price(request.rows, request.length)
    halves, _ = price(2 * request.rows, request.length / 2)
    return {'total': total, 'model': model, 'attention': int(2 * (total - halves))}


def parameters(request: 'ProgramRequest') -> int:
    """Return parameters that the program holds: all of the model, or those of its part.

    Those of a teacher, which are frozen, are not counted.
    """
    language, vision = configs(request)
    parts = parts_of(language, vision)
    if request.kind == 'see':
        return parts['tower'] + parts['connector']
    if request.kind in ('prefill', 'prefix', 'decode') or not request.tiles:
        return parts['embedding'] + parts['decoder'] + parts['head']
    return sum(parts.values())


def teacher_bytes(request: 'ProgramRequest') -> int:
    """Return bytes of the frozen teacher that a train program holds, in the dtype it computes in.
    """
    sizes = teacher_sizes(request)
    if sizes is None:
        return 0
    width = 2 if request.stage['teacher']['cell']['dtype'] == 'bfloat16' else 4
    return width * sum(parts_of(*sizes).values())


def with_accumulation(request: 'ProgramRequest', micro: int) -> 'ProgramRequest':
    """Return `request` with `micro` micro-batches to a step: the global batch stays."""
    optimizer = {**request.cell['optimizer'], 'accumulate': micro}
    return replace(request, cell={**request.cell, 'optimizer': optimizer})

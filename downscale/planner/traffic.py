"""Bytes that an optimised HLO text of the TPU compiler moves to and from HBM.

The text says where every array lies: a layout with `S(1)` is on-chip memory, one without `S` is
HBM. So every instruction's operands and results in HBM are added up, as often as its loop runs, and
a copy into on-chip memory ahead of time counts where it is started. Of what is looked up or sliced
only the part that is taken counts, and of what is updated in place the update, read and written.
Bytes are those of values, without the padding of tiles. What a Pallas kernel reads again counts
once.
"""
import math
import re
from collections.abc import Sequence

from downscale.planner.hlo import trips
from downscale.planner.hlo_text import WIDTHS, Computation, Instruction, Module, dims, parse

_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')
# These name arrays again or wait for them; what they stand for is counted elsewhere.
_FREE = ('parameter', 'get-tuple-element', 'tuple', 'bitcast', 'constant', 'copy-done',
         'slice-done', 'async-done', 'after-all', 'optimization-barrier')
_TAKES = ('dynamic-slice', 'slice', 'gather', 'slice-start')
_RENAMES = ('bitcast', 'reshape', 'transpose', 'get-tuple-element')


def hbm_bytes(shape: str) -> list[int]:
    """Return the bytes in HBM of each array of a shape's text, 0 for one that lies elsewhere."""
    return [0 if re.search(r'S\(\d', layout or '') else WIDTHS.get(kind, 0) * math.prod(dims(text))
            for kind, text, layout in _ARRAY.findall(shape)]


def moved(text: str, endless: bool = False) -> int:
    """Return bytes that one device moves in one run; `endless`: in one pass of loops without end.

    A loop whose end depends on data, as that of decoding, counts once.
    """
    module = parse(text)
    total, loops = _walk(module, module.entry)
    return loops if endless else total


def _walk(module, name):
    """Return (bytes of one computation, those of them in loops whose end depends on data)."""
    table = module.computations[name]
    total = 0
    endless = 0
    for part in table.values():
        if part.op == 'while':
            count = trips(module, part)
            body, inner = _walk(module, part.attribute('body')[0])
            total += body * (count or 1)
            endless += body if count is None else inner * count
        elif part.op in ('call', 'async-start', 'conditional'):
            walked = [_walk(module, called) for called in _called(part)]
            total += max(bytes_ for bytes_, _ in walked)
            endless += max(inner for _, inner in walked)
        elif part.op not in _FREE and 'ConcatBitcast' not in part.rest:
            total += bytes_of_instruction(module, table, part)
    return total, endless


def _called(part):
    names = []
    for kind in ('branch_computations', 'true_computation', 'false_computation', 'to_apply',
                 'calls'):
        names += part.attribute(kind)
    return names


def bytes_of_instruction(module: Module, table: Computation, part: Instruction) -> int:
    """Return what an instruction of the computation `table` reads from HBM and writes there."""
    if part.op == 'copy-start':     # (destination, source, flag)
        return sum(hbm_bytes(part.shape)[:2])
    if part.op == 'slice-start':    # ((source), destination, flag)
        _, destination, *_ = _ARRAY.findall(part.shape)
        sliced = WIDTHS[destination[0]] * math.prod(dims(destination[1]))
        return sliced * sum(size > 0 for size in hbm_bytes(part.shape)[:2])
    read = sum(_read(module, table, part, place) for place in range(len(part.operands)))
    return read + sum(_written(module, table, part))


def _read(module, table, part, place):
    """Return bytes that `part` reads of its operand number `place`."""
    if part.operands[place] not in table:
        return 0
    whole = sum(hbm_bytes(table[part.operands[place]].shape))
    return min(whole, _touched(module, table, part, place, whole)) if whole else 0


def _touched(module, table, part, place, whole):
    """Return bytes that `part` takes of operand `place`, an array of `whole` bytes."""
    if part.op in _TAKES and place == 0:
        return _size(part.shape)
    if part.op == 'dynamic-update-slice' and place == 0:
        return _size(table[part.operands[1]].shape)
    if part.op == 'scatter' and place == 0:
        return _size(table[part.operands[2]].shape)
    if part.op != 'fusion':
        return whole
    inner = module.computations[part.attribute('calls')[0]]
    parameter = next(row for row in inner.values()
                     if row.op == 'parameter' and row.operands == (str(place),))
    return _of_users(module, inner, parameter.name, whole)


def _of_users(module, table, name, whole):
    """Return bytes that the instructions of a fused computation take of `name`, together."""
    total = 0
    for user in table.values():
        for place, operand in enumerate(user.operands):
            if operand != name:
                continue
            if user.op in _RENAMES or _passes_on(module, user, place):
                total += _of_users(module, table, user.name, whole)
            elif user.op != 'tuple':
                total += _touched(module, table, user, place, whole)
    return min(total, whole)


def _passes_on(module, part, place):
    """Return whether a fusion inside another one does nothing but rename its operand `place`."""
    if part.op != 'fusion':
        return False
    inner = module.computations[part.attribute('calls')[0]]
    root = list(inner.values())[-1]
    while root.op in _RENAMES:
        root = inner[root.operands[0]]
    return root.op == 'parameter' and root.operands == (str(place),)


def _written(module, table, part):
    """Return bytes that `part` writes to each array of its result in HBM."""
    sizes = hbm_bytes(part.shape)
    if not any(sizes):
        return sizes
    if part.op != 'fusion':
        return [min(size, _update(table, part, size)) for size in sizes]
    inner = module.computations[part.attribute('calls')[0]]
    root = list(inner.values())[-1]
    results: Sequence[str] = root.operands if root.op == 'tuple' else (root.name,)
    if len(results) != len(sizes):
        return sizes
    return [min(size, _new(module, inner, inner[name], size))
            for size, name in zip(sizes, results)]


def _new(module, table, part, size):
    """Return how many of the `size` bytes of a fused result are new, not updated in place."""
    while part.op in _RENAMES:
        part = table[part.operands[0]]
    if part.op == 'parameter':
        return 0
    if part.op == 'fusion':
        inner = module.computations[part.attribute('calls')[0]]
        return _new(module, inner, list(inner.values())[-1], size)
    return _update(table, part, size)


def _update(table, part, size):
    place = {'dynamic-update-slice': 1, 'scatter': 2}.get(part.op)
    return size if place is None else _size(table[part.operands[place]].shape)


def _size(shape):
    """Return bytes of all arrays of a shape, wherever they lie."""
    return sum(WIDTHS.get(kind, 0) * math.prod(dims(text))
               for kind, text, _ in _ARRAY.findall(shape))

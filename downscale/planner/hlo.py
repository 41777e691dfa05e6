"""Facts of an optimised HLO text: matrix-product FLOPs, estimated cycles, collectives, kernels.

Everything is per device and counted as often as its loop runs. FLOPs, counts and bytes are exact;
the cycles are the TPU compiler's own estimate, uncalibrated, and leave out collectives and Pallas
kernels: they rank two programs on one topology and are no time. `Compiled.cost_analysis()` is not
used, because it counts the body of a loop once.
"""
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from downscale.planner.hlo_text import (
    Computation,
    Instruction,
    Module,
    bytes_of,
    dims,
    parse,
    sizes,
)

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')


# --- loops ------------------------------------------------------------------------------------

def trips(module: Module, loop: Instruction) -> int | None:
    """Return how often a `while` runs, or None where its end depends on data.

    The bound is a constant that the condition's root compares with the induction variable, the
    step the constant by which the body raises that: windowed products step by two.
    """
    # The compiler's own count, where it has left one in the text.
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition = module.computations[loop.attribute('condition')[0]]
    body = module.computations[loop.attribute('body')[0]]
    root, sides = _comparison(module, condition)
    if root.op != 'compare' or 'direction=LT' not in root.rest \
            or [side.op for side in sides] != ['get-tuple-element', 'constant']:
        return None
    variable, bound = sides
    step = _step(body, int(re.search(r'index=(\d+)', variable.rest)[1]))
    return step and -(-int(bound.operands[0]) // step)


def _comparison(module, condition):
    """Return (root of a loop's condition, the instructions that it compares)."""
    root = list(condition.values())[-1]
    if root.op != 'fusion':
        return root, [condition[name] for name in root.operands]
    # The compiler may fuse the comparison: its parameters stand for operands of the fusion.
    outer = [condition[name] for name in root.operands]
    inner = module.computations[root.attribute('calls')[0]]
    root = list(inner.values())[-1]
    sides = [inner[name] for name in root.operands]
    return root, [outer[int(side.operands[0])] if side.op == 'parameter' else side
                  for side in sides]


def _step(body, index):
    """Return the constant that a loop's body adds to element `index` of its state, or None."""
    # The state may pass through copies on its way round the loop.
    def origin(name):
        while body[name].op in ('copy', 'bitcast', 'copy-done', 'copy-start'):
            name = body[name].operands[0]
        return body[name]

    result = origin(list(body.values())[-1].operands[index])
    if result.op != 'add':
        return None
    return next((int(origin(name).operands[0]) for name in result.operands
                 if origin(name).op == 'constant'), None)


# --- matrix products --------------------------------------------------------------------------

def product_flops(instruction: Instruction, table: Computation) -> int:
    """Return the FLOPs of a `dot` or `convolution` of the computation `table`, 0 of anything else.

    The TPU compiler writes every product as a convolution, often over padded or dilated axes:
    only the terms that meet a value, not padding, count.
    """
    if instruction.op not in ('dot', 'convolution'):
        return 0
    out = sizes(instruction.shape)
    left, right = (sizes(table[name].shape) for name in instruction.operands[:2])
    if instruction.op == 'dot':
        match = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.rest)
        summed = dims(match[1]) if match else []
        return 2 * math.prod(out) * math.prod(left[d] for d in summed)
    # Labels such as 'b01f_01io->b01f' name the dimensions: digits are the axes of the window.
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.rest)
    a, b, c = labels.groups()
    flops = 2 * out[c.index('b')] * out[c.index('f')] * right[b.index('i')]
    axes = sorted(letter for letter in b if letter.isdigit())
    for letter, window in zip(axes, _windows(instruction, len(axes))):
        flops *= _terms(left[a.index(letter)], right[b.index(letter)], out[c.index(letter)], window)
    return flops


@dataclass(frozen=True, kw_only=True)
class _Window:
    """How a convolution moves over one axis: its stride, its padding below, and dilations."""
    stride: int
    low: int
    left_dilation: int
    right_dilation: int


def _windows(instruction, count):
    """Return the `_Window` of each of the `count` axes of a convolution."""
    match = re.search(r'window=\{([^}]*)\}', instruction.rest)
    options = dict(part.split('=') for part in match[1].split()) if match else {}

    def values(name, default):
        """Return the texts of an option, one an axis: 'stride=2x1' is ['2', '1']."""
        return options[name].split('x') if name in options else [default] * count
    columns = zip(values('stride', '1'), values('pad', '0_0'), values('lhs_dilate', '1'),
                  values('rhs_dilate', '1'))
    return [_Window(stride=int(stride), low=int(pad.split('_')[0]), left_dilation=int(left),
                    right_dilation=int(right)) for stride, pad, left, right in columns]


@cache
def _terms(inputs, taps, outputs, window):
    """Return how many (output, tap) pairs of one axis of a convolution meet an input."""
    stride = window.stride
    dilation = window.left_dilation
    reach = (inputs - 1) * dilation  # the last place that holds a value
    total = 0
    for tap in range(taps):
        shift = tap * window.right_dilation - window.low
        if dilation == 1:
            first = max(0, -(shift // stride))
            total += max(0, min(outputs - 1, (reach - shift) // stride) - first + 1)
        else:
            # Between two values of a dilated input lie zeros, which need no product.
            places = (out * stride + shift for out in range(outputs))
            total += sum(0 <= place <= reach and place % dilation == 0 for place in places)
    return total


# --- the whole program ------------------------------------------------------------------------

class _Counts:
    """What a walk over the program adds up."""

    def __init__(self, module):
        self.module = module
        self.flops = 0
        self.cycles = 0
        self.uncosted = 0
        self.endless = 0
        self.endless_cycles = 0
        self.calls = Counter()    # collectives, by kind
        self.bytes = Counter()    # what they move
        self.kernels = Counter()  # Pallas kernels, by name
        self.largest = {'bytes': 0, 'times': 0, 'operation': ''}
        self.seen = set()         # (channel, caller) of the collectives inside fusions
        self.fused = {}           # computation: (its FLOPs, fusions in it, collectives in it)

    def walk(self, name, times):
        """Add everything that one computation executes, `times` over."""
        table = self.module.computations[name]
        for instruction in table.values():
            if instruction.op == 'while':
                # A loop whose end depends on data, as that of decoding, counts once.
                count = trips(self.module, instruction)
                before = self.cycles
                self.walk(instruction.attribute('body')[0], times * (count or 1))
                if count is None:
                    self.endless += 1
                    self.endless_cycles += self.cycles - before
            elif instruction.op in ('call', 'async-start'):
                called = instruction.attribute('to_apply') or instruction.attribute('calls')
                self.walk(called[0], times)
            elif instruction.op == 'conditional':
                self._costliest(instruction, times)
            else:
                self._add(instruction, name, table, times)

    def _costliest(self, instruction, times):
        """Add the branch of a conditional that has most FLOPs."""
        branches = []
        for kind in ('branch_computations', 'true_computation', 'false_computation'):
            branches += instruction.attribute(kind)

        def cost(name):
            alone = _Counts(self.module)
            alone.walk(name, 1)
            return alone.flops, alone.cycles
        self.walk(max(branches, key=cost), times)

    def _add(self, instruction, caller, table, times):
        """Add an instruction of the computation `table`, which is called `caller`."""
        flops = product_flops(instruction, table)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
        self.cycles += int(cycles[1]) * times if cycles else 0
        self._collective(instruction, caller, table, times)
        if instruction.op == 'fusion':
            for inner in instruction.attribute('calls'):
                flops += self._inside(inner, caller, times)
        if '"tpu_custom_call"' in instruction.rest and instruction.op == 'custom-call':
            self.kernels[re.sub(r'[.\d]+$', '', instruction.name)] += times
        self.flops += flops * times
        self.uncosted += 0 if cycles else flops * times

    def _inside(self, name, caller, times):
        """Return FLOPs of one fused computation; its collectives are added for `caller`."""
        if name not in self.fused:
            table = self.module.computations[name]
            flops = sum(product_flops(part, table) for part in table.values())
            nested = []
            for part in table.values():
                if part.op == 'fusion':
                    nested += part.attribute('calls')
            moving = [part for part in table.values() if _kind(part, name)]
            self.fused[name] = (flops, nested, moving)
        flops, nested, moving = self.fused[name]
        for part in moving:
            self._collective(part, caller, self.module.computations[name], times, name)
        return flops + sum(self._inside(inner, caller, times) for inner in nested)

    def _collective(self, part, caller, table, times, inside=''):
        """Add what an instruction moves, if it is a collective; `inside` names a fusion."""
        kind = _kind(part, inside)
        if not kind:
            return
        channel = re.search(r'channel_id=(\d+)', part.rest)
        if inside and channel:
            # A started collective stays in every fusion that runs until it is done.
            if (channel[1], caller) in self.seen:
                return
            self.seen.add((channel[1], caller))
        given = sum(bytes_of(table[name].shape) for name in part.operands)
        # The result of a start holds what it was given as well.
        result = bytes_of(part.shape) - (given if part.op.endswith('-start') else 0)
        # An all-reduce may convert what it is given: its result says what it moves.
        moved = result if kind == 'all-reduce' else max(given, result)
        self.calls[kind] += times
        self.bytes[kind] += moved * times
        if kind == 'all-reduce' and moved > self.largest['bytes']:
            match = re.search(r'op_name="([^"]*)"', part.rest)
            operation = match[1] if match else part.name
            self.largest = {'bytes': moved, 'times': times, 'operation': operation}


def _kind(part, inside):
    """Return the kind of a collective, '' for another instruction.

    The compiler fuses an all-reduce and the slice that is kept of it into one reduce-scatter.
    """
    kind = part.op.removesuffix('-start')
    if kind not in COLLECTIVES:
        return ''
    return 'reduce-scatter' if inside.startswith('all-reduce-scatter') else kind


def facts(text: str) -> dict[str, Any]:
    """Return what one device executes in one run of a program, as plain values for JSON.

    flops: of matrix products, without those inside Pallas kernels. uncosted_flops: those of
    instructions without estimated cycles. collectives: {kind: {'count', 'bytes'}}, the bytes of the
    larger side of each. wire_bytes: what a ring moves for them, twice that for an all-reduce.
    largest_all_reduce: {'bytes' of one execution, 'times', 'operation'}. kernels: {name: calls}.
    endless_loops: loops whose end depends on data; their bodies count once. endless_cycles: what of
    the estimated cycles is theirs.
    """
    module = parse(text)
    counts = _Counts(module)
    counts.walk(module.entry, 1)
    collectives = {kind: {'count': counts.calls[kind], 'bytes': counts.bytes[kind]}
                   for kind in sorted(counts.calls)}
    # A ring passes an all-reduce round twice: once to sum up, once to hand out the sums.
    wire = [row['bytes'] * (2 if kind == 'all-reduce' else 1) for kind, row in collectives.items()]
    return {
        'flops': counts.flops,
        'uncosted_flops': counts.uncosted,
        'estimated_cycles': counts.cycles,
        'collectives': collectives,
        'wire_bytes': sum(wire),
        'largest_all_reduce': counts.largest,
        'kernels': dict(sorted(counts.kernels.items())),
        'endless_loops': counts.endless,
        'endless_cycles': counts.endless_cycles,
    }

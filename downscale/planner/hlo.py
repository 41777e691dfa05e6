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

WIDTHS = {'pred': 1, 's8': 1, 'u8': 1, 'f8e4m3fn': 1, 'f8e5m2': 1, 's16': 2, 'u16': 2, 'f16': 2,
          'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BEGINS = re.compile(r'^ +(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(')
_ENDS = re.compile(r'\}(, execution_thread="\w+")?$')  # what runs on a SparseCore says so
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\]')


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation; `shape` and `rest` (all behind the operands) are text."""
    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    rest: str
    text: str

    def attribute(self, name):
        """Return the names of the computations that an attribute such as `calls` lists."""
        found = re.search(name + r'=(?:\{([^}]*)\}|%?([\w.\-]+))', self.rest)
        return re.findall(r'[\w.\-]+', found[1] or found[2]) if found else []


@dataclass(frozen=True)
class Module:
    """The computations of a program, {name: {instruction name: Instruction}}; roots come last."""
    computations: dict
    entry: str


def parse(text):
    """Return the `Module` of an optimised HLO text; ValueError when it has no entry.

    Whatever begins no instruction continues the one before: Pallas calls print metadata of many
    lines, some of which begin with a brace.
    """
    found = {}
    current = None
    entry = None
    lines = []

    def keep():
        if current is not None and lines:
            instruction = _instruction('\n'.join(lines))
            found[current][instruction.name] = instruction

    for line in text.splitlines():
        header = re.match(r'(ENTRY )?%?([\w.\-]+) .*-> .*\{$', line)
        ends = _ENDS.match(line)
        if current is None or ends or _BEGINS.match(line):
            keep()
            lines = [line] if current is not None and not ends else []
        else:
            lines.append(line)
        if ends:
            current = None
        elif header and not line.startswith(' ') and current is None:
            current = header[2]
            lines = []
            found[current] = {}
            entry = current if header[1] else entry
    if entry is None:
        raise ValueError('the text has no ENTRY computation; it is not an optimised HLO module')
    return Module(found, entry)


def _instruction(text):
    begin = _BEGINS.match(text)
    depth = 1
    end = begin.end()
    while depth:
        depth += {'(': 1, ')': -1}.get(text[end], 0)
        end += 1
    inside = re.sub(r'/\*.*?\*/', '', text[begin.end():end - 1])
    if '%' in inside:
        operands = re.findall(r'%([\w.\-]+)', inside)
    else:
        operands = [part.strip() for part in inside.split(',')]
    return Instruction(
        name=begin[2],
        shape=begin[3],
        op=begin[4],
        operands=tuple(operands),
        rest=text[end:],
        text=text,
    )


def bytes_of(shape):
    """Return bytes of all arrays of a shape's text, a tuple's together."""
    return sum(WIDTHS.get(kind, 0) * math.prod(_dims(dims)) for kind, dims in _ARRAY.findall(shape))


def _dims(text):
    return [int(size) for size in text.split(',') if size]


def _sizes(shape):
    """Return the dimensions of the first array of a shape's text."""
    return _dims(_ARRAY.search(shape)[2])


# --- loops ------------------------------------------------------------------------------------

def trips(module, loop):
    """Return how often a `while` runs, or None where its end depends on data.

    The bound is a constant that the condition's root compares with the induction variable, the
    step the constant by which the body raises that: windowed products step by two.
    """
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition, body = (module.computations[loop.attribute(part)[0]]
                       for part in ('condition', 'body'))
    root = list(condition.values())[-1]
    if root.op == 'fusion':
        inner = module.computations[root.attribute('calls')[0]]
        outer = [condition[name] for name in root.operands]
        root = list(inner.values())[-1]
        sides = [outer[int(inner[name].operands[0])] if inner[name].op == 'parameter'
                 else inner[name] for name in root.operands]
    else:
        sides = [condition[name] for name in root.operands]
    if root.op != 'compare' or 'direction=LT' not in root.rest \
            or [side.op for side in sides] != ['get-tuple-element', 'constant']:
        return None
    step = _step(body, int(re.search(r'index=(\d+)', sides[0].rest)[1]))
    return step and -(-int(sides[1].operands[0]) // step)


def _step(body, index):
    """Return the constant that a loop's body adds to element `index` of its state, or None."""
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

def product_flops(instruction, table):
    """Return FLOPs of a `dot` or `convolution`, 0 for anything else; `table` is its computation.

    The TPU compiler writes every product as a convolution, often over padded or dilated axes:
    only the terms that meet a value, not padding, count.
    """
    if instruction.op not in ('dot', 'convolution'):
        return 0
    out = _sizes(instruction.shape)
    left, right = (_sizes(table[name].shape) for name in instruction.operands[:2])
    if instruction.op == 'dot':
        summed = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.rest)
        return 2 * math.prod(out) * math.prod(left[d] for d in _dims(summed[1] if summed else ''))
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.rest)
    a, b, c = labels.groups()
    window = re.search(r'window=\{([^}]*)\}', instruction.rest)
    flops = 2 * out[c.index('b')] * out[c.index('f')] * right[b.index('i')]
    given = dict(part.split('=') for part in window[1].split()) if window else {}
    for at, letter in enumerate(sorted(letter for letter in b if letter.isdigit())):
        def option(name, default, at=at):
            return given[name].split('x')[at] if name in given else default
        flops *= _terms(left[a.index(letter)], right[b.index(letter)], out[c.index(letter)],
                        int(option('stride', 1)), int(option('pad', '0_0').split('_')[0]),
                        int(option('lhs_dilate', 1)), int(option('rhs_dilate', 1)))
    return flops


@cache
def _terms(inputs, taps, outputs, stride, low, left_dilation, right_dilation):
    """Return how many (output, tap) pairs of one axis of a convolution meet an input."""
    reach = (inputs - 1) * left_dilation
    total = 0
    for tap in range(taps):
        shift = tap * right_dilation - low
        if left_dilation == 1:
            first = max(0, -(shift // stride))
            total += max(0, min(outputs - 1, (reach - shift) // stride) - first + 1)
        else:
            total += sum(0 <= out * stride + shift <= reach
                         and (out * stride + shift) % left_dilation == 0 for out in range(outputs))
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
        self.calls, self.bytes, self.kernels = Counter(), Counter(), Counter()
        self.largest = {'bytes': 0, 'times': 0, 'operation': ''}
        self.seen = set()
        self.fused = {}

    def walk(self, name, times):
        """Add everything that one computation executes, `times` over."""
        table = self.module.computations[name]
        for instruction in table.values():
            if instruction.op == 'while':
                count = trips(self.module, instruction)
                before = self.cycles
                self.walk(instruction.attribute('body')[0], times * (count or 1))
                self.endless += count is None
                self.endless_cycles += self.cycles - before if count is None else 0
            elif instruction.op in ('call', 'async-start'):
                self.walk((instruction.attribute('to_apply') or instruction.attribute('calls'))[0],
                          times)
            elif instruction.op == 'conditional':
                self._costliest(instruction, times)
            else:
                self._add(instruction, name, table, times)

    def _costliest(self, instruction, times):
        """Of the branches of a conditional the one with most FLOPs counts."""
        branches = [name for kind in ('branch_computations', 'true_computation',
                                      'false_computation') for name in instruction.attribute(kind)]

        def cost(name):
            alone = _Counts(self.module)
            alone.walk(name, 1)
            return alone.flops, alone.cycles
        self.walk(max(branches, key=cost), times)

    def _add(self, instruction, caller, table, times):
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
            nested = [inner for part in table.values() if part.op == 'fusion'
                      for inner in part.attribute('calls')]
            moving = [part for part in table.values() if _kind(part, name)]
            self.fused[name] = (sum(product_flops(part, table) for part in table.values()),
                                nested, moving)
        flops, nested, moving = self.fused[name]
        for part in moving:
            self._collective(part, caller, self.module.computations[name], times, name)
        return flops + sum(self._inside(inner, caller, times) for inner in nested)

    def _collective(self, part, caller, table, times, inside=''):
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
        result = bytes_of(part.shape) - (given if part.op.endswith('-start') else 0)
        # An all-reduce may convert what it is given: its result says what it moves.
        moved = result if kind == 'all-reduce' else max(given, result)
        self.calls[kind] += times
        self.bytes[kind] += moved * times
        if kind == 'all-reduce' and moved > self.largest['bytes']:
            named = re.search(r'op_name="([^"]*)"', part.rest)
            self.largest = {'bytes': moved, 'times': times, 'operation': named[1] if named
                            else part.name}


def _kind(part, inside):
    """Return the kind of a collective, '' for another instruction.

    The compiler fuses an all-reduce and the slice that is kept of it into one reduce-scatter.
    """
    kind = part.op.removesuffix('-start')
    if kind not in COLLECTIVES:
        return ''
    return 'reduce-scatter' if inside.startswith('all-reduce-scatter') else kind


def facts(text):
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
    moved = {kind: {'count': counts.calls[kind], 'bytes': counts.bytes[kind]}
             for kind in sorted(counts.calls)}
    return {'flops': counts.flops, 'uncosted_flops': counts.uncosted,
            'estimated_cycles': counts.cycles, 'collectives': moved,
            'wire_bytes': sum(row['bytes'] * (2 if kind == 'all-reduce' else 1)
                              for kind, row in moved.items()),
            'largest_all_reduce': counts.largest, 'kernels': dict(sorted(counts.kernels.items())),
            'endless_loops': counts.endless, 'endless_cycles': counts.endless_cycles}

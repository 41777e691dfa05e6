"""An optimised HLO text as instructions: what the compiler prints, and no more."""
import math
import re
from dataclasses import dataclass

WIDTHS = {'pred': 1, 's8': 1, 'u8': 1, 'f8e4m3fn': 1, 'f8e5m2': 1, 's16': 2, 'u16': 2, 'f16': 2,
          'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}
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

    def attribute(self, name: str) -> list[str]:
        """Return the names of the computations that an attribute such as `calls` lists."""
        match = re.search(name + r'=(?:\{([^}]*)\}|%?([\w.\-]+))', self.rest)
        return re.findall(r'[\w.\-]+', match[1] or match[2]) if match else []


Computation = dict[str, Instruction]  # by name; the root comes last


@dataclass(frozen=True)
class Module:
    """The computations of a program by name, and the name of the one that is run."""
    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Return the `Module` of an optimised HLO text; ValueError when it has no entry.

    Whatever begins no instruction continues the one before: Pallas calls print metadata of many
    lines, some of which begin with a brace.
    """
    computations = {}
    current = None  # the name of the computation that the line is in
    entry = None
    lines = []      # of the instruction that is being read

    def keep():
        if current is not None and lines:
            instruction = _instruction('\n'.join(lines))
            computations[current][instruction.name] = instruction

    for line in text.splitlines():
        # `ENTRY %main (x: f32[2]) -> f32[2] {` opens a computation, a brace of its own closes it.
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
            computations[current] = {}
            entry = current if header[1] else entry
    if entry is None:
        raise ValueError('the text has no ENTRY computation; it is not an optimised HLO module')
    return Module(computations, entry)


def _instruction(text):
    """Return the `Instruction` of its text, which may have several lines."""
    begin = _BEGINS.match(text)
    # Shapes among the operands hold brackets too: the list ends where all that opened are closed.
    depth = 1
    end = begin.end()
    while depth:
        depth += {'(': 1, ')': -1}.get(text[end], 0)
        end += 1
    # Long lists carry comments such as /*index=5*/; older printers leave out the `%` of names.
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


def bytes_of(shape: str) -> int:
    """Return the bytes of all arrays of a shape's text, a tuple's together."""
    return sum(WIDTHS.get(kind, 0) * math.prod(dims(text)) for kind, text in _ARRAY.findall(shape))


def dims(text: str) -> list[int]:
    """Return the numbers of '2,3'."""
    return [int(size) for size in text.split(',') if size]


def sizes(shape: str) -> list[int]:
    """Return the dimensions of the first array of a shape's text."""
    return dims(_ARRAY.search(shape)[2])

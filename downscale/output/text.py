"""Tables and links as plain text, for a person at a terminal."""
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0, 1)) -> list[str]:
    """Return rows of text as lines, columns in `left` (places) to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [text.ljust(width) if place in left else text.rjust(width)
                 for place, (text, width) in enumerate(zip(row, widths, strict=True))]
        # Spaces behind the last column would be seen only when the table is copied.
        lines.append('  '.join(cells).rstrip())
    return lines


def linked(path: Path) -> str:
    """Return `path` as a link that a terminal opens by a click; in a pipe or file as it is.

    Terminals that know no links show the path alone (the sequence OSC 8).
    """
    if not sys.stdout.isatty() or os.environ.get('TERM', 'dumb') == 'dumb':
        return str(path)
    return f'\x1b]8;;{path.absolute().as_uri()}\x1b\\{path}\x1b]8;;\x1b\\'

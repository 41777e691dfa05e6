"""Tables as plain text, for a person at a terminal."""
from collections.abc import Collection, Sequence


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

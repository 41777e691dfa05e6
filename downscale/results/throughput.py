"""What each evaluation cost: the `throughput.json` that lies beside its tables."""
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from downscale.results.items import TableError, one_line

if TYPE_CHECKING:
    from downscale.analysis.measures import Scored

# Those of the second line are null where nothing was decoded, e.g. all rows were there already.
COUNTS = ('tokens', 'seconds', 'rows', 'compiles', 'compile_seconds')
RATIOS = ('tokens_per_second', 'slot_occupancy', 'padding_waste')
SHARES = ('slot_occupancy', 'padding_waste')


def read_throughput(root: Path) -> dict[str, dict[str, Any] | None]:
    """Return {evaluation: its figures, or None without a file} of every folder that holds a table.

    Figures that are not known here are ignored. Raises `TableError` in one line when a file is not
    readable, lacks a figure, or holds one that cannot be.
    """
    # An evaluation that only writes texts has a cost as well, and no items.
    folders = set()
    for name in ('items', 'texts'):
        folders.update(path.parent for path in root.glob(f'evaluations/*/{name}.parquet'))
    return {folder.name: _read(folder / 'throughput.json') for folder in sorted(folders)}


def together(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of two parts of one evaluation as those of the whole.

    Shares of slots are weighed by tokens, and those of padding, whose sizes are not kept, by rows.
    """
    figures = {name: first[name] + second[name] for name in COUNTS}
    figures['tokens_per_second'] = figures['tokens'] / figures['seconds'] \
        if figures['seconds'] else 0.0
    for name, by in (('slot_occupancy', 'tokens'), ('padding_waste', 'rows')):
        parts = [part for part in (first, second) if part[name] is not None and part[by]]
        weight = sum(part[by] for part in parts)
        figures[name] = sum(part[name] * part[by] for part in parts) / weight if weight else None
    return figures


def _read(path):
    if not path.is_file():
        return None
    try:
        figures = json.loads(path.read_text())
    except ValueError as error:
        raise TableError(f'{path}: not readable as JSON: {one_line(error)}') from error
    names = COUNTS + RATIOS
    if not isinstance(figures, dict) or set(names) - figures.keys():
        missing = sorted(set(names) - set(figures))
        raise TableError(f'{path}: {len(missing)} of {len(names)} figures missing {missing}')
    wrong = [name for name in names if not _possible(name, figures[name])]
    if wrong:
        raise TableError(f'{path}: {len(wrong)} of {len(names)} figures cannot be: '
                         f'{ {name: figures[name] for name in wrong[:3]} }')
    return {name: figures[name] for name in names}


def _possible(name, value):
    """Return whether a figure can have this value; ratios may be null."""
    if value is None:
        return name in RATIOS
    # True would pass for the number 1.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value <= (1 if name in SHARES else math.inf)


def throughput(s: 'Scored') -> dict[str, Any]:
    """Return the figures of every evaluation that has them, and the names of those that do not."""
    found = s.study.throughput
    return {'evaluations': {name: row for name, row in found.items() if row is not None},
            'absent': [name for name, row in found.items() if row is None]}

"""How one stage names another: 'text' of its own cell, 'tower/tower' of its seed, or any."""
from pathlib import Path

from downscale.config import Experiment
from downscale.runtime.files import PathLike, place


def reference_of(cell: Experiment, reference: str) -> str:
    """Return 'CELL/STAGE' of a parent: 'text' of this cell, or 'tower/tower' of the shared one.

    '{size}/text' is of the cell that has this size and seed and nothing else of its own, so that
    cells which differ later need not train what they have in common. '/CELL/STAGE' is of any cell:
    what a fork has not trained itself is its trunk's.
    """
    reference = reference.replace('{size}', cell.size)
    if reference.startswith('/'):
        return reference[1:]
    other, _, stage = reference.rpartition('/')
    return f'{other}-s{cell.seed}/{stage}' if other else f'{cell.name}/{stage}'


def parent_folder(study: PathLike, experiment: Experiment, reference: str) -> Path:
    """Return the folder of a parent stage.

    `reference` is 'text' of this cell, or 'tower/tower' of the shared one.
    """
    return place(study) / 'cells' / reference_of(experiment, reference)

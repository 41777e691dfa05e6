"""What a run folder holds in the end, cell by cell, to be compared with that of another run."""
import hashlib
import io
from collections.abc import Sequence

from downscale.config import Experiment
from downscale.runtime.files import place
from downscale.stage_table import WRITER
from downscale.stages.shrinking import NOTE
from downscale.study.tasks import tasks_of


def digests(run: str, cells: Sequence[Experiment]) -> dict[str, dict[str, str | None]]:
    """Return {cell: {task: digest}} of the metrics of every stage and the rows of every evaluation.

    Of a stage that trains nothing it is what was cut. None stands for a task without a result.
    """
    by_cell = {cell.name: {} for cell in cells}
    for task in tasks_of(cells):
        cell = task.experiment
        if task.kind == 'train':
            learns = cell.stage(task.stage).kind.loss != 'none'
            path = place(run) / 'cells' / cell.name / task.stage / (
                'metrics.jsonl' if learns else NOTE)
        else:
            name = 'texts' if task.stage in WRITER else 'items'
            path = place(run) / 'evaluations' / f'{task.stage}-{cell.name}' / f'{name}.parquet'
        by_cell[cell.name][task.stage] = _digest(path)
    return by_cell


def _digest(path):
    if not path.exists():
        return None
    data = path.read_bytes()
    if path.name.endswith('.parquet'):
        import pyarrow.parquet as pq
        # The rows: how a file is written is no result.
        data = repr(pq.read_table(io.BytesIO(data)).to_pydict()).encode()
    return hashlib.sha256(data).hexdigest()


def unequal(one: dict[str, dict[str, str | None]],
            other: dict[str, dict[str, str | None]]) -> list[str]:
    """Return 'CELL/TASK' of all results that differ or are missing."""
    return [f'{cell}/{task}' for cell, tasks in one.items() for task, digest in tasks.items()
            if digest is None or other[cell][task] != digest]

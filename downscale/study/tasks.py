"""The tasks of a study: which stage or evaluation waits for which."""
from collections.abc import Sequence
from dataclasses import dataclass

from downscale.config import Experiment
from downscale.experiment.expansion import reference_of
from downscale.stage_table import WRITER


@dataclass(frozen=True, kw_only=True)
class Task:
    """One stage or evaluation of one cell; `needs` are names of tasks, `cost` a rough weight."""
    name: str
    experiment: Experiment
    stage: str
    kind: str
    needs: tuple[str, ...]
    cost: float


def tasks_of(experiments: Sequence[Experiment]) -> list[Task]:
    """Return all tasks of a study, parents before children."""
    found = []
    for cell in experiments:
        for stage in cell.stages:
            needs = [reference_of(cell, reference)
                     for reference in dict.fromkeys(stage.parents.values())]
            cost = _size(cell) * stage.steps * stage.batch * stage.length
            found.append(
                Task(
                    name=f'{cell.name}/{stage.name}',
                    experiment=cell,
                    stage=stage.name,
                    kind='train',
                    needs=tuple(needs),
                    cost=cost,
                )
            )
    texts = {}
    for cell in experiments:
        alike = cell.seed, cell.evaluation.texts  # they read the same texts, made once for all
        if alike not in texts:
            texts[alike] = tuple(f'evaluate {kind} {other.name}' for kind, others
                                 in writers_of(cell, experiments).items() for other in others)
        found += _evaluations(cell, texts[alike])
    # A reasoner reads what all cells of its seed have written.
    return sorted(found, key=lambda task: task.kind == 'evaluate' and task.stage == 'reason')


def writers_of(cell: Experiment, experiments: Sequence[Experiment]) -> dict[str, list[Experiment]]:
    """Return {kind of text: cells of the same seed that write it}."""
    same = [other for other in experiments if other.seed == cell.seed]
    return {kind: [other for other in same if other.writer_stage(kind)]
            for kind in cell.evaluation.texts if kind in WRITER}


def names(cell: Experiment) -> list[str]:
    """Return names of the stages of a cell."""
    return [stage.name for stage in cell.stages]


def _evaluations(cell, texts):
    """Return the evaluation tasks that the stages of a cell allow; `texts` are those that write for
    it.
    """
    def task(name, needs, weight):
        return Task(
            name=f'evaluate {name} {cell.name}',
            experiment=cell,
            stage=name,
            kind='evaluate',
            needs=tuple(needs),
            cost=weight * _size(cell) * cell.evaluation.scenes * 2000,
        )

    found = []
    if not cell.asks:
        return found
    if cell.joint_stage:
        found.append(task('joint', [f'{cell.name}/{cell.joint_stage}'], 1))
    for kind in cell.evaluation.texts:
        if kind in WRITER and cell.writer_stage(kind):
            found.append(task(kind, [f'{cell.name}/{cell.writer_stage(kind)}'], 1))
    own = 'reason' in names(cell)  # else the reasoner is the imported language model, untrained
    if own or cell.evaluation.benchmarks and texts and 'language' in cell.imports:
        found.append(task('reason', [*[f'{cell.name}/reason'] * own, *texts], 2 + 2 * len(texts)))
    return found


def _size(cell):
    return cell.language.N * cell.language.D * (cell.language.D + 64)


def urgency(tasks: Sequence[Task]) -> dict[str, float]:
    """Return {task name: cost of the longest chain that starts with it}: the longest chain runs
    first.
    """
    # after: cost of the longest chain that waits for a task
    value = {}
    after = {}
    for task in reversed(tasks):
        cost = value[task.name] = task.cost + after.get(task.name, 0)
        for name in task.needs:
            if after.get(name, 0) < cost:
                after[name] = cost
    return value

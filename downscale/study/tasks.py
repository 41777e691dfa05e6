"""The tasks of a study: which stage or evaluation waits for which."""
from collections.abc import Sequence
from dataclasses import dataclass

from downscale.config import Experiment
from downscale.experiment import teachers
from downscale.experiment.references import reference_of
from downscale.stage_config import is_stage, reader_of
from downscale.stage_table import EXPLAIN, WRITER


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
    tasks = []
    experiments = teachers.in_order(experiments)
    for cell in experiments:
        if not cell.trained_as:
            tasks += [_training(cell, stage) for stage in cell.stages]
    texts = {}
    for cell in experiments:
        # Cells of one seed read the same texts, which are looked up once for all of them.
        alike = repr((cell.seed, cell.world, cell.data, cell.evaluation))
        if alike not in texts:
            texts[alike] = _texts(cell, experiments)
        tasks += _evaluations(cell, texts[alike])
    # Last, because a reasoner reads what all cells of its seed have written.
    return sorted(tasks, key=lambda task: task.kind == 'evaluate' and task.stage == 'reason')


def _training(cell, stage):
    """Return the task that trains one stage of a cell."""
    parents = dict.fromkeys(stage.parents.values())
    needs = [reference_of(cell, reference) for reference in parents]
    needs += [reference_of(cell, name) for name in stage.judges if is_stage(name)]
    teacher = teachers.stage_of(cell, stage)
    if teacher is not None:
        needs.append(teacher)
    if stage.trunk:
        needs.append(f'{stage.trunk}/{stage.name}')
    return Task(
        name=f'{cell.name}/{stage.name}',
        experiment=cell,
        stage=stage.name,
        kind='train',
        needs=tuple(needs),
        # Only an order is made of costs, so parameters times tokens are close enough.
        cost=_size(cell) * (stage.steps - stage.first_step) * stage.batch * stage.length,
    )


def _texts(cell, experiments):
    """Return the names of the evaluations that write the texts that a cell's reasoner reads."""
    tasks = []
    for kind, writers in writers_of(cell, experiments).items():
        tasks += [f'evaluate {kind} {writer.name}' for writer in writers]
    return tuple(tasks)


def writers_of(cell: Experiment, experiments: Sequence[Experiment]) -> dict[str, list[Experiment]]:
    """Return {kind of text: cells of the same seed and the same questions that write it}."""
    same = [other for other in experiments if (other.seed, other.world, other.data,
                                               other.evaluation)
            == (cell.seed, cell.world, cell.data, cell.evaluation)]
    writers = {}
    for kind in cell.evaluation.texts:
        if kind in WRITER:
            writers[kind] = [other for other in same if other.writer_stage(kind)]
    return writers


def names(cell: Experiment) -> list[str]:
    """Return the names of the stages of a cell."""
    return [stage.name for stage in cell.stages]


def _evaluations(cell, texts):
    """Return the evaluation tasks that the stages of a cell allow.

    `texts` are the names of the tasks that write for its reasoner.
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

    tasks = []
    trained = cell.trained_as or cell.name
    if not cell.asks:
        return tasks
    if cell.joint_stage:
        tasks.append(task('joint', [f'{trained}/{cell.joint_stage}'], 1))
    if EXPLAIN in names(cell):
        tasks.append(task('explained', [f'{trained}/{EXPLAIN}'], 2))
    for kind in cell.evaluation.texts:
        if kind in WRITER and cell.writer_stage(kind):
            tasks.append(task(kind, [f'{trained}/{cell.writer_stage(kind)}'], 1))
    # Without a text and with each of them, and both with and without a thought; texts also alone.
    weight = 2 + (2 + cell.evaluation.question_hidden) * len(texts)
    if reader_of(cell.stages):
        tasks.append(task('reason', [f'{trained}/{reader_of(cell.stages)}', *texts], weight))
    elif cell.evaluation.benchmarks and texts and 'language' in cell.imports:
        # The reasoner is the imported language model, untrained.
        tasks.append(task('reason', texts, weight))
    return tasks


def _size(cell):
    """Return a rough number of parameters of a cell's decoder."""
    return cell.language.N * cell.language.D * (cell.language.D + 64)


def urgency(tasks: Sequence[Task]) -> dict[str, float]:
    """Return {name of a task: cost of the longest chain of tasks that starts with it}.

    `tasks` are in order, parents first; the longest chain is to run first.
    """
    value = {}
    after = {}  # name of a task -> cost of the longest chain that waits for it
    # Backwards: whatever waits for a task comes before it here.
    for task in reversed(tasks):
        cost = value[task.name] = task.cost + after.get(task.name, 0)
        for name in task.needs:
            if after.get(name, 0) < cost:
                after[name] = cost
    return value

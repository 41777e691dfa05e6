"""One stage of one cell, from its parents' checkpoints to its own: what `study` and `train` run."""
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from jax.sharding import Mesh

from downscale import config
from downscale.config import Experiment
from downscale.data.pipeline import stream
from downscale.runtime import processes
from downscale.runtime.files import PathLike, read_json, write_json
from downscale.stages import padding, shrinking, teachers
from downscale.stages.attention import ideal_seconds, programs
from downscale.stages.folders import folder_of, is_done, refuse_other
from downscale.stages.forks import leave_trunk
from downscale.stages.inputs import corpus, sampler_of, sizes_of
from downscale.stages.models import model_of
from downscale.stages.start import grid_of, start_params, start_shapes
from downscale.train import loop, together
from downscale.train.run import StageRun
from downscale.values import hash_of


def padding_lines(study: PathLike, experiment: Experiment) -> Iterator[str]:
    """Yield lines: what each packed stage of a cell wastes, and buckets that would waste less."""
    for stage in experiment.stages:
        if stage.kind.loss == 'tokens':
            sampler, seed = sampler_of(study, experiment, stage)
            yield from padding.lines(experiment, stage, sizes_of(stage, sampler, seed))


def _nothing_to_do(folder, experiment):
    """Return whether the stage in `folder` is done.

    Removes a stale FATAL.json, which a failure of another cell of the same program may have left.
    """
    done = is_done(folder, experiment)
    if done:
        (folder / 'FATAL.json').unlink(missing_ok=True)
    return done


def train_stage(study: PathLike, experiment: Experiment, name: str,
                report: Callable[[int, dict], object] = lambda step, metrics: None,
                tracker: str = 'tensorboard', rollouts: Callable | None = None) -> None:
    """Train stage `name` of a cell to its end; resumes by itself, and skips what is done.

    A folder that holds another configuration is refused: ValueError says which keys differ.
    `tracker` is a key of `trackers.WRITERS`. A stage that writes its rows itself takes them from
    `rollouts` (study, cell, stage, its `StageRun`, folder), which is `policy.training`'s.
    """
    stage = experiment.stage(name)
    # 1. Refuse what cannot work, in all processes alike, before the folder is touched.
    grid = grid_of(experiment)
    teacher = teachers.teacher_of(study, experiment, stage, grid)
    run = _stage_run(experiment, stage, grid, tracker, teacher)
    if teacher is not None:
        run = dataclasses.replace(run, teacher_params=lambda: teachers.params_of(
            study, experiment, stage, teacher.model, grid))
    folder = folder_of(study, experiment, name)
    task = [experiment.hash, name]
    if processes.once(lambda: task) != task:
        raise ValueError('this process has another configuration, cell or stage than process 0; '
                         'start the same command in all')
    processes.once(lambda: _refuse_other_mixture(folder, stage))
    if processes.once(lambda: _nothing_to_do(folder, experiment)):
        return
    # 2. Hold the folder until the end is noted: a second run would write the same files.
    with loop.only_process(folder):
        sampler, seed = _begin(study, experiment, stage, folder)
        if stage.kind.loss == 'none':
            processes.once(lambda: _shrink(study, experiment, stage, folder, sampler, seed))
            return
        if rollouts and stage.kind.rows == 'written':
            batches = rollouts(study, experiment, stage, run, folder)
            run = dataclasses.replace(run, rollouts=batches, stop=batches.stop)
        else:
            rules = model_of(experiment, name).rules
            batches = iter(stream(sampler, seed, loop.share(grid, rules)))
        with contextlib.closing(batches):  # its thread would wait for ever to hand over a batch
            loop.train(folder, run, lambda: start_params(study, experiment, stage, grid), batches,
                       report)
        # 3. No process may still write when the stage is called done.
        processes.wait()
        _end(experiment, stage, folder, sampler, seed, batches.get_state(), run)


def _shrink(study, experiment, stage, folder, sampler, seed):
    """Write the smaller model of a stage that trains nothing, and mark it as done."""
    batches = iter(stream(sampler, seed))
    with contextlib.closing(batches):
        shrinking.shrink_stage(study, experiment, stage, folder, batches)
    write_json(folder / 'DONE.json', {'hash': experiment.hash, 'steps': stage.steps})


def train_together(
        study: PathLike, cells: Sequence[Experiment], name: str,
        report: Callable[[Experiment, int, dict], object] = lambda cell, step, metrics: None,
        tracker: str = 'tensorboard') -> dict[str, Exception]:
    """Train stage `name` of all `cells` in one program, each as `train_stage` would train it.

    The cells must agree in `program_of` that stage. Returns {cell name: error} of those that
    failed. ValueError where the stage has a teacher.
    """
    if any(cell.stage(name).teacher for cell in cells):
        raise ValueError(f'stage {name} has a teacher; its cells are trained one by one')
    failed = {}
    begun = {}
    with contextlib.ExitStack() as stack:
        for cell in cells:
            folder = folder_of(study, cell, name)
            stage = cell.stage(name)
            try:
                _refuse_other_mixture(folder, stage)
                if not _nothing_to_do(folder, cell):
                    stack.enter_context(loop.only_process(folder))
                    begun[folder] = cell, *_begin(study, cell, stage, folder)
            except Exception as error:  # one cell's folder must not stop the others
                failed[cell.name] = error
        if begun:
            # The first cell stands for all in what they share: model, optimiser, schedule, mesh.
            shared = _stage_run(cells[0], cells[0].stage(name), one_device(cells[0]), tracker,
                                stacked=True)
            runs = [_cell_run(study, folder, *rest, name, report)
                    for folder, rest in begun.items()]
            ended = together.train(runs, shared)
            for folder, (error, position) in ended.items():
                cell, sampler, seed = begun[folder]
                if error is None:
                    _end(cell, cell.stage(name), folder, sampler, seed, position, shared)
                else:
                    failed[cell.name] = error
    return failed


def _stage_run(experiment, stage, grid, tracker, teacher=None, stacked=False):
    """Return the `StageRun` of a stage on the devices of `grid`, `stacked` with other cells or not.
    """
    return StageRun(
        model=model_of(experiment, stage.name),
        loss=stage.loss,
        optimizer=experiment.optimizer,
        trainable=tuple(stage.trainable),
        rates=stage.rates,
        schedule=stage.schedule,
        mesh=grid,
        save_every=stage.save_every,
        kept=stage.kept,
        shapes=start_shapes(experiment, stage),
        tracker=tracker,
        attention=programs(experiment, stage, grid, stacked),
        ideal={} if stacked else ideal_seconds(experiment, stage, grid, teacher and teacher.model),
        teacher=teacher,
    )


def _cell_run(study, folder, cell, sampler, seed, name, report):
    """Return the `CellRun` of one of the cells that are trained together."""
    stage = cell.stage(name)
    return together.CellRun(
        folder=folder,
        params=lambda: start_params(study, cell, stage),
        rates=stage.rates,
        # The seed of the stream says enough: all else that decides rows is equal in `program_of`.
        data=seed,
        stream=lambda: iter(stream(sampler, seed)),
        report=lambda step, row: report(cell, step, row),
    )


def program_of(experiment: Experiment, name: str) -> str | None:
    """Return a hash that is equal for cells whose stage `name` can be trained together.

    Such cells differ in names, seeds and rates only. None where batches have several shapes, which
    would not come in step, where the model writes them itself, and where a teacher has the room of
    several cells.
    """
    value = dataclasses.asdict(experiment)
    # Earlier stages may differ, which only decide where weights start; this one must not.
    for key in ('name', 'seed', 'stages', 'evaluation', 'budget'):
        del value[key]
    stage = experiment.stage(name)
    value['stage'] = dataclasses.asdict(stage) | {'rates': None, 'trunk': ''}
    if stage.trunk:  # a fork starts from no parent, but from its trunk
        del value['stage']['parents']
    alone = (stage.buckets or stage.teacher or stage.kind.rows == 'written'
             or stage.kind.loss == 'none')
    return None if alone else hash_of(value)


def one_device(experiment: Experiment) -> Mesh:
    """Return the mesh of a cell that is trained with others.

    ValueError when it has several devices, over which no cells are stacked.
    """
    grid = grid_of(experiment)
    if grid.size > 1:
        raise ValueError(f'cells are trained together on one device, and the mesh of '
                         f'{experiment.name} has {grid.size}; leave out --together, or let this '
                         'process see one device')
    return grid


def _begin(study, experiment, stage, folder):
    """Write into the folder of a stage what runs there; return (sampler, seed of its stream).

    A stage that writes its rows has no sampler.
    """
    # First of all: it refuses a folder of another run.
    processes.once(lambda: _open(folder, experiment))
    processes.once(lambda: teachers.note(study, experiment, stage, folder))
    processes.once(lambda: leave_trunk(study, experiment, stage, folder))
    if stage.kind.rows == 'written':
        return None, 0
    sampler, seed = sampler_of(study, experiment, stage)
    processes.once(lambda: _count_padding(folder, experiment, stage, sampler, seed))
    return sampler, seed


def _end(experiment, stage, folder, sampler, seed, position, run):
    """Mark a stage as done; `position` is where its stream ended, `run` its `StageRun`."""
    if stage.mixture:
        seen = sampler.seen(seed, position)
        processes.once(lambda: _note(folder, seen=seen))
    processes.once(lambda: write_json(folder / 'DONE.json', {
        'hash': experiment.hash, 'steps': stage.steps, 'attention': run.attention,
        'device': run.mesh.devices.flat[0].device_kind}))


def _open(folder, experiment):
    """Write into `folder` what runs in it; ValueError when it is that of another run."""
    (folder / 'FATAL.json').unlink(missing_ok=True)
    if (folder / 'experiment.json').is_file():
        refuse_other(folder, experiment)
    config.save(experiment, folder)


def _refuse_other_mixture(folder, stage):
    """Raise ValueError when the stage was begun on other records than its mixture holds now."""
    begun = read_json(folder / 'mixture.json') if stage.mixture else None
    if begun is not None and begun['hash'] != corpus(stage.mixture).hash:
        raise ValueError(f'{folder} was begun on other records than {stage.mixture} holds now; '
                         'give the study another folder with --out, or delete this one')


def _count_padding(folder, experiment, stage, sampler, seed):
    """Write `padding.json`, and refuse now what would not fit hours later.

    Of a mixture write `mixture.json` as well: what an epoch of it holds, to which its end adds what
    was seen.
    """
    # Counting tokenizes every conversation, and so finds the one that no row holds.
    sizes = sizes_of(stage, sampler, seed)
    if stage.mixture:
        _note(folder, name=sampler.corpus.mixture.name, hash=sampler.corpus.hash, seed=seed,
              epoch=sampler.realised(seed), left_out=sampler.left_out)
    if stage.kind.loss == 'tokens':
        write_json(folder / 'padding.json', padding.figures(experiment, stage, sizes))


def _note(folder, **facts):
    """Add facts to the `mixture.json` of a stage."""
    write_json(folder / 'mixture.json', (read_json(folder / 'mixture.json') or {}) | facts)



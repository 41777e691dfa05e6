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
from downscale.stages import padding
from downscale.stages.folders import folder_of, is_done, refuse_other
from downscale.stages.inputs import corpus, sampler_of, sizes_of
from downscale.stages.models import model_of
from downscale.stages.start import grid_of, start_params, start_shapes
from downscale.train import loop, together
from downscale.values import hash_of


def padding_lines(study: PathLike, experiment: Experiment) -> Iterator[str]:
    """Yield what each packed stage of a cell wastes, and the buckets that would waste less, as
    lines.
    """
    for stage in experiment.stages:
        if stage.loss == 'tokens':
            sampler, seed = sampler_of(study, experiment, stage)
            yield from padding.lines(experiment, stage, sizes_of(stage, sampler, seed))


def _nothing_to_do(folder, experiment):
    """Return whether the stage in `folder` is done; it then no longer says that it failed, as it
    would after an attempt that ended in an error of a cell beside it.
    """
    done = is_done(folder, experiment)
    if done:
        (folder / 'FATAL.json').unlink(missing_ok=True)
    return done


def train_stage(study: PathLike, experiment: Experiment, name: str,
                report: Callable[[int, dict], object] = lambda step, metrics: None,
                tracker: str = 'tensorboard') -> None:
    """Stage `name` of the cell is finished under its folder; resumes by itself, skips when done.

    A folder that holds another configuration is refused: ValueError says which keys differ.
    `tracker` is a key of `trackers.WRITERS`.
    """
    stage = experiment.stage(name)
    grid = grid_of(experiment)
    folder = folder_of(study, experiment, name)
    task = [experiment.hash, name]
    if processes.once(lambda: task) != task:
        raise ValueError('this process has another configuration, cell or stage than process 0; '
                         'start the same command in all')
    processes.once(lambda: _refuse_other_mixture(folder, stage))
    if processes.once(lambda: _nothing_to_do(folder, experiment)):
        return
    with loop.only_process(folder):
        sampler, seed = _begin(study, experiment, stage, folder)
        model = model_of(experiment, name)
        batches = iter(stream(sampler, seed, loop.share(grid, model.rules)))
        with contextlib.closing(batches):  # its thread would wait for ever to hand over a batch
            loop.train(folder, model, stage.loss, experiment.optimizer, tuple(stage.trainable),
                       stage.rates, stage.schedule, grid,
                       lambda: start_params(study, experiment, stage), batches, stage.save_every,
                       report, shapes=start_shapes(experiment, stage), tracker=tracker)
        processes.wait()
        _end(experiment, stage, folder, sampler, seed, batches.get_state())


def train_together(
        study: PathLike, cells: Sequence[Experiment], name: str,
        report: Callable[[Experiment, int, dict], object] = lambda cell, step, metrics: None,
        tracker: str = 'tensorboard') -> dict[str, Exception]:
    """Return stage `name` of all `cells` is finished, as `train_stage` would finish each, in one
    program.

    The cells must agree in `program_of` that stage. Returns {cell name: error} of those that
    failed.
    """
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
            cell = cells[0]
            stage = cells[0].stage(name)
            runs = [_run(study, folder, *rest, name, report) for folder, rest in begun.items()]
            ended = together.train(
                runs, model_of(cell, name), stage.loss, cell.optimizer, tuple(stage.trainable),
                stage.schedule, one_device(cell), stage.save_every, start_shapes(cell, stage),
                tracker=tracker)
            for folder, (error, position) in ended.items():
                cell, sampler, seed = begun[folder]
                if error is None:
                    _end(cell, cell.stage(name), folder, sampler, seed, position)
                else:
                    failed[cell.name] = error
    return failed


def _run(study, folder, cell, sampler, seed, name, report):
    """Return the `together.Run` of one cell."""
    stage = cell.stage(name)
    return together.Run(
        folder=folder,
        params=lambda: start_params(study, cell, stage),
        rates=stage.rates,
        data=seed,
        stream=lambda: iter(stream(sampler, seed)),
        report=lambda step, row: report(cell, step, row),
    )


def program_of(experiment: Experiment, name: str) -> str | None:
    """Return a hash that cells share whose stage `name` can be trained together: they differ in
    names, seeds and rates only. None where batches have several shapes, which would not come in
    step.
    """
    value = dataclasses.asdict(experiment)
    for key in ('name', 'seed', 'stages', 'evaluation', 'budget'):
        del value[key]
    stage = experiment.stage(name)
    value['stage'] = dataclasses.asdict(stage) | {'rates': None}
    return None if stage.buckets else hash_of(value)


def one_device(experiment: Experiment) -> Mesh:
    """Return the cell's mesh; ValueError when it has several devices, over which no cells are
    stacked.
    """
    grid = grid_of(experiment)
    if grid.size > 1:
        raise ValueError(f'cells are trained together on one device, and the mesh of '
                         f'{experiment.name} has {grid.size}; leave out --together, or let this '
                         'process see one device')
    return grid


def _begin(study, experiment, stage, folder):
    """Return (sampler, seed of its stream) of a stage whose folder is ours; says what runs in
    it.
    """
    processes.once(lambda: _open(folder, experiment))
    sampler, seed = sampler_of(study, experiment, stage)
    processes.once(lambda: _count_padding(folder, experiment, stage, sampler, seed))
    return sampler, seed


def _end(experiment, stage, folder, sampler, seed, position):
    """The stage is marked as done; `position` is where its stream ended."""
    if stage.mixture:
        seen = sampler.seen(seed, position)
        processes.once(lambda: _told(folder, seen=seen))
    processes.once(lambda: write_json(folder / 'DONE.json', {
        'hash': experiment.hash, 'steps': stage.steps}))


def _open(folder, experiment):
    """`folder` says what runs in it, and not that it failed; ValueError when it is another's."""
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
    """Says now what would not fit hours later, and writes `padding.json`; of a mixture also
    `mixture.json`, what an epoch of it holds, to which its end adds what was seen."""
    sizes = sizes_of(stage, sampler, seed)
    if stage.mixture:
        _told(folder, name=sampler.corpus.mixture.name, hash=sampler.corpus.hash, seed=seed,
              epoch=sampler.realised(seed), left_out=sampler.left_out)
    if stage.loss == 'tokens':
        write_json(folder / 'padding.json', padding.figures(experiment, stage, sizes))


def _told(folder, **facts):
    """`mixture.json` of a stage says these facts, beside what it said before."""
    write_json(folder / 'mixture.json', (read_json(folder / 'mixture.json') or {}) | facts)



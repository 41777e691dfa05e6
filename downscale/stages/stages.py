"""One stage of one cell, from its parents' checkpoints to its own: what `study` and `train` run."""
import contextlib
import dataclasses
import hashlib
import json
import zlib
from functools import cache
from pathlib import Path

from downscale import config as experiments
from downscale.data.corpora.mixture import Corpus
from downscale.data.corpora.sampler import CorpusSampler
from downscale.data.pipeline import stream
from downscale.data.scenes.dataset import build, source
from downscale.data.scenes.facts import vocabulary
from downscale.data.scenes.sampler import Library, Sampler
from downscale.data.tokens import load_tokenizer, train_tokenizer
from downscale.evaluate.answers import hash_of
from downscale.experiment.cells import parent_folder
from downscale.model.init import abstract_params, init_tree
from downscale.model.tower_words import abstract_word_params
from downscale.runtime import processes
from downscale.runtime.files import place, read_json, scratch, write_json
from downscale.sharding import mesh
from downscale.stages import loading, padding
from downscale.stages.models import model_of
from downscale.train import loop, together
from downscale.train.checkpoint import load_params


def prepare(study, experiment, progress=None):
    """The data set and tokenizer of a study exist under its `scratch`; nothing is made twice.

    Returns the folder of the data set, None where nothing is asked of the scene world. ValueError
    when the vocabulary has too few rows, FileNotFoundError when a stage's mixture is not built.
    """
    published = [stage for stage in experiment.stages if stage.mixture]
    for stage in published:
        corpus(stage.mixture)
    if not in_world(experiment):
        _check_published(study, experiment, published)
        return None
    study, data = scratch(study), experiment.data
    counts = {'train': data.train, 'validation': data.validation, 'test': data.test}
    if not experiment.asks:  # what nobody looks at need not be there
        counts = {split: count for split, count in counts.items() if count}
    for split, count in counts.items():
        if not count:
            raise ValueError(f'data.{split} must be at least 1 for a study that is trained on or '
                             'asked about scenes; with evaluation.scenes=0 and no benchmarks it '
                             'asks nothing')
    if not counts:
        raise ValueError('data.train must be at least 1 for stages that are trained on scenes')
    folder = build(experiment.world, study / 'data', counts,
                   similarity_share=data.similarity_share, progress=progress)
    write_json(study / 'data.json', {'folder': str(folder.relative_to(study)),
                                     'hash': data_hash(experiment)})
    own = study.absolute() / 'tokenizer.json'
    if loading.tokenizer_path(study, experiment) == own and not own.exists():
        train_tokenizer(vocabulary(experiment.world), own)
    _check_published(study, experiment, published)
    return folder


def _check_published(study, experiment, published):
    """The vocabulary has room for the tokenizer, and rows for the records of `published` stages."""
    load_tokenizer(loading.tokenizer_path(scratch(study), experiment), experiment.language.V)
    for stage in published:
        sampler_of(study, experiment, stage)


def in_world(experiment):
    """Whether a stage or the evaluation of a cell is about the scene world."""
    asked = experiment.asks and not experiment.evaluation.benchmarks
    return asked or any(not stage.mixture for stage in experiment.stages)


@cache
def corpus(folder):
    """The corpus of a built mixture, opened once per process."""
    return Corpus(folder)


def data_hash(experiment):
    """A short hash of what is asked about, scenes or benchmarks: items pair only when it agrees."""
    asked = experiment.evaluation
    if asked.benchmarks:
        files = {path: _digest(path) for path in (*asked.benchmarks.values(),
                                                  *asked.information.values())}
        return hash_of([asked.benchmarks, asked.information, asked.scenes, files,
                        *[asked.scorers] * bool(asked.scorers)])
    return hash_of([dataclasses.asdict(experiment.world), dataclasses.asdict(experiment.data)])


@cache
def _digest(path):
    """A short hash of a file's bytes; of a folder, of the names and sizes in it."""
    path = Path(path)
    if path.is_dir():
        return hash_of([[str(one), one.stat().st_size] for one in sorted(path.rglob('*'))])
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


@cache
def library(study, split):
    """The examples of one split of a study's data set, parsed once per process."""
    path = scratch(study) / 'data.json'
    named = read_json(path)
    if named is None:
        raise FileNotFoundError(f'no {path}; run `downscale data` or `downscale study` first')
    if 'folder' not in named:
        raise ValueError(f"{path} is damaged (it has no key 'folder')")
    return Library(source(path.parent / named['folder'], split))


def encoder_of(study, experiment, stage):
    """The text encoder of a stage."""
    return loading.encoder_of(scratch(study), experiment, stage)


def sampler_of(study, experiment, stage):
    """The sampler of a stage, and the seed of its stream."""
    seed = zlib.crc32(f'{experiment.seed} {stage.name}'.encode())
    encoder = encoder_of(study, experiment, stage.name)
    if stage.mixture:
        return CorpusSampler(corpus(stage.mixture), encoder, stage.recipe, stage.shape,
                             stage.buckets), seed
    return Sampler(stage.recipe, library(str(study), 'train'), encoder, experiment.world,
                   stage.shape, stage.buckets), seed


def sizes_of(stage, sampler, seed):
    """int32 [n, 2]: tokens and tiles of the conversations of a stage's first epoch."""
    if stage.mixture:
        return sampler.sizes(seed)
    return padding.sizes(sampler.library.source.folder, sampler, seed)


def padding_lines(study, experiment):
    """What each packed stage of a cell wastes, and the buckets that would waste less, as lines."""
    for stage in experiment.stages:
        if stage.loss == 'tokens':
            sampler, seed = sampler_of(study, experiment, stage)
            yield from padding.lines(experiment, stage, sizes_of(stage, sampler, seed))


def folder_of(study, experiment, stage):
    """Where a stage of a cell lives."""
    return place(study) / 'cells' / experiment.name / stage


def is_done(folder, experiment):
    """Whether `folder` holds a finished run of exactly this cell."""
    done = read_json(place(folder) / 'DONE.json')
    return done is not None and done.get('hash') == experiment.hash


def _nothing_to_do(folder, experiment):
    """Whether the stage in `folder` is done; it then no longer says that it failed, as it would
    after an attempt that ended in an error of a cell beside it."""
    done = is_done(folder, experiment)
    if done:
        (folder / 'FATAL.json').unlink(missing_ok=True)
    return done


def start_shapes(experiment, stage):
    """The ShapeDtypeStructs of `start_params`; nothing is read."""
    model = model_of(experiment, stage.name)
    if stage.name == 'tower':
        return abstract_word_params(model)
    groups = ['language']
    if stage.tiles:
        groups += ['tower', 'connector', *['image_newline_D'] * model.newline]
    return abstract_params(model, tuple(groups))


def start_params(study, experiment, stage):
    """Inherited groups from the parents' checkpoints or from imports, fresh ones from the seed."""
    target = start_shapes(experiment, stage)
    if stage.name == 'tower':
        return init_tree(target, experiment.seed)
    groups = list(target)
    rest = [name for name in groups if name not in stage.parents]
    params = init_tree({name: target[name] for name in rest if name not in experiment.imports},
                       experiment.seed, model_of(experiment, stage.name).growth)
    for name in rest:
        if name in experiment.imports:
            params |= load_params(experiment.imports[name], target, [name])
    for reference in sorted(set(stage.parents.values())):
        wanted = [name for name, parent in stage.parents.items()
                  if parent == reference and name in groups]
        folder = parent_folder(study, experiment, reference)
        params |= load_params(folder, target, wanted)
    return params


def grid_of(experiment):
    """The cell's mesh over the devices at hand; ValueError when it, or a batch, does not fit."""
    size = experiment.mesh
    grid = mesh(size.data, size.fsdp, size.tensor)
    for stage in experiment.stages:
        try:
            loop.share(grid, model_of(experiment, stage.name).rules).rows(stage.batch)
        except ValueError as error:
            raise ValueError(f'{experiment.name}, stage {stage.name}: {error}') from None
    return grid


def train_stage(study, experiment, name, report=lambda step, metrics: None, tracker='tensorboard'):
    """Stage `name` of the cell is finished under its folder; resumes by itself, skips when done.

    A folder that holds another configuration is refused: ValueError says which keys differ.
    `tracker` is a key of `trackers.WRITERS`.
    """
    stage, grid = experiment.stage(name), grid_of(experiment)
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


def train_together(study, cells, name, report=lambda cell, step, metrics: None,
                   tracker='tensorboard'):
    """Stage `name` of all `cells` is finished, as `train_stage` would finish each, in one program.

    The cells must agree in `program_of` that stage. Returns {cell name: error} of those that
    failed.
    """
    failed, begun = {}, {}
    with contextlib.ExitStack() as stack:
        for cell in cells:
            folder, stage = folder_of(study, cell, name), cell.stage(name)
            try:
                _refuse_other_mixture(folder, stage)
                if not _nothing_to_do(folder, cell):
                    stack.enter_context(loop.only_process(folder))
                    begun[folder] = cell, *_begin(study, cell, stage, folder)
            except Exception as error:  # one cell's folder must not stop the others
                failed[cell.name] = error
        if begun:
            cell, stage = cells[0], cells[0].stage(name)
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
    """The `together.Run` of one cell."""
    stage = cell.stage(name)
    return together.Run(folder, lambda: start_params(study, cell, stage), stage.rates, seed,
                        lambda: iter(stream(sampler, seed)),
                        lambda step, row: report(cell, step, row))


def program_of(experiment, name):
    """A hash that cells share whose stage `name` can be trained together: they differ in names,
    seeds and rates only. None where batches have several shapes, which would not come in step."""
    value = dataclasses.asdict(experiment)
    for key in ('name', 'seed', 'stages', 'evaluation', 'budget'):
        del value[key]
    stage = experiment.stage(name)
    value['stage'] = dataclasses.asdict(stage) | {'rates': None}
    return None if stage.buckets else hash_of(value)


def one_device(experiment):
    """The cell's mesh; ValueError when it has several devices, over which no cells are stacked."""
    grid = grid_of(experiment)
    if grid.size > 1:
        raise ValueError(f'cells are trained together on one device, and the mesh of '
                         f'{experiment.name} has {grid.size}; leave out --together, or let this '
                         'process see one device')
    return grid


def _begin(study, experiment, stage, folder):
    """(sampler, seed of its stream) of a stage whose folder is ours; says what runs in it."""
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
    experiments.save(experiment, folder)


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


def refuse_other(folder, experiment):
    """Raise ValueError naming what differs when `folder` was started with another experiment."""
    before, now = (json.loads(json.dumps(dataclasses.asdict(cell)))
                   for cell in (experiments.load(folder), experiment))
    # Where the work is done is not what is done: a checkpoint continues on any mesh. A budget is
    # a label.
    changed = sorted(key for key in now if now[key] != before[key]
                     and key not in ('mesh', 'budget'))
    if changed:
        raise ValueError(f'{folder} was started with other settings ({", ".join(changed)}); give '
                         'the study another folder with --out, or delete this one')

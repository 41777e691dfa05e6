"""What a stage reads: the data set, its library, encoder and sampler."""
import dataclasses
import hashlib
import zlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np

from downscale.config import Experiment
from downscale.data.chat import render
from downscale.data.corpora.mixture import Corpus
from downscale.data.corpora.sampler import CorpusSampler
from downscale.data.records import THINK
from downscale.data.scenes.conversations import ask
from downscale.data.scenes.dataset import build, folder_of, source
from downscale.data.scenes.kinds import kind_of
from downscale.data.scenes.sampler import Library, Sampler
from downscale.data.tokens import Encoder, load_tokenizer, train_tokenizer
from downscale.runtime.files import PathLike, read_json, scratch, write_json
from downscale.stage_config import Stage
from downscale.stages import loading, padding, teachers
from downscale.values import hash_of


def prepare(study: PathLike, experiment: Experiment, progress: Callable | None = None,
            among: Iterable[Experiment] = ()) -> Path | None:
    """Make the data set of a cell and the tokenizer of its study under its `scratch`.

    What is there stays. The tokenizer has the words of all worlds of the cells it is `among`.
    Returns the folder of the data set, None where nothing is asked of the scene world. ValueError
    when the vocabulary has too few rows, FileNotFoundError when a stage's mixture is not built.
    """
    # 1. Mixtures are built by another command; one that is missing is told before any work.
    published = [stage for stage in experiment.stages if stage.mixture]
    for stage in published:
        corpus(stage.mixture)
    if not in_world(experiment):
        _check_published(study, experiment, published)
        teachers.refuse_other_tokenizer(study, among)
        return None
    # 2. Scenes, on a disk of this machine even when the study is in a bucket.
    study = scratch(study)
    counts = _counts(experiment)
    for split, count in counts.items():
        if not count:
            raise ValueError(f'data.{split} must be at least 1 for a study that is trained on or '
                             'asked about scenes; with evaluation.scenes=0 and no benchmarks it '
                             'asks nothing')
    if not counts:
        raise ValueError('data.train must be at least 1 for stages that are trained on scenes')
    folder = build(experiment.world, study / 'data', counts,
                   similarity_share=experiment.data.similarity_share, progress=progress)
    write_json(study / 'data.json', {'folder': str(folder.relative_to(study)),
                                     'hash': data_hash(experiment)})
    # 3. The tokenizer; a configured one, or that of an imported model, is used as it is.
    made_here = study.absolute() / 'tokenizer.json'
    if loading.tokenizer_path(study, experiment) == made_here:
        words = set()
        for cell in (experiment, *among):
            words.update(kind_of(cell.world).vocabulary(cell.world))
        if not made_here.exists():
            train_tokenizer(words, made_here)
        lacking = sorted(words - load_tokenizer(made_here).get_vocab().keys())
        if lacking:
            raise ValueError(f'{made_here} lacks {len(lacking)} words of the worlds of this study, '
                             f'first {lacking[0]!r}: it was made for other worlds; give the study '
                             'another folder with --out')
    _check_published(study, experiment, published)
    teachers.refuse_other_tokenizer(study, among)
    return folder


def _counts(experiment):
    """Return {split: examples} of a cell's data set."""
    data = experiment.data
    counts = {'train': data.train, 'validation': data.validation, 'test': data.test}
    if not experiment.asks:  # what nobody looks at need not be there
        counts = {split: count for split, count in counts.items() if count}
    return counts


def _check_published(study, experiment, published):
    """Refuse a tokenizer that the vocabulary has no room for, and records that no row holds."""
    load_tokenizer(loading.tokenizer_path(scratch(study), experiment), experiment.language.V)
    for stage in published:
        # Opening a sampler measures its records, and raises for those that are longer than any row.
        sampler_of(study, experiment, stage)


def in_world(experiment: Experiment) -> bool:
    """Return whether a stage or the evaluation of a cell is about the scene world."""
    asked = experiment.asks and not experiment.evaluation.benchmarks
    return asked or any(not (stage.mixture or stage.policy.questions)
                        for stage in experiment.stages)


@cache
def corpus(folder: str) -> Corpus:
    """Return the corpus of a built mixture, opened once per process."""
    return Corpus(folder)


def data_hash(experiment: Experiment) -> str:
    """Return a short hash of what is asked about: items pair only when it agrees."""
    asked = experiment.evaluation
    if asked.benchmarks:
        files = {path: _digest(path) for path in (*asked.benchmarks.values(),
                                                  *asked.information.values())}
        parts = [asked.benchmarks, asked.information, asked.scenes, files]
        if asked.scorers:  # studies of before one could choose keep their hash
            parts.append(asked.scorers)
        return hash_of(parts)
    return hash_of([experiment.world.declared(), dataclasses.asdict(experiment.data)])


@cache
def _digest(path):
    """Return a short hash of a file's bytes; of a folder, of the names and sizes in it."""
    path = Path(path)
    if path.is_dir():
        return hash_of([[str(file), file.stat().st_size] for file in sorted(path.rglob('*'))])
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


@cache
def library(study: str, split: str) -> Library:
    """Return the examples of one split of a study's data set, parsed once per process."""
    path = scratch(study) / 'data.json'
    named = read_json(path)
    if named is None:
        raise FileNotFoundError(f'no {path}; run `downscale data` or `downscale study` first')
    if 'folder' not in named:
        raise ValueError(f"{path} is damaged (it has no key 'folder')")
    return _opened(path.parent / named['folder'], split)


def library_of(study: PathLike, experiment: Experiment, split: str) -> Library:
    """Return the examples of one split of a cell's data set."""
    counts = _counts(experiment)
    if counts and all(counts.values()):
        folder = folder_of(experiment.world, scratch(study) / 'data', counts,
                           experiment.data.similarity_share)
        if (folder / 'baselines.json').exists():
            return _opened(folder, split)
    # Made by an earlier version, or put there: then it is that of the whole study.
    return library(str(study), split)


@cache
def _opened(folder, split):
    """Return the examples of a split in a folder, parsed once per process."""
    return Library(source(folder, split))


def encoder_of(study: PathLike, experiment: Experiment, stage: str) -> Encoder:
    """Return the text encoder of a stage."""
    return loading.encoder_of(scratch(study), experiment, stage)


def sampler_of(study: PathLike, experiment: Experiment,
               stage: Stage) -> tuple[Sampler | CorpusSampler, int]:
    """Return the sampler of a stage, and the seed of its stream."""
    # By name: each stage has an order of its own, and cells of one seed read the same rows.
    seed = zlib.crc32(f'{experiment.seed} {stage.name}'.encode())
    if stage.thinks:
        _check_thoughts(experiment.chat_of(stage.name), stage)
    encoder = encoder_of(study, experiment, stage.name)
    if stage.mixture:
        return CorpusSampler(corpus(stage.mixture), encoder, stage.recipe, stage.shape,
                             stage.buckets), seed
    return Sampler(
        recipe=stage.recipe,
        library=library_of(study, experiment, 'train'),
        encoder=encoder,
        world=experiment.world,
        shape=stage.shape,
        buckets=stage.buckets,
    ), seed


def _check_thoughts(chat, stage):
    """Raise ValueError where a chat drops thoughts that a stage learns; an imported one may."""
    turns = ask('what', f'that {THINK[1]} a', thinking=True) * stage.turns
    learnt = [text for text, weight in render(chat, turns) if weight]
    if not all(THINK[1] in text for text in learnt):
        raise ValueError(f'stage {stage.name}: the chat template drops thoughts that are to be '
                         f'learnt from the {stage.turns} replies of a conversation; choose a '
                         'built-in chat, or, where it keeps that of the last reply, turns of 1')


def sizes_of(stage: Stage, sampler: Sampler | CorpusSampler, seed: int) -> np.ndarray:
    """Return int32 [n, 2]: tokens and tiles of the conversations of a stage's first epoch."""
    if stage.mixture:
        return sampler.sizes(seed)
    # pyrefly: ignore[bad-argument-type]
    return padding.sizes(sampler.library.source.folder, sampler, seed)

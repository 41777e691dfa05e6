"""How much of its scene a caption tells, field by field, with no reader between.

A caption and the scene's own are lists of records, one an object. Records are matched so that most
words agree; a field is told where its word stands in the matched record. Shares are over the longer
list, so that objects left out and objects made up both count. What a reader makes of a caption has
in it what that reader can guess, and what it cannot read; this has neither, and needs a made-up
world, whose scenes are known. Captions of several pictures have another grammar and stay out.
"""
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from downscale.analysis.measures import Row
from downscale.config import load
from downscale.data.scenes.world import FIELDS
from downscale.evaluate.run import test_items
from downscale.results.study import Study, load_study
from downscale.results.text_kinds import CAPTION
from downscale.runtime.files import PathLike, place
from downscale.statistics import bootstrap

ALL = 'all fields'
OTHER = 'true captions of other scenes'
PLACE = ('column', 'row')  # of two words in the cluttered world


def fields_of(truth: str) -> tuple[str, ...]:
    """Return the names of the words of a record, as a scene's own caption has them."""
    at = FIELDS.index('cell')
    split = (*FIELDS[:at], *PLACE, *FIELDS[at + 1:])
    return split if len(_records(truth)[0]) == len(split) else FIELDS


def told(caption: str, truth: str) -> np.ndarray:
    """Return the share of a scene's objects whose field `caption` tells, [fields] in 0..1."""
    true = _records(truth)
    written = _records(caption)
    fields = len(true[0])
    agree_WTF = np.zeros((len(written), len(true), fields), bool)
    for w, words in enumerate(written):
        for t, right in enumerate(true):
            # A record that breaks off tells nothing behind its end.
            agree_WTF[w, t, :len(words)] = [a == b for a, b in zip(words, right)]
    pairs = linear_sum_assignment(agree_WTF.sum(axis=2), maximize=True)
    return agree_WTF[pairs].sum(axis=0) / max(len(true), len(written))


def caption_rows(folder: PathLike, bootstraps: int = 2000,
                 seed: int = 0) -> tuple[list[Row], list[str]]:
    """Return (rows, notes): the share of each field that every run's captions tell, and of all.

    Runs of several seeds have a mean, whose interval covers seeds from three on. The last rows are
    what true captions of other scenes would have. ValueError where no captions of a made-up world
    were written.
    """
    study = load_study(folder)
    scene_of, truths = _scenes(folder, study)
    writers, notes = _writers(study, scene_of)
    truth_S = [truths[scene] for scene in sorted(truths)]
    resamples = bootstrap.resample(sorted(truths), bootstraps, seed)
    means = _means([*writers.values(), [*truth_S[1:], truth_S[0]]], truth_S, resamples)
    rows = []
    for name, runs in _settings(study, writers).items():
        places = [list(writers).index(run) for run in runs]
        if len(places) > 1:
            rows += _rows(f'{name}, mean over seeds', bootstrap.over_seeds(
                _only(means, places), len(places), resamples))
    for k, name in enumerate([*writers, OTHER]):
        rows += _rows(name, _only(means, [k]))
    return rows, notes


def _records(text: str) -> list[list[str]]:
    return [words for part in text.split(';') if (words := part.split())]


def _scenes(folder: PathLike, study: Study) -> tuple[dict[str, str], dict[str, str]]:
    """Return ({item: its scene}, {scene: its own caption}) of questions about one picture."""
    wrote = sorted(set(study.texts['p_run'][study.texts['text_kind'] == CAPTION]))
    if not wrote:
        raise ValueError(f'{folder}: no run has written captions; name caption in '
                         'evaluation.texts, and evaluate')
    cells = place(folder) / 'cells' / wrote[0]
    experiment = load(min(cells.glob('*/experiment.json')).parent)
    if experiment.evaluation.benchmarks:
        raise ValueError(f'{folder}: its pictures are those of benchmarks, whose content is not '
                         'known; captions are held against scenes of a made-up world')
    items = [item for item in test_items(folder, experiment) if len(item.example.images) == 1]
    if not items:
        raise ValueError(f'{folder}: it asks about several pictures at once only; captions of one '
                         'are held against its scene')
    return ({item.question.item_id: item.example.scene_id for item in items},
            {item.example.scene_id: item.example.caption for item in items})


def _writers(study: Study, scene_of: dict[str, str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return ({run: a caption of each scene}, notes on runs without some of them)."""
    written = {}
    rows = study.texts['text_kind'] == CAPTION
    for run, item, text in zip(*(study.texts[name][rows] for name in ('p_run', 'item_id', 'text')),
                               strict=True):
        if item in scene_of:
            written.setdefault(run, {})[scene_of[item]] = text
    scenes = sorted(set(scene_of.values()))
    notes = [f'{run}: left out, since it has captions of {len(texts)} of {len(scenes)} scenes'
             for run, texts in written.items() if len(texts) < len(scenes)]
    # Seeds of a setting side by side.
    runs = sorted(study.meta['runs'], key=lambda run: (
        run['n_total'], run['size'], run.get('changes', ''), run['seed']))
    writers = {}
    for name in (run['run_id'] for run in runs):
        if len(written.get(name, ())) == len(scenes):
            writers[name] = [written[name][scene] for scene in scenes]
    return writers, notes


def _settings(study: Study, writers: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return {size and changes: its runs}, which differ in the seed alone."""
    settings = {}
    by_name = {run['run_id']: run for run in study.meta['runs']}
    for name in writers:
        run = by_name[name]
        setting = ' '.join(filter(None, (run['size'], run.get('changes', ''))))
        settings.setdefault(setting, []).append(name)
    return settings


def _means(texts_RS: Sequence[Sequence[str]], truth_S: Sequence[str],
           resamples: bootstrap.Resamples) -> bootstrap.Means:
    """Return what each writer's captions tell, by field and in the mean of all."""
    fields = fields_of(truth_S[0])
    told_RSF = np.array([list(map(told, texts, truth_S)) for texts in texts_RS])
    # Groups are sorted by name, and fields have an order.
    groups = [f'{k} {field}' for k, field in enumerate(fields)]
    means = bootstrap.group_means(told_RSF.reshape(len(told_RSF), -1),
                                  np.tile(groups, len(truth_S)),
                                  np.repeat(resamples.clusters, len(fields)), resamples)
    return bootstrap.with_macro(replace(means, groups=fields))


def _only(means, places):
    return replace(means, value=means.value[places], draws=means.draws[:, places])


def _rows(name: str, means: bootstrap.Means) -> Iterator[Row]:
    """Yield the row of each field of the one writer, or mean of writers, in `means`."""
    for column, field in enumerate((*means.groups[:-1], ALL)):
        found = means.interval(means.value[0, column], means.draws[:, 0, column], column, (0, 1))
        yield Row(table=name, setting='caption', family=field, what='told', value=found.value,
                  low=found.low, high=found.high, n=found.n, clusters=found.clusters,
                  method=found.method, seeds=found.seeds)

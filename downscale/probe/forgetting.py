"""What a stage that writes cost elsewhere: what its model could do before it, and can do after it.

Every writer is asked what was asked of the stage that answered, from which it went on: the
questions of the test scenes, at once and with their pictures, and a caption of every picture.
Answers are judged twice: as written, and by which of the family's answers is the likeliest, since a
model may know what it no longer says. Captions are held against their scenes, as in `captions`.
Needs JAX and the checkpoints of a study; what was asked is kept, so that a killed command goes on.
"""
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from downscale.analysis.measures import Row
from downscale.config import Experiment, load
from downscale.evaluate.answers import Item, answer_in, prompt_of, windows, wording_of
from downscale.evaluate.run import engine_of, test_items
from downscale.experiment.references import reference_of
from downscale.generate.engine import Engine
from downscale.generate.requests import Reply, Request
from downscale.probe.captions import ALL, fields_of, told
from downscale.results.study_file import read_study
from downscale.results.text_kinds import CAPTION
from downscale.runtime.files import PathLike, place, read_json, write_json
from downscale.stage_table import JOINT, STAGES
from downscale.stages.fingerprint import fingerprint
from downscale.stages.folders import folder_of, is_done
from downscale.stages.inputs import data_hash
from downscale.statistics import bootstrap
from downscale.values import hash_of

# What is asked, and what stands for the mean over the families of each.
WRITTEN, LIKELIEST, TOLD = 'answer at once', 'likeliest answer', 'caption'
VISUAL, FACTS = 'visual', 'facts'
CONSTANT = 'one answer for all questions of a family'
MOST = 64  # answers of a family, of which the likeliest is looked for
_WEIGHTS = {'before': ((1, 0), (0, 1)), 'after': ((0, 1), (0, 1)), 'change': ((-1, 1), (-1, 1))}


class Model(NamedTuple):
    """A stage of a cell, and what it is called: 'w64d2-s0/extract'."""
    cell: Experiment
    stage: str

    @property
    def name(self) -> str:
        """The cell and the stage."""
        return f'{self.cell.name}/{self.stage}'


def forgetting_rows(study: PathLike, bootstraps: int = 2000, seed: int = 0,
                    report: Callable[[str, int, int], object] = lambda name, done, total: None
                    ) -> tuple[list[Row], list[str]]:
    """Return (rows, notes): what every writer can do before and after it learnt to write.

    Writers that differ in their seed alone have a mean, whose interval covers seeds from three on.
    ValueError where no stage that writes goes on from one that answers.
    """
    before, notes = _writers(study)
    if not before:
        raise ValueError(f'{study}: no finished stage that writes goes on from a finished one that '
                         f'answers{"".join(f"; {note}" for note in notes[:2])}')
    before, others = _of_one_data(before)
    notes += others
    items = test_items(study, before[0][0].cell)
    if not items:
        raise ValueError(f'{study}: evaluation.scenes is 0, so that nothing is asked')
    # 1. What every model can do; what stands before several writers is asked once.
    can = {}
    for pair in before:
        for model in pair:
            if model.name not in can:
                can[model.name] = _ask(study, model, items, report)
    # 2. Seeds of one setting side by side, as `study.json` calls it.
    rows = list(_constant(items, bootstraps, seed))
    families = {item.question.family for item in items}
    notes += [f'{family}: no likeliest answer, since it has not 2 to {MOST} right ones'
              for family in sorted(families - set(answers_of(items)))]
    settings = {}
    changes = {run['run_id']: run.get('changes', '') for run in read_study(place(study))['runs']}
    for writer, base in before:
        name = ', '.join(filter(None, (f'{writer.cell.size} {writer.stage}',
                                       changes[writer.cell.name])))
        settings.setdefault(name, {})[writer.name] = can[base.name], can[writer.name]
    for name, pairs in settings.items():
        if len(pairs) > 1:
            rows += _rows(f'{name}, mean over seeds', items, [*pairs.values()], bootstraps, seed)
        note = f'in the mean of {name}' if len(pairs) > 1 else ''
        for writer, pair in pairs.items():
            rows += [replace(row, note=note)
                     for row in _rows(writer, items, [pair], bootstraps, seed)]
    return rows, notes


def _writers(study: PathLike) -> tuple[list[tuple[Model, Model]], list[str]]:
    """Return (finished writers, each with the stage that answered before it; notes on others)."""
    writers, notes = [], []
    for run in read_study(place(study))['runs']:
        for name, kind in STAGES.items():
            folder = place(study) / 'cells' / run['run_id'] / name
            if not kind.writes or not (folder / 'DONE.json').exists():
                continue
            cell = load(folder)
            base = _answered(study, cell, name)
            if base is None or not is_done(folder, cell):
                notes.append(f'{run["run_id"]}/{name}: left out, since '
                             + ('it is not finished' if base else 'nothing before it answers'))
            else:
                writers.append((Model(cell, name), base))
    return writers, notes


def _of_one_data(pairs):
    """Return (the pairs that were asked what the first was, notes on those left out)."""
    def asked(pair):
        cell = pair[0].cell
        return repr((cell.world, cell.data, cell.evaluation))
    same = [pair for pair in pairs if asked(pair) == asked(pairs[0])]
    return same, [f'{pair[0].name}: left out, since its world, data or evaluation are not those of '
                  f'{pairs[0][0].name}' for pair in pairs if pair not in same]


def _answered(study: PathLike, cell: Experiment, stage: str) -> Model | None:
    """Return the stage that answers at once from which `stage` of a cell went on; None of none."""
    reference = cell.stage(stage).parents.get('language')
    while reference:
        name, _, stage = reference_of(cell, reference).rpartition('/')
        folder = place(study) / 'cells' / name / stage
        if not (folder / 'DONE.json').exists():
            return None
        cell = load(folder)
        # What explains before it answers is asked otherwise, and passed by.
        if stage in JOINT:
            return Model(cell, stage)
        reference = cell.stage(stage).parents.get('language')
    return None


# --- asking -------------------------------------------------------------------------------------

def _ask(study: PathLike, model: Model, items: Sequence[Item], report: Any) -> dict[str, Any]:
    """Return what a model can do: scores by item, and shares of fields by scene.

    They are kept in `forgetting/` of the study, for the same weights and questions.
    """
    path = place(study) / 'forgetting' / f'{model.name.replace("/", "-")}.json'
    digest = hash_of([fingerprint(folder_of(study, model.cell, model.stage)),
                      data_hash(model.cell), MOST, [item.question.item_id for item in items]])
    kept = read_json(path)
    if kept is None or kept.get('hash') != digest:
        engine, _ = engine_of(study, model.cell, model.stage)
        kept = {'hash': digest, **_asked(engine, model, items, report)}
        write_json(path, kept)
    return kept


def _asked(engine: Engine, model: Model, items: Sequence[Item], report: Any) -> dict[str, Any]:
    plan = model.cell.evaluation
    encoder = engine.encoder
    answers = answers_of(items)
    scenes = scenes_of(items)
    # 1. All questions: what it writes, and how likely it finds each answer of the family. One token
    #    is written beside each of those, which nobody reads.
    asked = []
    first = []
    for item in items:
        first.append(len(asked))
        asked.append((item, item.question.text, plan.answer, None))
        asked += [(item, item.question.text, 1, (*encoder.ids(answer), encoder.stop))
                  for answer in answers.get(item.question.family, ())]
    # 2. A caption of every scene.
    captions = len(asked)
    wording = wording_of(model.cell)
    asked += [(item, wording.describe(item, CAPTION), plan.write, None) for item in scenes]
    replies = _replies(engine, asked, lambda done: report(model.name, done, len(asked)))
    written = []
    likeliest: list[float | None] = []
    for item, place_of in zip(items, first, strict=True):
        text, answered = answer_in(replies[place_of].text, None)
        written.append(item.judge(text, False)[2] if answered else 0.0)
        some = answers.get(item.question.family, ())
        nats = [replies[place_of + 1 + k].nll for k in range(len(some))]
        # Of whole answers and their end, so that the beginning of a longer one is told from it.
        best = some[int(np.argmin(nats))] if nats else None
        likeliest.append(float(best == item.question.answer) if nats else None)
    return {'written': written, 'likeliest': likeliest, 'told': [
        told(reply.text, item.example.caption).tolist()
        for reply, item in zip(replies[captions:], scenes, strict=True)]}


def _replies(engine: Engine, asked: Sequence[tuple[Item, str, int, Any]],
             report: Callable[[int], object]) -> list[Reply]:
    """Return a reply for each (item, text, limit, target), in order."""
    def requests():
        seen = prompt = None
        for item, text, limit, target in asked:
            # Pictures are cut once for all that is asked about them in a row.
            if seen != (item.question.item_id, text):
                seen = item.question.item_id, text
                prompt = prompt_of(engine.encoder, text, item.example.images)
            yield Request(prompt, limit=limit, target=target)
    replies = {}
    first = 0
    for window in windows(requests()):
        for index, reply in engine.stream(window):
            replies[first + index] = reply
            report(len(replies))
        first += len(window)
    return [replies[k] for k in range(len(asked))]


def answers_of(items: Sequence[Item]) -> dict[str, list[str]]:
    """Return {family: its right answers} of families with 2 to `MOST` of them."""
    answers = {}
    for item in items:
        answers.setdefault(item.question.family, set()).add(item.question.answer)
    return {family: sorted(some) for family, some in answers.items() if 2 <= len(some) <= MOST}


def scenes_of(items: Sequence[Item]) -> list[Item]:
    """Return an item of every scene of one picture whose content is known."""
    scenes = {}
    for item in items:
        if item.example.count == 1 and item.example.caption:
            scenes.setdefault(item.example.scene_id, item)
    return list(scenes.values())


def of_settings(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of writers: of each setting those of its mean over seeds, or else its own."""
    return [row for row in rows if row.table != CONSTANT and (row.seeds > 1 or not row.note)]


# --- rows ---------------------------------------------------------------------------------------

def _rows(table: str, items: Sequence[Item], pairs: Sequence[tuple[dict, dict]],
          bootstraps: int, seed: int) -> Iterator[Row]:
    """Yield the rows of one writer, or of the seeds of one: `pairs` are (before, after) of each."""
    flat = list(itertools.chain.from_iterable(pairs))
    clusters = [item.question.cluster_id for item in items]
    families = [item.question.family for item in items]
    visual = np.array([item.question.kind == 'visual' for item in items])
    for setting, key in ((WRITTEN, 'written'), (LIKELIEST, 'likeliest')):
        values = np.array([can[key] for can in flat], float)
        there = ~np.isnan(values[0])
        for name, some in ((VISUAL, visual & there), (FACTS, ~visual & there)):
            if some.any():
                yield from _changes(table, setting, name, values[:, some],
                                    np.array(families)[some], np.array(clusters)[some],
                                    bootstraps, seed)
    scenes = scenes_of(items)
    if scenes:
        fields = fields_of(scenes[0].example.caption)
        values = np.array([can['told'] for can in flat])
        yield from _changes(table, TOLD, ALL, values.reshape(len(values), -1),
                            np.tile(fields, len(scenes)),
                            np.repeat([item.question.cluster_id for item in scenes], len(fields)),
                            bootstraps, seed)


def _changes(table, setting, whole, values, groups, clusters, bootstraps, seed):
    """Yield before, after and change of every group, and of their mean, which is called `whole`.

    `values` are [before and after of each seed, items].
    """
    resamples = bootstrap.resample(clusters, bootstraps, seed)
    means = bootstrap.with_macro(bootstrap.group_means(values, groups, clusters, resamples))
    # Rows of a seed are before and after, seed by seed, as `over_seeds` wants them.
    if len(values) > 2:
        means = bootstrap.over_seeds(means, len(values) // 2, resamples)
    for column, family in enumerate((*means.groups[:-1], whole)):
        for what, (weights, bounds) in _WEIGHTS.items():
            mean = bootstrap.contrast(means, np.array(weights), column, bounds)
            yield Row(table=table, setting=setting, family=family, what=what, value=mean.value,
                      low=mean.low, high=mean.high, n=mean.n, clusters=mean.clusters,
                      method=mean.method, seeds=mean.seeds)


def _constant(items, bootstraps, seed):
    """Yield what is right of the answer that is most often right in its family."""
    best = {}
    for item in items:
        best.setdefault(item.question.family, []).append(item.question.answer)
    # Of answers that are as often right the first by its letters, so that each run says the same.
    best = {family: max(sorted(set(some)), key=some.count) for family, some in best.items()}
    for name in (VISUAL, FACTS):
        some = [item for item in items if (item.question.kind == 'visual') == (name == VISUAL)]
        if some:
            right = [float(best[item.question.family] == item.question.answer) for item in some]
            clusters = [item.question.cluster_id for item in some]
            resamples = bootstrap.resample(clusters, bootstraps, seed)
            means = bootstrap.macro(bootstrap.group_means(
                right, [item.question.family for item in some], clusters, resamples))
            mean = means.interval(means.value[0, 0], means.draws[:, 0, 0], 0, (0, 1))
            yield Row(table=CONSTANT, setting='', family=name, what='right', value=mean.value,
                      low=mean.low, high=mean.high, n=mean.n, clusters=mean.clusters,
                      method=mean.method)

"""The evaluations of a cell, each from checkpoints to a finished folder under `evaluations/`."""
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from downscale.config import BRIEF
from downscale.evaluate import decoupled, public
from downscale.evaluate.answers import SCENE, items_of
from downscale.evaluate.joint import joint
from downscale.evaluate.runs import open_engine
from downscale.generate.engine import Engine
from downscale.model.init import abstract_params
from downscale.results.items import write_items, write_texts
from downscale.runtime.files import place, write_bytes, write_json
from downscale.stage_table import WRITER
from downscale.stages.folders import folder_of, is_done
from downscale.stages.inputs import data_hash, encoder_of, library
from downscale.stages.models import model_of
from downscale.train.checkpoint import load_params


def engine_of(study, experiment, stage):
    """Return the engine of a finished stage of a cell; of 'reason' without one, of the imported
    model.
    """
    if stage == 'reason' and not any(one.name == stage for one in experiment.stages):
        return open_engine(Path(experiment.imports['language']), experiment.evaluation.batch)
    model = model_of(experiment, stage)
    groups = ['language']
    if stage != 'reason':
        groups += ['tower', 'connector', *['image_newline_D'] * model.newline]
    target = abstract_params(model, tuple(groups))
    params = load_params(folder_of(study, experiment, stage), target)
    return Engine(model, params, encoder_of(study, experiment, stage),
                  experiment.evaluation.batch)


def test_items(study, experiment):
    """Return every question about the first `evaluation.scenes` test examples, or of the
    benchmarks; none where nothing is asked.
    """
    if not experiment.asks:
        return []
    if experiment.evaluation.benchmarks:
        return public.items(experiment.evaluation)
    test = library(str(study), 'test')
    if experiment.evaluation.scenes > len(test):
        raise ValueError(f'evaluation.scenes {experiment.evaluation.scenes} > {len(test)} examples '
                         'of the test split; lower it or raise data.test')
    return items_of(test.source, experiment.evaluation.scenes)


def evaluate(study, experiment, name, writers=None, report=lambda done, total: None):
    """Evaluation `name` of a cell is finished: 'joint', 'caption', 'extraction' or 'reason'.

    'reason' answers from gold texts and from those of `writers` {kind: experiments}. Rows go to
    `evaluations/<name>-<cell>/`; a finished folder of the same cell is left alone.
    """
    folder = place(study) / 'evaluations' / f'{name}-{experiment.name}'
    if is_done(folder, experiment):
        return
    items = test_items(study, experiment)
    wording = public.wording(experiment) if experiment.evaluation.benchmarks else SCENE
    if name == 'joint':
        engine = engine_of(study, experiment, experiment.joint_stage)
        data = data_hash(experiment)
        write_items(folder / 'items.parquet',
                    joint(engine, experiment, items, data, report, wording))
    elif name == 'reason':
        engine = engine_of(study, experiment, 'reason')
        texts = _texts(study, experiment, items, writers or {}, engine.encoder)
        data = data_hash(experiment)
        write_items(folder / 'items.parquet',
                    decoupled.answer(engine, experiment, items, texts, data, report, wording))
    else:
        engine = engine_of(study, experiment, experiment.writer_stage(name))
        write_texts(folder / 'texts.parquet',
                    decoupled.describe(engine, experiment, items, name, report, wording))
    write_json(folder / 'throughput.json', engine.stats.summary())
    write_json(folder / 'DONE.json', {'hash': experiment.hash})


def _texts(study, experiment, items, writers, encoder):
    """Return {(perception run or GOLD, kind): {item_id: text}} of everything there is to read."""
    found = {}
    kinds = experiment.evaluation.texts
    for kind in (kind for kind in kinds if kind in WRITER):
        if not experiment.evaluation.benchmarks:  # nobody has written what their pictures show
            found[decoupled.GOLD, kind] = decoupled.gold_texts(items, kind)
        for other in writers.get(kind, ()):
            path = place(study) / 'evaluations' / f'{kind}-{other.name}' / 'texts.parquet'
            table = pq.read_table(pa.BufferReader(path.read_bytes()), columns=['item_id', 'text'])
            rows = table.to_pylist()
            found[other.name, kind] = {row['item_id']: row['text'] for row in rows}
            lacking = [i for i in items if i.question.item_id not in found[other.name, kind]]
            if lacking:
                raise ValueError(f'{path} lacks {len(lacking)} of {len(items)} items; delete its '
                                 'folder and run again')
    if BRIEF in kinds:
        both = [run for run, kind in found if kind == 'extraction' and (run, 'caption') in found]
        found |= {(run, BRIEF): decoupled.brief_texts(
            found[run, 'caption'], found[run, 'extraction'], encoder) for run in both}
    return found


def save_pictures(study, experiment, items):
    """The first pictures of `items` lie as files under `pictures/`, for the report's gallery."""
    shown = {}
    for item in items:
        if len(shown) < experiment.evaluation.pictures and item.question.kind == 'visual':
            shown.setdefault(item.question.cluster_id, item.example.images)
    for cluster, pngs in shown.items():
        for k, png in enumerate(pngs):
            name = f'{cluster.replace("/", "_")}-{k}.png'
            write_bytes(place(study) / 'pictures' / name, png)

"""The evaluations of a cell, each from checkpoints to a finished folder under `evaluations/`."""
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import pyarrow as pa
import pyarrow.parquet as pq

from downscale.config import BRIEF, Experiment
from downscale.data.tokens import Encoder
from downscale.evaluate import decoupled, public
from downscale.evaluate.answers import Item, items_of
from downscale.evaluate.joint import EXPLAINED, JOINT, joint
from downscale.evaluate.runs import open_engine, own_mesh
from downscale.generate.engine import Engine
from downscale.generate.replies import Replies, Report
from downscale.model.init import abstract_params
from downscale.model.vlm import Vlm
from downscale.results.items import LATER, write_items, write_texts
from downscale.results.throughput import together
from downscale.runtime import processes
from downscale.runtime.files import PathLike, place, read_json, write_bytes, write_json
from downscale.stage_config import reader_of
from downscale.stage_table import EXPLAIN, READERS, WRITER
from downscale.stages.folders import folder_of, is_done
from downscale.stages.inputs import data_hash, encoder_of, library_of
from downscale.stages.models import groups_of, model_of
from downscale.train import checksums
from downscale.train.checkpoint import latest, load_params
from downscale.values import hash_of

UNKNOWN = ''  # the digest of texts that were read before digests were kept


def engine_of(study: PathLike, experiment: Experiment, stage: str | None) -> tuple[Engine, Path]:
    """Return (engine over the devices of this process, folder) of a finished stage of a cell.

    Heads are split over as many devices as in training, if this process has so many. A cell without
    a stage 'reason' lets the imported language model reason. ValueError where there is no such
    stage.
    """
    if stage is None:
        raise ValueError(f'{experiment.name} has no stage for this evaluation')
    slots = experiment.evaluation.batch
    tensor = math.gcd(experiment.mesh.tensor, jax.local_device_count())
    if stage == 'reason' and not reader_of(experiment.stages):
        folder = Path(experiment.imports['language'])
        return open_engine(folder, slots, tensor), folder
    model = model_of(experiment, stage)
    assert isinstance(model, Vlm)  # no evaluation asks a tower
    encoder = encoder_of(study, experiment, stage)
    # pyrefly: ignore[bad-argument-type]
    target = abstract_params(model, groups_of(model, sees=stage not in READERS))
    folder = folder_of(study, experiment, stage)
    return Engine(model, load_params(folder, target), encoder, slots, own_mesh(tensor)), folder


def test_items(study: PathLike, experiment: Experiment) -> list[Item]:
    """Return every question about the first `evaluation.scenes` test examples.

    A study with benchmarks has their questions instead, and one that asks nothing has none.
    ValueError where the test split has fewer examples.
    """
    if not experiment.asks:
        return []
    if experiment.evaluation.benchmarks:
        return public.items(experiment.evaluation)
    test = library_of(study, experiment, 'test')
    if experiment.evaluation.scenes > len(test):
        raise ValueError(f'evaluation.scenes {experiment.evaluation.scenes} > {len(test)} examples '
                         'of the test split; lower it or raise data.test')
    return items_of(test.source, experiment.evaluation.scenes)


def evaluate(study: PathLike, experiment: Experiment, name: str,
             writers: Mapping[str, Sequence[Experiment]] | None = None,
             report: Report = lambda done, total: None) -> None:
    """Run evaluation `name` of a cell: 'joint', 'explained', 'reason' or a kind of text.

    'reason' answers from gold texts and from those of `writers` {kind: experiments}. Rows go to
    `evaluations/<name>-<cell>/`; a finished folder of the same cell is left alone, but that a
    reasoner reads what has been written since, or was written anew. Processes that run this
    together share the questions, and process 0 writes the rows; one that was interrupted goes on
    with the replies that are there.
    """
    folder = place(study) / 'evaluations' / f'{name}-{experiment.name}'
    read = written = None
    # A study may gain writers, or have texts written anew, behind its readers.
    if name == 'reason':
        read = processes.once(lambda: _read_before(folder, experiment))
        written = processes.once(lambda: _written(study, writers or {}))
    new = [run for run, digest in (written or {}).items()
           if (read or {}).get(run) not in (digest, UNKNOWN)]
    done = {'hash': experiment.hash}
    if written is not None:
        # What was read before digests were kept is taken to be what lies there now.
        done['read'] = {**(read or {}), **written}
    if not new and processes.once(lambda: is_done(folder, experiment)):
        if read is not None and UNKNOWN in read.values():
            processes.once(lambda: write_json(folder / 'DONE.json', done))
        return
    # 1. The replies, by all processes.
    items = test_items(study, experiment)
    data = data_hash(experiment)
    if name in WRITER:
        stage = experiment.writer_stage(name)
    else:
        stage = {JOINT: experiment.joint_stage, EXPLAINED: EXPLAIN}.get(
            name, reader_of(experiment.stages) or 'reason')
    engine, trained = engine_of(study, experiment, stage)
    sums = read_json(latest(trained) / checksums.NAME)  # another model may have the same hash
    replies = Replies(engine, folder / 'replies', [experiment.hash, name, data, sums])
    if name in (JOINT, EXPLAINED):
        rows = joint(replies, experiment, items, data, report, name == EXPLAINED)
    elif name == 'reason':
        fresh = {}
        for kind, cells in (writers or {}).items():
            fresh[kind] = [other for other in cells if other.name in new]
        texts = _texts(study, experiment, items, fresh, engine.encoder, true=read is None)
        rows = decoupled.answer(replies, experiment, items, texts, data, report)
    else:
        rows = decoupled.describe(replies, experiment, items, name, report)
    # 2. The rows, by one of them, once no other reads what was kept.
    processes.wait()
    if name in WRITER and experiment.evaluation.question_hidden:
        processes.once(lambda: write_json(folder / 'handed_over.json',
                                          decoupled.handed_over(items, rows)))
    cost = replies.summary()
    if read is None:
        processes.once(lambda: _finish(folder, done, name, rows, cost))
    else:
        processes.once(lambda: _add(folder, done, new, rows, cost))
    processes.once(replies.remove)  # no longer needed


def _finish(folder, done, name, rows, cost):
    """Write the rows of an evaluation, what they cost, and that it is `done`."""
    if name in WRITER:
        write_texts(folder / 'texts.parquet', rows)
    else:
        write_items(folder / 'items.parquet', rows)
    write_json(folder / 'throughput.json', cost)
    # A folder without it is evaluated again.
    write_json(folder / 'DONE.json', done)


def _add(folder, done, new, rows, cost):
    """Write the rows of a reasoner that has read the texts of the runs `new` since."""
    # What it has answered before stays, but of texts that were written anew.
    kept = [dict.fromkeys(LATER.names, '') | row for row in _table(folder / 'items.parquet')
            if row['p_run'] not in new]
    write_items(folder / 'items.parquet', kept + rows)
    write_json(folder / 'DONE.json', done)
    # Last: a process that is killed before does not count the same twice.
    before = read_json(folder / 'throughput.json')
    write_json(folder / 'throughput.json', together(before, cost) if before else cost)


def _read_before(folder: Path, experiment: Experiment) -> dict[str, str] | None:
    """Return {run: digest of its texts} that a finished reasoner has read; None if unfinished."""
    if not is_done(folder, experiment):
        return None
    read = read_json(folder / 'DONE.json').get('read')
    if read is None:  # of before digests were kept
        rows = _table(folder / 'items.parquet', ['p_run'])
        read = {row['p_run']: UNKNOWN for row in rows if row['p_run']}
    return read


def _written(study: PathLike, writers: Mapping[str, Sequence[Experiment]]) -> dict[str, str]:
    """Return {run: digest of all that it has written for reasoners}."""
    sums = {}
    for kind, cells in writers.items():
        for other in cells:
            sums.setdefault(other.name, []).append(
                [kind, hashlib.sha256(_texts_path(study, kind, other).read_bytes()).hexdigest()])
    return {run: hash_of(parts) for run, parts in sums.items()}


def _texts_path(study, kind, writer):
    return place(study) / 'evaluations' / f'{kind}-{writer.name}' / 'texts.parquet'


def _table(path, columns=None):
    """Return the rows of a Parquet file, which may lie in a bucket, with every column as it was."""
    return pq.read_table(pa.BufferReader(path.read_bytes()), columns=columns).to_pylist()


def _texts(study: PathLike, experiment: Experiment, items: Sequence[Item],
           writers: Mapping[str, Sequence[Experiment]], encoder: Encoder,
           true: bool) -> dict[tuple[str, str], decoupled.Texts]:
    """Return {(perception run or GOLD, kind): {item_id: text}} of what `writers` have written.

    `true` asks for true texts too.
    """
    texts = {}
    kinds = experiment.evaluation.texts
    for kind in (kind for kind in kinds if kind in WRITER):
        # Nobody has written what the pictures of benchmarks show.
        if true and not experiment.evaluation.benchmarks:
            texts[decoupled.GOLD, kind] = decoupled.gold_texts(
                items, kind, experiment.evaluation.budget or None)
        for other in writers.get(kind, ()):
            texts[other.name, kind] = _read_texts(_texts_path(study, kind, other), items)
    if BRIEF in kinds:
        both = [run for run, kind in texts if kind == 'extraction' and (run, 'caption') in texts]
        for run in both:
            texts[run, BRIEF] = decoupled.brief_texts(texts[run, 'caption'],
                                                      texts[run, 'extraction'], encoder)
    return texts


def _read_texts(path, items):
    """Return {item_id: text} of a table of texts; ValueError where it lacks an item."""
    texts = {row['item_id']: row['text'] for row in _table(path, ['item_id', 'text'])}
    lacking = [item for item in items if item.question.item_id not in texts]
    if lacking:
        raise ValueError(f'{path} lacks {len(lacking)} of {len(items)} items; delete its '
                         'folder and run again')
    return texts


def save_pictures(study: PathLike, experiment: Experiment, items: Sequence[Item]) -> None:
    """Write the first pictures of `items` as files under `pictures/`, for the report's gallery."""
    pictures = {}
    for item in items:
        if len(pictures) < experiment.evaluation.pictures and item.question.kind == 'visual':
            pictures.setdefault(item.question.cluster_id, item.example.images)
    for cluster, pngs in pictures.items():
        for k, png in enumerate(pngs):
            name = f'{cluster.replace("/", "_")}-{k}.png'
            write_bytes(place(study) / 'pictures' / name, png)

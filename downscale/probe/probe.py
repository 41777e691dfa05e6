"""Where a model that answers about pictures holds what it needs: probes of every run of a study.

Items, prompts and right answers are those of the joint evaluation; probes are trained on scenes
that nothing else uses. `passes` and `attentive` need JAX; what is made of the numbers (`readout`,
`ledger`) not.
"""
import dataclasses
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from downscale import config
from downscale.config import Experiment
from downscale.data.scenes.dataset import example_of
from downscale.evaluate.answers import Item, items_of
from downscale.evaluate.run import test_items
from downscale.probe.attentive import attend_read
from downscale.probe.passes import DEPTHS, Looker
from downscale.probe.readout import ONE_OBJECT, read_out
from downscale.results.items import read_items
from downscale.results.probes import NO_DEPTH, SCHEMAS, items_table, means_table, read, write
from downscale.results.study_file import read_study
from downscale.runtime.files import PathLike, place, read_json, write_bytes, write_json
from downscale.stage_table import JOINT
from downscale.stages.fingerprint import fingerprint
from downscale.stages.folders import folder_of, is_done
from downscale.stages.inputs import data_hash
from downscale.statistics import bootstrap
from downscale.statistics.similarity import cka, knn_overlap
from downscale.values import hash_of

MOST_DIMENSIONS = 256
MOST_BANDS = 4
# items that layers are compared on, and neighbours of each
MOST_ALIKE = 1024
NEIGHBOURS = 10
PATCHES = 2 ** 28  # bytes of the patches that a probe attends over; their axes take some times that


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """What decides the numbers of a run beside its weights and the data.

    `dimensions` that every probe gets, `bands` of layers that are cut off in turn, fresh `pictures`
    that probes are trained on.
    """
    dimensions: int
    bands: int
    pictures: int
    bootstraps: int
    seed: int


def plan_of(experiments: Sequence[Experiment], pictures: int = 256, bootstraps: int = 2000,
            seed: int = 0) -> ProbePlan:
    """Return the `ProbePlan` that treats all these cells alike.

    No probe sees more dimensions than the narrowest of their features has, and no band is without
    a layer in the shallowest.
    """
    widths = [min(cell.vision.W, cell.language.D) for cell in experiments]
    return ProbePlan(dimensions=min(MOST_DIMENSIONS, *widths),
                     bands=min(MOST_BANDS, *(cell.language.N for cell in experiments)),
                     pictures=pictures, bootstraps=bootstraps, seed=seed)


def probed_cells(study: PathLike, meta: dict[str, Any],
                 stage: str = '') -> tuple[list[Experiment], list[str]]:
    """Return (experiments of the runs that can answer with the picture, why others are left out).

    With a `stage` they are those of the runs that have it. `meta` is the study's study.json.
    """
    names = (stage,) if stage else JOINT
    cells = []
    without = []
    for run in meta['runs']:
        folders = [place(study) / 'cells' / run['run_id'] / name for name in names]
        folder = next((path for path in folders if (path / 'DONE.json').exists()), None)
        if folder is None:
            without.append(f'{run["run_id"]}: skipped: no finished stage {" or ".join(names)}')
            continue
        cell = config.load(folder)
        wanted = stage or cell.joint_stage
        if wanted != folder.name or not is_done(folder, cell):
            without.append(f'{run["run_id"]}: skipped: stage {wanted} is not finished')
        else:
            cells.append(cell)
    return cells, without


def fresh_items(experiment: Experiment, asked: Sequence[Item], pictures: int) -> list[Item]:
    """Return questions about `pictures` scenes of the test split, behind all that exist there.

    Nothing was trained on them or is evaluated on them, and a scene worded like one `asked` is left
    out. The list is empty where benchmarks are asked, which have no more pictures.
    """
    if experiment.evaluation.benchmarks:
        return []
    world = experiment.world
    start = experiment.data.test
    # As many of them similar triples as in the data set.
    triples = round(pictures * experiment.data.similarity_share)
    known = {item.example.caption for item in asked}
    examples = [example_of(world, 'test', start + k, k < triples)[0] for k in range(pictures)]
    examples = [example for example in examples if example.caption not in known]
    return items_of(examples, len(examples))


def probe_study(study: PathLike, pictures: int = 256, bootstraps: int = 2000, seed: int = 0,
                report: Callable[[str, int, int], object] = lambda name, done, total: None
                ) -> list[str]:
    """Write the tables of `results.probes` into the study folder; return what was left out and why.

    Finished runs of the same weights, data and plan are left alone. ValueError when no run of the
    study can be probed.
    """
    meta = read_study(place(study))
    cells, notes = probed_cells(study, meta)
    if not cells:
        raise ValueError(f'{study}: nothing to probe: {"; ".join(notes) or "no runs"}')
    plan = plan_of(cells, pictures, bootstraps, seed)
    for cell in cells:
        notes += _probe_run(study, cell, plan, partial(report, cell.name))
    folders = [_folder(study, cell) for cell in cells]
    for name in ('probes', 'probe_items'):
        tables = [read(folder, name) for folder in folders]
        write(place(study), name, pa.concat_tables(tables))
    write(place(study), 'probe_pairs', pairs_table(cells, folders))
    return notes


def _folder(study, cell):
    return place(study) / 'probes' / cell.name


def _probe_run(study, cell, plan, report):
    """Write one run's tables and features into its folder; return what was left out and why."""
    folder = _folder(study, cell)
    weights = fingerprint(folder_of(study, cell, cell.joint_stage))
    digest = hash_of([weights, data_hash(cell), dataclasses.asdict(plan), 'attentive'])
    done = read_json(folder / 'DONE.json')
    if done is None or done.get('hash') != digest or 'without' not in done:
        done = {'hash': digest, 'without': _probe(study, cell, plan, report, folder)}
        write_json(folder / 'DONE.json', done)
    return [f'{cell.name}: no probe of {task}: {why}' for task, why in done['without'].items()]


def _probe(study, cell, plan, report, folder):
    """Look at all items and read out what is there; return {task: why it has no probe}."""
    every = test_items(study, cell)
    check_items(study, cell, every)
    asked = [item for item in every if item.example.count]
    spare = fresh_items(cell, asked, plan.pictures)
    looker = Looker(study, cell)
    total = len(asked) + len(spare)
    features, measures = looker.see(asked, plan.bands, lambda n: report(n, total))
    # Nothing is asked of the others: probes are only trained on them.
    rest, _ = looker.see(spare, report=lambda n: report(len(asked) + n, total))
    rest = rest or {site: x[:0] for site, x in features.items()}
    tasks, without = read_out(features, rest, asked, spare, plan.dimensions, plan.seed, report)
    _add(tasks, measures, asked)
    without |= _attend(tasks, looker, asked, spare, plan)
    resamples = bootstrap.resample([item.question.cluster_id for item in asked], plan.bootstraps,
                                   plan.seed)
    write(folder, 'probe_items', items_table(cell.name, tasks))
    write(folder, 'probes', means_table(cell.name, tasks, resamples))
    # For `pairs_table`, which compares the layers of two runs.
    sink = io.BytesIO()
    np.savez(sink, item_id=[item.question.item_id for item in asked],
             scene=[item.example.scene_id for item in asked],
             **{f'{site} {depth}': x for (site, depth), x in features.items()})
    write_bytes(folder / 'features.npz', sink.getvalue())
    return without


def _attend(tasks, looker, asked, spare, plan):
    """Add what a probe that may look reads about one object; return {family: why there is none}."""
    about = [item for item in asked if item.question.family in ONE_OBJECT]
    others = [item for item in spare if item.question.family in ONE_OBJECT]
    vision = looker.model.vision
    size = 4 * (len(about) + len(others)) * vision.P * vision.W
    if size > PATCHES:
        why = f'attending: patches of {size / 2 ** 30:.1f} GiB, of at most {PATCHES / 2 ** 30:g}'
        return dict.fromkeys({item.question.family for item in about}, why)
    if about:
        by_family = attend_read(looker.patches(about), looker.patches(others), about, others,
                                plan.dimensions, plan.seed)
        for family, values in by_family.items():
            tasks[family].values |= values
    return {}


def _add(tasks, measures, asked):
    """Add what was measured of the answers to the probes of each family, and its chance."""
    for task, measured in tasks.items():
        if measured.family:
            rows = [k for k, item in enumerate(asked) if item.question.family == task]
            measured.values |= {key: values[rows] for key, values in measures.items()}
            measured.values['question', NO_DEPTH, 'chance'] = np.array(
                [asked[k].question.chance for k in rows])


def check_items(study: PathLike, cell: Experiment, asked: Sequence[Item]) -> None:
    """Raise ValueError, with counts, when the study's own joint evaluation asked other items."""
    path = place(study) / 'evaluations' / f'joint-{cell.name}' / 'items.parquet'
    if not path.exists():
        return
    table = read_items(path)
    pairs = zip(table['item_id'].to_pylist(), table['condition'].to_pylist())
    ids = {item for item, condition in pairs if condition == 'image'}
    lost = sorted({item.question.item_id for item in asked} ^ ids)
    if lost:
        raise ValueError(f'{path} holds other items than the data set: {len(lost)} differ, first '
                         f'{lost[:3]}; evaluate {cell.name} again')


def pairs_table(cells: Sequence[Experiment], folders: Sequence[Path]) -> pa.Table:
    """Return the `probe_pairs` of a study: of every seed, each run against the largest by layer.

    CKA and the overlap of neighbours, over pictures at 'image' and over items at 'answer'.
    """
    rows = []
    # The name settles equal sizes, so that the order of the cells decides nothing.
    size = {cell.name: (cell.language.N * cell.language.D ** 2, cell.name) for cell in cells}
    for seed in sorted({cell.seed for cell in cells}):
        runs = [(cell, folder) for cell, folder in zip(cells, folders) if cell.seed == seed]
        large, large_folder = max(runs, key=lambda run: size[run[0].name])
        for cell, folder in runs:
            if cell is not large:
                rows += _alike(cell.name, _features(folder), large.name, _features(large_folder))
    return pa.Table.from_pylist(rows, schema=SCHEMAS['probe_pairs'])


def _features(folder):
    """Return the arrays of a run's features.npz by name."""
    data = io.BytesIO((folder / 'features.npz').read_bytes())
    with np.load(data, allow_pickle=False) as arrays:
        return dict(arrays)


def _alike(run, features, other, others):
    """Return the rows of `probe_pairs` of one run against another, for every pair of layers."""
    if not np.array_equal(features['item_id'], others['item_id']):
        raise ValueError(f'{run} and {other} were probed on other items; delete `probes` and probe '
                         'again')
    rows = []
    # Questions about one picture share its features at 'image': each picture counts once.
    _, scenes = np.unique(features['scene'], return_index=True)
    items = np.arange(len(features['item_id']))
    for site, at in (('image', scenes[:MOST_ALIKE]), ('answer', items[:MOST_ALIKE])):
        for depth, other_depth in itertools.product(DEPTHS, DEPTHS):
            pair = features[f'{site} {depth}'][at], others[f'{site} {other_depth}'][at]
            common = {'run_id': run, 'other_id': other, 'site': site, 'rel_depth': depth,
                      'other_depth': other_depth, 'n': len(at)}
            if len(at) >= 4:
                rows.append({**common, 'metric': 'cka', 'value': cka(*pair)})
            if len(at) > NEIGHBOURS:
                rows.append({**common, 'metric': 'neighbours', 'value': knn_overlap(
                    *pair, NEIGHBOURS)})
    return rows

"""Stages that were trained, as their `experiment.json` and the files beside it tell.

Training FLOPs are those of the matrix products (`accounting.train_flops`).
"""
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from downscale.accounting import forward_flops, totals, train_flops
from downscale.results.items import TableError, one_line
from downscale.results.study_file import NUMBER, check, read_lines, read_object, short, shown
from downscale.sizes import LanguageConfig, Pictures, VisionConfig
from downscale.stage_table import STAGES
from downscale.values import from_dict

STAGE_FIELDS = {'name': str, 'steps': NUMBER, 'batch': NUMBER, 'length': NUMBER, 'tiles': NUMBER,
                'trainable': list, 'parents': dict, 'rates': dict, 'buckets': list}
POLICY_FIELDS = {'reasoners': list, 'method': str, **dict.fromkeys(
    ('tries', 'updates', 'kl', 'write', 'think', 'answer'), NUMBER)}
SHAPE_FIELDS = dict.fromkeys(('batch', 'length', 'tiles'), NUMBER)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One stage of a cell: its `stage` dict, models, cost and what it started from.

    `conversations` are those it was trained on, and `flops` what that took: None where nothing
    tells how rows were packed, or how often each bucket came. `pictures` is how pictures are cut.
    """
    size: str
    seed: int
    stage: dict
    language: LanguageConfig
    vision: VisionConfig | None
    pictures: Pictures
    flops: float | None
    chip_seconds: float | None
    conversations: float | None
    parents: tuple


def read_stages(root: Path) -> dict[tuple[str, str], Trained]:
    """Return {(cell, stage): Trained} of every stage below `root` with an `experiment.json`.

    TableError in one line for a file that does not say what costs are made of.
    """
    stages = {}
    for path in sorted(root.glob('cells/*/*/experiment.json')):
        cell = path.parent.parent.name
        name = path.parent.name
        value = read_object(path)
        # pyrefly: ignore[bad-argument-type]
        check(value, {'size': str, 'seed': int, 'stages': list, 'language': dict}, short(path))
        # Each stage's folder has the experiment of the cell; its name says which stage.
        stage = next((stage for stage in value['stages']
                      if isinstance(stage, dict) and stage.get('name') == name), None)
        # A cell without stages has trained nothing: there is nothing to price.
        if stage is None and value['stages']:
            raise TableError(f'{short(path)}: field \'stages\' has no stage {name!r}')
        if stage is not None:
            _check_stage(stage, f'{short(path)}: stage {name}')
            stages[cell, name] = _trained(path.parent, cell, value, stage)
    return {key: _with_reasoners(key, trained, stages) for key, trained in stages.items()}


def _with_reasoners(key, trained, stages):
    """Return a stage whose FLOPs hold those of its reasoners, each as long as it may be.

    Imported ones are not counted: their sizes stand elsewhere.
    """
    policy = trained.stage.get('policy')
    # A stage that answers itself asks nobody.
    asks = policy and policy['method'] != 'distil' and STAGES[key[1]].writes
    if not asks or trained.flops is None:
        return trained
    rows = trained.stage['steps'] * trained.stage['batch'] * policy['tries']
    length = policy['write'] + policy['think'] + policy['answer']
    more = 0.
    for reference in policy['reasoners']:
        # A stage of this study; a folder is none.
        judge = stages.get(_referred(reference, key[0], trained.size, trained.seed))
        if judge is not None:
            more += rows * forward_flops(judge.language, rows=1, length=length,
                                         head_positions=policy['answer'])['total']
    return replace(trained, flops=trained.flops + more)


def _referred(reference, cell, size, seed):
    """Return the (cell, stage) of a reference, as `references.reference_of`."""
    # 'text' is of this cell, 'tower/tower' of the tower of its seed.
    other, _, name = reference.replace('{size}', size).rpartition('/')
    of_seed = f'{other}-s{seed}' if other else cell
    return other[1:] if other.startswith('/') else of_seed, name


def _trained(folder, cell, value, stage):
    """Return the `Trained` of a `stage` dict of the experiment `value` in `folder`."""
    try:
        language = from_dict(LanguageConfig, value['language'], 'language')
        vision = from_dict(VisionConfig | None, value.get('vision'), 'vision')
        pictures = from_dict(Pictures, value.get('pictures', {}), 'pictures')
        flops = _flops(folder, stage, (language, vision), _teacher(folder))
    except ValueError as error:
        # A TableError is a ValueError that names its file already.
        if isinstance(error, TableError):
            raise
        raise TableError(f'{short(folder / "experiment.json")}: {one_line(error)}') from None
    parents = [_referred(reference, cell, value['size'], value['seed'])
               for reference in dict.fromkeys(stage['parents'].values())]
    return Trained(
        size=value['size'],
        seed=value['seed'],
        stage=stage,
        language=language,
        vision=vision,
        pictures=pictures,
        flops=flops,
        chip_seconds=_chip_seconds(folder, value.get('mesh', {})),
        conversations=_conversations(folder, stage['steps']),
        parents=tuple(parents),
    )


def _check_stage(stage, where):
    """Raise `TableError` unless a stage of an experiment has what its costs are made of."""
    # A stage of one shape may be written without buckets.
    check({'buckets': [], **stage}, STAGE_FIELDS, where)
    for shape in stage.get('buckets', ()):
        check(shape, SHAPE_FIELDS, f'{where}: buckets')
    check(stage['parents'], dict.fromkeys(stage['parents'], str), f'{where}: parents')
    check(stage['rates'], dict.fromkeys(stage['rates'], NUMBER), f'{where}: rates')
    parts = dict(enumerate(stage['trainable']))
    check(parts, dict.fromkeys(parts, str), f'{where}: trainable')
    # Whatever is trained has a rate, besides those that are given for more.
    check(stage['rates'], dict.fromkeys(stage['trainable'], NUMBER), f'{where}: rates')


def _teacher(folder):
    """Return (language, vision) of the teacher of a stage, as its note says; None without one."""
    path = folder / 'teacher.json'
    noted = read_object(path)
    if noted is None:
        return None
    check(noted, {'language': dict}, short(path))
    return (from_dict(LanguageConfig, noted['language'], f'{short(path)}: language'),
            from_dict(VisionConfig | None, noted.get('vision'), f'{short(path)}: vision'))


def _flops(folder, stage, models, teacher):
    """Return FLOPs of all steps of a stage, its shapes weighed by how often batches of them come.

    `models` are (language, vision), and `teacher` those of its teacher, which reads every batch
    too; what it took to train that is not counted. None where nothing tells how often.
    """
    language, vision = models
    shapes = [stage, *stage.get('buckets', ())]
    packed = _packed(folder)
    if totals(language)['n_nonembed'] <= 0:
        raise ValueError('field \'language\' has no parameters')
    if vision is None and any(shape['tiles'] for shape in shapes):
        raise ValueError(f'field \'vision\' is missing, but stage {stage["name"]} has tiles')
    # With a single shape every batch has it, packed or not.
    batches = {(stage['length'], stage['tiles']): 1.}
    if len(shapes) > 1:
        if packed is None:
            return None
        batches = {(row.get('length'), row.get('tiles_per_row')): row['rows'] / row['batch']
                   for row in packed['buckets']}
    flops = []
    for shape in shapes:
        read = {'rows': shape['batch'], 'length': shape['length'],
                'tiles': shape['tiles'] * shape['batch']}
        step = train_flops(language, vision, **read, groups=tuple(stage['trainable']))['total']
        step += _written(stage, language, vision)
        if teacher is not None:
            step += forward_flops(*teacher, **read)['total']
        flops.append(batches.get((shape['length'], shape['tiles']), 0) * step)
    # FLOPs of the mean batch, times the steps.
    return float(sum(flops)) / sum(batches.values()) * stage['steps']


def _written(stage, language, vision):
    """Return FLOPs of a step beside its update where the stage writes its rows: 0 elsewhere.

    Rows are written once for each question that was tried, and scored by the parameters of the
    step, by those that wrote where they are others, and by those of the start.
    """
    policy = stage.get('policy')
    if not policy:
        return 0
    check(policy, POLICY_FIELDS, f'stage {stage["name"]}: policy')
    # To write a row token by token is one pass over it.
    passes = policy['tries'] + 1 + (policy['updates'] > 1) + (
        policy['kl'] > 0 and policy['method'] != 'distil')
    return passes * forward_flops(language, vision, rows=stage['batch'], length=stage['length'],
                                  tiles=stage['tiles'] * stage['batch'])['total']


def _packed(folder):
    """Return the checked `padding.json` of a stage, None without one."""
    path = folder / 'padding.json'
    packed = read_object(path)
    if not packed:
        return None
    check(packed, {'buckets': list, 'total': dict}, short(path))
    check(packed['total'], {'conversations': NUMBER}, f'{short(path)}: total')
    for row in packed['buckets']:
        check(row, {'rows': NUMBER, 'batch': NUMBER}, f'{short(path)}: a bucket')
        if row['rows'] < 0 or row['batch'] < 1:
            raise TableError(f'{short(path)}: a bucket has {row["rows"]} rows of {row["batch"]}')
    if not any(row['rows'] for row in packed['buckets']):
        raise TableError(f'{short(path)}: field \'buckets\' has no rows')
    return packed


def _conversations(folder, steps):
    """Return how many conversations `steps` steps hold, as `padding.json` has counted them."""
    packed = _packed(folder)
    if packed is None:
        return None
    # What was counted may be more batches than the steps take, or fewer.
    batches = sum(shape['rows'] / shape['batch'] for shape in packed['buckets'])
    return steps * packed['total']['conversations'] / batches


def planned_tokens(stage: dict[str, Any]) -> float:
    """Return the tokens that the steps of a `stage` dict have room for.

    It is the mean over its shapes of batches. The tokens it saw differ from seed to seed by how
    well its rows were packed.
    """
    shapes = (stage, *stage.get('buckets', ()))
    return stage['steps'] * float(np.mean([shape['batch'] * shape['length'] for shape in shapes]))


def _chip_seconds(folder, mesh):
    """Return seconds of training over all sessions, times the chips of the mesh (-1 is one).

    Cells that were trained in one program have an equal share of its time. None without timing, as
    in a run of very few steps.
    """
    path = folder / 'timing.jsonl'
    if not path.is_file():
        return None
    whole = 0.
    last = 0.
    session = None
    rows, _ = read_lines(path)   # after a torn one the next row of its session holds its time
    for row in rows:
        check({'cells': 1, **row}, {'seconds': NUMBER, 'cells': NUMBER}, short(path))
        if row['seconds'] < 0 or row.get('cells', 1) <= 0:
            raise TableError(f'{short(path)}: {shown(row)} has impossible seconds or cells')
        # Seconds count from the beginning of a session: each row adds what is new since the last.
        if row.get('began') != session or row['seconds'] < last:   # old rows have no `began`
            session = row.get('began')
            last = 0.
        whole = whole + (row['seconds'] - last) / row.get('cells', 1)
        last = row['seconds']
    if not whole:
        return None   # so short that no time was noted
    names = mesh if isinstance(mesh, dict) else ()
    check(mesh, dict.fromkeys(names, int), f'{short(folder)}: mesh')
    # An axis of -1 takes what is left, and how much that was the file does not say.
    return whole * math.prod(max(1, size) for size in mesh.values())

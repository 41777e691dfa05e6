"""What runs cost, from the `experiment.json` and `timing.jsonl` that lie beside their checkpoints.

Training FLOPs are those of the matrix products (`accounting.train_flops`). A model costs what it
and all stages it came from have cost, a shared tower included.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from downscale.accounting import decode_flops, forward_flops, totals, train_flops
from downscale.analysis.measures import Missing, Scored, Size
from downscale.data.images import best_grid, token_count
from downscale.results.items import TableError, one_line
from downscale.results.study import Cell
from downscale.results.study_file import NUMBER, check, read_lines, read_object, short, shown
from downscale.results.text_kinds import SOURCE_STAGE
from downscale.sizes import LanguageConfig, Pictures, VisionConfig
from downscale.values import from_dict, unknown

COSTS = {'params': 'parameters in total', 'train_flops': 'training FLOPs',
         'inference_flops': 'inference FLOPs a question',
         'samples': 'rows with pictures in training', 'chip_hours': 'chip-hours of training'}
STAGE_FIELDS = {'name': str, 'steps': NUMBER, 'batch': NUMBER, 'length': NUMBER, 'tiles': NUMBER,
                'trainable': list, 'parents': dict, 'rates': dict, 'buckets': list}
SHAPE_FIELDS = dict.fromkeys(('batch', 'length', 'tiles'), NUMBER)
JOINT = ('interleave', 'instruct')


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


def stages_of(s: Scored) -> dict[tuple[str, str], Trained]:
    """Return {(cell, stage): Trained} of every stage with an `experiment.json`, read once."""
    if 'stages' not in s.made:
        found = {}
        for path in sorted(s.study.root.glob('cells/*/*/experiment.json')):
            cell = path.parent.parent.name
            stage = path.parent.name
            value = read_object(path)
            # pyrefly: ignore[bad-argument-type]
            check(value, {'size': str, 'seed': int, 'stages': list, 'language': dict}, short(path))
            one = next((one for one in value['stages']
                        if isinstance(one, dict) and one.get('name') == stage), None)
            if one is None and value['stages']:
                raise TableError(f'{short(path)}: field \'stages\' has no stage {stage!r}')
            if one is not None:
                _check_stage(one, f'{short(path)}: stage {stage}')
                found[cell, stage] = _trained(path.parent, cell, value, one)
        s.made['stages'] = found
    return s.made['stages']


def _trained(folder, cell, value, one):
    try:
        language = from_dict(LanguageConfig, value['language'], 'language')
        vision = from_dict(VisionConfig | None, value.get('vision'), 'vision')
        pictures = from_dict(Pictures, value.get('pictures', {}), 'pictures')
        flops = _flops(folder, one, language, vision)
    except ValueError as error:
        if isinstance(error, TableError):
            raise
        raise TableError(f'{short(folder / "experiment.json")}: {one_line(error)}') from None
    parents = tuple((f'{other}-s{value["seed"]}' if other else cell, name)
                    for other, _, name in (reference.rpartition('/') for reference in
                                           dict.fromkeys(one['parents'].values())))
    return Trained(
        size=value['size'],
        seed=value['seed'],
        stage=one,
        language=language,
        vision=vision,
        pictures=pictures,
        flops=flops,
        chip_seconds=_chip_seconds(folder, value.get('mesh', {})),
        conversations=_conversations(folder, one['steps']),
        parents=parents,
    )


def _check_stage(one, where):
    """Raise `TableError` unless a stage of an experiment has what its costs are made of."""
    check({'buckets': [], **one}, STAGE_FIELDS, where)
    for shape in one.get('buckets', ()):
        check(shape, SHAPE_FIELDS, f'{where}: buckets')
    check(one['parents'], dict.fromkeys(one['parents'], str), f'{where}: parents')
    check(one['rates'], dict.fromkeys(one['rates'], NUMBER), f'{where}: rates')
    check(dict(enumerate(one['trainable'])), dict.fromkeys(range(len(one['trainable'])), str),
          f'{where}: trainable')
    check(one['rates'], dict.fromkeys(one['trainable'], NUMBER), f'{where}: rates')


def _flops(folder, one, language, vision):
    """Return FLOPs of all steps of a stage, its shapes of batches weighed by how often they
    come.
    """
    shapes = [one, *one.get('buckets', ())]
    packed = _packed(folder)
    if totals(language)['n_nonembed'] <= 0:
        raise ValueError('field \'language\' has no parameters')
    if vision is None and any(shape['tiles'] for shape in shapes):
        raise ValueError(f'field \'vision\' is missing, but stage {one["name"]} has tiles')
    weights = {(one['length'], one['tiles']): 1.}
    if len(shapes) > 1:
        if packed is None:
            return None
        weights = {(row.get('length'), row.get('tiles_per_row')): row['rows'] / row['batch']
                   for row in packed['buckets']}
    flops = sum(weights.get((shape['length'], shape['tiles']), 0) * train_flops(
        language, vision, rows=shape['batch'], length=shape['length'],
        tiles=shape['tiles'] * shape['batch'], groups=tuple(one['trainable']))['total']
        for shape in shapes)
    return float(flops) / sum(weights.values()) * one['steps']


def _packed(folder):
    """Return the checked `padding.json` of a stage, None without one."""
    path = folder / 'padding.json'
    told = read_object(path)
    if not told:
        return None
    check(told, {'buckets': list, 'total': dict}, short(path))
    check(told['total'], {'conversations': NUMBER}, f'{short(path)}: total')
    for row in told['buckets']:
        check(row, {'rows': NUMBER, 'batch': NUMBER}, f'{short(path)}: a bucket')
        if row['rows'] < 0 or row['batch'] < 1:
            raise TableError(f'{short(path)}: a bucket has {row["rows"]} rows of {row["batch"]}')
    if not any(row['rows'] for row in told['buckets']):
        raise TableError(f'{short(path)}: field \'buckets\' has no rows')
    return told


def _conversations(folder, steps):
    """Return conversations that `steps` steps hold, by the packing that `padding.json` has
    counted.
    """
    told = _packed(folder)
    if told is None:
        return None
    batches = sum(shape['rows'] / shape['batch'] for shape in told['buckets'])
    return steps * told['total']['conversations'] / batches


def planned_tokens(stage: dict[str, Any]) -> float:
    """Return tokens that the steps of a `stage` dict have room for, the mean over its shapes of
    batches.

    Those it saw differ from seed to seed by how well its rows were packed.
    """
    return stage['steps'] * float(np.mean([shape['batch'] * shape['length'] for shape in
                                           (stage, *stage.get('buckets', ()))]))


def _chip_seconds(folder, mesh):
    """Return seconds of training, sessions added up, times the chips that the mesh names (-1 is
    one).

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
        if row.get('began') != session or row['seconds'] < last:   # old rows have no `began`
            session = row.get('began')
            last = 0.
        whole = whole + (row['seconds'] - last) / row.get('cells', 1)
        last = row['seconds']
    if not whole:
        return None   # so short that no time was noted
    names = mesh if isinstance(mesh, dict) else ()
    check(mesh, dict.fromkeys(names, int), f'{short(folder)}: mesh')
    return whole * math.prod(max(1, size) for size in mesh.values())


def ancestry(s: Scored, end: tuple[str, str]) -> dict[tuple[str, str], Trained]:
    """Return all stages behind and including `end`, a (cell, stage); `Missing` where one has no
    files.
    """
    found = {}
    queue = [end]
    known = stages_of(s)
    while queue:
        key = queue.pop()
        if key not in known:
            raise Missing(f'no experiment.json of {"/".join(key)}')
        if key not in found:
            found[key] = known[key]
            queue += known[key].parents
    return found


def stage_of(s: Scored, run: str, kind: str) -> tuple[str, str]:
    """Return (cell, stage) that wrote a kind of text, or with '' that answers with the picture.

    Where published data has made no writer, the model that answers has written.
    """
    for name in (*([SOURCE_STAGE[kind]] if kind else ()), *JOINT):
        if (run, name) in stages_of(s):
            return run, name
    raise Missing(f'no finished stage of {run} for {kind or "joint"} answers')


def reasoner_of(s: Scored, run: str) -> tuple[LanguageConfig, dict[tuple[str, str], Trained]]:
    """Return (LanguageConfig of a reasoner, the stages behind it); an imported one was not
    trained.
    """
    if (run, 'reason') in stages_of(s):
        return stages_of(s)[run, 'reason'].language, ancestry(s, (run, 'reason'))
    return stages_of(s)[stage_of(s, run, '')].language, {}


def tuned_examples(s: Scored, sizes: Sequence[Size], kind: str) -> float | None:
    """Return examples that the writers of a kind were tuned on, behind the model that answers; mean
    over runs.

    An example is a picture with its conversation: one caption, or all questions of an extraction.
    Rows would not do, since captions are packed more to a row. None where a run has no files of it,
    or no `padding.json`.
    """
    counts = []
    try:
        for run in (run for size in s.sizes if size.name in sizes for run in size.runs):
            base = ancestry(s, stage_of(s, run, ''))
            own = ancestry(s, stage_of(s, run, kind))
            tuned = [one.conversations for key, one in own.items() if key not in base]
            if None in tuned:
                return None
            counts.append(sum(tuned))
    except Missing:
        return None
    return float(np.mean(counts)) if counts else None


def of_cell(s: Scored, cell: Cell, cost: str) -> float:
    """Return one cost of what answered in a `Cell`: one model, or perception and reasoner
    together.
    """
    if cost not in COSTS:
        raise ValueError(unknown('cost', cost, list(COSTS)))
    if cost == 'inference_flops':
        return _inference(s, cell)
    if cost == 'params':
        known = {run['run_id']: run['n_total'] for run in s.study.meta['runs']}
        # A reasoner is text-only: its tower and connector are not used.
        vision = {run['run_id']: run.get('n_vision', 0) for run in s.study.meta['runs']}
        return known[cell.p_run] + (known[cell.r_run] - vision[cell.r_run] if cell.r_run else 0)
    behind = ancestry(s, stage_of(s, cell.p_run, cell.text_kind))
    if cell.r_run:
        behind = {**behind, **reasoner_of(s, cell.r_run)[1]}
    stages = list(behind.values())
    if cost == 'train_flops':
        if any(one.flops is None for one in stages):
            raise Missing('a stage with buckets has no padding.json, which says how often each '
                          'came')
        return sum(one.flops for one in stages)
    if cost == 'samples':
        return sum(one.stage['steps'] * one.stage['batch'] for one in stages if one.stage['tiles'])
    if any(one.chip_seconds is None for one in stages):
        raise Missing('a stage has no times in timing.jsonl')
    return sum(one.chip_seconds for one in stages) / 3600


def _inference(s, cell):
    """Return mean FLOPs a question: a picture's tiles and tokens are read, texts and thoughts
    written.

    Questions and prompts are left out, since their tokens are not recorded; they are the same for
    all that are compared.
    """
    index = s.study.cells[cell]
    written = float(np.mean(s.study.items['n_gen_tokens'][index]))
    own = stages_of(s)[stage_of(s, cell.p_run, cell.text_kind)]
    if own.vision is None:
        raise Missing(f'{cell.p_run} has no tower')
    looked = _seen(s, cell, own)
    seen = float(np.mean([tokens for tokens, _ in looked]))
    whole = float(np.mean([forward_flops(own.language, own.vision, rows=1, length=tokens,
                                         tiles=tiles, head_positions=1)['total']
                           for tokens, tiles in looked]))
    if not cell.r_run:
        return whole + _decoded(own.language, seen, written)
    texts = s.study.texts
    here = (texts['p_run'] == cell.p_run) & (texts['text_kind'] == cell.text_kind)
    if not here.any():
        raise Missing(f'no texts of {cell.p_run}')
    length = float(np.mean(texts['n_tokens'][here]))
    reasoner, _ = reasoner_of(s, cell.r_run)
    return (whole + _decoded(own.language, seen, length)
            + forward_flops(reasoner, None, rows=1, length=max(1, round(length)),
                            head_positions=1)['total']
            + _decoded(reasoner, length, written))


def _seen(s, cell, own):
    """Return [(tokens, tiles)] of pictures: one tile each, and in the mode 'anyres' those of every
    saved picture that was asked about; `Missing` where none of them is saved.
    """
    if own.pictures.mode != 'anyres':
        return [(own.vision.P, 1)]
    if 'saved' not in s.made:
        s.made['saved'] = {}
        for path in sorted(s.study.root.glob('pictures/*.png')):
            s.made['saved'].setdefault(path.stem.rpartition('-')[0], []).append(path)
    asked = np.unique(s.study.items['cluster_id'][s.study.cells[cell]].astype(str))
    groups = [s.made['saved'].get(cluster.replace('/', '_'), ()) for cluster in asked]
    found = []
    for paths in filter(None, groups):
        sizes = [_pixels(path) for path in paths]
        alone = len(sizes) == 1   # pictures that share a conversation are one tile each
        found.append((sum(token_count(*size, own.vision, own.pictures, alone) for size in sizes),
                      sum(1 + alone * math.prod(best_grid(*size, own.vision, own.pictures))
                          for size in sizes)))
    if not found:
        raise Missing('none of the pictures is saved under pictures/, whose tiles a model that '
                      'cuts pictures into tiles pays for')
    return found


def _pixels(path):
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError) as error:
        raise TableError(f'{short(path)}: no readable picture: {one_line(error)}') from None


def _decoded(language, live, tokens):
    """Return FLOPs of `tokens` tokens behind `live` ones; linear in the live tokens, so their
    mean.
    """
    return tokens * decode_flops(language, live + (tokens + 1) / 2)

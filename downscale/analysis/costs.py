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
from downscale.data.tiling import best_grid, token_count
from downscale.results.items import TableError, one_line
from downscale.results.study import Cell
from downscale.results.study_file import NUMBER, check, read_lines, read_object, short, shown
from downscale.results.text_kinds import SOURCE_STAGE
from downscale.sizes import LanguageConfig, Pictures, VisionConfig
from downscale.stage_table import JOINT
from downscale.values import from_dict, unknown

COSTS = {'params': 'parameters in total', 'train_flops': 'training FLOPs',
         'inference_flops': 'inference FLOPs a question',
         'samples': 'rows with pictures in training', 'chip_hours': 'chip-hours of training'}
STAGE_FIELDS = {'name': str, 'steps': NUMBER, 'batch': NUMBER, 'length': NUMBER, 'tiles': NUMBER,
                'trainable': list, 'parents': dict, 'rates': dict, 'buckets': list}
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


def stages_of(s: Scored) -> dict[tuple[str, str], Trained]:
    """Return {(cell, stage): Trained} of every stage with an `experiment.json`, read once."""
    if 'stages' not in s.made:
        stages = {}
        for path in sorted(s.study.root.glob('cells/*/*/experiment.json')):
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
        s.made['stages'] = stages
    return s.made['stages']


def _trained(folder, cell, value, stage):
    """Return the `Trained` of a `stage` dict of the experiment `value` in `folder`."""
    try:
        language = from_dict(LanguageConfig, value['language'], 'language')
        vision = from_dict(VisionConfig | None, value.get('vision'), 'vision')
        pictures = from_dict(Pictures, value.get('pictures', {}), 'pictures')
        flops = _flops(folder, stage, language, vision)
    except ValueError as error:
        # A TableError is a ValueError that names its file already.
        if isinstance(error, TableError):
            raise
        raise TableError(f'{short(folder / "experiment.json")}: {one_line(error)}') from None
    # As `expansion.reference_of`: 'text' is of this cell, 'tower/tower' of the tower of its seed.
    parents = []
    for reference in dict.fromkeys(stage['parents'].values()):
        other, _, name = reference.rpartition('/')
        parents.append((f'{other}-s{value["seed"]}' if other else cell, name))
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


def _flops(folder, stage, language, vision):
    """Return FLOPs of all steps of a stage, its shapes weighed by how often batches of them come.

    None where nothing tells how often.
    """
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
        step = train_flops(language, vision, rows=shape['batch'], length=shape['length'],
                           tiles=shape['tiles'] * shape['batch'], groups=tuple(stage['trainable']))
        flops.append(batches.get((shape['length'], shape['tiles']), 0) * step['total'])
    # FLOPs of the mean batch, times the steps.
    return float(sum(flops)) / sum(batches.values()) * stage['steps']


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


def ancestry(s: Scored, end: tuple[str, str]) -> dict[tuple[str, str], Trained]:
    """Return all stages behind and including `end`, a (cell, stage).

    `Missing` where one of them has no files.
    """
    behind = {}
    queue = [end]
    known = stages_of(s)
    while queue:
        key = queue.pop()
        if key not in known:
            raise Missing(f'no experiment.json of {"/".join(key)}')
        # Several stages may start from one, which is paid for once.
        if key not in behind:
            behind[key] = known[key]
            queue += known[key].parents
    return behind


def stage_of(s: Scored, run: str, kind: str) -> tuple[str, str]:
    """Return the (cell, stage) that wrote a kind of text, or for '' that answers with the picture.

    Where published data has made no writer, the model that answers has written.
    """
    writers = [SOURCE_STAGE[kind]] if kind else []
    for name in (*writers, *JOINT):
        if (run, name) in stages_of(s):
            return run, name
    raise Missing(f'no finished stage of {run} for {kind or "joint"} answers')


def reasoner_of(s: Scored, run: str) -> tuple[LanguageConfig, dict[tuple[str, str], Trained]]:
    """Return (LanguageConfig of a reasoner, the stages behind it), none of an imported one."""
    if (run, 'reason') in stages_of(s):
        return stages_of(s)[run, 'reason'].language, ancestry(s, (run, 'reason'))
    return stages_of(s)[stage_of(s, run, '')].language, {}


def tuned_examples(s: Scored, sizes: Sequence[Size], kind: str) -> float | None:
    """Return how many examples the writers of a kind were tuned on, the mean over runs.

    Counted are the stages behind the writer that are not behind the model that answers. An example
    is a picture with its conversation: one caption, or all questions of an extraction. Rows would
    not do, since captions are packed more to a row. None where a run has no files of it, or no
    `padding.json`.
    """
    counts = []
    runs = []
    for size in s.sizes:
        if size.name in sizes:
            runs += size.runs
    try:
        for run in runs:
            base = ancestry(s, stage_of(s, run, ''))
            writer = ancestry(s, stage_of(s, run, kind))
            tuned = [trained.conversations for key, trained in writer.items() if key not in base]
            if None in tuned:
                return None
            counts.append(sum(tuned))
    except Missing:
        return None
    return float(np.mean(counts)) if counts else None


def of_cell(s: Scored, cell: Cell, cost: str) -> float:
    """Return one of `COSTS` of what answered in a `Cell`: a model, or perception and reasoner."""
    if cost not in COSTS:
        raise ValueError(unknown('cost', cost, list(COSTS)))
    if cost == 'inference_flops':
        return _inference(s, cell)
    if cost == 'params':
        known = {run['run_id']: run['n_total'] for run in s.study.meta['runs']}
        # A reasoner is text-only: its tower and connector are not used.
        vision = {run['run_id']: run.get('n_vision', 0) for run in s.study.meta['runs']}
        return known[cell.p_run] + (known[cell.r_run] - vision[cell.r_run] if cell.r_run else 0)
    # By (cell, stage), so that what both sides came from is counted once.
    behind = ancestry(s, stage_of(s, cell.p_run, cell.text_kind))
    if cell.r_run:
        behind = {**behind, **reasoner_of(s, cell.r_run)[1]}
    stages = list(behind.values())
    if cost == 'train_flops':
        if any(trained.flops is None for trained in stages):
            raise Missing('a stage with buckets has no padding.json, which says how often each '
                          'came')
        return sum(trained.flops for trained in stages)
    if cost == 'samples':
        return sum(trained.stage['steps'] * trained.stage['batch'] for trained in stages
                   if trained.stage['tiles'])
    if any(trained.chip_seconds is None for trained in stages):
        raise Missing('a stage has no times in timing.jsonl')
    return sum(trained.chip_seconds for trained in stages) / 3600


def _inference(s, cell):
    """Return the mean FLOPs of a question: its picture is read, texts and thoughts are written.

    Questions and prompts are left out, since their tokens are not recorded; they are the same for
    all that are compared.
    """
    index = s.study.cells[cell]
    written = float(np.mean(s.study.items['n_gen_tokens'][index]))
    model = stages_of(s)[stage_of(s, cell.p_run, cell.text_kind)]
    if model.vision is None:
        raise Missing(f'{cell.p_run} has no tower')
    seen = _seen(s, cell, model)
    # 1. The model that sees reads the picture; logits are taken at the last token only.
    tokens = float(np.mean([tokens for tokens, _ in seen]))
    reading = float(np.mean([
        forward_flops(model.language, model.vision, rows=1, length=length, tiles=tiles,
                      head_positions=1)['total'] for length, tiles in seen]))
    # 2. It answers, and that is all; or it writes a text, which the reasoner reads and answers.
    if not cell.r_run:
        return reading + _decoded(model.language, tokens, written)
    texts = s.study.texts
    described = (texts['p_run'] == cell.p_run) & (texts['text_kind'] == cell.text_kind)
    if not described.any():
        raise Missing(f'no texts of {cell.p_run}')
    length = float(np.mean(texts['n_tokens'][described]))
    reasoner, _ = reasoner_of(s, cell.r_run)
    return (reading + _decoded(model.language, tokens, length)
            + forward_flops(reasoner, None, rows=1, length=max(1, round(length)),
                            head_positions=1)['total']
            + _decoded(reasoner, length, written))


def _seen(s, cell, model):
    """Return [(tokens, tiles)] of the pictures that a question of the cell shows.

    A picture is one tile, but in the mode 'anyres', whose tiles are those of every saved picture
    that was asked about; `Missing` where none of them is saved.
    """
    if model.pictures.mode != 'anyres':
        return [(model.vision.P, 1)]
    # Saved as CLUSTER-PLACE.png, with '_' where the cluster has '/'.
    if 'saved' not in s.made:
        s.made['saved'] = {}
        for path in sorted(s.study.root.glob('pictures/*.png')):
            s.made['saved'].setdefault(path.stem.rpartition('-')[0], []).append(path)
    asked = np.unique(s.study.items['cluster_id'][s.study.cells[cell]].astype(str))
    seen = []
    for cluster in asked:
        sizes = [_pixels(path) for path in s.made['saved'].get(cluster.replace('/', '_'), ())]
        if sizes:
            seen.append(_tokens_and_tiles(sizes, model))
    if not seen:
        raise Missing('none of the pictures is saved under pictures/, whose tiles a model that '
                      'cuts pictures into tiles pays for')
    return seen


def _tokens_and_tiles(sizes, model):
    """Return the tokens and tiles of pictures (width, height) that a question shows together."""
    alone = len(sizes) == 1   # pictures that share a conversation are one tile each
    tokens = 0
    tiles = 0
    for size in sizes:
        tokens += token_count(*size, model.vision, model.pictures, alone)
        # The whole picture as one tile, and alone also the tiles of its grid.
        tiles += 1 + alone * math.prod(best_grid(*size, model.vision, model.pictures))
    return tokens, tiles


def _pixels(path):
    """Return (width, height) of a saved picture; `TableError` where it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError) as error:
        raise TableError(f'{short(path)}: no readable picture: {one_line(error)}') from None


def _decoded(language, live, tokens):
    """Return FLOPs of `tokens` tokens that are written behind `live` ones.

    Those of a token are linear in the live ones, so that the mean of these is priced.
    """
    # The t-th token has live + t in its cache: in the mean over t, live + (tokens + 1) / 2.
    return tokens * decode_flops(language, live + (tokens + 1) / 2)

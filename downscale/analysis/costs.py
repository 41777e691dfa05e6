"""What models and their answers cost, from the stages that were trained (`results/trained.py`).

A model costs what it and all stages it came from have cost, a shared tower included.
"""
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from downscale.accounting import decode_flops, forward_flops
from downscale.analysis.measures import Missing, Scored, Size
from downscale.data.tiling import best_grid, token_count
from downscale.results.items import TableError, one_line
from downscale.results.study import Cell
from downscale.results.study_file import short
from downscale.results.text_kinds import SOURCE_STAGE
from downscale.results.trained import Trained, read_stages
from downscale.sizes import LanguageConfig
from downscale.stage_table import EXPLAIN, JOINT, READERS
from downscale.values import unknown

COSTS = {'params': 'parameters in total', 'train_flops': 'training FLOPs',
         'inference_flops': 'inference FLOPs a question',
         'samples': 'rows with pictures in training', 'chip_hours': 'chip-hours of training'}


def stages_of(s: Scored) -> dict[tuple[str, str], Trained]:
    """Return {(cell, stage): Trained} of every stage with an `experiment.json`, read once."""
    if 'stages' not in s.made:
        s.made['stages'] = read_stages(s.study.root)
    return s.made['stages']


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


def stage_of_cell(s: Scored, cell: Cell) -> tuple[str, str]:
    """Return the (cell, stage) that saw the picture behind the answers of a `Cell`."""
    # A model that answers by itself behind a thought learnt so in a stage of its own.
    if not cell.r_run and cell.thinking and (cell.p_run, EXPLAIN) in stages_of(s):
        return cell.p_run, EXPLAIN
    return stage_of(s, cell.p_run, cell.text_kind)


def reasoner_of(s: Scored, run: str) -> tuple[LanguageConfig, dict[tuple[str, str], Trained]]:
    """Return (LanguageConfig of a reasoner, the stages behind it), none of an imported one."""
    for name in READERS:
        if (run, name) in stages_of(s):
            return stages_of(s)[run, name].language, ancestry(s, (run, name))
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
    behind = ancestry(s, stage_of_cell(s, cell))
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
    model = stages_of(s)[stage_of_cell(s, cell)]
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

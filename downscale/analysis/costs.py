"""What runs cost, from the `experiment.json` and `timing.jsonl` that lie beside their checkpoints.

Training FLOPs are those of the matrix products (`accounting.train_flops`). A model costs what it
and all stages it came from have cost, a shared tower included.
"""
import json
import math
from dataclasses import dataclass

import numpy as np

from downscale.accounting import decode_flops, forward_flops, train_flops
from downscale.analysis.measures import Missing
from downscale.evaluate.items import TableError
from downscale.places import read_json
from downscale.sizes import LanguageConfig, VisionConfig
from downscale.strict import from_dict, unknown

COSTS = {'params': 'parameters in total', 'train_flops': 'training FLOPs',
         'inference_flops': 'inference FLOPs a question',
         'samples': 'rows with pictures in training', 'chip_hours': 'chip-hours of training'}
WRITER = {'caption': 'caption', 'extraction': 'extract'}
JOINT = ('interleave', 'instruct')


@dataclass(frozen=True)
class Trained:
    """One stage of a cell: its `stage` dict, models, cost and what it started from.

    `conversations` are those it was trained on, None where nothing tells how rows were packed.
    """
    size: str
    seed: int
    stage: dict
    language: LanguageConfig
    vision: VisionConfig | None
    flops: float
    chip_seconds: float | None
    conversations: float | None
    parents: tuple


def stages_of(s):
    """{(cell, stage): Trained} of every stage with an `experiment.json`, read once."""
    if 'stages' not in s.made:
        found = {}
        for path in sorted(s.study.root.glob('cells/*/*/experiment.json')):
            cell, stage = path.parent.parent.name, path.parent.name
            value = read_json(path)
            try:
                one = next((one for one in value['stages'] if one['name'] == stage), None)
                if one is not None:
                    found[cell, stage] = _trained(path.parent, cell, value, one)
            except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
                raise TableError(f'{path}: not readable as an experiment '
                                 f'({type(error).__name__}: {error})') from None
        s.made['stages'] = found
    return s.made['stages']


def _trained(folder, cell, value, one):
    language = from_dict(LanguageConfig, value['language'], f'{folder}: language')
    vision = value.get('vision') and from_dict(VisionConfig, value['vision'], f'{folder}: vision')
    shapes = [one, *one.get('buckets', ())]
    flops = np.mean([train_flops(language, vision, rows=shape['batch'], length=shape['length'],
                                 tiles=shape['tiles'] * shape['batch'],
                                 groups=tuple(one['trainable']))['total'] for shape in shapes])
    parents = tuple((f'{other}-s{value["seed"]}' if other else cell, name)
                    for other, _, name in (reference.rpartition('/') for reference in
                                           dict.fromkeys(one['parents'].values())))
    return Trained(value['size'], value['seed'], one, language, vision,
                   float(flops) * one['steps'], _chip_seconds(folder, value.get('mesh', {})),
                   _conversations(folder, one['steps']), parents)


def _conversations(folder, steps):
    """Conversations that `steps` steps hold, by the packing that `padding.json` has counted."""
    told = read_json(folder / 'padding.json')
    if not told:
        return None
    batches = sum(shape['rows'] / shape['batch'] for shape in told['buckets'])
    return steps * told['total']['conversations'] / batches


def planned_tokens(stage):
    """Tokens that the steps of a `stage` dict have room for, the mean over its shapes of batches.

    Those it saw differ from seed to seed by how well its rows were packed.
    """
    return stage['steps'] * float(np.mean([shape['batch'] * shape['length'] for shape in
                                           (stage, *stage.get('buckets', ()))]))


def _chip_seconds(folder, mesh):
    """Seconds of training, sessions added up, times the chips that the mesh names (-1 is one).

    Cells that were trained in one program have an equal share of its time. None without timing, as
    in a run of very few steps.
    """
    path = folder / 'timing.jsonl'
    if not path.is_file():
        return None
    whole, last, session = 0., 0., None
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue   # torn by a kill; the next row of its session holds its time
        if row.get('began') != session or row['seconds'] < last:   # old rows have no `began`
            session, last = row.get('began'), 0.
        whole, last = whole + (row['seconds'] - last) / row.get('cells', 1), row['seconds']
    if not whole:
        return None   # so short that no time was noted
    return whole * math.prod(max(1, size) for size in mesh.values())


def ancestry(s, end):
    """All stages behind and including `end`, a (cell, stage); `Missing` where one has no files."""
    found, queue, known = {}, [end], stages_of(s)
    while queue:
        key = queue.pop()
        if key not in known:
            raise Missing(f'no experiment.json of {"/".join(key)}')
        if key not in found:
            found[key] = known[key]
            queue += known[key].parents
    return found


def stage_of(s, run, kind):
    """(cell, stage) that wrote a kind of text, or with '' that answers with the picture.

    Where published data has made no writer, the model that answers has written.
    """
    for name in (*([WRITER[kind]] if kind else ()), *JOINT):
        if (run, name) in stages_of(s):
            return run, name
    raise Missing(f'no finished stage of {run} for {kind or "joint"} answers')


def reasoner_of(s, run):
    """(LanguageConfig of a reasoner, the stages behind it); an imported one was not trained."""
    if (run, 'reason') in stages_of(s):
        return stages_of(s)[run, 'reason'].language, ancestry(s, (run, 'reason'))
    return stages_of(s)[stage_of(s, run, '')].language, {}


def tuned_examples(s, sizes, kind):
    """Examples that the writers of a kind were tuned on, behind the model that answers; mean over
    runs.

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


def of_cell(s, cell, cost):
    """One cost of what answered in a `Cell`: one model, or perception and reasoner together."""
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
        return sum(one.flops for one in stages)
    if cost == 'samples':
        return sum(one.stage['steps'] * one.stage['batch'] for one in stages if one.stage['tiles'])
    if any(one.chip_seconds is None for one in stages):
        raise Missing('a stage has no times in timing.jsonl')
    return sum(one.chip_seconds for one in stages) / 3600


def _inference(s, cell):
    """Mean FLOPs a question: one tile and its tokens are read, texts and thoughts are written.

    Questions and prompts are left out, since their tokens are not recorded; they are the same for
    all that are compared.
    """
    index = s.study.cells[cell]
    written = float(np.mean(s.study.items['n_gen_tokens'][index]))
    own = stages_of(s)[stage_of(s, cell.p_run, cell.text_kind)]
    if own.vision is None:
        raise Missing(f'{cell.p_run} has no tower')
    seen = own.vision.P
    whole = forward_flops(own.language, own.vision, rows=1, length=seen, tiles=1,
                          head_positions=1)['total']
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


def _decoded(language, live, tokens):
    """FLOPs of `tokens` tokens behind `live` ones; linear in the live tokens, so their mean."""
    return tokens * decode_flops(language, live + (tokens + 1) / 2)

"""The files of a synthetic study: what a real study folder holds, so that all reads it alike."""
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from downscale.accounting import totals
from downscale.results.study import Study, load_study
from downscale.runtime.files import write_bytes, write_json
from downscale.sizes import SIGLIP, LanguageConfig

if TYPE_CHECKING:
    from downscale.analysis.planted.study import Design, Planted

ROWS = 24         # of a curve
PICTURES = 24
LENGTH = 128
BATCH = 16
STEPS = 4000
# A power of two: the sweep doubles it exactly, and log2 of the ratio is a whole number.
RATE = 2. ** -8
STAGES = ('text', 'align', 'instruct', 'caption', 'extract', 'reason')
PARENTS = {'text': {}, 'align': {'language': 'text', 'tower': 'tower/tower'},
           'instruct': dict.fromkeys(('language', 'tower', 'connector'), 'align'),
           'caption': dict.fromkeys(('language', 'tower', 'connector'), 'instruct'),
           'extract': dict.fromkeys(('language', 'tower', 'connector'), 'instruct'),
           'reason': {'language': 'text'}}
BUDGETS = (1e13, 3e13, 1e14, 3e14, 1e15)   # FLOPs of the isoFLOP runs
RATES = tuple(RATE * 2. ** step for step in (-2, -1, 1, 2))


@dataclass(frozen=True, kw_only=True)
class SyntheticStage:
    """One stage of a cell, whose files look as if it had been trained."""
    cell: str
    size: str
    seed: int
    name: str
    language: LanguageConfig
    steps: int = STEPS
    rate: float = RATE

    @property
    def trainable(self) -> str:
        """The one part that it trains."""
        return {'tower': 'tower', 'align': 'connector'}.get(self.name, 'language')


def write_folder(folder: Path, rng: np.random.Generator, design: 'Design', meta: dict[str, Any],
                 evaluations: dict[str, Any], texts: dict[str, Any]) -> Study:
    """Write the study into `folder`, and return it as `load_study` reads it.

    ValueError where something is there already.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f'{folder} is not empty; give a new folder')
    # Losses and pictures take from one stream of draws: the order of what is written must stay.
    for stage in _trained(design):
        _write_stage(folder, rng, design.planted, stage)
    budgets = {}
    for budget, stage in _isoflop(design):
        budgets[stage.cell] = budget
        _write_stage(folder, rng, design.planted, stage)
    # Runs of the sweeps are not in `runs`: none of their stages can be missing.
    names = {run['run_id']: list(STAGES) for run in meta['runs']}
    write_json(folder / 'study.json', {**meta, 'stages': names, 'budgets': budgets})
    for name, table in evaluations.items():
        _write(folder / 'evaluations' / name / 'items.parquet', table)
        write_json(folder / 'evaluations' / name / 'DONE.json', {'hash': 'synthetic'})
    for name, table in texts.items():
        _write(folder / 'evaluations' / name / 'texts.parquet', table)
    for cluster in np.unique(design.items['cluster_id'])[:PICTURES]:
        sink = io.BytesIO()
        # 4 x 4 colours, each a square of 16 pixels.
        pixels = np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(sink, 'PNG')
        write_bytes(folder / 'pictures' / f'{cluster}-0.png', sink.getvalue())
    return load_study(folder)


def _write(path, table):
    """Write a table as it is: `items.write_items` takes rows, and a large study has millions."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression='zstd')
    write_bytes(path, sink.getvalue().to_pybytes())


def loss_of(planted: 'Planted', n: float, tokens: float, rate: float = RATE) -> float:
    """Return the final loss that the planted law gives; a twofold wrong rate raises it by 2 %."""
    law = planted.E + planted.A / n ** planted.alpha + planted.B / tokens ** planted.beta
    return law * (1 + .02 * np.log2(rate / RATE) ** 2)


def _trained(design):
    """Yield the stages of all cells, then those of the sweep over learning rates."""
    for seed in range(design.seeds):
        smallest = next(iter(design.models))
        yield SyntheticStage(cell=f'tower-s{seed}', size=smallest, seed=seed, name='tower',
                             language=design.models[smallest])
        for size, language in design.models.items():
            for stage in STAGES:
                yield SyntheticStage(cell=f'{size}-s{seed}', size=size, seed=seed, name=stage,
                                     language=language)
    # Every second size is enough to see whether the best rate moves.
    for size in list(design.models)[::2]:
        for rate in RATES:
            yield SyntheticStage(cell=f'{size}-s0-lr{rate:g}', size=size, seed=0, name='text',
                                 language=design.models[size], rate=rate)


def _isoflop(design):
    """Yield (budget, stage) of the isoFLOP runs, for as long as they have a step for every row."""
    for size, language in design.ladder.items():
        for budget in BUDGETS:
            # FLOPs are 6 N times the tokens, which are BATCH * LENGTH a step.
            steps = round(budget / (6 * totals(language)['n_nonembed'] * BATCH * LENGTH))
            if steps >= ROWS:
                yield f'{budget:g}', SyntheticStage(
                    cell=f'{size}-s0-c{budget:g}', size=size, seed=0, name='text',
                    language=language, steps=steps)


def _write_stage(folder, rng, planted, stage):
    """Write the files of a stage; its loss is that of the planted law with a draw of noise."""
    place = folder / 'cells' / stage.cell / stage.name
    # Text alone has no tiles. All groups have a rate, although one is trained.
    facts = {'name': stage.name, 'steps': stage.steps, 'batch': BATCH, 'length': LENGTH,
             'tiles': 0 if stage.name in ('text', 'reason') else 2,
             'rates': dict.fromkeys(('language', 'tower', 'connector'), stage.rate),
             'trainable': [stage.trainable], 'parents': PARENTS.get(stage.name, {})}
    write_json(place / 'experiment.json', {
        'name': stage.cell, 'size': stage.size, 'seed': stage.seed,
        'language': asdict(stage.language), 'vision': asdict(SIGLIP['micro']), 'stages': [facts]})
    packed = {'conversations': ROWS * BATCH, 'rows': ROWS * BATCH}   # one to a row
    write_json(place / 'padding.json', {'buckets': [{'batch': BATCH, **packed}], 'total': packed})
    tokens = stage.steps * BATCH * LENGTH
    final = loss_of(planted, totals(stage.language)['n_nonembed'], tokens, stage.rate)
    final *= np.exp(planted.noise * rng.standard_normal())
    lines = []
    for part in np.arange(1, ROWS + 1) / ROWS:
        loss = final + 3 * np.maximum(0, .8 - part) ** 2   # flat at the end, where losses are read
        row = {'step': max(1, round(stage.steps * part)), 'tokens': round(tokens * part),
               'loss': float(loss)}
        lines.append(json.dumps(row) + '\n')
    write_bytes(place / 'metrics.jsonl', ''.join(lines).encode())
    timing = {'step': stage.steps, 'seconds': stage.steps * .05, 'tokens_per_s': 4e4,
              'input_share': .01}
    write_bytes(place / 'timing.jsonl', (json.dumps(timing) + '\n').encode())
    write_json(place / 'DONE.json', {'hash': 'synthetic'})

"""The files of a synthetic study: what a real study folder holds, so that all reads it alike."""
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from downscale.accounting import totals
from downscale.analysis.synthetic import SIZES, Design, Planted
from downscale.results.study import Study, load_study
from downscale.runtime.files import write_bytes, write_json
from downscale.sizes import MICRO, SIGLIP, scale

ROWS = 24         # of a curve
PICTURES = 24
LENGTH = 128
BATCH = 16
STEPS = 4000
RATE = 2. ** -8
STAGES = ('text', 'align', 'instruct', 'caption', 'extract', 'reason')
PARENTS = {'text': {}, 'align': {'language': 'text', 'tower': 'tower/tower'},
           'instruct': dict.fromkeys(('language', 'tower', 'connector'), 'align'),
           'caption': dict.fromkeys(('language', 'tower', 'connector'), 'instruct'),
           'extract': dict.fromkeys(('language', 'tower', 'connector'), 'instruct'),
           'reason': {'language': 'text'}}
BUDGETS = (1e13, 3e13, 1e14, 3e14, 1e15)   # FLOPs of the isoFLOP runs
RATES = tuple(RATE * 2. ** step for step in (-2, -1, 1, 2))


def write_folder(folder: Path, rng: np.random.Generator, design: Design, meta: dict[str, Any],
                 evaluations: dict[str, Any], texts: dict[str, Any]) -> Study:
    """Return `folder` holds the study, which is returned as `load_study` reads it.

    ValueError where something is there already.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f'{folder} is not empty; give a new folder')
    budgets = _stages(folder, rng, design)
    names = {run['run_id']: list(STAGES) for run in meta['runs']}
    write_json(folder / 'study.json', {**meta, 'stages': names, 'budgets': budgets})
    for name, table in evaluations.items():
        _write(folder / 'evaluations' / name / 'items.parquet', table)
        write_json(folder / 'evaluations' / name / 'DONE.json', {'hash': 'synthetic'})
    for name, table in texts.items():
        _write(folder / 'evaluations' / name / 'texts.parquet', table)
    for cluster in np.unique(design.items['cluster_id'])[:PICTURES]:
        sink = io.BytesIO()
        pixels = np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(sink, 'PNG')
        write_bytes(folder / 'pictures' / f'{cluster}-0.png', sink.getvalue())
    return load_study(folder)


def _write(path, table):
    """Columns as they are: `items.write_items` takes rows, of which a large study has millions."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression='zstd')
    write_bytes(path, sink.getvalue().to_pybytes())


def loss_of(planted: Planted, n: float, tokens: float, rate: float = RATE) -> float:
    """Return the final loss that the planted law gives, which rises by 2 % for a twofold wrong
    rate.
    """
    law = planted.E + planted.A / n ** planted.alpha + planted.B / tokens ** planted.beta
    return law * (1 + .02 * np.log2(rate / RATE) ** 2)


def _stages(folder, rng, design):
    """Return every cell has its stages; returns the budget of each isoFLOP cell."""
    for seed in range(design.seeds):
        _stage(folder, rng, design, f'tower-s{seed}', next(iter(design.models)), seed, 'tower')
        for size in design.models:
            for stage in STAGES:
                _stage(folder, rng, design, f'{size}-s{seed}', size, seed, stage)
    for size in list(design.models)[::2]:
        for rate in RATES:
            _stage(folder, rng, design, f'{size}-s0-lr{rate:g}', size, 0, 'text', rate=rate)
    budgets = {}
    for width, depth in SIZES:
        size = f'w{width}d{depth}'
        language = scale(MICRO['w64d2'], width, depth, 320)
        for budget in BUDGETS:
            steps = round(budget / (6 * totals(language)['n_nonembed'] * BATCH * LENGTH))
            if steps >= ROWS:
                name = f'{size}-s0-c{budget:g}'
                budgets[name] = f'{budget:g}'
                _stage(folder, rng, design, name, size, 0, 'text', steps, language=language)
    return budgets


def _stage(folder, rng, design, cell, size, seed, stage, steps=STEPS, rate=RATE,
           language=None):
    place = folder / 'cells' / cell / stage
    language = language or design.models[size]
    tiles = 0 if stage in ('text', 'reason') else 2
    one = {'name': stage, 'steps': steps, 'batch': BATCH, 'length': LENGTH, 'tiles': tiles,
           'rates': {'language': rate, 'tower': rate, 'connector': rate},
           'trainable': ['tower'] if stage == 'tower' else
           ['connector'] if stage == 'align' else ['language'],
           'parents': PARENTS.get(stage, {})}
    write_json(place / 'experiment.json', {
        'name': cell, 'size': size, 'seed': seed, 'language': asdict(language),
        'vision': asdict(SIGLIP['micro']), 'stages': [one]})
    packed = {'conversations': ROWS * BATCH, 'rows': ROWS * BATCH}   # one to a row
    write_json(place / 'padding.json', {'buckets': [{'batch': BATCH, **packed}], 'total': packed})
    tokens = steps * BATCH * LENGTH
    final = loss_of(design.planted, totals(language)['n_nonembed'], tokens, rate)
    final *= np.exp(design.planted.noise * rng.standard_normal())
    done = np.arange(1, ROWS + 1) / ROWS
    loss = final + 3 * np.maximum(0, .8 - done) ** 2   # flat at the end, where losses are read
    write_bytes(place / 'metrics.jsonl', ''.join(
        json.dumps({'step': max(1, round(steps * part)), 'tokens': round(tokens * part),
                    'loss': float(value)}) + '\n'
        for part, value in zip(done, loss, strict=True)).encode())
    write_bytes(place / 'timing.jsonl', (json.dumps(
        {'step': steps, 'seconds': steps * .05, 'tokens_per_s': 4e4, 'input_share': .01})
        + '\n').encode())
    write_json(place / 'DONE.json', {'hash': 'synthetic'})

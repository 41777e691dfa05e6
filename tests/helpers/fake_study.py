"""A small study folder with planted effects, for the tests of the analysis."""
import json
import struct
import zlib
from pathlib import Path

import numpy as np

from downscale.results.items import write_items, write_texts

SIZES = {'w16d2': 60_000, 'w32d4': 400_000, 'w64d4': 1_500_000}
FAMILIES = {'color': 'visual', 'count': 'visual', 'relation': 'visual', 'animal': 'knowledge'}
CHANCE = .25
LOSS_BY_FAMILY = {'color': .02, 'count': .22, 'relation': .1, 'animal': 0.}  # per step down
FAULTS = dict.fromkeys(FAMILIES, {'unparsed': .02})
GOLDS = ('red', 'blue', 'green', 'grey')
TEXTS_OF = {'caption': .05, 'extraction': 0.}


def item_row(**changes):
    """One valid joint row."""
    row = {'eval_id': 'e', 'task': 'color', 'category': 'visual', 'item_id': 'i0',
           'cluster_id': 'c0', 'p_run': 'w16d2-s0', 'r_run': '', 'text_kind': '',
           'thinking': False, 'condition': 'image', 'repeat': 0, 'score': 1., 'nll_gold': 1.,
           'chance': CHANCE, 'pred': 'red', 'gold': 'red', 'parse_ok': True, 'n_gen_tokens': 3,
           'truncated': False, 'finish': 'stop', 'close': '', 'n_think_tokens': 0,
           'prompt_hash': 'p', 'data_hash': 'd'}
    return {**row, **changes}


def fake_study(path, seed=0, pictures=40, gold=.95, conditions=('image', 'blind', 'shuffled'),
               decoupled=True, pred='<script>alert(1)</script>', faults=FAULTS):
    """The folder `path` holds a study; `gold` is the reasoner's accuracy on gold text.

    `faults` plants {family: {'truncated' | 'unparsed' | 'unclosed': share}} in every evaluation:
    other items for each kind, all of them wrong. Only thinking rows can be unclosed.
    """
    path, rng = Path(path), np.random.default_rng(seed)
    runs = [{'run_id': f'{size}-s0', 'size': size, 'width': int(size[1:3]), 'depth': int(size[-1]),
             'n_total': n, 'n_nonembed': n // 2, 'n_vision': 90_000, 'seed': 0}
            for size, n in SIZES.items()]
    baselines = {f: {'informed': CHANCE, 'majority': .3, 'uniform': .2} for f in FAMILIES}
    path.mkdir(parents=True, exist_ok=True)
    (path / 'study.json').write_text(json.dumps({
        'name': 'fake', 'seed': seed, 'config_hash': 'abc', 'runs': runs,
        'data': {'baselines': baselines, 'image_px': 8}}))
    _cells(path, rng)
    luck = rng.random((pictures, len(FAMILIES)))   # shared by all models: answers correlate
    steps = {f'{size}-s0': len(SIZES) - 1 - k for k, size in enumerate(SIZES)}
    for run, down in steps.items():
        for condition in conditions:
            cell = {'p_run': run, 'condition': condition}
            write(path, cell, rng, luck, down if condition == 'image' else None, pred,
                  faults)
    for r_run, r_down in steps.items() if decoupled else ():
        for kind, penalty in TEXTS_OF.items():
            for thinking in (False, True):
                cell = {'r_run': r_run, 'text_kind': kind, 'thinking': thinking}
                good = {f: gold if isinstance(gold, float) else gold[f] for f in FAMILIES}
                write(path, {**cell, 'p_run': '', 'condition': 'gold_text'}, rng, luck, 0, pred,
                      faults, {f: .9 - good[f] + .1 * r_down for f in FAMILIES})
                for p_run, p_down in steps.items():
                    write(path, {**cell, 'p_run': p_run, 'condition': 'image'}, rng, luck,
                          p_down, pred, faults, dict.fromkeys(FAMILIES, penalty + .05 * r_down))
    if decoupled:
        _texts(path, pictures)
    (path / 'pictures').mkdir(exist_ok=True)
    for k in range(pictures):
        _png(path / 'pictures' / f'c{k}-0.png', rng)
    return path


def write(path, cell, rng, luck, down, pred, faults, penalty=None):
    """One evaluation; `down` is how many sizes below the largest (None: a guess)."""
    rows, eval_id = [], '-'.join(str(part) for part in cell.values())
    thinking = cell.get('thinking', False)
    for k in range(len(luck)):
        for place, (family, category) in enumerate(FAMILIES.items()):
            skill = CHANCE if down is None else .9 - LOSS_BY_FAMILY[family] * down
            if family == 'animal' and down is None:
                skill = .88
            skill -= (penalty or {}).get(family, 0)
            draw = luck[k, place] if rng.random() < .7 else rng.random()
            fault = _fault(k, len(luck), faults.get(family, {}), thinking)
            right = bool(draw < skill) and not fault
            gold = GOLDS[k % len(GOLDS)]
            rows.append(item_row(
                eval_id=eval_id, task=family, category=category, item_id=f'{family}{k}',
                cluster_id=f'c{k}', score=float(right), gold=gold, pred=gold if right else pred,
                n_gen_tokens=int(rng.integers(2, 9)), n_think_tokens=2 * thinking,
                nll_gold=float('nan') if thinking else .5, **{'r_run': '', **cell},
                **_ending(fault, thinking)))
    write_items(path / 'evaluations' / eval_id / 'items.parquet', rows)


def _fault(k, pictures, planted, thinking):
    """What is wrong with item `k`, exactly as often as planted: '' for nothing."""
    end = 0
    for kind, share in planted.items():
        end += round(share * pictures) if thinking or kind != 'unclosed' else 0
        if k < end:
            return kind
    return ''


def _ending(fault, thinking):
    close = 'open' if fault == 'unclosed' else 'natural'
    return {'truncated': fault == 'truncated',
            'finish': 'length' if fault == 'truncated' else 'stop',
            'parse_ok': fault != 'unparsed', 'close': close if thinking else ''}


def _cells(path, rng):
    stages = {f'{size}-s0': ('text', 'align', 'instruct', 'caption', 'extract', 'reason')
              for size in SIZES}
    for place, (run, names) in enumerate({**stages, 'tower-s0': ('tower',)}.items()):
        for stage in names:
            folder = path / 'cells' / run / stage
            folder.mkdir(parents=True, exist_ok=True)
            loss = 2 / np.sqrt(1 + np.arange(60)) + .3 - .1 * place + .02 * rng.random(60)
            (folder / 'metrics.jsonl').write_text(''.join(json.dumps(
                {'step': k, 'tokens': 4096 * k, 'loss': float(v)}) + '\n'
                for k, v in enumerate(loss, 1)))
            (folder / 'DONE.json').write_text('{}')


def _texts(path, pictures):
    rows = [{'item_id': f'{family}{k}', 'p_run': f'{size}-s0', 'text_kind': kind,
             'question': f'What {family} is <b>left</b> of the square?', 'prompt': 'describe',
             'text': f'{size} sees a red {family}', 'n_tokens': 5, 'truncated': False}
            for family in FAMILIES for k in range(pictures) for size in SIZES for kind in TEXTS_OF]
    write_texts(path / 'evaluations' / 'texts' / 'texts.parquet', rows)


def _png(path, rng):
    """An 8 x 8 picture, written by hand so that the tests need no image library."""
    pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    raw = b''.join(b'\0' + row.tobytes() for row in pixels)

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack(
            '>I', zlib.crc32(name + data))
    header = struct.pack('>IIBBBBB', 8, 8, 8, 2, 0, 0, 0)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
                     + chunk(b'IDAT', zlib.compress(raw)) + chunk(b'IEND', b''))

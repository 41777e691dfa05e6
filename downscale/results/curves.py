"""What `metrics.jsonl` of a stage holds, one row for each step from 1 on, and doubts about it.

Besides, which program computed attention, as its `DONE.json` says, and who taught it.
"""
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from downscale.runtime.files import read_json


def row_of(line: str) -> dict[str, Any] | None:
    """Return the row of a line; None where it is torn or is not the row of a step."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    # `type` rather than isinstance: True is an int as well, and no step.
    return row if isinstance(row, dict) and type(row.get('step')) is int else None


def lost_rows(steps: Collection[int], last: int) -> str:
    """Return what is wrong with the rows of steps 1 to `last`, as text.

    `steps` are those of the rows; '' if each is there once.
    """
    missing = sorted(set(range(1, last + 1)).difference(steps))
    doubled = len(steps) - len(set(steps))
    words = []
    if missing:
        words.append(f'lacks {len(missing)} of {last} rows, the first of step {missing[0]}')
    if doubled:
        words.append(f'has {doubled} rows twice')
    return ' and '.join(words)


def attention(study: Path) -> Iterator[str]:
    """Yield which programs computed attention on which device, and in how many stages, a line each.

    `study` is a local folder. Stages that ended before this was noted are not counted.
    """
    counts = Counter()
    for path in study.glob('cells/*/*/DONE.json'):
        done = read_json(path)
        programs = done.get('attention') if isinstance(done, dict) else None
        for program in set(programs.values()) if isinstance(programs, dict) else ():
            counts[f'{program} on {done.get("device")}'] += 1
    for where, count in sorted(counts.items()):
        yield f'Attention was computed by {where} in {count} stage{"s" * (count > 1)}.'


def teachers(study: Path) -> Iterator[str]:
    """Yield from which model each stage with a teacher learns, and how, a line each.

    `study` is a local folder.
    """
    for path in sorted(study.glob('cells/*/*/teacher.json')):
        note = read_json(path)
        if isinstance(note, dict) and note.keys() >= {'teacher', 'distil', 'divergence'}:
            of = {'forward': 'KL(teacher || student)', 'reverse': 'KL(student || teacher)'}
            cell, name = path.parts[-3:-1]
            yield (f'{cell}/{name} learns from {note["teacher"]}: its loss is {note["distil"]} x '
                   f'{of.get(note["divergence"], "a divergence")}, the rest cross-entropy.')


def doubts(study: Path) -> Iterator[str]:
    """Yield what is wrong with the training of the stages of a local study folder, a line each."""
    for path in sorted(study.glob('cells/*/*/metrics.jsonl')):
        rows = [row for row in map(row_of, path.read_text(errors='replace').splitlines()) if row]
        # The train loop writes a factor in every row; logs of other makers may be thinned out.
        if rows and all('lr_factor' in row for row in rows):
            name = path.relative_to(study)
            done = read_json(path.with_name('DONE.json')) or {}
            yield from (f'{name}: {text}.' for text in _doubts(rows, done))


def _doubts(rows, done):
    """Yield what is wrong with the rows of one stage, as texts; `done` is its `DONE.json`."""
    # Without DONE.json the stage goes on: there should be rows up to its last step so far.
    lost = lost_rows([row['step'] for row in rows], done.get('steps', rows[-1]['step']))
    if lost:
        yield lost
    bad = [row['step'] for row in rows if not math.isfinite(row.get('loss', math.nan))]
    if bad:
        yield f'the loss is no number from step {bad[0]} on'
    if rows[-1].get('unmoved'):
        yield f'training moved no weight of {", ".join(rows[-1]["unmoved"])}'
    peak = max(row['lr_factor'] for row in rows)
    # A stage that is shorter than its warm-up was never trained at its own rate.
    if done and peak < 1 - 1e-6:
        yield f'the rate never reached its peak, only {peak:.1%} of it'

"""Eight small cells in one program against the same cells one after another.

Both sides train the text stage of the smoke study (rows of 176 tokens) from its data to its
checkpoints, in one process, by turns; compiling is not counted. A round's ratio is the time of the
one side over that of the other; that of processor time stays fair where others use the same cores.
Cells of one seed share their batches.

Command:   python benchmarks/cells_together.py
Hardware:  all cores that this process may use
Time:      width 32 took 7 minutes with 60 steps on two cores
"""
import dataclasses
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from begin import begin, parser

WIDTHS, BATCHES, CELLS = (32, 96), (4, 12), 8
STUDY = Path(__file__).parents[1] / 'experiments' / 'smoke.py'


def eight_cells(width, batch, seeds, steps):
    """Eight cells of the smoke study's text stage: `seeds` seeds with 8 / `seeds` rates each."""
    from downscale.experiment import file
    from downscale.experiment.expansion import cells_of
    config, _ = file.load_study(STUDY, [f'stages.text.steps={steps}',
                                       f'stages.text.batch={batch}'])
    with config.unlocked():
        del config['platform']
    first = cells_of(config, [{'size': f'w{width}d2', 'seed': 0}])[1]
    found = []
    for at in range(CELLS):
        text = dataclasses.replace(first.stage('text'), rates={'language': 1e-3 * 1.3 ** at})
        found.append(dataclasses.replace(first, name=f'cell{at}', seed=at % seeds, stages=(text,)))
    return found


def alone(folder, cells):
    """Train the cells one after another."""
    from downscale.stages import training
    for cell in cells:
        training.train_stage(folder, cell, 'text', tracker='none')


def together(folder, cells):
    """Train the cells in one program."""
    from downscale.stages import training
    failed = training.train_together(folder, cells, 'text', tracker='none')
    if failed:
        raise RuntimeError(f'cells failed: {failed}')


def seconds(run, folder, cells):
    """(seconds, processor seconds) of `run` for these cells, from nothing to their checkpoints."""
    shutil.rmtree(folder / 'cells', ignore_errors=True)
    begin = time.perf_counter(), time.process_time()
    run(folder, cells)
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def measure(folder, case, steps, rounds):
    """The times of both sides (see `seconds`), as (alone, together) of each round; a `case` is
    (width, batch, seeds)."""
    from downscale.stages.inputs import prepare
    prepare(folder, eight_cells(*case, steps)[0])
    warm = eight_cells(*case, 3)
    for run in (alone, together):
        seconds(run, folder, warm)
    cells = eight_cells(*case, steps)
    return [(seconds(alone, folder, cells), seconds(together, folder, cells))
            for _ in range(rounds)]


def middle(values):
    """Median and range, as text."""
    return f'{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})'


def line(case, steps, times):
    """One printed line of a case."""
    width, batch, seeds = case
    tokens = CELLS * steps * batch * eight_cells(*case, steps)[0].stage('text').length
    alone, together = (tokens / statistics.median(wall for wall, _ in side)
                       for side in zip(*times))
    wall, processor = ([one[at] / other[at] for one, other in times] for at in (0, 1))
    name = f'w{width}d2, {batch} rows, {CELLS} cells of {seeds} seed{"s" * (seeds > 1)}'
    return (f'{name}: one after another {alone:,.0f} tok/s, together {together:,.0f} tok/s, ratio '
            f'{middle(wall)}, of processor time {middle(processor)}, {len(times)} rounds')


def main():
    made = parser(__doc__, 'cells_together.py --widths 32 --rounds 7')
    made.add_argument('--widths', type=int, nargs='*', default=WIDTHS)
    made.add_argument('--batches', type=int, nargs='*', default=BATCHES, help='rows of a step')
    made.add_argument('--seeds', type=int, nargs='*', default=(1, 8), choices=(1, 2, 4, 8),
                        help='seeds among the eight cells (default: 1 8)')
    made.add_argument('--steps', type=int, default=100, help='of each cell (default 100)')
    made.add_argument('--rounds', type=int, default=3)
    asked = begin(made, '10 minutes', {'widths': [32], 'batches': [4], 'seeds': [1], 'steps': 60,
                                       'rounds': 1})
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    from downscale.runtime.memory import keep_freed_memory
    keep_freed_memory()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for case in itertools.product(asked.widths, asked.batches, asked.seeds):
            times = measure(Path(folder), case, asked.steps, asked.rounds)
            found.append(dict(zip(('width', 'batch', 'seeds', 'seconds'), (*case, times))))
            print(line(case, asked.steps, times), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({'steps': asked.steps, 'cases': found}, indent=1))


if __name__ == '__main__':
    main()

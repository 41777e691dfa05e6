"""One cell of the micro study from nothing to its last answer, here and at another commit.

Both sides run, by turns, all tasks of one size and seed (tower, stages, texts, answers) one after
another in a process of their own on one core, as a worker of `downscale study` does, each round in
a fresh folder. The first round compiles, as a first seed does; the others find the programs. What
is compared is processor time, which stays fair where others use the machine; seconds by the clock
are printed beside it.

Command:   python benchmarks/micro_cell.py --against COMMIT
Hardware:  one core
Time:      --quick a few minutes; all steps of w32d2 took about seven minutes a side and round
"""
import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUICK = {'steps': 20, 'train': 1000}  # a part of the steps; scenes that are made


def cells_of(size, quick):
    """Return the cells of one size and seed 0, with a part of the steps where `quick`."""
    from downscale.experiment import expansion, file
    config, _ = file.load_study(ROOT / 'experiments' / 'micro_study.py', [])
    with config.unlocked():
        del config['platform']
        if quick:
            config.data.train = QUICK['train']
            for stage in config.stages.values():
                stage.steps //= QUICK['steps']
    return expansion.cells_of(config, [{'size': size, 'seed': 0}])


def run_cell(size, quick, folder, cache):
    """Run every task of a cell in this process; print a JSON line of each."""
    began = time.perf_counter(), time.process_time()
    from downscale.runtime.memory import keep_freed_memory
    keep_freed_memory()
    import jax

    import downscale
    from downscale.study import preparation, tasks, workers
    compiled = [0.]

    def count(event, seconds, **_):
        if event == '/jax/core/compile/backend_compile_duration':
            compiled[0] += seconds
    jax.monitoring.register_event_duration_secs_listener(count)

    def note(name):
        nonlocal began
        now = time.perf_counter(), time.process_time()
        print(json.dumps({'task': name, 'clock': now[0] - began[0], 'core': now[1] - began[1],
                          'compiled': compiled[0], 'package': downscale.__file__}), flush=True)
        compiled[0] = 0.
        began = now
    workers.use_cache(cache)
    cells = cells_of(size, quick)
    note('start')
    preparation.prepare(Path(folder), 'micro_cell', cells, quiet=True)
    note('prepare')
    for task in tasks.tasks_of(cells):
        reads = (task.kind, task.stage) == ('evaluate', 'reason')
        writers = tasks.writers_of(task.experiment, cells) if reads else {}
        workers.run_task(folder, task, writers, lambda *_: None, 'none')
        kind = 'answer' if task.stage in ('joint', 'reason') else 'write'
        note(task.stage if task.kind == 'train' else f'{kind} {task.stage}')


@contextlib.contextmanager
def tree_of(against):
    """Open the folder of another version: a path, or a commit of this repository, unpacked."""
    if Path(against).is_dir():
        yield Path(against).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / 'tree.tar'
        subprocess.run(['git', '-C', str(ROOT), 'archive', '-o', str(archive), against],
                       check=True)
        with tarfile.open(archive) as files:
            files.extractall(Path(folder) / 'tree', filter='data')
        yield Path(folder) / 'tree'


def measure(tree, args, cache):
    """Return the rows of one round of the version in `tree`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, '--size', args.size, '--child', folder, cache]
        command += ['--quick'] * args.quick
        environment = {**os.environ, 'PYTHONPATH': str(tree), 'JAX_PLATFORMS': 'cpu'}
        environment.pop('JAX_COMPILATION_CACHE_DIR', None)
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True,
                              check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    strangers = {row['package'] for row in rows if not Path(row['package']).is_relative_to(tree)}
    if strangers:
        raise RuntimeError(f'measured {strangers.pop()}, which is not in {tree}')
    return rows


def table(rounds):
    """Yield the lines of the table of {side: rows} of each round."""
    yield f'{"task":20s} {"before":>8s} {"now":>8s} {"ratio":>6s}   (processor seconds)'
    for k, row in enumerate(rounds[0]['now']):
        yield line(row['task'], [(each['before'][k], each['now'][k]) for each in rounds], 'core')
    for what, name in (('compiled', 'of it compiling*'), ('core', 'all'), ('clock', 'all, clock')):
        yield line(name, [tuple({what: sum(row[what] for row in each[side])}
                                for side in ('before', 'now')) for each in rounds], what)


def line(name, pairs, what):
    """Return a line: medians of both sides, and the median of the ratios of pairs."""
    before, now = (statistics.median(side[what] for side in sides) for sides in zip(*pairs))
    ratios = [one[what] / other[what] for one, other in pairs if other[what]]
    ratio = f'{statistics.median(ratios):6.2f}' if ratios else '     -'
    return f'{name:20s} {before:8.1f} {now:8.1f} {ratio}'


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: python benchmarks/micro_cell.py --against HEAD~1 --quick')
    parser.add_argument('--against', default='HEAD', help='a commit, or the folder of a checkout')
    parser.add_argument('--size', default='w32d2')
    parser.add_argument('--quick', action='store_true', help='a twentieth of the steps')
    parser.add_argument('--rounds', type=int, default=3, help='the first one compiles (default 3)')
    parser.add_argument('--json', metavar='FILE', help='also write every time to FILE')
    parser.add_argument('--child', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # children inherit it
    if args.child:
        run_cell(args.size, args.quick, *args.child)
        return
    rounds = []
    with tree_of(args.against) as other, tempfile.TemporaryDirectory() as caches:
        for number in range(args.rounds):
            sides = {'before': other, 'now': ROOT}
            if number % 2:  # neither is always the first
                sides = dict(reversed(sides.items()))
            rounds.append({side: measure(tree, args, f'{caches}/{side}')
                           for side, tree in sides.items()})
            print(f'round {number + 1} of {args.rounds}', file=sys.stderr, flush=True)
    print(f'{args.size}, from nothing, with compiling')
    print('\n'.join(table(rounds[:1])))
    if rounds[1:]:
        print(f'{args.size}, programs in the cache, median of {len(rounds) - 1}')
        print('\n'.join(table(rounds[1:])))
    print('* by the clock of the compiler, reading the cache included')
    if args.json:
        Path(args.json).write_text(json.dumps({'size': args.size, 'rounds': rounds}, indent=1))


if __name__ == '__main__':
    main()

"""`downscale evaluate`: one evaluation of one cell."""
import argparse

from downscale.commands.parsing import add_study_arguments
from downscale.experiment.file import find_cell, open_study
from downscale.runtime.setup import cache_folder
from downscale.stage_table import WRITER

EXAMPLE = 'downscale evaluate experiments/smoke.py --out runs/smoke --cell w64d2-s0 --only joint'


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    add_study_arguments(sub)
    sub.add_argument('--cell', required=True, help='name of a cell, as w64d2-s0')
    sub.add_argument('--only', required=True, choices=('joint', 'explained', *WRITER, 'reason'))


def run(args: argparse.Namespace) -> None:
    """Run one evaluation of one cell.

    That is joint, explained, reason or a kind of text that is written. An interrupted one goes on
    where it was.

    Several processes share the questions, on a folder that all can reach; they are started as those
    of `downscale train` are.
    """
    _, experiments, folder = open_study(args)
    # JAX is imported below: a wrong cell or flag is told at once.
    cell = find_cell(experiments, args.cell)
    from downscale.evaluate.run import evaluate as run_evaluation
    from downscale.runtime import processes
    from downscale.runtime.progress import progress_bars
    from downscale.study.tasks import writers_of
    from downscale.study.workers import use_cache
    with processes.joined(), progress_bars(args.quiet or not processes.first()) as bars:
        use_cache(cache_folder())  # it asks for devices, so the others are joined before
        run_evaluation(folder, cell, args.only, writers_of(cell, experiments),
                       lambda done, total: bars(f'{args.only} {cell.name}', done, total))
        if processes.first():
            print(f'items: {folder / "evaluations" / f"{args.only}-{cell.name}"}')

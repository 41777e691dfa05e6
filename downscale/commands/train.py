"""`downscale train`: one stage of one cell, by one process or many."""
import argparse

from downscale.commands.parsing import add_study_arguments
from downscale.experiment.file import find_cell, open_study
from downscale.runtime.setup import cache_folder

EXAMPLE = 'downscale train experiments/smoke.py --out runs/smoke --cell w64d2-s0 --stage text'


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    add_study_arguments(sub)
    sub.add_argument('--cell', required=True, help='name of a cell, as w64d2-s0')
    sub.add_argument('--stage', required=True, help='name of a stage, as text')
    sub.add_argument('--tracker', choices=('tensorboard', 'wandb', 'none'),
                     help='curves to look at (default: tensorboard, where it is installed)')


def run(args: argparse.Namespace) -> None:
    """Train one stage of one cell.

    Its parents must be finished. SIGTERM saves a step and ends with exit code 42; the same command
    continues.

    Over several processes: start the same command in each, on a folder that all can reach, with
    JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID set; a TPU slice needs
    none of them.
    """
    _, experiments, folder = open_study(args)
    cell = find_cell(experiments, args.cell)
    from downscale.policy import training
    from downscale.runtime import processes
    from downscale.runtime.progress import progress_bars
    from downscale.stages import attention
    from downscale.stages.folders import folder_of
    from downscale.stages.inputs import prepare
    from downscale.study.workers import use_cache
    from downscale.train.trackers import choose
    tracker = choose(args.tracker)
    total = cell.stage(args.stage).steps
    # The others are joined before JAX is asked for devices, and data are prepared once for all.
    with processes.joined():
        for line in list(attention.lines([cell])):  # refused in all processes, said by one
            if processes.first():
                print(line)
        use_cache(cache_folder())
        # As text: `once` hands JSON to the other processes.
        processes.once(lambda: str(prepare(folder, cell, among=experiments)))
        with progress_bars(args.quiet or not processes.first()) as bars:
            training.train_stage(folder, cell, args.stage, lambda step, row: bars(
                f'{cell.name}/{args.stage}', step, total, f'loss {row["loss"]:.3f}'), tracker)
        if processes.first():
            print(f'checkpoints: {folder_of(folder, cell, args.stage)}')

"""`downscale study`: every stage and evaluation of every cell, then the report."""
import argparse
from typing import Any

from downscale.accounting import totals
from downscale.commands.machine import cores
from downscale.commands.parsing import add_study_arguments, count, refuse_many
from downscale.experiment.file import claims_of, on_cpu, open_study
from downscale.output.text import linked
from downscale.runtime.setup import cache_folder

EXAMPLE = 'downscale study experiments/smoke.py --out runs/smoke --set stages.text.steps=50'


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    add_study_arguments(sub)
    sub.add_argument('--tracker', choices=('tensorboard', 'wandb', 'none'),
                     help='curves to look at (default: tensorboard, where it is installed)')
    sub.add_argument('--together', type=count, default=1, metavar='N', help='train up to N '
                     'cells that differ in seed and rates only in one program (default: 1)')
    sub.add_argument('--jobs', type=count, help='tasks run at once (default: one per core '
                     'on CPU, at most one per cell; else 1)')
    sub.add_argument('--dry-run', action='store_true',
                     help='check the study and show what each cell trains; nothing is written')


def run(args: argparse.Namespace) -> None:
    """Train, evaluate and compare all cells; then report."""
    config, experiments, folder = open_study(args)
    if args.dry_run:
        print('\n'.join(_planned(experiments)))
        return
    refuse_many()
    from downscale.report.figures import plotting
    plotting()  # of the report, hours later
    from downscale.study.workers import run
    from downscale.train.trackers import choose
    tracker = choose(args.tracker)
    jobs = args.jobs
    # On CPU one program leaves cores idle; an accelerator belongs to one program at a time.
    if jobs is None:
        jobs = min(cores(), len(experiments)) if on_cpu() else 1
    seconds = run(folder, config.study, experiments, jobs, cache_folder(), args.quiet,
                  claims_of(config), args.together, tracker)
    print(f'study done in {seconds:.0f} s')
    from downscale.report.report import write_report
    from downscale.runtime.files import read_json
    page = write_report(folder)
    for line in verdicts(read_json(page.with_name('report.json')) or {}):
        print(line)
    print(f'report: {linked(page)}')


def verdicts(report: dict[str, Any]) -> list[str]:
    """Return a line for each claim of a report, with its verdict and effect."""
    lines = []
    for claim in report.get('claims', []):
        effect = ''
        if claim['effect'] is not None and claim['low'] is not None:
            effect = f', {claim["effect"]:+.2f} [{claim["low"]:.2f}, {claim["high"]:.2f}]'
        lines.append(f'claim {claim["id"]}: {claim["text"]}: {claim["verdict"]}{effect}')
    return lines


def _planned(experiments):
    """Return the stages of each cell, with the parameters of the language model that it trains."""
    lines = []
    for cell in experiments:
        if cell.trained_as:
            lines.append(f'{cell.name}: asks what {cell.trained_as} trains')
            continue
        size = ''
        if any('language' in stage.trainable for stage in cell.stages):
            size = f' ({totals(cell.language)["n_nonembed"]:,} non-embedding parameters)'
        stages = ', '.join(_steps_of(stage) for stage in cell.stages)
        lines.append(f'{cell.name}{size}: steps of {stages}')
    steps = 0
    for cell in experiments:
        if not cell.trained_as:
            steps += sum(stage.steps - stage.first_step for stage in cell.stages)
    return [*lines, f'{len(experiments)} cells, {steps:,} steps; nothing was trained']


def _steps_of(stage):
    """Return a stage with its steps, who teaches it, and where it forks or is a fork."""
    text = f'{stage.name} {stage.steps:,}'
    if stage.forks:
        text += f' (forks of {" and ".join(f"{steps:,}" for steps in stage.forks)})'
    if stage.teacher:
        text += f' (taught by {stage.teacher})'
    if stage.trunk:
        text += f' (from step {stage.first_step:,} of {stage.trunk})'
    return text

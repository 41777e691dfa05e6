"""`downscale plan`: what of a study fits a TPU, how long it takes and what it costs."""
import argparse
import contextlib
import json
import os
import sys

from downscale.commands.parsing import count, new_folder, positive
from downscale.experiment.file import open_study
from downscale.planner.programs import KINDS

EXAMPLE = 'downscale plan experiments/extraction_tuning.py --topology v5e:16x16 v6e:16x16'


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.add_argument('config', help='study file, FILE.py or FILE.py:ARG')
    sub.add_argument('--topology', nargs='+', default=['v5e:16x16'], metavar='NAME',
                     help='TPU slices, as v5e:4x4, v5p:4x4x4 or, for two slices, 2xv5e:16x16 '
                     '(default v5e:16x16)')
    sub.add_argument('--only', nargs='+', default=KINDS, choices=KINDS, help='kinds of programs '
                     '(default: all)')
    sub.add_argument('--per-chip-batch', type=int, metavar='N', help='rows of a chip: of a '
                     'micro-batch, and that decode at once (default: those of the study)')
    sub.add_argument('--seq', type=int, metavar='L', help='tokens of a row (default: those of the '
                     'stage; 2048 for prefill and decode)')
    sub.add_argument('--text-only', action='store_true', help='without pictures')
    sub.add_argument('--propose', action='store_true', help='compile also the nearest mesh, batch '
                     'or remat that fits, for each program that does not')
    sub.add_argument('--out', type=new_folder, metavar='FOLDER',
                     help='folder of plan.json and of what '
                     'is compiled already (default: runs/STUDY/plan)')
    sub.add_argument('--jobs', type=count, default=2, metavar='N',
                     help='programs compiled at once (default 2)')
    sub.add_argument('--limit', type=positive, default=1800, metavar='SECONDS',
                     help='longest compilation of a program (default 1800)')
    sub.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                     help='override a configuration value; may be repeated')
    sub.add_argument('--json', action='store_true', help='one JSON object, no table')
    sub.add_argument('--quiet', action='store_true', help='no progress bars')


def run(args: argparse.Namespace) -> int:
    """Compile a study for TPUs: what fits, what it costs.

    Every program is compiled on this machine; no TPU is needed. The same command continues after an
    interruption.
    """
    from downscale.planner import table
    from downscale.planner.plan import Plan
    from downscale.planner.pool import ENVIRONMENT
    from downscale.runtime.progress import progress_bars
    os.environ.update(ENVIRONMENT)  # before JAX is imported, which reads it once
    _, experiments, folder = open_study(args)
    shown_on = sys.stderr if args.json else sys.stdout  # stdout is then one JSON object
    from downscale.planner.programs import Wish
    from downscale.planner.worker import refuse
    from downscale.runtime.files import write_json

    wish = Wish(
        only=tuple(args.only),
        per_chip_batch=args.per_chip_batch,
        seq=args.seq,
        text_only=args.text_only,
        propose=args.propose,
    )
    out = args.out or folder / 'plan'
    with contextlib.redirect_stdout(shown_on), progress_bars(args.quiet) as bars:
        # What is compiled is kept in `out`: a second run looks there first.
        value = Plan(experiments, args.topology, wish, refuse, out, args.jobs, args.limit,
                     bars).run()
    write_json(out / 'plan.json', value)
    print(json.dumps(value) if args.json else '\n'.join(table.lines(value)))
    # A plan in which a cell does not fit is an answer, and still an exit code for scripts.
    return int(any(row['error'] for row in value['cells']))

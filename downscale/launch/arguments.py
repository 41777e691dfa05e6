"""The arguments of `downscale plan`."""
from pathlib import Path

from downscale.launch.programs import KINDS


def add_arguments(sub):
    """`sub` (an argparse parser) takes everything that `cli.plan` reads."""
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
    sub.add_argument('--out', type=Path, metavar='FOLDER', help='folder of plan.json and of what '
                     'is compiled already (default: runs/STUDY/plan)')
    sub.add_argument('--jobs', type=int, default=2, metavar='N',
                     help='programs compiled at once (default 2)')
    sub.add_argument('--limit', type=float, default=1800, metavar='SECONDS',
                     help='longest compilation of a program (default 1800)')
    sub.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                     help='override a configuration value; may be repeated')
    sub.add_argument('--json', action='store_true', help='one JSON object, no table')
    sub.add_argument('--quiet', action='store_true', help='no progress bars')

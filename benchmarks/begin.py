"""How every benchmark begins: it says how long it takes, and whether the machine is busy.

`--quick` and `--json` mean the same in all of them.
"""
import argparse
import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

CHILD = 'DOWNSCALE_BENCHMARK'  # set in what a benchmark starts, which says nothing of its own
BUSY = 0.3  # a core's share of load from which times say more about other programs


def parser(text: str, example: str) -> argparse.ArgumentParser:
    """Return a parser with the description `text`, an example, `--quick` and `--json`."""
    made = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f'example: python benchmarks/{example}')
    made.add_argument('--quick', action='store_true', help='less of everything, in a minute')
    made.add_argument('--json', metavar='FILE', type=Path, help='also write every figure to FILE')
    return made


def begin(made: argparse.ArgumentParser, takes: str, quick: Mapping[str, object]
          ) -> argparse.Namespace:
    """Return what was asked for, and say how long it `takes`.

    With `--quick` it takes about a minute: each value of `quick` is taken in place of a default.
    """
    args = made.parse_args()
    if args.quick:
        for name, value in quick.items():
            if getattr(args, name) == made.get_default(name):
                setattr(args, name, value)
    if os.environ.get(CHILD):
        return args
    os.environ[CHILD] = '1'
    print(f'takes {"about a minute" if args.quick else takes} on two idle cores', flush=True)
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    if load > BUSY * cores:
        print('\n'.join(textwrap.wrap(
            f'note: the load of this machine is {load:.1f} on {cores} cores; ratios of times '
            'taken by turns may still hold, times do not', 88)), file=sys.stderr)
    return args

"""What one NVIDIA GPU does with this package: correct, fast, and against which bound.

Parts, each a process of its own, since a process holds the memory of its GPU:

machine    GPU, memory, versions
attention  each program forwards and backwards on packed rows, and how far it is from float32
train      ms, tokens/s and MFU of a step of the 0.6B: rows of text, rows of extraction
decode     tokens/s of the 0.6B at 1, 8 and 64 rows, against reading weights and cache once a step
selfcheck  are replies the same in every batch: float32 and bfloat16, as it comes and deterministic
study      the smoke study with a tenth of its steps, in bfloat16

Figures are printed as they are measured; a part that fails is named and the others go on. Needs no
network. `--dry` proves the path on a CPU, with sizes so small that its figures mean nothing.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gpu_parts

PARTS = ('machine', 'attention', 'train', 'decode', 'selfcheck', 'study')
MINUTES = {'full': 8, 'quick': 2, 'dry': 30}
LIMITS = {'selfcheck': 180}  # seconds, so that the study has some as well
ROOT = Path(__file__).resolve().parents[1]


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: benchmarks/gpu.sh --json gpu.json')
    parser.add_argument('--quick', action='store_true', help='fewer shapes, in about a minute')
    parser.add_argument('--dry', action='store_true', help='tiny sizes, on the CPU')
    parser.add_argument('--parts', help=f'of {",".join(PARTS)} (default: all, the first four of '
                        '--quick)')
    parser.add_argument('--json', metavar='FILE', type=Path, default=Path('gpu.json'),
                        help='where all figures go (default: gpu.json)')
    parser.add_argument('--child', help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.size = 'dry' if args.dry else 'quick' if args.quick else 'full'
    usual = PARTS[:4] if args.size == 'quick' else PARTS
    args.parts = args.parts.split(',') if args.parts else usual
    unknown = sorted(set(args.parts) - set(PARTS))
    if unknown:
        parser.error(f'unknown parts {", ".join(unknown)}; known are {", ".join(PARTS)}')
    return args


# --- all parts --------------------------------------------------------------------------------

def child(part, size, path):
    """Measure one part in this process: print each figure, and keep all of them in `path`."""
    figures = []
    for figure in getattr(gpu_parts, part)(size):
        figures.append({'part': part, **figure})
        print(f'{part:10s} {shown(figure)}', flush=True)
        Path(path).write_text(json.dumps(figures))


def shown(figure):
    """A figure as one line."""
    parts = [str(figure['name'])]
    for name, value in figure.items():
        if name == 'name' or value is None or (name == 'wrong' and not value):
            continue
        parts.append(f'{name} {value:.4g}' if isinstance(value, float) else f'{name} {value}')
    return ', '.join(parts)


def measured(part, args, seconds):
    """(figures of a part, why it failed or None), from a process that has so many seconds."""
    environment = os.environ | ({'JAX_PLATFORMS': 'cpu'} if args.dry else {'JAX_PLATFORMS': 'cuda'})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'figures.json'
        argv = [sys.executable, __file__, '--child', str(path), '--parts', part]
        argv += [f'--{args.size}'] if args.size != 'full' else []
        # A group of its own, so that what it has started ends with it.
        process = subprocess.Popen(argv, env=environment, start_new_session=True, cwd=ROOT)
        why = None
        try:
            if process.wait(seconds):
                why = f'ended with {process.returncode}'
        except subprocess.TimeoutExpired:
            why = f'no time left after {seconds:.0f} s'
        finally:  # also where this process is told to end
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return json.loads(path.read_text()) if path.is_file() else [], why


def main():
    """Measure all parts; the exit code is 1 where one failed or a figure is wrong."""
    args = arguments()
    if args.child:
        child(args.parts[0], args.size, args.child)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begin, figures, failed = time.monotonic(), [], {}
    for part in args.parts:
        left = 60 * MINUTES[args.size] - (time.monotonic() - begin)
        found, why = measured(part, args, max(10, min(left, LIMITS.get(part, left))))
        figures += found
        failed |= {part: why} if why else {}
        # After each part: whatever ends this run, what was measured is there.
        args.json.write_text(json.dumps({'size': args.size, 'figures': figures, 'failed': failed,
                                         'seconds': time.monotonic() - begin}, indent=1))
    print(f'\n{"part":10s} figure')
    for figure in figures:
        print(f'{figure["part"]:10s} {shown({k: v for k, v in figure.items() if k != "part"})}')
    for part, why in failed.items():
        print(f'{part:10s} FAILED: {why}')
    wrong = [figure['name'] for figure in figures if figure.get('wrong')]
    if wrong:
        print(f'WRONG: {"; ".join(wrong)}')
    print(f'{args.json}: {len(figures)} figures in {time.monotonic() - begin:.0f} s')
    return 1 if failed or wrong else 0


if __name__ == '__main__':
    sys.exit(main())

"""Seconds and memory of importing a checkpoint, against a plain copy of the same file.

A random bfloat16 checkpoint of a published shape is written into --work (streamed, seeded). Then,
interleaved round by round: the file is copied with `cp` and both copies are synced to disk; a new
process imports it; the same without counting the start of Python and its modules. Peak memory is
the high-water mark of the importing process, file pages included, against a limit of three times
the largest tensor plus 0.5 GiB.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from begin import begin, parser

TARGET, SPARE_BYTES = 0.6, 2 ** 29
BLOCK, SETTLE_SECONDS = 2 ** 24, 2


def arguments():
    made = parser(__doc__, 'import_speed.py --work scratch --size 0.6b')
    made.add_argument('--work', metavar='DIR', help='folder on the disk to measure')
    made.add_argument('--size', default='1.7b', help='a Qwen3 size (default 1.7b: 3.4 GB)')
    made.add_argument('--repeats', type=int, default=3, help='timed rounds (default 3)')
    made.add_argument('--import-once', nargs=2, metavar=('SOURCE', 'DIR'),
                        help=argparse.SUPPRESS)
    return begin(made, '2 minutes', {'size': '0.6b', 'repeats': 1})


class RandomTensor:
    """Stands for a tensor of `shape`: the same random bits again and again, made as it is read."""

    def __init__(self, shape, block):
        self.shape, self.dtype, self.block = shape, block.dtype, block

    def read(self):
        size = int(np.prod(self.shape))
        return np.resize(self.block, size).reshape(self.shape)


def write_checkpoint(folder, cfg):
    """A Qwen3 folder with random weights, one leaf in memory at a time."""
    import ml_dtypes

    from downscale.convert.names import entries
    from downscale.convert.write import export_folder

    block = np.random.default_rng(0).standard_normal(BLOCK, np.float32).astype(ml_dtypes.bfloat16)
    leaves = {}
    for entry in entries({'decoder': 'model.'} | ({} if cfg.tie else {'head': 'lm_head.'}),
                         cfg, None):
        *path, last = entry.leaf.split('/')
        node = leaves
        for key in path:
            node = node.setdefault(key, {})
        node[last] = RandomTensor(entry.shape, block)
    export_folder(folder, 'qwen3', leaves, cfg)


def import_once(source, folder):
    """Run `downscale import`; print seconds without start-up and peak memory as JSON."""
    begin = time.perf_counter()
    from downscale.commands import main
    from downscale.convert import exchange  # noqa: F401 (else the command itself imports it)
    ready = time.perf_counter()
    if main.main(['import', source, '--to', folder, '--quiet']):
        sys.exit('the import failed')
    done = time.perf_counter()
    # getrusage would report the parent's peak: it survives the start of a program.
    status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    print(json.dumps({'start': ready - begin, 'seconds': done - ready,
                      'peak': int(status['VmHWM'].split()[0]) * 1024}))


def copy_once(source, target):
    """Seconds of `cp` and of syncing both files."""
    begin = time.perf_counter()
    subprocess.run(['cp', source, target], check=True)
    for path in (source, target):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - begin


def settle():
    """Wait until the disk has done what earlier rounds left behind, deletions included."""
    os.sync()
    time.sleep(SETTLE_SECONDS)


def measure(work, repeats):
    """{'copy': [seconds], 'process': [...], 'import': [...], 'peak': [bytes]}."""
    times = {'copy': [], 'process': [], 'import': [], 'peak': []}
    for _ in range(repeats):
        settle()
        times['copy'] += [sum(copy_once(path, work / 'copy.safetensors')
                              for path in sorted((work / 'model').glob('*.safetensors')))]
        (work / 'copy.safetensors').unlink()
        settle()
        begin = time.perf_counter()
        ran = subprocess.run([sys.executable, __file__, '--import-once', work / 'model',
                              work / 'run'], check=True, capture_output=True, text=True)
        times['process'] += [time.perf_counter() - begin]
        told = json.loads(ran.stdout.splitlines()[-1])
        times['import'] += [told['seconds']]
        times['peak'] += [told['peak']]
        shutil.rmtree(work / 'run')
    return times


def main():
    args = arguments()
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    if args.import_once:
        import_once(*args.import_once)
        return
    from downscale.sizes import QWEN3
    cfg, work = QWEN3[args.size], Path(args.work or '.').absolute() / f'import-{args.size}'
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        write_checkpoint(work / 'model', cfg)
        size = sum(path.stat().st_size for path in (work / 'model').glob('*.safetensors'))
        times = measure(work, args.repeats)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    largest = cfg.V * cfg.D * 2
    limit, peak = 3 * largest + SPARE_BYTES, max(times['peak'])
    copy = statistics.median(times['copy'])
    print(f'Qwen3-{args.size}, {size / 1e9:.2f} GB; medians of {args.repeats} rounds')
    print(f'  copy and sync    {copy:6.2f} s')
    for name, words in (('process', 'import, process'), ('import', 'import alone')):
        ratio = statistics.median(a / b for a, b in zip(times['copy'], times[name]))
        print(f'  {words:16s} {statistics.median(times[name]):6.2f} s: {ratio:.2f} of the speed of '
              f'a copy (target {TARGET})')
    print(f'  peak memory      {peak / 2 ** 30:6.2f} GiB of at most {limit / 2 ** 30:.2f} GiB')
    if args.json:
        args.json.write_text(json.dumps({'bytes': size, 'limit': limit, **times}, indent=1))


if __name__ == '__main__':
    main()

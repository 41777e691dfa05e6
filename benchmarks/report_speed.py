"""How long does the whole report of a large study take, and how much memory?

A synthetic study of 20 runs (5 sizes x 4 seeds) that answer 10,000 questions each, with the
picture, without it, and as pairs of perception and reasoner, is written and then reported by the
console in a process of its own. Exit code 1 above the limit of processor seconds.

Command:   python benchmarks/report_speed.py
Hardware:  one core is used
Time:      two minutes
"""
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from begin import begin, parser

from downscale.analysis import synth

LIMIT = 60   # seconds


def main():
    """Print what was made, seconds and peak memory as one JSON object."""
    made = parser(__doc__, 'report_speed.py --items 1000')
    made.add_argument('--sizes', type=int, default=5)
    made.add_argument('--seeds', type=int, default=4)
    made.add_argument('--items', type=int, default=10_000)
    made.add_argument('--bootstraps', type=int, default=2000)
    args = begin(made, '2 minutes', {'items': 3000, 'bootstraps': 500})
    with tempfile.TemporaryDirectory() as place:
        folder, begun = Path(place) / 'study', time.process_time()
        study = synth(0, folder, sizes=args.sizes, seeds=args.seeds, items=args.items,
                      full=False).study
        found = {'runs': args.sizes * args.seeds, 'items': args.items,
                 'cells': len(study.cells), 'answers': len(study.items['score']),
                 'bootstraps': args.bootstraps,
                 'seconds to make it': round(time.process_time() - begun, 1)}
        del study
        one = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'), '1')
        begun = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                '-m',
                'downscale.commands.main',
                'analyze',
                'report',
                str(folder),
                '--bootstraps',
                str(args.bootstraps),
            ],
            check=True,
            env={**os.environ, **one},
            stdout=subprocess.DEVNULL,
        )
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        found |= {'seconds': round(time.perf_counter() - begun, 1),
                  'processor seconds': round(used.ru_utime + used.ru_stime, 1),
                  'peak GiB': round(used.ru_maxrss / 2 ** 20, 2), 'limit': LIMIT}
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return int(found['processor seconds'] > LIMIT)


if __name__ == '__main__':
    sys.exit(main())

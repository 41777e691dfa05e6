"""Kill a study with SIGKILL at random moments, repeat its command, and compare with a quiet run.

Command:   python benchmarks/kill_and_resume.py experiments/smoke.py --kills 5
Hardware:  2 CPU cores
Time:      about three times the study
Prints the moments of the kills and every metrics, completion, item and written-text file that
differs from an uninterrupted run of the same study; exits with 1 if any does.
"""
import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMPARED = ('metrics.jsonl', 'DONE.json', '*.parquet', 'tokenizer.json')


def start(study, out, log):
    """The study in a process group of its own, so that a kill takes its workers too."""
    command = [
        sys.executable,
        '-m',
        'downscale.commands.main',
        'study',
        study,
        '--out',
        str(out),
        '--quiet',
    ]
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def digests(out):
    """{relative path: digest} of the files that must not depend on interruptions."""
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for pattern in COMPARED for path in sorted(out.rglob(pattern))}


def finish(study, out, log):
    """Run to the end; seconds."""
    begin = time.monotonic()
    if start(study, out, log).wait():
        sys.exit(f'the study failed; see {log.name}')
    return time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('study', help='study file, such as experiments/smoke.py')
    parser.add_argument('--kills', type=int, default=5)
    parser.add_argument('--seed', type=int, default=0, help='of the moments of the kills')
    parser.add_argument('--work', help='folder for both runs (default: a temporary one)')
    args = parser.parse_args()
    work = Path(args.work or tempfile.mkdtemp(prefix='kill_and_resume_'))
    work.mkdir(parents=True, exist_ok=True)
    moments = random.Random(args.seed)
    with open(work / 'log.txt', 'w') as log:
        seconds = finish(args.study, work / 'quiet', log)
        print(f'uninterrupted: {seconds:.0f} s', flush=True)
        for kill in range(args.kills):
            process = start(args.study, work / 'killed', log)
            # About a share of the study each, behind the seconds that it takes to start.
            wait = moments.uniform(4, 4 + seconds / args.kills)
            try:
                if process.wait(wait):
                    sys.exit(f'the study failed; see {log.name}')
                print(f'kill {kill + 1}: the study was already complete after {wait:.1f} s')
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                done = len(list((work / 'killed').rglob('DONE.json')))
                print(f'kill {kill + 1}: after {wait:.1f} s, {done} stages complete', flush=True)
        print(f'last run: {finish(args.study, work / "killed", log):.0f} s')
    quiet, killed = digests(work / 'quiet'), digests(work / 'killed')
    different = sorted(path for path in quiet.keys() | killed.keys()
                       if quiet.get(path) != killed.get(path))
    for path in different:
        print(f'differs: {path}')
    print(f'{len(quiet) - len(different)} of {len(quiet)} files identical; both in {work}')
    sys.exit(bool(different))


if __name__ == '__main__':
    main()

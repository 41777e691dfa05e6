"""Kill extract-think after some rows, continue it otherwise, and compare with a quiet run.

Command:   python benchmarks/kill_extract_think.py --kills 5 -- --perception RUN --reasoner RUN \\
               --data FOLDER --reason think direct --temperature 0.6
Hardware:  2 CPU cores
Time:      with the models of `make smoke` 15 s for each kill and for either full run

What stands behind `--` goes to `downscale extract-think`. Kills are SIGKILL to all processes. Every
start has another number of slots and processes; after every second kill the end of a file is cut
off too, as by a power cut. Prints each kill and every file that differs from that of an
uninterrupted run; exits with 1 if any does.
"""
import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLACES = ((3, 2), (1, 1), (7, 3), (40, 2), (2, 1))  # slots and processes of later starts


def start(chain, out, place, log):
    """All processes of one start of the command."""
    slots, processes = place
    return [
        subprocess.Popen(
            [
                sys.executable,
                '-m',
                'downscale.commands.main',
                'extract-think',
                *chain,
                '--out',
                str(out),
                '--slots',
                str(slots),
                '--processes',
                str(processes),
                '--process',
                str(process),
                '--quiet',
            ],
            stdout=log,
            stderr=log,
        )
        for process in range(processes)
    ]


def rows_of(out):
    """Whole rows on disk, in parts and in finished files."""
    count = 0
    for path in out.glob('*.jsonl'):
        try:
            count += path.read_bytes().count(b'\n')
        except FileNotFoundError:  # process 0 has just joined this part
            continue
    return count


def wait(processes, log, until=lambda: False):
    """Whether `until` came true before every process ended; the command must not fail by itself."""
    while True:
        codes = [process.poll() for process in processes]
        if any(codes):
            stop(processes)
            sys.exit(f'the command failed; see {log.name}')
        if until():
            return True
        if None not in codes:
            return False
        time.sleep(0.01)


def stop(processes):
    """SIGKILL to all at once."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()


def tear(out, chance):
    """Cut the end off one part; the number of bytes."""
    parts = sorted(path for path in out.glob('*.p*.jsonl') if path.stat().st_size)
    if not parts:
        return 0
    path = chance.choice(parts)
    lost = chance.randint(1, min(400, path.stat().st_size))
    with open(path, 'r+b') as file:
        file.truncate(path.stat().st_size - lost)
    return lost


def results(out):
    """{name: bytes} of all that must not depend on interruptions, parts included."""
    return {path.name: path.read_bytes() for path in sorted(out.glob('*.json*'))
            if not path.name.startswith('throughput')}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=5)
    parser.add_argument('--seed', type=int, default=0, help='of the moments of the kills')
    parser.add_argument('--work', help='folder for both runs (default: a temporary one)')
    parser.add_argument('chain', nargs='+', help='behind --: arguments of downscale extract-think')
    args = parser.parse_args()
    work = Path(args.work or tempfile.mkdtemp(prefix='kill_extract_think_'))
    work.mkdir(parents=True, exist_ok=True)
    chance, killed = random.Random(args.seed), work / 'killed'
    with open(work / 'log.txt', 'w') as log:
        begin = time.monotonic()
        wait(start(args.chain, work / 'quiet', (16, 1), log), log)
        total = rows_of(work / 'quiet')
        print(f'uninterrupted: {total} rows, {time.monotonic() - begin:.0f} s', flush=True)
        for k, goal in enumerate(sorted(chance.sample(range(1, total), args.kills))):
            place, had = PLACES[k % len(PLACES)], rows_of(killed)
            running, goal = start(args.chain, killed, place, log), max(goal, had + 1)
            came = wait(running, log, lambda goal=goal: rows_of(killed) >= goal)
            stop(running)
            lost = tear(killed, chance) if k % 2 else 0
            print(f'kill {k + 1}: {place[0]} slots, {place[1]} processes, {had} rows before, '
                  f'{rows_of(killed)} after' + f', {lost} bytes cut off' * bool(lost)
                  + ', complete before it came' * (not came), flush=True)
        place = PLACES[args.kills % len(PLACES)]
        wait(start(args.chain, killed, place, log), log)
        print(f'last run: {place[0]} slots, {place[1]} processes, {rows_of(killed)} rows')
    one, other = results(work / 'quiet'), results(killed)
    different = sorted(name for name in one.keys() | other.keys()
                       if one.get(name) != other.get(name))
    for name in different:
        print(f'differs: {name}')
    print(f'{len(one) - len(set(different) & set(one))} of {len(one)} files identical; both in '
          f'{work}')
    sys.exit(bool(different))


if __name__ == '__main__':
    main()

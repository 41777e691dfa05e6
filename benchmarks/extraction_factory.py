"""Make extraction data from rendered pictures with a server that misbehaves; kill it; compare.

Command:   python benchmarks/extraction_factory.py --pictures 200 --kills 5
Hardware:  2 CPU cores
Time:      about 3 minutes with 5 kills

The server (tests/helpers/openai_stub.py) answers from the truth, but fails, stalls, truncates,
refuses and returns rubbish at set rates, and plants leaks, contradictions and omissions. One run
is left alone, one is killed (SIGKILL) at random moments, its last bytes cut off as by a power cut,
and continued.
Prints which files differ, and how many of the planted faults each check found, with false alarms;
exits with 1 if a file differs or a planted fault was accepted.
"""
import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'helpers')]

from openai_stub import RATES, OpenAiStub  # noqa: E402

from downscale.data.scenes.dataset import build  # noqa: E402
from downscale.data.scenes.world import World  # noqa: E402
from downscale.factory.oracle import lay_out  # noqa: E402
from downscale.results.samples import lines  # noqa: E402

# A kind of trouble -> the check that should find it.
FINDS = {'truncated': 'truncated', 'html': 'rubbish', 'refusal': 'refusal', 'loop': 'repetition',
         'leak': 'leak', 'swap': 'contradiction', 'omit': 'entailed'}


def start(questions, pictures, to, stub, log):
    """The command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / 'tests/helpers/run_factory.py'), '--from', str(questions),
         '--images',
         str(pictures), '--to', str(to), '--teacher', f'openai:{stub.url}', '--model', 'stub',
         '--timeout', '1', '--attempts', '3', '--price', '0.2', '0.8', '--quiet'],
        stdout=log, stderr=log, cwd=ROOT)


def finish(process, log):
    if process.wait():
        sys.exit(f'the command failed; see {log.name}')


def files(to):
    """{name: bytes} of all that must not depend on interruptions."""
    return {path.name: path.read_bytes() for path in sorted(to.iterdir())
            if not path.name.startswith('.') and path.name != 'usage.jsonl'}


def kill_often(begin, to, stub, quiet, kills, chance):
    """Start and kill until `kills` came before the end."""
    total = sum(quiet.values())
    for k, share in enumerate(sorted(chance.uniform(.05, .95) for _ in range(kills)), 1):
        running = begin()
        while running.poll() is None and sum(stub.calls.values()) < share * total:
            time.sleep(.01)
        came = running.poll() is None
        if running.poll():
            sys.exit('the command failed; see log.txt')
        running.kill()
        running.wait()
        lost = 0
        for part in to.glob('*.p0.jsonl'):
            lost = chance.randint(0, 200)
            part.write_bytes(part.read_bytes()[:-lost or None])
        print(f'kill {k} after {sum(stub.calls.values())} calls, {lost} bytes cut off'
              + ', complete before it came' * (not came), flush=True)


def planted_in(to, stub):
    """{picture: kinds of trouble in the texts that were kept of it}."""
    found = defaultdict(set)
    for step in ('statements', 'information', 'descriptions'):
        for _, row in lines(to / f'{step}.jsonl'):
            kind = stub.planted.get((row['prompt'], row['picture']))
            found[row['doc_id']] |= {kind} - {None}
    return found


def score(to, stub):
    """Print recall and precision of each check; the number of faults that were accepted.

    What a contradiction takes the place of is also no longer said: an alarm of 'entailed' there is
    right, and one of 'contradiction' where something is left out is not.
    """
    planted, rows = planted_in(to, stub), [row for _, row in lines(to / 'quality.jsonl')]
    for kind, check in FINDS.items():
        judged = [row for row in rows if check in row['checks']]
        alarms = {row['doc_id'] for row in judged if row['checks'][check]}
        wanted = {row['doc_id'] for row in judged if kind in planted[row['doc_id']]}
        excused = {name for name in alarms if kind == 'omit' and 'swap' in planted[name]}
        hits, counted = len(alarms & wanted), len(alarms - excused | alarms & wanted)
        print(f'{kind:10} by {check:14} planted {len(wanted):3}  found {hits:3}  false alarms '
              f'{counted - hits:2}  recall {hits / len(wanted) if wanted else 1:.3f}  precision '
              f'{hits / counted if counted else 1:.3f}')
    accepted = {row['doc_id'] for row in rows if row['accepted']}
    through = [name for name in accepted if planted[name]]
    reasons = Counter(next((reason for reason in row['checks']['reply']), 'other') for row in rows
                      if not row['accepted'] and not planted[row['doc_id']])
    print(f'{len(accepted)} of {len(rows)} accepted; with a planted fault: {len(through)}; '
          f'rejected without one: {dict(reasons)}')
    return len(through)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--pictures', type=int, default=200)
    parser.add_argument('--kills', type=int, default=5)
    parser.add_argument('--seed', type=int, default=0, help='of the moments of the kills')
    parser.add_argument('--work', help='folder for both runs (default: a temporary one)')
    args = parser.parse_args()
    work = Path(args.work or tempfile.mkdtemp(prefix='extraction_factory_'))
    data = build(World(), work / 'data', {'train': args.pictures}, 0.0)
    questions, pictures = lay_out(data, 'train', work / 'source', args.pictures)
    gold = json.loads((work / 'source/gold.json').read_text())
    quiet, other, chance = OpenAiStub(gold), OpenAiStub(gold, delay=.02), random.Random(args.seed)
    print(f'rates: {RATES}')
    with open(work / 'log.txt', 'w') as log:
        begun = time.monotonic()
        finish(start(questions, pictures, work / 'quiet', quiet, log), log)
        print(f'undisturbed: {args.pictures} pictures in {time.monotonic() - begun:.0f} s; calls '
              f'{dict(quiet.calls)}', flush=True)

        def begin():
            return start(questions, pictures, work / 'killed', other, log)

        kill_often(begin, work / 'killed', other, quiet.calls, args.kills, chance)
        finish(begin(), log)
    one, two = files(work / 'quiet'), files(work / 'killed')
    different = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    print(f'{len(one)} files, different: {different or "none"}; replies asked for twice or more: '
          f'{other.calls["answered"] - quiet.calls["answered"]} of {quiet.calls["answered"]}; both '
          f'in {work}')
    through = score(work / 'quiet', quiet)
    sys.exit(bool(different or through))


if __name__ == '__main__':
    main()

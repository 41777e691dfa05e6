"""Run a sweep of 12 cells while a killer ends one of its processes every 20 s, and compare.

Command:   python benchmarks/kill_sweep.py
Hardware:  2 CPU cores, 6 GiB of memory
Time:      about 10 minutes
Four micro sizes and three seeds train on text and to reason, half of the cells in two processes;
then each answers. The same sweep runs twice, two jobs at once: undisturbed, then with SIGKILL or
SIGTERM to a random process every 20 s. Prints each end, what it cost, and every file and every
checkpoint that differs; exits with 1 if any does or a job is not done.
"""
import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax

from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.launch.backends import local
from downscale.launch.spec import Spec
from downscale.train.lazy_leaves import open_leaves

STUDY = '''
from ml_collections import ConfigDict

def get_config(arg=''):
    common = dict(batch=12, length=176, tiles=0, turns=6, rates=dict(language=3e-3))
    return ConfigDict(dict(
        study='kill_sweep', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=1, W=32, H=2, F=64, patch=20, image=40),
        world=dict(min_objects=2, max_objects=4, n_facts=32),
        data=dict(train=200, validation=8, test=16),
        stages=dict(text=dict(steps=100, save_every=10, **common),
                    reason=dict(steps=40, save_every=10, **common)),
        evaluation=dict(scenes=16, batch=64, write=32, think=32, pictures=2)))

def sweep(arg=''):
    return [dict(size=size, seed=seed) for seed in range(3)
            for size in ('w32d2', 'w64d2', 'w64d4', 'w96d2')]
'''
COMPARED = ('cells/*/*/metrics.jsonl', 'cells/*/*/DONE.json', 'evaluations/*/items.parquet')


class Group(local.Group):
    """A group that the killer knows."""
    known = []

    def __init__(self, spec):
        super().__init__(spec)
        self.known.append(self)


def specs_of(study_config, run):
    """A job that trains and one that answers for each cell."""
    settings, sweep = file.load_study(study_config, ())
    with settings.unlocked():
        del settings['platform']
    for place, cell in enumerate(cells_of(settings, sweep)):
        same = dict(sweep='kill_sweep', cell=cell.name, config=str(study_config), overrides=(),
                    experiment=cell.hash, image=None, commit='none', run=str(run))
        train = Spec(part='train', tasks=tuple(f'{cell.name}/{stage.name}' for stage in
                                               cell.stages), needs=(),
                     steps=sum(stage.steps for stage in cell.stages),
                     topology='cpu:2x1' if place % 2 else 'cpu:1x2', **same)
        yield train
        yield Spec(part='reason', tasks=(f'evaluate reason {cell.name}',), needs=(train.key,),
                   steps=1, topology='cpu:1x1', **same)


def kill(seconds, chance, over, killed):
    """Every so many seconds end a process that runs; each is in `killed` as (signal, job)."""
    while not over.wait(seconds):
        alive = [(group, process) for group in Group.known for process in group.processes
                 if process.poll() is None]
        if alive:
            group, process = chance.choice(alive)
            number = chance.choice([signal.SIGKILL, signal.SIGTERM])
            os.kill(process.pid, number)
            killed.append((number.name, group.spec.key))
            print(f'  {number.name} to process {group.processes.index(process)} of '
                  f'{group.spec.key}', flush=True)


def digests(run):
    """{what: digest} of everything that must not depend on interruptions."""
    found = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
             for pattern in COMPARED for path in sorted(run.glob(pattern))}
    for folder in sorted(run.glob('cells/*/*')):
        leaves = jax.tree_util.tree_leaves_with_path(open_leaves(folder))
        content = b''.join(leaf.read().tobytes() for _, leaf in leaves)
        found[f'{folder.relative_to(run)}/checkpoints'] = hashlib.sha256(content).hexdigest()
    return found


def finish(study_config, run):
    """(seconds, jobs) of the sweep in `run`."""
    begin = time.monotonic()
    jobs = local.run(list(specs_of(study_config, run)), 2, crashes=1000,
                     note=lambda text: print(f'  {text}', flush=True))
    return time.monotonic() - begin, jobs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--every', type=float, default=20, help='seconds between kills')
    parser.add_argument('--seed', type=int, default=0, help='of what is killed')
    parser.add_argument('--work', help='folder for both runs (default: a temporary one)')
    args = parser.parse_args()
    work = Path(args.work or tempfile.mkdtemp(prefix='kill_sweep_'))
    work.mkdir(parents=True, exist_ok=True)
    os.environ['DOWNSCALE_HEARTBEAT_SECONDS'] = '10'
    study_config, local.Group = work / 'kill_sweep.py', Group
    study_config.write_text(STUDY)
    quiet, jobs = finish(study_config, work / 'quiet')
    print(f'undisturbed: {len(jobs)} jobs in {quiet:.0f} s', flush=True)
    over, killed = threading.Event(), []
    threading.Thread(target=kill, args=(args.every, random.Random(args.seed), over, killed),
                     daemon=True).start()
    seconds, jobs = finish(study_config, work / 'killed')
    over.set()
    jobs_run = [job for job in jobs if job.attempt is not None]
    attempts = sum(job.attempt + 1 for job in jobs_run)
    total = sum(job.chip_hours for job in jobs_run)
    print(f'disturbed: {len(jobs)} jobs in {seconds:.0f} s, {len(killed)} processes ended '
          f'({sum(name == "SIGTERM" for name, _ in killed)} by SIGTERM), {attempts} attempts, '
          f'{sum(job.lost for job in jobs)} steps lost, goodput '
          f'{sum(job.goodput * job.chip_hours for job in jobs_run) / total:.0%}')
    before, after = digests(work / 'quiet'), digests(work / 'killed')
    different = sorted(name for name in before.keys() | after.keys()
                       if before.get(name) != after.get(name))
    for name in different:
        print(f'differs: {name}')
    undone = [job.key for job in jobs if job.state != 'done']
    print(f'{len(before) - len(different)} of {len(before)} files and checkpoints identical, '
          f'{len(jobs) - len(undone)} of {len(jobs)} jobs done; both in {work}')
    sys.exit(bool(different or undone))


if __name__ == '__main__':
    main()

"""A rehearsal from its sweep to its outcome: submitted, watched and disturbed as in the cloud."""
import argparse
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downscale.launch import state, supervise, watch
from downscale.launch.backends import sweep
from downscale.launch.backends.sweep import Sweep
from downscale.launch.rehearsal import findings, on_gke, on_vms, results, sandbox, twin
from downscale.launch.rehearsal.injections import Injector
from downscale.launch.rehearsal.works import Cloud, Work
from downscale.launch.spec import Spec
from downscale.planner.topologies import ZONES, topology

INJECT_SECONDS = 0.1
STILL_SECONDS = 900   # the longest step or compilation of a tiny twin takes far less
WHERE = {'gke': on_gke, 'mig': on_vms, 'tpuvm': on_vms}


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What is rehearsed: `manifests` {name of a twin's job: JobSet, or commands of gcloud}.

    `pairs` are (as submitted, twin).

    `changed` is {setting: (as submitted, twin)} of the cells, `altered` the same of the manifests.
    """
    submitted: Sweep
    twin: Sweep
    pairs: list[tuple[Spec, Spec]]
    manifests: dict[str, Any]
    changed: dict[str, tuple[Any, Any]]
    altered: dict[str, tuple[Any, Any]]

    @property
    def where(self) -> Any:
        """The module that knows its backend: `on_gke` or `on_vms`."""
        return WHERE[self.submitted.settings.backend]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one run of all jobs ended: `jobs` as the run folder has them, `works` by the twin's name.
    """
    jobs: dict[str, state.Job]
    works: dict[str, list[Work]]
    attempts: dict[str, list[dict[str, Any]]]
    digests: dict[str, dict[str, str | None]]
    findings: list[str]
    injected: list[tuple[str, str]]
    seconds: float


class Halted(Exception):
    """Nothing more can come of this rehearsal."""


def plan(args: argparse.Namespace, manifests: Path | None = None) -> Rehearsal:
    """Return the `Rehearsal` of a command line.

    ValueError in one line for what cannot be rehearsed. `manifests` is a folder that `launch plan`
    has written, edited or not.
    """
    submitted = _opened(args)
    small = _opened(twin.arguments(args))
    where = WHERE[submitted.settings.backend]
    pairs = twin.paired(submitted, small)
    made, altered = {}, {}
    for large, tiny in pairs:
        text = twin.edited(manifests, large, where.ENDING) if manifests else \
            sweep.written(large, submitted.settings)[1]
        manifest = where.read(text)
        made[tiny.name] = twin.rehearsed(manifest, large, tiny)
        # Held against what the code would send for the twin: what is more than names shows.
        altered |= twin.differences(
            where.read(sweep.written(tiny, small.settings)[1]), made[tiny.name])
    changed = twin.of_cells(submitted.cells, small.cells)
    return Rehearsal(submitted=submitted, twin=small, pairs=pairs, manifests=made, changed=changed,
                     altered=altered)


def _opened(args):
    """Return the sweep of a command line as it would be submitted, read without a bucket."""
    opened = sweep.with_cache(sweep.open_sweep(args, asked=False), asked=False)
    settings = opened.settings
    if settings.backend not in WHERE:
        raise ValueError(f'a rehearsal runs what --backend {", ".join(WHERE)} is sent, not '
                         f'{settings.backend}')
    # In the place of a placeholder, which no API takes for a zone.
    if settings.backend != 'gke' and not args.zones:
        zones = ZONES[topology(str(settings.topology)).generation][:1]
        opened = dataclasses.replace(opened, settings=dataclasses.replace(settings, zones=zones))
    return opened


class Reporting:
    """A backend whose creations that fail are refusals: here nothing fails for a while only."""

    def __init__(self, backend: supervise.Backend, cloud: Cloud) -> None:
        self.backend = backend
        self.cloud = cloud
        self.poll = backend.poll

    def observe(self, specs: Sequence[Spec]) -> list[watch.Observed]:
        """Return what the backend shows."""
        return self.backend.observe(specs)

    def create(self, spec: Spec, zone: str) -> None:
        """Start a job; what fails is noted, unless the API has refused it by itself."""
        try:
            self.backend.create(spec, zone)
        except RuntimeError as error:
            if spec.name not in dict(self.cloud.refusals):
                self.cloud.refusals.append((spec.name, str(error)))
            raise

    def delete(self, name: str, zone: str) -> None:
        """Stop a job."""
        self.backend.delete(name, zone)

    def close(self) -> None:
        """End what cannot run without a watcher."""
        self.backend.close()


def run(planned: Rehearsal, injections: Sequence[str], folder: Path, note: Callable[[str], object],
        show: Callable[[list[state.Job]], object]) -> Outcome:
    """Run all jobs of the twin to their end, and disturb them; `folder` keeps what pods print.

    A line is noted per action, and `show` gets the jobs in each round.
    """
    began = time.monotonic()
    specs = [tiny for _, tiny in planned.pairs]
    judge = findings.Judge({spec.name: spec for spec in specs})
    for spec in specs:
        for line in planned.where.faults(spec, planned.manifests[spec.name]):
            judge.note(line)
    settings = planned.submitted.settings
    # The folder of a run lies under its bucket, whose name comes first.
    name = specs[0].run.removeprefix('gs://').partition('/')[0]
    with contextlib.ExitStack() as stack:
        stack.enter_context(sandbox.environment({'DOWNSCALE_SCRATCH': str(folder / 'scratch')}))
        given = stack.enter_context(sandbox.bucket(name))
        cloud = planned.where.cloud(stack, settings, planned.manifests, folder, given, judge)
        sweep.save(planned.twin, specs)
        injector = Injector(injections, specs)
        # Rules that are wrong need no pods to show it.
        if not judge.findings:
            _watched(planned, specs, cloud, injector, judge, note, show)
        return _outcome(planned, specs, cloud, injector, judge, time.monotonic() - began)


def _watched(planned, specs, cloud, injector, judge, note, show):
    """Submit and watch as `launch watch` does, until nothing more can be done."""
    over = threading.Event()
    restart = threading.Event()
    begun = threading.Event()  # the watcher was stopped by `restart`, and not by a person
    moved = state.Stamps()

    def inject():
        while not over.wait(INJECT_SECONDS):
            try:
                name = injector.act(cloud)
            except Exception as error:
                cloud.error = error
                return
            if name == 'restart':
                restart.set()

    def look(jobs):
        show(jobs)
        if cloud.error:
            raise Halted from cloud.error
        with cloud.lock:
            _note_stuck(cloud, judge)
        note_still(jobs, moved, judge)
        if restart.is_set():
            restart.clear()
            begun.set()
            raise KeyboardInterrupt
    thread = threading.Thread(target=inject, daemon=True)
    thread.start()
    settings = planned.submitted.settings
    policy = planned.where.policy(settings)
    try:
        while True:
            backend = Reporting(planned.where.backend(settings, planned.manifests), cloud)
            try:
                supervise.run(backend, specs, policy, note, look)
                return
            except KeyboardInterrupt:
                # From the keyboard it ends all; from here a watcher that knows nothing goes on.
                if not begun.is_set():
                    raise
                begun.clear()
                note('all machines are gone, and the watcher begins anew')
    except Halted as halted:
        # A fault of the cloud is no finding.
        if halted.__cause__:
            raise halted.__cause__ from None
    finally:
        over.set()
        thread.join()


def _note_stuck(cloud, judge):
    """Halt where a job can never be done; what others have found stands."""
    for name, line in cloud.refusals:
        judge.note(f'{judge.key(name)}: the cloud refuses it: {line}')
    for name, line in cloud.stuck.items():
        judge.note(f'{judge.key(name)}: {line}')
    failed = [work for work in cloud.works.values() if work.state == 'failed']
    if cloud.refusals or cloud.stuck or failed or judge.hopeless:
        raise Halted


def note_still(jobs: Sequence[state.Job], moved: state.Stamps, judge: findings.Judge) -> None:
    """Note the jobs that run, and halt, where no job has got on for `STILL_SECONDS`."""
    stand = hash(tuple((job.key, job.state, job.attempt, job.task, job.step) for job in jobs))
    running = [job.key for job in jobs if job.state in ('running', 'stale')]
    if running and moved.still('jobs', stand) > STILL_SECONDS:
        judge.note(f'{", ".join(running[:3])}: runs, and no job has got on for '
                   f'{STILL_SECONDS // 60} minutes')
        raise Halted


def _outcome(planned, specs, cloud, injector, judge, seconds):
    """Read how all ended, and note what is left over."""
    injector.take_back()
    run = specs[0].run
    jobs = {job.key: job for job in state.read(run, specs, time.time())}
    works = {spec.name: [] for spec in specs}
    with cloud.lock:
        for work in [*cloud.past, *cloud.works.values()]:
            works[work.name].append(work)
        left = cloud.left()
    # Where it was halted, the reason says enough.
    for spec in [] if judge.findings else specs:
        job = jobs[spec.key]
        if job.state != 'done':
            judge.note(f'{spec.key}: {job.state} in the end {job.reason}'.rstrip())
        elif spec.name in left:
            judge.note(f'{spec.key}: done, and its {left[spec.name]} is left over: nothing '
                       'deletes it')
    for injection in [] if judge.findings else injector.left:
        judge.note(f'--inject {injection.name}: no job was at a moment for it')
    return Outcome(
        jobs=jobs,
        works=works,
        attempts={spec.key: state.attempts(state.folder_of(run, spec)) for spec in specs},
        digests=results.digests(run, planned.twin.cells),
        findings=judge.findings,
        injected=injector.done,
        seconds=seconds,
    )

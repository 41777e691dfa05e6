"""A cluster of this machine: it admits JobSets, runs their pods, and restarts them by their rules.

One thread moves every JobSet on, a state at a time: queued, running, stopping, and then queued
again, completed, failed or gone.
"""
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from downscale.launch.rehearsal import rules
from downscale.launch.rehearsal.api import ApiServer
from downscale.launch.rehearsal.pods import Image, Pod, environment
from downscale.launch.rehearsal.rules import PodEnd
from downscale.launch.rehearsal.sandbox import free_port

TICK_SECONDS = 0.05
TAKEN = 'its quota was taken'
WITHHELD_SECONDS = 3  # how long quota stays away that was taken


@dataclass(kw_only=True)
class Round:
    """One start of all pods of a JobSet: what was done to it, how they ended, and what followed."""
    injected: str | None = None
    ends: list[PodEnd] = field(default_factory=list)
    deciding: PodEnd | None = None
    action: str = ''
    began: float = 0.0


@dataclass(kw_only=True)
class Work:
    """A JobSet as the cluster sees it; `after` is what comes when its pods have stopped."""
    manifest: dict[str, Any]
    state: str = 'queued'
    after: str = ''
    message: str = ''
    flavor: str | None = None
    pods: list[Pod] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    counted: int = 0

    @property
    def name(self) -> str:
        """The name of the JobSet."""
        return self.manifest['metadata']['name']

    @property
    def grace(self) -> float:
        """Seconds between SIGTERM and SIGKILL."""
        return rules.pod_of(self.manifest).get('terminationGracePeriodSeconds', 30)


class Cluster(ApiServer):
    """An `ApiServer` whose JobSets run.

    `folder` takes logs and the roots of pods, `given` is what every pod finds in its environment,
    `images` what the registry has. `judge(work, round)` is called when all pods of a round have
    ended, before others start.
    """

    def __init__(self, folder: Path, image: Image, images: set[str], given: dict[str, str],
                 judge: Callable[[Work, Round], object]) -> None:
        super().__init__(rules.refusals)
        self.folder = folder
        self.image = image
        self.images = images
        self.given = given
        self.judge = judge
        self.works = {}
        self.past = []  # of JobSets that were deleted
        self.stuck = {}  # name: why it would wait for ever
        self.withheld = 0.0
        self.numbers = itertools.count()
        self.over = threading.Event()
        self.error = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Kill all pods and end the server."""
        self.over.set()
        self.thread.join()
        for work in self.works.values():
            for pod in work.pods:
                pod.kill()
        super().close()

    def remove(self, plural: str, name: str) -> None:
        """Delete an object; a JobSet goes when its pods have ended."""
        if plural != 'jobsets':
            super().remove(plural, name)
            return
        self.kept[plural][name]['metadata']['deletionTimestamp'] = _now()
        if name in self.works:
            self._stop(self.works[name], 'gone')

    def log_of(self, name: str) -> str:
        """Return what a pod has printed."""
        return self.pods[name][1].read_text(errors='replace')

    # --- the thread -----------------------------------------------------------------------------

    def _run(self):
        while not self.over.wait(TICK_SECONDS):
            try:
                with self.lock:
                    self._tick()
            except Exception as error:  # for whoever watches: a thread cannot raise
                self.error = error
                return

    def _tick(self):
        for name, manifest in self.kept['jobsets'].items():
            if name not in self.works:
                self.works[name] = Work(manifest=manifest)
                why = rules.unschedulable(manifest, self.images)
                if why:
                    self.stuck[name] = f'its pods wait for ever: {why}'
        for work in list(self.works.values()):
            if work.state == 'queued':
                self._admit(work)
            elif work.state == 'running':
                self._look(work)
            elif work.state == 'stopping' and all([pod.poll() for pod in work.pods]):
                self._stopped(work)
            if work.name in self.works:
                self._show(work)

    def _admit(self, work):
        """Start a JobSet that Kueue admits, where this machine has room for it."""
        if work.name in self.stuck:
            return
        if work.flavor is None and rules.QUEUE in work.manifest['metadata']['labels']:
            if time.monotonic() < self.withheld:
                return
            # Without anything that runs: what is not admitted then never is.
            flavor, why = rules.admit(work.manifest, self.kept, {})
            if flavor is None:
                self.stuck[work.name] = f'Kueue never admits it: {why}'
                return
            work.flavor, work.message = rules.admit(work.manifest, self.kept, self._used())
            if work.flavor is None:
                return
        slices, hosts = self._shape(work)
        running = sum(len(other.pods) for other in self.works.values())
        # A core a pod, and at least one JobSet.
        if running and running + slices * hosts > (os.cpu_count() or 1):
            return
        self._start(work)

    def _used(self):
        used = {}
        for work in self.works.values():
            if work.flavor:
                amounts = used.setdefault(work.flavor, {})
                for name, amount in rules.demand(work.manifest).items():
                    amounts[name] = amounts.get(name, 0) + amount
        return used

    @staticmethod
    def _shape(work):
        """Return (slices, machines of each)."""
        return (work.manifest['spec']['replicatedJobs'][0]['replicas'],
                rules.job_of(work.manifest)['parallelism'])

    def _start(self, work):
        slices, hosts = self._shape(work)
        job = work.manifest['spec']['replicatedJobs'][0]
        template = rules.job_of(work.manifest)['template']
        # JobSet and Job put labels of their own on a pod; `logs` finds it by one of them.
        number = f'{next(self.numbers):05d}'
        port = free_port()
        work.rounds.append(Round(began=time.time()))
        for rank in itertools.product(range(slices), range(hosts)):
            name = f'{work.name}-{job["name"]}-{rank[0]}-{rank[1]}-{number}'
            pod = Pod(name, template, self.folder / 'pods' / name, self.image)
            names = [f'{work.name}-{job["name"]}-{rank[0]}-{host}' for host in range(hosts)]
            labels = template.get('metadata', {}).get('labels', {})
            self.pods[name] = ({**labels, 'batch.kubernetes.io/job-completion-index': str(rank[1])},
                               pod.log)
            try:
                pod.start({**self.given, **environment(template, rank, (slices, hosts), names,
                                                       port)})
            except ValueError as error:
                self.stuck[work.name] = f'its pods cannot start: {error}'
                self._stop(work, 'queued')
                return
            work.pods.append(pod)
        work.state = 'running'

    def _look(self, work):
        """Complete a JobSet, or stop it by its rules when a pod of it has failed."""
        ends = [end for pod in work.pods if (end := pod.poll())]
        failed = next((end for end in ends if end.code), None)
        if failed:
            self._fail(work, failed)
        elif len(ends) == len(work.pods):
            self._stop(work, 'completed')

    def _fail(self, work, end):
        turn = work.rounds[-1]
        turn.deciding = end
        failure = rules.job_failure(work.manifest, end)
        # Another pod alone cannot join processes that have met: the Job ends with the others.
        reason, message = failure or ('Ignored', 'a pod that does not count has ended')
        turn.action = rules.action_of(work.manifest, reason, message)
        if turn.action == rules.COUNTED:
            work.counted += 1
            most = work.manifest['spec'].get('failurePolicy', {}).get('maxRestarts', 0)
            if work.counted > most:
                self._stop(work, 'failed', f'reached maxRestarts {most}: {message}')
                return
        after = 'failed' if turn.action == rules.FAIL else 'queued'
        self._stop(work, after, message)

    def _stop(self, work, after, message=''):
        """Ask all pods to end; then the JobSet becomes what `after` says."""
        if work.after != 'gone':
            work.after = after
            work.message = message
        work.state = 'stopping'
        for pod in work.pods:
            pod.terminate(work.grace)

    def _stopped(self, work):
        if work.pods:
            turn = work.rounds[-1]
            turn.ends = [pod.poll() for pod in work.pods]
            self.judge(work, turn)
            for pod in work.pods:
                shutil.rmtree(pod.root, ignore_errors=True)
        work.pods = []
        # A JobSet that restarts its pods keeps its quota.
        if work.after != 'queued' or work.message == TAKEN:
            work.flavor = None
        work.state = work.after
        work.after = ''
        if work.state == 'gone':
            del self.kept['jobsets'][work.name]
            self.past.append(self.works.pop(work.name))

    def _show(self, work):
        """Write the status that the API shows of a JobSet."""
        conditions = []
        if work.state in ('completed', 'failed'):
            conditions = [{'type': work.state.capitalize(), 'status': 'True',
                           'message': work.message}]
        elif work.state == 'queued' and rules.QUEUE in work.manifest['metadata']['labels']:
            conditions = [{'type': 'Suspended', 'status': 'True', 'message': work.message}]
        ready = int(work.state in ('running', 'stopping') and bool(work.pods))
        work.manifest['status'] = {'conditions': conditions, 'restarts': len(work.rounds) - 1,
                                   'replicatedJobsStatus': [{'name': 'all', 'ready': ready}]}

    # --- what a rehearsal does to it ------------------------------------------------------------

    def harm(self, work: Work, how: str) -> bool:
        """Do `how` (see `injections.py`) to a JobSet; False when it has ended before."""
        with self.lock:
            if work.state != 'running' or any(pod.poll() for pod in work.pods):
                return False
            work.rounds[-1].injected = how
            if how == 'evict':
                work.pods[-1].evict(work.grace)
            elif how == 'sigkill':
                work.pods[-1].kill()
            elif how == 'quota':
                self.withheld = time.monotonic() + WITHHELD_SECONDS
                self._stop(work, 'queued', TAKEN)
            else:
                self._lose_all()
            return True

    def _lose_all(self):
        """Take all machines away at once, without a word."""
        for other in self.works.values():
            for pod in other.pods:
                other.rounds[-1].injected = 'restart'
                pod.evicted = True
                pod.kill()


def _now():
    return datetime.now(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')

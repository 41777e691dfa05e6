"""A cluster of this machine: it admits JobSets, runs their pods, and restarts them by their rules.

One thread moves every JobSet on, a state at a time: queued, running, stopping, and then queued
again, completed, failed or gone.
"""
import itertools
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from downscale.launch.rehearsal import rules
from downscale.launch.rehearsal.api import ApiServer
from downscale.launch.rehearsal.machines.container import Image
from downscale.launch.rehearsal.pods import Pod, environment
from downscale.launch.rehearsal.sandbox import free_port
from downscale.launch.rehearsal.works import Cloud, Round, Work

TAKEN = 'its quota was taken'
WITHHELD_SECONDS = 3  # how long quota stays away that was taken


@dataclass(kw_only=True)
class JobSet(Work):
    """A JobSet as the cluster sees it, in a `flavor` of its queue; `counted` are its crashes."""
    manifest: dict[str, Any]
    flavor: str | None = None
    counted: int = 0


class Cluster(Cloud, ApiServer):
    """An `ApiServer` whose JobSets run.

    `folder` takes logs and the roots of pods, `given` is what every pod finds in its environment,
    `images` what the registry has; `judge` is that of a `Cloud`.
    """

    def __init__(self, folder: Path, image: Image, images: set[str], given: dict[str, str],
                 judge: Callable[[Work, Round], object]) -> None:
        ApiServer.__init__(self, rules.refusals)
        Cloud.__init__(self, folder, judge)
        self.image = image
        self.images = images
        self.given = given
        self.numbers = itertools.count()
        self.thread.start()

    def close(self) -> None:
        """Kill all pods and end the server."""
        self.end()
        ApiServer.close(self)

    def remove(self, plural: str, name: str) -> None:
        """Delete an object; a JobSet goes when its pods have ended."""
        if plural != 'jobsets':
            super().remove(plural, name)
            return
        self.kept[plural][name]['metadata']['deletionTimestamp'] = _now()
        if name in self.works:
            self._stop(self.works[name], 'gone')

    def left(self) -> dict[str, str]:
        """Return {name: 'JobSet'} of all that nobody has deleted."""
        return {work.name: 'JobSet' for work in self.works.values() if work.after != 'gone'}

    def log_of(self, name: str) -> str:
        """Return what a pod has printed."""
        return self.pods[name][1].read_text(errors='replace')

    # --- the thread -----------------------------------------------------------------------------

    def tick(self) -> None:
        """Admit, start, look after and restart JobSets, each by a state."""
        for name, manifest in self.kept['jobsets'].items():
            if name not in self.works:
                grace = rules.pod_of(manifest).get('terminationGracePeriodSeconds', 30)
                self.works[name] = JobSet(name=manifest['metadata']['name'], grace=grace,
                                          manifest=manifest)
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
        if self.has_room(slices * hosts):
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

    def injure(self, work: JobSet, how: str) -> bool:
        """Do `how` to a JobSet that runs."""
        if how == 'evict':
            work.pods[-1].evict(work.grace)
        elif how == 'sigkill':
            work.pods[-1].kill()
        elif how == 'quota':
            self.withhold(WITHHELD_SECONDS)
            self._stop(work, 'queued', TAKEN)
        else:
            self.lose_all()
        return True


def _now():
    return datetime.now(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')

"""Jobs on Google Kubernetes Engine: one JobSet each, through `kubectl`.

A JobSet restarts its pods by itself: as often as a machine is taken away, and a few times after a
crash (its rules are those of `exits.TABLE`). Kueue, where a queue is named, decides when it begins.
"""
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from downscale.experiment.names import KUBERNETES, label
from downscale.launch import state
from downscale.launch.backends import mounting
from downscale.launch.spec import Spec, on_cpu
from downscale.launch.watch import Observed
from downscale.planner.topologies import Topology, topology
from downscale.runtime.exits import TABLE
from downscale.runtime.files import in_bucket

API_VERSION = 'jobset.x-k8s.io/v1alpha2'
DOMAIN = 'downscale.dev'
JOB = 'slice'
CONTAINER = 'main'
TIMEOUT_SECONDS = 120
SPOT = 'cloud.google.com/gke-spot'
FLEX_START = 'cloud.google.com/gke-flex-start'
CRASHES = 3
GRACE_SECONDS = 60
MEMORY_SHARE = 0.8  # of a machine's memory is asked for; the rest is the node's own
# Restarts of the table that JobSet needs a rule for; 'counted' is what it does without one.
ACTIONS = {'free': 'RestartJobSetAndIgnoreMaxRestarts', 'never': 'FailJobSet'}
# A download that stands still is given up and tried again.
ENVIRONMENT = {'TPU_STDERR_LOG_LEVEL': '0', 'TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS': '60',
               'TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES': '256'}


@dataclass(frozen=True, kw_only=True)
class GkeOptions:
    """Where pods go.

    `queue` and `priority` are names of Kueue, `service_account` is one of Kubernetes, `context` one
    of kubectl. Machines are `spot` or `flex_start` ones, or those of a `reservation`. `mounts` are
    NAME=gs://..., of which `data` has a file cache of `cache_gib`.
    """
    namespace: str = 'default'
    queue: str | None = None
    priority: str | None = None
    spot: bool = True
    flex_start: bool = False
    reservation: str | None = None
    service_account: str | None = None
    context: str | None = None
    mounts: tuple[str, ...] = ()
    cache_gib: int | None = None


# --- the manifest -----------------------------------------------------------------------------

def manifest(spec: Spec, options: GkeOptions) -> dict[str, Any]:
    """Return the JobSet of a job, as a plain dict; ValueError in one line where GKE has none."""
    _refuse(spec, options)
    labels = labels_of(spec)
    notes = {f'{DOMAIN}/commit': spec.commit, f'{DOMAIN}/run': spec.run}
    place = topology(spec.topology)
    queue = {'kueue.x-k8s.io/queue-name': options.queue,
             'kueue.x-k8s.io/priority-class': options.priority}
    # Each slice of several machines gets a node pool for itself, or its pods could be spread.
    alone = {}
    if place.hosts > place.slices:
        alone['alpha.jobset.sigs.k8s.io/exclusive-topology'] = 'cloud.google.com/gke-nodepool'
    # Labels and notes are copied: YAML would write what stands twice as a reference.
    metadata = {'name': spec.name, 'namespace': options.namespace,
                'labels': labels | {name: value for name, value in queue.items() if value},
                'annotations': notes | alone}
    jobs = [{'name': JOB, 'replicas': place.slices,
             'template': {'spec': _job(spec, options, labels, notes)}}]
    return {'apiVersion': API_VERSION, 'kind': 'JobSet', 'metadata': metadata,
            'spec': {'failurePolicy': {'maxRestarts': CRASHES, 'rules': failure_rules()},
                     'replicatedJobs': jobs}}


def labels_of(spec: Spec) -> dict[str, str]:
    """Return the labels by which the JobSet and the pods of a job are found."""
    return {f'{DOMAIN}/{name}': value for name, value in (
        ('run', spec.group), ('sweep', label(spec.sweep, KUBERNETES)),
        ('cell', label(spec.cell, KUBERNETES)),
        ('part', spec.part), ('spec', spec.hash))}


def failure_rules() -> list[dict[str, Any]]:
    """Return the rules by which a JobSet answers the message of a Job that has failed.

    There are rules for a pod that was evicted and for the codes of `exits.TABLE`. All else restarts
    the Job, `CRASHES` times.
    """
    # JobSet sees only the message of a failed Job, into which Kubernetes writes code or condition.
    patterns = {action: [] for action in ACTIONS.values()}
    patterns[ACTIONS['free']].append('.*has condition DisruptionTarget .*')
    for code in _ruled():
        patterns[ACTIONS[TABLE[code].restart]].append(f'.*failed with exit code {code} .*')
    return [{'name': {'free': 'preempted', 'never': 'fatal'}[restart], 'action': action,
             'onJobFailureReasons': ['PodFailurePolicy'],
             'onJobFailureMessagePatterns': patterns[action]}
            for restart, action in ACTIONS.items()]


def _ruled():
    """Return the exit codes that have a rule of their own."""
    return [code for code, end in TABLE.items() if end.restart in ACTIONS]


def _job(spec, options, labels, notes):
    place = topology(spec.topology)
    # A pod for each machine of a slice; its index is what `log` finds a process by.
    hosts = place.hosts // place.slices
    # A rule of its own makes the code a part of the Job's message, by which JobSet decides.
    codes = [{'action': 'FailJob', 'onExitCodes': {
        'containerName': name, 'operator': 'In', 'values': [code]}}
        for code in _ruled() for name in _containers(spec)]
    evicted = {'action': 'FailJob',
               'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]}
    return {'completionMode': 'Indexed', 'parallelism': hosts, 'completions': hosts,
            'backoffLimit': 0, 'podFailurePolicy': {'rules': [evicted, *codes]},
            'template': {'metadata': {'labels': labels,
                                      'annotations': notes | mounting.annotations(options)},
                         'spec': mounting.mounted_pod(_pod(spec, options, place), options)}}


def _containers(spec):
    """Return the names of a pod's containers: one, or for training one for each NUMA node."""
    # Half of a tpu7x machine is slow to reach from the other half. What answers is one process.
    count = topology(spec.topology).machine.numa_nodes if spec.part == 'train' else 1
    return [CONTAINER, *(f'{CONTAINER}-{index}' for index in range(1, count))]


def _pod(spec, options, place):
    # A pod may use a part of a machine, which then is the part of its memory as well.
    chips = place.chips // place.hosts
    memory = int(place.machine.memory_gib * MEMORY_SHARE * chips / place.machine.chips)
    names = _containers(spec)
    nodes = node_labels(place, options.spot)
    tainted = ['google.com/tpu', SPOT] if options.spot else ['google.com/tpu']
    if options.reservation:
        nodes['cloud.google.com/reservation-name'] = options.reservation
    if options.flex_start:
        nodes[FLEX_START] = 'true'
        tainted.append(FLEX_START)  # pools need not have the taint
    tolerations = [{'key': key, 'operator': 'Exists', 'effect': 'NoSchedule'} for key in tainted]
    # A pod never restarts by itself: JobSet must see each end, to count it or not.
    pod = {'restartPolicy': 'Never', 'terminationGracePeriodSeconds': GRACE_SECONDS,
           'nodeSelector': nodes, 'tolerations': tolerations,
           'containers': [_container(spec, name, chips // len(names), memory // len(names))
                          for name in names]}
    if options.service_account:
        pod['serviceAccountName'] = options.service_account
    return pod


def _container(spec, name, chips, memory):
    return {
        'name': name, 'image': spec.image,
        # Python is the first process, so that SIGTERM reaches it.
        'command': state.command_of(spec, 'python'),
        'securityContext': {'privileged': True},  # the TPU's runtime locks much memory
        'env': [{'name': name, 'value': value} for name, value in ENVIRONMENT.items()],
        'resources': {'requests': {'memory': f'{memory}Gi'}, 'limits': {'google.com/tpu': chips}}}


def node_labels(place: Topology, spot: bool) -> dict[str, str]:
    """Return the labels that GKE gives the machines of a slice."""
    labels = {'cloud.google.com/gke-tpu-accelerator': place.machine.accelerator,
              'cloud.google.com/gke-tpu-topology': place.shape}
    return labels | ({SPOT: 'true'} if spot else {})


def _refuse(spec, options):
    """Raise ValueError in one line for a job that GKE could not run."""
    if on_cpu(spec.topology):
        raise ValueError(f'{spec.key} is for {spec.topology}, which is this machine; use --backend '
                         'local, or a TPU topology such as v5e:4x4')
    place = topology(spec.topology)
    if str(place.chips // place.hosts) not in place.machine.types:
        raise ValueError(f'{spec.key}: GKE has no machine of {place.chips // place.hosts} '
                         f'{place.generation} chip; take a larger topology')
    # Its webhook, which tells pods of the other slices, does so for slices of several machines.
    if place.slices > 1 and place.hosts == place.slices:
        raise ValueError(f'{spec.key}: GKE joins slices of several machines only, and '
                         f'{place.generation}:{place.shape} is one; take a larger shape')
    if not spec.image or '@sha256:' not in spec.image:
        raise ValueError(f'{spec.key}: --image must be a digest, as NAME@sha256:..., so that it '
                         'stays the same')
    if not in_bucket(spec.run):
        raise ValueError(f'{spec.key}: pods share no disk; give --run gs://BUCKET/...')
    if options.mounts and not options.service_account:
        raise ValueError(f'{spec.key}: --mount reads a bucket as a service account of Kubernetes; '
                         'give --service-account NAME, which may read it')


def text(manifest: dict[str, Any]) -> str:
    """Return a manifest as YAML; ImportError with the extra to install where there is no pyyaml."""
    try:
        import yaml
    except ImportError:
        raise ImportError("no pyyaml; pip install 'downscale[launch]'") from None
    return yaml.safe_dump(manifest, sort_keys=False)


# --- the names that the schema does not check -------------------------------------------------

def check_names(manifest: dict[str, Any]) -> list[str]:
    """Return the names that JobSet's webhook and Kubernetes would refuse, a line each, or []."""
    name = manifest['metadata']['name']
    problems = []
    if not re.fullmatch('[a-z]([-a-z0-9]{0,61}[a-z0-9])?', name):
        problems.append(f'{name!r} is no DNS-1035 label')
    # The name of the longest pod: JobSet, job, replica, index and five characters of its own.
    for job in manifest['spec']['replicatedJobs']:
        pods = job['template']['spec']['completions'] - 1
        longest = f'{name}-{job["name"]}-{job["replicas"] - 1}-{pods}-abcde'
        if len(longest) > 63:
            problems.append(f'{longest} would be a pod, of {len(longest)} characters; at most 63 '
                            'may be')
    for rule in manifest['spec'].get('failurePolicy', {}).get('rules', []):
        if not re.fullmatch('[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?', rule['name']):
            problems.append(f'{rule["name"]!r} is no name of a failure rule')
    for key, value in manifest['metadata']['labels'].items():
        if not re.fullmatch('([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?', value):
            problems.append(f'{key}: {value!r} is no label value')
    return problems


# --- kubectl ----------------------------------------------------------------------------------

class GkeBackend:
    """The JobSets of a run folder."""
    poll = 30.0

    def __init__(self, options: GkeOptions) -> None:
        self.options = options

    def observe(self, specs: Sequence[Spec]) -> list[Observed]:
        """Return the `watch.Observed` of every JobSet of this run folder."""
        answer = self._call(['get', 'jobsets.jobset.x-k8s.io', '--output=json',
                             f'--selector={DOMAIN}/run={specs[0].group}'])
        return [_observed(value) for value in json.loads(answer)['items']]

    def manifest_of(self, spec: Spec) -> dict[str, Any]:
        """Return the JobSet that is created for a job."""
        return manifest(spec, self.options)

    def create(self, spec: Spec, zone: str) -> None:
        """Create the JobSet, unless it is there; ValueError when one of another spec is."""
        # `create` and not `apply`, which would change a JobSet of another spec under its pods.
        try:
            self._call(['create', '--filename=-'], json.dumps(self.manifest_of(spec)))
        except RuntimeError as error:
            if '(AlreadyExists)' not in str(error):
                raise
            there = json.loads(self._call(['get', 'jobsets.jobset.x-k8s.io', spec.name,
                                           '--output=json']))
            other = there['metadata'].get('labels', {}).get(f'{DOMAIN}/spec')
            if other != spec.hash:
                raise ValueError(f'{spec.name} is there for spec {other}, not {spec.hash}; cancel '
                                 'it, then submit again') from None

    def delete(self, name: str, zone: str) -> None:
        """Delete the JobSet; it goes when its pods have saved."""
        self._call(['delete', 'jobsets.jobset.x-k8s.io', name, '--wait=false',
                    '--cascade=foreground', '--ignore-not-found'])

    def close(self) -> None:
        """Do nothing, as pods run on without a watcher."""

    def log(self, spec: Spec, process: int) -> str:
        """Return what the newest pod of a process of a job has printed."""
        # JAX counts processes slice by slice, Kubernetes the pods of each, and containers are ours.
        place = topology(spec.topology)
        names = _containers(spec)
        pod, which = divmod(process, len(names))
        replica, index = divmod(pod, place.hosts // place.slices)
        return self._call(['logs', '--tail=-1', f'--container={names[which]}', '--selector='
                           f'{DOMAIN}/spec={spec.hash},{DOMAIN}/run={spec.group},'
                           f'jobset.sigs.k8s.io/job-index={replica},'
                           f'batch.kubernetes.io/job-completion-index={index}'])

    def _call(self, rest, given=None):
        """Return what kubectl prints; RuntimeError in one line when it fails."""
        argv = ['kubectl', f'--namespace={self.options.namespace}']
        if self.options.context:
            argv.append(f'--context={self.options.context}')
        argv += rest
        try:
            done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False,
                                  timeout=TIMEOUT_SECONDS)
        except FileNotFoundError:
            raise ValueError('there is no kubectl; install it and log in to the cluster') from None
        except subprocess.TimeoutExpired:
            raise RuntimeError(f'kubectl {rest[0]} gave no answer in {TIMEOUT_SECONDS} s') from None
        if done.returncode:
            raise RuntimeError(f'kubectl {rest[0]}: {" ".join(done.stderr.split())[:400]}')
        return done.stdout


def _observed(value):
    """Return the `watch.Observed` of a JobSet as the API shows it."""
    meta = value['metadata']
    status = value.get('status', {})
    conditions = {condition['type']: condition for condition in status.get('conditions', [])
                  if condition['status'] == 'True'}
    ready = sum(job.get('ready', 0) for job in status.get('replicatedJobsStatus', []))
    message = ''
    code = None
    # In this order: a JobSet that is being deleted keeps its old conditions.
    if 'deletionTimestamp' in meta:
        shown = 'deleting'
    elif 'Completed' in conditions:
        shown = 'ended'
        code = 0
    elif 'Failed' in conditions:
        shown = 'failed'
        message = conditions['Failed'].get('message', '')
    elif ready:
        shown = 'running'
    else:
        shown = 'pending'
        message = conditions.get('Suspended', {}).get('message', '')
    return Observed(
        name=meta['name'],
        hash=meta.get('labels', {}).get(f'{DOMAIN}/spec', ''),
        state=shown,
        since=datetime.fromisoformat(meta['creationTimestamp']).timestamp(),
        code=code,
        message=' '.join(message.split()),
        restarts=True,
    )

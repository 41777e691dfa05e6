"""What a cluster decides by itself: what it refuses, where a pod may run, what a failure leads to.

Plain functions of a manifest, as Kubernetes 1.32, JobSet 0.10 and Kueue 0.14 document them.
"""
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from downscale.launch.backends import validate
from downscale.launch.backends.gke import SPOT, node_labels
from downscale.launch.rehearsal.machines.container import PodEnd
from downscale.planner.topologies import SHAPES, Topology, topology

QUEUE = 'kueue.x-k8s.io/queue-name'
CHIPS = 'google.com/tpu'
COUNTED, FREE, FAIL = 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts', 'FailJobSet'
_LABEL = re.compile('([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?')
_UNITS = {'': 1, 'k': 10 ** 3, 'M': 10 ** 6, 'G': 10 ** 9, 'T': 10 ** 12, 'Ki': 2 ** 10,
          'Mi': 2 ** 20, 'Gi': 2 ** 30, 'Ti': 2 ** 40}


def job_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of the inner Job of a JobSet."""
    return manifest['spec']['replicatedJobs'][0]['template']['spec']


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of the pods of a JobSet."""
    return job_of(manifest)['template']['spec']


# --- what is refused --------------------------------------------------------------------------

def refusals(manifest: dict[str, Any]) -> list[str]:
    """Return why the API server or a webhook would refuse an object, a line each, or []."""
    try:
        problems = validate.problems(manifest)
        if problems or manifest['kind'] != 'JobSet':
            return problems
        return [*_labels(manifest), *_pod_problems(manifest), *_policy_problems(manifest)]
    except KeyError as error:
        return [f'{manifest.get("kind")}: the field {error} is missing']


def _labels(manifest):
    """Return which labels of the pods are none; those of the JobSet are read by `validate`."""
    labels = job_of(manifest)['template'].get('metadata', {}).get('labels', {})
    return [f'label {key} of the pods: {value[:80]!r} is no label value (at most 63 characters)'
            for key, value in labels.items() if not _LABEL.fullmatch(value)]


def _pod_problems(manifest):
    pod = pod_of(manifest)
    if len(pod['containers']) > 1 or 'initContainers' in pod:
        yield 'a rehearsal runs pods of one container'
    main = pod['containers'][0]
    volumes = [volume['name'] for volume in pod.get('volumes', [])]
    for mount in main.get('volumeMounts', []):
        if mount['name'] not in volumes:
            yield f'volumeMounts: there is no volume {mount["name"]!r}'
    for variable in main.get('env', []):
        if 'valueFrom' in variable:
            yield f'env {variable["name"]}: a rehearsal has no valueFrom'
        if not isinstance(variable.get('value', ''), str):
            yield f'env {variable["name"]}: a value must be text'


def _policy_problems(manifest):
    job = job_of(manifest)
    pod = pod_of(manifest)
    rules = job.get('podFailurePolicy', {}).get('rules', [])
    if pod.get('restartPolicy') != 'Never' and (rules or pod.get('restartPolicy') != 'OnFailure'):
        yield f'restartPolicy {pod.get("restartPolicy")}: only Never goes with a podFailurePolicy'
    names = [container['name'] for container in pod['containers']]
    for rule in rules:
        codes = rule.get('onExitCodes', {})
        if codes.get('containerName', names[0]) not in names:
            yield f'podFailurePolicy: there is no container {codes["containerName"]!r}'
        if codes.get('operator') == 'In' and 0 in codes['values']:
            yield 'podFailurePolicy: 0 is no exit code of a failure'
    for rule in manifest['spec'].get('failurePolicy', {}).get('rules', []):
        for pattern in rule.get('onJobFailureMessagePatterns', []):
            try:
                re.compile(pattern)
            except re.error as error:
                yield f'failurePolicy: {pattern!r} is no regular expression ({error})'


# --- where pods may run -----------------------------------------------------------------------

def unschedulable(manifest: dict[str, Any], images: Iterable[str]) -> str | None:
    """Return why the pods of a JobSet would wait for ever, None where they can run.

    The nodes are those that GKE has for each slice; a registry holds `images` alone.
    """
    pod = pod_of(manifest)
    main = pod['containers'][0]
    wanted = pod.get('nodeSelector', {})
    key = tuple(wanted.get(name) for name in node_labels(topology('v5e:2x2'), True))
    if key not in _nodes():
        return f'no node has the labels {wanted}'
    place = _nodes()[key]
    # A taint without its toleration keeps a pod away; spot nodes have a second one.
    tolerated = {toleration.get('key') for toleration in pod.get('tolerations', [])}
    for taint in [CHIPS, *([SPOT] if wanted.get(SPOT) == 'true' else [])]:
        if not tolerated & {taint, None}:
            return f'the nodes have the taint {taint}, which the pods do not tolerate'
    chips, each = asked(main).get(CHIPS, 0), place.chips // place.hosts
    if chips != each:
        return f'{CHIPS} is {chips:g}, and a node of {place.name} has {each}'
    if asked(main).get('memory', 0) > place.machine.memory_gib * 2 ** 30:
        return f'more memory is asked for than the {place.machine.memory_gib} GiB of a node'
    if main['image'] not in images:
        return f'there is no image {main["image"][:100]}'
    return None


@cache
def _nodes() -> dict[tuple, Topology]:
    """Return {values of the labels of a node: its slice} of all slices that there are."""
    places = [topology(f'{name}:{shape}') for name, shapes in SHAPES.items() for shape in shapes]
    nodes = {}
    for place in places:
        for spot in (False, True):
            labels = node_labels(place, spot)
            nodes[tuple(labels.get(name) for name in node_labels(place, True))] = place
    return nodes


def asked(container: dict[str, Any]) -> dict[str, float]:
    """Return the resources that a container asks for; a limit is also a request."""
    resources = container.get('resources', {})
    texts = {**resources.get('limits', {}), **resources.get('requests', {})}
    return {name: quantity(text) for name, text in texts.items()}


def quantity(text: str | int) -> float:
    """Return a number such as 4, '153Gi' or '500M'; ValueError where it is none."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)([A-Za-z]*)', str(text))
    if not match or match[2] not in _UNITS:
        raise ValueError(f'{text!r} is no quantity')
    return float(match[1]) * _UNITS[match[2]]


# --- queues -----------------------------------------------------------------------------------

def demand(manifest: dict[str, Any]) -> dict[str, float]:
    """Return the resources that all pods of a JobSet ask for."""
    count = job_of(manifest)['parallelism'] * manifest['spec']['replicatedJobs'][0]['replicas']
    return {name: value * count for name, value in asked(pod_of(manifest)['containers'][0]).items()}


def admit(manifest: dict[str, Any], kept: dict[str, dict[str, Any]],
          used: dict[str, dict[str, float]]) -> tuple[str | None, str]:
    """Return (flavor, '') by which Kueue admits a JobSet, or (None, why it does not).

    `kept` are the objects of the API, `used` is {flavor: {resource: amount}} of what runs.
    """
    # 1. From the name of the queue to its quotas.
    name = manifest['metadata']['labels'][QUEUE]
    if name not in kept['localqueues']:
        return None, f'LocalQueue {name} does not exist'
    owner = kept['localqueues'][name]['spec']['clusterQueue']
    if owner not in kept['clusterqueues']:
        return None, f'ClusterQueue {owner} does not exist'
    # 2. A flavor for all that is asked; a resource that no group covers is never admitted.
    wanted = demand(manifest)
    why = f'no flavor of ClusterQueue {owner} has the labels of the nodes that are asked for'
    for group in kept['clusterqueues'][owner]['spec']['resourceGroups']:
        missing = sorted(set(wanted) - set(group['coveredResources']))
        if missing:
            return None, f'ClusterQueue {owner} does not cover {missing[0]}'
        for quota in group['flavors']:
            flavor = kept['resourceflavors'].get(quota['name'])
            if not flavor or not _suits(flavor['spec'], pod_of(manifest)):
                continue
            free = {part['name']: quantity(part['nominalQuota']) for part in quota['resources']}
            for resource, amount in wanted.items():
                if used.get(quota['name'], {}).get(resource, 0) + amount > free[resource]:
                    why = f'insufficient quota for {resource} in flavor {quota["name"]}'
                    break
            else:
                return quota['name'], ''
    return None, why


def _suits(flavor, pod):
    """Return whether pods may run on the nodes of a flavor."""
    selector = pod.get('nodeSelector', {})
    labels = flavor.get('nodeLabels', {})
    # What the selector says of the flavor's labels must agree; of other labels Kueue knows nothing.
    if any(labels[key] != selector[key] for key in labels.keys() & selector.keys()):
        return False
    if SPOT in selector and SPOT not in labels:
        return False
    tolerated = {toleration.get('key') for toleration in pod.get('tolerations', [])}
    return all(taint['key'] in tolerated for taint in flavor.get('nodeTaints', []))


# --- what a failure leads to ------------------------------------------------------------------

def job_failure(manifest: dict[str, Any], end: PodEnd) -> tuple[str, str] | None:
    """Return (reason, message) with which a Job fails by the end of a pod; None where it goes on.

    A pod that does not count, or for which another is allowed, is only replaced.
    """
    job = job_of(manifest)
    namespace = manifest['metadata'].get('namespace', 'default')
    for index, rule in enumerate(job.get('podFailurePolicy', {}).get('rules', [])):
        codes = rule.get('onExitCodes')
        container = pod_of(manifest)['containers'][0]['name']
        if codes:
            met = end.code != 0 and (end.code in codes['values']) == (codes['operator'] == 'In')
            text = (f'Container {container} for pod {namespace}/{end.pod} failed with exit code '
                    f'{end.code} matching {rule["action"]} rule at index {index}')
        else:
            met = end.evicted and any(condition['type'] == 'DisruptionTarget'
                                      for condition in rule.get('onPodConditions', []))
            text = (f'Pod {namespace}/{end.pod} has condition DisruptionTarget matching '
                    f'{rule["action"]} rule at index {index}')
        if met and rule['action'] == 'FailJob':
            return 'PodFailurePolicy', text
        if met and rule['action'] == 'Ignore':
            return None
        if met:
            break
    return 'BackoffLimitExceeded', 'Job has reached the specified backoff limit'


def action_of(manifest: dict[str, Any], reason: str, message: str) -> str:
    """Return what a JobSet does when a Job of it fails: COUNTED, FREE or FAIL."""
    policy = manifest['spec'].get('failurePolicy')
    if policy is None:
        return FAIL
    for rule in policy.get('rules', []):
        reasons = rule.get('onJobFailureReasons') or [reason]
        patterns = rule.get('onJobFailureMessagePatterns') or ['']
        if reason in reasons and any(re.search(pattern, message) for pattern in patterns):
            return rule['action']
    return COUNTED

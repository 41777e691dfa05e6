"""Queues of Kueue for the slices of a cluster: one flavor for each kind, a cluster queue, a queue.

`python -m downscale.launch.backends.kueue` prints what is in `launch/clusters/kueue.yaml`.
"""
import itertools
import sys
from collections.abc import Iterable
from typing import Any

from downscale.launch.backends.gke import SPOT, node_labels, text
from downscale.planner.topologies import SHAPES, topology

API_VERSION = 'kueue.x-k8s.io/v1beta2'
QUEUE = 'tpu'
GENERATIONS = ('v5e', 'v5p', 'v6e', 'tpu7x')
MOST_CHIPS = 64


def objects(places: Iterable[str]) -> list[dict[str, Any]]:
    """Return the objects of Kueue that admit jobs on slices, as plain dicts, flavors first.

    Until the quotas are raised there may be one spot slice and one other of each of `places` (names
    of topologies) at a time.
    """
    # A flavor for each kind of slice: Kueue counts quotas by flavor and picks one by node labels.
    flavors = list(itertools.product(map(topology, places), (False, True)))
    resources = {
        # Kueue admits no pod that asks for what its queue does not cover.
        'coveredResources': ['google.com/tpu', 'memory'],
        'flavors': [_quota(place, spot) for place, spot in flavors]}
    cluster_queue = {
        'apiVersion': API_VERSION, 'kind': 'ClusterQueue', 'metadata': {'name': QUEUE},
        'spec': {'namespaceSelector': {}, 'resourceGroups': [resources]}}
    queue = {'apiVersion': API_VERSION, 'kind': 'LocalQueue',
             'metadata': {'name': QUEUE, 'namespace': 'default'}, 'spec': {'clusterQueue': QUEUE}}
    return [*(_flavor(place, spot) for place, spot in flavors), cluster_queue, queue]


def _name(place, spot):
    name = f'{place.generation}-{place.shape}'
    return f'{name}-spot' if spot else name


def _flavor(place, spot):
    spec = {'nodeLabels': node_labels(place, spot)}
    if spot:  # only pods that tolerate it are admitted to spot machines
        spec['nodeTaints'] = [{'key': SPOT, 'value': 'true', 'effect': 'NoSchedule'}]
    return {'apiVersion': API_VERSION, 'kind': 'ResourceFlavor',
            'metadata': {'name': _name(place, spot)}, 'spec': spec}


def _quota(place, spot):
    memory = f'{place.hosts * place.machine.memory_gib}Gi'
    return {'name': _name(place, spot), 'resources': [
        {'name': 'google.com/tpu', 'nominalQuota': place.chips},
        {'name': 'memory', 'nominalQuota': memory}]}


def default_places() -> list[str]:
    """Return the slices of at most `MOST_CHIPS` chips that GKE has machines for."""
    places = []
    for name in GENERATIONS:
        places += [topology(f'{name}:{shape}') for shape in SHAPES[name]]
    return [place.name for place in places if place.chips <= MOST_CHIPS
            and str(place.chips // place.hosts) in place.machine.types]


def main() -> None:
    """Print the objects for `default_places` as YAML."""
    sys.stdout.write(
        '# Made by `python -m downscale.launch.backends.kueue`; raise the quotas to what you '
        'have.\n' + '---\n'.join(map(text, objects(default_places())))
    )


if __name__ == '__main__':
    main()

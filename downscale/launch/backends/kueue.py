"""Queues of Kueue for the slices of a cluster: one flavor for each kind, a cluster queue, a queue.

`python -m downscale.launch.backends.kueue` prints what is in `launch/clusters/kueue.yaml`.
"""
import sys

from downscale.launch.backends.gke import SPOT, node_labels, text
from downscale.planner.topologies import SHAPES, topology

API_VERSION = 'kueue.x-k8s.io/v1beta2'
QUEUE = 'tpu'
GENERATIONS = ('v5e', 'v5p', 'v6e', 'tpu7x')
MOST_CHIPS = 64


def objects(places, namespace='default'):
    """Return the objects of Kueue that admit jobs on slices, as plain dicts, flavors first.

    There may be one slice of each of `places` (names of topologies) at a time, spot and other each,
    until the quotas are raised.
    """
    flavors = [(place, spot) for place in map(topology, places) for spot in (False, True)]
    return [*(_flavor(place, spot) for place, spot in flavors), {
        'apiVersion': API_VERSION, 'kind': 'ClusterQueue', 'metadata': {'name': QUEUE},
        'spec': {'namespaceSelector': {}, 'resourceGroups': [{
            # Kueue admits no pod that asks for what its queue does not cover.
            'coveredResources': ['google.com/tpu', 'memory'],
            'flavors': [_quota(place, spot) for place, spot in flavors]}]}}, {
        'apiVersion': API_VERSION, 'kind': 'LocalQueue',
        'metadata': {'name': QUEUE, 'namespace': namespace}, 'spec': {'clusterQueue': QUEUE}}]


def _name(place, spot):
    return f'{place.generation}-{place.shape}' + '-spot' * spot


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


def default_places():
    """Return slices that GKE has machines for, of at most `MOST_CHIPS` chips."""
    found = [topology(f'{name}:{shape}') for name in GENERATIONS for shape in SHAPES[name]]
    return [place.name for place in found if place.chips <= MOST_CHIPS
            and str(place.chips // place.hosts) in place.machine.types]


def main():
    """Print the objects for `default_places` as YAML."""
    sys.stdout.write(
        '# Made by `python -m downscale.launch.backends.kueue`; raise the quotas to what you '
        'have.\n' + '---\n'.join(map(text, objects(default_places())))
    )


if __name__ == '__main__':
    main()

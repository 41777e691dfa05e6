"""A rehearsal on GKE: manifests through kubectl, a cluster of this machine and its queues."""
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from downscale.launch import watch
from downscale.launch.backends import gke, sweep
from downscale.launch.backends.settings import LaunchSettings
from downscale.launch.rehearsal import findings, sandbox
from downscale.launch.rehearsal.cluster import Cluster
from downscale.launch.rehearsal.machines.container import Image
from downscale.launch.rehearsal.rules import QUEUE
from downscale.launch.spec import Spec

POLL_SECONDS = 2.0
ENDING = '.yaml'
text = gke.text


def read(text: str) -> dict[str, Any]:
    """Return a manifest from its YAML."""
    return yaml.safe_load(text)


def faults(spec: Spec, manifest: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the manifest of a job before anything runs."""
    for line in findings.drill(manifest):
        yield f'failure policy: {line}'
    if manifest['metadata'].get('name') != spec.name:
        yield f'{spec.key}: its JobSet must have the name that cancel and watch look for'


def policy(settings: LaunchSettings) -> watch.Policy:
    """Return the limits of a sweep, without the waits of a real cloud; JobSets have no zone."""
    limits = sweep.policy_of(dataclasses.replace(settings, zones=()))
    return dataclasses.replace(limits, base=1)


class RehearsalBackend(gke.GkeBackend):
    """GKE as a sweep meets it, through kubectl, but for whose manifests are sent."""
    poll = POLL_SECONDS

    def __init__(self, options: gke.GkeOptions, manifests: Mapping[str, dict[str, Any]]) -> None:
        super().__init__(options)
        self.manifests = manifests

    def manifest_of(self, spec: Spec) -> dict[str, Any]:
        """Return the manifest of this rehearsal, which a person may have edited."""
        return self.manifests[spec.name]


def backend(settings: LaunchSettings, manifests: Mapping[str, dict[str, Any]]) -> RehearsalBackend:
    """Return the backend that sends the manifests of this rehearsal."""
    submitting = sweep.backend_of(settings)
    assert isinstance(submitting, gke.GkeBackend)
    return RehearsalBackend(submitting.options, manifests)


def cloud(stack: contextlib.ExitStack, settings: LaunchSettings,
          manifests: Mapping[str, dict[str, Any]], folder: Path, given: dict[str, str],
          judge: findings.Judge) -> Cluster:
    """Return the cluster, with queues where a manifest names one, until the stack is closed."""
    cluster = Cluster(folder, Image(), {str(settings.image)}, given, judge)
    stack.callback(cluster.close)
    stack.enter_context(sandbox.kubectl(cluster, folder, settings.context))
    if any(QUEUE in manifest['metadata'].get('labels', {}) for manifest in manifests.values()):
        sandbox.create_queues()
    return cluster

"""Jobs on TPU virtual machines of the Cloud TPU API (legacy): a queued resource each, by `gcloud`.

The machines run a start-up script that reads what to do from their metadata. Nothing restarts them;
`watch.py` deletes what was suspended or has failed, and creates it again.
"""
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from downscale.launch.backends.gcloud import (
    VmOptions,
    call,
    command,
    labels,
    pairs,
    refuse_this_machine,
    startup_flags,
)
from downscale.launch.spec import Spec
from downscale.launch.watch import Observed
from downscale.planner.topologies import topology

STATES = {'ACTIVE': 'running', 'SUSPENDED': 'suspended', 'FAILED': 'failed', 'DELETING': 'deleting',
          'SUSPENDING': 'running'}  # all others wait for machines


@dataclass(frozen=True, kw_only=True)
class QueuedOptions(VmOptions):
    """How machines are asked for; `kind` is 'spot', 'reserved' or 'guaranteed'."""
    kind: str = 'spot'


def create_command(spec: Spec, options: QueuedOptions, zone: str) -> list[str]:
    """Return the argv that asks for the machines of a job.

    ValueError in one line for a topology that the TPU API does not have.
    """
    refuse_this_machine(spec)
    place = topology(spec.topology)
    if place.machine.runtime is None:
        raise ValueError(f'{spec.key}: {place.generation} is not in the Cloud TPU API (legacy) of '
                         '--backend tpuvm; use --backend gke or mig')
    argv = [*_gcloud('create'), spec.name, f'--zone={zone}', '--async',
            f'--accelerator-type={place.accelerator_type}',
            f'--runtime-version={place.machine.runtime}', f'--{options.kind}']
    argv += [f'--labels={pairs(labels(spec))}', *startup_flags(spec, options)]
    # One node keeps the name of the job, several are numbered behind it.
    if place.slices > 1:
        argv += [f'--node-count={place.slices}', f'--node-prefix={spec.name}']
    else:
        argv.append(f'--node-id={spec.name}')
    if options.valid_for:
        argv.append(f'--valid-until-duration={options.valid_for}')
    if options.service_account:
        argv.append(f'--service-account={options.service_account}')
    if options.internal_ips:
        argv.append('--internal-ips')
    return argv


def list_command(zone: str) -> list[str]:
    """Return the argv that lists a zone's queued resources."""
    return [*_gcloud('list'), f'--zone={zone}']


def describe_command(name: str, zone: str) -> list[str]:
    """Return the argv that shows one queued resource."""
    return [*_gcloud('describe'), name, f'--zone={zone}']


def delete_command(name: str, zone: str) -> list[str]:
    """Return the argv that deletes a queued resource with its machines."""
    return [*_gcloud('delete'), name, f'--zone={zone}', '--force', '--async']


def _gcloud(verb):
    return command('tpus', 'queued-resources', verb)


class TpuvmBackend:
    """The queued resources of a sweep in the zones of `options`."""
    poll = 30.0

    def __init__(self, options: QueuedOptions) -> None:
        self.options = options

    def observe(self, specs: Sequence[Spec]) -> list[Observed]:
        """Return the `watch.Observed` of every resource of this run folder."""
        return resources(specs[0].group, self.options.zones)

    def create(self, spec: Spec, zone: str) -> None:
        """Ask for the resource of a job, unless it is there.

        ValueError when there is one of that name for another spec.
        """
        try:
            call(self.command_of(spec, zone))
        except RuntimeError as error:
            if not re.search('ALREADY_EXISTS|already exists', str(error)):
                raise
            # Its own earlier request, whose answer was lost, is as good as a new one.
            other = _labels(call(describe_command(spec.name, zone))).get('downscale-spec')
            if other != spec.hash:
                raise ValueError(f'{spec.name} in {zone} is there for spec {other}, not '
                                 f'{spec.hash}; cancel it, then submit again') from None

    def command_of(self, spec: Spec, zone: str) -> list[str]:
        """Return the command that asks for the resource of a job."""
        return create_command(spec, self.options, zone)

    def delete(self, name: str, zone: str) -> None:
        """Delete the resource with its machines, unless it is gone."""
        try:
            call(delete_command(name, zone))
        except RuntimeError as error:
            # Gone is what was wanted: someone else was quicker.
            if 'NOT_FOUND' not in str(error):
                raise

    def close(self) -> None:
        """Do nothing, as machines run on without a watcher."""


def resources(group: str, zones: Sequence[str]) -> list[Observed]:
    """Return the `watch.Observed` of every queued resource in `zones` of the run folder `group`."""
    with ThreadPoolExecutor(len(zones)) as pool:  # each takes a second or more
        listed = list(pool.map(lambda zone: call(list_command(zone)) or [], zones))
    observed = []
    for zone, values in zip(zones, listed, strict=True):
        observed += [_observed(value, zone) for value in values
                     if _labels(value).get('downscale-run') == group]
    return observed


def _labels(value):
    # All slices of a resource have the same labels.
    return value['tpu']['nodeSpec'][0]['node'].get('labels', {})


def _observed(value, zone):
    message = value['state'].get('failedData', {}).get('error', {}).get('message', '')
    since = datetime.fromisoformat(value['createTime']).timestamp()
    return Observed(
        name=value['name'].rpartition('/')[2],
        hash=_labels(value).get('downscale-spec', ''),
        state=STATES.get(value['state']['state'], 'pending'),
        since=since,
        zone=zone,
        message=' '.join(message.split()),
    )

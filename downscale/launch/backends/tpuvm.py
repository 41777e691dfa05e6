"""Jobs on TPU virtual machines: one queued resource each, through `gcloud`.

The machines run a start-up script that reads what to do from their metadata. Nothing restarts them;
`watch.py` deletes what was suspended or has failed, and creates it again.
"""
import json
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from downscale.experiment.names import GOOGLE, label
from downscale.launch import state
from downscale.launch.spec import Spec
from downscale.launch.watch import Observed
from downscale.planner.topologies import topology
from downscale.runtime.mounts import as_variable, read_mounts
from downscale.values import shown

TIMEOUT_SECONDS = 300
SEPARATORS = ',|;~#%@!'  # that may stand between pairs
STATES = {'ACTIVE': 'running', 'SUSPENDED': 'suspended', 'FAILED': 'failed', 'DELETING': 'deleting',
          'SUSPENDING': 'running'}  # all others wait for machines


@dataclass(frozen=True, kw_only=True)
class QueuedOptions:
    """How machines are asked for.

    `kind` is 'spot', 'reserved' or 'guaranteed'; a request lapses after `valid_for` (as '6h').
    `script` is the path of the start-up script, which mounts `mounts` (NAME=gs://...) and gives
    `data` a file cache of `cache_gib`.
    """
    zones: tuple[str, ...]
    script: str
    kind: str = 'spot'
    valid_for: str | None = None
    service_account: str | None = None
    internal_ips: bool = False
    mounts: tuple[str, ...] = ()
    cache_gib: int | None = None


def labels(spec: Spec) -> dict[str, str]:
    """Return the labels by which the resources of a job are found."""
    return {'downscale-run': spec.group, 'downscale-sweep': label(spec.sweep, GOOGLE),
            'downscale-cell': label(spec.cell, GOOGLE), 'downscale-part': spec.part,
            'downscale-spec': spec.hash}


def create_command(spec: Spec, options: QueuedOptions, zone: str) -> list[str]:
    """Return the argv that asks for the machines of a job.

    ValueError in one line for a topology that the TPU API does not have.
    """
    if spec.topology.startswith('cpu:'):
        raise ValueError(f'{spec.key} is for {spec.topology}, which is this machine; use --backend '
                         'local, or a TPU topology such as v5e:4x4')
    place = topology(spec.topology)
    if place.machine.runtime is None:
        raise ValueError(f'{spec.key}: {place.generation} is on GKE only; use --backend gke')
    # The start-up script is the same for all jobs; what differs is in the metadata of the machine.
    metadata = {'downscale-spec': str(state.folder_of(spec.run, spec) / 'spec.json'),
                'downscale-image': spec.image or ''}
    if options.mounts:
        metadata['downscale-mounts'] = as_variable(read_mounts(options.mounts))
        metadata['downscale-cache-gib'] = str(options.cache_gib or 0)
    argv = [*_gcloud('create'), spec.name, f'--zone={zone}', '--async',
            f'--accelerator-type={place.accelerator_type}',
            f'--runtime-version={place.machine.runtime}', f'--{options.kind}']
    argv += [f'--labels={_pairs(labels(spec))}', f'--metadata={_pairs(metadata)}',
             f'--metadata-from-file={_pairs({"startup-script": options.script})}']
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
    return ['gcloud', 'compute', 'tpus', 'queued-resources', verb, '--quiet', '--format=json']


def _pairs(values):
    """Return NAME=VALUE pairs as gcloud takes them.

    Where a value holds a comma, another sign stands between pairs, which '^SIGN^' declares (`gcloud
    topic escaping`). ValueError where the values hold every such sign.
    """
    pairs = [f'{name}={value}' for name, value in values.items()]
    for sign in SEPARATORS:
        if not any(sign in pair for pair in pairs):
            return sign.join(pairs) if sign == ',' else f'^{sign}^{sign.join(pairs)}'
    raise ValueError(f'{shown(pairs)} holds all of {SEPARATORS}, so that gcloud could not part it; '
                     'give --run another name')


def call(argv: list[str]) -> Any:
    """Return what gcloud answers, from JSON; RuntimeError in one line when it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
                              stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise ValueError('there is no gcloud; install the Google Cloud CLI and log in') from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f'gcloud {argv[4]} gave no answer in {TIMEOUT_SECONDS} s') from None
    if done.returncode:
        # gcloud prints progress and hints before the line that says why.
        text = ' '.join(done.stderr.split()).rpartition('ERROR: ')[2]
        raise RuntimeError(f'gcloud {argv[4]}: {text[:400]}')
    return json.loads(done.stdout) if done.stdout.strip() else None


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
            call(create_command(spec, self.options, zone))
        except RuntimeError as error:
            if not re.search('ALREADY_EXISTS|already exists', str(error)):
                raise
            # Its own earlier request, whose answer was lost, is as good as a new one.
            other = _labels(call(describe_command(spec.name, zone))).get('downscale-spec')
            if other != spec.hash:
                raise ValueError(f'{spec.name} in {zone} is there for spec {other}, not '
                                 f'{spec.hash}; cancel it, then submit again') from None

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

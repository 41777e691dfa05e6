"""Jobs on TPU virtual machines: one queued resource each, through `gcloud`.

The machines run a start-up script that reads what to do from their metadata. Nothing restarts them;
`watch.py` deletes what was suspended or has failed, and creates it again.
"""
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from downscale.experiment.names import GOOGLE, label
from downscale.launch import state
from downscale.launch.watch import Observed
from downscale.planner.topologies import topology
from downscale.values import shown

TIMEOUT_SECONDS = 300
SEPARATORS = ',|;~#%@!'  # of pairs
STATES = {'ACTIVE': 'running', 'SUSPENDED': 'suspended', 'FAILED': 'failed', 'DELETING': 'deleting',
          'SUSPENDING': 'running'}  # all others wait for machines


@dataclass(frozen=True, kw_only=True)
class QueuedOptions:
    """How machines are asked for. `kind` is 'spot', 'reserved' or 'guaranteed'; a request lapses
    after `valid_for` (as '6h'). `script` is the path of the start-up script."""
    zones: tuple[str, ...]
    script: str
    kind: str = 'spot'
    valid_for: str | None = None
    service_account: str | None = None
    internal_ips: bool = False


def labels(spec):
    """Return what the resources of a job are found by."""
    return {'downscale-run': spec.group, 'downscale-sweep': label(spec.sweep, GOOGLE),
            'downscale-cell': label(spec.cell, GOOGLE), 'downscale-part': spec.part,
            'downscale-spec': spec.hash}


def create_command(spec, options, zone):
    """Return the argv that asks for the machines of a job; ValueError where the TPU API has
    none.
    """
    if spec.topology.startswith('cpu:'):
        raise ValueError(f'{spec.key} is for {spec.topology}, which is this machine; use --backend '
                         'local, or a TPU topology such as v5e:4x4')
    place = topology(spec.topology)
    if place.machine.runtime is None:
        raise ValueError(f'{spec.key}: {place.generation} is on GKE only; use --backend gke')
    metadata = {'downscale-spec': str(state.folder_of(spec.run, spec) / 'spec.json'),
                'downscale-image': spec.image or ''}
    argv = [*_gcloud('create'), spec.name, f'--zone={zone}', '--async',
            f'--accelerator-type={place.accelerator_type}',
            f'--runtime-version={place.machine.runtime}', f'--{options.kind}',
            f'--labels={_pairs(labels(spec))}', f'--metadata={_pairs(metadata)}',
            f'--metadata-from-file={_pairs({"startup-script": options.script})}']
    argv += [f'--node-count={place.slices}', f'--node-prefix={spec.name}'] if place.slices > 1 \
        else [f'--node-id={spec.name}']
    if options.valid_for:
        argv.append(f'--valid-until-duration={options.valid_for}')
    if options.service_account:
        argv.append(f'--service-account={options.service_account}')
    return argv + ['--internal-ips'] * options.internal_ips


def list_command(zone):
    """Return the argv that lists a zone's queued resources."""
    return [*_gcloud('list'), f'--zone={zone}']


def describe_command(name, zone):
    """Return the argv that shows one queued resource."""
    return [*_gcloud('describe'), name, f'--zone={zone}']


def delete_command(name, zone):
    """Return the argv that deletes a queued resource with its machines."""
    return [*_gcloud('delete'), name, f'--zone={zone}', '--force', '--async']


def _gcloud(verb):
    return ['gcloud', 'compute', 'tpus', 'queued-resources', verb, '--quiet', '--format=json']


def _pairs(values):
    """Return NAME=VALUE pairs as gcloud takes them: where a value holds a comma, with another sign
    between them, which '^SIGN^' declares (`gcloud topic escaping`). ValueError where it holds them
    all.
    """
    pairs = [f'{name}={value}' for name, value in values.items()]
    for sign in SEPARATORS:
        if not any(sign in pair for pair in pairs):
            return sign.join(pairs) if sign == ',' else f'^{sign}^{sign.join(pairs)}'
    raise ValueError(f'{shown(pairs)} holds all of {SEPARATORS}, so that gcloud could not part it; '
                     'give --run another name')


def call(argv):
    """Return what gcloud answers, from JSON; RuntimeError in one line when it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
                              stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise ValueError('there is no gcloud; install the Google Cloud CLI and log in') from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f'gcloud {argv[4]} gave no answer in {TIMEOUT_SECONDS} s') from None
    if done.returncode:
        text = ' '.join(done.stderr.split()).rpartition('ERROR: ')[2]
        raise RuntimeError(f'gcloud {argv[4]}: {text[:400]}')
    return json.loads(done.stdout) if done.stdout.strip() else None


class TpuvmBackend:
    """The queued resources of a sweep in the zones of `options`."""
    poll = 30

    def __init__(self, options):
        self.options = options

    def observe(self, specs):
        """Return the `watch.Observed` of every resource of this run folder."""
        return resources(specs[0].group, self.options.zones)

    def create(self, spec, zone):
        """The resource of a job is asked for, or was already.

        ValueError when there is one of that name for another spec.
        """
        try:
            call(create_command(spec, self.options, zone))
        except RuntimeError as error:
            if not re.search('ALREADY_EXISTS|already exists', str(error)):
                raise
            found = _labels(call(describe_command(spec.name, zone))).get('downscale-spec')
            if found != spec.hash:
                raise ValueError(f'{spec.name} in {zone} is there for spec {found}, not '
                                 f'{spec.hash}; cancel it, then submit again') from None

    def delete(self, name, zone):
        """The resource is gone, or will be soon."""
        try:
            call(delete_command(name, zone))
        except RuntimeError as error:
            if 'NOT_FOUND' not in str(error):
                raise

    def close(self):
        """Machines run on without a watcher."""


def resources(group, zones):
    """Return the `watch.Observed` of every queued resource in `zones` with the label of a run
    folder.
    """
    with ThreadPoolExecutor(len(zones)) as pool:  # each takes a second or more
        found = pool.map(lambda zone: call(list_command(zone)) or [], zones)
        return [_observed(value, zone) for zone, values in zip(zones, found, strict=True)
                for value in values
                if _labels(value).get('downscale-run') == group]


def _labels(value):
    return value['tpu']['nodeSpec'][0]['node'].get('labels', {})


def _observed(value, zone):
    found = value['state']
    message = found.get('failedData', {}).get('error', {}).get('message', '')
    since = datetime.fromisoformat(value['createTime']).timestamp()
    return Observed(
        name=value['name'].rpartition('/')[2],
        hash=_labels(value).get('downscale-spec', ''),
        state=STATES.get(found['state'], 'pending'),
        since=since,
        zone=zone,
        message=' '.join(message.split()),
    )

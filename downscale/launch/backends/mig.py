"""Jobs on TPU slices of Compute Engine: a managed instance group each, through `gcloud`.

A job is a template (what its machines are), a group of them and, where they are several, a workload
policy, by which they form one slice; all three have its name. The template is made first and
deleted last, so what a call that was cut short has left is found by it. Nothing restarts a machine;
`watch.py` deletes a group that has lost one, and creates it again.
"""
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

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
from downscale.planner.hardware import Machine
from downscale.planner.topologies import Topology, topology

MODELS = {'spot': 'SPOT', 'on-demand': 'STANDARD', 'flex-start': 'FLEX_START',
          'reserved': 'RESERVATION_BOUND'}
IMAGE_PROJECT = 'ubuntu-os-accelerator-images'
DISK_GB = 200  # that of the image, 10 GB, could not hold the image of a job
# gcloud of 2025 and before cannot say that machines are made all at once, or by flex-start.
TOO_OLD = 'unrecognized arguments|Invalid choice'
# A machine that is told to stop has time to save, and counts as running until it has stopped.
RUNNING = ('RUNNING', 'STOPPING', 'PENDING_STOP', 'SUSPENDING')
LOST = ('STOPPED', 'SUSPENDED', 'TERMINATED', 'DEPROVISIONING')
# Errors of a group that goes on waiting for machines; any other will not go away by waiting.
WAITING = 'EXHAUSTED|VM_MIN_COUNT_NOT_REACHED|STOCKOUT|UNAVAILABLE'
UNITS = {'d': 86400, 'h': 3600, 'm': 60, 's': 1}
LEAST_SECONDS = 10 * UNITS['m']  # what a flex-start machine may run, and below at most
WEEK_SECONDS = 7 * UNITS['d']


@dataclass(frozen=True, kw_only=True)
class MigOptions(VmOptions):
    """How machines are asked for; `capacity` is one of `MODELS`.

    Those of a `reservation` are 'reserved'; 'flex-start' ones are deleted after `max_run_duration`.
    """
    capacity: str = 'spot'
    reservation: str | None = None
    max_run_duration: str = '7d'


def seconds(text: str) -> int:
    """Return the seconds of a duration as '7d', '12h' or '1d12h'; ValueError for another text."""
    parts = re.findall(r'(\d+)([dhms])', text)
    if not parts or ''.join(number + unit for number, unit in parts) != text:
        raise ValueError(f'{text!r} is no duration; write 7d, 12h or 1d12h')
    return sum(int(number) * UNITS[unit] for number, unit in parts)


def refuse(name: str) -> None:
    """Raise ValueError in one line for a topology of which Compute Engine forms no group."""
    place = topology(name)
    if place.machine.image is None:
        raise ValueError(f'{name}: {place.generation} not by mig: use gke, or tpuvm (legacy) where '
                         'you have quota')
    if place.slices > 1:
        raise ValueError(f'{name}: a group of --backend mig is one slice; use --backend gke for '
                         'several')
    _machine_type(place)


def _machine_type(place: Topology) -> str:
    """Return the type of the machines of a slice; ValueError in one line where there is none."""
    machine: Machine = place.machine
    chips = str(place.chips // place.hosts)
    if chips not in machine.types:
        raise ValueError(f'{place.name}: Compute Engine has no machine of {chips} '
                         f'{place.generation} chip; take a larger topology')
    return machine.types[chips]


# --- what is made -----------------------------------------------------------------------------

def template_command(spec: Spec, options: MigOptions, zone: str) -> list[str]:
    """Return the argv that makes the template of a job's machines.

    ValueError in one line for a topology that Compute Engine does not have.
    """
    refuse_this_machine(spec)
    refuse(spec.topology)
    place = topology(spec.topology)
    # Which zone its group is in must be found by the template, which is in none.
    found_by = labels(spec) | {'downscale-job': spec.name, 'downscale-zone': zone}
    argv = [*command('instance-templates', 'create'), spec.name,
            f'--machine-type={_machine_type(place)}', f'--image-project={IMAGE_PROJECT}',
            f'--image-family={place.machine.image}', f'--boot-disk-size={DISK_GB}GB',
            '--maintenance-policy=TERMINATE', f'--provisioning-model={MODELS[options.capacity]}',
            f'--labels={pairs(found_by)}', *startup_flags(spec, options),
            # Without it a machine could neither read the bucket nor pull the image.
            '--scopes=cloud-platform']
    if options.capacity != 'on-demand':
        argv.append('--instance-termination-action=DELETE')
    if options.capacity == 'flex-start':
        argv += [f'--max-run-duration={options.max_run_duration}', '--reservation-affinity=none']
    if options.reservation:
        argv += ['--reservation-affinity=specific', f'--reservation={options.reservation}']
    if options.service_account:
        argv.append(f'--service-account={options.service_account}')
    if options.internal_ips:
        argv.append('--no-address')
    return argv


def policy_command(spec: Spec, zone: str) -> list[str]:
    """Return the argv that makes the workload policy of a slice of several machines."""
    return [*command('resource-policies', 'create', 'workload-policy'), spec.name,
            f'--region={region_of(zone)}', '--type=HIGH_THROUGHPUT',
            f'--accelerator-topology={topology(spec.topology).shape}']


def group_command(spec: Spec, options: MigOptions, zone: str, policy: str | None) -> list[str]:
    """Return the argv that makes the group; `policy` is the URL of its workload policy."""
    hosts = topology(spec.topology).hosts
    argv = [*command('instance-groups', 'managed', 'create'), spec.name, f'--zone={zone}',
            f'--template={spec.name}', f'--size={hosts}',
            # A machine alone is no slice, so the watcher makes the whole group anew.
            '--default-action-on-vm-failure=do-nothing']
    # All at once, as a slice must be and flex-start may be: the group waits until it has them all.
    if hosts > 1 or options.capacity == 'flex-start':
        argv.append('--target-size-policy-mode=bulk')
    if policy:
        argv.append(f'--workload-policy={policy}')
    return argv


def create_commands(spec: Spec, options: MigOptions, zone: str,
                    project: str = 'PROJECT') -> list[list[str]]:
    """Return every argv that asks for the machines of a job, in order."""
    template = template_command(spec, options, zone)
    if topology(spec.topology).hosts == 1:
        return [template, group_command(spec, options, zone, None)]
    policy = f'projects/{project}/regions/{region_of(zone)}/resourcePolicies/{spec.name}'
    return [template, policy_command(spec, zone), group_command(spec, options, zone, policy)]


def delete_commands(name: str, zone: str) -> list[list[str]]:
    """Return every argv that deletes what a job has, in order: each is in use by the one before."""
    return [[*command('instance-groups', 'managed', 'delete'), name, f'--zone={zone}'],
            [*command('resource-policies', 'delete'), name, f'--region={region_of(zone)}'],
            [*command('instance-templates', 'delete'), name]]


def region_of(zone: str) -> str:
    """Return the region of a zone; that of a placeholder is REGION."""
    return zone.rpartition('-')[0] or 'REGION'


# --- what is there ----------------------------------------------------------------------------

class MigBackend:
    """The groups of a run folder."""
    poll = 30.0

    def __init__(self, options: MigOptions) -> None:
        self.options = options

    def observe(self, specs: Sequence[Spec]) -> list[Observed]:
        """Return the `watch.Observed` of every job of this run folder, whatever zone it is in."""
        run = specs[0].group
        templates = [value for value in call(command('instance-templates', 'list')) or []
                     if _labels(value).get('downscale-run') == run]
        zones = sorted({_labels(value)['downscale-zone'] for value in templates})
        groups = {}
        machines = {}
        for zone, (listed, instances) in zip(zones, _in_each(zones), strict=True):
            groups |= {(zone, group['name']): group for group in listed}
            for instance in instances:
                job = instance.get('labels', {}).get('downscale-job')
                machines.setdefault((zone, job), []).append(instance)
        observed = []
        for template in templates:
            key = (_labels(template)['downscale-zone'], template['name'])
            observed.append(self._observed(template, groups.get(key), machines.get(key, [])))
        return observed

    def _observed(self, template, group, machines):
        """Return the `watch.Observed` of a job, from its parts."""
        shown, since, message = _state(group, machines) if group else (
            'failed', template['creationTimestamp'], 'there is a template without its group')
        if shown == 'pending':
            message = _why(group)
            if message and not re.search(WAITING, message):
                shown = 'failed'
            # Machines that have run once no longer wait for their first start.
            valid = self.options.valid_for
            started = any(machine.get('lastStartTimestamp') for machine in machines)
            if valid and not started and time.time() > _unix(since) + seconds(valid):
                shown = 'failed'
                message = f'no machines in {valid} {message}'.rstrip()
        return Observed(name=template['name'], zone=_labels(template)['downscale-zone'],
                        hash=_labels(template).get('downscale-spec', ''), state=shown,
                        since=_unix(since), message=message)

    def create(self, spec: Spec, zone: str) -> None:
        """Make template, policy and group of a job, unless they are there.

        ValueError when there are some of that name for another spec.
        """
        commands = self.commands_of(spec, zone)
        if _made(commands[0]) is None:
            _refuse_other(spec, zone)
        if len(commands) == 3:
            policy = _made(commands[1]) or call(
                [*command('resource-policies', 'describe'), spec.name,
                 f'--region={region_of(zone)}'])
            # The answer to a creation is a list of what was made.
            link = (policy[0] if isinstance(policy, list) else policy)['selfLink']
            words = [word for word in commands[2] if not word.startswith('--workload-policy=')]
            commands = [*commands[:2], [*words, f'--workload-policy={link}']]
        _made(commands[-1])

    def commands_of(self, spec: Spec, zone: str) -> list[list[str]]:
        """Return the commands that ask for the machines of a job."""
        return create_commands(spec, self.options, zone)

    def delete(self, name: str, zone: str) -> None:
        """Delete the group with its machines and what it was made of, unless they are gone."""
        for argv in delete_commands(name, zone):
            try:
                call(argv)
            except RuntimeError as error:
                # Gone is what was wanted: someone else was quicker.
                if 'was not found' not in str(error):
                    raise

    def close(self) -> None:
        """Do nothing, as machines run on without a watcher."""


def _in_each(zones):
    """Return (groups, machines) of each zone."""
    argvs = []
    for zone in zones:
        argvs += [[*command('instance-groups', 'managed', 'list'), f'--zones={zone}'],
                  [*command('instances', 'list'), f'--zones={zone}']]
    if not argvs:
        return []
    with ThreadPoolExecutor(len(argvs)) as pool:  # each takes a second or more
        listed = [answer or [] for answer in pool.map(call, argvs)]
    return list(zip(listed[::2], listed[1::2], strict=True))


def _made(argv):
    """Return what gcloud answers to a creation, None when what it makes is there already."""
    try:
        return call(argv) or []
    except RuntimeError as error:
        if re.search(TOO_OLD, str(error)):
            raise ValueError(f'{error}; this gcloud is too old for --backend mig: '
                             'gcloud components update') from None
        # Its own earlier request, whose answer was lost, is as good as a new one.
        if 'already exists' not in str(error):
            raise
        return None


def _refuse_other(spec, zone):
    """Raise an error where the template of a job's name is not that of this spec and zone."""
    there = _labels(call([*command('instance-templates', 'describe'), spec.name]))
    if there.get('downscale-spec') != spec.hash:
        raise ValueError(f'{spec.name} is there for spec {there.get("downscale-spec")}, not '
                         f'{spec.hash}; cancel it, then submit again')
    if there['downscale-zone'] != zone:
        raise RuntimeError(f'{spec.name} is left over in {there["downscale-zone"]}; the next look '
                           'deletes it')


def _labels(template: dict[str, Any]) -> dict[str, str]:
    return template['properties'].get('labels', {})


def _state(group, machines):
    """Return (state, since when, what it lacks) of a group, by what its machines are doing."""
    actions = group.get('currentActions', {})
    statuses = {machine['name']: machine['status'] for machine in machines}
    since = group['creationTimestamp']
    lost = [f'{name} is {status}' for name, status in statuses.items() if status in LOST]
    running = [status for status in statuses.values() if status in RUNNING]
    if actions.get('deleting'):
        return 'deleting', since, ''
    if lost:
        return 'suspended', since, ', '.join(lost)
    if running and len(running) == group['targetSize']:
        # What waited for machines costs nothing and has begun nothing until they start.
        since = max(machine.get('lastStartTimestamp') or machine['creationTimestamp']
                    for machine in machines)
        return 'running', since, ''
    creating = sum(actions.get(name, 0) for name in ('creating', 'creatingWithoutRetries'))
    missing = group['targetSize'] - len(statuses)
    if missing and not creating:
        return 'suspended', since, f'{missing} of its {group["targetSize"]} machines are gone'
    return 'pending', since, ''


def _why(group):
    """Return why a group has no machines yet, as far as it says."""
    bulk = group.get('status', {}).get('bulkInstanceOperation', {})
    errors = bulk.get('lastProgressCheck', {}).get('error', {}).get('errors', [])
    if not errors:
        for machine in call([*command('instance-groups', 'managed', 'list-instances'),
                             group['name'], f'--zone={group["zone"].rpartition("/")[2]}']) or []:
            errors += machine.get('lastAttempt', {}).get('errors', {}).get('errors', [])
    texts = dict.fromkeys(f'{error["code"]}: {error.get("message", "")}' for error in errors)
    return ' '.join('; '.join(texts).split())


def _unix(text):
    return datetime.fromisoformat(text).timestamp()

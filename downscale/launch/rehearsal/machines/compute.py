"""A Compute Engine of one process: templates, workload policies, groups and their machines.

It refuses what the real one is known to refuse of TPU groups: a topology without the bulk mode, a
policy that is no URL, a size that is not that of the topology, a deletion of what is in use.
"""
import math
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from downscale.launch.backends.mig import IMAGE_PROJECT
from downscale.launch.rehearsal.machines.request import (
    GoogleApi,
    JsonHandler,
    MachineRequest,
    problem_of,
)
from downscale.planner import hardware
from downscale.planner.topologies import SHAPES

GROUPS = 'instanceGroupManagers'
TEMPLATES = 'instanceTemplates'
POLICIES = 'resourcePolicies'
COLLECTIONS = f'{TEMPLATES}|{POLICIES}|{GROUPS}'
SCOPE = 'https://www.googleapis.com/auth/cloud-platform'
EXHAUSTED = 'ZONE_RESOURCE_POOL_EXHAUSTED'
MACHINES = [hardware.machine(generation) for generation in SHAPES]
TYPES = {name for machine in MACHINES for name in machine.types.values()}
IMAGES = {machine.image for machine in MACHINES if machine.image}


class Compute(GoogleApi):
    """The API; `things` is {(collection, name): value}, `calls` [(verb, collection, name, zone)].

    `calls` are those that change something, `machines` is {name of a group: {machine: value}}, and
    `refuse` the message that every creation of a group gets.
    """

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.things = {}
        self.calls = []
        self.machines = {}
        self.refuse = None

    @property
    def root(self) -> str:
        """The address that gcloud is led to."""
        return f'http://127.0.0.1:{self.server_port}/compute/v1/'

    def names(self, collection: str) -> list[str]:
        """Return the names of all things of a collection."""
        return sorted(name for kind, name in self.things if kind == collection)

    def left(self) -> dict[str, str]:
        """Return {name: what there is of it, in words} of all things."""
        words = {GROUPS: 'group', POLICIES: 'workload policy', TEMPLATES: 'template'}
        left = {}
        for collection, name in self.things:
            left.setdefault(name, []).append(words[collection])
        return {name: ', '.join(parts) for name, parts in left.items()}

    def group(self, name: str) -> dict[str, Any]:
        """Return the group of this name."""
        return self.things[GROUPS, name]

    def template(self, name: str) -> dict[str, Any]:
        """Return the properties of a template."""
        return self.things[TEMPLATES, name]['properties']

    def requests(self) -> list[MachineRequest]:
        """Return the `MachineRequest` of each group that there is."""
        return [self._request(name) for name in self.names(GROUPS)]

    def _request(self, name):
        group = self.group(name)
        properties = self.template(_last(group['instanceTemplate']))
        scopes = [scope for account in properties.get('serviceAccounts', [])
                  for scope in account.get('scopes', [])]
        return MachineRequest(
            name=name, slices=1, hosts=group['targetSize'], chips=chips_of(properties),
            metadata=_metadata(properties), installed=(), authorised=SCOPE in scopes,
            deleted=properties['scheduling'].get('instanceTerminationAction') == 'DELETE',
            leaving='deleting' in group.get('currentActions', {}))

    def show(self, name: str, statuses: Sequence[str | None]) -> None:
        """Show the machines of a group in these states of Compute Engine; None is one that is gone.
        """
        group = self.group(name)
        if 'deleting' not in group['currentActions']:
            group['currentActions'] = {'none': group['targetSize']}
        before = self.machines.get(name, {})
        self.machines[name] = {}
        for index, status in enumerate(statuses):
            machine = f'{name}-{index:04x}'
            if status is not None:
                self.machines[name][machine] = before.get(machine, {
                    'name': machine, 'zone': _last(group['zone']),
                    'labels': self.template(name)['labels'], **stamps(status)}) | {'status': status}

    def wait(self, name: str, message: str, code: str = EXHAUSTED) -> None:
        """Say why a group has no machines yet."""
        error = {'errors': [{'code': code, 'message': message}]}
        if self.group(name).get('targetSizePolicy', {}).get('mode') == 'BULK':
            self.group(name)['status'] = {'bulkInstanceOperation': {
                'inProgress': True, 'lastProgressCheck': {'error': error}}}
        else:
            self.group(name)['attempts'] = [{
                'instance': f'{name}-0000', 'currentAction': 'CREATING',
                'lastAttempt': {'errors': error}}]


def stamps(status: str) -> dict[str, str]:
    """Return when a thing was made and, where it runs, started: now."""
    now = datetime.now(UTC).isoformat()
    return {'creationTimestamp': now} | ({'lastStartTimestamp': now} if status == 'RUNNING' else {})


def chips_of(properties: dict[str, Any]) -> int:
    """Return the chips of a machine of a template."""
    return int(re.search(r'-(\d+)t$', properties['machineType'])[1])


def _metadata(properties):
    return {item['key']: item['value']
            for item in properties.get('metadata', {}).get('items', [])}


def _last(path):
    return path.rpartition('/')[2]


class _Handler(JsonHandler):
    # pyrefly: ignore[bad-override-mutable-attribute]
    server: Compute

    def _fail(self, code, reason, message):
        self.answer({'error': {'code': code, 'message': message, 'errors': [
            {'reason': reason, 'message': message, 'domain': 'global'}]}}, code)

    def _any(self):
        path = self.path.partition('?')[0].removeprefix('/compute/v1/')
        body = self.body()
        # A deletion waits for machines, and others must be heard meanwhile.
        if self.command == 'DELETE' and f'/{GROUPS}/' in path:
            self._leave(_last(path))
        with self.server.lock:
            self._route(path, body)

    def _leave(self, name):
        """Wait until the machines of a group that is deleted have stopped."""
        with self.server.lock:
            group = self.server.things.get((GROUPS, name))
            if group is None:
                return
            group['currentActions'] = {'deleting': group['targetSize']}
        while not self.server.stopped(name):
            time.sleep(0.05)

    def _route(self, path, body):
        match = re.fullmatch(rf'(projects/[^/]+/.*?)({COLLECTIONS})/?([^/]*)', path)
        if path.startswith(f'projects/{IMAGE_PROJECT}/'):
            if _last(path) not in IMAGES:
                self._fail(404, 'notFound', f"The resource '{path}' was not found")
            else:
                self.answer({'name': 'image', 'selfLink': self.server.root + path})
        elif path.endswith('/listManagedInstances'):
            self.answer({'managedInstances': self.server.group(
                path.split('/')[-2]).get('attempts', [])})
        elif path.endswith('/instances'):
            self.answer({'items': [
                machine for group in self.server.machines.values() for machine in group.values()
                if machine['zone'] == path.split('/')[-2]]})
        elif match and '/aggregated/' in match[1]:
            self.answer({'items': {'global': {match[2]: [
                value for (kind, _), value in self.server.things.items() if kind == match[2]]}}})
        elif match:
            self._thing(path, match.groups(), body)
        else:  # a zone, its autoscalers
            self.answer({'name': _last(path)})

    def _thing(self, path, parts, body):
        """List, make, show or delete one thing."""
        scope, kind, name = parts
        server = self.server
        zone = _last(scope.rstrip('/'))
        name = name or body.get('name', '')
        if self.command != 'GET':
            server.calls.append((self.command, kind, name, zone))
        if self.command == 'GET' and not name:
            self.answer({'items': [
                value for (other, _), value in server.things.items()
                if other == kind and value['scope'] == scope]})
        elif self.command == 'POST':
            self._make(scope, kind, name, body)
        elif (kind, name) not in server.things or server.things[kind, name]['scope'] != scope:
            self._fail(404, 'notFound', f"The resource '{path}' was not found")
        elif self.command == 'DELETE':
            self._delete(scope, kind, name, path)
        else:
            self.answer(server.things[kind, name])

    def _make(self, scope, kind, name, body):
        server = self.server
        path = f'{scope}{kind}/{name}'
        problem = {GROUPS: self._problem_of_group, TEMPLATES: _problem_of_template}.get(
            kind, lambda body: None)(body)
        if (kind, name) in server.things:
            self._fail(409, 'alreadyExists', f"The resource '{path}' already exists")
        elif problem:
            server.refusals.append((name, problem))
            self._fail(400, 'invalid', problem)
        else:
            server.things[kind, name] = body | stamps('') | {
                'scope': scope, 'selfLink': server.root + path}
            if kind == GROUPS:
                server.group(name)['currentActions'] = {'creating': body['targetSize']}
                server.group(name)['zone'] = server.root + scope.rstrip('/')
            self._done(scope, path)

    def _problem_of_group(self, body):
        """Return what the real one says of a group that it does not make."""
        name = _last(body['instanceTemplate'])
        if (TEMPLATES, name) not in self.server.things:
            return f"The resource 'instanceTemplates/{name}' was not found"
        template = self.server.template(name)
        bulk = body.get('targetSizePolicy', {}).get('mode') == 'BULK'
        model = template['scheduling'].get('provisioningModel')
        link = body.get('resourcePolicies', {}).get('workloadPolicy')
        if self.server.refuse:
            return self.server.refuse
        if model == 'FLEX_START' and not ('maxRunDuration' in template['scheduling'] and bulk):
            return 'flex-start needs a run duration and the bulk mode'
        if body.get('instanceLifecyclePolicy', {}).get('defaultActionOnFailure') != 'DO_NOTHING':
            return 'repairs must be off'
        if link is None:
            return None if body['targetSize'] == 1 else 'machines without a policy are no slice'
        if not bulk:
            return 'MIGs with TPU accelerator topology require BULK mode in target size policy'
        if '/' not in link:
            return "Invalid value for field 'resource.resourcePolicies': The URL is malformed."
        if (POLICIES, _last(link)) not in self.server.things:
            return f"The resource 'resourcePolicies/{_last(link)}' was not found"
        policy = self.server.things[POLICIES, _last(link)]['workloadPolicy']
        chips = math.prod(map(int, policy['acceleratorTopology'].split('x')))
        if chips != body['targetSize'] * chips_of(template):
            return f'{body["targetSize"]} machines are no {policy["acceleratorTopology"]}'
        return None

    def _delete(self, scope, kind, name, path):
        server = self.server
        if kind != GROUPS and (GROUPS, name) in server.things:
            return self._fail(400, 'resourceInUseByAnotherResource',
                              f"The resource '{path}' is already being used by a group")
        del server.things[kind, name]
        if kind == GROUPS:
            server.machines.pop(name, None)
        return self._done(scope, path)

    def _done(self, scope, path):
        where = {'regions': 'region', 'zones': 'zone'}.get(scope.split('/')[-3])
        self.answer(({where: self.server.root + scope.rstrip('/')} if where else {}) | {
            'kind': 'compute#operation', 'name': 'operation', 'status': 'DONE',
            'operationType': {'POST': 'insert', 'DELETE': 'delete'}[self.command],
            'targetLink': self.server.root + path,
            'selfLink': f'{self.server.root}{scope}operations/operation'})

    do_GET = do_POST = do_DELETE = _any


def _problem_of_template(body):
    """Return what the real one says of a template that it does not make."""
    properties = body['properties']
    scheduling = properties.get('scheduling', {})
    if properties['machineType'] not in TYPES:
        return f"Invalid value for field 'machineType': '{properties['machineType'][:80]}'"
    if scheduling.get('onHostMaintenance') != 'TERMINATE':
        return 'machines with TPUs cannot migrate; onHostMaintenance must be TERMINATE'
    if scheduling.get('provisioningModel') == 'STANDARD' and scheduling.get(
            'instanceTerminationAction') and 'maxRunDuration' not in scheduling:
        return 'instanceTerminationAction is for machines that end: spot, flex-start, or of a time'
    return problem_of(body['name'], properties.get('labels', {}), _metadata(properties))

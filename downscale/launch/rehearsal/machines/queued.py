"""A TPU API of one process: queued resources are created, listed, shown and deleted."""
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from downscale.launch.rehearsal.machines.request import (
    GoogleApi,
    JsonHandler,
    MachineRequest,
    problem_of,
)
from downscale.planner.topologies import SHAPES, topology

PLACES = [topology(f'{generation}:{shape}')
          for generation, shapes in SHAPES.items() for shape in shapes]
# What one accelerator is called: a slice and the version of its machines' software.
SLICES = {place.accelerator_type: place for place in reversed(PLACES) if place.machine.runtime}

PATH = re.compile(r'/v2\w*/(projects/[^/]+/locations/([^/]+))/queuedResources/?([^/]*)')


class Queued(GoogleApi):
    """The API; `resources` is {(zone, id): value}, `calls` [(verb, zone, id, query)].

    `refuse` is the message of a quota error that every creation gets.
    """

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.resources = {}
        self.calls = []
        self.refuse = None

    @property
    def root(self) -> str:
        """The address that gcloud is led to."""
        return f'http://127.0.0.1:{self.server_port}/'

    def left(self) -> dict[str, str]:
        """Return {name: 'queued resource'} of all resources."""
        return {name: 'queued resource' for _, name in self.resources}

    def set(self, name: str, state: str, message: str = '') -> None:
        """Put a resource into another state."""
        for (_, other), value in self.resources.items():
            if other == name:
                value['state'] = {'state': state} | (
                    {'failedData': {'error': {'code': 8, 'message': message}}} if message else {})

    def requests(self) -> list[MachineRequest]:
        """Return what each resource that there is asks for, and forget those that have gone."""
        for key, value in list(self.resources.items()):
            if value['state']['state'] == 'DELETING' and self.stopped(key[1]):
                del self.resources[key]
        return [_request(name, value) for (_, name), value in self.resources.items()]

    def show(self, name: str, statuses: Sequence[str | None]) -> None:
        """Show a resource by the states of its machines, as Compute Engine names them."""
        value = next(value for (_, other), value in self.resources.items() if other == name)
        if value['state']['state'] == 'DELETING':
            return
        # All machines of a slice go with one of them.
        gone = [status in (None, 'TERMINATED') for status in statuses]
        lost = any(gone) or 'STOPPING' in statuses
        state = 'SUSPENDING' if lost else 'ACTIVE'
        if all(gone):
            state = 'SUSPENDED'
        value['state'] = {'state': state}

    def wait(self, name: str, message: str) -> None:
        """Let a resource wait; the API does not say why."""
        del message
        self.set(name, 'WAITING_FOR_RESOURCES')


def _request(name, value):
    spec = value['tpu']['nodeSpec'][0]
    place = SLICES[spec['node']['acceleratorType']]
    several = spec.get('multisliceParams') or spec.get('multiNodeParams') or {}
    return MachineRequest(
        name=name, slices=int(several.get('nodeCount', 1)), hosts=place.hosts,
        chips=place.chips // place.hosts, metadata=spec['node'].get('metadata', {}),
        installed=('docker', 'gcloud'), leaving=value['state']['state'] == 'DELETING')


class _Handler(JsonHandler):
    # pyrefly: ignore[bad-override-mutable-attribute]
    server: Queued

    def _fail(self, code, status, message):
        self.answer({'error': {'code': code, 'status': status, 'message': message}}, code)

    def _any(self):
        url = urlsplit(self.path)
        parent, zone, name = PATH.fullmatch(url.path).groups()
        query = {key: value[0] for key, value in parse_qs(url.query).items()}
        body = self.body()
        name = name or query.get('queuedResourceId', '')
        with self.server.lock:
            self.server.calls.append((self.command, zone, name, query))
            self._resource(parent, (zone, name), body)

    def _resource(self, parent, key, body):
        """List, make, show or delete queued resources."""
        server = self.server
        zone, name = key
        done = {'name': f'{parent}/operations/1', 'done': True}
        if self.command == 'GET' and not name:
            self.answer({'queuedResources': [
                value for (place, _), value in server.resources.items() if place == zone]})
        elif self.command == 'POST' and server.refuse:
            self._fail(429, 'RESOURCE_EXHAUSTED', server.refuse)
        elif self.command == 'POST' and key in server.resources:
            self._fail(409, 'ALREADY_EXISTS', f'Resource {name} already exists')
        elif self.command == 'POST':
            problem = _problem(name, body['tpu']['nodeSpec'])
            if problem:
                server.refusals.append((name, problem))
                self._fail(400, 'INVALID_ARGUMENT', problem)
                return
            server.resources[key] = body | {
                'name': f'{parent}/queuedResources/{name}', 'createTime':
                datetime.now(UTC).isoformat(), 'state': {'state': 'WAITING_FOR_RESOURCES'}}
            self.answer(done)
        elif key not in server.resources:
            self._fail(404, 'NOT_FOUND', f'Resource {name} was not found')
        elif self.command == 'DELETE':
            self._delete(key)
            self.answer(done)
        else:
            self.answer(server.resources[key])

    def _delete(self, key):
        """Delete a resource, at once where it has no machines that must stop before."""
        if self.server.stopped(key[1]):
            del self.server.resources[key]
        else:
            self.server.resources[key]['state'] = {'state': 'DELETING'}

    do_GET = do_POST = do_DELETE = _any


def _problem(name, specs):
    """Return what the real one says of a resource that it does not make."""
    node = specs[0]['node']
    place = SLICES.get(node.get('acceleratorType'))
    if place is None:
        return f'Accelerator type {str(node.get("acceleratorType"))[:80]} is not known'
    if node.get('runtimeVersion') != place.machine.runtime:
        return (f'Runtime version {str(node.get("runtimeVersion"))[:80]} is not for '
                f'{node["acceleratorType"]}, but {place.machine.runtime}')
    return problem_of(name, node.get('labels', {}), node.get('metadata', {}))

"""A Compute Engine of one process: templates, workload policies, groups and their machines.

It refuses what the real one is known to refuse of TPU groups: a topology without the bulk mode, a
policy that is no URL, a size that is not that of the topology, a deletion of what is in use.
"""
import functools
import json
import math
import re
import shutil
import subprocess
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from downscale.launch.backends.mig import IMAGE_PROJECT

COLLECTIONS = 'instanceTemplates|resourcePolicies|instanceGroupManagers'


class FakeCompute(ThreadingHTTPServer):
    """`things` {(collection, name): value}; `calls` [(verb, collection, name)] of what changes
    something; `machines` {name of a group: {machine: value}}; `refuse` is the message that every
    creation of a group gets."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.things, self.calls, self.machines, self.refuse = {}, [], {}, None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def root(self):
        return f'http://127.0.0.1:{self.server_port}/compute/v1/'

    def names(self, collection):
        return sorted(name for kind, name in self.things if kind == collection)

    def made(self):
        """(name, zone) of every group that was asked for, refused ones too."""
        return [call[2:] for call in self.calls if call[:2] == ('POST', 'instanceGroupManagers')]

    def group(self, name):
        return self.things['instanceGroupManagers', name]

    def template(self, name):
        return self.things['instanceTemplates', name]['properties']

    def start(self, name, status='RUNNING'):
        """All machines of a group are there, in this state."""
        group = self.group(name)
        group['currentActions'] = {'none': group['targetSize']}
        zone = group['zone'].rpartition('/')[2]
        self.machines[name] = {f'{name}-{index:04x}': {
            'name': f'{name}-{index:04x}', 'status': status, 'zone': zone,
            'labels': self.template(name)['labels'], **stamps(status)}
            for index in range(group['targetSize'])}

    def lose(self, name):
        """One machine of a group is gone."""
        self.machines[name].popitem()

    def fail(self, name, code, message):
        """A group has no machines yet, for this reason."""
        error = {'errors': [{'code': code, 'message': message}]}
        if self.group(name).get('targetSizePolicy', {}).get('mode') == 'BULK':
            self.group(name)['status'] = {'bulkInstanceOperation': {
                'inProgress': True, 'lastProgressCheck': {'error': error}}}
        else:
            self.group(name)['attempts'] = [{
                'instance': f'{name}-0000', 'currentAction': 'CREATING',
                'lastAttempt': {'errors': error}}]


def stamps(status):
    now = datetime.now(UTC).isoformat()
    return {'creationTimestamp': now} | ({'lastStartTimestamp': now} if status == 'RUNNING' else {})


def chips_of(properties):
    return int(re.search(r'-(\d+)t$', properties['machineType'])[1])


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _answer(self, code, value):
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _fail(self, code, reason, message):
        self._answer(code, {'error': {'code': code, 'message': message, 'errors': [
            {'reason': reason, 'message': message, 'domain': 'global'}]}})

    def _any(self):
        path = self.path.partition('?')[0].removeprefix('/compute/v1/')
        body = json.loads(self.rfile.read(int(self.headers.get('Content-Length') or 0)) or '{}')
        match = re.fullmatch(rf'(projects/[^/]+/.*?)({COLLECTIONS})/?([^/]*)', path)
        if path.startswith(f'projects/{IMAGE_PROJECT}/'):
            self._answer(200, {'name': 'image', 'selfLink': self.server.root + path})
        elif path.endswith('/listManagedInstances'):
            self._answer(200, {'managedInstances': self.server.group(
                path.split('/')[-2]).get('attempts', [])})
        elif path.endswith('/instances'):
            self._answer(200, {'items': [
                machine for group in self.server.machines.values() for machine in group.values()
                if machine['zone'] == path.split('/')[-2]]})
        elif match and '/aggregated/' in match[1]:
            self._answer(200, {'items': {'global': {match[2]: [
                value for (kind, _), value in self.server.things.items() if kind == match[2]]}}})
        elif match:
            self._thing(path, *match.groups(), body)
        else:  # a zone, its autoscalers
            self._answer(200, {'name': path.rpartition('/')[2]})

    def _thing(self, path, scope, kind, name, body):
        """List, make, show or delete one thing."""
        server = self.server
        zone = scope.rstrip('/').rpartition('/')[2]
        name = name or body.get('name', '')
        if self.command != 'GET':
            server.calls.append((self.command, kind, name, zone))
        if self.command == 'GET' and not name:
            self._answer(200, {'items': [
                value for (other, _), value in server.things.items()
                if other == kind and value['scope'] == scope]})
        elif self.command == 'POST':
            self._make(scope, kind, name, body)
        elif (kind, name) not in server.things or server.things[kind, name]['scope'] != scope:
            self._fail(404, 'notFound', f"The resource '{path}' was not found")
        elif self.command == 'DELETE':
            self._delete(scope, kind, name, path)
        else:
            self._answer(200, server.things[kind, name])

    def _make(self, scope, kind, name, body):
        server = self.server
        path = f'{scope}{kind}/{name}'
        problem = self._problem(body) if kind == 'instanceGroupManagers' else None
        if (kind, name) in server.things:
            self._fail(409, 'alreadyExists', f"The resource '{path}' already exists")
        elif problem:
            self._fail(400, 'invalid', problem)
        else:
            server.things[kind, name] = body | stamps('') | {
                'scope': scope, 'selfLink': server.root + path}
            if kind == 'instanceGroupManagers':
                server.group(name)['currentActions'] = {'creating': body['targetSize']}
                server.group(name)['zone'] = server.root + scope.rstrip('/')
            self._done(scope, path)

    def _problem(self, body):
        """What the real one says of a group that it does not make."""
        template = self.server.template(body['instanceTemplate'].rpartition('/')[2])
        bulk = body.get('targetSizePolicy', {}).get('mode') == 'BULK'
        model = template['scheduling'].get('provisioningModel')
        link = body.get('resourcePolicies', {}).get('workloadPolicy')
        if self.server.refuse:
            return self.server.refuse
        if model == 'FLEX_START' and not ('maxRunDuration' in template['scheduling'] and bulk):
            return 'flex-start needs a run duration and the bulk mode'
        if body['instanceLifecyclePolicy']['defaultActionOnFailure'] != 'DO_NOTHING':
            return 'repairs must be off'
        if link is None:
            return None if body['targetSize'] == 1 else 'machines without a policy are no slice'
        if not bulk:
            return 'MIGs with TPU accelerator topology require BULK mode in target size policy'
        if '/' not in link:
            return "Invalid value for field 'resource.resourcePolicies': The URL is malformed."
        policy = self.server.things['resourcePolicies', link.rpartition('/')[2]]['workloadPolicy']
        chips = math.prod(map(int, policy['acceleratorTopology'].split('x')))
        if chips != body['targetSize'] * chips_of(template):
            return f'{body["targetSize"]} machines are no {policy["acceleratorTopology"]}'
        return None

    def _delete(self, scope, kind, name, path):
        server = self.server
        if kind != 'instanceGroupManagers' and ('instanceGroupManagers', name) in server.things:
            return self._fail(400, 'resourceInUseByAnotherResource',
                              f"The resource '{path}' is already being used by a group")
        del server.things[kind, name]
        if kind == 'instanceGroupManagers':
            server.machines.pop(name, None)
        return self._done(scope, path)

    def _done(self, scope, path):
        where = {'regions': 'region', 'zones': 'zone'}.get(scope.split('/')[-3])
        self._answer(200, ({where: self.server.root + scope.rstrip('/')} if where else {}) | {
            'kind': 'compute#operation', 'name': 'operation', 'status': 'DONE',
            'operationType': {'POST': 'insert', 'DELETE': 'delete'}[self.command],
            'targetLink': self.server.root + path,
            'selfLink': f'{self.server.root}{scope}operations/operation'})

    do_GET = do_POST = do_DELETE = _any


@functools.cache
def track_of(gcloud):
    """The release track of gcloud that can ask for all machines of a group at once: those of 2025
    could in alpha only."""
    text = subprocess.run([gcloud, 'compute', 'instance-groups', 'managed', 'create', '--help'],
                          capture_output=True, text=True, check=True).stdout
    return [] if 'target-size-policy-mode' in text.replace('\b', '') else ['alpha']


def gcloud_folder(folder):
    """A folder with a `gcloud` that is the real one, with the track that it needs."""
    gcloud = shutil.which('gcloud')
    script = Path(folder) / 'gcloud'
    script.write_text(f'#!/bin/bash\nexec {gcloud} {" ".join(track_of(gcloud))} "$@"\n')
    script.chmod(0o755)
    return str(folder)

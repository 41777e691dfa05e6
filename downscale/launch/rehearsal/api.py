"""A Kubernetes API for kubectl, small: JobSets and objects of Kueue are kept, and pods have logs.

Whatever is created is first held against the schemas and rules that a cluster has. What becomes of
it is not decided here: see `cluster.py`.
"""
import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CONFIG = '''apiVersion: v1
kind: Config
current-context: {context}
clusters: [{{name: here, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
contexts: [{{name: {context}, context: {{cluster: here, user: here}}}}]
users: [{{name: here, user: {{}}}}]
'''


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of object: `plural` is its name in paths."""
    plural: str
    name: str
    group: str
    version: str
    namespaced: bool = True

    @property
    def api(self) -> str:
        """The group and version, as manifests name them."""
        return f'{self.group}/{self.version}'


_QUEUES = {'group': 'kueue.x-k8s.io', 'version': 'v1beta2'}
KINDS = {kind.plural: kind for kind in (
    Kind(plural='jobsets', name='JobSet', group='jobset.x-k8s.io', version='v1alpha2'),
    Kind(plural='localqueues', name='LocalQueue', **_QUEUES),
    Kind(plural='clusterqueues', name='ClusterQueue', namespaced=False, **_QUEUES),
    Kind(plural='resourceflavors', name='ResourceFlavor', namespaced=False, **_QUEUES))}


class ApiServer(ThreadingHTTPServer):
    """The API on a free port of this machine, until `close`.

    `kept` is {plural: {name: object}}, `pods` {name: (labels, log)}, `calls` [(verb, path)] and
    `refusals` [(name, line)]. What `refuse(manifest)` returns, a line each, is the answer to a
    creation.
    """
    daemon_threads = True

    def __init__(self, refuse: Callable[[dict[str, Any]], list[str]]) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.refuse = refuse
        self.kept = {plural: {} for plural in KINDS}
        self.pods = {}
        self.calls = []
        self.refusals = []
        self.lock = threading.RLock()
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()

    def kubeconfig(self, path: Path, context: str = 'here') -> Path:
        """Write the file by which KUBECONFIG leads kubectl here, and return its path."""
        path.write_text(CONFIG.format(port=self.server_port, context=json.dumps(context)))
        return path

    def remove(self, plural: str, name: str) -> None:
        """Forget an object whose deletion was asked for."""
        del self.kept[plural][name]

    def log_of(self, name: str) -> str:
        """Return what a pod has printed."""
        return self.pods[name][1]

    def close(self) -> None:
        """End the server."""
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    # pyrefly: ignore[bad-override-mutable-attribute]
    server: ApiServer

    def log_message(self, format, *args):
        """Print nothing."""

    def _answer(self, value, code=200):
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(code)
        self.send_header('Content-Type',
                         'text/plain' if isinstance(value, str) else 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _fail(self, code, reason, message):
        self._answer({'kind': 'Status', 'apiVersion': 'v1', 'status': 'Failure', 'code': code,
                      'reason': reason, 'message': message}, code)

    def _any(self):
        url = urlsplit(self.path)
        query = {key: value[0] for key, value in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        parts = url.path.strip('/').split('/')
        with self.server.lock:
            self.server.calls.append((self.command, url.path))
            if url.path in DISCOVERY:
                return self._answer(DISCOVERY[url.path])
            if parts[:2] == ['api', 'v1'] and parts[4:5] == ['pods']:
                return self._pods(parts[3], parts[5:], query)
            # /apis/GROUP/VERSION, then namespaces/NAMESPACE for what has one.
            rest = parts[3:]
            namespace = None
            if rest[:1] == ['namespaces']:
                namespace, rest = rest[1], rest[2:]
            kind = KINDS.get(rest[0]) if rest else None
            if parts[:1] != ['apis'] or not kind or '/'.join(parts[1:3]) != kind.api:
                return self._fail(404, 'NotFound', f'the server has no {url.path}')
            return self._objects(kind, namespace, rest[1:], query, body)

    def _objects(self, kind, namespace, rest, query, body):
        objects = self.server.kept[kind.plural]
        name = rest[0] if rest else None
        if self.command == 'POST':
            return self._create(kind, namespace, json.loads(body))
        if name is None:
            return self._list(kind.api, f'{kind.name}List', [
                value for value in objects.values()
                if value['metadata'].get('namespace') == namespace
                and _meets(value['metadata'].get('labels', {}), query)])
        if name not in objects:
            return self._fail(404, 'NotFound', f'{kind.plural}.{kind.group} "{name}" not found')
        if self.command == 'DELETE':
            self.server.remove(kind.plural, name)
            return self._answer({'kind': 'Status', 'apiVersion': 'v1', 'status': 'Success'})
        return self._answer(objects[name])

    def _create(self, kind, namespace, manifest):
        name = manifest['metadata']['name']
        problems = self.server.refuse(manifest)
        if problems:
            self.server.refusals.append((name, problems[0]))
            return self._fail(422, 'Invalid', '; '.join(problems))
        if name in self.server.kept[kind.plural]:
            return self._fail(409, 'AlreadyExists',
                              f'{kind.plural}.{kind.group} "{name}" already exists')
        self.server.calls.append(('created', name))
        manifest['metadata'] |= {
            'uid': str(uuid.uuid4()), 'resourceVersion': '1',
            'creationTimestamp': datetime.now(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}
        if kind.namespaced:
            manifest['metadata']['namespace'] = namespace
        self.server.kept[kind.plural][name] = manifest
        return self._answer(manifest, 201)

    def _pods(self, namespace, rest, query):
        if rest[1:] == ['log']:
            return self._answer(self.server.log_of(rest[0]))
        return self._list('v1', 'PodList', [
            {'apiVersion': 'v1', 'kind': 'Pod', 'metadata': {
                'name': name, 'namespace': namespace, 'labels': labels},
             'spec': {'containers': [{'name': 'main'}]}, 'status': {'phase': 'Running'}}
            for name, (labels, _) in self.server.pods.items() if _meets(labels, query)])

    def _list(self, version, kind, items):
        self._answer({'apiVersion': version, 'kind': kind, 'metadata': {'resourceVersion': '1'},
                      'items': items})

    do_GET = do_POST = do_DELETE = _any


def _meets(labels, query):
    """Return whether `labels` have all that the selector of a query names."""
    wanted = [pair.split('=') for pair in query.get('labelSelector', '').split(',') if pair]
    return all(labels.get(key) == value for key, value in wanted)


# --- what kubectl asks first: which kinds there are, and whether the server checks fields ---------

def _resources(api, kinds):
    return {'kind': 'APIResourceList', 'apiVersion': 'v1', 'groupVersion': api, 'resources': [
        {'name': kind.plural, 'singularName': kind.name.lower(), 'namespaced': kind.namespaced,
         'kind': kind.name, 'verbs': ['create', 'delete', 'get', 'list']} for kind in kinds]}


def _schema(api, kinds):
    paths = {}
    for kind in kinds:
        inner = 'namespaces/{namespace}/' if kind.namespaced else ''
        paths[f'/apis/{api}/{inner}{kind.plural}/{{name}}'] = {'patch': {
            'parameters': [{'name': 'fieldValidation', 'in': 'query'}],
            'x-kubernetes-group-version-kind': {
                'group': kind.group, 'version': kind.version, 'kind': kind.name}}}
    return {'openapi': '3.0.0', 'info': {'title': 'here', 'version': '1'}, 'paths': paths}


def _discovery():
    pods = [{'name': 'pods', 'singularName': 'pod', 'namespaced': True, 'kind': 'Pod',
             'verbs': ['get', 'list']}]
    answers = {'/api': {'kind': 'APIVersions', 'versions': ['v1']},
               '/api/v1': {'kind': 'APIResourceList', 'groupVersion': 'v1', 'resources': pods},
               '/version': {'major': '1', 'minor': '32', 'gitVersion': 'v1.32.0'}}
    groups, schemas = [], {}
    for api in dict.fromkeys(kind.api for kind in KINDS.values()):
        group, version = api.split('/')
        kinds = [kind for kind in KINDS.values() if kind.api == api]
        named = {'groupVersion': api, 'version': version}
        groups.append({'name': group, 'versions': [named], 'preferredVersion': named})
        answers[f'/apis/{api}'] = _resources(api, kinds)
        answers[f'/openapi/v3/apis/{api}'] = _schema(api, kinds)
        schemas[f'apis/{api}'] = {'serverRelativeURL': f'/openapi/v3/apis/{api}'}
    answers['/apis'] = {'kind': 'APIGroupList', 'apiVersion': 'v1', 'groups': groups}
    answers['/openapi/v3'] = {'paths': schemas}
    return answers


DISCOVERY = _discovery()

"""A Kubernetes API of one process: JobSets are made, listed and deleted, and pods have logs."""
import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

GROUP, VERSION = 'jobset.x-k8s.io', 'v1alpha2'
KIND = {'group': GROUP, 'version': VERSION, 'kind': 'JobSet'}
CONFIG = '''apiVersion: v1
kind: Config
current-context: fake
clusters: [{name: fake, cluster: {server: "http://127.0.0.1:%d"}}]
contexts: [{name: fake, context: {cluster: fake, user: fake}}]
users: [{name: fake, user: {}}]
'''


class FakeKubernetes(ThreadingHTTPServer):
    """`objects` {name: JobSet}; `calls` [(verb, path)]; `pods` {name: (labels, log)}.

    What `refuse(manifest)` says, a line each, is the answer to a creation.
    """

    def __init__(self, refuse):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.refuse, self.objects, self.pods, self.calls = refuse, {}, {}, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def kubeconfig(self, path):
        """`path`, at which KUBECONFIG leads kubectl here."""
        path.write_text(CONFIG % self.server_port)
        return path

    def set(self, name, **status):
        """A JobSet has another status."""
        self.objects[name]['status'] = status

    def add_pod(self, name, index, log, replica=0):
        """A job of a JobSet has a pod of the completion `index`, which has printed `log`."""
        job, = self.objects[name]['spec']['replicatedJobs']
        labels = job['template']['spec']['template']['metadata']['labels']
        self.pods[f'{name}-slice-{replica}-{index}-abcde'] = (
            {**labels, 'jobset.sigs.k8s.io/job-index': str(replica),
             'batch.kubernetes.io/job-completion-index': str(index)}, log)

    def made(self):
        """Names of the JobSets that were asked for and are no copies of one that was there."""
        return [path for verb, path in self.calls if verb == 'created']


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

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
        self.server.calls.append((self.command, url.path))
        if url.path in DISCOVERY:
            return self._answer(DISCOVERY[url.path])
        parts = url.path.strip('/').split('/')
        if parts[:3] == ['apis', GROUP, VERSION] and parts[5:6] == ['jobsets']:
            return self._job_sets(parts[4], parts[6:], query, body)
        if parts[:2] == ['api', 'v1'] and parts[4:5] == ['pods']:
            return self._pods(parts[3], parts[5:], query)
        return self._fail(404, 'NotFound', f'the server has no {url.path}')

    def _job_sets(self, namespace, rest, query, body):
        objects, name = self.server.objects, rest[0] if rest else None
        if self.command == 'POST':
            return self._create(namespace, json.loads(body))
        if name is None:
            return self._list(f'{GROUP}/{VERSION}', 'JobSetList', [
                value for value in objects.values()
                if value['metadata']['namespace'] == namespace
                and _meets(value['metadata'].get('labels', {}), query)])
        if name not in objects:
            return self._fail(404, 'NotFound', f'jobsets.{GROUP} "{name}" not found')
        if self.command == 'DELETE':
            del objects[name]
            return self._answer({'kind': 'Status', 'apiVersion': 'v1', 'status': 'Success'})
        return self._answer(objects[name])

    def _create(self, namespace, manifest):
        name = manifest['metadata']['name']
        problems = self.server.refuse(manifest)
        if problems:
            return self._fail(422, 'Invalid', '; '.join(problems))
        if name in self.server.objects:
            return self._fail(409, 'AlreadyExists', f'jobsets.{GROUP} "{name}" already exists')
        self.server.calls.append(('created', name))
        manifest['metadata'] |= {
            'namespace': namespace, 'uid': name, 'resourceVersion': '1',
            'creationTimestamp': datetime.now(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}
        self.server.objects[name] = manifest
        return self._answer(manifest, 201)

    def _pods(self, namespace, rest, query):
        if rest[1:] == ['log']:
            return self._answer(self.server.pods[rest[0]][1])
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
    """Whether `labels` have all that the selector of a query names."""
    wanted = [pair.split('=') for pair in query.get('labelSelector', '').split(',') if pair]
    return all(labels.get(key) == value for key, value in wanted)


# What kubectl asks first: which kinds there are, and whether the server checks fields.
_VALIDATED = {'parameters': [{'name': 'fieldValidation', 'in': 'query'}],
              'x-kubernetes-group-version-kind': KIND}
DISCOVERY = {
    '/api': {'kind': 'APIVersions', 'versions': ['v1']},
    '/api/v1': {'kind': 'APIResourceList', 'groupVersion': 'v1', 'resources': [
        {'name': 'pods', 'singularName': 'pod', 'namespaced': True, 'kind': 'Pod',
         'verbs': ['get', 'list']}]},
    '/apis': {'kind': 'APIGroupList', 'apiVersion': 'v1', 'groups': [{
        'name': GROUP, 'versions': [{'groupVersion': f'{GROUP}/{VERSION}', 'version': VERSION}],
        'preferredVersion': {'groupVersion': f'{GROUP}/{VERSION}', 'version': VERSION}}]},
    f'/apis/{GROUP}/{VERSION}': {
        'kind': 'APIResourceList', 'apiVersion': 'v1', 'groupVersion': f'{GROUP}/{VERSION}',
        'resources': [{'name': 'jobsets', 'singularName': 'jobset', 'namespaced': True,
                       'kind': 'JobSet', 'verbs': ['create', 'delete', 'get', 'list']}]},
    '/version': {'major': '1', 'minor': '32', 'gitVersion': 'v1.32.0'},
    '/openapi/v3': {'paths': {f'apis/{GROUP}/{VERSION}': {
        'serverRelativeURL': f'/openapi/v3/apis/{GROUP}/{VERSION}'}}},
    f'/openapi/v3/apis/{GROUP}/{VERSION}': {
        'openapi': '3.0.0', 'info': {'title': 'fake', 'version': '1'}, 'paths': {
            f'/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/jobsets/{{name}}': {
                'patch': _VALIDATED}}}}

"""A TPU API of one process: queued resources are created, listed, shown and deleted."""
import json
import re
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class FakeTpu(ThreadingHTTPServer):
    """`resources` {(zone, id): value}; `calls` [(verb, zone, id, query)]; `refuse` is the message
    of a quota error that every creation gets."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.resources, self.calls, self.refuse = {}, [], None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def set(self, name, state, message=''):
        """A resource is in another state."""
        for (_, found), value in self.resources.items():
            if found == name:
                value['state'] = {'state': state} | (
                    {'failedData': {'error': {'code': 8, 'message': message}}} if message else {})

    def made(self):
        return [call for call in self.calls if call[0] == 'POST']

    def deleted(self):
        return [call for call in self.calls if call[0] == 'DELETE']


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

    def _fail(self, code, status, message):
        self._answer(code, {'error': {'code': code, 'status': status, 'message': message}})

    def _any(self):
        url, server = urlsplit(self.path), self.server
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        found = re.fullmatch(
            r'/v2\w*/(projects/[^/]+/locations/([^/]+))/queuedResources/?([^/]*)', url.path)
        parent, zone, name = found.groups()
        query = {key: value[0] for key, value in parse_qs(url.query).items()}
        name = name or query.get('queuedResourceId', '')
        server.calls.append((self.command, zone, name, query))
        key, done = (zone, name), {'name': f'{parent}/operations/1', 'done': True}
        if self.command == 'GET' and not name:
            self._answer(200, {'queuedResources': [
                value for (place, _), value in server.resources.items() if place == zone]})
        elif self.command == 'POST' and server.refuse:
            self._fail(429, 'RESOURCE_EXHAUSTED', server.refuse)
        elif self.command == 'POST' and key in server.resources:
            self._fail(409, 'ALREADY_EXISTS', f'Resource {name} already exists')
        elif self.command == 'POST':
            server.resources[key] = json.loads(body) | {
                'name': f'{parent}/queuedResources/{name}', 'createTime':
                datetime.now(UTC).isoformat(), 'state': {'state': 'WAITING_FOR_RESOURCES'}}
            self._answer(200, done)
        elif key not in server.resources:
            self._fail(404, 'NOT_FOUND', f'Resource {name} was not found')
        elif self.command == 'DELETE':
            del server.resources[key]
            self._answer(200, done)
        else:
            self._answer(200, server.resources[key])

    do_GET = do_POST = do_DELETE = _any

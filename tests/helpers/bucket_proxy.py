"""A proxy before the fake bucket: it counts what is read, and refuses, delays or stops as asked."""
import http.client
import json
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit


def put(url, name, data):
    """Write an object of the bucket `runs` of a server."""
    urllib.request.urlopen(urllib.request.Request(
        f'{url}/upload/storage/v1/b/runs/o?uploadType=media&name={quote(name, safe="")}',
        data=data, method='POST')).close()


def upload(url, folder, name):
    """Copy a local folder to `name` in the bucket `runs` of a server."""
    for path in sorted(folder.rglob('*')):
        if path.is_file():
            put(url, f'{name}/{path.relative_to(folder).as_posix()}', path.read_bytes())


class BucketProxy(ThreadingHTTPServer):
    """Forwards to `upstream` (host:port); `read` lists (object, bytes) of every download.

    `trouble(path, number of the request)` may return a status to answer instead, seconds to wait
    before the answer, or a function to call before the request is passed on.
    """
    daemon_threads = True

    def __init__(self, upstream):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.upstream = upstream
        self.read = []
        self.looks = 0
        self.requests = 0
        self.trouble = lambda path, number: None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}'

    def reset(self):
        """Forget what was counted, and make no more trouble."""
        self.read, self.looks, self.requests = [], 0, 0
        self.trouble = lambda path, number: None

    @property
    def names(self):
        """The objects that were downloaded, each as often as it was."""
        return sorted(name for name, _ in self.read)

    def put(self, name, data):
        """Write an object of the bucket `runs`, past the counters."""
        put(f'http://{self.upstream}', name, data)

    def delete(self, name):
        """Remove an object of the bucket `runs`."""
        urllib.request.urlopen(urllib.request.Request(
            f'http://{self.upstream}/storage/v1/b/runs/o/{quote(name, safe="")}',
            method='DELETE')).close()

    def upload(self, folder, name):
        """Copy a local folder to `name` in the bucket `runs`."""
        upload(f'http://{self.upstream}', folder, name)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def _any(self):
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        server = self.server
        server.requests += 1
        trouble = server.trouble(unquote(self.path), server.requests)
        if callable(trouble):
            trouble()
        elif isinstance(trouble, float):
            time.sleep(trouble)
        elif trouble:
            # The code stands in the body as well, where older clients look for it.
            reason = {'error': {'code': trouble, 'message': 'refused by the test'}}
            self._answer(trouble, {'Content-Type': 'application/json'},
                         json.dumps(reason).encode())
            return
        link = http.client.HTTPConnection(server.upstream)
        link.request(self.command, self.path, body, {
            name: value for name, value in self.headers.items() if name.lower() != 'host'})
        answer = link.getresponse()
        data = answer.read()
        link.close()
        if self.command == 'GET' and 'alt=media' in self.path:
            name = unquote(urlsplit(self.path).path).partition('/o/')[2]
            server.read.append((name, len(data)))
        else:
            server.looks += 1
        self._answer(answer.status, {
            name: value for name, value in answer.getheaders()
            if name.lower() not in ('content-length', 'transfer-encoding', 'connection')}, data)

    def _answer(self, status, headers, data):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _any

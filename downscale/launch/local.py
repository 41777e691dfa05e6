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

from downscale.exits import FATAL, MISMATCH, PREEMPTED, ending
from downscale.launch import state
from downscale.launch.spec import processes
from downscale.places import LOCK, lock, scratch

PACKAGE = Path(__file__).parent.parent
POLL_SECONDS, GRACE_SECONDS = 0.5, 60
LINGER_SECONDS = 20  # beyond a heartbeat, for the rest of a group once one of it has ended


def commands(spec):
    """[(argv, environment)] of each process of a job; the environment is without that of this
    process. ValueError for a topology that is not of this machine."""
    if not spec.topology.startswith('cpu:'):
        raise ValueError(f'{spec.key} is for {spec.topology}; the local backend runs cpu:PxD, for '
                         'P processes of D devices, as cpu:2x1')
    count, devices = processes(spec.topology)
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
        self.spec, self.ended = spec, None
        state.save_spec(spec)
        found = state.attempts(state.folder_of(spec.run, spec))
        number = found[-1]['attempt'] + 1 if found else 0
        self.processes = [self._start(argv, environment, log_of(spec, number, rank))
                          for rank, (argv, environment) in enumerate(commands(spec))]

    def _start(self, argv, environment, log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open('a') as file:
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                    env={**os.environ, **environment}, process_group=0)

    def code(self):
        """The exit code of the job, by the first of its processes that failed; None while any runs.
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
        """The exit code of the job, which ends within `seconds`; else subprocess.TimeoutExpired."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.wait(until - time.monotonic())
        return self.code()

    def signal(self, number):
        """Send a signal to every process that runs, and to what it has started."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, number)


def run(specs, parallel, crashes=3, preemptions=100, note=print):
    """No job of a sweep can go on: each is done, fatal, has used up its restarts, or needs such a
    one. Returns `state.read` of them.

    At most `parallel` run at once, in the order of `specs` where their needs are done. A job may
    crash `crashes` times and be preempted `preemptions` times more than that. SIGTERM and Ctrl-C
    stop all jobs, which save first; the same call continues.
    """
    study = specs[0].run
    handle = lock(scratch(study) / 'launch')
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    before = signal.signal(signal.SIGTERM, _interrupt)
    budgets = {'counted': crashes, 'free': preemptions, 'none': 0, 'never': 0}
    sweep = _Sweep(specs, parallel, budgets, note)
    try:
        while sweep.advance():
            time.sleep(POLL_SECONDS)
    finally:
        signal.signal(signal.SIGTERM, before)
        sweep.stop()
        os.close(handle)
    return state.read(study, specs, time.time())


def cancel(study):
    """Tell the process that runs this study here to stop; returns whether there is one."""
    folder = scratch(study) / 'launch'
    try:
        os.close(lock(folder))
    except RuntimeError:
        os.kill(int((folder / LOCK).read_text()), signal.SIGTERM)
        return True
    return False


class _Sweep:
    """The jobs of a sweep, the groups that run now, and how often each has ended in which way."""

    def __init__(self, specs, parallel, budgets, note):
        self.specs, self.parallel, self.budgets, self.note = specs, parallel, budgets, note
        self.groups, self.wake = {}, {}
        self.spent = {spec.key: dict.fromkeys(budgets, 0) for spec in specs}

    def advance(self):
        """Note what has ended and start what can; returns whether anything runs or may yet."""
        for key, group in list(self.groups.items()):
            code = group.code()
            if code is not None:
                del self.groups[key]
                self._end(key, code)
        able = [spec for spec, job in zip(self.specs, state.read(
            self.specs[0].run, self.specs, time.time())) if self._may_start(spec, job)]
        now = time.monotonic()
        for spec in [spec for spec in able if self.wake.get(spec.key, 0) <= now]:
            if len(self.groups) < self.parallel:
                self.groups[spec.key] = Group(spec)
                self.note(f'{spec.key}: started')
        return bool(self.groups or able)

    def _may_start(self, spec, job):
        # What the files call running is either ours or was killed with the process before this.
        return spec.key not in self.groups and job.state in (
            'missing', 'failed', 'running', 'stale') and all(
            self.spent[spec.key][kind] <= most for kind, most in self.budgets.items())

    def _end(self, key, code):
        how, spent = ending(code), self.spent[key]
        self.note(f'{key}: {how.meaning} (exit code {code})')
        spent[how.restart] += 1
        self.wake[key] = time.monotonic() + 2 ** spent['counted'] - 1

    def stop(self):
        """Every group has ended, after it was asked to."""
        for group in self.groups.values():
            group.signal(signal.SIGTERM)
        until = time.monotonic() + GRACE_SECONDS
        while any(group.code() is None for group in self.groups.values()):
            if time.monotonic() > until:
                for group in self.groups.values():
                    group.signal(signal.SIGKILL)
            time.sleep(POLL_SECONDS)


def _interrupt(*_):
    raise KeyboardInterrupt


def log_of(spec, attempt, rank):
    """Where a process of an attempt prints."""
    return scratch(state.folder_of(spec.run, spec)) / 'logs' / f'{attempt:03d}-{rank}.log'


def logs(spec, rank=0):
    """The log of a process in the newest attempt; FileNotFoundError when there was none."""
    found = sorted(log_of(spec, 0, rank).parent.glob(f'*-{rank}.log'))
    if not found:
        raise FileNotFoundError(f'no process {rank} of {spec.key} has run on this machine')
    return found[-1]


def _code_of(codes):
    """One exit code of a group: that which says most of what the others only followed."""
    for telling in (FATAL, MISMATCH, PREEMPTED):
        if telling in codes:
            return telling
    return next((code for code in codes if code), 0)


def _free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]

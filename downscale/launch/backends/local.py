"""Jobs on this machine: each is a group of processes, joined as they would be in the cloud.

A job of topology 'cpu:PxD' is P processes of D devices, one of '2xcpu:PxD' twice as many in two
slices. They end when this process does: each saves and stops, as after SIGTERM. What they print is
in RUN/launch/CELL/PART/logs/NNN-RANK.log.
"""
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from downscale.launch import state, supervise
from downscale.launch.backends import mounting
from downscale.launch.spec import Spec, on_cpu, processes_of, slices_of
from downscale.launch.watch import Observed, Policy
from downscale.runtime.exits import FATAL, MISMATCH, PREEMPTED
from downscale.runtime.files import scratch
from downscale.runtime.mounts import VARIABLE, as_variable, read_mounts
from downscale.runtime.setup import SLICES

PACKAGE = Path(__file__).parents[2]
POLL_SECONDS = 0.5
GRACE_SECONDS = 60
LINGER_SECONDS = 20  # beyond a heartbeat, for the rest of a group once a process of it has ended


def commands(spec: Spec, mounts: Sequence[str] = ()) -> list[tuple[list[str], dict[str, str]]]:
    """Return (argv, environment) of each process of a job.

    The environment comes on top of that of this process. ValueError for a topology of slices.
    """
    if not on_cpu(spec.topology):
        raise ValueError(f'{spec.key} is for {spec.topology}; the local backend runs cpu:PxD, for '
                         'P processes of D devices, as cpu:2x1')
    count, devices = processes_of(spec.topology)
    argv = state.command_of(spec, sys.executable)
    # The package need not be installed: the processes find it where this one did.
    path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get('PYTHONPATH')])])
    common = {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': path, 'DOWNSCALE_LAUNCHER': str(os.getpid()),
              # Behind the flags of this process, which a job keeps: of two counts the last holds.
              'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} '
                           f'--xla_force_host_platform_device_count={devices}'}
    if mounts:
        common[VARIABLE] = as_variable(read_mounts(mounts))
    common['TF_CPP_MIN_LOG_LEVEL'] = '3'  # else a lost process costs several lines more
    if count > 1:
        common |= {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{_free_port()}',
                   'JAX_NUM_PROCESSES': str(count)}
    if slices_of(spec.topology) > 1:
        common[SLICES] = str(slices_of(spec.topology))
    ranks = [{'JAX_PROCESS_ID': str(rank)} if count > 1 else {} for rank in range(count)]
    return [(argv, common | rank) for rank in ranks]


class Group:
    """The processes of one attempt at a job, started at once."""

    def __init__(self, spec: Spec, mounts: Sequence[str] = ()) -> None:
        self.spec = spec
        self.where = mounting.linked(spec, mounts)
        self.ended = None  # when the first of its processes ended
        self._save_spec()
        # The number of an attempt is taken from the files, which outlive this process.
        attempts = state.attempts(state.folder_of(spec.run, spec))
        number = attempts[-1]['attempt'] + 1 if attempts else 0
        self.processes = [self._start(argv, environment, log_of(spec, number, rank))
                          for rank, (argv, environment) in enumerate(commands(spec, mounts))]

    def _save_spec(self):
        """Write `spec.json`, unless it is there: a full disk has no room for it again."""
        path = state.spec_file(self.spec)
        if not path.exists() or state.load_spec(path) != self.spec:
            state.save_spec(self.spec)

    def _start(self, argv, environment, log):
        log.parent.mkdir(parents=True, exist_ok=True)
        # A group of its own, so that Ctrl-C reaches this process alone, which then ends the others.
        with log.open('a') as file:
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                    cwd=self.where, env={**os.environ, **environment},
                                    process_group=0)

    def code(self) -> int | None:
        """Return the exit code of the job, None while any of its processes runs.

        Processes that run on long after another has ended are killed.
        """
        codes = [process.poll() for process in self.processes]
        if None not in codes:
            return _code_of(codes)
        # The first end starts the clock: a heartbeat later the others must have noticed.
        if self.ended is None and any(code is not None for code in codes):
            self.ended = time.monotonic()
        linger = LINGER_SECONDS + int(os.environ.get('DOWNSCALE_HEARTBEAT_SECONDS', '100'))
        if self.ended and time.monotonic() - self.ended > linger:
            self.signal(signal.SIGKILL)
        return None

    def wait(self, seconds: float) -> int | None:
        """Wait for the end of the job, and return its exit code.

        subprocess.TimeoutExpired when it has not ended within `seconds`.
        """
        until = time.monotonic() + seconds
        for process in self.processes:
            process.wait(until - time.monotonic())
        return self.code()

    def signal(self, number: int) -> None:
        """Send a signal to every process that runs, and to those that it has started."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, number)


def policy(parallel: int, crashes: int = 3) -> Policy:
    """Return the `Policy` of this machine: at most `parallel` jobs at once.

    Each may crash `crashes` times and start again.
    """
    return Policy(max_parallel=parallel, base=1, longest=60, counted=crashes, grace=LINGER_SECONDS)


def run(specs: Sequence[Spec], parallel: int, crashes: int = 3,
        note: supervise.Note = print) -> list[state.Job]:
    """Run jobs on this machine, in the order of `specs` where their needs are done.

    Returns the jobs as they ended; see `supervise.run`.
    """
    return supervise.run(LocalBackend(), specs, policy(parallel, crashes), note)


class LocalBackend:
    """Groups of processes by the name of their job; all of them end with `close`."""
    poll = POLL_SECONDS

    def __init__(self, mounts: Sequence[str] = ()) -> None:
        asked = os.environ.get('JAX_PLATFORMS') or 'cpu'
        if asked != 'cpu':
            raise ValueError(f'JAX_PLATFORMS={asked}, but jobs of this machine (--backend local) '
                             'run on its CPU; use `downscale study` for an accelerator, or unset '
                             'it')
        self.mounts = mounts
        self.groups = {}  # name: [group, when it began, by when it must have ended or None]

    def observe(self, specs: Sequence[Spec]) -> list[Observed]:
        """Return the `watch.Observed` of every group; forget those that were deleted and ended."""
        observed = []
        for name, (group, since, until) in list(self.groups.items()):
            code = group.code()
            if until and code is not None:
                del self.groups[name]
                continue
            # It was asked to save and end, and has had its time.
            if until and time.time() > until:
                group.signal(signal.SIGKILL)
            shown = 'running' if code is None else 'ended'
            if until:
                shown = 'deleting'
            observed.append(Observed(name=name, hash=group.spec.hash, state=shown, since=since,
                                     code=code))
        return observed

    def create(self, spec: Spec, zone: str) -> None:
        """Start the processes of a job."""
        since = time.time()
        self.groups[spec.name] = [Group(spec, self.mounts), since, None]

    def delete(self, name: str, zone: str) -> None:
        """Forget a group that has ended; ask any other to save and end."""
        if self.groups[name][0].code() is not None:
            del self.groups[name]
            return
        self.groups[name][0].signal(signal.SIGTERM)
        self.groups[name][2] = time.time() + GRACE_SECONDS

    def close(self) -> None:
        """Ask every group to end, and wait until all have."""
        for name in list(self.groups):
            self.delete(name, '')
        while self.observe(()):
            time.sleep(POLL_SECONDS)


def log_of(spec: Spec, attempt: int, rank: int) -> Path:
    """Return the file that a process of an attempt prints into."""
    return scratch(state.folder_of(spec.run, spec)) / 'logs' / f'{attempt:03d}-{rank}.log'


def logs(spec: Spec, rank: int = 0) -> Path:
    """Return the log of a process in the newest attempt; FileNotFoundError when there is none."""
    paths = sorted(log_of(spec, 0, rank).parent.glob(f'*-{rank}.log'))
    if not paths:
        raise FileNotFoundError(f'no process {rank} of {spec.key} has run on this machine')
    return paths[-1]


def _code_of(codes):
    """Return the exit code of a group: that of the process which the others only followed."""
    # The others end with LOST, or are killed, because of it.
    for telling in (FATAL, MISMATCH, PREEMPTED):
        if telling in codes:
            return telling
    return next((code for code in codes if code), 0)


def _free_port():
    # Another process may take it before the job does; the job then crashes and starts again.
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]

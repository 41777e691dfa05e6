"""A rehearsal on machines of Compute Engine or the TPU API: commands of gcloud, and who answers."""
import contextlib
import dataclasses
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from downscale.launch import supervise, watch
from downscale.launch.backends import mig, sweep, tpuvm
from downscale.launch.backends.settings import LaunchSettings
from downscale.launch.rehearsal import findings, sandbox
from downscale.launch.rehearsal.machines.compute import Compute
from downscale.launch.rehearsal.machines.container import Image
from downscale.launch.rehearsal.machines.queued import Queued
from downscale.launch.rehearsal.vms import Vms
from downscale.launch.spec import Spec
from downscale.runtime.mounts import read_mounts

POLL_SECONDS = 3.0  # each look starts gcloud, which takes a second of a core
# What a watcher waits for is sooner here than in a cloud: the log of a program that has ended, a
# sign of life (a bucket gets one in a quarter of a minute), and a program on a new machine.
LOG_SECONDS = 5.0
STALE_SECONDS = 90.0
START_SECONDS = 300.0
ENDING = '.sh'
Commands = list[list[str]]


def read(text: str) -> Commands:
    """Return commands from the lines of a shell script that `launch plan` wrote."""
    try:
        return [shlex.split(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f'--manifests: a shell could not read {text[:60]!r}... '
                         f'({error})') from None


def text(commands: Commands) -> str:
    """Return commands as lines for a shell."""
    return '\n'.join(map(shlex.join, commands)) + '\n'


def faults(spec: Spec, commands: Commands) -> Iterator[str]:
    """Yield what is wrong with the commands of a job before anything runs."""
    if not commands:
        yield f'{spec.key}: there is no command'
    for argv in commands:
        # `alpha` may stand between, where a gcloud is too old.
        of_gcloud = argv[:1] == ['gcloud'] and 'compute' in argv[1:3]
        if not of_gcloud or not {'--quiet', '--format=json'} <= set(argv):
            yield f'{spec.key}: no command of `launch plan`: {shlex.join(argv)[:100]}'
        elif spec.name not in argv:
            yield f'{spec.key}: what is made must have the name that cancel and watch look for'


def policy(settings: LaunchSettings) -> watch.Policy:
    """Return the limits of a sweep, without the waits of a real cloud."""
    return dataclasses.replace(sweep.policy_of(settings), base=1, grace=LOG_SECONDS,
                               stale=STALE_SECONDS, start=START_SECONDS)


class RehearsedGroups(mig.MigBackend):
    """Groups as a sweep asks for them, but for whose commands are run."""
    poll = POLL_SECONDS

    def __init__(self, options: mig.MigOptions, commands: Mapping[str, Commands]) -> None:
        super().__init__(options)
        self.commands = commands

    def commands_of(self, spec: Spec, zone: str) -> Commands:
        """Return the commands of this rehearsal, in its first zone, or those of another zone."""
        if zone == self.options.zones[0]:
            return self.commands[spec.name]
        return super().commands_of(spec, zone)


class RehearsedQueue(tpuvm.TpuvmBackend):
    """Queued resources as a sweep asks for them, but for whose commands are run."""
    poll = POLL_SECONDS

    def __init__(self, options: tpuvm.QueuedOptions, commands: Mapping[str, Commands]) -> None:
        super().__init__(options)
        self.commands = commands

    def command_of(self, spec: Spec, zone: str) -> list[str]:
        """Return the command of this rehearsal, in its first zone, or that of another zone."""
        if zone == self.options.zones[0]:
            return self.commands[spec.name][0]
        return super().command_of(spec, zone)


def backend(settings: LaunchSettings, commands: Mapping[str, Commands]) -> supervise.Backend:
    """Return the backend that runs the commands of this rehearsal."""
    submitting = sweep.backend_of(settings)
    if isinstance(submitting, mig.MigBackend):
        return RehearsedGroups(submitting.options, commands)
    assert isinstance(submitting, tpuvm.TpuvmBackend)
    return RehearsedQueue(submitting.options, commands)


def cloud(stack: contextlib.ExitStack, settings: LaunchSettings, commands: Mapping[str, Commands],
          folder: Path, given: dict[str, str], judge: findings.Judge) -> Vms:
    """Return the machines, which gcloud is led to until the stack is closed.

    ValueError in one line where there is no gcloud.
    """
    del commands
    if not shutil.which('gcloud'):
        raise ValueError('there is no gcloud; install the Google Cloud CLI to rehearse --backend '
                         f'{settings.backend}')
    server = Compute() if settings.backend == 'mig' else Queued()
    machines = Vms(server, folder, Image(), {str(settings.image)},
                   set(read_mounts(settings.mounts).values()), given, judge)
    stack.callback(machines.close)
    api = 'COMPUTE' if settings.backend == 'mig' else 'TPU'
    stack.enter_context(sandbox.gcloud(api, server.root, folder))
    return machines

"""A virtual machine as a folder and a process of this machine: it runs its start-up script.

The script is that of the request, under bash. Folders of the system that it names are those of the
root here, and the programs by which it would reach beyond its machine are those of `shims.py`.
"""
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from downscale.launch.rehearsal.machines import shims
from downscale.launch.rehearsal.machines.container import PACKAGES, PATH, PodEnd
from downscale.launch.rehearsal.machines.request import MachineRequest

SCRIPT = 'startup-script'
# What must not be found on the machine of a person: it reaches beyond it, or could end it.
OUTSIDE = {*shims.PROGRAMS, 'apt', 'bq', 'dpkg', 'gsutil', 'halt', 'kubectl', 'podman', 'poweroff',
           'reboot', 'shutdown', 'sudo', 'systemctl', 'umount', 'mount', 'wget'}
ALWAYS = ('curl', 'apt-get', 'snap', 'lsb_release', 'mountpoint')
_SYSTEM = re.compile(r'(?<![\w.)}/])/(?=(etc|home|mnt|opt|root|srv|sys|tmp|usr(?!/s?bin/)|var)\b)')


def programs(folder: Path) -> Path:
    """Make a folder of links to the programs of this machine, but for those that reach beyond it.
    """
    folder.mkdir()
    for place in PATH.split(':'):
        for path in Path(place).iterdir() if Path(place).is_dir() else ():
            link = folder / path.name
            if path.name not in OUTSIDE and not link.is_symlink():
                link.symlink_to(path)
    return folder


class VirtualMachine:
    """One machine of a request, with a process group of its own; `rank` is its number in all.

    `root` must have no letter that a shell reads. `log` gets what the machine has shown.
    """

    def __init__(self, name: str, request: MachineRequest, rank: int, root: Path,
                 log: Path) -> None:
        self.name = name
        self.request = request
        self.rank = rank
        self.root = root
        self.log = log
        self.process = None
        self.began = 0.0
        self.ended = None
        self.deadline = None
        self.taken = False    # its machine is wanted back, or gone
        self.killed = False   # it had no time to say anything
        self.dismissed = False  # whoever asked for it deleted it while its script ran

    def start(self, world: shims.Surroundings, linked: Path) -> None:
        """Boot: the script begins, with the programs of the folder `linked` beside its own."""
        for folder in ('bin', 'store', 'etc/apt/sources.list.d', 'usr/share/keyrings', 'mnt', 'tmp',
                       'root'):
            (self.root / folder).mkdir(parents=True)
        world.save(self.root)
        for program in shims.PROGRAMS:
            present = program in (*ALWAYS, *self.request.installed)
            path = self.root / ('bin' if present else 'store') / program
            words = [sys.executable, '-m', shims.__name__, str(self.root), program]
            # Nothing of this process, but what docker passes on by name, is theirs.
            path.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(PACKAGES))} exec '
                            f'{shlex.join(words)} "$@"\n')
            path.chmod(0o755)
        self.began = float(int(time.time()))  # names of logs have whole seconds
        script = self.root / SCRIPT
        script.write_text(_SYSTEM.sub(f'{self.root}/', world.metadata.get(SCRIPT, '')))
        with (self.root / shims.CONSOLE).open('ab') as console:
            self.process = subprocess.Popen(
                [shutil.which('bash') or 'bash', script], cwd=self.root, process_group=0,
                env={'PATH': f'{self.root / "bin"}:{linked}', 'LANG': 'C.UTF-8',
                     'HOME': str(self.root / 'root')},
                stdout=console, stderr=console, stdin=subprocess.DEVNULL)

    def shut_down(self, grace: float) -> None:
        """Press the power button: the script gets SIGTERM, and `grace` seconds later all end."""
        if self.deadline is None and self.poll() is None:
            self.deadline = time.monotonic() + grace
            self.process.send_signal(signal.SIGTERM)

    def take(self, grace: float) -> None:
        """Take the machine away with a notice, as spot machines are."""
        self.taken = True
        self.shut_down(grace)

    def dismiss(self, grace: float) -> None:
        """Stop the machine because whoever asked for it has deleted it."""
        if self.poll() is None and not self.taken:
            self.dismissed = True
        self.shut_down(grace)

    def lose(self) -> None:
        """Lose the machine at once, without a word."""
        self.taken = True
        self.kill()

    def kill(self) -> None:
        """End all processes of the machine at once, without a word."""
        if self.process and self.process.poll() is None:
            self.killed = True
            os.killpg(self.process.pid, signal.SIGKILL)

    def kill_program(self) -> bool:
        """Kill the program alone; False where it does not run."""
        path = self.root / shims.PID
        if not path.exists() or self.poll():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)
            return True
        return False

    def poll(self) -> PodEnd | None:
        """Return how the script ended, None while it runs. The machine itself stays."""
        if self.ended:
            return self.ended
        code = self.process.poll()
        if code is None:
            if self.deadline and time.monotonic() > self.deadline:
                self.kill()
            return None
        # What the script has left behind goes with the machine, or has nobody who looks after it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.ended = PodEnd(self.name, code if code >= 0 else 128 - code, self.taken)
        self._keep_log()
        return self.ended

    @property
    def status(self) -> str | None:
        """The state in which Compute Engine shows it; None where it is gone."""
        if not self.taken:
            return 'RUNNING'
        if self.poll() is None:
            return 'STOPPING'
        return None if self.request.deleted else 'TERMINATED'

    def _keep_log(self):
        """Keep what the machine has shown, and what its program has printed."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        texts = [self.root / shims.CONSOLE, *sorted((self.root / 'tmp').glob('downscale.*'))]
        self.log.write_text(''.join(path.read_text(errors='replace') for path in texts
                                    if path.is_file()))

"""Virtual machines of this machine: what is asked of an API boots, and is shown there as it stands.

One thread moves every request on: queued, running and, once it is deleted, stopping and gone. A
machine whose script has ended stays, as a real one does.
"""
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from downscale.launch.rehearsal.machines.compute import Compute
from downscale.launch.rehearsal.machines.container import Image, chips_here, joined
from downscale.launch.rehearsal.machines.machine import VirtualMachine, programs
from downscale.launch.rehearsal.machines.queued import Queued
from downscale.launch.rehearsal.machines.request import MachineRequest
from downscale.launch.rehearsal.machines.shims import Surroundings
from downscale.launch.rehearsal.sandbox import free_port
from downscale.launch.rehearsal.works import Cloud, Round, Work

GRACE_SECONDS = 30  # a spot machine's notice
WITHHELD_SECONDS = 15  # long enough for a watcher to see that there are no machines
NONE_LEFT = 'The zone does not have enough resources available to fulfill the request.'


@dataclass(kw_only=True)
class MachineGroup(Work):
    """A group of machines, or a queued resource; `judged` once they have ended."""
    pod: ClassVar[str] = 'machine'
    runner: ClassVar[str] = 'start-up script'
    request: MachineRequest
    judged: bool = False

    @property
    def dismissed(self) -> bool:
        """Whether its first machine was deleted while its script ran."""
        return bool(self.pods) and self.pods[0].dismissed


class Vms(Cloud):
    """The machines of an API, which run until they are deleted or taken.

    `images` are those of the registry, `places` the buckets that can be mounted, and `given` is
    what every container finds in its environment.
    """

    def __init__(self, server: Compute | Queued, folder: Path, image: Image, images: Iterable[str],
                 places: Iterable[str], given: dict[str, str],
                 judge: Callable[[Work, Round], object]) -> None:
        super().__init__(folder, judge)
        self.server = server
        self.lock = server.lock
        self.refusals = server.refusals
        self.image = image
        self.images = sorted(images)
        self.places = sorted(places)
        self.given = given
        # Scripts get its name as a word, so that it must have no letter that a shell reads.
        self.roots = Path(tempfile.mkdtemp(prefix='downscale-')).resolve()
        if shlex.quote(str(self.roots)) != str(self.roots):
            raise ValueError(f'TMPDIR: {self.roots} has letters that a shell reads; name another '
                             'folder for a rehearsal of machines')
        self.linked = programs(self.roots / 'programs')
        self.number = 0
        server.stopped = self._stopped
        self.thread.start()

    def close(self) -> None:
        """Kill all machines, end the API and remove the roots."""
        self.end()
        self.server.close()
        shutil.rmtree(self.roots, ignore_errors=True)

    def left(self) -> dict[str, str]:
        """Return {name: what there is of it} of all that nobody has deleted."""
        return self.server.left()

    def _stopped(self, name):
        # After a fault of its own nothing would ever stop.
        return name not in self.works or self.over.is_set() or self.error is not None

    def tick(self) -> None:
        """Give out machines, look after them, and let go what was deleted."""
        requests = {request.name: request for request in self.server.requests()}
        for name, request in requests.items():
            if name not in self.works and not request.leaving:
                self.works[name] = MachineGroup(name=name, grace=GRACE_SECONDS, request=request)
        for work in list(self.works.values()):
            request = requests.get(work.name)
            if request is None or request.leaving:
                self._leave(work)
            elif work.state == 'queued':
                self._admit(work)
            else:
                self._look(work)

    def _admit(self, work):
        """Boot the machines of a request, where there are some and this machine has room."""
        if time.monotonic() < self.withheld:
            self.server.wait(work.name, NONE_LEFT)
            return
        if not self.has_room(work.request.count):
            return
        work.rounds.append(Round(began=time.time()))
        port = free_port()
        self.number += 1
        for rank in range(work.request.count):
            name = f'{work.name}-{self.number}-{rank}'
            machine = VirtualMachine(name, work.request, rank, self.roots / name,
                              self.folder / 'logs' / f'{name}.log')
            machine.start(self._world(work.request, rank, port), self.linked)
            work.pods.append(machine)
        work.state = 'running'

    def _world(self, request, rank, port):
        """Return what a machine finds around it."""
        slice_, host = divmod(rank, request.hosts)
        # As the machines of a slice know of one another: by their own metadata.
        metadata = {'agent-worker-number': str(host), 'tpu-env': "ZONE: 'here'\n",
                    'worker-network-endpoints': ','.join(
                        f'host{other}:8470:127.0.0.1' for other in range(request.hosts))}
        if request.slices > 1:
            metadata['tpu-env'] += (f"MEGASCALE_NUM_SLICES: '{request.slices}'\n"
                                    f"MEGASCALE_SLICE_ID: '{slice_}'\n")
        chips = chips_here(request.chips) | joined(rank, request.count, port)
        if request.slices > 1:
            chips |= {'MEGASCALE_NUM_SLICES': str(request.slices),
                      'MEGASCALE_SLICE_ID': str(slice_)}
        return Surroundings(
            metadata=metadata | request.metadata, images=self.images, folder=self.image.folder,
            copied={name: str(path) for name, path in self.image.copied.items()},
            entrypoint=self.image.entrypoint, places=self.places, chips=chips,
            given={**self.given, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'},
            authorised=request.authorised, alone=request.count == 1, here=str(Path.cwd()))

    def _look(self, work):
        """Show how the machines of a request are, and judge how all its scripts have ended."""
        self.server.show(work.name, [machine.status for machine in work.pods])
        if all([machine.poll() for machine in work.pods]):
            self._judge(work)

    def _judge(self, work):
        if work.judged or not work.pods:
            return
        work.judged = True
        turn = work.rounds[-1]
        turn.ends = [machine.poll() for machine in work.pods]
        # A machine that was only deleted decides nothing.
        turn.deciding = next((machine.ended for machine in work.pods
                              if machine.ended.code and not machine.dismissed), None)
        self.judge(work, turn)

    def _leave(self, work):
        """Stop the machines of a request that was deleted; it is gone when they are."""
        work.after = 'gone'
        work.state = 'stopping'
        for machine in work.pods:
            machine.dismiss(work.grace)
        if all([machine.poll() for machine in work.pods]):
            self._judge(work)
            for machine in work.pods:
                shutil.rmtree(machine.root, ignore_errors=True)
            self.past.append(self.works.pop(work.name))

    def injure(self, work: MachineGroup, how: str) -> bool:
        """Do `how` to the machines of a request."""
        if how == 'sigkill':
            return work.pods[-1].kill_program()
        if how == 'restart':
            self.lose_all()
            return True
        if how == 'quota':
            self.withhold(WITHHELD_SECONDS)
        # The machines of a queued resource are taken together, those of a group one by one.
        alone = how == 'evict' and isinstance(self.server, Compute)
        for machine in work.pods[-1:] if alone else work.pods:
            machine.take(work.grace)
        return True

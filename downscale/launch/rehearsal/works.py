"""Jobs as a cloud of this machine sees them, and the thread that moves them on."""
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from downscale.launch.rehearsal.machines.container import PodEnd

TICK_SECONDS = 0.05


@dataclass(kw_only=True)
class Round:
    """One start of all pods of a job: what was done to it, how they ended, and what followed."""
    injected: str | None = None
    ends: list[PodEnd] = field(default_factory=list)
    deciding: PodEnd | None = None
    action: str = ''
    began: float = 0.0


@dataclass(kw_only=True)
class Work:
    """A job as its cloud sees it; `after` is what comes when its `pods` have stopped.

    `grace` are seconds between SIGTERM and SIGKILL.
    """
    pod: ClassVar[str] = 'pod'              # what a person calls one of them,
    runner: ClassVar[str] = 'container'     # and what in it starts the program
    name: str
    grace: float
    state: str = 'queued'
    after: str = ''
    message: str = ''
    pods: list[Any] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    @property
    def dismissed(self) -> bool:
        """Whether whoever submitted it has ended it."""
        return self.after == 'gone'


class Cloud:
    """Runs the jobs of a rehearsal, a state at a time.

    `folder` takes logs. `judge(work, round)` is called when all pods of a round have ended, before
    others start. `works` is {name: Work}, `past` those that are gone, `stuck` {name: why it would
    wait for ever}, and `refusals` are [(name, line)].
    """
    refusals: list[tuple[str, str]]
    lock: Any

    def __init__(self, folder: Path, judge: Callable[[Any, Round], object]) -> None:
        self.folder = folder
        self.judge = judge
        self.works = {}
        self.past = []
        self.stuck = {}
        self.withheld = 0.0
        self.over = threading.Event()
        self.error = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def end(self) -> None:
        """Move nothing on any more, and kill all pods."""
        self.over.set()
        self.thread.join()
        for work in self.works.values():
            for pod in work.pods:
                pod.kill()

    def _run(self):
        while not self.over.wait(TICK_SECONDS):
            try:
                with self.lock:
                    self.tick()
            except Exception as error:  # for whoever watches: a thread cannot raise
                self.error = error
                return

    def tick(self) -> None:
        """Move every job on by a state, where it is time."""
        raise NotImplementedError

    def left(self) -> dict[str, str]:
        """Return {name of a job: what there is of it} of all that nobody has deleted."""
        raise NotImplementedError

    def has_room(self, count: int) -> bool:
        """Return whether this machine can run so many pods more: a core each, and one job always.
        """
        running = sum(len(work.pods) for work in self.works.values())
        return not running or running + count <= (os.cpu_count() or 1)

    def withhold(self, seconds: float) -> None:
        """Give nothing out for a while."""
        self.withheld = time.monotonic() + seconds

    def harm(self, work: Any, how: str) -> bool:
        """Do `how` (see `injections.py`) to a job; False when it has ended before."""
        with self.lock:
            if work.state != 'running' or any(pod.poll() for pod in work.pods):
                return False
            work.rounds[-1].injected = how
            if not self.injure(work, how):
                work.rounds[-1].injected = None
                return False
            return True

    def injure(self, work: Any, how: str) -> bool:
        """Do `how` to a job that runs; False where it could not be done."""
        raise NotImplementedError

    def lose_all(self) -> None:
        """Take all machines away at once, without a word."""
        for work in self.works.values():
            for pod in work.pods:
                work.rounds[-1].injected = 'restart'
                pod.lose()

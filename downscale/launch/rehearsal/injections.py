"""What goes wrong in a rehearsal, by name and at a moment when there is something to lose.

`evict` takes a machine away with a notice (SIGTERM), `sigkill` kills a program without one, `quota`
takes the machines of a job, with none to be had for a while, `restart` takes all machines away at
once and begins the watcher anew.
"""
import re
from collections.abc import Sequence
from dataclasses import dataclass

from downscale.launch import state
from downscale.launch.rehearsal.works import Cloud, Work
from downscale.launch.spec import Spec
from downscale.runtime.files import place
from downscale.values import unknown

NAMES = ('evict', 'sigkill', 'quota', 'restart')


def parse(text: str) -> tuple[str, ...]:
    """Return the injections of 'evict:2,sigkill:1,quota', one name for each time.

    ValueError in one line for what is none.
    """
    names = []
    for part in filter(None, text.split(',')):
        name, colon, count = part.partition(':')
        if name not in NAMES:
            raise ValueError(f'--inject: {unknown("injection", name, list(NAMES))}')
        if colon and not re.fullmatch('[1-9][0-9]{0,2}', count):
            raise ValueError(f'--inject {part[:50]}: how often must be a number from 1 to 999')
        names += [name] * int(count or 1)
    return tuple(names)


@dataclass(frozen=True)
class Injection:
    """One injection, meant for a job from place `index` on in the order of the study."""
    name: str
    index: int


class Injector:
    """Harms jobs, each once, spread over the order of the study.

    `left` are the injections that have not happened, `happened` [(injection, key of a job, round)].
    """

    def __init__(self, names: Sequence[str], specs: Sequence[Spec]) -> None:
        self.specs = list(specs)
        self.left = [Injection(name, k * len(specs) // len(names)) for k, name in enumerate(names)]
        self.happened = []
        self.spared = set()  # keys of jobs that were done before they could notice

    @property
    def done(self) -> list[tuple[str, str]]:
        """The injections that have happened: (name, key of a job)."""
        return [(injection.name, key) for injection, key, _ in self.happened]

    def act(self, cluster: Cloud) -> str | None:
        """Do the first injection whose moment has come; return its name, None where none has."""
        self.take_back()
        harmed = {key for _, key in self.done} | self.spared
        for injection in self.left:
            for spec in self.specs[injection.index:]:
                work = cluster.works.get(spec.name)
                if not work or spec.key in harmed or work.state != 'running':
                    continue
                if not ripe(spec, work):
                    continue
                if cluster.harm(work, injection.name):
                    self.left.remove(injection)
                    self.happened.append((injection, spec.key, work.rounds[-1]))
                    return injection.name
        return None

    def take_back(self) -> None:
        """Let an injection happen again where the program was done before it noticed."""
        for entry in list(self.happened):
            injection, key, turn = entry
            if turn.ends and not any(end.code for end in turn.ends):
                self.happened.remove(entry)
                self.spared.add(key)
                self.left.append(injection)


def ripe(spec: Spec, work: Work) -> bool:
    """Return whether the program of a job has got to work that would be lost.

    A training of several stages has saved a step since it was started, any other job has begun: the
    few steps of a lone stage would be over before anything could be done to them.
    """
    try:
        return _ripe(spec, work)
    except OSError:  # a file that goes while it is read says nothing yet
        return False


def _ripe(spec, work):
    rows = state.attempts(state.folder_of(spec.run, spec))
    # The clock is that of this machine for all.
    if not rows or rows[-1]['began'] < work.rounds[-1].began or rows[-1]['devices'] is None:
        return False
    return spec.part != 'train' or len(spec.tasks) == 1 or saved(spec) > rows[-1]['first_step']


def saved(spec: Spec) -> int:
    """Return the steps of a training that checkpoints hold."""
    from downscale.train.checkpoint import committed
    steps = 0
    for name in spec.tasks:
        cell, _, stage = name.partition('/')
        steps += committed(place(spec.run) / 'cells' / cell / stage) or 0
    return steps

"""What is launched: one `Spec` per cell and part of a study, named by its content.

A cell is launched in up to three parts, because an evaluation may need what other cells wrote:
`train` (all its stages, in order), `write` (joint answers and descriptions) and `reason` (answers
from what all cells of its seed have written). A part is done when all its tasks are, and every task
of it restarts alone.
"""
import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass

from downscale.launch.topologies import topology

PARTS = ('train', 'write', 'reason')
LONGEST_NAME = 35  # leaves JobSet room in 63 characters: '-slice-<job>-<pod>-abcde'


@dataclass(frozen=True)
class Spec:
    """One job of a sweep.

    `config` and `overrides` are the study file and `--set` values, `experiment` the hash of the
    cell; `tasks` are names of `study.tasks_of`, in order; `needs` the keys of specs that must be
    done before. `topology` is one of `topologies.py`, or 'cpu:2x1' for two local processes of one
    device each. `image` is a container digest, None on this machine. `run` is the study's folder,
    local or gs://; it and `commit` are told, and not part of the hash.
    """
    sweep: str
    cell: str
    part: str
    config: str
    overrides: tuple[str, ...]
    experiment: str
    tasks: tuple[str, ...]
    needs: tuple[str, ...]
    steps: int
    topology: str
    image: str | None
    commit: str
    run: str

    @property
    def key(self):
        """What a person calls it: 'w64d2-s0/train'."""
        return f'{self.cell}/{self.part}'

    @property
    def hash(self):
        """Ten characters that change with whatever decides the result."""
        value = {name: part for name, part in dataclasses.asdict(self).items()
                 if name not in ('run', 'commit')}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def name(self):
        """The name of the job on any backend: a DNS-1035 label of at most `LONGEST_NAME`."""
        tail = f'-{self.hash[:5]}'
        head = f'{slug(self.sweep)[:12]}-{slug(self.cell)}-{self.part}'
        return re.sub('-+', '-', head[:LONGEST_NAME - len(tail)].rstrip('-') + tail)


def slug(text):
    """`text` in lower-case letters, digits and single hyphens, beginning with a letter."""
    found = re.sub('[^a-z0-9]+', '-', text.lower()).strip('-') or 'x'
    return found if found[0].isalpha() else f'x{found}'


def processes(name):
    """(processes, JAX devices of each) of a topology, 'cpu:PxD' included.

    ValueError for an unknown topology, with the known ones.
    """
    local = re.fullmatch(r'cpu:([1-9]\d*)x([1-9]\d*)', name)
    if local:
        return int(local[1]), int(local[2])
    place = topology(name)
    return place.hosts, place.devices // place.hosts

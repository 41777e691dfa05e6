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

from downscale.experiment.names import slug
from downscale.planner.topologies import SHAPES, topology

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
        return _digest(value)

    @property
    def group(self):
        """Ten characters that all jobs of one run folder share, and no others."""
        return _digest(self.run)

    @property
    def name(self):
        """The name of the job on any backend: a DNS-1035 label of at most `LONGEST_NAME`.

        Equal specs of two run folders have two names.
        """
        digest = _digest([self.hash, self.run])
        head = f'{slug(self.sweep)[:12]}-{slug(self.cell)}-{self.part}'
        # Where the cell cannot be told in full, the digest alone must tell hundreds of them apart.
        tail = f'-{digest[:5]}' if len(head) + 6 <= LONGEST_NAME else f'-{digest}'
        return re.sub('-+', '-', head[:LONGEST_NAME - len(tail)].rstrip('-') + tail)


def _digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def processes_of(name):
    """Return (processes, JAX devices of each) of a topology, 'cpu:PxD' included.

    ValueError for an unknown topology, with the known ones.
    """
    local = re.fullmatch(r'cpu:([1-9]\d*)x([1-9]\d*)', name)
    if local:
        return int(local[1]), int(local[2])
    place = topology(name)
    return place.hosts, place.devices // place.hosts


def specs_of(sweep, config, overrides, tasks, topology_name, image, commit, run):
    """Return the `Spec` of every cell and part of a study, those that are needed before those that
    need.

    `tasks` are those of `study.tasks_of`. What writes and reasons is the work of one process, so it
    runs on the least slice of the same generation, which is one machine.
    """
    cells = {task.experiment.name: task.experiment for task in tasks}
    part = {}
    owned = {}
    for task in tasks:
        kind = 'train' if task.kind == 'train' else 'reason' if task.stage == 'reason' else 'write'
        part[task.name] = f'{task.experiment.name}/{kind}'
        owned.setdefault(part[task.name], []).append(task)
    found = []
    for kind in PARTS:
        for name, cell in cells.items():
            key = f'{name}/{kind}'
            own = owned.get(key)
            if not own:
                continue
            needs = dict.fromkeys(part[need] for task in own for need in task.needs)
            steps = sum(cell.stage(task.stage).steps if task.kind == 'train' else 1 for task in own)
            found.append(Spec(
                sweep, name, kind, config, tuple(overrides), cell.hash,
                tuple(task.name for task in own), tuple(need for need in needs if need != key),
                steps, topology_name if kind == 'train' else one_host(topology_name), image, commit,
                run))
    names = {}
    for spec in found:
        if names.setdefault(spec.name, spec) is not spec:
            raise ValueError(f'{spec.key} and {names[spec.name].key} would have the same name '
                             f'{spec.name}; give the study or its cells other names')
    return found


def one_host(name):
    """Return the topology for what is the work of one process, beside `name`."""
    if name.startswith('cpu:'):
        return 'cpu:1x1'
    place = topology(name)
    least = next(shape for shape in SHAPES[place.generation]
                 if topology(f'{place.generation}:{shape}').chips == place.machine.chips)
    return f'{place.generation}:{least}'

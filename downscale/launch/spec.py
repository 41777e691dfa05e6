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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from downscale.experiment.names import slug
from downscale.planner.topologies import topology
from downscale.study.tasks import Task

PARTS = ('train', 'write', 'reason')
LONGEST_NAME = 35  # leaves JobSet room in 63 characters: '-slice-<job>-<pod>-abcde'


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One job of a sweep.

    `config` and `overrides` are the study file and `--set` values, `experiment` the hash of the
    cell; `tasks` are names of `tasks_of`, in order; `needs` the keys of specs that must be done
    before. `topology` is one of `topologies.py`, or 'cpu:2x1' for two local processes of one device
    each, '2xcpu:2x1' for two such slices. `image` is a container digest, None on this machine.
    `run` is the study's folder, local or gs://. Neither `run` nor `commit` is part of the hash.
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
    def key(self) -> str:
        """What a person calls it: 'w64d2-s0/train'."""
        return f'{self.cell}/{self.part}'

    @cached_property
    def hash(self) -> str:
        """Ten characters that change with whatever decides the result."""
        # A study that moves to another folder, or whose commit changes nothing of it, goes on.
        value = {name: part for name, part in dataclasses.asdict(self).items()
                 if name not in ('run', 'commit')}
        return _digest(value)

    @property
    def group(self) -> str:
        """Ten characters that all jobs of one run folder share, and no others have."""
        return _digest(self.run)

    @property
    def name(self) -> str:
        """The name of the job on any backend: a DNS-1035 label of at most `LONGEST_NAME`.

        Equal specs of two run folders have two names.
        """
        digest = _digest([self.hash, self.run])
        head = f'{slug(self.sweep)[:12]}-{slug(self.cell)}-{self.part}'
        # Where the name of the cell is cut, the digest alone must tell hundreds of cells apart.
        tail = f'-{digest[:5]}' if len(head) + 6 <= LONGEST_NAME else f'-{digest}'
        return re.sub('-+', '-', head[:LONGEST_NAME - len(tail)].rstrip('-') + tail)


def _digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def on_cpu(name: str) -> bool:
    """Return whether a topology is of this machine, 'cpu:PxD' or '2xcpu:PxD'."""
    return name.startswith('cpu:') or 'xcpu:' in name


def processes_of(name: str) -> tuple[int, int]:
    """Return (processes of all slices, JAX devices of each) of a topology, 'cpu:PxD' included.

    ValueError for an unknown topology, which names the known ones.
    """
    local = re.fullmatch(r'(?:([1-9]\d*)x)?cpu:([1-9]\d*)x([1-9]\d*)', name)
    # Processes stand for machines: that is how a study for many is tried out on one.
    if local:
        return int(local[1] or 1) * int(local[2]), int(local[3])
    place = topology(name)
    return place.hosts, place.devices // place.hosts


def slices_of(name: str) -> int:
    """Return the slices of a topology: 2 of '2xv5e:4x4', 1 of 'v5e:4x4'."""
    several = re.match(r'(\d+)x', name)
    return int(several[1]) if several else 1


def steps_of(task: Task) -> int:
    """Return the steps of a task; an evaluation is one."""
    return task.experiment.stage(task.stage).steps if task.kind == 'train' else 1


def _part_of(task):
    if task.kind == 'train':
        return 'train'
    return 'reason' if task.stage == 'reason' else 'write'


def specs_of(sweep: str, config: str, overrides: Iterable[str], tasks: Sequence[Task],
             topology_name: str, image: str | None, commit: str, run: str) -> list[Spec]:
    """Return the `Spec` of every cell and part of a study, each after those that it needs.

    `tasks` are those of `tasks_of`. Processes that write and reason share the questions and sum
    nothing, so of several slices they use one. ValueError where two jobs would have the same name.
    """
    # 1. The tasks of each job, and the job of each task.
    cells = {task.experiment.name: task.experiment for task in tasks}
    job_of = {}
    tasks_by_job = {}
    for task in tasks:
        job_of[task.name] = f'{task.experiment.name}/{_part_of(task)}'
        tasks_by_job.setdefault(job_of[task.name], []).append(task)
    hashes = {name: cell.hash for name, cell in cells.items()}
    # 2. The jobs, part by part.
    specs = []
    for part in PARTS:
        for name in cells:
            key = f'{name}/{part}'
            if key not in tasks_by_job:
                continue
            needs = {}  # a set that keeps their order
            for task in tasks_by_job[key]:
                needs |= dict.fromkeys(job_of[need] for need in task.needs)
            needs.pop(key, None)  # of its own tasks it does the earlier ones first
            names = tuple(task.name for task in tasks_by_job[key])
            steps = sum(map(steps_of, tasks_by_job[key]))
            place = topology_name if part == 'train' else one_slice(topology_name)
            specs.append(Spec(
                sweep=sweep, cell=name, part=part, config=config, overrides=tuple(overrides),
                experiment=hashes[name], tasks=names, needs=tuple(needs), steps=steps,
                topology=place, image=image, commit=commit, run=run))
    _refuse_equal_names(specs)
    return specs


def _refuse_equal_names(specs):
    names = {}
    for spec in specs:
        if names.setdefault(spec.name, spec) is not spec:
            raise ValueError(f'{spec.key} and {names[spec.name].key} would have the same name '
                             f'{spec.name}; give the study or its cells other names')


def one_slice(name: str) -> str:
    """Return the topology of one of the slices of topology `name`."""
    return re.sub(r'^\d+x', '', name)

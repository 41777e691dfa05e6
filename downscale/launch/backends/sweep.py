"""A study as it is launched: its jobs, where they run and how, and which of them are meant.

How it was launched last is in RUN/launch/settings.json, so that later commands need not be told
again; what a job was launched as is in its `spec.json`.
"""
import argparse
import dataclasses
import difflib
import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downscale.config import Experiment
from downscale.launch import state, supervise, watch
from downscale.launch.backends import local, tpuvm
from downscale.launch.spec import Spec, processes_of, specs_of
from downscale.runtime.files import absolute, in_bucket, place, read_json, write_json

SCRIPT = local.PACKAGE.parent / 'launch' / 'startup.sh'
STATES = ('waiting', 'missing', 'running', 'stale', 'failed', 'cancelled', 'fatal', 'done')
CLOUD_PARALLEL = 4
HERE = 'cpu:1x1'  # the topology of this machine, where none is given
# Stands for an image in a dry run: a digest in form, which all checks accept.
NO_IMAGE = f'IMAGE@sha256:{"0" * 64}'


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """Where and how the jobs of a study run; with None the backend decides.

    `capacity` is 'spot', 'on-demand' or 'reserved'. What each backend reads is in `BACKENDS`.
    """
    backend: str = 'local'
    topology: str | None = None
    image: str | None = None
    max_parallel: int | None = None
    max_chips: int | None = None
    max_usd: float | None = None
    capacity: str = 'spot'
    service_account: str | None = None
    zones: tuple[str, ...] = ()
    valid_for: str | None = None
    internal_ips: bool = False
    namespace: str = 'default'
    queue: str | None = None
    priority: str | None = None
    reservation: str | None = None
    context: str | None = None


CLOUD = ('image', 'capacity', 'service_account')
BACKENDS = {  # what each reads beside topology and limits
    'local': (), 'tpuvm': (*CLOUD, 'zones', 'valid_for', 'internal_ips'),
    'gke': (*CLOUD, 'namespace', 'queue', 'priority', 'reservation', 'context')}
LIMITS = ('topology', 'max_parallel', 'max_chips', 'max_usd')


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The jobs of a study as it is now (`planned`) and as they were submitted ({key: `saved`})."""
    name: str
    run: str
    settings: LaunchSettings
    cells: tuple[Experiment, ...]
    planned: tuple[Spec, ...]
    saved: dict[str, Spec]

    @property
    def known(self) -> list[Spec]:
        """Every job: as it was submitted, or else as it would be."""
        return [self.saved.get(spec.key, spec) for spec in self.planned]


def settings_of(args: argparse.Namespace, before: Mapping[str, Any] | None) -> LaunchSettings:
    """Return the `LaunchSettings` of the command line, on top of those `before`.

    ValueError in one line for a flag that the backend does not read, and for one that it needs.
    """
    # 1. The backend: as given, as before, or by the topology. Another one starts afresh.
    names = [field.name for field in dataclasses.fields(LaunchSettings)]
    given = {name: value for name, value in vars(args).items()
             if name in names and value is not None}
    before = {name: value for name, value in (before or {}).items() if name in names}
    on_slices = not given.get('topology', 'cpu:').startswith('cpu:')
    backend = given.get('backend', before.get('backend', 'gke' if on_slices else 'local'))
    if backend != before.get('backend', backend):
        before = {}
    # 2. Only what this backend reads.
    read = ('backend', *LIMITS, *BACKENDS[backend])
    # A flag that nobody reads would be believed to work.
    for name in given:
        if name not in read:
            others = [other for other, reads in BACKENDS.items() if name in reads]
            raise ValueError(f'{flag(name)} is not for --backend {backend}, but for '
                             f'{" and ".join(others)}')
    value = before | given | {'backend': backend}
    if backend == 'local':
        value.setdefault('topology', HERE)
    # 3. Values that go together.
    settings = LaunchSettings(**value | {'zones': tuple(value.get('zones', ()))})
    if settings.topology is None:
        raise ValueError(f'say on which slices: --backend {backend} --topology v5e:4x4')
    processes_of(settings.topology)
    if (backend == 'local') != settings.topology.startswith('cpu:'):
        runs = 'cpu:PxD, P processes of D devices'
        if backend != 'local':
            runs = 'on slices, as v5e:4x4'
        raise ValueError(f'--topology {settings.topology} is not for --backend {backend}; it runs '
                         f'{runs}')
    for name in ('max_parallel', 'max_chips', 'max_usd'):
        limit = value.get(name)
        if limit is not None and not limit > 0:
            raise ValueError(f'{flag(name)} {limit} must be above 0')
    return settings


def flag(name: str) -> str:
    """Return how a field of `LaunchSettings` is written on the command line."""
    return '--zone' if name == 'zones' else f'--{name.replace("_", "-")}'


def open_sweep(args: argparse.Namespace, asked: bool = True) -> Sweep:
    """Return the `Sweep` of the command line; ValueError in one line for what is missing or wrong.

    Unless `asked`, nothing is read from the run folder, and placeholders in capitals stand for
    what is not given.
    """
    from downscale.experiment.file import open_cells
    from downscale.study.tasks import tasks_of
    config, cells = open_cells(args.config, args.set)
    run = str(absolute(args.folder or Path('runs') / config.study))
    settings = settings_of(args, read_json(settings_path(run)) if asked else None)
    if settings.backend != 'local':
        # A dry run shows what would be sent, so it needs a value for everything.
        if not asked:
            run = args.folder or f'gs://BUCKET/{config.study}'
            settings = dataclasses.replace(settings, image=settings.image or NO_IMAGE,
                                           zones=settings.zones or ('ZONE',))
        _refuse_for_the_cloud(args, run, settings)
    planned = specs_of(config.study, args.config, args.set, tasks_of(cells),
                       settings.topology or HERE, settings.image, commit(), run)
    return Sweep(
        name=config.study,
        run=run,
        settings=settings,
        cells=tuple(cells),
        planned=tuple(planned),
        saved=_saved(planned) if asked else {},
    )


def _saved(planned):
    """Return {key: `Spec`} of the jobs that were submitted, as they were."""
    def load(spec):
        path = state.folder_of(spec.run, spec) / 'spec.json'
        return state.load_spec(path) if path.exists() else None
    with ThreadPoolExecutor(state.READERS) as pool:
        pairs = zip(planned, pool.map(load, planned), strict=True)
        return {spec.key: saved for spec, saved in pairs if saved}


def settings_path(run: str | Path) -> Path:
    """Return the path of the settings of a launched study."""
    return place(run) / 'launch' / 'settings.json'


def _refuse_for_the_cloud(args, run, settings):
    """Raise ValueError in one line for what machines elsewhere could not find or run."""
    if not in_bucket(run):
        raise ValueError(f'--run {run} is on this machine, which --backend {settings.backend} '
                         'cannot reach; give a folder of a bucket, as gs://BUCKET/runs/NAME')
    # Machines have the image, not this disk: the same path must lead to the file in both.
    path = Path(args.config.partition(':')[0])
    if path.is_absolute() or '..' in path.parts or path.parts[0] != 'experiments':
        raise ValueError(f'{path} is not in the image of --backend {settings.backend}, which holds '
                         'experiments/; put it there, and launch from the folder above')
    if not settings.image or '@sha256:' not in settings.image:
        raise ValueError('--image must name an image by its digest, as REGION-docker.pkg.dev/'
                         'PROJECT/downscale/downscale@sha256:...; a tag could change under the '
                         'sweep')
    if settings.backend == 'tpuvm' and not settings.zones:
        raise ValueError('--backend tpuvm needs --zone, as --zone us-west4-a us-east5-b')


# --- git --------------------------------------------------------------------------------------

def commit() -> str:
    """Return the commit of the working tree, 'none' where there is none to be read."""
    done = _git('rev-parse', 'HEAD')
    return done.stdout.strip() if done and done.returncode == 0 else 'none'


def changed() -> list[str]:
    """Return the files of the working tree that differ from its commit, none outside a repository.

    ValueError where git cannot tell: it is missing, or refuses to read the tree.
    """
    # Untracked files count too: a study file that was never committed is in no image.
    done = _git('status', '--porcelain')
    if done is None:
        raise ValueError('git is not installed')
    if done.returncode:
        why = done.stderr.strip().partition('\n')[0].removeprefix('fatal: ')
        if why.startswith('not a git repository'):
            return []
        raise ValueError(f'git refuses: {why}')
    return [line[3:] for line in done.stdout.strip('\n').splitlines()]


def _git(*argv):
    """Return what git answers, in English; None without git."""
    try:
        return subprocess.run(['git', *argv], capture_output=True, text=True, check=False,
                              env={**os.environ, 'LC_ALL': 'C'})
    except OSError:
        return None


# --- which jobs -------------------------------------------------------------------------------

def select(sweep: Sweep, args: argparse.Namespace,
           specs: Sequence[Spec]) -> list[tuple[Spec, state.Job]]:
    """Return those of `specs` that --cell and --only mean, each with its `state.Job`.

    ValueError in one line for a cell or state that does not exist.
    """
    cells = _cells(sweep, args)
    only = _states(args)
    # All are read, also those that are not meant: the state of a job depends on what it needs.
    jobs = state.read(sweep.run, specs, time.time())
    return [(spec, job) for spec, job in zip(specs, jobs, strict=True)
            if spec.cell in cells and (not only or job.state in only)]


def select_unread(sweep: Sweep, args: argparse.Namespace) -> list[Spec]:
    """Return the planned specs that --cell means, without reading the run folder.

    ValueError in one line where --only needs it.
    """
    cells = _cells(sweep, args)
    if _states(args):
        raise ValueError('--only needs the run folder, which --dry-run does not read')
    return [spec for spec in sweep.planned if spec.cell in cells]


def _cells(sweep, args):
    """Return the cells that --cell names, all of the study without it."""
    wanted = args.cell or []
    names = list(dict.fromkeys(spec.cell for spec in sweep.planned))
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, 0.4)
            hint = f'did you mean {near[0]!r}?' if near else f'known are {", ".join(names)}'
            raise ValueError(f'no cell {name!r}; {hint}')
    return wanted or names


def _states(args):
    """Return the states that --only names, none without it."""
    only = []
    for text in args.only or ():
        only += text.split(',')
    for name in only:
        if name not in STATES:
            raise ValueError(f'--only {name}: a job is {", ".join(STATES[:-1])} or {STATES[-1]}')
    return only


def with_needs(specs: Sequence[Spec], known: Sequence[Spec]) -> list[Spec]:
    """Return `specs` and all of `known` that they need, in the order of `known`."""
    by_key = {spec.key: spec for spec in known}
    needed = set()
    todo = [spec.key for spec in specs]
    while todo:
        key = todo.pop()
        if key in by_key and key not in needed:
            needed.add(key)
            todo += by_key[key].needs
    return [spec for spec in known if spec.key in needed]


# --- backends ---------------------------------------------------------------------------------

def backend_of(settings: LaunchSettings) -> supervise.Backend:
    """Return the backend that runs the jobs."""
    if settings.backend == 'local':
        return local.LocalBackend()
    if settings.backend == 'tpuvm':
        return tpuvm.TpuvmBackend(_queued_options(settings))
    from downscale.launch.backends import gke
    return gke.GkeBackend(_gke_options(settings))


def policy_of(settings: LaunchSettings) -> watch.Policy:
    """Return the limits of a sweep; on this machine as many jobs at once as it has cores for."""
    limits = {'max_chips': settings.max_chips, 'max_usd': settings.max_usd}
    if settings.backend == 'local':
        # A core for each process of a job.
        parallel = max(1, (os.cpu_count() or 1) // processes_of(settings.topology or HERE)[0])
        return dataclasses.replace(local.policy(settings.max_parallel or parallel), **limits)
    return watch.Policy(max_parallel=settings.max_parallel or CLOUD_PARALLEL,
                        zones=settings.zones or ('',), **limits)


def written(spec: Spec, settings: LaunchSettings) -> tuple[str, str]:
    """Return (ending of a file name, text) of what would be sent to the backend for a job.

    The text is a manifest or commands for a shell. ValueError in one line for a job that the
    backend would refuse.
    """
    if settings.backend == 'gke':
        from downscale.launch.backends import gke
        return '.yaml', gke.text(gke.manifest(spec, _gke_options(settings)))
    if settings.backend == 'tpuvm':
        options = _queued_options(settings)
        commands = [tpuvm.create_command(spec, options, options.zones[0])]
    else:
        commands = []
        # As a person would type it: `env` sets what the processes get beside the environment.
        for argv, environment in local.commands(spec):
            variables = [f'{name}={value}' for name, value in environment.items()]
            commands.append(['env', *variables, *argv])
    return '.sh', '\n'.join(map(shlex.join, commands)) + '\n'


def _queued_options(settings):
    if not SCRIPT.is_file():
        raise ValueError(f'no {SCRIPT}; launch from a clone of the repository')
    kind = {'on-demand': 'guaranteed'}.get(settings.capacity, settings.capacity)
    return tpuvm.QueuedOptions(
        zones=settings.zones,
        script=str(SCRIPT),
        kind=kind,
        valid_for=settings.valid_for,
        service_account=settings.service_account,
        internal_ips=settings.internal_ips,
    )


def _gke_options(settings):
    from downscale.launch.backends import gke
    if (settings.capacity == 'reserved') != bool(settings.reservation):
        raise ValueError('--capacity reserved and --reservation NAME go together on --backend gke')
    return gke.GkeOptions(
        namespace=settings.namespace, queue=settings.queue, priority=settings.priority,
        spot=settings.capacity == 'spot', reservation=settings.reservation,
        service_account=settings.service_account, context=settings.context)


def save(sweep: Sweep, specs: Sequence[Spec]) -> None:
    """Write the settings and the specs of submitted jobs into the run folder."""
    write_json(settings_path(sweep.run), dataclasses.asdict(sweep.settings))
    with ThreadPoolExecutor(state.READERS) as pool:
        list(pool.map(state.save_spec, specs))

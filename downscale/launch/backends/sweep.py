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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from downscale.config import Experiment
from downscale.launch import state, supervise, watch
from downscale.launch.backends import local, mig, mounting, tpuvm
from downscale.launch.backends.settings import HERE, LaunchSettings, settings_of
from downscale.launch.job_files import OneByOne, files_of
from downscale.launch.spec import Spec, processes_of, specs_of
from downscale.planner.topologies import ZONES, topology
from downscale.runtime.files import absolute, in_bucket, place, read_json, write_json

SCRIPT = local.PACKAGE.parent / 'launch' / 'startup.sh'
STATES = ('waiting', 'missing', 'running', 'stale', 'failed', 'cancelled', 'fatal', 'done')
CLOUD_PARALLEL = 4
WRITERS = 16
# Stands for an image in a dry run: a digest in form, which all checks accept.
NO_IMAGE = f'IMAGE@sha256:{"0" * 64}'


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The jobs of a study as it is now (`planned`) and as they were submitted ({key: `saved`})."""
    name: str
    run: str
    settings: LaunchSettings
    cells: tuple[Experiment, ...]
    planned: tuple[Spec, ...]
    saved: dict[str, Spec]
    files: OneByOne

    @property
    def known(self) -> list[Spec]:
        """Every job: as it was submitted, or else as it would be."""
        return [self.saved.get(spec.key, spec) for spec in self.planned]


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
    files = files_of(run) if asked else state.ONE_BY_ONE
    planned = specs_of(config.study, args.config, args.set, tasks_of(cells),
                       settings.topology or HERE, settings.image, commit(), run)
    return Sweep(
        name=config.study,
        run=run,
        settings=settings,
        cells=tuple(cells),
        planned=tuple(planned),
        saved=_saved(planned, files) if asked else {},
        files=files,
    )


def with_cache(sweep: Sweep, asked: bool = True) -> Sweep:
    """Return `sweep` with the size of the file cache that its mounted mixtures take.

    FileNotFoundError where a mixture is not in the bucket; unless `asked` no bucket is read.
    """
    gib = mounting.cache_gib(sweep.cells, sweep.settings.mounts, asked)
    return dataclasses.replace(sweep, settings=dataclasses.replace(sweep.settings, cache_gib=gib))


def _saved(planned, files):
    """Return {key: `Spec`} of the jobs that were submitted, as they were."""
    saved = {}
    for spec in planned:
        folder = state.folder_of(spec.run, spec)
        if 'spec.json' in files.names(folder):
            saved[spec.key] = state.load_spec(state.spec_file(spec), files)
    return saved


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
    if settings.backend in ('tpuvm', 'mig') and not settings.zones:
        generation = topology(settings.topology).generation
        raise ValueError(f'--backend {settings.backend} needs --zone; {generation} is in '
                         f'{", ".join(ZONES[generation])} (North America)')


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
    jobs = state.read(sweep.run, specs, time.time(), files=sweep.files)
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
        return local.LocalBackend(settings.mounts)
    if settings.backend == 'tpuvm':
        return tpuvm.TpuvmBackend(_queued_options(settings))
    if settings.backend == 'mig':
        return mig.MigBackend(_mig_options(settings))
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
    elif settings.backend == 'mig':
        commands = mig.create_commands(spec, _mig_options(settings), settings.zones[0])
    else:
        commands = []
        # As a person would type it: `env` sets what the processes get beside the environment.
        for argv, environment in local.commands(spec, settings.mounts):
            variables = [f'{name}={value}' for name, value in environment.items()]
            there = mounting.folder_of(spec, settings.mounts)
            start = ['env', f'--chdir={there}'] if there else ['env']
            commands.append([*start, *variables, *argv])
    return '.sh', '\n'.join(map(shlex.join, commands)) + '\n'


def _queued_options(settings):
    kind = {'on-demand': 'guaranteed'}.get(settings.capacity, settings.capacity)
    return tpuvm.QueuedOptions(kind=kind, **_vm_options(settings))


def _mig_options(settings):
    return mig.MigOptions(
        capacity=settings.capacity, reservation=settings.reservation,
        max_run_duration=settings.max_run_duration or '7d', **_vm_options(settings))


def _vm_options(settings):
    """Return the fields of `gcloud.VmOptions`."""
    if not SCRIPT.is_file():
        raise ValueError(f'no {SCRIPT}; launch from a clone of the repository')
    return {'zones': settings.zones, 'script': str(SCRIPT), 'valid_for': settings.valid_for,
            'service_account': settings.service_account, 'internal_ips': settings.internal_ips,
            'mounts': settings.mounts, 'cache_gib': settings.cache_gib}


def _gke_options(settings):
    from downscale.launch.backends import gke
    return gke.GkeOptions(
        namespace=settings.namespace, queue=settings.queue, priority=settings.priority,
        spot=settings.capacity == 'spot', flex_start=settings.capacity == 'flex-start',
        reservation=settings.reservation,
        service_account=settings.service_account, context=settings.context,
        mounts=settings.mounts, cache_gib=settings.cache_gib)


def save(sweep: Sweep, specs: Sequence[Spec]) -> None:
    """Write the settings and the specs of submitted jobs into the run folder."""
    write_json(settings_path(sweep.run), dataclasses.asdict(sweep.settings))
    with ThreadPoolExecutor(WRITERS) as pool:  # a file of a bucket takes a tenth of a second
        list(pool.map(state.save_spec, specs))

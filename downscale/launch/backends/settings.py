"""Where and how the jobs of a study run, as the command line says on top of how they ran last."""
import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from downscale.launch.backends import capacity, mounting
from downscale.launch.spec import on_cpu, processes_of

HERE = 'cpu:1x1'  # the topology of this machine, where none is given


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """Where and how the jobs of a study run; with None the backend decides.

    `capacity` is 'spot', 'on-demand', 'flex-start' or 'reserved'; `mounts` are NAME=PLACE, and
    `cache_gib` follows from what lies there (`sweep.with_cache`). What each backend reads is in
    `BACKENDS`.
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
    max_run_duration: str | None = None
    mounts: tuple[str, ...] = ()
    cache_gib: int | None = None


CLOUD = ('image', 'capacity', 'service_account', 'mounts')
BACKENDS = {  # what each reads beside topology and limits
    'local': ('mounts',), 'tpuvm': (*CLOUD, 'zones', 'valid_for', 'internal_ips'),
    'mig': (*CLOUD, 'zones', 'valid_for', 'internal_ips', 'reservation', 'max_run_duration'),
    'gke': (*CLOUD, 'namespace', 'queue', 'priority', 'reservation', 'context')}
LIMITS = ('topology', 'max_parallel', 'max_chips', 'max_usd')


def settings_of(args: argparse.Namespace, before: Mapping[str, Any] | None) -> LaunchSettings:
    """Return the `LaunchSettings` of the command line, on top of those `before`.

    ValueError in one line for a flag that the backend does not read, and for one that it needs.
    """
    # 1. The backend: as given, as before, or by the topology. Another one starts afresh.
    names = [field.name for field in dataclasses.fields(LaunchSettings)]
    given = {name: value for name, value in vars(args).items()
             if name in names and value is not None}
    before = {name: value for name, value in (before or {}).items() if name in names}
    on_slices = not on_cpu(given.get('topology', HERE))
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
    value: dict[str, Any] = before | given | {'backend': backend}
    if backend == 'local':
        value.setdefault('topology', HERE)
    # What was said of flex-start before holds for no other capacity.
    if value.get('capacity') != 'flex-start' and 'max_run_duration' not in given:
        value.pop('max_run_duration', None)
    # 3. Values that go together.
    # Lists in JSON. What was noted before was checked then.
    value['zones'] = tuple(value.get('zones', ()))
    value['mounts'] = tuple(before.get('mounts', ()))
    if 'mounts' in given:
        value['mounts'] = mounting.checked(given['mounts'], backend)
    settings = LaunchSettings(**value)
    if settings.topology is None:
        raise ValueError(f'say on which slices: --backend {backend} --topology v5e:4x4')
    processes_of(settings.topology)
    if (backend == 'local') != on_cpu(settings.topology):
        runs = 'cpu:PxD, P processes of D devices'
        if backend != 'local':
            runs = 'on slices, as v5e:4x4'
        raise ValueError(f'--topology {settings.topology} is not for --backend {backend}; it runs '
                         f'{runs}')
    for name in ('max_parallel', 'max_chips', 'max_usd'):
        limit = value.get(name)
        if limit is not None and not limit > 0:
            raise ValueError(f'{flag(name)} {limit} must be above 0')
    capacity.refuse(settings)
    return settings


def flag(name: str) -> str:
    """Return how a field of `LaunchSettings` is written on the command line."""
    return {'zones': '--zone', 'mounts': '--mount'}.get(name, f'--{name.replace("_", "-")}')

"""Which kinds of machines a back end has, and how long they run."""
import re
from typing import TYPE_CHECKING

from downscale.launch.backends import mig

if TYPE_CHECKING:
    from downscale.launch.backends.settings import LaunchSettings


def refuse(settings: 'LaunchSettings') -> None:
    """Raise ValueError in one line for a kind of machines that the backend does not have."""
    kind = settings.capacity
    if settings.backend == 'tpuvm' and kind == 'flex-start':
        raise ValueError('--capacity flex-start is not for --backend tpuvm (legacy), but for gke '
                         'and mig')
    if settings.backend in ('gke', 'mig') and (kind == 'reserved') != bool(settings.reservation):
        raise ValueError('--capacity reserved and --reservation NAME go together on --backend '
                         f'{settings.backend}')
    run = settings.max_run_duration
    if run and kind != 'flex-start':
        raise ValueError('--max-run-duration goes with --capacity flex-start; machines of other '
                         'kinds have no limit')
    if run and not mig.LEAST_SECONDS <= mig.seconds(run) <= mig.WEEK_SECONDS:
        raise ValueError(f'--max-run-duration {run}: flex-start machines run from 10m to 7d; a job '
                         'that takes longer goes on on new ones')
    if settings.backend == 'mig':
        _refuse_for_groups(settings)


def _refuse_for_groups(settings):
    """Raise ValueError in one line for what no group of Compute Engine could be asked for."""
    mig.refuse(settings.topology)
    if settings.valid_for:
        mig.seconds(settings.valid_for)
    for zone in settings.zones:
        if not re.fullmatch(r'[a-z]+-[a-z]+\d+-\w+', zone):
            raise ValueError(f'--zone {zone} is no zone of Compute Engine, as us-east5-a is one')


def remarks(settings: 'LaunchSettings') -> list[str]:
    """Return what a person should know of the way in which machines are asked for."""
    if settings.backend != 'tpuvm':
        return []
    return ['--backend tpuvm asks for queued resources, which are legacy: gke and mig are the '
            'newer ways']


def max_run_seconds(settings: 'LaunchSettings') -> int | None:
    """Return how long a machine runs at most, None where that has no limit."""
    if settings.capacity != 'flex-start':
        return None
    # On GKE the node pool may say less.
    run = settings.max_run_duration
    return mig.seconds(run) if run else mig.WEEK_SECONDS

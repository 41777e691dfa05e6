"""What a command asks of this machine: its cores, and to be ready for models."""
import os

from downscale.experiment.file import on_cpu
from downscale.runtime.memory import keep_freed_memory
from downscale.runtime.setup import cache_folder


def cores() -> int:
    """Return how many cores this process may use, 1 where the system does not say."""
    # A batch system may allow fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1


def prepare_for_models() -> None:
    """Keep freed memory on CPU, and compiled programs in the cache. JAX is imported here."""
    # Memory first: the allocator is set before JAX allocates anything.
    if on_cpu():
        keep_freed_memory()
    from downscale.study.workers import use_cache
    use_cache(cache_folder())

"""How this process asks the system for memory."""
import ctypes
import os

# Names of glibc's allocator parameters, their numbers in malloc.h, and the values wanted.
_WANTED = {'MALLOC_MMAP_MAX_': (-4, 0), 'MALLOC_TRIM_THRESHOLD_': (-1, 2**31 - 1),
           'MALLOC_ARENA_MAX': (-8, 1)}


def keep_freed_memory() -> None:
    """Let freed memory stay with this process, and with those it starts, for the next step.

    XLA on CPU allocates the temporaries of a step anew each time; glibc hands them back to the
    system between steps, and the page faults of getting them again took a third of the time of a
    64 x 4 step. Values that the user has set in the environment stand. No effect without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for name, (number, value) in _WANTED.items():
        if name not in os.environ:
            os.environ[name] = str(value)
            mallopt(number, value)


def give_back() -> None:
    """Give freed memory back to the system, in milliseconds: after compiling, or between tasks.

    Otherwise each process would keep for good what a compiler needed once.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return

"""What the console asks of the allocator, and that a user's own wish stands."""
import os
import subprocess
import sys

PROGRAM = ('import os; from downscale.runtime.memory import give_back, keep_freed_memory; '
           'keep_freed_memory(); give_back(); '
           'print(os.environ.get("MALLOC_MMAP_MAX_"), os.environ.get("MALLOC_ARENA_MAX"))')


def told(**given):
    clean = {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')}
    return subprocess.run([sys.executable, '-c', PROGRAM], env={**clean, **given}, check=True,
                          capture_output=True, text=True).stdout.split()


def test_processes_that_are_started_later_keep_freed_memory_too():
    expected = ['0', '1'] if sys.platform == 'linux' else ['None', 'None']
    assert told() == expected


def test_what_the_user_has_set_stands():
    assert told(MALLOC_ARENA_MAX='3')[1] == '3'

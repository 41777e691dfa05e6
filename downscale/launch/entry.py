"""What every backend starts in each process of a job.

`python -m downscale.launch.entry RUN/launch/CELL/PART/spec.json`; see `attempt.py`.
"""
import os
import signal
import sys
from collections.abc import Sequence

from downscale.runtime.exits import PREEMPTED


def main(argv: Sequence[str]) -> int:
    """Make one attempt at the job, and return an exit code of `exits.TABLE`."""
    # JAX takes seconds to import and more to join the others. Until then SIGTERM would count as a
    # crash, and the first process of a container does not even notice it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(PREEMPTED))
    from downscale.launch.attempt import run
    return run(argv[0])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))

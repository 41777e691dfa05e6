"""How a run ends: one table for the trainer, manifests, the start-up script and the watcher."""
from dataclasses import dataclass

DONE, CRASHED, BUG, PREEMPTED, FATAL, MISMATCH, LOST, INTERRUPTED = 0, 1, 3, 42, 64, 69, 70, 130


@dataclass(frozen=True)
class Ending:
    """What an exit code means. `restart` is 'none', 'free' (as often as it happens), 'counted'
    (a few times) or 'never'."""
    meaning: str
    restart: str


TABLE = {
    DONE: Ending('done', 'none'),
    BUG: Ending('crashed by a fault of downscale itself', 'counted'),
    PREEMPTED: Ending('preempted, saved', 'free'),
    FATAL: Ending('fatal: configuration, data, or out of device memory', 'never'),
    MISMATCH: Ending('other devices than the launch expects', 'counted'),
    LOST: Ending('another process was killed, or its machine is gone', 'counted')}
_CRASH = Ending('crashed', 'counted')


def ending(code):
    """The `Ending` of an exit code; negative ones are signals, as `subprocess` gives them."""
    return TABLE.get(code, _CRASH)


class Failed(RuntimeError):
    """An error with an exit code of its own."""

    def __init__(self, text, code):
        super().__init__(text)
        self.code = code


class Preempted(SystemExit):
    """The machine is wanted back; what there was to save is saved. Ends the process with 42."""

    def __init__(self, text):
        super().__init__(PREEMPTED)
        self.text = text

    def __str__(self):
        return self.text


def code_of(error):
    """The exit code that an exception stands for."""
    if isinstance(error, (Failed, SystemExit)):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    # A second try would only find the same settings, data or memory.
    if isinstance(error, (ValueError, FloatingPointError)) or 'RESOURCE_EXHAUSTED' in str(error):
        return FATAL
    return CRASHED

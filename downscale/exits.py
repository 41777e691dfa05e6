"""How a run ends: one table for the trainer, manifests, the start-up script and the watcher."""
from dataclasses import dataclass

DONE, CRASHED, PREEMPTED, FATAL, MISMATCH = 0, 1, 42, 64, 69


@dataclass(frozen=True)
class Ending:
    """What an exit code means. `restart` is 'none', 'free' (as often as it happens), 'counted'
    (a few times) or 'never'."""
    meaning: str
    restart: str


TABLE = {
    DONE: Ending('done', 'none'),
    PREEMPTED: Ending('preempted, saved', 'free'),
    FATAL: Ending('fatal: configuration, data, or out of device memory', 'never'),
    MISMATCH: Ending('other devices than the launch expects', 'counted')}
_CRASH = Ending('crashed', 'counted')


def ending(code):
    """The `Ending` of an exit code; negative ones are signals, as `subprocess` gives them."""
    return TABLE.get(code, _CRASH)

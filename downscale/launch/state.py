"""What a run folder says of its jobs. Only files are read, so no cluster can lose it.

Each job has a folder RUN/launch/CELL/PART with `spec.json`, `attempts/NNN.json`, `progress.json`
and, in the end, `DONE.json` or `FATAL.json`; process 0 of `attempt.py` writes all but the first.
`CANCELLED.json` and `resumed.json` are what a person asked for (`cancel`, `resume`).
Steps are counted over the tasks of a job; an evaluation is one step.
"""
import dataclasses
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from downscale.launch.job_files import OneByOne, files_of
from downscale.launch.spec import Spec, on_cpu, processes_of
from downscale.planner.topologies import topology
from downscale.runtime.exits import FATAL, LOST, ending, passes
from downscale.runtime.files import in_bucket, place, write_json

STALE_SECONDS = 300  # a running attempt writes at least every `attempt.TICK_SECONDS`
# How long a single look waits for a new stamp: some ticks.
LOOK_SECONDS = 4
BUCKET_LOOK_SECONDS = 45
ONE_BY_ONE = OneByOne()
# Attempts in a row without a newer checkpoint after which it will not get better: those that
# crashed by themselves, and those that were killed, for which they may not be to blame.
CRASHES = 3
KILLS = 10


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job at one time.

    `state` is waiting (for what it needs), missing (never ran), running, stale (no sign of life),
    failed (may start again), cancelled, fatal or done. `age` is seconds since the last checkpoint,
    `eta` seconds to the end; `goodput` is the share of all attempts' time that went into steps
    that count, `lost` the number of those that do not. What is not known is None.
    """
    key: str
    name: str
    state: str
    reason: str = ''
    attempt: int | None = None
    task: str | None = None
    step: int = 0
    total: int | None = None
    age: float | None = None
    tokens_per_s: float | None = None
    chip_hours: float = 0.0
    usd: float | None = None
    eta: float | None = None
    goodput: float | None = None
    lost: int = 0


def folder_of(run: str | Path, spec: Spec) -> Path:
    """Return the folder of a job."""
    return place(run) / 'launch' / spec.cell / spec.part


def spec_file(spec: Spec) -> Path:
    """Return the path of a job's `spec.json`."""
    return folder_of(spec.run, spec) / 'spec.json'


def command_of(spec: Spec, python: str) -> list[str]:
    """Return the argv of every process of a job, started by `python`.

    `launch/startup.sh` has it once more, for machines that know their `spec.json` alone.
    """
    return [python, '-m', 'downscale.launch.entry', str(spec_file(spec))]


def save_spec(spec: Spec) -> Path:
    """Write `spec.json` into the job's folder, and return its path."""
    path = spec_file(spec)
    write_json(path, {**dataclasses.asdict(spec), 'hash': spec.hash, 'name': spec.name})
    return path


def load_spec(path: str | Path, files: OneByOne = ONE_BY_ONE) -> Spec:
    """Return the `Spec` of a `spec.json`; ValueError in one line when the file holds none."""
    try:
        value = files.json(place(path))
        if value is None:
            raise FileNotFoundError('there is no such file')
        fields: dict[str, Any] = {field.name: value[field.name]
                                  for field in dataclasses.fields(Spec)}
        # JSON has no tuples; with lists no spec would equal the one that was written.
        for name, part in fields.items():
            if isinstance(part, list):
                fields[name] = tuple(part)
        spec = Spec(**fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if passes(error):  # a bucket out of reach says nothing about its files
            raise
        raise ValueError(f'{path} is no spec.json of a launch ({type(error).__name__}: {error}); '
                         'submit the job again') from None
    if value.get('hash') != spec.hash:
        raise ValueError(f'{path} was changed by hand or written by another version (hash '
                         f'{value.get("hash")}, content {spec.hash}); submit the job again')
    return spec


def ended(run: str | Path, spec: Spec, name: str,
          files: OneByOne = ONE_BY_ONE) -> dict[str, Any] | None:
    """Return what the marker `name`, as 'DONE.json', says of exactly this spec, else None."""
    value = files.json(folder_of(run, spec) / name)
    return value if value and value.get('spec') == spec.hash else None


def attempts(folder: str | Path, files: OneByOne = ONE_BY_ONE) -> list[dict[str, Any]]:
    """Return the attempts of a job, oldest first."""
    path = place(folder) / 'attempts'
    # Numbers of three digits, so that the order of names is that of time.
    return [files.json(path / name) for name in files.names(path)
            if name.endswith('.json') and not name.startswith('.')]


def cancel(spec: Spec, now: float) -> None:
    """Let no attempt of a job run or start until `resume`, unless the job is done."""
    write_json(folder_of(spec.run, spec) / 'CANCELLED.json', {'spec': spec.hash, 'time': now})


def resume(spec: Spec, now: float) -> None:
    """Let a job start again; what went wrong before the unix time `now` no longer counts."""
    folder = folder_of(spec.run, spec)
    # Before the markers go: without it the old attempts would make the job hopeless at once.
    write_json(folder / 'resumed.json', {'time': now})
    for name in ('CANCELLED.json', 'FATAL.json'):
        (folder / name).unlink(missing_ok=True)


def counting(spec: Spec, rows: Sequence[dict[str, Any]],
             files: OneByOne = ONE_BY_ONE) -> list[dict[str, Any]]:
    """Return those attempts or tries among `rows` that are of this spec and later than `resume`."""
    resumed = files.json(folder_of(spec.run, spec) / 'resumed.json') or {'time': float('-inf')}
    return [row for row in rows if row['spec'] == spec.hash
            and row.get('began', row.get('at')) > resumed['time']]


def hopeless(attempts: Sequence[dict[str, Any]]) -> str | None:
    """Return why another attempt after these makes no sense, None where it does."""
    # In a row: a newer checkpoint wipes out what went wrong before it.
    vain = []
    for attempt in attempts:
        counted = attempt['exit'] is None or ending(attempt['exit']).restart == 'counted'
        # After FATAL a job starts only when a person says so, which is a new beginning.
        if attempt['exit'] == FATAL or attempt['last_step'] > attempt['first_step']:
            vain = []
        elif counted:
            vain.append(attempt)
    killed = sum(attempt['exit'] in (None, LOST) for attempt in vain)
    if len(vain) - killed < CRASHES and killed < KILLS:
        return None
    last = vain[-1]
    return (f'{len(vain)} attempts in a row ended without a newer checkpoint than step '
            f'{last["last_step"]} (the last: {last["reason"] or "killed without a word"}); '
            'see logs, then resume')


class Stamps:
    """How long the stamp of life of each job has stood still.

    Only the clock of this process counts: clocks of two machines are never compared.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.last = {}

    def still(self, key: Hashable, stamp: float) -> float:
        """Return seconds for which `key` has had this stamp, as far as this process has seen."""
        now = self.clock()
        if self.last.get(key, (None, now))[0] != stamp:
            self.last[key] = stamp, now
        return now - self.last[key][1]


def read(run: str | Path, specs: Sequence[Spec], now: float, stamps: Stamps | None = None,
         files: OneByOne | None = None, stale: float = STALE_SECONDS) -> list[Job]:
    """Return a `Job` for each spec at the unix time `now`.

    `files` has read the files of the jobs already, at about that time. With the `stamps` of a
    process that watches, a stamp that has not moved for `stale` seconds makes a job stale; without
    them, jobs whose stamp looks old are looked at twice, some seconds apart, and those whose stamp
    has not moved are stale.
    """
    files = files or files_of(run)
    if stamps is not None:
        # A watcher has seen the stamps move itself; one look needs a second one to compare.
        limits = dict.fromkeys([spec.key for spec in specs], stale)
        return _read(run, specs, now, stamps, limits, files)
    stamps = Stamps()
    wait = BUCKET_LOOK_SECONDS if in_bucket(run) else LOOK_SECONDS
    jobs = _read(run, specs, now, stamps, {}, files)
    doubtful = [key for key, (stamp, _) in stamps.last.items() if abs(now - stamp) > STALE_SECONDS]
    if not doubtful:
        return jobs
    time.sleep(wait)
    files.refresh()
    return _read(run, specs, now + wait, stamps, dict.fromkeys(doubtful, wait / 2), files)


def _read(run, specs, now, stamps, limits, files):
    """Return the `Job` of each spec.

    `limits` are {key: seconds of stillness from which on a job is stale}; one without is never.
    """
    done = {spec.key for spec in specs if ended(run, spec, 'DONE.json', files)}
    jobs = []
    for spec in specs:
        still = partial(stamps.still, spec.key)
        jobs.append(_job(run, spec, done, now, still, limits.get(spec.key), files))
    return jobs


def _job(run, spec, done, now, still, limit, files):
    # 1. What the files say.
    folder = folder_of(run, spec)
    rows = attempts(folder, files)
    progress = files.json(folder / 'progress.json') or {}
    state, reason = _state(run, spec, rows, done, still, limit, files)
    # 2. What all attempts took, and brought.
    # Machines that waited, or never began, are in no attempt and so in no cost.
    seconds = sum(_seconds(attempt) for attempt in rows)
    chips, price = chips_of(spec)
    hours = chips * seconds / 3600
    gained = sum(attempt['last_step'] - attempt['first_step'] for attempt in rows)
    lost = sum(attempt['steps_lost'] for attempt in rows)
    stepping = sum(attempt['steps_s'] for attempt in rows)
    goodput_of_all = None
    if seconds:
        goodput_of_all = sum(goodput(attempt) * _seconds(attempt) for attempt in rows) / seconds
    # 3. How long the rest takes at the pace of all steps so far, lost ones included.
    total = progress.get('job_total')
    step = progress.get('job_step', 0)
    eta = None
    if state == 'running' and stepping and gained + lost:
        eta = (total - step) * stepping / (gained + lost)
    saved = progress.get('checkpoint_time')
    return Job(
        key=spec.key,
        name=spec.name,
        state=state,
        reason=reason,
        attempt=rows[-1]['attempt'] if rows else None,
        task=progress.get('task'),
        step=step,
        total=total,
        age=max(0.0, now - saved) if saved else None,
        tokens_per_s=progress.get('tokens_per_s') if state == 'running' else None,
        chip_hours=hours,
        usd=None if price is None else hours * price,
        eta=eta,
        goodput=goodput_of_all,
        lost=lost,
    )


def _state(run, spec, rows, done, still, limit, files):
    """Return (state, reason) of a job with the attempts `rows`; `done` are keys of jobs.

    `still(stamp)` are the seconds that it has stood still, from `limit` (or None) on it is stale.
    """
    # What a person or a marker says goes before what the last attempt says.
    if spec.key in done:
        return 'done', ''
    if ended(run, spec, 'CANCELLED.json', files):
        return 'cancelled', ''
    fatal = ended(run, spec, 'FATAL.json', files)
    if fatal:
        return 'fatal', fatal['reason']
    last = rows[-1] if rows else None
    if last is None or last['spec'] != spec.hash:
        # A need that is not among these specs is looked up in its folder.
        missing = [need for need in spec.needs if need not in done and not files.json(
            place(run) / 'launch' / need / 'DONE.json')]
        return (('waiting', f'needs {", ".join(missing)}') if missing
                else ('missing', _asked(run, spec, files)))
    if last['exit'] is not None:
        return 'failed', last['reason']
    silent = still(last['seen'])
    if limit is not None and silent >= limit:
        return 'stale', f'no sign of life since {time.ctime(last["seen"])} of its own clock'
    return 'running', _before(rows[-2]) if len(rows) > 1 else ''


def _asked(run, spec, files):
    """Return when machines were last asked for, none of which has begun; '' where none was."""
    tries = [row for row in files.json(folder_of(run, spec) / 'tries.json', list) or []
             if row['spec'] == spec.hash]
    if not tries:
        return ''
    last = tries[-1]
    where = f' in {last["zone"]}' if last['zone'] else ''
    times = f', the {len(tries)}. time' if len(tries) > 1 else ''
    return f'asked for {spec.name}{where} at {time.ctime(last["at"])}{times}; none has begun it'


def _before(attempt):
    """Return how the attempt before the last one ended."""
    reason = attempt['reason'] or 'killed without a word'
    return (f'attempt {attempt["attempt"]}: {reason}, at step {attempt["last_step"]}, '
            f'{attempt["steps_lost"]} steps lost')


def goodput(attempt: Mapping[str, Any]) -> float:
    """Return the share of an attempt's time that went into steps that a checkpoint holds."""
    gained = attempt['last_step'] - attempt['first_step']
    executed = gained + attempt['steps_lost']
    seconds = _seconds(attempt)
    return attempt['steps_s'] / seconds * gained / executed if executed and seconds else 0.0


def _seconds(attempt):
    return (attempt['ended'] or attempt['seen']) - attempt['began']


def chips_of(spec: Spec) -> tuple[int, float | None]:
    """Return (chips, dollars per chip-hour or None) of a spec.

    A device of this machine counts as a chip, without a price.
    """
    if on_cpu(spec.topology):
        count, devices = processes_of(spec.topology)
        return count * devices, None
    slices = topology(spec.topology)
    return slices.chips, slices.chip.usd

"""What to do next for a sweep, from what is wanted, what the backend shows, and the time.

Nothing is remembered between two calls: attempts and tries are in the run folder and resources at
the backend, so a watcher that was killed anywhere goes on where it was.
"""
from collections.abc import Sequence
from dataclasses import dataclass

from downscale.runtime.exits import ending


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt of a job, between the unix times `began` and `ended` (when it was last heard of).

    `code` is its exit code, None when it was lost without one; `gained` is whether it left a newer
    checkpoint.
    """
    began: float
    ended: float
    code: int | None
    gained: bool


@dataclass(frozen=True)
class Try:
    """One creation of a resource at the unix time `at`.

    `code` is how its program ended, where the backend could tell.
    """
    at: float
    code: int | None = None


@dataclass(frozen=True, kw_only=True)
class Desired:
    """One job of the sweep, as its folder tells; `state` is that of `state.Job`.

    `hopeless` is why another attempt makes no sense, None where it does.
    """
    key: str
    name: str
    hash: str
    state: str
    needs: tuple[str, ...] = ()
    chips: int = 1
    usd: float = 0.0
    usd_per_hour: float = 0.0
    attempts: tuple[Attempt, ...] = ()
    tries: tuple[Try, ...] = ()
    hopeless: str | None = None


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One resource of the sweep at the backend, there since the unix time `since`.

    `state` is pending, running, ended (with exit `code`), suspended, failed or deleting. A resource
    that `restarts` its program by itself may wait for machines again after it has run, so how long
    its machines have been there is not known.
    """
    name: str
    hash: str
    state: str
    since: float
    zone: str = ''
    code: int | None = None
    message: str = ''
    restarts: bool = False


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Limits of a sweep.

    A job waits `base` seconds after a try that brought it no further, twice as long after each more
    in a row, up to `longest`; it may crash `counted` times. When its files say that it has ended,
    its machine has `grace` seconds left. A new machine has `start` seconds to begin, and a job that
    runs has `stale` seconds for a sign of life.
    """
    max_parallel: int
    max_chips: int | None = None
    max_usd: float | None = None
    base: float = 60
    longest: float = 3600
    zones: tuple[str, ...] = ('',)
    counted: int = 3
    grace: float = 60
    start: float = 1800
    stale: float = 300


@dataclass(frozen=True)
class Create:
    """The resource of this job is created."""
    key: str
    zone: str


@dataclass(frozen=True, kw_only=True)
class Delete:
    """The resource `name` is deleted; `code` is how its program ended, where that is known."""
    name: str
    zone: str
    why: str
    code: int | None = None


@dataclass(frozen=True)
class Wait:
    """This job is not started now, but at the unix time `until` if that is known."""
    key: str
    why: str
    until: float | None = None


@dataclass(frozen=True)
class Hold:
    """The resource of this job is left alone, until the unix time `until` if that is known."""
    key: str
    why: str
    until: float | None = None


@dataclass(frozen=True)
class GiveUp:
    """This job will not go on."""
    key: str
    why: str


@dataclass(frozen=True)
class Stop:
    """Nothing more is created: the money is spent."""
    why: str


@dataclass(frozen=True)
class Orphan:
    """A resource of this sweep that none of its jobs asks for; `gc` deletes it."""
    name: str
    zone: str


Action = Create | Delete | Wait | Hold | GiveUp | Stop | Orphan


def reconcile(desired: Sequence[Desired], observed: Sequence[Observed], now: float,
              policy: Policy) -> list[Action]:
    """Return the actions that bring a sweep on, in order.

    Jobs are created in the order of `desired`, where their needs are done.
    """
    resources = {resource.name: resource for resource in observed}
    wanted = {job.name for job in desired}
    states = {job.key: job.state for job in desired}
    # 1. What is in use: resources that no job asks for are left to `gc` and count for nothing.
    actions: list[Action] = [Orphan(resource.name, resource.zone) for resource in observed
                             if resource.name not in wanted]
    started = [job for job in desired if job.name in resources]
    # A resource that is being deleted still holds its chips, and so counts.
    chips = sum(job.chips for job in started)
    parallel = len(started)
    # 2. Why all jobs, or some, will not go on.
    stopped = _spent(desired, resources, now, policy)
    over = _over(desired, policy)
    # 3. The resource of each job that has one; a start, or why not, of each that has none.
    for job in desired:
        why = over.get(job.key)
        resource = resources.get(job.name)
        if resource:
            actions.append(_of_resource(job, resource, why, stopped, now, policy))
            continue
        if job.state == 'done':
            continue
        if why:
            actions.append(GiveUp(job.key, why))
            continue
        wait = _wait(job, states, now, policy)
        if wait:
            actions.append(wait)
        elif stopped:
            actions.append(Stop(f'{stopped}; {job.key} is not started'))
        elif parallel >= policy.max_parallel or (
                policy.max_chips is not None and chips + job.chips > policy.max_chips):
            actions.append(Wait(job.key, f'{parallel} jobs hold {chips} chips'))
        else:
            parallel += 1
            chips += job.chips
            actions.append(Create(job.key, _zone(job, policy)))
    return actions


def _spent(desired, resources, now, policy):
    """Return the line that says that the money is spent, None while some is left."""
    spent = 0.0
    for job in desired:
        spent += job.usd + _idle_usd(job, resources.get(job.name), now)
    if policy.max_usd is None or spent < policy.max_usd:
        return None
    return f'{spent:.2f} dollars of {policy.max_usd:.2f} are spent (estimate)'


def finished(actions: Sequence[Action]) -> bool:
    """Return whether a sweep with these actions will need no others, unless it is changed."""
    kinds = {type(action) for action in actions}
    # A job that waits has its turn coming, unless the money is spent.
    return not kinds & {Create, Delete, Hold} and (Stop in kinds or Wait not in kinds)


def _over(desired, policy):
    """Return {key: why} of the jobs that will not go on."""
    over = {job.key: why for job in desired if (why := _own_end(job, policy))}
    # A job of whose needs one is over is over as well, and so on along the chain.
    while True:
        more = {}
        for job in desired:
            missing = [need for need in job.needs if need in over]
            if missing and job.key not in over and job.state != 'done':
                more[job.key] = f'needs {missing[-1]}, which will not be done'
        if not more:
            return over
        over |= more


def _own_end(job, policy):
    """Return why a job will not go on, whatever others do; None where it may."""
    if job.state == 'done':
        return None
    if job.state in ('fatal', 'cancelled'):
        return job.state
    if job.hopeless:
        return job.hopeless
    # A program that ended before it could write has left its code with the backend alone.
    early = [row.code for row in _fruitless(job) if row.code is not None]
    for code in early:
        if ending(code).restart == 'never':
            return f'ended with exit code {code} before it could say why; see logs'
    codes = early + [attempt.code for attempt in job.attempts if attempt.code is not None]
    crashes = sum(ending(code).restart == 'counted' for code in codes)
    if crashes > policy.counted:
        return f'crashed {crashes} times; see logs'
    if policy.max_chips is not None and job.chips > policy.max_chips:
        return f'takes {job.chips} chips and --max-chips is {policy.max_chips}'
    return None


def _of_resource(job, resource, why, stopped, now, policy):
    """Return what happens to the resource of a job.

    `why` is why the job will not go on, `stopped` why the sweep will not; None where it may.
    """
    def delete(text):
        return Delete(name=resource.name, zone=resource.zone, why=text, code=resource.code)
    # 1. What the backend says of the resource itself.
    if resource.state == 'deleting':
        return Hold(job.key, 'its resource is being deleted')
    if resource.state in ('suspended', 'failed'):
        return delete(f'{resource.state}: {resource.message}'.rstrip(': '))
    if resource.state == 'ended':
        return delete(f'{ending(resource.code).meaning} (exit code {resource.code})')
    # 2. What shall not run. A program that is ending by itself gets time to save.
    if job.state == 'cancelled':
        return delete('cancelled')
    if stopped and job.state != 'done':
        return delete(stopped)
    last = job.attempts[-1] if job.attempts else None
    # Whether the last attempt is of this resource, and not of one that was there before.
    current = resource.state == 'running' and last and last.began >= resource.since
    if current and (why or job.state in ('done', 'failed')) and now < last.ended + policy.grace:
        return Hold(job.key, 'its program is ending', last.ended + policy.grace)
    if job.state == 'done' or why:
        return delete(why or 'done')
    # 3. What should run and does not.
    if resource.restarts:
        return Hold(job.key, resource.state)
    if current and job.state == 'failed':
        return delete(f'{ending(last.code).meaning} (exit code {last.code})')
    if current and job.state == 'stale':
        return delete('no sign of life')
    # A job that gives new signs of life has begun, whatever its clock says of when.
    if resource.state == 'running' and not current and job.state != 'running' \
            and now > resource.since + policy.start:
        return delete(f'nothing began in {policy.start / 60:.0f} minutes')
    return Hold(job.key, resource.state)


def _wait(job, states, now, policy):
    """Return the `Wait` of a job that may not start now, None where it may."""
    # A need that is not among these jobs counts as done; if it is not, the state is 'waiting'.
    needs = [need for need in job.needs if states.get(need, 'done') != 'done']
    if needs or job.state == 'waiting':
        return Wait(job.key, f'needs {", ".join(needs or job.needs)}')
    # Tries and attempts in a row that brought nothing. The exponent is bounded, as the product with
    # a float would overflow.
    vain = len(_fruitless(job))
    for attempt in reversed(job.attempts):
        if attempt.gained:
            break
        vain += 1
    last = max([row.at for row in job.tries] + [attempt.ended for attempt in job.attempts],
               default=now)
    until = last + min(policy.longest, policy.base * 2 ** min(vain - 1, 30)) if vain else now
    if now < until:
        return Wait(job.key, f'{vain} tries in a row brought it no further', until)
    return None


def _fruitless(job):
    """Return the tries since the last attempt, none of which led to another."""
    began = job.attempts[-1].began if job.attempts else float('-inf')
    return [row for row in job.tries if row.at > began]


def _zone(job, policy):
    """Return the zone to try now: the next one after each try that found no machine or lost it."""
    moves = sum(row.code is None for row in _fruitless(job))
    moves += sum(attempt.code is None or ending(attempt.code).restart == 'free'
                 for attempt in job.attempts)
    return policy.zones[moves % len(policy.zones)]


def _idle_usd(job, resource, now):
    """Return what a running resource cost before its first attempt, which no attempt tells of."""
    if not resource or resource.restarts or resource.state != 'running' or any(
            attempt.began >= resource.since for attempt in job.attempts):
        return 0.0
    return (now - resource.since) / 3600 * job.usd_per_hour

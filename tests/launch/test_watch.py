"""The watcher's decisions, in a simulated world where everything fails at times."""
import dataclasses
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from downscale.launch.watch import (
    Attempt,
    Create,
    Delete,
    Desired,
    GiveUp,
    Hold,
    Observed,
    Orphan,
    Policy,
    Stop,
    Try,
    Wait,
    finished,
    reconcile,
)

JOB = Desired(key='a/train', name='a', hash='h', state='missing')
POLICY = Policy(max_parallel=2, base=10, longest=100, zones=('z0', 'z1'))


def changed(**fields):
    return dataclasses.replace(JOB, **fields)


def act(job, resource=None, now=1000, policy=POLICY):
    """The one action for one job."""
    action, = reconcile([job], [resource] if resource else [], now, policy)
    return action


def resource(state, **fields):
    return Observed(name='a', hash='h', state=state, since=500, **fields)


def test_a_job_without_a_machine_gets_one_in_the_first_zone():
    assert act(JOB) == Create('a/train', 'z0')
    assert act(JOB, resource('pending')) == Hold('a/train', 'pending')


def test_what_was_preempted_is_deleted_and_created_in_the_next_zone():
    text = 'Quota TPUV5 exceeded in z0'
    assert act(JOB, resource('failed', message=text, zone='z0')) == Delete(
        name='a', zone='z0', why=f'failed: {text}')
    lost = changed(tries=(Try(500),))
    assert act(lost, now=505) == Wait('a/train', '1 tries in a row brought it no further', 510)
    assert act(lost, now=510) == Create('a/train', 'z1')
    assert act(changed(tries=(Try(1), Try(500))), now=519).until == 520


def test_what_gained_a_checkpoint_starts_again_at_once():
    job = changed(
        state='failed',
        tries=(Try(500),),
        attempts=(Attempt(began=501, ended=999, code=42, gained=True),),
    )
    assert act(job) == Create('a/train', 'z1')
    assert act(job, resource('running'), now=1058).until == 1059
    assert act(job, resource('running'), now=1059).why == 'preempted, saved (exit code 42)'


def test_a_machine_on_which_nothing_begins_is_given_back():
    assert isinstance(act(JOB, resource('running'), now=2300), Hold)
    assert act(JOB, resource('running'), now=2301).why == 'nothing began in 30 minutes'
    began = changed(
        state='running', attempts=(Attempt(began=600, ended=2300, code=None, gained=False),)
    )
    assert isinstance(act(began, resource('running'), now=2301), Hold)


def test_what_is_cancelled_goes_at_once_and_nothing_comes_of_it():
    job = changed(
        state='cancelled', attempts=(Attempt(began=600, ended=1000, code=None, gained=False),)
    )
    assert act(job, resource('running')).why == 'cancelled'
    assert act(job) == GiveUp('a/train', 'cancelled')


def test_an_older_attempt_does_not_end_a_newer_machine():
    job = changed(state='failed', attempts=(Attempt(began=1, ended=2, code=1, gained=False),))
    assert act(job, resource('running')) == Hold('a/train', 'running')


def test_crashes_are_counted_and_preemptions_are_free():
    free = tuple(
        Attempt(began=n, ended=n, code=code, gained=True) for n, code in enumerate([42, None] * 20)
    )
    assert act(changed(state='failed', attempts=free)) == Create('a/train', 'z0')
    crashes = tuple(Attempt(began=n, ended=n, code=69, gained=True) for n in range(4))
    assert isinstance(act(changed(state='failed', attempts=crashes[:3])), Create)
    assert act(changed(state='failed', attempts=crashes)).why == 'crashed 4 times; see logs'
    assert isinstance(act(changed(tries=tuple(Try(n, 1) for n in range(4)))), GiveUp)
    assert isinstance(act(changed(tries=(Try(1, 64),))), GiveUp)


def test_what_is_over_holds_no_machine():
    for state in ('done', 'fatal'):
        assert act(changed(state=state), resource('running')).why == state
    assert reconcile([changed(state='done')], [], 1000, POLICY) == []


def test_what_needs_a_job_that_is_over_is_given_up_and_others_go_on():
    jobs = [
        Desired(key='b', name='b', hash='h', state='waiting', needs=('a/train',)),
        changed(state='fatal'),
        Desired(key='c', name='c', hash='h', state='missing'),
    ]
    assert reconcile(jobs, [], 0, POLICY) == [
        GiveUp('b', 'needs a/train, which will not be done'), GiveUp('a/train', 'fatal'),
        Create('c', 'z0')]


def test_when_the_money_is_spent_nothing_starts_and_what_runs_is_stopped():
    job = changed(usd=5.0, state='failed')
    assert isinstance(act(job, policy=Policy(max_parallel=1, max_usd=5)), Stop)
    assert isinstance(act(job, policy=Policy(max_parallel=1, max_usd=5.1)), Create)
    silent = Desired(key='b', name='b', hash='h', state='missing', usd_per_hour=3600)
    acts = reconcile(
        [JOB, silent],
        [Observed(name='b', hash='h', state='running', since=900)],
        1000,
        Policy(max_parallel=5, max_usd=100),
    )
    assert isinstance(acts[0], Stop)
    assert acts[1] == Delete(name='b', zone='', why='100.00 dollars of 100.00 are spent (estimate)')
    working = changed(
        usd=5.0, state='running', attempts=(Attempt(began=950, ended=1000, code=None, gained=True),)
    )
    assert isinstance(
        act(working, resource('running'), policy=Policy(max_parallel=1, max_usd=5)), Delete
    )
    assert isinstance(
        act(working, resource('running'), policy=Policy(max_parallel=1, max_usd=6)), Hold
    )


def test_what_restarts_by_itself_is_left_alone_until_its_job_is_over():
    failed = changed(
        state='failed', attempts=(Attempt(began=600, ended=700, code=1, gained=False),)
    )
    for job in (failed, dataclasses.replace(failed, state='stale'), JOB):
        assert isinstance(act(job, resource('running', restarts=True), now=9000), Hold)
        assert isinstance(act(job, resource('running'), now=9000), Delete)
    assert act(changed(state='done'), resource('running', restarts=True)).why == 'done'
    idle = changed(state='missing', usd_per_hour=3600)
    rich = Policy(max_parallel=1, max_usd=100)
    assert isinstance(act(idle, resource('running', restarts=True), policy=rich), Hold)
    assert isinstance(act(idle, resource('running'), policy=rich), Delete)


def test_machines_of_no_job_are_only_told_of():
    assert reconcile(
        [], [Observed(name='x', hash='h', state='running', since=0, zone='z')], 0, POLICY
    ) == [Orphan('x', 'z')]


class World:
    """A cloud and the run folders of a sweep, whose next events are drawn from a seed."""

    def __init__(self, seed, jobs):
        self.random, self.now = random.Random(seed), 0.0
        self.jobs = {job.key: job for job in jobs}
        self.left = {job.key: self.random.randint(1, 4) for job in jobs}  # attempts to go on
        self.resources, self.made = {}, []

    def step(self, calm):
        self.now += self.random.choice([1, 10, 60])
        for key, job in self.jobs.items():
            if job.state in ('waiting', 'missing'):
                ready = all(self.jobs[need].state == 'done' for need in job.needs)
                self.jobs[key] = dataclasses.replace(job, state='missing' if ready else 'waiting')
        by_name = {job.name: job for job in self.jobs.values()}
        for name, seen in list(self.resources.items()):
            self._change(by_name[name], seen, calm)

    def _change(self, job, seen, calm):
        if seen.state == 'deleting':
            del self.resources[seen.name]
            return
        event = self.random.random()
        if seen.state == 'pending':
            state = 'running' if calm or event < 0.6 else 'failed' if event < 0.8 else 'pending'
            self._set(seen, state=state, since=self.now, message='no quota')
        elif seen.state == 'running' and job.state in ('missing', 'failed', 'running', 'stale'):
            if not calm and event < 0.3:
                self._set(seen, state='suspended')
            elif event < 0.9:
                self._attempt(job, calm)

    def _set(self, seen, **fields):
        self.resources[seen.name] = dataclasses.replace(seen, **fields)

    def _attempt(self, job, calm):
        if job.attempts and job.attempts[-1].began >= self.resources[job.name].since:
            return
        self.left[job.key] -= 1
        code = self.random.choice([0, 42]) if calm else self.random.choice([0, 1, 42, 64, None])
        if self.left[job.key] <= 0 and calm:
            code = 0
        state = {0: 'done', 64: 'fatal', None: 'stale'}.get(code, 'failed')
        last = Attempt(began=self.now, ended=self.now, code=code, gained=self.random.random() < 0.5)
        self.jobs[job.key] = dataclasses.replace(
            job, state=state, attempts=(*job.attempts, last), usd=job.usd + 1)

    def execute(self, action):
        if isinstance(action, Create):
            job = self.jobs[action.key]
            assert job.state not in ('done', 'fatal', 'waiting'), job
            assert job.name not in self.resources
            self.jobs[action.key] = dataclasses.replace(job, tries=(*job.tries, Try(self.now)))
            if self.random.random() < 0.1:  # killed after it was noted and before it was made
                return
            self.resources[job.name] = Observed(
                name=job.name, hash=job.hash, state='pending', since=self.now, zone=action.zone
            )
            self.made.append(action)
        elif isinstance(action, Delete):
            self._set(self.resources[action.name], state='deleting')


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2 ** 32), st.integers(1, 4), st.integers(4, 9),
       st.none() | st.integers(2, 9))
def test_a_sweep_ends_within_its_limits_whatever_happens(seed, parallel, chips, usd):
    draw = random.Random(seed)
    jobs = [
        Desired(
            key=f'j{n}',
            name=f'n{n}',
            hash='h',
            state='missing',
            needs=tuple(f'j{m}' for m in range(n) if draw.random() < 0.2),
            chips=draw.randint(1, 4),
        )
        for n in range(draw.randint(1, 6))
    ]
    draw.shuffle(jobs)
    policy = Policy(
        max_parallel=parallel,
        max_chips=chips,
        max_usd=usd,
        base=30,
        longest=300,
        zones=('z0', 'z1'),
    )
    world = World(seed, jobs)
    for turn in range(2000):
        world.step(calm=turn > 100)
        before, spent = len(world.made), sum(job.usd for job in world.jobs.values())
        now = list(world.jobs.values()), list(world.resources.values()), world.now, policy
        actions = reconcile(*now)
        assert reconcile(*now) == actions
        if finished(actions):
            break
        killed = draw.randint(0, len(actions)) if draw.random() < 0.3 else None
        for action in actions[:killed]:
            world.execute(action)
        assert len(world.resources) <= parallel
        assert sum(job.chips for job in jobs if job.name in world.resources) <= chips
        assert usd is None or spent < usd or len(world.made) == before
    else:
        raise AssertionError(f'no end: {actions}')
    assert not world.resources
    if usd is None:
        over = {action.key for action in actions}
        assert all((job.state == 'done') != (job.key in over) for job in world.jobs.values())

"""What a rehearsal finds wrong: by how pods ended, and by what would follow ends that none had."""
from collections.abc import Mapping

from downscale.launch import state
from downscale.launch.rehearsal import rules
from downscale.launch.rehearsal.cluster import Round, Work
from downscale.launch.rehearsal.rules import PodEnd
from downscale.launch.spec import Spec
from downscale.runtime.exits import DONE, PREEMPTED, TABLE, ending

KILLED = 137
ACTIONS = {'free': rules.FREE, 'counted': rules.COUNTED, 'never': rules.FAIL}


class Judge:
    """Holds every round of a JobSet against its run folder; `findings` are lines, each once."""

    def __init__(self, specs: Mapping[str, Spec]) -> None:
        self.specs = specs
        self.findings = []
        self.swallowed = False  # a container said that all is done, and it is not

    def key(self, name: str) -> str:
        """Return what a person calls the job of a JobSet."""
        return self.specs[name].key

    def __call__(self, work: Work, turn: Round) -> None:
        spec = self.specs[work.name]
        self.swallowed |= _swallowed(spec, work, turn)
        for line in [*_of_round(spec, work, turn), *_of_rest(work)]:
            self.note(f'{spec.key}: {line}')

    def note(self, line: str) -> None:
        """Add a finding, unless it is there."""
        if line not in self.findings:
            self.findings.append(line)


def _of_round(spec, work, turn):
    first = turn.ends[0]
    attempts = state.attempts(state.folder_of(spec.run, spec))
    exit_code = attempts[-1]['exit'] if attempts else None
    # 1. The code of the container is that of the program, and 0 only when all is done.
    if _swallowed(spec, work, turn):
        yield (f'its container ended with exit code 0 and the job is not done (the program: '
               f'{"no word" if exit_code is None else exit_code}); the code was swallowed')
    elif exit_code is not None and first.code not in (exit_code, KILLED):
        yield (f'the program ended with exit code {exit_code} and its container with {first.code}; '
               'the command between them changes the code')
    # 2. A notice leaves time to save.
    if turn.injected in ('evict', 'quota'):
        late = [end for end in turn.ends if end.code not in (DONE, PREEMPTED)]
        if late and (turn.injected == 'quota' or late[0].evicted):
            yield (f'{turn.injected}: a pod ended with exit code {late[0].code} and not '
                   f'{PREEMPTED}; SIGTERM did not reach it, or its grace of {work.grace:g} s is '
                   'too short to save')
    # 3. Nobody did anything to it.
    if turn.injected is None and turn.deciding and work.after != 'gone':
        end = turn.deciding
        yield f'a pod ended with exit code {end.code} ({ending(end.code).meaning}){_last(work)}'
    # 4. What followed is what the table of exit codes says.
    if turn.deciding:
        wanted = 'free' if turn.deciding.evicted else ending(turn.deciding.code).restart
        if turn.action != ACTIONS[wanted]:
            yield _unlike(turn.deciding, turn.action, wanted)


def _swallowed(spec, work, turn):
    return work.after != 'gone' and turn.ends[0].code == DONE \
        and not state.ended(spec.run, spec, 'DONE.json')


def _of_rest(work):
    if work.state == 'stopping' and work.after == 'failed':
        yield f'its JobSet failed: {work.message}'


def _last(work):
    """Return ': LINE' of the last error that a pod of a JobSet has printed, else of its last line.
    """
    for pod in work.pods:
        lines = pod.log.read_text(errors='replace').split('\n')
        telling = [line for line in lines if line.startswith('error: ')] or [*filter(None, lines)]
        if telling:
            return f': {telling[-1].removeprefix("error: ")[-200:]}'
    return ''


def _unlike(end, action, wanted):
    what = 'an eviction' if end.evicted else f'exit code {end.code}'
    return f'{what} leads to {action}, and by the table of exit codes to {ACTIONS[wanted]}'


def drill(manifest: dict) -> list[str]:
    """Return which ends of a pod lead to something else than the table of exit codes says.

    By the rules of the manifest alone, as no rehearsal has all of these ends.
    """
    lines = []
    ends = [PodEnd('pod', code) for code in (1, KILLED, *TABLE) if code != DONE]
    for end in [PodEnd('pod', KILLED, evicted=True), *ends]:
        failure = rules.job_failure(manifest, end)
        action = rules.action_of(manifest, *failure) if failure else 'no restart of its own'
        wanted = 'free' if end.evicted else ending(end.code).restart
        if action != ACTIONS[wanted]:
            lines.append(_unlike(end, action, wanted))
    if not manifest['spec'].get('failurePolicy', {}).get('maxRestarts'):
        lines.append('maxRestarts is 0: one crash ends the job')
    return lines

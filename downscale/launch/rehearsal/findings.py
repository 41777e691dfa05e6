"""What a rehearsal finds wrong: by how pods and machines ended, and what others lead to."""
import re
from collections.abc import Mapping
from typing import Any

from downscale.launch import state
from downscale.launch.rehearsal import rules
from downscale.launch.rehearsal.cluster import JobSet
from downscale.launch.rehearsal.machines.container import PodEnd
from downscale.launch.rehearsal.vms import MachineGroup
from downscale.launch.rehearsal.works import Round, Work
from downscale.launch.spec import Spec
from downscale.runtime.exits import DONE, PREEMPTED, TABLE, ending
from downscale.runtime.files import place

KILLED = 137
ACTIONS = {'free': rules.FREE, 'counted': rules.COUNTED, 'never': rules.FAIL}


class Judge:
    """Holds every round of a job against its run folder; `findings` are lines, each once.

    `hopeless` is whether a job can never be done, as one that said it is and is not.
    """

    def __init__(self, specs: Mapping[str, Spec]) -> None:
        self.specs = specs
        self.findings = []
        self.hopeless = False

    def key(self, name: str) -> str:
        """Return what a person calls the job of a resource."""
        return self.specs[name].key

    def __call__(self, work: Work, turn: Round) -> None:
        """Note what is wrong with a round whose pods have all ended."""
        spec = self.specs[work.name]
        self.hopeless |= _swallowed(spec, work, turn)
        lines = [*_of_round(spec, work, turn)]
        if isinstance(work, MachineGroup):
            lines += [*_without_logs(spec, work), *_unbegun(spec, work, turn)]
            # Machines are given out anew for each try, and nobody disturbed this one.
            self.hopeless |= _failed_alone(work, turn) or bool(_unbegun(spec, work, turn))
        else:
            lines += _of_rest(work)
        for line in lines:
            self.note(f'{spec.key}: {line}')

    def note(self, line: str) -> None:
        """Add a finding, unless it is there."""
        if line not in self.findings:
            self.findings.append(line)


def _of_round(spec, work, turn):
    first = turn.ends[0]
    rows = [row for row in state.attempts(state.folder_of(spec.run, spec))
            if row['began'] >= turn.began]
    exit_code = rows[-1]['exit'] if rows else None
    # 1. The code of the container is that of the program, and 0 only when all is done.
    if _swallowed(spec, work, turn):
        yield (f'its {work.runner} ended with exit code 0 and the job is not done (the program: '
               f'{"no word" if exit_code is None else exit_code}); the code was swallowed')
    elif exit_code is not None and first.code not in (exit_code, KILLED):
        yield (f'the program ended with exit code {exit_code} and its {work.runner} with '
               f'{first.code}; the command between them changes the code')
    # 2. A notice leaves time to save.
    if turn.injected in ('evict', 'quota'):
        late = [end for end in turn.ends if end.code not in (DONE, PREEMPTED)]
        if late and (turn.injected == 'quota' or late[0].evicted):
            yield (f'{turn.injected}: a {work.pod} ended with exit code {late[0].code} and not '
                   f'{PREEMPTED}; SIGTERM did not reach it, or its grace of {work.grace:g} s is '
                   'too short to save')
    # 3. Nobody did anything to it.
    if _failed_alone(work, turn):
        end = turn.deciding
        yield (f'a {work.pod} ended with exit code {end.code} ({ending(end.code).meaning})'
               f'{_last(work)}')
    # 4. What followed is what the table of exit codes says.
    if turn.deciding and isinstance(work, JobSet):
        wanted = 'free' if turn.deciding.evicted else ending(turn.deciding.code).restart
        if turn.action != ACTIONS[wanted]:
            yield _unlike(turn.deciding, turn.action, wanted)


def _swallowed(spec, work, turn):
    return not work.dismissed and turn.ends[0].code == DONE \
        and not state.ended(spec.run, spec, 'DONE.json')


def _failed_alone(work, turn):
    """Return whether pods have ended in an error, to which nobody did anything."""
    return turn.injected is None and turn.deciding is not None and not work.dismissed


def _unbegun(spec, work, turn):
    """Return a line where machines were deleted because nothing began on them."""
    rows = [row for row in state.attempts(state.folder_of(spec.run, spec))
            if row['began'] >= turn.began]
    if rows or turn.injected or not work.dismissed or state.ended(spec.run, spec, 'DONE.json'):
        return []
    return ['its start-up script still ran when its machine was deleted, and no program had begun'
            f'{_last(work)}']


def _without_logs(spec, work):
    """Yield a line for each machine whose script has ended without leaving its log."""
    folder = place(spec.run) / 'launch' / spec.cell / spec.part / 'logs'
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for machine in work.pods:
        # `startup.sh` puts the number that JAX gives a process, and a time, into the name.
        matches = [re.fullmatch(rf'host-{machine.rank}-(\d+)\.log', name) for name in names]
        kept = [match for match in matches if match and int(match[1]) >= machine.began]
        if not machine.killed and not kept:
            yield (f'the log of process {machine.rank} is not in {folder.name}/ of its job, as '
                   f'host-{machine.rank}-TIME.log{_last(work)}')


def _of_rest(work):
    if work.state == 'stopping' and work.after == 'failed':
        yield f'its JobSet failed: {work.message}'


def _last(work):
    """Return ': LINE' of the last error that a pod has printed, else of its last line."""
    for pod in work.pods:
        lines = pod.log.read_text(errors='replace').split('\n')
        telling = [line for line in lines if line.startswith('error: ')] or [*filter(None, lines)]
        if telling:
            return f': {telling[-1].removeprefix("error: ")[-200:]}'
    return ''


def _unlike(end, action, wanted):
    what = 'an eviction' if end.evicted else f'exit code {end.code}'
    return f'{what} leads to {action}, and by the table of exit codes to {ACTIONS[wanted]}'


def drill(manifest: dict[str, Any]) -> list[str]:
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

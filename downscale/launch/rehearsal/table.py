"""A rehearsal as a table: what each job went through, and what a failure of the real one costs."""
import os
from collections.abc import Mapping, Sequence
from typing import Any

from downscale.config import Experiment
from downscale.launch import state
from downscale.launch.rehearsal import twin
from downscale.launch.rehearsal.rehearse import Outcome, Rehearsal
from downscale.launch.spec import Spec
from downscale.output.text import aligned

HEAD = ('job', 'rehearsed as', 'attempts', 'ended with', 'saved', 'lost', 'same result',
        'a failure costs at most')
LONGEST = 60


def value(planned: Rehearsal, outcome: Outcome, unequal: Sequence[str] | None) -> dict[str, Any]:
    """Return all that a rehearsal has shown, as a plain value.

    `unequal` are the results 'CELL/TASK' that differ from the undisturbed ones, None where nothing
    was disturbed.
    """
    cells = {cell.name: cell for cell in planned.submitted.cells}
    jobs = [_job(large, tiny, cells[large.cell], outcome, unequal)
            for large, tiny in planned.pairs]
    prices = map(state.chips_of, planned.submitted.planned)
    hourly = sum(chips * usd for chips, usd in prices if usd)
    return {'jobs': jobs, 'findings': outcome.findings, 'seconds': outcome.seconds,
            'injected': [list(pair) for pair in outcome.injected], 'usd_per_hour': hourly,
            'settings': {path: list(pair) for path, pair in planned.changed.items()},
            'manifests': {path: list(pair) for path, pair in planned.altered.items()}}


def _job(large, tiny, cell, outcome, unequal):
    job = outcome.jobs[tiny.key]
    attempts = outcome.attempts[tiny.key]
    turns = [turn for work in outcome.works[tiny.name] for turn in work.rounds]
    ended = []
    for turn in turns:
        end = turn.deciding or (turn.ends[0] if turn.ends else None)
        if end:
            ended.append(f'{turn.injected} {end.code}' if turn.injected else str(end.code))
    same = None
    if unequal is not None:
        names = {f'{tiny.cell}/{_stage_of(task)}' for task in tiny.tasks}
        same = not names & set(unequal)
    return {'job': large.key, 'rehearsed': tiny.key, 'state': job.state, 'attempts': len(attempts),
            'ended': ended, 'saved': attempts[-1]['last_step'] if attempts else 0,
            'steps': tiny.steps, 'lost': sum(row['steps_lost'] for row in attempts),
            'same': same, 'at_risk': at_risk(large, cell)}


def _stage_of(task):
    """Return the last part of a result's name: of 'CELL/STAGE' or of 'evaluate KIND CELL'."""
    return task.split()[1] if task.startswith('evaluate ') else task.partition('/')[2]


def at_risk(spec: Spec, cell: Experiment) -> str:
    """Return what of a job as submitted may have to be done again after a failure."""
    if spec.part != 'train':
        return f'1 of {spec.steps} evaluations'
    stages = [cell.stage(task.partition('/')[2]) for task in spec.tasks]
    most = max(min(stage.steps, stage.save_every) for stage in stages)
    return f'{most} of {spec.steps} steps'


def lines(shown: Mapping[str, Any]) -> list[str]:
    """Return the table of `value` with its differences and findings."""
    rows = [(job['job'], job['rehearsed'], str(job['attempts']), ', '.join(job['ended']) or '-',
             f'{job["saved"]}/{job["steps"]}', str(job['lost']),
             {None: '-', True: 'yes', False: 'NO'}[job['same']], job['at_risk'])
            for job in shown['jobs']]
    out = aligned([HEAD, *rows], left=(0, 1, 3))
    out.append('')
    out += [f'{path}: {_change(*pair)}' for path, pair in shown['settings'].items()]
    out += [f'manifests, {path}: {_change(*pair)}, by hand'
            for path, pair in shown['manifests'].items()]
    out.append('')
    out += [f'FOUND: {line}' for line in shown['findings']]
    done = sum(job['state'] == 'done' for job in shown['jobs'])
    count = len(shown['findings'])
    out.append(f'{len(shown["jobs"])} jobs, {done} done, {len(shown["injected"])} injections, '
               f'{count or "no"} finding{"s" * (count != 1)} in {shown["seconds"]:.0f} s; an hour '
               f'of all slices at once costs {shown["usd_per_hour"]:.2f} $ (estimate, on demand)')
    return out


def _change(before, after):
    """Return 'BEFORE -> AFTER'; of long texts the part in which they differ."""
    start = max(0, len(os.path.commonprefix([str(before), str(after)])) - LONGEST // 2)
    return f'{_short(before, start)} -> {_short(after, start)}'


def _short(part, start):
    text = str(part)
    if len(text) <= LONGEST:
        return text
    text = f'...{text[start:]}' if start else text
    return text if len(text) <= LONGEST else f'{text[:LONGEST - 3]}...'


def beyond(planned: Rehearsal) -> list[str]:
    """Return a line for each setting in which the twin differs in more than size and steps."""
    return [f'the twin differs in more than sizes and steps: {path}'
            for path in twin.beyond_size(planned.changed)]

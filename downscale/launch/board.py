"""Jobs of a sweep as text, a line each, and as what --json prints."""
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from downscale.launch import state, watch
from downscale.launch.spec import Spec
from downscale.output.text import aligned
from downscale.planner.table import span

if TYPE_CHECKING:
    from downscale.planner.fit import CellFit
    from downscale.runtime.progress import Bars

STATUS = ('job', 'state', 'attempt', 'task', 'step', 'saved', 'tokens/s', 'left', 'chip-hours', '$',
          'goodput', 'reason')
PLAN = ('job', 'slices', 'chips', 'steps', 'fits', 'GiB', 'of', 'chip-hours', '$', 'needs')


def shown_by(bars: 'Bars') -> Callable[[Sequence[state.Job]], None]:
    """Return a function that shows jobs as bars: one for each that runs, none for the others."""
    def show(jobs):
        for job in jobs:
            if job.state == 'running' and job.total:
                bars(job.key, job.step, job.total, job.task or '')
            else:
                bars.remove(job.key)
    return show


def status_lines(jobs: Sequence[state.Job]) -> list[str]:
    """Return a table of jobs, and below it their sum."""
    states = Counter(job.state for job in jobs)
    # Jobs of this machine have no price, and are no reason to call the sum unknown.
    known = [job.usd for job in jobs if job.usd is not None]
    counts = ', '.join(f'{count} {state}' for state, count in states.items()) or 'none'
    hours = sum(job.chip_hours for job in jobs)
    money = f', {sum(known):.2f} $ (estimate)' if known else ''
    return [*aligned([STATUS, *map(_status_row, jobs)]),
            f'{len(jobs)} jobs: {counts}; {hours:.2f} chip-hours{money}']


def _status_row(job):
    steps = f'{job.step}/{job.total}' if job.total else '-'
    age = '-' if job.age is None else f'{duration(job.age)} ago'
    eta = '-' if job.eta is None else duration(job.eta)
    return (job.key, job.state, _text(job.attempt), job.task or '-', steps, age,
            _text(job.tokens_per_s, ',.0f'), eta, f'{job.chip_hours:.2f}',
            _text(job.usd, '.2f'), _text(job.goodput, '.0%'), job.reason)


def plan_value(specs: Sequence[Spec], fits: 'Mapping[str, CellFit]', why: str,
               files: Mapping[str, Path]) -> dict[str, Any]:
    """Return what `downscale launch plan` found, as a plain value.

    `fits` are by cell, `why` says why there are none, `files` are by key.
    """
    jobs = []
    for spec in specs:
        fit = _fit_of(spec, fits)
        jobs.append({
            'job': spec.key, 'name': spec.name, 'spec': spec.hash, 'topology': spec.topology,
            'chips': state.chips_of(spec)[0], 'steps': spec.steps, 'needs': list(spec.needs),
            'file': str(files[spec.key]), 'fit': dataclasses.asdict(fit) if fit else None})
    return {'jobs': jobs, 'fit': why or 'checked'}


def run_time_lines(specs: Sequence[Spec], fits: 'Mapping[str, CellFit]',
                   limit: float | None) -> list[str]:
    """Return what it means that machines run for `limit` seconds at most, [] without a limit."""
    if limit is None:
        return []
    most = limit / 3600
    lines = [f'flex-start: machines run for at most {most:g} hours; a job that takes longer goes '
             'on on new ones, from its last checkpoint']
    for spec in specs:
        fit = _fit_of(spec, fits)
        hours = fit.chip_hours[1] / state.chips_of(spec)[0] if fit and fit.chip_hours else 0
        if hours > most:
            lines.append(f'{spec.key} takes up to {hours:.0f} hours, so machines '
                         f'{math.ceil(hours / most)} times')
    return lines


def _fit_of(spec, fits):
    """Return the `CellFit` of a job, which is that of the training of its cell, else None."""
    return fits.get(spec.cell) if spec.part == 'train' else None


def plan_lines(specs: Sequence[Spec], fits: 'Mapping[str, CellFit]', why: str,
               remarks: Sequence[str]) -> list[str]:
    """Return the jobs of a study with what they need, as a table, and `remarks` below it."""
    # Both ends of a cost are added up, which assumes that all cells are dear or cheap together.
    sums = Counter()
    cell_remarks = []
    for spec in specs:
        fit = _fit_of(spec, fits)
        for end, usd in enumerate(fit.usd if fit and fit.usd else ()):
            sums[end] += usd
        if fit and fit.remark:
            cell_remarks.append(f'{spec.cell}: {fit.remark}')
    cost = f'; training {span((sums[0], sums[1]))} $ (estimate, on demand)' if sums else ''
    rows = [_plan_row(spec, _fit_of(spec, fits)) for spec in specs]
    lines = [*aligned([PLAN, *rows]), *cell_remarks, f'{len(specs)} jobs{cost}']
    if why:
        lines.append(f'fit: {why}')
    return [*lines, *remarks]


def _plan_row(spec, fit):
    row = (spec.key, spec.topology, str(state.chips_of(spec)[0]), str(spec.steps))
    needs = ', '.join(spec.needs) or '-'
    if fit is None:
        return *row, '-', '-', '-', '-', '-', needs
    return (*row, 'yes' if fit.fits else 'NO', _text(fit.hbm_gib, '.2f'),
            _text(fit.hbm_limit_gib, '.2f'), span(fit.chip_hours) if fit.chip_hours else '-',
            span(fit.usd) if fit.usd else '-', needs)


def cost_value(chosen: Sequence[tuple[Spec, state.Job]], max_usd: float | None) -> dict[str, Any]:
    """Return chip-hours and dollars of every cell and in all, from jobs as they are now."""
    cells = {}
    for spec, job in chosen:
        cell = cells.setdefault(spec.cell, {'chip_hours': 0.0, 'usd': None, 'usd_left': None})
        chips, usd = state.chips_of(spec)
        cell['chip_hours'] += job.chip_hours
        # Where a chip has no price the dollars of a cell stay None, which is not 0.
        if usd is not None:
            cell['usd'] = (cell['usd'] or 0.0) + (job.usd or 0.0)
            # Of a job that does not run nobody knows how long it takes.
            if job.eta is not None:
                cell['usd_left'] = (cell['usd_left'] or 0.0) + job.eta / 3600 * chips * usd
    known = [cell['usd'] for cell in cells.values() if cell['usd'] is not None]
    return {'cells': cells, 'usd': sum(known) if known else None, 'max_usd': max_usd,
            'chip_hours': sum(cell['chip_hours'] for cell in cells.values())}


def cost_lines(value: Mapping[str, Any]) -> list[str]:
    """Return the table of `cost_value`."""
    rows = [(name, f'{cell["chip_hours"]:.2f}', _text(cell['usd'], '.2f'),
             _text(cell['usd_left'], '.2f')) for name, cell in value['cells'].items()]
    rows.append(('all', f'{value["chip_hours"]:.2f}', _text(value['usd'], '.2f'), ''))
    limit = f'--max-usd is {value["max_usd"]:g}' if value['max_usd'] is not None \
        else 'there is no --max-usd'
    return [*aligned([('cell', 'chip-hours', '$ so far', '$ left of what runs'), *rows]), limit]


def action_line(action: watch.Action) -> str:
    """Return one action of `watch.reconcile` as a line."""
    # 'would': these lines are printed by --dry-run alone.
    match action:
        case watch.Create(key, zone):
            return f'{key}: would start{_in(zone)}'
        case watch.Delete(name=name, zone=zone, why=why):
            return f'{name}: would be deleted{_in(zone)}, {why}'
        case watch.Wait(key, why) | watch.Hold(key, why) | watch.GiveUp(key, why):
            return f'{key}: {type(action).__name__.lower()}, {why}'
        case watch.Stop(why):
            return why
        case watch.Orphan(name):
            return f'{name}: belongs to no job of this study'


def _in(zone):
    return f' in {zone}' if zone else ''


def duration(seconds: float) -> str:
    """Return `seconds` as text, in days, hours, minutes or seconds."""
    # From one and a half of a unit on, so that at least two digits are told.
    for size, unit in ((86400, 'd'), (3600, 'h'), (60, 'min')):
        if seconds >= 1.5 * size:
            return f'{seconds / size:.1f} {unit}'
    return f'{seconds:.0f} s'


def _text(value, form=''):
    return '-' if value is None else format(value, form)

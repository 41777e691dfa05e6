"""Jobs of a sweep as text, a line each, and as what --json prints."""
import dataclasses
from collections import Counter

from downscale.launch import state, watch
from downscale.output.text import aligned
from downscale.planner.table import span

STATUS = ('job', 'state', 'attempt', 'task', 'step', 'saved', 'tokens/s', 'left', 'chip-hours', '$',
          'goodput', 'reason')
PLAN = ('job', 'slices', 'chips', 'steps', 'fits', 'GiB', 'of', 'chip-hours', '$', 'needs')


def status_lines(jobs):
    """Return a table of `state.Job`s, and below it their sum."""
    rows = [(job.key, job.state, _text(job.attempt), job.task or '-',
             f'{job.step}/{job.total}' if job.total else '-',
             '-' if job.age is None else f'{duration(job.age)} ago',
             '-' if job.tokens_per_s is None else f'{job.tokens_per_s:,.0f}',
             '-' if job.eta is None else duration(job.eta), f'{job.chip_hours:.2f}',
             _text(job.usd, '.2f'), '-' if job.goodput is None else f'{job.goodput:.0%}',
             job.reason) for job in jobs]
    states = Counter(job.state for job in jobs)
    known = [job.usd for job in jobs if job.usd is not None]
    said = ', '.join(f'{count} {state}' for state, count in states.items()) or 'none'
    money = f', {sum(known):.2f} $ (estimate)' if known else ''
    return [*aligned([STATUS, *rows]),
            f'{len(jobs)} jobs: {said}; {sum(job.chip_hours for job in jobs):.2f} chip-hours'
            + money]


def plan_value(specs, fits, why, files):
    """Return what `downscale launch plan` found, as a plain value."""
    return {'jobs': [{
        'job': spec.key, 'name': spec.name, 'spec': spec.hash, 'topology': spec.topology,
        'chips': state.chips_of(spec)[0], 'steps': spec.steps, 'needs': list(spec.needs),
        'file': str(files[spec.key]),
        'fit': dataclasses.asdict(fits[spec.cell]) if spec.part == 'train' and spec.cell in fits
        else None} for spec in specs], 'fit': why or 'checked'}


def plan_lines(specs, fits, why, remarks):
    """Return the jobs of a study with what they need; a fit is that of the training of a cell."""
    rows = []
    sums = Counter()
    for spec in specs:
        fit = fits.get(spec.cell) if spec.part == 'train' else None
        rows.append((
            spec.key, spec.topology, str(state.chips_of(spec)[0]), str(spec.steps),
            '-' if fit is None else 'yes' if fit.fits else 'NO',
            _text(fit and fit.hbm_gib, '.2f'), _text(fit and fit.hbm_limit_gib, '.2f'),
            '-' if not fit or not fit.chip_hours else span(fit.chip_hours),
            '-' if not fit or not fit.usd else span(fit.usd), ', '.join(spec.needs) or '-'))
        for end, usd in enumerate(fit.usd if fit and fit.usd else ()):
            sums[end] += usd
    said = [f'{spec.cell}: {fits[spec.cell].remark}' for spec in specs
            if spec.part == 'train' and spec.cell in fits and fits[spec.cell].remark]
    cost = f'; training {span((sums[0], sums[1]))} $ (estimate, on demand)' if sums else ''
    return [*aligned([PLAN, *rows]), *said, f'{len(specs)} jobs{cost}',
            *[f'fit: {why}'] * bool(why), *remarks]


def cost_value(chosen, settings):
    """Return chip-hours and dollars of every cell, from (spec, `state.Job`) pairs."""
    cells = {}
    for spec, job in chosen:
        cell = cells.setdefault(spec.cell, {'chip_hours': 0.0, 'usd': None, 'usd_left': None})
        chips, usd = state.chips_of(spec)
        cell['chip_hours'] += job.chip_hours
        if usd is not None:
            cell['usd'] = (cell['usd'] or 0.0) + (job.usd or 0.0)
            if job.eta is not None:
                cell['usd_left'] = (cell['usd_left'] or 0.0) + job.eta / 3600 * chips * usd
    known = [cell['usd'] for cell in cells.values() if cell['usd'] is not None]
    return {'cells': cells, 'usd': sum(known) if known else None, 'max_usd': settings.max_usd,
            'chip_hours': sum(cell['chip_hours'] for cell in cells.values())}


def cost_lines(value):
    """Return the table of `cost_value`."""
    rows = [(name, f'{cell["chip_hours"]:.2f}', _text(cell['usd'], '.2f'),
             _text(cell['usd_left'], '.2f')) for name, cell in value['cells'].items()]
    rows.append(('all', f'{value["chip_hours"]:.2f}', _text(value['usd'], '.2f'), ''))
    limit = f'--max-usd is {value["max_usd"]:g}' if value['max_usd'] is not None \
        else 'there is no --max-usd'
    return [*aligned([('cell', 'chip-hours', '$ so far', '$ left of what runs'), *rows]), limit]


def action_line(action):
    """Return one action of `watch.reconcile` as a line."""
    match action:
        case watch.Create(key, zone):
            return f'{key}: would start' + (f' in {zone}' if zone else '')
        case watch.Delete(name, zone, why):
            return f'{name}: would be deleted' + (f' in {zone}' if zone else '') + f', {why}'
        case watch.Wait(key, why) | watch.Hold(key, why) | watch.GiveUp(key, why):
            return f'{key}: {type(action).__name__.lower()}, {why}'
        case watch.Stop(why):
            return why
        case watch.Orphan(name):
            return f'{name}: belongs to no job of this study'


def duration(seconds):
    """Return `seconds` in the unit that suits them."""
    for size, unit in ((86400, 'd'), (3600, 'h'), (60, 'min')):
        if seconds >= 1.5 * size:
            return f'{seconds / size:.1f} {unit}'
    return f'{seconds:.0f} s'


def _text(value, form=''):
    return '-' if value is None else format(value, form)

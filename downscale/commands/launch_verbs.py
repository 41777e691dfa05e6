"""The verbs of `downscale launch`: each says what it did as a table, or as one JSON object.

Study, run folder and settings are read by `sweep.py`; what goes on is decided by `watch.py`.
"""
import argparse
import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path

from downscale.launch import board, state, supervise
from downscale.launch.backends import local, sweep
from downscale.planner import fit
from downscale.planner.topologies import PRICES_AS_OF
from downscale.runtime.files import write_bytes, write_json
from downscale.runtime.progress import progress_bars

RESTS = 'in its files; a machine that waits, or has begun nothing yet, is not in them'


def plan(args: argparse.Namespace) -> int:
    """Write the manifest or commands of every job, and check that each cell fits its slices."""
    asked = not args.dry_run
    found = sweep.open_sweep(args, asked)
    chosen = _selected(found, args, found.planned, asked)
    out = Path(args.out or Path('runs') / found.name / 'launch-plan')
    files = {}
    for spec in chosen:
        ending, text = sweep.written(spec, found.settings)
        files[spec.key] = out / f'{spec.name}{ending}'
        write_bytes(files[spec.key], text.encode())
    fits, why = _fits(found, args)
    value = board.plan_value(chosen, fits, why, files)
    write_json(out / 'plan.json', value)
    _print(args, value, board.plan_lines(
        chosen, fits, why, _placeholders(found.settings) + [f'files: {out}']))
    return int(any(not one.fits for one in fits.values()))


def validate(args: argparse.Namespace) -> int:
    """Check what would be sent for every job, without a network; exit code 1 if anything is wrong.
    """
    found = sweep.open_sweep(args, asked=False)
    problems = [f'{spec.key}: {text}' for spec in found.planned
                for text in _problems(spec, found.settings)]
    _print(args, {'jobs': len(found.planned), 'problems': problems}, [
        *problems, f'{len(found.planned)} jobs, {len(problems)} problems',
        *_placeholders(found.settings)])
    return int(bool(problems))


def submit(args: argparse.Namespace) -> int:
    """Start every job that may start. What is there already is left alone; nothing is deleted."""
    found = sweep.open_sweep(args)
    chosen = _selected(found, args, found.planned)
    return _start(args, found, sweep.with_needs(chosen, found.planned))


def resume(args: argparse.Namespace) -> int:
    """Start again what failed, was cancelled or ended as fatal; what went wrong no longer counts.
    """
    found = sweep.open_sweep(args)
    chosen = _selected(found, args, found.planned)
    return _start(args, found, sweep.with_needs(chosen, found.planned), forgiven=chosen)


def status(args: argparse.Namespace) -> int:
    """Show what the run folder says of every job."""
    found = sweep.open_sweep(args)
    jobs = [job for _, job in sweep.select(found, args, found.known)]
    _print(args, {'jobs': [dataclasses.asdict(job) for job in jobs]}, board.status_lines(jobs))
    return 0


def cost(args: argparse.Namespace) -> int:
    """Show chip-hours and dollars of every cell so far; the dollars are an estimate."""
    found = sweep.open_sweep(args)
    chosen = sweep.select(found, args, found.known)
    value = board.cost_value(chosen, found.settings)
    _print(args, value, [*board.cost_lines(value), f'prices of {PRICES_AS_OF}, on demand; time is '
                         f'that of the attempts {RESTS}'])
    return 0


def logs(args: argparse.Namespace) -> int:
    """Show the end of the newest log of every job."""
    found = sweep.open_sweep(args)
    chosen = [spec for spec, job in sweep.select(found, args, found.known)
              if job.attempt is not None]
    if not chosen:
        raise ValueError('no such job has begun; see: downscale launch status')
    value = {}
    for spec in chosen:
        name, text = _log(spec, found.settings, args)
        value[spec.key] = {'log': name, 'lines': text.splitlines()[-args.lines:]}
    _print(args, value, [line for key, part in value.items()
                         for line in (f'--- {key}: {part["log"]}', *part['lines'])])
    return 0


def cancel(args: argparse.Namespace) -> int:
    """Stop jobs that are not done: each saves and ends, and does not start until `resume`."""
    found = sweep.open_sweep(args)
    chosen = [spec for spec, job in sweep.select(found, args, list(found.saved.values()))
              if job.state not in ('done', 'fatal', 'cancelled')]
    said = []
    would = 'would be ' * args.dry_run
    if not args.dry_run:
        for spec in chosen:
            state.cancel(spec, time.time())
    if found.settings.backend != 'local' and chosen:
        names = {spec.name: spec.key for spec in chosen}
        backend = sweep.backend_of(found.settings)
        for resource in backend.observe(chosen):
            if resource.name in names and resource.state != 'deleting':
                said.append(f'{names[resource.name]}: {resource.name} {would}deleted')
                if not args.dry_run:
                    backend.delete(resource.name, resource.zone)
    _print(args, {'cancelled': [spec.key for spec in chosen], 'deleted': said}, [
        *(f'{spec.key}: {would}cancelled' for spec in chosen), *said,
        *['nothing to cancel'] * (not chosen)])
    return 0


def watch(args: argparse.Namespace) -> int:
    """Keep a sweep going until nothing more can be done: the same command goes on."""
    found = sweep.open_sweep(args)
    if found.settings.backend == 'local':
        raise ValueError('a local sweep ends with its `submit`; the same submit goes on')
    specs = _submitted(found)
    backend = sweep.backend_of(found.settings)
    policy = sweep.policy_of(found.settings)
    if args.dry_run:
        return _say_actions(args, supervise.decide(backend, specs, policy))
    return _ended(args, _supervised(args, backend, specs, policy))


def gc(args: argparse.Namespace) -> int:
    """Delete what runs at the backend for this run folder and belongs to no job of it."""
    found = sweep.open_sweep(args)
    left = []
    if found.settings.backend != 'local':
        names = {spec.name for spec in found.saved.values()}
        backend = sweep.backend_of(found.settings)
        left = [resource for resource in backend.observe(found.planned)
                if resource.name not in names and resource.state != 'deleting']
        if not args.dry_run:
            for resource in left:
                backend.delete(resource.name, resource.zone)
    verb = 'would be deleted' if args.dry_run else 'deleted'
    _print(args, {verb.replace(' ', '_'): [resource.name for resource in left]}, [
        *(f'{resource.name} {resource.zone}: {verb}' for resource in left),
        *['nothing is left over'] * (not left)])
    return 0


VERBS = {verb.__name__: verb for verb in (
    plan, validate, submit, status, logs, cancel, resume, cost, watch, gc)}


# --- starting ---------------------------------------------------------------------------------

def _start(args, found, specs, forgiven=()):
    """Return submit the jobs `specs`; the past of those `forgiven` does not count."""
    if not specs:
        raise ValueError('no job is meant; see: downscale launch status')
    _refuse_changed_files(args)
    jobs = {job.key: job for job in state.read(found.run, found.known, time.time())}
    for spec in specs:
        before = found.saved.get(spec.key, spec)
        if before.hash != spec.hash and jobs[spec.key].state == 'running':
            raise ValueError(f'{spec.key} runs as it was before the study or its settings changed '
                             f'(spec {before.hash}, now {spec.hash}); cancel it first')
        for problem in _problems(spec, found.settings):
            raise ValueError(f'{spec.key}: {problem}')
    _refuse_unfit(found, args, specs)
    backend = sweep.backend_of(found.settings)
    policy = sweep.policy_of(found.settings)
    if args.dry_run:
        return _say_actions(args, supervise.decide(backend, specs, policy))
    for spec in forgiven:
        state.resume(spec, time.time())
    sweep.save(found, specs)
    if found.settings.backend == 'local':
        return _ended(args, _supervised(args, backend, specs, policy))
    supervise.step(backend, specs, policy, _note(args))
    return _ended(args, state.read(found.run, specs, time.time()), [
        'what waits, and what ends too early, is started by: downscale launch watch '
        f'{args.config} --run {found.run}'])


def _supervised(args, backend, specs, policy):
    """Return `supervise.run` with a bar for each job that runs."""
    said = sys.stderr if args.json else sys.stdout
    with contextlib.redirect_stdout(said), progress_bars(args.quiet) as bars:
        def show(jobs):
            for job in jobs:
                if job.state == 'running' and job.total:
                    bars(job.key, job.step, job.total, job.task or '')
                else:
                    bars.remove(job.key)
        return supervise.run(backend, specs, policy, lambda text: bars.note(
            f'{time.strftime("%H:%M:%S")} {text}'), show)


def _refuse_changed_files(args):
    if args.allow_dirty:
        return
    try:
        changed = sweep.changed()
    except ValueError as error:
        raise ValueError(f'whether files differ from the commit that the jobs will name cannot be '
                         f'checked ({error}); put that right, or say --allow-dirty') from None
    if changed:
        more = f' and {len(changed) - 1} more' if len(changed) > 1 else ''
        raise ValueError(f'{changed[0]}{more} differ from the commit that the jobs will name; '
                         'commit first, or say --allow-dirty')


def _problems(spec, settings):
    """Return what is wrong with a job, a line each."""
    try:
        _, text = sweep.written(spec, settings)
    except ValueError as error:
        return [str(error)]
    if settings.backend != 'gke':
        return []
    from downscale.launch.backends.validate import problems_of_text
    return problems_of_text(text)


def _fits(found, args):
    """Return ({cell: `fit.CellFit`}, why there is none)."""
    if found.settings.backend == 'local':
        return {}, 'jobs of this machine are not compiled before'
    if args.no_fit:
        return {}, 'not checked (--no-fit)'
    try:
        return fit.check(found.cells, found.settings.topology,
                         Path('runs') / found.name / 'plan', args.quiet), ''
    except ValueError as error:
        if 'no libtpu' not in str(error):
            raise
        return {}, "not checked (pip install 'downscale[tpu]')"


def _refuse_unfit(found, args, specs):
    """Raise ValueError where a cell does not fit its slices, or all may cost more than
    --max-usd.
    """
    fits, why = _fits(found, args)
    if why and found.settings.backend != 'local':
        _note(args)(f'whether the cells fit: {why}')
    cells = {spec.cell for spec in specs}
    for cell, one in fits.items():
        if cell in cells and not one.fits:
            raise ValueError(f'{one.remark}; see: downscale plan, or say --no-fit')
    limit = found.settings.max_usd
    asked = [fits[cell].usd for cell in fits if cell in cells]
    if limit is not None and asked and None not in asked:
        most = sum(usd[1] for usd in asked)
        if most > limit:
            raise ValueError(f'training may cost up to {most:.2f} dollars (estimate), over '
                             f'--max-usd {limit:g}; raise it, or choose with --cell')


def _submitted(found):
    if not found.saved:
        raise ValueError(f'nothing is submitted in {found.run}; see: downscale launch submit')
    return [found.saved[spec.key] for spec in found.planned if spec.key in found.saved]


def _selected(found, args, specs, asked=True):
    return [spec for spec, _ in sweep.select(found, args, specs, asked)]


# --- saying -----------------------------------------------------------------------------------

def _print(args, value, lines):
    print(json.dumps(value) if args.json else '\n'.join(lines))


def _note(args):
    """Return what prints a line of progress: on stderr where stdout is one JSON object."""
    file = sys.stderr if args.json else sys.stdout
    return lambda text: print(time.strftime('%H:%M:%S'), text, file=file, flush=True)


def _say_actions(args, actions):
    """Print what would be done now."""
    value = [{'action': type(action).__name__, **dataclasses.asdict(action)} for action in actions]
    _print(args, {'actions': value}, [board.action_line(action) for action in actions])
    return 0


def _ended(args, jobs, more=()):
    """Print the jobs; exit code 1 where one ended without being done and cannot go on."""
    _print(args, {'jobs': [dataclasses.asdict(job) for job in jobs]},
           [*board.status_lines(jobs), *more])
    return int(any(job.state in ('failed', 'fatal', 'stale', 'cancelled') for job in jobs))


def _placeholders(settings):
    return ['names in capitals are for you to give: --run, --image, --zone'] * (
        settings.image == sweep.NO_IMAGE)


def _log(spec, settings, args):
    """Return (where, text) of the newest log of a job."""
    if settings.backend == 'local':
        path = local.logs(spec, args.process)
        return str(path), path.read_text(errors='replace')
    if settings.backend == 'gke':
        return spec.name, sweep.backend_of(settings).log(spec, args.process)
    folder = state.folder_of(spec.run, spec) / 'logs'
    found = sorted(path for path in folder.glob(f'host-{args.process}-*.log'))
    if not found:
        return str(folder), 'no log yet: a machine leaves it there when its program ends'
    return str(found[-1]), found[-1].read_text()

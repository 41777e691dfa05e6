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
from downscale.launch.backends import capacity, local, sweep
from downscale.planner import fit
from downscale.planner.topologies import PRICES_AS_OF
from downscale.runtime.files import write_bytes, write_json
from downscale.runtime.progress import progress_bars


def plan(args: argparse.Namespace) -> int:
    """Run `launch plan`; return 1 when a cell does not fit its slices."""
    launched = sweep.open_sweep(args, asked=not args.dry_run)
    chosen = sweep.select_unread(launched, args) if args.dry_run else _selected(launched, args)
    launched = sweep.with_cache(launched, asked=not args.dry_run)
    out = Path(args.out or Path('runs') / launched.name / 'launch-plan')
    # Written also where a cell does not fit: a person wants to see what would be sent.
    files = {}
    for spec in chosen:
        ending, text = sweep.written(spec, launched.settings)
        write_bytes(files.setdefault(spec.key, out / f'{spec.name}{ending}'), text.encode())
    fits, why = _fits(launched, args)
    limit = capacity.max_run_seconds(launched.settings)
    value = board.plan_value(chosen, fits, why, files) | {
        'max_run_hours': None if limit is None else limit / 3600}
    write_json(out / 'plan.json', value)
    _print(args, value, board.plan_lines(chosen, fits, why, [
        *board.run_time_lines(chosen, fits, limit), *capacity.remarks(launched.settings),
        *_placeholders(launched.settings), f'files: {out}']))
    return int(not all(fit.fits for fit in fits.values()))


def validate(args: argparse.Namespace) -> int:
    """Run `launch validate`; return 1 when anything is wrong."""
    launched = sweep.open_sweep(args, asked=False)
    problems = []
    for spec in launched.planned:
        problems += [f'{spec.key}: {text}' for text in _problems(spec, launched.settings)]
    _print(args, {'jobs': len(launched.planned), 'problems': problems}, [
        *problems, f'{len(launched.planned)} jobs, {len(problems)} problems',
        *_placeholders(launched.settings)])
    return int(bool(problems))


def rehearse(args: argparse.Namespace) -> int:
    """Run `launch rehearse`, see `launch_rehearse.py`; return 1 when anything is found."""
    from downscale.commands.launch_rehearse import run
    return run(args)


def submit(args: argparse.Namespace) -> int:
    """Run `launch submit`. Nothing is deleted; return 1 when a job has ended without being done."""
    launched = sweep.open_sweep(args)
    chosen = _selected(launched, args)
    return _start(args, launched, sweep.with_needs(chosen, launched.planned))


def resume(args: argparse.Namespace) -> int:
    """Run `launch resume`, which is `submit` after which nothing that went wrong before counts."""
    launched = sweep.open_sweep(args)
    chosen = _selected(launched, args)
    return _start(args, launched, sweep.with_needs(chosen, launched.planned), forgiven=chosen)


def status(args: argparse.Namespace) -> int:
    """Run `launch status`, which reads files alone and asks no backend."""
    launched = sweep.open_sweep(args)
    jobs = [job for _, job in sweep.select(launched, args, launched.known)]
    _print(args, {'jobs': [dataclasses.asdict(job) for job in jobs]}, board.status_lines(jobs))
    return 0


def cost(args: argparse.Namespace) -> int:
    """Run `launch cost`, with the prices of `planner/topologies.py`."""
    launched = sweep.open_sweep(args)
    chosen = sweep.select(launched, args, launched.known)
    value = board.cost_value(chosen, launched.settings.max_usd)
    _print(args, value, [*board.cost_lines(value), f'prices of {PRICES_AS_OF}, on demand; time is '
                         'that of the attempts in its files; a machine that waits, or has begun '
                         'nothing yet, is not in them'])
    return 0


def logs(args: argparse.Namespace) -> int:
    """Run `launch logs`; ValueError when no such job has begun."""
    launched = sweep.open_sweep(args)
    chosen = [spec for spec, job in sweep.select(launched, args, launched.known)
              if job.attempt is not None]
    if not chosen:
        raise ValueError('no such job has begun; see: downscale launch status')
    value = {}
    for spec in chosen:
        name, text = _log(spec, launched.settings, args)
        value[spec.key] = {'log': name, 'lines': text.splitlines()[-args.lines:]}
    lines = []
    for key, part in value.items():
        lines += [f'--- {key}: {part["log"]}', *part['lines']]
    _print(args, value, lines)
    return 0


def cancel(args: argparse.Namespace) -> int:
    """Run `launch cancel` for jobs that are not done."""
    launched = sweep.open_sweep(args)
    # Of submitted jobs alone: what was only planned has nothing to cancel.
    chosen = [spec for spec, job in sweep.select(launched, args, list(launched.saved.values()))
              if job.state not in ('done', 'fatal', 'cancelled')]
    deleted = []
    would = 'would be ' if args.dry_run else ''
    # The files first: a watcher would start again whatever is only deleted.
    if not args.dry_run:
        for spec in chosen:
            state.cancel(spec, time.time())
    if launched.settings.backend != 'local' and chosen:
        names = {spec.name: spec.key for spec in chosen}
        backend = sweep.backend_of(launched.settings)
        # One that is going already would be told of twice.
        for resource in backend.observe(chosen):
            if resource.name in names and resource.state != 'deleting':
                deleted.append(f'{names[resource.name]}: {resource.name} {would}deleted')
                if not args.dry_run:
                    backend.delete(resource.name, resource.zone)
    lines = [f'{spec.key}: {would}cancelled' for spec in chosen] + deleted
    _print(args, {'cancelled': [spec.key for spec in chosen], 'deleted': deleted},
           lines if chosen else ['nothing to cancel'])
    return 0


def watch(args: argparse.Namespace) -> int:
    """Run `launch watch`; the same command goes on where it was stopped."""
    launched = sweep.open_sweep(args)
    # Local jobs end with the process that has submitted them, which watches them as well.
    if launched.settings.backend == 'local':
        raise ValueError('a local sweep ends with its `submit`; the same submit goes on')
    specs = _submitted(launched)
    backend = sweep.backend_of(launched.settings)
    policy = sweep.policy_of(launched.settings)
    if args.dry_run:
        return _print_actions(args, supervise.decide(backend, specs, policy))
    return _ended(args, _supervised(args, backend, specs, policy))


def gc(args: argparse.Namespace) -> int:
    """Run `launch gc`, which deletes by name and leaves all files alone."""
    launched = sweep.open_sweep(args)
    left = []
    # Jobs of a cell that the study no longer has; whatever was submitted and is planned stays.
    if launched.settings.backend != 'local':
        names = {spec.name for spec in launched.saved.values()}
        backend = sweep.backend_of(launched.settings)
        # By name, which holds the hash of the spec: a changed cell leaves its old resource behind.
        left = [resource for resource in backend.observe(launched.planned)
                if resource.name not in names and resource.state != 'deleting']
        if not args.dry_run:
            for resource in left:
                backend.delete(resource.name, resource.zone)
    verb = 'would be deleted' if args.dry_run else 'deleted'
    lines = [f'{resource.name} {resource.zone}: {verb}' for resource in left]
    _print(args, {verb.replace(' ', '_'): [resource.name for resource in left]},
           lines or ['nothing is left over'])
    return 0


VERBS = {verb.__name__: verb for verb in (
    plan, validate, rehearse, submit, status, logs, cancel, resume, cost, watch, gc)}


# --- starting ---------------------------------------------------------------------------------

def _start(args, launched, specs, forgiven=()):
    """Submit the jobs `specs`, and return the exit code; the past of those `forgiven` is void."""
    # 1. Nothing is written or started before all of this holds.
    if not specs:
        raise ValueError('no job is meant; see: downscale launch status')
    _refuse_changed_files(args)
    launched = sweep.with_cache(launched)
    jobs = {job.key: job for job in state.read(launched.run, launched.known, time.time())}
    # A job that runs as another spec would be replaced under the hands of its program.
    for spec in specs:
        before = launched.saved.get(spec.key, spec)
        if before.hash != spec.hash and jobs[spec.key].state == 'running':
            raise ValueError(f'{spec.key} runs as it was before the study or its settings changed '
                             f'(spec {before.hash}, now {spec.hash}); cancel it first')
        for problem in _problems(spec, launched.settings):
            raise ValueError(f'{spec.key}: {problem}')
    _refuse_unfit(launched, args, specs)
    backend = sweep.backend_of(launched.settings)
    policy = sweep.policy_of(launched.settings)
    if args.dry_run:
        return _print_actions(args, supervise.decide(backend, specs, policy))
    # 2. Files, from which any watcher can go on.
    for spec in forgiven:
        state.resume(spec, time.time())
    sweep.save(launched, specs)
    # 3. Jobs of this machine end with this process, so it stays; the cloud goes on by itself.
    if launched.settings.backend == 'local':
        return _ended(args, _supervised(args, backend, specs, policy))
    supervise.step(backend, specs, policy, _note(args))
    return _ended(args, state.read(launched.run, specs, time.time()), [
        'what waits, and what ends too early, is started by: downscale launch watch '
        f'{args.config} --run {launched.run}'])


def _supervised(args, backend, specs, policy):
    """Run the sweep with a bar for each job that runs, and return the jobs as they ended."""
    shown_on = sys.stderr if args.json else sys.stdout
    with contextlib.redirect_stdout(shown_on), progress_bars(args.quiet) as bars:
        return supervise.run(backend, specs, policy, lambda text: bars.note(
            f'{time.strftime("%H:%M:%S")} {text}'), board.shown_by(bars))


def _refuse_changed_files(args):
    """Raise ValueError where files differ from the commit that the specs name."""
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
    # Commands of a shell have no schema to be checked against.
    if settings.backend != 'gke':
        return []
    from downscale.launch.backends.validate import problems_of_text
    return problems_of_text(text)


def _fits(launched, args):
    """Return ({cell: `fit.CellFit`}, why there are none, '' where there are)."""
    if launched.settings.backend == 'local':
        return {}, 'jobs of this machine are not compiled before'
    if args.no_fit:
        return {}, 'not checked (--no-fit)'
    # A machine that launches need not have the compiler; then the cloud finds out.
    try:
        return fit.check(launched.cells, launched.settings.topology,
                         Path('runs') / launched.name / 'plan', args.quiet), ''
    except ValueError as error:
        if 'no libtpu' not in str(error):
            raise
        return {}, "not checked (pip install 'downscale[tpu]')"


def _refuse_unfit(launched, args, specs):
    """Raise ValueError where a cell does not fit its slices, or all may cost over --max-usd."""
    # What is not checked is said, and no reason to refuse.
    fits, why = _fits(launched, args)
    if why and launched.settings.backend != 'local':
        _note(args)(f'whether the cells fit: {why}')
    cells = {spec.cell for spec in specs}
    for cell, cell_fit in fits.items():
        if cell in cells and not cell_fit.fits:
            raise ValueError(f'{cell_fit.remark}; see: downscale plan, or say --no-fit')
    limit = launched.settings.max_usd
    asked = [fits[cell].usd for cell in fits if cell in cells]
    if limit is not None and asked and None not in asked:
        # The upper ends of the estimates: a limit that may be passed is none.
        most = sum(usd[1] for usd in asked)
        if most > limit:
            raise ValueError(f'training may cost up to {most:.2f} dollars (estimate), over '
                             f'--max-usd {limit:g}; raise it, or choose with --cell')


def _submitted(launched):
    if not launched.saved:
        raise ValueError(f'nothing is submitted in {launched.run}; see: downscale launch submit')
    return [launched.saved[spec.key] for spec in launched.planned if spec.key in launched.saved]


def _selected(launched, args):
    return [spec for spec, _ in sweep.select(launched, args, launched.planned)]


# --- printing --------------------------------------------------------------------------------

def _print(args, value, lines):
    print(json.dumps(value) if args.json else '\n'.join(lines))


def _note(args):
    """Return a function that prints a line of progress, on stderr where stdout is for JSON."""
    file = sys.stderr if args.json else sys.stdout
    return lambda text: print(time.strftime('%H:%M:%S'), text, file=file, flush=True)


def _print_actions(args, actions):
    """Print what would be done now, and return the exit code."""
    _print(args, {'actions': [{'action': type(action).__name__, **dataclasses.asdict(action)}
                              for action in actions]}, map(board.action_line, actions))
    return 0


def _ended(args, jobs, more=()):
    """Print the jobs; return 1 where one has ended without being done, else 0."""
    _print(args, {'jobs': [dataclasses.asdict(job) for job in jobs]},
           [*board.status_lines(jobs), *more])
    return int(any(job.state in ('failed', 'fatal', 'stale', 'cancelled') for job in jobs))


def _placeholders(settings):
    names = ['--run', '--image', '--zone'] if settings.image == sweep.NO_IMAGE else []
    names += ['PROJECT (submit asks gcloud for it)'] if settings.backend == 'mig' else []
    return [f'names in capitals are for you to give: {", ".join(names)}'] if names else []


def _log(spec, settings, args):
    """Return (where, text) of the newest log of a job."""
    if settings.backend == 'local':
        path = local.logs(spec, args.process)
        return str(path), path.read_text(errors='replace')
    if settings.backend == 'gke':
        return spec.name, sweep.backend_of(settings).log(spec, args.process)
    # A TPU machine uploads its log when its program ends; only pods can be asked before.
    folder = state.folder_of(spec.run, spec) / 'logs'
    paths = sorted(folder.glob(f'host-{args.process}-*.log'))
    if not paths:
        return str(folder), 'no log yet: a machine leaves it there when its program ends'
    # What a program printed need not be UTF-8.
    return str(paths[-1]), paths[-1].read_text(errors='replace')

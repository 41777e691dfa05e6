"""`downscale launch rehearse`: what would be submitted runs here first, on a tiny twin."""
import argparse
import contextlib
import json
import shutil
import sys
import time
from pathlib import Path

from downscale.launch import board
from downscale.launch.rehearsal import injections, rehearse, results, table
from downscale.runtime.files import write_bytes, write_json
from downscale.runtime.progress import progress_bars

RESULT = 'rehearsal.json'


def run(args: argparse.Namespace) -> int:
    """Run `launch rehearse`; return 1 when anything is found."""
    names = injections.parse(args.inject or '')
    planned = rehearse.plan(args, args.manifests)
    settings = planned.submitted.settings
    if 'quota' in names and settings.backend == 'gke' and not settings.queue:
        raise ValueError('--inject quota takes the quota of a queue; give --queue NAME')
    out = _emptied(args.out or Path('runs') / planned.submitted.name / 'rehearsal')
    for name, manifest in planned.manifests.items():
        text = planned.where.text(manifest)
        write_bytes(out / 'manifests' / f'{name}{planned.where.ENDING}', text.encode())
    shown_on = sys.stderr if args.json else sys.stdout
    with contextlib.redirect_stdout(shown_on), progress_bars(args.quiet) as bars:
        outcome = _run(planned, (), out / 'undisturbed', bars)
        unequal = None
        # What is wrong without a disturbance need not be disturbed.
        if names and not outcome.findings:
            before = outcome.digests
            outcome = _run(planned, names, out / 'disturbed', bars)
            unequal = results.unequal(before, outcome.digests)
            outcome.findings.extend(f'{name}: not the result of the undisturbed run'
                                    for name in unequal)
    outcome.findings.extend(table.beyond(planned))
    value = table.value(planned, outcome, unequal)
    write_json(out / RESULT, value)
    print(json.dumps(value) if args.json else
          '\n'.join([*table.lines(value), f'manifests and logs: {out}']))
    return int(bool(outcome.findings))


def _run(planned, names, folder, bars):
    """Run all jobs once, with a bar for each that runs."""
    what = ', '.join(names) or 'undisturbed'
    bars.note(f'{time.strftime("%H:%M:%S")} rehearsal of {len(planned.pairs)} jobs: {what}')
    return rehearse.run(planned, names, folder.absolute(), lambda text: bars.note(
        f'{time.strftime("%H:%M:%S")} {text}'), board.shown_by(bars))


def _emptied(out):
    """Return a folder without what an earlier rehearsal left there."""
    if out.is_dir() and any(out.iterdir()) and not (out / RESULT).exists() \
            and not (out / 'manifests').is_dir():
        raise ValueError(f'{out} holds something else; give another folder with --out')
    for name in ('manifests', 'undisturbed', 'disturbed'):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / RESULT).unlink(missing_ok=True)
    return out

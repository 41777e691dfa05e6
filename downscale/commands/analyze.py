"""The verbs of `downscale analyze` and their arguments: laws of tables, and measures of studies."""
import argparse
import contextlib
import sys

from downscale.commands import analyze_fit, analyze_ledger
from downscale.commands.machine import prepare_for_models
from downscale.commands.parsing import (
    any_path,
    local_path,
    natural,
    new_file,
    new_folder,
    resamples,
)
from downscale.output.text import linked

# Copies of names, since `--help` must not wait for numpy; the tests compare them.
COSTS = ('params', 'train_flops', 'inference_flops', 'samples', 'chip_hours')  # of `costs.py`
SIZE_COLUMNS = ('n_nonembed', 'n_total')  # those of `analysis/drops.py`, which needs numpy
ANALYZE_EXAMPLES = {
    'fit': 'downscale analyze fit runs.csv --x n_nonembed --tokens tokens --run run_id',
    'isoflop': 'downscale analyze isoflop runs.csv --budget budget',
    'drop': 'downscale analyze drop runs/smoke --size n_total',
    'grid': 'downscale analyze grid runs/smoke --csv grid.csv',
    'attribute': 'downscale analyze attribute runs/smoke --macro',
    'compare': 'downscale analyze compare runs/smoke --sizes w32d1 w64d4 --json',
    'probe': 'downscale analyze probe runs/smoke --pictures 256',
    'losses': 'downscale analyze losses runs/smoke --out runs/smoke/analysis',
    'captions': 'downscale analyze captions runs/smoke',
    'forgetting': 'downscale analyze forgetting runs/smoke',
    'ledger': 'downscale analyze ledger models/vlm --data pairs.jsonl --out ledger',
    'validate': 'downscale analyze validate runs/smoke',
    'pareto': 'downscale analyze pareto runs/smoke --cost inference_flops --out runs/smoke/pareto',
    'report': 'downscale analyze report runs/smoke --bootstraps 500 --out runs/smoke/quick',
}
EXAMPLE = ANALYZE_EXAMPLES['drop']
STUDY = 'folder of a study, of this machine or of a bucket (gs://BUCKET/...)'
PICTURED = ('probe', 'losses', 'captions', 'forgetting', 'ledger')  # always drawn
DRAWN = ('fit', 'isoflop', 'drop', 'grid', 'attribute', 'pareto')  # with --out
HELP = {
    'fit': 'Fit a law of size (and tokens) to a table, with intervals and alarms.',
    'isoflop': 'The best size of each compute budget, and the line through them.',
    'drop': 'Drop from the largest to the smallest size, four ways; drop against image reliance.',
    'grid': 'Accuracy of perception x reasoner pairs, with marginal curves.',
    'attribute': 'Shares of the drop by Shapley values, and items by class that sum to it.',
    'compare': 'Sizes on the same items: paired differences, adjusted p values, power.',
    'probe': 'What every run holds of its pictures, layer by layer, and what hiding them costs.',
    'losses': 'What small sizes lose against the largest, as far as probes of means read it.',
    'captions': 'What captions tell of their scenes, field by field; no reader between.',
    'forgetting': 'What tuning to write cost: answers, facts and captions before and after.',
    'ledger': 'Where runs lose what they are asked to see: by swaps between matched pictures.',
    'validate': 'Schemas, pairing, failed runs and endings of a study; exit code 2 on errors.',
    'pareto': 'Accuracy against cost: the frontier, and the probability of being on it.',
    'report': 'One offline HTML file, every number as JSON, and a PNG and CSV per figure.',
}


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` a verb and what that verb reads."""
    # One verb is one help page: what a verb does not read is refused instead of ignored.
    verbs = sub.add_subparsers(dest='verb', required=True, metavar='VERB')
    for name, text in HELP.items():
        verb = verbs.add_parser(name, help=text, description=text,
                                epilog=f'example: {ANALYZE_EXAMPLES[name]}')
        if name == 'fit':
            analyze_fit.add_fit_arguments(verb)
        elif name == 'isoflop':
            analyze_fit.add_isoflop_arguments(verb)
        elif name in ('probe', 'losses', 'captions', 'forgetting'):
            add_probe_arguments(verb, name)
        elif name == 'ledger':
            analyze_ledger.add_arguments(verb)
            _add_resamples(verb)
        elif name == 'validate':
            verb.add_argument('study', type=any_path, help=STUDY)
            verb.add_argument('--json', action='store_true', help='one JSON object instead of text')
        elif name == 'report':
            add_report_arguments(verb)
        else:
            add_measure_arguments(verb, name)


def add_report_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `report` reads."""
    sub.add_argument('study', type=any_path, help=STUDY)
    sub.add_argument('--out', type=new_folder, metavar='DIR',
                     help='where to (default: STUDY/report; of gs://.../NAME here, NAME/report)')
    _add_resamples(sub)


def _add_resamples(sub):
    sub.add_argument('--bootstraps', type=resamples, default=2000, metavar='N',
                     help='resamples of the pictures (default 2000)')
    sub.add_argument('--seed', type=natural, default=0, help='seed of the resamples (default 0)')


def add_measure_arguments(sub: argparse.ArgumentParser, verb: str) -> None:
    """Add to `sub` what `analyze_measures.run` reads for this verb."""
    sub.set_defaults(verb=verb)
    sub.add_argument('study', type=any_path, help=STUDY)
    sub.add_argument('--json', action='store_true', help='one JSON object instead of tables')
    sub.add_argument('--csv', type=new_file, metavar='FILE',
                     help='write every number there as well')
    sub.add_argument('--out', type=new_folder, metavar='DIR',
                     help='write the numbers as JSON and CSV, and figures, there as well')
    sub.add_argument('--macro', action='store_true', help='print means over families only')
    _add_resamples(sub)
    if verb == 'drop':
        sub.add_argument('--size', choices=SIZE_COLUMNS, default=SIZE_COLUMNS[0],
                         help=f'what a decade is counted in (default {SIZE_COLUMNS[0]})')
    if verb == 'pareto':
        sub.add_argument('--cost', choices=COSTS, default=COSTS[0],
                         help=f'cost of an answer or of its models (default {COSTS[0]})')
    if verb == 'compare':
        sub.add_argument('--sizes', nargs=2, metavar='SIZE', help='two sizes (default: all pairs)')


def add_probe_arguments(sub: argparse.ArgumentParser, verb: str) -> None:
    """Add to `sub` what `analyze_probes` reads for this verb."""
    sub.set_defaults(verb=verb)
    # Probes are written into the study, beside what they were made of; scenes are read from it.
    local = verb != 'losses'
    sub.add_argument('study', type=local_path if local else any_path,
                     help='folder of a study' if local else STUDY)
    sub.add_argument('--out', type=new_folder, help='folder of JSON, CSV and figure (default: '
                     'STUDY/analysis; of gs://.../NAME here, NAME/analysis)')
    sub.add_argument('--json', action='store_true', help='one JSON object instead of tables')
    _add_resamples(sub)
    if verb == 'losses':
        sub.add_argument('--macro', action='store_true', help='print means over families only')
    if verb == 'probe':
        sub.add_argument('--pictures', type=int, default=256, metavar='N',
                         help='fresh scenes that probes are trained on (default 256)')
    if verb in ('probe', 'forgetting'):
        sub.add_argument('--quiet', action='store_true', help='no progress bars')


def probe(args: argparse.Namespace) -> None:
    """Probe every run of a study that is not probed yet; the same command continues."""
    from downscale.commands import analyze_probes
    # Refused here, and not when the probes are done.
    analyze_probes.check_resamples(args.bootstraps)
    if args.pictures < 0:
        raise ValueError(f'--pictures {args.pictures} must be at least 0')
    from downscale.probe.probe import probe_study
    from downscale.runtime.progress import progress_bars
    shown_on = sys.stderr if args.json else sys.stdout  # stdout is then one JSON object
    with contextlib.redirect_stdout(shown_on), progress_bars(args.quiet) as bars:
        notes = probe_study(args.study, args.pictures, args.bootstraps, args.seed, bars)
    analyze_probes.show_probes(args, notes)


def report(args: argparse.Namespace) -> None:
    """Write the report of a finished or unfinished study."""
    from downscale.report.figures import plotting
    plotting()  # all numbers are made before the first figure
    from downscale.commands.analyze_measures import check_resamples
    from downscale.report.report import write_report
    check_resamples(args.bootstraps)
    page = write_report(args.study, args.out, args.bootstraps, args.seed)
    print(f'report: {linked(page)}')


def validate(args: argparse.Namespace) -> int:
    """Print what is wrong with a study; return 2 where numbers would be wrong, else 0."""
    import json

    from downscale.analysis.validate import lines
    from downscale.analysis.validate import validate as find
    from downscale.results.study import local_study
    errors, notes, rates = find(local_study(args.study))
    # The exit code follows errors alone: an unfinished study has notes, and is no fault.
    print(json.dumps({'errors': errors, 'notes': notes, 'answers': rates}, indent=1) if args.json
          else '\n'.join(lines(errors, notes, rates)))
    return 2 if errors else 0


def run(args: argparse.Namespace) -> int | None:
    """Drops, shares, laws, probes and costs of a study."""
    if args.verb in ('probe', 'forgetting', 'ledger'):  # which run models
        prepare_for_models()
    # Numbers take minutes and come before the first figure: a library that is missing must not be
    # found out only then.
    if args.verb in PICTURED or args.verb in DRAWN and args.out:
        from downscale.report.figures import plotting
        plotting()
    if args.verb == 'fit':
        analyze_fit.run(args)
    elif args.verb == 'isoflop':
        analyze_fit.run_isoflop(args)
    elif args.verb == 'probe':
        probe(args)
    elif args.verb == 'losses':
        from downscale.commands import analyze_probes
        analyze_probes.show_losses(args)
    elif args.verb == 'captions':
        from downscale.commands import analyze_probes
        analyze_probes.show_captions(args)
    elif args.verb == 'forgetting':
        from downscale.commands import analyze_probes
        analyze_probes.show_forgetting(args)
    elif args.verb == 'ledger':
        analyze_ledger.run(args)
    elif args.verb == 'report':
        report(args)
    elif args.verb == 'validate':
        return validate(args)
    else:
        from downscale.commands import analyze_measures
        analyze_measures.run(args)
    return None

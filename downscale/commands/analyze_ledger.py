"""`downscale analyze ledger`: where each run of a study loses what it is asked to see."""
import argparse
import contextlib
import sys

from downscale.commands.parsing import count, local_path, new_folder


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.set_defaults(verb='ledger')
    sub.add_argument('study', type=local_path, help='folder of a study')
    sub.add_argument('--cell', nargs='+', metavar='CELL', help='these cells (default: all)')
    sub.add_argument('--pairs', type=count, default=96, metavar='N',
                     help='matched scenes of each field (default 96)')
    sub.add_argument('--scenes', type=count, default=320, metavar='N',
                     help='scenes of each field that probes are trained on (default 320)')
    sub.add_argument('--out', type=new_folder, help='folder of JSON, CSV and figure (default: '
                     'STUDY/analysis)')
    sub.add_argument('--json', action='store_true', help='one JSON object instead of tables')
    sub.add_argument('--quiet', action='store_true', help='no progress bars')


def run(args: argparse.Namespace) -> None:
    """Print the causal ledger of the runs of a study, and leave it in --out."""
    from downscale.commands import analyze_probes
    from downscale.commands.analyze_measures import check_resamples
    check_resamples(args.bootstraps)
    from downscale.probe.causal import CausalPlan, causal_ledger, over_seeds
    from downscale.probe.probe import probed_cells
    from downscale.report.probe_figures import ledger_lines
    from downscale.results.study_file import read_study
    from downscale.runtime.files import place
    from downscale.runtime.progress import progress_bars
    from downscale.values import unknown
    cells, notes = probed_cells(args.study, read_study(place(args.study)))
    names = [cell.name for cell in cells]
    for name in args.cell or ():
        if name not in names:
            raise ValueError(f'--cell: {unknown("cell", name, names)}')
    cells = [cell for cell in cells if not args.cell or cell.name in args.cell]
    if not cells:
        raise ValueError(f'{args.study}: nothing to look at: {"; ".join(notes) or "no runs"}')
    plan = CausalPlan(pairs=args.pairs, scenes=args.scenes, bootstraps=args.bootstraps,
                      seed=args.seed)
    rows = []
    shown_on = sys.stderr if args.json else sys.stdout  # stdout is then one JSON object
    with contextlib.redirect_stdout(shown_on), progress_bars(args.quiet) as bars:
        for cell in cells:
            rows += causal_ledger(args.study, cell, plan,
                                  lambda done, total, name=cell.name: bars(name, done, total))
            bars.finished(cell.name)
    notes = [*notes, 'left: the key and the value of the asked object in its own patches, behind '
             'the tower (encode) and the connector (carry); its value at the place of the answer '
             '(address); right answers (read); each above guessing, 0 to 1',
             'nats: what the log-odds of two answers move by when the scene is exchanged for one '
             'that differs in the asked field; for other fields, and for nothing, this must be 0']
    notes += [f'{row.table}: most is lost where it should {row.setting} ({row.value:.2f})'
              if row.setting != 'nowhere' else f'{row.table}: little is lost'
              for row in rows if row.what == 'place']
    shown = [row for row in rows if row.what in ('left', 'lost', 'nats')]
    if len({cell.size for cell in cells}) < len(cells):
        means = over_seeds(cells, rows)
        rows, shown = [*means, *rows], [*means, *shown]
    runs = [row for row in rows if row.table in names]
    analyze_probes.leave(args, 'ledger', rows, shown, notes, ledger_lines, runs)

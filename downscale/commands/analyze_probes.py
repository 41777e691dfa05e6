"""What `downscale analyze probe`, `losses`, `captions` and `forgetting` print and leave in --out.
"""
import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from downscale.analysis import measures
from downscale.analysis.ledger import ledger, ledger_rows
from downscale.analysis.measures import Missing, Row
from downscale.commands.analyze_measures import as_csv, as_json, check_resamples, lines
from downscale.report.figures import Drawing
from downscale.report.probe_figures import (
    forgetting_dots,
    layer_curves,
    ledger_bars,
    save_figure,
    told_map,
)
from downscale.results.probes import MACRO, read
from downscale.results.study import load_study
from downscale.runtime.copies import results_beside
from downscale.runtime.files import write_bytes
from downscale.runtime.progress import progress_bars

# Of probes the files hold every family and measure; these are printed, in the mean over families.
SHOWN = ('accuracy', 'selectivity', 'attentive', 'attentive control', 'nll rise', 'exact drop',
         'kl', 'cka')


def show_probes(args: argparse.Namespace, notes: Sequence[str]) -> None:
    """Print the probes of a study, and leave them in --out as JSON, CSV and figure."""
    # Rows of two kinds: what one run holds, and how alike two runs are.
    probes = read(args.study, 'probes').to_pylist()
    rows = [Row(table=row['run_id'], setting=_site(row), family=row['task'], what=row['metric'],
                value=row['value'], low=row['lo'], high=row['hi'], n=row['n'],
                method='bootstrap over pictures') for row in probes]
    for row in read(args.study, 'probe_pairs').to_pylist():
        runs = f'{row["run_id"]} and {row["other_id"]}'
        sites = f'{row["site"]} {row["rel_depth"]:g} and {row["other_depth"]:g}'
        rows.append(Row(table=runs, setting=sites, family='', what=row['metric'],
                        value=row['value'], n=row['n']))
    notes = [*notes, 'selectivity: accuracy of a probe minus that on shuffled answers; nll, kl: '
             'nats; exact: share of answers that greedy decoding writes word for word; attentive: '
             'of the families about one object alone']
    shown = [row for row in rows if row.family in (MACRO, '') and row.what in SHOWN]
    leave(args, 'probe', rows, shown, notes, layer_curves, probes)


def show_losses(args: argparse.Namespace) -> None:
    """Print the loss ledger of a study, and leave it in --out as JSON, CSV and figure."""
    check_resamples(args.bootstraps)
    study = load_study(args.study)
    try:
        losses = ledger(measures.scored(study, args.bootstraps, args.seed),
                        read(study.root, 'probe_items'))
    except Missing as reason:
        raise ValueError(f'{args.study}: {reason}') from None
    rows, notes = ledger_rows(losses)
    # Terms of single families are many, and wide; the files hold them all either way.
    shown = [row for row in rows if row.family == MACRO or not args.macro]
    leave(args, 'losses', rows, shown, notes, ledger_bars, losses)


def show_captions(args: argparse.Namespace) -> None:
    """Print what the captions of a study tell of its scenes, and leave it in --out."""
    from downscale.probe.captions import OTHER, caption_rows
    check_resamples(args.bootstraps)
    rows, notes = caption_rows(args.study, args.bootstraps, args.seed)
    notes = [*notes, 'told: share of the objects of a scene, and of those made up, whose field '
             'stands in the caption']
    # Runs are many: the files and the figure have them all.
    means = [row for row in rows if row.seeds > 1]
    shown = [*means, *(row for row in rows if row.table == OTHER)] if means else rows
    leave(args, 'captions', rows, shown, notes, told_map, rows)


def show_forgetting(args: argparse.Namespace) -> None:
    """Ask every writer of a study what was asked before it learnt to write, and print the change.

    What was asked is kept in the study, so that the same command goes on.
    """
    from downscale.probe.captions import ALL
    from downscale.probe.forgetting import CONSTANT, FACTS, VISUAL, forgetting_rows, of_settings
    check_resamples(args.bootstraps)
    shown_on = sys.stderr if args.json else sys.stdout  # stdout is then one JSON object
    with contextlib.redirect_stdout(shown_on), progress_bars(args.quiet) as bars:
        rows, notes = forgetting_rows(args.study, args.bootstraps, args.seed, bars)
    notes = [*notes, 'before: the stage that answered, from which the writer went on; likeliest: '
             "of the family's answers; caption: share of the fields of a scene that it tells"]
    shown = [row for row in of_settings(rows) if row.family in (VISUAL, FACTS, ALL)]
    leave(args, 'forgetting', rows, [*shown, *(row for row in rows if row.table == CONSTANT)],
          notes, forgetting_dots, shown)


def _site(row):
    depth = row['rel_depth']
    return row['site'] if math.isnan(depth) else f'{row["site"]} {depth:g}'


def leave(args: argparse.Namespace, name: str, rows: Sequence[Row], shown: Sequence[Row],
          notes: Sequence[str], draw: Callable[[Any], Drawing], drawn: Any,
          input_hash: str = '') -> None:
    """Write `rows` into --out (default: STUDY/analysis), and print those `shown`, or JSON.

    `input_hash` names what they were made of, by default all of the study.
    """
    out = args.out or results_beside(args.study) / 'analysis'
    save_figure(draw, drawn, out, name)
    text = as_json(args, input_hash or load_study(args.study).input_hash, rows, notes)
    write_bytes(out / f'{name}.json', (text + '\n').encode())
    write_bytes(out / f'{name}.csv', as_csv(rows).encode())
    if args.json:
        print(text)
        return
    print(*lines(shown, notes), sep='\n')
    print(f'\nfiles: {out / name}.json, .csv, .png')

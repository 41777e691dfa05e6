"""What the verbs drop, grid, attribute, compare and pareto of `downscale analyze` print."""
import argparse
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence

from downscale.analysis import measures
from downscale.analysis.measures import Missing, Row, Scored
from downscale.commands.measure_rows import (
    attribution_rows,
    compare_rows,
    drop_rows,
    grid_rows,
    pareto_rows,
)
from downscale.output.plain import plain
from downscale.output.text import aligned
from downscale.report.figures import save
from downscale.results.items import TableError
from downscale.results.study import load_study
from downscale.runtime.files import write_bytes

# The fields of a row in their order: a new field is a new column everywhere.
COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


Measure = Callable[[Scored, argparse.Namespace], tuple[list[Row], list[str]]]
# What a verb computes, as rows and notes; `analyze.HELP` says it in words.
MEASURES: dict[str, Measure] = {
    'drop': lambda s, args: drop_rows(s, args.size),
    'grid': lambda s, args: grid_rows(s),
    'attribute': lambda s, args: attribution_rows(s),
    'compare': lambda s, args: compare_rows(s, args.sizes),
    'pareto': lambda s, args: pareto_rows(s, args.cost)}


def _figures(s, args):
    """Yield (name, figure function, what it draws) of one verb; those without data are left out."""
    from downscale.analysis import drops, flips, grids
    from downscale.analysis.pareto import ways_by_cost
    from downscale.report import figures, pair_figures, share_figures
    wanted = {'drop': [('drops', figures.drops, drops.by_family),
                       ('reliance', figures.reliance, drops.reliance)],
              'grid': [('grid', pair_figures.grid, grids.grid),
                       ('families', share_figures.grid_families, flips.families)]}
    wanted['attribute'] = [
        ('shares', share_figures.shares, lambda s: flips.shares(s)['macro'])]
    wanted['pareto'] = [
        ('pareto', share_figures.pareto, lambda s: ways_by_cost(s, args.cost))]
    for name, draw, compute in wanted.get(args.verb, ()):
        # The table of the verb has said already why a part has no data.
        with contextlib.suppress(Missing, TableError):
            yield name, draw, compute(s)


def check_resamples(bootstraps: int) -> None:
    """Raise ValueError when so few resamples give no interval."""
    if bootstraps < 100:
        raise ValueError(f'--bootstraps {bootstraps} is too few for an interval; 100 or more')


def run(args: argparse.Namespace) -> None:
    """Print the numbers of one verb of `MEASURES`; the same study and seed give the same bytes.

    ValueError with the reason when the study has none of them.
    """
    check_resamples(args.bootstraps)
    # 1. The numbers. A seed decides the resamples, so the same command prints the same bytes.
    study = load_study(args.study)
    s = measures.scored(study, args.bootstraps, args.seed)
    try:
        rows, notes = MEASURES[args.verb](s, args)
    except Missing as reason:
        raise ValueError(f'{args.study}: {reason}') from None
    # Files before the terminal: a reader that closes the pipe (`| head`) must not cost them.
    if args.csv:
        write_bytes(args.csv, as_csv(rows).encode())
    text = as_json(args, study.input_hash, rows, notes)
    if args.out:
        write_bytes(args.out / f'{args.verb}.json', (text + '\n').encode())
        write_bytes(args.out / f'{args.verb}.csv', as_csv(rows).encode())
        for name, draw, result in _figures(s, args):
            save(draw, result, args.out, f'{args.verb}_{name}')
    if args.json:
        print(text)
        return
    print(*lines([row for row in rows if not args.macro or row.family in ('macro', '')], notes),
          sep='\n')


def as_json(args: argparse.Namespace, input_hash: str, rows: Sequence[Row],
            notes: Sequence[str]) -> str:
    """Return the rows as one JSON object, with what they were made of."""
    # `input_hash` names the files that were read: two results may be compared when it agrees.
    value = {'verb': args.verb, 'input_hash': input_hash, 'level': 0.95,
             'bootstraps': args.bootstraps, 'seed': args.seed, 'notes': notes,
             'rows': [_plain(row) for row in rows]}
    return json.dumps(value, indent=1, allow_nan=False)


def as_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV with a header; empty cells where there is no number."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator='\n')
    writer.writerow(COLUMNS)
    writer.writerows(_plain(row).values() for row in rows)
    return sink.getvalue()


def _plain(row):
    """Return the row as JSON and CSV hold it: rounded, and None for what is no finite number."""
    return plain(row, lambda value: round(value, 6))


def lines(rows: Sequence[Row], notes: Sequence[str]) -> Iterator[str]:
    """Yield notes, then a table for each `table` of the rows, as lines of text."""
    yield from notes
    # `groupby` wants rows of a table side by side; sorting is stable and keeps their order in it.
    order = list(dict.fromkeys(row.table for row in rows))
    rows = sorted(rows, key=lambda row: order.index(row.table))
    for table, group in itertools.groupby(rows, key=lambda row: row.table):
        yield f'\n{table}'
        texts = [('', 'family', '', 'value', '95 % interval', 'items', 'clusters', 'method', '')]
        texts += [_texts(row) for row in group]
        # Columns without any text are left out; numbers (columns 3 to 6) stand to the right.
        keep = [place for place, column in enumerate(zip(*texts[1:], strict=True)) if any(column)]
        left = [column for column, place in enumerate(keep) if not 3 <= place <= 6]
        yield from aligned([[text[place] for place in keep] for text in texts], left)


def _texts(row):
    bounds = ''
    if row.method:
        bounds = 'none' if math.isnan(row.low) else f'[{row.low:.3f}, {row.high:.3f}]'
    # A p value or a number of items needs significant digits, an accuracy decimal places.
    small = row.what == 'p' or row.what.startswith(('p,', 'items for'))
    value = f'{row.value:.3g}' if small else f'{row.value:.3f}'
    return (row.setting, row.family, row.what, value, bounds, str(row.n or ''),
            str(row.clusters or ''), row.method, row.note)

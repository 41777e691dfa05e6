"""What the verbs drop, grid, attribute, compare and pareto of `downscale analyze` print."""
import argparse
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Iterator, Sequence

from downscale.analysis import measures
from downscale.analysis.measure_rows import (
    Row,
    attribution_rows,
    compare_rows,
    drop_rows,
    grid_rows,
    pareto_rows,
)
from downscale.analysis.measures import Missing, Scored
from downscale.output.plain import plain
from downscale.output.text import aligned
from downscale.report.figures import save
from downscale.results.items import TableError
from downscale.results.study import load_study
from downscale.runtime.files import write_bytes

COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def drop(s: Scored, args: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Return absolute, relative, chance-corrected drop and slope per decade; drop against
    reliance.
    """
    return drop_rows(s, args.size)


def grid(s: Scored, args: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Return accuracy of perception x reasoner pairs with marginal curves, the other side fixed or
    not.
    """
    return grid_rows(s)


def attribute(s: Scored, args: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Return Shapley shares of the drop with interactions, and items by class that sum to the
    drop.
    """
    return attribution_rows(s)


def compare(s: Scored, args: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Return sizes on the same items: paired differences, adjusted p values, power; runs by IQM."""
    return compare_rows(s, args.sizes)


def pareto(s: Scored, args: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Return the cost and accuracy of every way of answering, and how surely it is on the
    frontier.
    """
    return pareto_rows(s, args.cost)


MEASURES = {'drop': drop, 'grid': grid, 'attribute': attribute, 'compare': compare,
            'pareto': pareto}


def _figures(s, args):
    """Yield (name, figure function, what it draws) of one verb; those without data are left out."""
    from downscale.analysis import drops, flips, grids
    from downscale.analysis.pareto import ways_by_cost
    from downscale.report import figures, share_figures
    wanted = {'drop': (('drops', figures.drops, drops.by_family),
                       ('reliance', figures.reliance, drops.reliance)),
              'grid': (('grid', figures.grid, grids.grid),
                       ('families', share_figures.grid_families, flips.families)),
              'attribute': (('shares', share_figures.waterfall,
                             lambda s: flips.shares(s)['macro']),),
              'pareto': (('pareto', share_figures.pareto, lambda s: ways_by_cost(s, args.cost)),)}
    for name, draw, compute in wanted.get(args.verb, ()):
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
    study = load_study(args.study)
    s = measures.scored(study, args.bootstraps, args.seed)
    try:
        rows, notes = MEASURES[args.verb](s, args)
    except Missing as reason:
        raise ValueError(f'{args.study}: {reason}') from None
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
    found = {'verb': args.verb, 'input_hash': input_hash, 'level': 0.95,
             'bootstraps': args.bootstraps, 'seed': args.seed, 'notes': notes,
             'rows': [_plain(row) for row in rows]}
    return json.dumps(found, indent=1, allow_nan=False)


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
    order = list(dict.fromkeys(row.table for row in rows))
    rows = sorted(rows, key=lambda row: order.index(row.table))
    for table, group in itertools.groupby(rows, key=lambda row: row.table):
        yield f'\n{table}'
        texts = [('', 'family', '', 'value', '95 % interval', 'items', 'clusters', 'method', '')]
        texts += [_texts(row) for row in group]
        keep = [place for place, column in enumerate(zip(*texts[1:], strict=True)) if any(column)]
        left = [column for column, place in enumerate(keep) if not 3 <= place <= 6]
        yield from aligned([[text[place] for place in keep] for text in texts], left)


def _texts(row):
    bounds = ''
    if row.method:
        bounds = 'none' if math.isnan(row.low) else f'[{row.low:.3f}, {row.high:.3f}]'
    value = f'{row.value:.3g}' if row.what.startswith(('p,', 'items for')) or row.what == 'p' \
        else f'{row.value:.3f}'
    return (row.setting, row.family, row.what, value, bounds, str(row.n or ''),
            str(row.clusters or ''), row.method, row.note)

"""The arguments of `downscale analyze fit` and `isoflop`, and what they print."""
import argparse
import json

from downscale.commands.parsing import local_path, natural, new_folder, positive, resamples, share

FORMS = ('power', 'chinchilla', 'saturating')


def add_fit_arguments(sub: argparse.ArgumentParser) -> None:
    """`sub` (an argparse parser) takes what `run` reads."""
    _add_shared(sub, 'n_nonembed')
    sub.add_argument('--tokens', metavar='COLUMN', help='second input, for --form chinchilla')
    sub.add_argument('--form', choices=FORMS, help='y = E + A x^-alpha; with + B tokens^-beta '
                     '(default with --tokens); accuracy between chance and 1')
    sub.add_argument('--chance', type=share, default=0.0, help='floor of --form saturating')
    sub.add_argument('--delta', type=positive, help='residual from which the '
                     'Huber loss is linear (default: 0.001 of log y, 0.01 of an accuracy)')
    sub.add_argument('--worst', type=natural, default=0, metavar='K',
                     help='also fit without the K points of highest residual')
    sub.add_argument('--compute', metavar='COLUMN', help='FLOPs of each row, for --below')
    sub.add_argument('--below', type=positive, metavar='FLOPS',
                     help='fit the rows below this compute and predict the others')
    sub.add_argument('--budget', type=positive, metavar='FLOPS',
                     help='best N and D for this budget, C = 6 N D (--form chinchilla)')


def add_isoflop_arguments(sub: argparse.ArgumentParser) -> None:
    """`sub` (an argparse parser) takes what `run_isoflop` reads."""
    _add_shared(sub, 'n_nonembed')
    sub.add_argument('--budget', required=True, metavar='COLUMN',
                     help='declared budget of each row; rows are grouped by it as it stands')
    sub.add_argument('--compute', metavar='COLUMN',
                     help='FLOPs of each row (default: the budget is the number)')


def _add_shared(sub, x):
    sub.add_argument('table', type=local_path, help='.csv or .parquet, a row per measured point')
    sub.add_argument('--x', default=x, metavar='COLUMN', help=f'size (default: {x})')
    sub.add_argument('--y', default='loss', metavar='COLUMN', help='measured (default: loss)')
    sub.add_argument('--out', type=new_folder, metavar='DIR',
                     help='write the result as JSON and a figure with its CSV there as well')
    sub.add_argument('--run', dest='run_column', metavar='COLUMN',
                     help='run of each row, which is resampled whole (default: every row is a run)')
    sub.add_argument('--draws', type=resamples, default=1000, help='resamples (default: 1000)')
    sub.add_argument('--seed', type=natural, default=0)
    sub.add_argument('--json', action='store_true', help='one JSON object')


def run(args: argparse.Namespace) -> None:
    """`analyze fit`: the law, its intervals and alarms are printed."""
    import numpy as np

    from downscale.laws import extrapolation, fits
    from downscale.output.plain import plain
    law = _law(args)
    columns = [args.x, *([args.tokens] if args.tokens else []), args.y]
    if (args.below is None) != (args.compute is None):
        raise ValueError('--below and --compute go together: a threshold, and the column it is of')
    table = _read(args.table, [*columns, *([args.compute] if args.compute else [])],
                  [args.run_column] if args.run_column else [])
    x = np.column_stack([table[name] for name in columns[:-1]])
    y = table[args.y]
    options = {'runs': table.get(args.run_column), 'delta': args.delta, 'draws': args.draws,
               'seed': args.seed}
    found = fits.fit(law, x, y, worst=args.worst, **options)
    result = plain(found)
    lines = _fit_lines(found)
    if args.budget is not None:
        best = extrapolation.optimum(found, args.budget)
        result['optimum'] = plain(best)
        lines += [f'at {args.budget:.4g} FLOPs:', *_interval_lines(best)]
    if args.below is not None:
        held = extrapolation.holdout(law, x, y, table[args.compute], args.below, **options)
        result['holdout'] = plain(held)
        lines += _holdout_lines(held)
    if args.out:
        _write_fit(args, found, table, result)
    print(json.dumps(result) if args.json else '\n'.join(lines))


def _write_fit(args, found, table, result):
    """fit.json, and fit.png with its CSV: of two inputs at the tokens that most rows have."""
    import numpy as np

    from downscale.analysis import study_laws
    from downscale.report import figures, law_figures
    from downscale.runtime.files import write_json
    tokens = None
    here = np.ones(len(table[args.x]), dtype=bool)
    if args.tokens:
        values, counts = np.unique(table[args.tokens], return_counts=True)
        tokens = float(values[np.argmax(counts)])
        here = table[args.tokens] == tokens
    held = table[args.compute] >= args.below if args.compute else np.zeros(len(here), dtype=bool)
    points = [{'n': float(n), 'value': float(y), 'held': bool(out)} for n, y, out in
              zip(table[args.x][here], table[args.y][here], held[here], strict=True)]
    write_json(args.out / 'fit.json', result)
    part = {'x': args.x, 'points': points, 'curve': study_laws.curve(found, table[args.x], tokens)}
    figures.save(law_figures.laws, {f'{args.y}, {found.form}': part}, args.out, 'fit')


def run_isoflop(args: argparse.Namespace) -> None:
    """`analyze isoflop`: the minimum of each budget and the line through them are printed."""
    from downscale.laws.isoflop import isoflop
    from downscale.output.plain import plain
    numbers = [args.x, args.y, *([args.compute] if args.compute else [])]
    runs = [args.run_column] if args.run_column else []
    table = _read(args.table, numbers, [args.budget, *runs])
    found = isoflop(table[args.x], table[args.y], table[args.budget],
                    runs=table.get(args.run_column), compute=table.get(args.compute),
                    draws=args.draws, seed=args.seed)
    lines = [f'{found.method}; {found.n} points, {found.runs} runs, {found.draws} resamples']
    for one in found.minima:
        lines.append(f'{one.budget:>12}  {args.x} {_show(one.x)}  {args.y} {_show(one.y)}  '
                     f'{one.state}')
    if found.exponent:
        lines += _interval_lines({'exponent': found.exponent, 'coefficient': found.coefficient})
    lines += [f'alarm: {alarm}' for alarm in found.alarms]
    if args.out:
        from downscale.report import figures, law_figures
        from downscale.runtime.files import write_json
        write_json(args.out / 'isoflop.json', plain(found))
        figures.save(law_figures.isoflop, {'fit': found, 'x': args.x, 'points': [
            {'budget': budget, 'n': n, 'loss': y} for budget, n, y in
            zip(table[args.budget], table[args.x], table[args.y], strict=True)]}, args.out,
            'isoflop')
    print(json.dumps(plain(found)) if args.json else '\n'.join(lines))


def _law(args):
    from downscale.laws import forms
    form = args.form or ('chinchilla' if args.tokens else 'power')
    if (form == 'chinchilla') != bool(args.tokens):
        raise ValueError(f'--form {form} takes ' + (
            'a second input: name its column with --tokens' if form == 'chinchilla' else
            'one input: leave --tokens out'))
    if form == 'saturating':
        return forms.Saturating(chance=args.chance)
    return forms.POWER if form == 'power' else forms.CHINCHILLA


def _read(path, numbers, names):
    """Return columns of a table by name: `numbers` as floats, `names` as text."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv, parquet
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; give a .csv or .parquet table')
    if path.suffix not in ('.csv', '.parquet'):
        raise ValueError(f'{path} must be a .csv or .parquet table')
    try:
        # As text: a budget of 1e18 must not be rounded or rewritten before rows are grouped by it.
        as_text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        table = (csv.read_csv(path, convert_options=as_text) if path.suffix == '.csv'
                 else parquet.read_table(path))
    except pa.ArrowInvalid as error:
        raise ValueError(f'{path} is no readable {path.suffix[1:]} table ({error})') from None
    missing = [name for name in [*numbers, *names] if name not in table.column_names]
    if missing:
        raise ValueError(f'{path} has no column {missing[0]!r}; it has '
                         f'{", ".join(table.column_names)}')
    found = {name: np.array([str(one) for one in table.column(name).to_pylist()])
             for name in names}
    for name in numbers:
        try:
            found[name] = np.array(table.column(name).to_pylist(), dtype=float)
        except (ValueError, TypeError):
            raise ValueError(f'{path}: column {name!r} is not all numbers') from None
    return found


def _show(one):
    return f'{one.value:.5g} [{one.low:.5g}, {one.high:.5g}]'


def _interval_lines(intervals):
    return [f'{name:>12}  {_show(one)}' for name, one in intervals.items()]


def _fit_lines(found):
    lines = [f'{found.form}: {found.method}, delta {found.delta:g}, objective '
             f'{found.objective:.6g}; {found.n} points, {found.runs} runs, {found.draws} '
             f'resamples, {found.starts_agree:.0%} of starts agree',
             *_interval_lines({**found.parameters, **found.derived})]
    for title, other in (('plain squares', found.cross_check), (
            f'without rows {found.without["rows"]}' if found.without else '',
            found.without and found.without['parameters'])):
        if other:
            lines.append(f'{title}: ' + ', '.join(f'{key} {one:.5g}'
                                                  for key, one in other.items()))
    return lines + [f'alarm: {alarm}' for alarm in found.alarms]


def _holdout_lines(held):
    return [f'fitted below {held.below:.4g} FLOPs on {held.fit.n} points, {held.held} held out, up '
            f'to {held.reach:.3g}x: error {held.error:.2%} (largest {held.largest:.2%}, bias '
            f'{held.bias:+.2%}), {held.inside:.0%} inside the interval of the curve',
            *_interval_lines({**held.fit.parameters, **held.fit.derived}),
            *(f'alarm: {alarm}' for alarm in held.fit.alarms)]

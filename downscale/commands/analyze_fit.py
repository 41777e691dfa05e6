"""The arguments of `downscale analyze fit` and `isoflop`, and what they print."""
import argparse
import json

from downscale.commands.parsing import any_path, natural, new_folder, positive, resamples, share
from downscale.runtime.copies import local_copy

FORMS = ('power', 'chinchilla', 'saturating')


def add_fit_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
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
    """Add to `sub` what `run_isoflop` reads."""
    _add_shared(sub, 'n_nonembed')
    sub.add_argument('--budget', required=True, metavar='COLUMN',
                     help='declared budget of each row; rows are grouped by it as it stands')
    sub.add_argument('--compute', metavar='COLUMN',
                     help='FLOPs of each row (default: the budget is the number)')


def _add_shared(sub, x):
    sub.add_argument('table', type=any_path, help='.csv or .parquet, a row per '
                     'measured point; of this machine or gs://BUCKET/...')
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
    """Print the law of `analyze fit`, its intervals and alarms."""
    # Late, as all of numpy and JAX below: `--help` and a wrong argument must answer at once.
    import numpy as np

    from downscale.laws import extrapolation, fits
    from downscale.output.plain import plain
    # 1. The law, and the columns that it is fitted to.
    law = _law(args)
    inputs = [args.x, args.tokens] if args.tokens else [args.x]
    # A threshold without its column would silently hold nothing out.
    if (args.below is None) != (args.compute is None):
        raise ValueError('--below and --compute go together: a threshold, and the column it is of')
    table = _read(args.table, [*inputs, args.y, *_given(args.compute)], _given(args.run_column))
    x = np.column_stack([table[name] for name in inputs])
    y = table[args.y]
    # Rows of one run are points of one curve: drawn apart, they would pass for independent ones.
    options = {'runs': table.get(args.run_column), 'delta': args.delta, 'draws': args.draws,
               'seed': args.seed}
    # 2. The fit, and what was asked for beside it.
    fit = fits.fit(law, x, y, worst=args.worst, **options)
    result = plain(fit)
    lines = _fit_lines(fit)
    if args.budget is not None:
        best = extrapolation.optimum(fit, args.budget)
        result['optimum'] = plain(best)
        lines += [f'at {args.budget:.4g} FLOPs:', *_interval_lines(best)]
    if args.below is not None:
        holdout = extrapolation.holdout(law, x, y, table[args.compute], args.below, **options)
        result['holdout'] = plain(holdout)
        lines += _holdout_lines(holdout)
    if args.out:
        _write_fit(args, fit, table, result)
    print(json.dumps(result) if args.json else '\n'.join(lines))


def _given(column):
    """Return a list of the column, empty where none was named."""
    return [column] if column else []


def _write_fit(args, fit, table, result):
    """Write fit.json, and fit.png with its CSV.

    With two inputs the figure is a cut at the number of tokens that most rows have.
    """
    import numpy as np

    from downscale.analysis import study_laws
    from downscale.report import figures, law_figures
    from downscale.runtime.files import write_json
    tokens = None
    in_cut = np.ones(len(table[args.x]), dtype=bool)
    if args.tokens:
        # A law of two inputs is a surface, of which a figure shows the cut with the most points.
        values, counts = np.unique(table[args.tokens], return_counts=True)
        tokens = float(values[np.argmax(counts)])
        in_cut = table[args.tokens] == tokens
    # Drawn in another colour: they had no part in a fit with --below.
    held_out = np.zeros(len(in_cut), dtype=bool)
    if args.compute:
        held_out = table[args.compute] >= args.below
    points = [{'n': float(n), 'value': float(y), 'held': bool(out)} for n, y, out in
              zip(table[args.x][in_cut], table[args.y][in_cut], held_out[in_cut], strict=True)]
    write_json(args.out / 'fit.json', result)
    part = {'x': args.x, 'points': points, 'curve': study_laws.curve(fit, table[args.x], tokens)}
    figures.save(law_figures.laws, {f'{args.y}, {fit.form}': part}, args.out, 'fit')


def run_isoflop(args: argparse.Namespace) -> None:
    """Print the minimum of each budget for `analyze isoflop`, and the line through them."""
    from downscale.laws.isoflop import isoflop
    from downscale.output.plain import plain
    table = _read(args.table, [args.x, args.y, *_given(args.compute)],
                  [args.budget, *_given(args.run_column)])
    fit = isoflop(table[args.x], table[args.y], table[args.budget],
                  runs=table.get(args.run_column), compute=table.get(args.compute),
                  draws=args.draws, seed=args.seed)
    lines = [f'{fit.method}; {fit.n} points, {fit.runs} runs, {fit.draws} resamples']
    for minimum in fit.minima:
        lines.append(f'{minimum.budget:>12}  {args.x} {_show(minimum.x)}  {args.y} '
                     f'{_show(minimum.y)}  {minimum.state}')
    if fit.exponent:
        lines += _interval_lines({'exponent': fit.exponent, 'coefficient': fit.coefficient})
    lines += [f'alarm: {alarm}' for alarm in fit.alarms]
    # Imported here, as figures need matplotlib, which numbers on a terminal do not.
    if args.out:
        from downscale.report import figures, law_figures
        from downscale.runtime.files import write_json
        write_json(args.out / 'isoflop.json', plain(fit))
        points = [{'budget': budget, 'n': n, 'loss': y} for budget, n, y in
                  zip(table[args.budget], table[args.x], table[args.y], strict=True)]
        figures.save(law_figures.isoflop, {'fit': fit, 'x': args.x, 'points': points}, args.out,
                     'isoflop')
    print(json.dumps(plain(fit)) if args.json else '\n'.join(lines))


def _law(args):
    from downscale.laws import forms
    # The number of inputs says the form, unless one is named.
    form = args.form or ('chinchilla' if args.tokens else 'power')
    if form == 'chinchilla' and not args.tokens:
        raise ValueError(f'--form {form} takes a second input: name its column with --tokens')
    if form != 'chinchilla' and args.tokens:
        raise ValueError(f'--form {form} takes one input: leave --tokens out')
    if form == 'saturating':
        return forms.Saturating(chance=args.chance)
    return forms.POWER if form == 'power' else forms.CHINCHILLA


def _read(path, numbers, names):
    """Return columns of a table by name: `numbers` as floats, `names` as text."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv, parquet
    path = local_copy(path)
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
    # The first missing name is enough: the columns that there are stand beside it.
    missing = [name for name in [*numbers, *names] if name not in table.column_names]
    if missing:
        raise ValueError(f'{path} has no column {missing[0]!r}; it has '
                         f'{", ".join(table.column_names)}')
    columns = {}
    for name in names:
        columns[name] = np.array([str(value) for value in table.column(name).to_pylist()])
    for name in numbers:
        try:
            columns[name] = np.array(table.column(name).to_pylist(), dtype=float)
        except (ValueError, TypeError):
            raise ValueError(f'{path}: column {name!r} is not all numbers') from None
    return columns


def _show(interval):
    return f'{interval.value:.5g} [{interval.low:.5g}, {interval.high:.5g}]'


def _interval_lines(intervals):
    return [f'{name:>12}  {_show(interval)}' for name, interval in intervals.items()]


def _fit_lines(fit):
    agreement = f'{fit.starts_agree:.0%} of starts agree'
    lines = [f'{fit.form}: {fit.method}, delta {fit.delta:g}, objective {fit.objective:.6g}; '
             f'{fit.n} points, {fit.runs} runs, {fit.draws} resamples, {agreement}',
             *_interval_lines({**fit.parameters, **fit.derived})]
    if fit.cross_check:
        lines.append(f'plain squares: {_values(fit.cross_check)}')
    if fit.without and fit.without['parameters']:
        lines.append(f'without rows {fit.without["rows"]}: {_values(fit.without["parameters"])}')
    return lines + [f'alarm: {alarm}' for alarm in fit.alarms]


def _values(parameters):
    return ', '.join(f'{name} {value:.5g}' for name, value in parameters.items())


def _holdout_lines(holdout):
    fit = holdout.fit
    error = (f'error {holdout.error:.2%} (largest {holdout.largest:.2%}, '
             f'bias {holdout.bias:+.2%})')
    lines = [f'fitted below {holdout.below:.4g} FLOPs on {fit.n} points, {holdout.held} held out, '
             f'up to {holdout.reach:.3g}x: {error}, {holdout.inside:.0%} inside their '
             'prediction intervals']
    lines += _interval_lines({**fit.parameters, **fit.derived})
    return lines + [f'alarm: {alarm}' for alarm in fit.alarms]

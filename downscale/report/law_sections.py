"""Sections of the report on laws of size, isoFLOP budgets and learning rates, as HTML."""
from pathlib import Path
from typing import Any

from downscale.output import page
from downscale.report import figures, law_figures


def laws(result: Any, out: Path) -> str:
    """Return the laws' figure and the table of fits."""
    svg = figures.save(law_figures.laws, result, out, 'laws')
    names = []
    for part in result.values():
        names += [*part['fit'].parameters, *part['fit'].derived]
    names = list(dict.fromkeys(names))
    rows = []
    for title, part in result.items():
        fit = part['fit']
        holdout = part.get('holdout')
        error = None
        if holdout is not None and not isinstance(holdout, str):  # text says why there is none
            error = (f'{100 * holdout.error:.2f} % of {holdout.held}, {100 * holdout.inside:.0f} % '
                     'inside their prediction intervals')
        every = {**fit.parameters, **fit.derived}
        parameters = [_shown(every.get(name)) for name in names]
        rows.append([title, fit.form, *parameters, fit.n, fit.runs, f'{fit.delta:g}', 0, error,
                     '; '.join(fit.alarms) or 'none'])
    headers = ('law', 'form', *names, 'points', 'runs', 'delta', 'dropped', 'held-out error',
               'alarms')
    texts = [f'{title}: no hold-out: {part["holdout"]}' for title, part in result.items()
             if isinstance(part.get('holdout'), str)]
    texts += [f'{title}: without runs that diverged: {", ".join(part["diverged"])}'
              for title, part in result.items() if part.get('diverged')]
    figure = page.figure(svg, 'Bands: 95 % of the curve, over resampled runs. Dashed: beyond the '
                              'sizes seen. Hollow: held out of the fit that the held-out error is '
                              'of. laws.png, laws.csv')
    notes = ''.join(page.paragraph(text + '.', 'soft') for text in texts) + page.paragraph(
        'Huber fits of the sum over points, from a grid of starts, checked by plain squares. '
        'Sizes are n_nonembed; a good prediction is no well-identified exponent.', 'soft')
    return page.details('Curves and fits', figure + page.table(headers, rows) + notes)


def _shown(x):
    """Return a parameter as text with four digits, since their sizes differ."""
    return None if x is None else f'{x.value:.4g} [{x.low:.4g}, {x.high:.4g}]'


def isoflop(result: Any, out: Path) -> str:
    """Return parabolas of every budget and the line through their minima."""
    svg = figures.save(law_figures.isoflop, result, out, 'isoflop')
    fit = result['fit']
    rows = [[point.budget, point.n, _shown(point.x), _shown(point.y), point.state]
            for point in fit.minima]
    notes = [f'alarm: {alarm}' for alarm in fit.alarms]
    if fit.exponent is not None:
        notes.insert(0, f'exponent {_shown(fit.exponent)}')
    if result['diverged']:
        notes.append(f'without runs that diverged: {", ".join(result["diverged"])}')
    figure = page.figure(svg, f'{fit.method}. isoflop.png, isoflop.csv')
    table = page.table(('budget', 'points', 'best n_nonembed', 'loss', 'state'), rows)
    return page.bullets(notes) + page.details('Parabolas and minima', figure + table)


def rates(result: Any, out: Path) -> str:
    """Return loss against learning rate for every size that was trained at several."""
    svg = figures.save(law_figures.rates, result, out, 'rates')
    rows = [[size, f'{choice.lr:.3g}', choice.loss, result['seeds'][size], choice.edge or 'inside']
            for size, choice in result['choices'].items()]
    figure = page.figure(svg, 'Filled: the rate of lowest mean loss over seeds. rates.png, '
                              'rates.csv')
    table = page.table(('size', 'chosen rate', 'loss', 'seeds', 'place in the grid'), rows)
    return page.bullets(f'alarm: {alarm}' for alarm in result['alarms']) + page.details(
        'Loss by rate', figure + table)


def families(result: Any, out: Path) -> str:
    """Return the laws L(N, D) by family, and how the exponents of kinds of family differ."""
    names = list(next(iter(result['laws'].values())).parameters)
    rows = []
    lines = []
    for family, fit in result['laws'].items():
        rows.append([family, *(_shown(fit.parameters[name]) for name in names), fit.n, fit.runs,
                     '; '.join(fit.alarms) or 'none'])
        for name in names:
            x = fit.parameters[name]
            lines.append({'family': family, 'parameter': name, 'value': x.value, 'low': x.low,
                          'high': x.high, 'points': fit.n, 'trunks': fit.runs})
    figures.write_csv(lines, out, 'laws_families')
    signs = {'alpha': 'parameters', 'beta': 'tokens'}
    notes = [f'Exponent of {signs[name]} ({name}), visual minus knowledge: {_shown(x)}.'
             for name, x in result['differences'].items()]
    notes += [f'{family} has no law: {reason}.' for family, reason in result['missing'].items()]
    table = page.table(('family', *names, 'points', 'trunks', 'alarms'), rows)
    return page.bullets(notes) + page.details('Laws by family', table + page.paragraph(
        'E + A N^-alpha + B D^-beta of the loss of the right answer in nats, with the picture; N '
        f'are parameters without embeddings, D the tokens of stage {result["stage"]}. Intervals '
        'redraw trunks (a size and seed) with all their steps, for both kinds together; of six '
        'trunks or fewer there are none. laws_families.csv', 'soft'))

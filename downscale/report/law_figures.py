"""Figures of laws of size, as in `figures`: a result in, a matplotlib figure and CSV rows out."""
from typing import Any

import numpy as np

from downscale.output.plain import plain
from downscale.report.axes import BLUE, GREY, INK, ORANGE, counts, plotting, small_axes
from downscale.report.figures import Drawing, errors

SIZE = 'parameters (n_nonembed)'


def laws(result: Any) -> Drawing:
    """Return points and fitted curve of every law of size: {title: part of `study_laws`}.

    Solid within the sizes seen, dashed beyond; held-out points are hollow.
    """
    figure, axes = small_axes(len(result), 3.4, 2.7, across=3)
    rows = []
    for axis, (title, part) in zip(axes, result.items(), strict=True):
        y = 'loss' if 'loss' in part['points'][0] else 'value'
        curve = part['curve']
        inside = [row for row in curve if row['inside']]
        beyond = [inside[-1], *(row for row in curve if not row['inside'])]
        for piece, style in ((inside, '-'), (beyond, '--')):
            n = [row['n'] for row in piece]
            axis.plot(n, [row['value'] for row in piece], style, color=BLUE, lw=1.4)
            axis.fill_between(n, [row['low'] for row in piece], [row['high'] for row in piece],
                              color=BLUE, alpha=.18, lw=0)
        for point in part['points']:
            axis.plot(point['n'], point[y], 'o', color=ORANGE, ms=5, mew=1.2,
                      mfc='none' if point['held'] else ORANGE)
        if 'chance' in part:
            axis.axhline(part['chance'], color=GREY, ls=':', lw=1.2, label='informed guess')
            axis.legend(fontsize=8, loc='lower right')
        axis.set(xscale='log', title=title, xlabel=part.get('x', SIZE),
                 ylabel='loss' if y == 'loss' else 'accuracy')
        axis.grid(color=GREY, alpha=.25, lw=.6)
        counts(axis.xaxis)
        rows += [{'law': title, 'kind': 'held out' if point['held'] else 'point', 'n': point['n'],
                  'value': point[y], 'low': None, 'high': None} for point in part['points']]
        for row in curve:
            kind = 'curve' if row['inside'] else 'extrapolation'
            rows.append({'law': title, 'kind': kind, 'n': row['n'], 'value': row['value'],
                         'low': row['low'], 'high': row['high']})
    figure.tight_layout(h_pad=1.2, w_pad=1.5)
    return figure, rows


def isoflop(result: Any) -> Drawing:
    """Return loss against size for every budget with its minimum; the best size against compute."""
    fit = result['fit']
    points = result['points']
    figure, (left, right) = small_axes(2, 4.4, 3.3, across=2)
    shades = plotting().colormaps['viridis_r'](np.linspace(.15, .85, len(fit.minima)))
    rows = []
    for colour, least in zip(shades, fit.minima, strict=True):
        line = sorted((row['n'], row['loss']) for row in points if row['budget'] == least.budget)
        left.plot(*zip(*line, strict=True), 'o-', color=colour, ms=3, lw=1,
                  label=f'{float(least.compute):.2g}')
        kept = least.state == 'kept'
        x = least.x
        if np.isfinite(x.value):
            mark = 'D' if kept else 'x'
            left.plot(x.value, least.y.value, mark, color=INK, ms=5, zorder=3)
            # A minimum that is not enclosed has no interval worth showing.
            right.errorbar(least.compute, x.value, yerr=errors(x) if kept else [[0], [0]],
                           fmt=mark, color=colour, ecolor=GREY, capsize=2, ms=5)
        rows.append({'budget': least.budget, 'compute': least.compute, 'best_n': x.value,
                     'low': x.low, 'high': x.high, 'loss': least.y.value,
                     'curvature': least.curvature, 'state': least.state})
    size = result.get('x', SIZE)
    left.set(xscale='log', xlabel=size, ylabel='loss', title='by size; x: minimum not enclosed')
    left.legend(title='FLOPs', fontsize=8, title_fontsize=8, ncols=2)
    if fit.exponent is not None:
        c = np.array([least.compute for least in fit.minima if least.state == 'kept'])
        x = fit.exponent
        right.plot(c, fit.coefficient.value * c ** x.value, color=INK, lw=1,
                   label=f'exponent {x.value:.2f} [{x.low:.2f}, {x.high:.2f}]')
        right.legend(fontsize=8, loc='upper left')
    right.set(xscale='log', yscale='log', xlabel='compute (FLOPs)', ylabel=f'best {size}',
              title='best size by compute')
    counts(left.xaxis)
    counts(right.yaxis)
    for axis in (left, right):
        axis.grid(color=GREY, alpha=.25, lw=.6)
    figure.tight_layout(w_pad=2)
    return figure, rows


def rates(result: Any) -> Drawing:
    """Return final loss against learning rate, a line per size; the chosen rate is filled."""
    figure, (axis,) = small_axes(1, 4.6, 3.1)
    shades = plotting().colormaps['viridis_r'](np.linspace(.2, .75, len(result['choices'])))
    rows = []
    for colour, (size, choice) in zip(shades, result['choices'].items(), strict=True):
        grid = [(rate, loss) for rate, loss in choice.grid if np.isfinite(loss)]
        axis.plot(*zip(*grid, strict=True), 'o-', color=colour, mfc='white', ms=4, lw=1.2)
        axis.plot(choice.lr, choice.loss, 'o', color=colour, ms=6, label=size + (
            f' ({choice.edge} of the grid!)' if choice.edge else ''))
        rows += [{'size': size, 'rate': rate, 'loss': plain(loss),
                  'chosen': rate == choice.lr, 'seeds': result['seeds'][size]}
                 for rate, loss in choice.grid]
    axis.set(xscale='log', xlabel='learning rate of the language model', ylabel='final loss',
             title=f'stage {result["stage"]}')
    counts(axis.xaxis, '{:.3g}'.format)
    axis.grid(color=GREY, alpha=.25, lw=.6)
    axis.legend(fontsize=8)
    figure.tight_layout()
    return figure, rows

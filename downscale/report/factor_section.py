"""The section of the report on the factors of a study: a curve per level, and claims per level."""
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from downscale.output import page
from downscale.report import figures
from downscale.report.axes import GREY, plotting, short_count, small_axes, spread_ticks
from downscale.statistics.bootstrap import Interval

KINDS = ('visual', 'knowledge')


def html(result: dict[str, dict[str, Any]], out: Path) -> str:
    """Return each factor's curves of accuracy over sizes, its table and its claims; write CSVs."""
    parts = []
    for number, (factor, found) in enumerate(result.items()):
        name = 'factor' if number == 0 else f'factor_{number + 1}'
        svg = figures.save(partial(curves, factor=factor), found, out, name)
        text = (f'Accuracy with the picture, a curve for each level of {factor}, the mean over '
                f'families of a kind; {_usual(found)}. Bands: 95 %. {name}.png, {name}.csv')
        parts += [f'<h3>{page.escape(factor)}</h3>', page.figure(svg, text),
                  page.details(f'Tables by level of {factor}', _accuracies(found)),
                  page.details(f'Claims by level of {factor}', _claims(found))]
        parts += [page.paragraph(f'No numbers of {factor} {level}: {reason}.', 'skip')
                  for level, reason in found['missing'].items()]
    return ''.join(parts)


def _usual(found):
    return f'every other part of this page is of {found["usual"]}'


def _there(found):
    """Return the levels of which there are numbers, in their order."""
    return [level for level in found['levels'] if level in found['claims']]


def _accuracies(found):
    """Return the table of accuracy by family, or kind of family, and size: a column a level."""
    levels = _there(found)
    rows = []
    for family, by_size in found['accuracy'].items():
        for size, by_level in by_size.items():
            rows.append([family, size, *(by_level.get(level) for level in levels)])
    return page.table(('family', 'size', *levels), rows)


def _claims(found):
    """Return the table of verdicts with their effects: a row a claim, a column a level."""
    levels = _there(found)
    rows = []
    for place, claim in enumerate(found['claims'][levels[0]]):
        rows.append([f'{claim["id"]}: {claim["text"]}',
                     *(_verdict(found['claims'][level][place]) for level in levels)])
    return page.table(('claim', *levels), rows) + page.paragraph(
        'Each level by itself, by the same rules as above; nothing is adjusted for their number.',
        'soft')


def _verdict(claim):
    if claim['effect'] is None or claim['low'] is None:
        return claim['verdict']
    ends = ' to '.join(page.number(claim[end], 2, True) for end in ('low', 'high'))
    return f'{claim["verdict"]}, {page.number(claim["effect"], 2, True)} [{ends}]'


def curves(found: dict[str, Any], factor: str) -> figures.Drawing:
    """Return accuracy against parameters, a panel per kind of family and a curve per level."""
    kinds = [kind for kind in KINDS if kind in found['accuracy']]
    levels = _there(found)
    figure, axes = small_axes(len(kinds), 3.4, 2.6)
    colours = plotting().colormaps['viridis'](np.linspace(.9, .1, len(levels)))
    rows = []
    for axis, kind in zip(axes, kinds, strict=True):
        by_size = found['accuracy'][kind]
        for colour, level in zip(colours, levels, strict=True):
            points = [(found['n_nonembed'][size], at[level]) for size, at in by_size.items()
                      if level in at]
            points.sort(key=lambda point: point[0])
            x = [n for n, _ in points]
            axis.fill_between(x, [y.low for _, y in points], [y.high for _, y in points],
                              color=colour, alpha=.15, lw=0)
            axis.plot(x, [y.value for _, y in points], 'o-', color=colour, ms=4, lw=1.5,
                      label=level)
        sizes = sorted(found['n_nonembed'][size] for size in by_size)
        axis.set(xscale='log', ylim=(-.03, 1.03), title=f'{kind} families', ylabel='accuracy',
                 xlabel='parameters without embeddings')
        axis.minorticks_off()
        spread_ticks(axis, sizes, [short_count(n) for n in sizes], gap=.28)
        axis.grid(axis='y', color=GREY, alpha=.25, lw=.6)
        axis.tick_params(length=2)
    for family, by_size in found['accuracy'].items():
        rows += [_row(factor, family, size, level, x) for size, at in by_size.items()
                 for level, x in at.items()]
    handles, labels = axes[0].get_legend_handles_labels()
    figure.tight_layout(h_pad=1.2)
    figure.legend(handles, labels, loc='lower left', ncols=4, fontsize=8.5, bbox_to_anchor=(0, 1),
                  title=factor)
    return figure, rows


def _row(factor: str, family: str, size: str, level: str, x: Interval) -> dict[str, Any]:
    return {'factor': factor, 'level': level, 'family': family, 'size': size,
            **figures.numbers(x)}

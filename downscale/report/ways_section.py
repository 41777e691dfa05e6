"""The section of the report on ways to a small model: accuracy against bytes, and its table."""
from pathlib import Path
from typing import Any

from downscale.output import page
from downscale.report import figures
from downscale.report.axes import BLUE, GREY, ORANGE, plotting, short_count, small_axes
from downscale.report.first_figure import TITLES

MARKS = 'osD^vPX*'


def html(result: dict[str, Any], out: Path) -> str:
    """Return the figure and the table of accuracy by bytes; write ways.png and ways.csv."""
    svg = figures.save(ways, result, out, 'ways')
    caption = ('A line a way to a small model, a point a size. Bytes are those of the language '
               'model, embedding included: 2 for a float, which is not rounded for it, and for '
               'quantised matrices their bits and scales. Bars: 95 %. ways.png, ways.csv')
    kinds = result['kinds']
    rows = [[point['way'], point['size'], f'{point["bytes"]:,}', f'{point["n_total"]:,}',
             *(point['accuracy'][kind] for kind in kinds), point['seeds']]
            for point in result['points']]
    table = page.table(('way', 'size', 'bytes', 'parameters', *kinds, 'seeds'), rows)
    return page.paragraph(best(result)) + page.figure(svg, caption) + page.details('Table', table)


def best(result: dict[str, Any]) -> str:
    """Say of the first kind of family which points nothing as small or smaller is above."""
    kind = result['kinds'][0]
    points = sorted(result['points'], key=lambda point: point['bytes'])
    on = []
    for point in points:
        rivals = [other['accuracy'][kind].value for other in points
                  if other is not point and other['bytes'] <= point['bytes']]
        if all(point['accuracy'][kind].value > rival for rival in rivals):
            on.append(point)
    shown = ', '.join(f'{point["size"]} ({point["way"]}, {short_count(point["bytes"])} bytes: '
                      f'{point["accuracy"][kind].value:.2f})' for point in on)
    return (f'In {kind} families no model that takes as few bytes or fewer answers more right than '
            f'{shown}. Intervals of neighbours may overlap: see the bars.')


def ways(result: dict[str, Any]) -> figures.Drawing:
    """Return accuracy against bytes: a panel a kind of family, a line a way."""
    figure, axes = small_axes(len(result['kinds']), 4.4, 3., across=2)
    names = list(dict.fromkeys(point['way'] for point in result['points']))
    rest = plotting().colormaps['Dark2'].colors
    colours = [BLUE, ORANGE, *rest][:len(names)]
    rows = []
    for axis, kind in zip(axes, result['kinds'], strict=True):
        for place, (name, colour) in enumerate(zip(names, colours, strict=True)):
            points = [point for point in result['points'] if point['way'] == name]
            x = [point['bytes'] for point in points]
            y = [point['accuracy'][kind] for point in points]
            ends = [[max(0, part.value - part.low) for part in y],
                    [max(0, part.high - part.value) for part in y]]
            axis.errorbar(x, [part.value for part in y], yerr=ends, color=colour, lw=1.5, ms=5,
                          fmt=f'{MARKS[place % len(MARKS)]}-', capsize=3, elinewidth=1, label=name)
            rows += [{'kind': kind, 'way': name, 'size': point['size'], 'bytes': point['bytes'],
                      'n_total': point['n_total'], **figures.numbers(point['accuracy'][kind])}
                     for point in points]
        axis.set(xscale='log', ylim=(-.03, 1.03), title=TITLES[kind], ylabel='accuracy',
                 xlabel='bytes of the language model')
        figures.counts(axis.xaxis)
        axis.grid(axis='y', color=GREY, alpha=.25, lw=.6)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.tight_layout(w_pad=2)
    figure.legend(handles, labels, loc='lower left', ncols=4, fontsize=8.5, bbox_to_anchor=(0, 1))
    return figure, rows

"""One function per figure: a result of `measures` in, a matplotlib figure and its CSV rows out.

`save` writes PNG and CSV and returns the same figure as SVG for the page.
"""
import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downscale.report.axes import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    STYLE,
    counts,
    name_rows,
    plotting,
    short_count,
    side_labels,
    small_axes,
    spread,
    spread_ticks,
)
from downscale.report.item_links import NO_ITEMS, ItemLinks
from downscale.statistics.bootstrap import Interval

Drawing = tuple[Any, list[dict[str, Any]]]  # a matplotlib figure, and its numbers as rows

GROWTH = 1.25     # pixels of the page to a point of a figure: type of 8 points has 10 pixels
LEAST = .94       # of a point, the smallest that a pixel may be: type of 8 points has 7.5 pixels
WIDEST = 420      # pixels; a panel that is wider still may shrink to it
POINTS = 300      # a longer curve is drawn as means of neighbours; its CSV keeps every point


def write_csv(rows: Sequence[dict[str, Any]], folder: Path, name: str) -> None:
    """Write `rows`, dicts of the same keys, into `folder` as `name`.csv."""
    with open(folder / f'{name}.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def save(draw: Callable[[Any], Drawing], result: Any, folder: Path, name: str) -> str:
    """Write `name`.png and `name`.csv into `folder`; return the figure as SVG, one a panel."""
    with plotting().rc_context(STYLE):
        figure, rows = draw(result)
        figure.set_layout_engine(None)   # it is laid out: each file is drawn once, not twice
        plotting().backends.backend_agg.FigureCanvasAgg(figure)
        box = figure.get_tightbbox().padded(.08)
        figure.savefig(folder / f'{name}.png', dpi=150, facecolor='white', bbox_inches=box,
                       metadata={'Software': None})
        panels = ''.join(_panels(figure))
    write_csv(rows, folder, name)
    return panels


def _panels(figure):
    """Yield the legend of a figure and every one of its axes as SVG.

    The page sets them side by side as far as its width goes, so that no label has to shrink.
    """
    parts = [*figure.legends, *(axis for axis in figure.axes if axis.get_visible())]
    for part in parts:
        part.set_visible(False)
    for part in parts:
        part.set_visible(True)
        yield _svg(figure)
        if part in figure.legends:
            yield '<i></i>'   # the page goes on in a new line
        part.set_visible(False)


def _svg(figure):
    """Return what is visible of a figure as an SVG element for the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format='svg', transparent=True, metadata={'Date': None},
                   bbox_inches=figure.get_tightbbox().padded(.04))
    svg = buffer.getvalue()
    svg = svg[svg.index('<svg'):].replace(INK, 'currentColor')
    # A link within the report, or from it to an item, needs no window of its own.
    svg = svg.replace(' target="_blank"', '')
    # Names of groups would be there again in every panel; those of markers and clips are hashes.
    svg = re.sub(r'<g id="\w+_\d+">', '<g>', svg)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
    # Below its least width a phone scrolls a panel sideways, since labels would be unreadable.
    least = min(LEAST * float(width), WIDEST)
    size = f'width:{GROWTH * float(width):.0f}px;min-width:{least:.0f}px'
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" style="{size}"'
    return re.sub(r'<svg[^>]*?viewBox="[^"]*"', opening + ' xmlns="http://www.w3.org/2000/svg"'
                  ' xmlns:xlink="http://www.w3.org/1999/xlink"', svg, count=1, flags=re.DOTALL)


def numbers(x: Interval) -> dict[str, Any]:
    """Return the columns of an interval in a CSV."""
    return {'value': x.value, 'low': x.low, 'high': x.high, 'n': x.n, 'clusters': x.clusters,
            'seeds': x.seeds}


def ended(x: Any) -> dict[str, Any]:
    """Return the columns of a `Completion` in a CSV."""
    return {'truncated': x.truncated, 'unparsed': x.unparsed, 'unclosed': x.unclosed,
            'n_completed': x.n_completed,
            'value_completed': None if x.completed is None else x.completed.value}


def errors(x: Interval) -> list[list[float]]:
    """Return distances from the value to both ends; a percentile end may lie past the value."""
    return [[max(0, x.value - x.low)], [max(0, x.high - x.value)]]


def accuracy(result: Any, links: ItemLinks = NO_ITEMS) -> Drawing:
    """Return accuracy against parameters, a panel per family and one for the macro mean.

    A dot leads to what its size has wrong.
    """
    panels = {**result['families'], 'macro mean': result['macro']}
    figure, axes = small_axes(len(panels), 2.7, 2.15)
    rows = []
    n_total = result['n_total']
    for axis, (name, panel) in zip(axes, panels.items(), strict=True):
        x = [n_total[size] for size in panel['sizes']]
        y = list(panel['sizes'].values())
        colour = ORANGE if name == 'macro mean' else BLUE
        axis.fill_between(x, [v.low for v in y], [v.high for v in y], color=colour, alpha=.2, lw=0)
        axis.plot(x, [v.value for v in y], '-', color=colour, lw=1.5)
        family = name if name in result['families'] else ''
        for size, v in panel['sizes'].items():
            axis.plot(n_total[size], v.value, 'o', color=colour, ms=5,
                      url=links.wrong(size, family) or None)
        axis.axhline(panel['chance'], color=GREY, ls='--', lw=1, label='informed guess')
        if panel['majority'] is not None:
            axis.axhline(panel['majority'], color=GREY, ls=':', lw=1.4, label='majority answer')
        axis.axhline(panel['floor'], color=INK, ls='-', lw=.8, label='highest guess')
        axis.set(xscale='log', ylim=(-.03, 1.03), title=name, ylabel='accuracy',
                 xlabel='parameters in total')
        axis.minorticks_off()
        spread_ticks(axis, x, [short_count(v) for v in x], gap=.28)
        axis.grid(axis='y', color=GREY, alpha=.25, lw=.6)
        axis.tick_params(length=2)
        guesses = {guess: panel[guess] for guess in ('chance', 'majority', 'constant', 'floor')}
        rows += [{'family': name, 'size': size, 'n_total': n_total[size], **numbers(v), **guesses,
                  **ended(panel['completion'][size])} for size, v in panel['sizes'].items()]
    handles, labels = axes[0].get_legend_handles_labels()
    figure.tight_layout(h_pad=1.2)
    figure.legend(handles, labels, loc='lower left', ncols=2, fontsize=8.5, bbox_to_anchor=(0, 1))
    return figure, rows


def drops(result: Any, links: ItemLinks = NO_ITEMS) -> Drawing:
    """Return the drop by family, sorted: points left, share of what was above chance right.

    A bar leads to what the largest size has right and the smallest wrong.
    """
    names = [*result['families'], 'macro mean']
    table = {**result['families'], 'macro mean': result['macro']}
    figure, axes = small_axes(2, 4.4, .27 * len(names) + .6, across=2)
    titles = {'absolute': 'points of accuracy', 'relative_chance': 'share of what was above chance'}
    rows = []
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        for place, name in enumerate(names):
            x = table[name][kind]
            rows.append({'family': name, 'kind': kind, **numbers(x)})
            if not np.isfinite([x.low, x.high]).all():
                axis.text(.02, place, 'large model may not be above chance', va='center',
                          fontsize=8, color=GREY, transform=axis.get_yaxis_transform())
                continue
            colour = BLUE if x.clear else GREY
            if name == 'macro mean':
                colour = ORANGE
            family = name if name in result['families'] else ''
            axis.barh(place, x.value, color=colour, height=.62, alpha=.75,
                      url=links.lost(result['large'], result['small'], family) or None)
            axis.errorbar(x.value, place, xerr=errors(x), color=INK, lw=1.1, capsize=2)
        axis.axvline(0, color=INK, lw=.8)
        name_rows(axis, [f'{name} ({table[name]["absolute"].n})' for name in names])
        axis.grid(axis='x', color=GREY, alpha=.25, lw=.6)
        axis.set_title(title)
    figure.tight_layout()
    return figure, rows


def reliance(result: Any) -> Drawing:
    """Return reliance on the picture against the drop, one labelled point per family."""
    height = max(3.6, .2 * len(result['drop']) + 1)
    figure, axes = small_axes(len(result['conditions']), 3.8, height, across=2)
    rows = []
    for axis, (condition, families) in zip(axes, result['conditions'].items(), strict=True):
        for family, x in families.items():
            y = result['drop'][family]
            axis.errorbar(x.value, y.value, xerr=errors(x), yerr=errors(y), fmt='o', ms=4.5,
                          color=BLUE, ecolor=GREY, elinewidth=.8)
            rows.append({'family': family, 'condition': condition, 'reliance': x.value,
                         'reliance_low': x.low, 'reliance_high': x.high, 'drop': y.value,
                         'drop_low': y.low, 'drop_high': y.high, 'n': x.n})
        axis.axhline(0, color=GREY, lw=.7)
        axis.axvline(0, color=GREY, lw=.7)
        split = result['relation'].get(condition, {}).get('split halves')
        far = _outliers(split) if split else set()
        for family in far:
            axis.plot(families[family].value, result['drop'][family].value, 'o', ms=9, mfc='none',
                      color=ORANGE)
        if split:
            x = split.slope
            ends = np.array(axis.get_xlim())
            slope = 'no slope' if np.isnan(x.value) else \
                f'slope {x.value:.2f} [{x.low:.2f}, {x.high:.2f}]'
            axis.plot(ends, split.drop.mean() + x.value * (ends - split.reliance.mean()),
                      color=GREY, lw=1, label=f'{slope}, split halves')
            axis.legend(fontsize=8, loc='upper left')
        axis.margins(.12)
        axis.set(xlabel=f'accuracy with image - {condition} (largest)',
                 title=f'against {condition}', ylabel='drop, largest - smallest')
    figure.tight_layout()
    for axis, families in zip(axes, result['conditions'].values(), strict=True):
        side_labels(axis, _named_points(families, result['drop']))
    return figure, rows


def _named_points(families, drop):
    """Return (reliance, drop, names) of the points of a panel; families of one point share it."""
    names = {}
    for family, x in families.items():
        place = round(x.value, 6), round(drop[family].value, 6)
        names.setdefault(place, []).append(family)
    return [(x, y, ', '.join(of_point)) for (x, y), of_point in names.items()]


def _outliers(trend):
    """Return families farther from the line of a `RelianceTrend` than 3 robust deviations."""
    off = trend.drop - trend.drop.mean() - trend.slope.value * (trend.reliance
                                                                - trend.reliance.mean())
    size = np.abs(off - np.median(off))
    # 1.4826 times the median deviation is the standard deviation of normal values.
    return {task for task, far in zip(trend.tasks, size > 3 * 1.4826 * np.median(size), strict=True)
            if far}


def losses(result: Any) -> Drawing:
    """Return the training curve of every run, a panel a stage; small sizes light, large ones dark.

    It is the loss, or the reward of a stage that learns from one.
    """
    figure, axes = small_axes(len(result['stages']), 3.3, 2.5, across=3)
    shades = plotting().colormaps['viridis_r'](np.linspace(.2, .68, len(result['sizes'])))
    colours = dict(zip(result['sizes'], shades, strict=True))
    rows = []
    named = {}
    for axis, (stage, curves) in zip(axes, result['stages'].items(), strict=True):
        ends = {}
        for curve in curves:
            parts = np.array_split(np.stack([curve['x'], curve['y']]),
                                   min(POINTS, len(curve['x'])), axis=1)
            x, y = np.array([part.mean(axis=1) for part in parts]).T
            line, = axis.plot(x, y, color=colours.get(curve['size'], GREY), lw=1.2)
            named[curve['size']] = line
            ends.setdefault(curve['size'], []).append((x[-1], y[-1]))
            rows += [{'stage': stage, 'run_id': curve['run_id'], 'size': curve['size'],
                      'axis': curve['axis'], 'x': a, 'what': curve['what'], 'y': b}
                     for a, b in zip(curve['x'], curve['y'], strict=True)]
        # A reward may have any sign, and adds up.
        signed = any(curve['what'] == 'reward' or (curve['y'] <= 0).any() for curve in curves)
        axis.set(title=stage, xlabel=curves[0]['axis'], ylabel=curves[0]['what'],
                 yscale='linear' if signed else 'log')
        if not signed:
            counts(axis.yaxis, '{:.3g}'.format)
        axis.grid(color=GREY, alpha=.25, lw=.6)
        axis.xaxis.set_major_formatter(lambda value, _: short_count(value))
        axis.xaxis.set_major_locator(plotting().ticker.MaxNLocator(4))
        _name_ends(axis, ends)
    figure.tight_layout(h_pad=1.2)
    named = {name: named[name] for name in [*result['sizes'], 'tower'] if name in named}
    figure.legend(named.values(), named.keys(), loc='lower left', ncols=6, fontsize=8.5,
                  bbox_to_anchor=(0, 1))
    return figure, rows


def _name_ends(axis, ends):
    """Print the last loss of every size, the mean over its runs, to the right of the axes."""
    last = {size: float(np.mean([loss for _, loss in points])) for size, points in ends.items()}
    last = {size: loss for size, loss in last.items() if np.isfinite(loss)}
    # Of the axes' height, whatever the scale of its axis.
    shown = axis.transData - axis.transAxes
    places = [shown.transform((1, loss))[1] for loss in last.values()]
    for loss, place in zip(last.values(), spread(places, .085), strict=True):
        axis.text(1.02, place, f'{loss:#.3g}', transform=axis.transAxes, va='center', fontsize=8)

"""One function per figure: a result of `measures` in, a matplotlib figure and its CSV rows out.

`save` writes PNG and CSV and returns the same figure as SVG for the page. Matplotlib is imported
late, so that tables and statistics work without it.
"""
import csv
import io
import re
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from downscale.statistics.bootstrap import Interval

Drawing = tuple[Any, list[dict[str, Any]]]  # a matplotlib figure, and its numbers as rows

INK = '#0f1113'   # becomes `currentColor` in the page, so that dark mode can read it
BLUE = '#3b82c4'
ORANGE = '#d9822b'
GREY = '#8a8f98'
STYLE = {'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False,
         'axes.edgecolor': GREY, 'axes.labelcolor': INK, 'text.color': INK, 'xtick.color': INK,
         'ytick.color': INK, 'axes.titlesize': 9.5, 'axes.titlelocation': 'left',
         'axes.titlecolor': INK, 'svg.fonttype': 'none', 'svg.hashsalt': 'downscale',
         'font.family': 'sans-serif', 'legend.frameon': False, 'axes.axisbelow': True}
POINTS = 300      # a longer curve is drawn as means of neighbours; its CSV keeps every point


def plotting() -> ModuleType:
    """Return matplotlib; ImportError saying which extra brings it."""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'downscale[report]'") from error
    return matplotlib


def write_csv(rows: Sequence[dict[str, Any]], folder: Path, name: str) -> None:
    """Write `rows`, dicts of the same keys, into `folder` as `name`.csv."""
    with open(folder / f'{name}.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def save(draw: Callable[[Any], Drawing], result: Any, folder: Path, name: str) -> str:
    """Write `name`.png and `name`.csv into `folder`; return the figure as SVG."""
    with plotting().rc_context(STYLE):
        figure, rows = draw(result)
        figure.set_layout_engine(None)   # it is laid out: each file is drawn once, not twice
        plotting().backends.backend_agg.FigureCanvasAgg(figure)
        box = figure.get_tightbbox().padded(.08)
        buffer = io.StringIO()
        figure.savefig(folder / f'{name}.png', dpi=150, facecolor='white', bbox_inches=box,
                       metadata={'Software': None})
        figure.savefig(buffer, format='svg', transparent=True, bbox_inches=box,
                       metadata={'Date': None})
    write_csv(rows, folder, name)
    svg = buffer.getvalue()
    svg = svg[svg.index('<svg'):].replace(INK, 'currentColor')
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
    # below this width a phone scrolls the figure sideways, since its labels would be unreadable
    least = min(float(width), 560)
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" style="min-width:{least:.0f}px"'
    return re.sub(r'<svg[^>]*?viewBox="[^"]*"', opening + ' xmlns="http://www.w3.org/2000/svg"'
                  ' xmlns:xlink="http://www.w3.org/1999/xlink"', svg, count=1, flags=re.DOTALL)


def small_axes(count: int, width: float = 2.35, height: float = 1.95,
               across: int = 4) -> tuple[Any, Sequence]:
    """Return a figure of `count` small axes, at most `across` side by side."""
    rows = -(-count // across)
    columns = -(-count // rows)   # balanced: five panels are three and two
    figure = plotting().figure.Figure(figsize=(width * columns, height * rows + .35))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def numbers(x: Interval) -> dict[str, Any]:
    """Return the columns of an interval in a CSV."""
    return {'value': x.value, 'low': x.low, 'high': x.high, 'n': x.n, 'clusters': x.clusters,
            'seeds': x.seeds}


def _ended(x):
    """Return the columns of a `Completion` in a CSV."""
    return {'truncated': x.truncated, 'unparsed': x.unparsed, 'unclosed': x.unclosed,
            'n_completed': x.n_completed,
            'value_completed': None if x.completed is None else x.completed.value}


def errors(x: Interval) -> list[list[float]]:
    """Return distances from the value to both ends; a percentile end may lie past the value."""
    return [[max(0, x.value - x.low)], [max(0, x.high - x.value)]]


def short_count(number: float) -> str:
    """Return a parameter count as people say it: 1.2M."""
    for unit, size in (('B', 1e9), ('M', 1e6), ('k', 1e3)):
        if number >= size:
            return f'{number / size:.3g}{unit}'
    return f'{number:g}'


def counts(axis: Any) -> None:
    """Set the ticks of a log axis: 1, 2 and 5 of every decade, of many decades 1 only."""
    low, high = axis.get_view_interval()
    ticker = plotting().ticker
    subs = (1, 2, 5) if high < 100 * low else (1,)
    # Within less than a decade a log locator may find no tick at all.
    near = high < 5 * low
    axis.set_major_locator(ticker.MaxNLocator(4) if near else ticker.LogLocator(subs=subs,
                                                                                numticks=9))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(lambda value, _: short_count(value))


def accuracy(result: Any) -> Drawing:
    """Return accuracy against parameters, a panel per family and one for the macro mean."""
    panels = {**result['families'], 'macro mean': result['macro']}
    figure, axes = small_axes(len(panels))
    rows = []
    n_total = result['n_total']
    for axis, (name, panel) in zip(axes, panels.items(), strict=True):
        x = [n_total[size] for size in panel['sizes']]
        y = list(panel['sizes'].values())
        colour = ORANGE if name == 'macro mean' else BLUE
        axis.fill_between(x, [v.low for v in y], [v.high for v in y], color=colour, alpha=.2, lw=0)
        axis.plot(x, [v.value for v in y], 'o-', color=colour, ms=4, lw=1.5)
        axis.axhline(panel['chance'], color=GREY, ls='--', lw=1, label='informed guess')
        if panel['majority'] is not None:
            axis.axhline(panel['majority'], color=GREY, ls=':', lw=1.4, label='majority answer')
        axis.axhline(panel['floor'], color=INK, ls='-', lw=.8, label='highest guess')
        axis.set(xscale='log', ylim=(-.03, 1.03), title=name, xticks=x,
                 xticklabels=[short_count(v) for v in x])
        axis.minorticks_off()
        axis.tick_params(axis='x', labelrotation=45 if len(x) > 4 else 0)
        axis.grid(axis='y', color=GREY, alpha=.25, lw=.6)
        axis.tick_params(labelleft=axis.get_subplotspec().is_first_col(), length=2)
        guesses = {guess: panel[guess] for guess in ('chance', 'majority', 'constant', 'floor')}
        rows += [{'family': name, 'size': size, 'n_total': n_total[size], **numbers(v), **guesses,
                  **_ended(panel['completion'][size])} for size, v in panel['sizes'].items()]
    axes[0].set_ylabel('accuracy')
    figure.supxlabel('parameters in total (n_total)', fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.tight_layout(h_pad=1.2)
    figure.legend(handles, labels, loc='lower left', ncols=2, fontsize=8.5, bbox_to_anchor=(0, 1))
    return figure, rows


def drops(result: Any) -> Drawing:
    """Return the drop by family, sorted: points left, share of what was above chance right."""
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
            axis.barh(place, x.value, color=colour, height=.62, alpha=.75)
            axis.errorbar(x.value, place, xerr=errors(x), color=INK, lw=1.1, capsize=2)
        axis.axvline(0, color=INK, lw=.8)
        labels = [f'{name} ({table[name]["absolute"].n})' for name in names]
        axis.set_yticks(range(len(names)), labels if kind == 'absolute' else [])
        axis.tick_params(length=0)
        axis.invert_yaxis()
        axis.grid(axis='x', color=GREY, alpha=.25, lw=.6)
        axis.set_title(title)
    figure.tight_layout()
    return figure, rows


def reliance(result: Any) -> Drawing:
    """Return reliance on the picture against the drop, one labelled point per family."""
    figure, axes = small_axes(len(result['conditions']), 4.4, 3.6, across=2)
    rows = []
    for axis, (condition, families) in zip(axes, result['conditions'].items(), strict=True):
        at = {}   # families of one point share a label
        for family, x in families.items():
            at.setdefault((round(x.value, 6), round(result['drop'][family].value, 6)),
                          []).append(family)
        near = .03 * np.ptp([result['drop'][family].high for family in families] + [0])
        for (x, y), names in at.items():
            # of neighbours in height the left one is named to its left, above
            left = any(other > x and abs(height - y) < near for other, height in at)
            axis.annotate(', '.join(names), (x, y), xytext=(-5, 4) if left else (5, -10),
                          textcoords='offset points', ha='right' if left else 'left', fontsize=8.5)
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
                 title=f'against {condition}')
    axes[0].set_ylabel('drop, largest - smallest')
    figure.tight_layout()
    return figure, rows


def _outliers(trend):
    """Return families farther from the line of a `RelianceTrend` than 3 robust deviations."""
    off = trend.drop - trend.drop.mean() - trend.slope.value * (trend.reliance
                                                                - trend.reliance.mean())
    size = np.abs(off - np.median(off))
    # 1.4826 times the median deviation is the standard deviation of normal values.
    return {task for task, far in zip(trend.tasks, size > 3 * 1.4826 * np.median(size), strict=True)
            if far}


def grid(result: Any) -> Drawing:
    """Return macro accuracy per perception x reasoner pair, gold text on top, a panel a setting."""
    widest = max(len(panel['r_sizes']) for panel in result.values())
    tallest = max(len(panel['p_sizes']) for panel in result.values())
    figure, axes = small_axes(len(result), .8 * widest + 1.3, .5 * (tallest + 1) + .9, across=2)
    cells = list(chain.from_iterable(panel['cells'] for panel in result.values()))
    values = [cell['accuracy'].value for cell in cells]
    norm = plotting().colors.Normalize(min(values), max(values))
    rows = []
    for axis, (name, panel) in zip(axes, result.items(), strict=True):
        ys = {p: place for place, p in enumerate(panel['p_sizes'])}
        ys['gold'] = len(ys) + .2
        xs = {r: place for place, r in enumerate(panel['r_sizes'])}
        for cell in panel['cells']:
            _heat_cell(axis, xs[cell['r']], ys[cell['p']], cell, norm)
            rows.append({'panel': name, 'perception': cell['p'], 'reasoner': cell['r'],
                         **numbers(cell['accuracy']), **_ended(cell['completion'])})
        axis.set(xlim=(-.5, len(xs) - .5), ylim=(-.5, ys['gold'] + .5), title=name)
        axis.set_xticks(list(xs.values()), list(xs), fontsize=8)
        axis.set_yticks(list(ys.values()), list(ys), fontsize=8)
        axis.tick_params(length=0)
        axis.set(xlabel='reasoner', ylabel='perception')
        for side in ('left', 'bottom'):
            axis.spines[side].set_visible(False)
    figure.tight_layout(h_pad=1.5, w_pad=2)
    return figure, rows


def _heat_cell(axis, x, y, cell, norm):
    accuracy = cell['accuracy']
    mark = ' !' if cell['completion'].over else ''
    link = '#completed'   # the table of these cells in the page
    share = float(norm(accuracy.value)) if norm.vmax > norm.vmin else .5
    colour = plotting().colormaps['Blues'](.12 + .78 * share)
    axis.add_patch(plotting().patches.Rectangle((x - .48, y - .47), .96, .94,
                                                   color=colour, lw=0, url=link))
    ink = '#ffffff' if share > .55 else '#10151c'
    axis.text(x, y + .12, f'{accuracy.value:.2f}{mark}', ha='center', va='center', color=ink,
              url=link)
    axis.text(x, y - .26, f'±{accuracy.half:.2f}', ha='center', va='center', color=ink, fontsize=7,
              url=link)


def marginals(result: Any) -> Drawing:
    """Return what shrinking one side costs with the other side at its largest, family by family."""
    panels = {name: panel['marginal'] for name, panel in result.items() if panel['marginal']}
    families = set()
    for sides in panels.values():
        for side in {'perception', 'reasoner'} & set(sides):
            families.update(sides[side]['families'])
    names = [*sorted(families), 'macro mean']
    figure, axes = small_axes(len(panels), 4.2, .3 * len(names) + .9, across=2)
    rows = []
    colours = {'perception': BLUE, 'reasoner': ORANGE}
    for axis, (panel, sides) in zip(axes, panels.items(), strict=True):
        for side, shift in (('perception', -.14), ('reasoner', .14)):
            drop = sides.get(side, {'families': {}, 'macro': None})
            for name, x in {**drop['families'], 'macro mean': drop['macro']}.items():
                if x is None:
                    continue
                axis.errorbar(x.value, names.index(name) + shift, xerr=errors(x), fmt='o', ms=4,
                              color=colours[side], label=f'{side} shrinks', lw=1.2)
                rows.append({'panel': panel, 'side': side, 'family': name, **numbers(x)})
        axis.axvline(0, color=GREY, lw=.8)
        axis.set_yticks(range(len(names)),
                        names if axis.get_subplotspec().is_first_col() else [])
        axis.tick_params(length=0)
        axis.invert_yaxis()
        axis.grid(axis='x', color=GREY, alpha=.25, lw=.6)
        axis.set(title=panel, xlabel='drop in accuracy')
    ends = [axis.get_xlim() for axis in axes]
    for axis in axes:
        axis.set_xlim(min(low for low, _ in ends), max(high for _, high in ends))
    figure.tight_layout(h_pad=1.5)
    named = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    figure.legend(named.values(), named.keys(), loc='lower left', ncols=2, fontsize=8.5,
                  bbox_to_anchor=(0, 1))
    return figure, rows


def losses(result: Any) -> Drawing:
    """Return training loss of every run, a panel per stage; small sizes light, large sizes dark."""
    figure, axes = small_axes(len(result['stages']), 2.9, 2.3, across=3)
    shades = plotting().colormaps['viridis_r'](np.linspace(.2, .68, len(result['sizes'])))
    colours = dict(zip(result['sizes'], shades, strict=True))
    rows = []
    named = {}
    for axis, (stage, curves) in zip(axes, result['stages'].items(), strict=True):
        for curve in curves:
            parts = np.array_split(np.stack([curve['x'], curve['loss']]),
                                   min(POINTS, len(curve['x'])), axis=1)
            x, loss = np.array([part.mean(axis=1) for part in parts]).T
            line, = axis.plot(x, loss, color=colours.get(curve['size'], GREY), lw=1.2)
            named[curve['size']] = line
            rows += [{'stage': stage, 'run_id': curve['run_id'], 'size': curve['size'],
                      'axis': curve['axis'], 'x': a, 'loss': b}
                     for a, b in zip(curve['x'], curve['loss'], strict=True)]
        axis.set(title=stage, xlabel=curves[0]['axis'])
        axis.grid(color=GREY, alpha=.25, lw=.6)
        axis.xaxis.set_major_formatter(lambda value, _: short_count(value))
        axis.xaxis.set_major_locator(plotting().ticker.MaxNLocator(4))
    axes[0].set_ylabel('training loss')
    figure.tight_layout(h_pad=1.2)
    named = {name: named[name] for name in [*result['sizes'], 'tower'] if name in named}
    figure.legend(named.values(), named.keys(), loc='lower left', ncols=6, fontsize=8.5,
                  bbox_to_anchor=(0, 1))
    return figure, rows

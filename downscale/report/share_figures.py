"""Figures of shares, costs and layers, as in `figures`: a result in, a figure and CSV rows out."""
import textwrap
from typing import Any

import numpy as np

from downscale.report.axes import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    counts,
    name_rows,
    plotting,
    short_count,
    small_axes,
    spread,
)
from downscale.report.figures import Drawing, errors, numbers
from downscale.report.item_links import NO_ITEMS, ItemLinks
from downscale.report.pair_figures import between

GREEN = '#4f9a6b'
SIDES = ('perception', 'reasoner', 'total')   # bars whose questions can be listed


def shares(result: Any, links: ItemLinks = NO_ITEMS) -> Drawing:
    """Return Shapley shares, their total and the interactions, each a bar from zero.

    `result` is {name: Shares}. Every bar has the interval of its own number; the interaction is no
    further part of the total, since the shares already divide it. A bar of one setting leads to
    what is lost when that side alone, or both, are the smallest.
    """
    figure, axes = small_axes(len(result), 4.2, 2.5, across=2)
    rows = []
    for axis, (name, parts) in zip(axes, result.items(), strict=True):
        pairs = {' x '.join(group): x for group, x in parts.interactions.items()
                 if len(group) == 2}
        colours = {**dict.fromkeys(parts.shares, BLUE), 'total': ORANGE,
                   **dict.fromkeys(pairs, GREY)}
        bars = {**parts.shares, 'total': parts.total, **pairs}
        for place, (label, x) in enumerate(bars.items()):
            link = links.shrunk(name, label) if label in SIDES else ''
            axis.barh(place, x.value, color=colours[label], height=.6, alpha=.8, url=link or None)
            axis.errorbar(x.value, place, xerr=errors(x), color=INK, lw=1, capsize=2)
            axis.annotate(f'{x.value:+.2f}', (max(x.high, x.value, 0), place),
                          xytext=(4, 0), textcoords='offset points', va='center', fontsize=8)
            rows.append({'panel': name, 'part': label, **numbers(x)})
        axis.axvline(0, color=INK, lw=.8)
        name_rows(axis, list(bars))
        axis.margins(x=.16)
        axis.set(title=textwrap.fill(name, 44), xlabel='accuracy, all small to all large')
        axis.grid(axis='x', color=GREY, alpha=.25, lw=.6)
    figure.tight_layout(h_pad=1.4, w_pad=1.5)
    return figure, rows


def grid_families(result: Any, links: ItemLinks = NO_ITEMS) -> Drawing:
    """Return accuracy of every perception x reasoner pair, a panel per family.

    A cell leads to what its pair has wrong in that family.
    """
    p_sizes = result['p_sizes']
    r_sizes = result['r_sizes']
    families = result['families']
    figure, axes = small_axes(len(families), .66 * len(r_sizes) + 1.,
                              .44 * len(p_sizes) + .9, across=3)
    norm = plotting().colors.Normalize(-.1, 1.05)
    colours = plotting().colormaps['Blues']
    rows = []
    for axis, (task, cells) in zip(axes, families.items(), strict=True):
        for (p, r), x in cells.items():
            at = p_sizes.index(p), r_sizes.index(r)
            link = links.pair(result['panel'], p, r, task) or None
            axis.add_patch(plotting().patches.Rectangle(
                (at[1] - .48, at[0] - .48), .96, .96, color=colours(norm(x.value)), lw=0, url=link))
            ink = '#ffffff' if x.value > .6 else '#10151c'
            axis.text(at[1], at[0] + .13, f'{x.value:.2f}', ha='center', va='center', fontsize=9,
                      color=ink, url=link)
            axis.text(at[1], at[0] - .25, between(x), ha='center', va='center', fontsize=8,
                      color=ink, url=link)
            rows.append({'family': task, 'perception': p, 'reasoner': r, **numbers(x)})
        axis.set(xlim=(-.5, len(r_sizes) - .5), ylim=(-.5, len(p_sizes) - .5))
        axis.set_title(task)
        axis.set_xticks(range(len(r_sizes)), r_sizes, fontsize=8)
        axis.set_yticks(range(len(p_sizes)), p_sizes, fontsize=8)
        axis.set(xlabel='reasoner', ylabel='perception')
        axis.tick_params(length=0)
        for side in ('left', 'bottom'):
            axis.spines[side].set_visible(False)
    figure.tight_layout(h_pad=1, w_pad=.8)
    return figure, rows


def pareto(result: Any) -> Drawing:
    """Return macro accuracy against cost with the frontier as steps; labels name what is on it."""
    figure, (axis,) = small_axes(1, 5.6, 3.6)
    rows = result['rows']
    colours = {'joint': ORANGE, 'direct': GREEN, 'think': BLUE}
    for row in rows:
        kind = 'joint' if row['way'].startswith('joint') else row['way'].rpartition(', ')[2]
        axis.errorbar(row['cost'], row['accuracy'].value, yerr=errors(row['accuracy']), fmt='o',
                      ms=6 if row['on'] else 3, color=colours[kind], ecolor=GREY,
                      elinewidth=.6, alpha=1 if row['on'] else .45, label=kind)
    on = [row for row in rows if row['on']]
    costs = [row['cost'] for row in on] + [max(row['cost'] for row in rows)]
    values = [row['accuracy'].value for row in on]
    axis.step(costs, [*values, values[-1]], where='post', color=INK, lw=1.2)
    named = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axis.legend(named.values(), named, fontsize=8, loc='lower left', ncols=3,
                bbox_to_anchor=(0, 1.1), borderaxespad=0)
    axis.set(xscale='log', xlabel=result['unit'], ylabel='accuracy, mean over families')
    # Costs of pairs of one seed may lie within a decade, where a log axis names too many ticks.
    counts(axis.xaxis, short_count if result['cost'] == 'params' else '{:.3g}'.format)
    axis.grid(color=GREY, alpha=.25, lw=.6)
    figure.tight_layout()
    _number(axis, on)
    return figure, [{'way': row['way'], 'cost': row['cost'], 'on': row['on'],
                     'probability': row['probability'], **numbers(row['accuracy'])}
                    for row in rows]


def _number(axis, on):
    """Number the ways on the frontier above the axes, apart, each with a line to its point."""
    low, high = np.log(axis.get_xlim())
    inches = axis.get_position().width * axis.figure.get_figwidth()
    where = [(np.log(row['cost']) - low) / (high - low) for row in on]
    for number, (row, place) in enumerate(zip(on, spread(where, .2 / inches), strict=True), 1):
        axis.annotate(str(number), (row['cost'], row['accuracy'].value), xytext=(place, 1.04),
                      textcoords='axes fraction', ha='center', fontsize=8.5,
                      arrowprops={'arrowstyle': '-', 'color': GREY, 'lw': .5, 'shrinkB': 3})


def layers(result: Any) -> Drawing:
    """Return probed metrics by relative depth, a line a size, a panel a metric and task."""
    figure, axes = small_axes(len(result['curves']), 3.2, 2.4, across=3)
    shades = plotting().colormaps['viridis_r'](np.linspace(.2, .75, len(result['sizes'])))
    colours = dict(zip(result['sizes'], shades, strict=True))
    rows = []
    for axis, (title, lines) in zip(axes, result['curves'].items(), strict=True):
        for size, points in lines.items():
            x = [point['rel_depth'] for point in points]
            axis.plot(x, [point['value'] for point in points], 'o-', ms=3, lw=1.2,
                      color=colours[size], label=size)
            axis.fill_between(x, [point['low'] for point in points],
                              [point['high'] for point in points], color=colours[size],
                              alpha=.15, lw=0)
            rows += [{'panel': title, 'size': size, **point} for point in points]
        axis.set(title=title, xlabel='relative depth', ylabel=title.partition(',')[0],
                 xlim=(-.04, 1.04))
        axis.grid(color=GREY, alpha=.25, lw=.6)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.tight_layout(h_pad=1.2)
    figure.legend(handles, labels, loc='lower left', ncols=6, fontsize=8.5, bbox_to_anchor=(0, 1))
    return figure, rows

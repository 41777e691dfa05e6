"""Figures of perception x reasoner pairs, drawn and saved as `figures` says."""
from itertools import chain
from typing import Any

from downscale.report.axes import BLUE, GREY, ORANGE, name_rows, plotting, small_axes
from downscale.report.figures import Drawing, ended, errors, numbers
from downscale.report.item_links import NO_ITEMS, ItemLinks
from downscale.statistics.bootstrap import Interval


def between(x: Interval) -> str:
    """Return the ends of an interval of shares as short as a cell of a heat map needs them."""
    return f'{x.low:.2f}–{x.high:.2f}'.replace('0.', '.')


def grid(result: Any, links: ItemLinks = NO_ITEMS) -> Drawing:
    """Return macro accuracy per perception x reasoner pair, gold text on top, a panel a setting.

    A cell leads to what its pair has wrong, or else to the table of these cells in the page.
    """
    widest = max(len(panel['r_sizes']) for panel in result.values())
    tallest = max(len(panel['p_sizes']) for panel in result.values())
    width = max(.66 * widest + 1., 2.4)
    figure, axes = small_axes(len(result), width, .48 * (tallest + 1) + .9, across=2)
    cells = list(chain.from_iterable(panel['cells'] for panel in result.values()))
    values = [cell['accuracy'].value for cell in cells]
    norm = plotting().colors.Normalize(min(values), max(values))
    rows = []
    for axis, (name, panel) in zip(axes, result.items(), strict=True):
        ys = {p: place for place, p in enumerate(panel['p_sizes'])}
        ys['gold'] = len(ys) + .2
        xs = {r: place for place, r in enumerate(panel['r_sizes'])}
        for cell in panel['cells']:
            link = links.pair(name, cell['p'], cell['r']) or '#completed'
            _heat_cell(axis, (xs[cell['r']], ys[cell['p']]), cell, norm, link)
            rows.append({'panel': name, 'perception': cell['p'], 'reasoner': cell['r'],
                         **numbers(cell['accuracy']), **ended(cell['completion'])})
        axis.set(xlim=(-.5, len(xs) - .5), ylim=(-.5, ys['gold'] + .5), title=name)
        axis.set_xticks(list(xs.values()), list(xs), fontsize=8)
        axis.set_yticks(list(ys.values()), list(ys), fontsize=8)
        axis.tick_params(length=0)
        axis.set(xlabel='reasoner', ylabel='perception')
        for side in ('left', 'bottom'):
            axis.spines[side].set_visible(False)
    figure.tight_layout(h_pad=1.5, w_pad=2)
    return figure, rows


def _heat_cell(axis, place, cell, norm, link):
    x, y = place
    accuracy = cell['accuracy']
    mark = ' !' if cell['completion'].over else ''
    share = float(norm(accuracy.value)) if norm.vmax > norm.vmin else .5
    colour = plotting().colormaps['Blues'](.12 + .78 * share)
    axis.add_patch(plotting().patches.Rectangle((x - .48, y - .47), .96, .94,
                                                   color=colour, lw=0, url=link))
    ink = '#ffffff' if share > .55 else '#10151c'
    axis.text(x, y + .12, f'{accuracy.value:.2f}{mark}', ha='center', va='center', color=ink,
              url=link)
    axis.text(x, y - .26, between(accuracy), ha='center', va='center', color=ink, fontsize=8,
              url=link)


def marginals(result: Any, links: ItemLinks = NO_ITEMS) -> Drawing:
    """Return what shrinking one side costs with the other side at its largest, family by family.

    A dot leads to what is lost.
    """
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
                family = '' if name == 'macro mean' else name
                axis.errorbar(x.value, names.index(name) + shift, xerr=errors(x), fmt='o', ms=5,
                              color=colours[side], label=f'{side} shrinks', lw=1.2,
                              url=links.shrunk(panel, side, family) or None)
                rows.append({'panel': panel, 'side': side, 'family': name, **numbers(x)})
        axis.axvline(0, color=GREY, lw=.8)
        name_rows(axis, names)
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

"""The first figure of the report: accuracy against the size of the language model, by kind."""
from typing import Any

from downscale.report.axes import BLUE, GREY, ORANGE, short_count, small_axes, spread_ticks
from downscale.report.figures import Drawing, errors, numbers
from downscale.report.item_links import NO_ITEMS, ItemLinks

TITLES = {'visual': 'Seeing: questions that need the picture',
          'knowledge': 'Knowing: questions that do not'}
COLOURS = {'visual': BLUE, 'knowledge': ORANGE}
# A majority answer and a constant one differ little in a mean over families: two lines are enough.
GUESSES = {'floor': ('best guess', '-'), 'chance': ('informed guess', '--')}


def answer(result: Any, links: ItemLinks = NO_ITEMS) -> Drawing:
    """Return accuracy by size: a panel a kind of family, a dot a seed, a line for their mean.

    A dot leads to what its size has wrong.
    """
    figure, axes = small_axes(len(result['kinds']), 4.4, 3., across=2)
    n = result['sizes']
    rows = []
    for axis, (kind, part) in zip(axes, result['kinds'].items(), strict=True):
        colour = COLOURS[kind]
        x = [n[size] for size in part['sizes']]
        for size, seeds in part['seeds'].items():
            axis.plot([n[size]] * len(seeds), list(seeds.values()), 'o', ms=5, mew=0, alpha=.45,
                      color=colour, label='one seed', zorder=3, url=links.wrong(size) or None)
        for size, mean in part['sizes'].items():
            axis.errorbar(n[size], mean.value, yerr=errors(mean), fmt='none', ecolor=colour,
                          elinewidth=1.1, capsize=3)
        axis.plot(x, [mean.value for mean in part['sizes'].values()], '-', color=colour, lw=1.8,
                  label='mean, 95 % interval')
        for guess, (label, style) in GUESSES.items():
            if part['guesses'][guess] is not None:
                axis.axhline(part['guesses'][guess], color=GREY, ls=style, lw=1.1, label=label)
        axis.set(xscale='log', ylim=(-.03, 1.03), title=TITLES[kind], ylabel='accuracy',
                 xlabel='parameters of the language model')
        axis.minorticks_off()
        spread_ticks(axis, x, [short_count(value) for value in x])
        axis.grid(axis='y', color=GREY, alpha=.25, lw=.6)
        rows += _rows(kind, part, n)
    handles, labels = axes[0].get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    figure.tight_layout(w_pad=2)
    figure.legend(named.values(), named.keys(), loc='lower left', ncols=2, fontsize=8.5,
                  bbox_to_anchor=(0, 1))
    return figure, rows


def _rows(kind, part, n):
    """Return the rows of the CSV: the mean of every size, then its seeds."""
    rows = []
    for size, mean in part['sizes'].items():
        place = {'kind': kind, 'size': size, 'n_nonembed': n[size]}
        rows.append({**place, 'seed': 'mean', **numbers(mean), 'floor': part['guesses']['floor']})
        rows += [{**place, 'seed': seed, **dict.fromkeys(numbers(mean)), 'value': value,
                  'floor': part['guesses']['floor']} for seed, value in part['seeds'][size].items()]
    return rows

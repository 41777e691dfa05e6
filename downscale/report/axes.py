"""What all figures share: colours and type, small axes, and labels that keep apart.

Matplotlib is imported late, so that tables and statistics work without it.
"""
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

INK = '#0f1113'   # becomes `currentColor` in the page, so that dark mode can read it
BLUE = '#3b82c4'
ORANGE = '#d9822b'
GREY = '#8a8f98'
STYLE = {'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False,
         'axes.edgecolor': GREY, 'axes.labelcolor': INK, 'text.color': INK, 'xtick.color': INK,
         'ytick.color': INK, 'axes.titlesize': 9.5, 'axes.titlelocation': 'left',
         'axes.titlecolor': INK, 'svg.fonttype': 'none', 'svg.hashsalt': 'downscale',
         'font.family': 'sans-serif', 'legend.frameon': False, 'axes.axisbelow': True}


def plotting() -> ModuleType:
    """Return matplotlib; ImportError saying which extra brings it."""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'downscale[report]'") from error
    return matplotlib


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


def short_count(number: float) -> str:
    """Return a parameter count as people say it: 1.2M."""
    for unit, size in (('B', 1e9), ('M', 1e6), ('k', 1e3)):
        if number >= size:
            return f'{number / size:.3g}{unit}'
    return f'{number:g}'


def counts(axis: Any, say: Callable[[float], str] = short_count) -> None:
    """Set the ticks of a log axis: 1, 2 and 5 of every decade, of many decades 1 only."""
    low, high = axis.get_view_interval()
    ticker = plotting().ticker
    subs = (1, 2, 5) if high < 100 * low else (1,)
    # Within less than a decade a log locator may find no tick at all.
    near = high < 5 * low
    axis.set_major_locator(ticker.MaxNLocator(4) if near else ticker.LogLocator(subs=subs,
                                                                                numticks=9))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(lambda value, _: say(value))


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Return `places` in 0 to 1 moved apart to `gap` at least, in the order they were given in.

    More than fit into 0 to 1 go on past its upper end.
    """
    order = sorted(range(len(places)), key=lambda k: places[k])
    moved = list(places)
    top = 1 + gap
    for k in reversed(order):      # from above, so that the highest stay within
        moved[k] = min(moved[k], top - gap)
        top = moved[k]
    least = 0.
    for k in order:
        moved[k] = max(moved[k], least)
        least = moved[k] + gap
    return moved


def spread_ticks(axis: Any, values: Sequence[float], labels: Sequence[str],
                 gap: float = .17) -> None:
    """Put a tick at each of `values` of a log axis; of labels closer than `gap` some are left out.

    `values` ascend, and `gap` is a share of what they span. Both ends keep their labels.
    """
    logs = np.log(values)
    places = (logs - logs[0]) / max(logs[-1] - logs[0], 1e-9)
    shown = []
    last = -1.
    for place, label in zip(places, labels, strict=True):
        fits = place - last >= gap and (place == places[-1] or places[-1] - place >= gap)
        shown.append(label if fits else '')
        last = place if fits else last
    axis.set_xticks(values, shown)


def side_labels(axis: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Name points (x, y, text) to the right of the axes, apart, each with a line to its point."""
    low, high = axis.get_ylim()
    where = [(y - low) / (high - low) for _, y, _ in points]
    inches = axis.get_position().height * axis.figure.get_figheight()
    for (x, y, text), place in zip(points, spread(where, .17 / inches), strict=True):
        axis.annotate(text, (x, y), xytext=(1.04, place), textcoords='axes fraction', va='center',
                      fontsize=8.5, annotation_clip=False,
                      arrowprops={'arrowstyle': '-', 'color': GREY, 'lw': .5, 'shrinkB': 3})
    axis.set_ylim(low, high)


def name_rows(axis: Any, names: Sequence[str]) -> None:
    """Label the rows 0, 1, ... of horizontal bars from above; a row without a bar has its place."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - .4, -.6)
    axis.tick_params(length=0)

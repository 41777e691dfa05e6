"""Sections of the report on what a study varies: its factors, ways to be small, ways to write."""
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from downscale.output import page
from downscale.report import figures
from downscale.report.axes import (
    BLUE,
    GREY,
    ORANGE,
    name_rows,
    plotting,
    short_count,
    small_axes,
    spread_ticks,
)
from downscale.report.first_figure import TITLES
from downscale.statistics.bootstrap import Interval

KINDS = ('visual', 'knowledge')
MARKS = 'osD^vPX*'   # of ways
BALANCED = 'Balanced: all right answers of a family count alike; what is gone there was guessing.'


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


# --- ways to a small model ----------------------------------------------------------------------

def ways(result: dict[str, Any], out: Path) -> str:
    """Return the figure and the table of accuracy by bytes; write ways.png and ways.csv."""
    svg = figures.save(by_bytes, result, out, 'ways')
    caption = ('A line a way to a small model, a point a size. Bytes are those of the language '
               'model, embedding included: 2 for a float, which is not rounded for it, and for '
               'quantised matrices their bits and scales. Bars: 95 %. ways.png, ways.csv')
    kinds = result['kinds']
    rows = []
    for point in result['points']:
        sizes = [f'{point[name]:,}' for name in ('bytes', 'n_total')]
        answers = [point['accuracy'][kind] for kind in kinds]
        rows.append([point['way'], point['size'], *sizes, *answers, point['seeds']])
    table = page.table(('way', 'size', 'bytes', 'parameters', *kinds, 'seeds'), rows)
    return page.paragraph(best(result)) + page.figure(svg, caption) + page.details('Table', table)


def best(result: dict[str, Any]) -> str:
    """Say of the first kind of family which points nothing as small or smaller is above."""
    kind = result['kinds'][0]
    points = sorted(result['points'], key=lambda point: point['bytes'])
    named = []
    for point in points:
        value = point['accuracy'][kind].value
        rivals = [other for other in points if other is not point
                  and other['bytes'] <= point['bytes']]
        if all(value > other['accuracy'][kind].value for other in rivals):
            count = short_count(point['bytes'])
            named.append(f'{point["size"]} ({point["way"]}, {count} bytes: {value:.2f})')
    return (f'In {kind} families no model that takes as few bytes or fewer answers more right than '
            f'{", ".join(named)}. Intervals of neighbours may overlap: see the bars.')


def by_bytes(result: dict[str, Any]) -> figures.Drawing:
    """Return accuracy against bytes: a panel a kind of family, a line a way."""
    figure, axes = small_axes(len(result['kinds']), 4.4, 3., across=2)
    names = list(dict.fromkeys(point['way'] for point in result['points']))
    # A colour and a mark each: lines of one colour are told apart where a page is printed grey.
    # Of the palette those that are neither of the first two.
    palette = plotting().colormaps['Dark2'].colors
    colours = [BLUE, ORANGE, *(palette[place] for place in (0, 3, 2, 5, 4, 7))]
    rows = []
    for axis, kind in zip(axes, result['kinds'], strict=True):
        for place, name in enumerate(names):
            points = [point for point in result['points'] if point['way'] == name]
            x = [point['bytes'] for point in points]
            y = [point['accuracy'][kind] for point in points]
            ends = np.hstack([figures.errors(part) for part in y])
            axis.errorbar(x, [part.value for part in y], yerr=ends, label=name,
                          fmt=f'{MARKS[place % len(MARKS)]}-', color=colours[place % len(colours)],
                          lw=1.5, ms=5, capsize=3, elinewidth=1)
            for point, part in zip(points, y, strict=True):
                rows.append({'kind': kind, 'way': name, 'size': point['size'],
                             'bytes': point['bytes'], 'n_total': point['n_total'],
                             **figures.numbers(part)})
        if result['floor'][kind] is not None:
            axis.axhline(result['floor'][kind], color=GREY, lw=1.1, label='best guess')
        axis.set(xscale='log', ylim=(-.03, 1.03), title=TITLES[kind], ylabel='accuracy',
                 xlabel='bytes of the language model')
        figures.counts(axis.xaxis)
        axis.grid(axis='y', color=GREY, alpha=.25, lw=.6)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.tight_layout(w_pad=2)
    figure.legend(handles, labels, loc='lower left', ncols=2, fontsize=8.5, bbox_to_anchor=(0, 1))
    return figure, rows


# --- repairs ------------------------------------------------------------------------------------

def repairs(result: dict[str, Any], out: Path) -> str:
    """Return the gist, the figure and the table of repairs; write repairs.png and repairs.csv."""
    svg = figures.save(by_arm, result, out, 'repairs')
    base = result['base']
    caption = (f'A panel a size, a line a way to write a text: accuracy in visual families when '
               f'{result["reader"]} reads it ({result["mode"]}; full marks) or another, from the '
               'fewest training FLOPs to the most. Bars: 95 %. repairs.png, repairs.csv')
    readers = result['readers']
    over_base = (f'minus {base}', 'share of the drop') if base else ()
    head = ('size', 'text', 'FLOPs', 'tokens', 'seeds', *(f'read by {name}' for name in readers),
            *over_base, 'minus extraction of equal FLOPs', 'balanced', 'minus it, balanced')
    rows = []
    for row in result['rows']:
        flops = '–' if row['flops'] is None else f'{row["flops"]:.3g}'
        gains = (row['gain'], row['repaired']) if base else ()
        equal = row['equal'] or {}
        read = map(row['readers'].get, readers)
        rows.append([row['size'], row['arm'], flops, row['tokens'], _seeds(row), *read, *gains,
                     equal.get('gain'), row['balanced'], equal.get('balanced')])
    notes = ('Differences are over the seeds that both have. Equal FLOPs: the extraction nearest '
             'in FLOPs, within a tenth. A text that helps one reader only has learnt that reader: '
             f'compare the columns. {BALANCED}')
    if base:
        notes = (f'Share of the drop: the gain over the plain {base} of this size, of what that '
                 f'loses from the largest; without ends where it may have lost nothing. {notes}')
    return (page.paragraph(best_text(result)) + page.figure(svg, caption)
            + page.details('Table', page.table(head, rows) + page.paragraph(notes, 'soft')))


def _seeds(row):
    """Return how many seeds of an arm were read, the most by any reader; 0 for none."""
    return max((x.seeds for x in row['readers'].values()), default=0)


def best_text(result: dict[str, Any]) -> str:
    """Say of each size which text is read best, and whether it is clearly above the base.

    Texts of fewer seeds than others of their size are not compared with those.
    """
    lines = []
    for size in dict.fromkeys(row['size'] for row in result['rows']):
        rows = [row for row in result['rows']
                if row['size'] == size and result['reader'] in row['readers']]
        if not rows:
            continue
        most = max(row['readers'][result['reader']].seeds for row in rows)
        rows = [row for row in rows if row['readers'][result['reader']].seeds == most]
        best = max(rows, key=lambda row: row['readers'][result['reader']].value)
        gain = best['gain']
        clear = ''
        if gain is not None:
            clear = f', {"clearly" if gain.low > 0 else "not clearly"} above its {result["base"]}'
        lines.append(f'{size}: {best["arm"]} '
                    f'({best["readers"][result["reader"]].value:.2f}{clear})')
    floor = '' if result['floor'] is None else f' The best guess has {result["floor"]:.2f}.'
    return f'What {result["reader"]} answers best from. {"; ".join(lines)}.{floor}'


def by_arm(result: dict[str, Any]) -> figures.Drawing:
    """Return accuracy of every way to write: a panel a size, a line an arm by its FLOPs."""
    by_size = {}
    for row in result['rows']:
        by_size.setdefault(row['size'], []).append(row)
    for arms in by_size.values():
        arms.sort(key=lambda row: (row['flops'] is None, row['flops'] or 0))
    counts = list(map(len, by_size.values()))
    figure = plotting().figure.Figure(figsize=(7.2, sum(.24 * count + .75 for count in counts)))
    axes = figure.subplots(len(counts), 1, squeeze=False, sharex=True,
                           gridspec_kw={'height_ratios': [count + 1 for count in counts]})
    readers = result['readers']
    handles, rows = {}, []
    for axis, (size, arms) in zip(axes.ravel(), by_size.items(), strict=True):
        for line, row in enumerate(arms):
            for reader, x in row['readers'].items():
                place = readers.index(reader)
                rows.append({'size': size, 'arm': row['arm'], 'flops': row['flops'],
                             'tokens': row['tokens'], 'reader': reader, **figures.numbers(x)})
                # Side by side, so that no interval covers another.
                beside = line + .3 * ((place + .5) / len(readers) - .5)
                fill = BLUE if reader == result['reader'] else 'white'
                handles[f'read by {reader}'] = axis.errorbar(
                    x.value, beside, xerr=figures.errors(x), fmt=MARKS[place % len(MARKS)], ms=5,
                    color=BLUE if fill == BLUE else GREY, mfc=fill, capsize=2, elinewidth=1)
        if result['floor'] is not None:
            handles['best guess'] = axis.axvline(result['floor'], color=GREY, lw=1.1, ls='--')
        name_rows(axis, [row['arm'] if row['flops'] is None else
                         f'{row["arm"]}  ({row["flops"]:.2e})' for row in arms])
        axis.set(xlim=(-.02, 1.02), title=size)
        axis.grid(axis='x', color=GREY, alpha=.25, lw=.6)
    axes[-1, 0].set_xlabel('accuracy in visual families (training FLOPs behind the name)')
    figure.tight_layout()
    figure.legend(handles.values(), handles, loc='lower left', ncols=3, bbox_to_anchor=(0, 1))
    return figure, rows


def hidden(result: dict[str, Any], out: Path) -> str:
    """Return the gist and the table of texts that were read with the question hidden."""
    readers = result['readers']
    head = ('size', 'text', *(f'hidden, read by {name}' for name in readers),
            f'told, {result["reader"]}', 'minus plain extraction', 'minus true extraction',
            'hand over by rule')
    rows = []
    for row in result['rows']:
        rows.append([row['size'] or '–', row['arm'], *(row['hidden'].get(name) for name in readers),
                     row['told'], row['over_plain'], row['over_true'], row['handed_over']])
    constant = ''
    if result['constant'] is not None:
        constant = f' The best constant answer of each family has {result["constant"]:.2f}.'
    notes = ('Accuracy in visual families of readers that answer at once; hidden: neither question '
             'nor options stand in the prompt. Differences are of the largest reader, over the '
             'seeds that both have, and not adjusted for their number. A reader was never trained '
             'to answer without a question: that it is wrong is no proof that nothing is handed '
             f'over.{constant} By rule: the share of texts about pictures with a word of the '
             "answer that the true extraction does not hold or, of one's own questions, a phrase "
             "such as 'the answer is'.")
    return (page.paragraph(handing_over(result)) + page.details(
        'Table', page.table(head, rows) + page.paragraph(notes, 'soft')))


def readers(result: dict[str, Any], out: Path) -> str:
    """Return the table of reasoners that were trained in more than one way."""
    kinds = result['kinds']
    head = ('size', 'reasoner', *(f'true {kind}' for kind in kinds),
            *(f'{kind}: minus plain' for kind in kinds),
            *(f'{kind}: balanced' for kind in kinds))
    columns = list(itertools.product(('true', 'over_plain', 'balanced'), kinds))
    rows = []
    for row in result['rows']:
        rows.append([row['size'], row['reader'], *(row[key].get(kind) for key, kind in columns)])
    notes = ('Accuracy in visual families from true texts, behind a thought; differences are over '
             f'the seeds that both have, and not adjusted for their number. {BALANCED}')
    return page.table(head, rows) + page.paragraph(notes, 'soft')


def handing_over(result: dict[str, Any]) -> str:
    """Say which texts give more away without the question than the plain extraction clearly does.

    A text that only sees more rightly gives away what the true extraction does, and no more.
    """
    lines = []
    compared = [row for row in result['rows'] if row['over_plain'] is not None]
    for row in compared:
        if row['over_plain'].low <= 0:
            continue
        against = ''
        if row['over_true'] is not None:
            more = 'also' if row['over_true'].low > 0 else 'not clearly'
            against = f', {more} above the true extraction'
        lines.append(f'{row["size"]}: {row["arm"]} ({row["hidden"][result["reader"]].value:.2f}'
                     f'{against})')
    begin = f'With the question hidden, {result["reader"]} answers '
    if lines:
        return (f'{begin}clearly more from these texts than from the plain extraction of their '
                f'size: {"; ".join(lines)}. Above the true extraction too, a text hands the '
                'answer over; look at what was written.')
    if compared:
        return f'{begin}from no text clearly more than from the plain extraction of its size.'
    return f'{begin}from texts that have no plain extraction of their size beside them.'

"""Figures of probes and of the loss ledger, drawn and saved as `figures.py` says."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

from downscale.report.axes import BLUE, GREY, INK, ORANGE, name_rows
from downscale.report.figures import Drawing, errors, save


def _axes(count, width, height):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width * count, height))
    return figure, figure.subplots(1, count, squeeze=False).ravel()


def save_figure(draw: Callable[[Any], Drawing], result: Any, folder: Path, name: str) -> None:
    """Make `folder` and write `name`.png and `name`.csv into it."""
    folder.mkdir(parents=True, exist_ok=True)
    save(draw, result, folder, name)


def _reach(rows):
    """Return distances from values down and up to the ends; 0 where there is no interval."""
    # An end that is not known is NaN, beside which `max` keeps its first value.
    down = [max(0, row['value'] - row['lo']) for row in rows]
    up = [max(0, row['hi'] - row['value']) for row in rows]
    return [down, up]


PANELS = {'image': ('accuracy', 'image tokens: probe accuracy'),
          'answer': ('accuracy', 'answer position: probe accuracy'),
          'knock-out': ('nll rise', 'picture hidden in one band: nats')}


def layer_curves(rows: Any) -> Drawing:
    """Return probes and knock-out by relative depth, one line a run, in the mean over families.

    `rows` are those of the `probes` table, as dicts; sizes go from light to dark in their order.
    """
    import matplotlib
    import numpy as np
    figure, axes = _axes(len(PANELS), 3.3, 2.9)
    runs = list(dict.fromkeys(row['run_id'] for row in rows))
    shades = matplotlib.colormaps['viridis_r'](np.linspace(.15, .8, len(runs)))
    for axis, (site, (metric, title)) in zip(axes, PANELS.items(), strict=True):
        for k, (run, shade) in enumerate(zip(runs, shades, strict=True)):
            wanted = (run, 'macro', site, metric)
            points = [row for row in rows if (row['run_id'], row['task'], row['site'],
                                              row['metric']) == wanted]
            points.sort(key=lambda row: row['rel_depth'])
            if points:
                beside = .012 * (k - (len(runs) - 1) / 2)  # so that intervals do not cover others
                axis.errorbar([row['rel_depth'] + beside for row in points],
                              [row['value'] for row in points], yerr=_reach(points), fmt='o-',
                              ms=3.5, lw=1.2, capsize=2, color=shade, label=run)
        if metric == 'accuracy':
            floor = [row['value'] for row in rows if row['task'] == 'macro'
                     and row['site'] == 'question' and row['metric'] == 'accuracy']
            if floor:
                axis.axhline(np.mean(floor), color=GREY, ls='--', lw=1)
                axis.annotate('question alone', (1.05, np.mean(floor)), fontsize=8, color=GREY,
                              xytext=(0, -8), textcoords='offset points', ha='right')
        else:
            axis.axhline(0, color=GREY, lw=.8)
        axis.set(title=title, xlabel='relative depth', ylabel=metric, xlim=(-.05, 1.05))
        axis.grid(axis='y', color=GREY, alpha=.25, lw=.6)
    axes[0].legend(fontsize=8, loc='best')
    figure.tight_layout()
    return figure, rows


def ledger_bars(found: Any) -> Drawing:
    """Return what each size loses to the largest, step by step, in the mean over families."""
    figure, axes = _axes(len(found.losses), 4., 2.9)
    rows = []
    for axis, (size, steps) in zip(axes, found.losses.items(), strict=True):
        for place, (name, tasks) in enumerate(steps.items()):
            x = tasks['macro']
            colour = BLUE if x.clear else GREY
            if name == 'total':
                colour = ORANGE
            axis.barh(place, x.value, color=colour, height=.62, alpha=.75)
            axis.errorbar(x.value, place, xerr=errors(x), color=INK, lw=1.1, capsize=2)
            rows += [{'size': size, 'step': name, 'family': task, 'value': y.value, 'low': y.low,
                      'high': y.high, 'n': y.n, 'clusters': y.clusters}
                     for task, y in tasks.items()]
        axis.axvline(0, color=INK, lw=.8)
        name_rows(axis, list(steps))
        axis.set(title=f'{found.large} - {size}', xlabel='accuracy lost at this step')
        axis.grid(axis='x', color=GREY, alpha=.25, lw=.6)
    figure.tight_layout()
    return figure, rows


PLACES = ('encode', 'carry', 'address', 'read')


def ledger_lines(found: Any) -> Drawing:
    """Return what is left of the asked object from place to place, and where its value stands.

    `found` are rows of the causal ledger; one line a run. On the right the share of a full swap
    that passes through the object's own patches (full) and the answer's place (dashed) by depth.
    """
    import matplotlib
    import numpy as np
    figure, (left, right) = _axes(2, 4.2, 3.1)
    runs = list(dict.fromkeys(row.table for row in found))
    shades = matplotlib.colormaps['viridis_r'](np.linspace(.15, .8, len(runs)))
    rows = []
    for run, shade in zip(runs, shades, strict=True):
        values = {row.setting: row.value for row in found
                  if (row.table, row.family, row.what) == (run, 'macro', 'left')}
        # Without probes there is only what is read.
        places = [name for name in PLACES if name in values]
        left.plot(places, [values[name] for name in places], 'o-', ms=4, lw=1.3, color=shade,
                  label=run)
        rows += [{'run': run, 'what': 'left', 'place': name, 'value': values[name]}
                 for name in places]
        for site, line in (('own patches', '-'), ('answer', '--')):
            points = _by_depth(found, run, site)
            right.plot(list(points), list(points.values()), f'o{line}', ms=3, lw=1.2, color=shade)
            rows += [{'run': run, 'what': f'share, {site}', 'place': f'{depth:g}', 'value': value}
                     for depth, value in points.items()]
    left.set(ylim=(-.03, 1.03), ylabel='left, above guessing', title='asked object and value')
    right.set(xlim=(-.05, 1.05), xlabel='relative depth', ylabel='share of the full swap',
              title='own patches (full), answer (dashed)')
    for axis in (left, right):
        axis.grid(axis='y', color=GREY, alpha=.25, lw=.6)
    left.legend(fontsize=8, loc='best')
    figure.tight_layout()
    return figure, rows


def told_map(found: Any) -> Drawing:
    """Return what captions tell, one line a writer and one column a field, the share written out.

    `found` are rows of `captions.caption_rows`; means over seeds come first.
    """
    import numpy as np
    writers = list(dict.fromkeys(row.table for row in found))
    fields = list(dict.fromkeys(row.family for row in found))
    # Rows come writer by writer, each with all fields.
    shares = np.array([row.value for row in found]).reshape(len(writers), len(fields))
    figure, (axis,) = _axes(1, 2.4 + .72 * len(fields), .8 + .24 * len(writers))
    axis.imshow(shares, vmin=0, vmax=1, cmap='Blues', aspect='auto')
    for (line, column), share in np.ndenumerate(shares):
        axis.text(column, line, f'{share:.2f}', ha='center', va='center', fontsize=7.5,
                  color='white' if share > .6 else INK)
    axis.set_xticks(range(len(fields)), fields, fontsize=8)
    axis.set_yticks(range(len(writers)), writers, fontsize=8)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    figure.tight_layout()
    return figure, [{'writer': row.table, 'field': row.family, 'told': row.value, 'low': row.low,
                     'high': row.high} for row in found]


def forgetting_dots(found: Any) -> Drawing:
    """Return what each writer can do before (hollow) and after (full), a panel a kind of question.

    `found` are rows of `forgetting.forgetting_rows` of whole kinds. Blue where the change is clear.
    """
    rows = found
    panels = list(dict.fromkeys((row.setting, row.family) for row in rows))
    writers = list(dict.fromkeys(row.table for row in rows))
    by_place = {(row.table, row.setting, row.family, row.what): row for row in rows}
    lines = [writer.removesuffix(', mean over seeds') for writer in writers]
    figure, axes = _axes(len(panels), 1.5 + .075 * max(map(len, lines)) / len(panels),
                         1.1 + .26 * len(writers))
    for axis, (setting, family) in zip(axes, panels, strict=True):
        for line, writer in enumerate(writers):
            before, after, change = (by_place[writer, setting, family, what]
                                     for what in ('before', 'after', 'change'))
            clear = change.low > 0 or change.high < 0
            colour = BLUE if clear else GREY
            axis.plot([before.value, after.value], [line, line], color=colour, lw=1.2)
            axis.plot(before.value, line, 'o', ms=4.5, mfc='white', mec=colour)
            axis.plot(after.value, line, 'o', ms=4.5, color=colour)
        axis.set(title=f'{setting}\n{family}', xlim=(-.04, 1.04))
        axis.title.set_fontsize(9)
        axis.grid(axis='x', color=GREY, alpha=.25, lw=.6)
        name_rows(axis, lines if axis is axes[0] else [''] * len(lines))
    figure.tight_layout()
    return figure, [{'writer': row.table, 'asked': row.setting, 'of': row.family, 'what': row.what,
                     'value': row.value, 'low': row.low, 'high': row.high} for row in rows]


def _by_depth(found, run, site):
    """Return {depth: mean share over fields} of a site; {} where no swap moves anything."""
    values = {}
    for row in found:
        words = row.setting.removesuffix(', asked')
        name, _, depth = words.rpartition(' ')
        if row.table == run and row.setting.endswith(', asked') and name == site \
                and row.what == 'share of the full swap':
            values.setdefault(float(depth), []).append(row.value)
    return {depth: sum(some) / len(some) for depth, some in sorted(values.items())}

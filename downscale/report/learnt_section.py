"""The section of the report on skills that are there or not, as HTML."""
from pathlib import Path
from typing import Any

from downscale.output import page
from downscale.report import figures

LEAD = ('A run has learnt a family where its accuracy is nearer to 1 than to the best guess. The '
        'share of seeds that did is P(learnt), with a Beta interval; beside it, how many of them.')
SPLIT = ('Some seeds of a size learnt {}, others did not: their mean accuracy is that of no run, '
         'and its interval covers it in about two of three studies only. Read P(learnt) there.')


def html(result: dict[str, Any], out: Path) -> str:
    """Return P(learnt) by family and size and the steps at which skills appear; write the CSV."""
    sizes = list(dict.fromkeys(size for by_size in result['families'].values()
                               for size in by_size))
    rows = []
    lines = []
    for task, by_size in result['families'].items():
        row = []
        for size in sizes:
            x = by_size.get(size)
            row.append(None if x is None else x)
            if x is not None:
                lines.append({'family': task, 'size': size, 'learnt': round(x.value * x.n),
                              'runs': x.n, 'probability': x.value, 'low': x.low, 'high': x.high,
                              'threshold': result['threshold'][task]})
        rows.append([task, f'{result["threshold"][task]:.2f}', *row])
    figures.write_csv(lines, out, 'learnt')
    parts = [page.paragraph(SPLIT.format(', '.join(result['split'])))] if result['split'] else []
    table = page.table(('family', 'learnt from', *sizes), rows)
    parts.append(page.details('P(learnt) by family and size',
                              page.paragraph(f'{LEAD} learnt.csv', 'soft') + table))
    for size, by_family in result['steps'].items():
        appear = [[task, _steps(x.steps.value), f'{_steps(x.steps.low)} to {_steps(x.steps.high)}',
                   '; '.join(f'{_steps(low)} to {_steps(high)}' for low, high in x.brackets)]
                  for task, x in by_family.items()]
        parts.append(page.details(f'Steps at which {size} learns', page.table(
            ('family', 'steps', '95 %', 'last without and first with, by seed'), appear)))
    return ''.join(parts)


def _steps(value):
    """Return a number of steps as text; 'never' where it is infinite."""
    return 'never' if value == float('inf') else f'{value:.0f}'

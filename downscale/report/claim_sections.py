"""Sections of the report on claims, shares of the drop, flips, costs, layers, ledger, as HTML."""
from pathlib import Path
from typing import Any

from downscale.output import page
from downscale.report import figures, probe_figures, share_figures

COSTS_SHOWN = .05   # ways below this probability of being on the frontier are in the CSV only


def claims(result: Any, out: Path) -> str:
    """Return the claims table, also as claims.csv; `result` is that of `claims.judge`."""
    if result:
        figures.write_csv([{key: x for key, x in row.items() if key != 'by_size'}
                           for row in result], out, 'claims')
    rows = [[row['id'], row['text'], row['verdict'], row['effect'], row['low'], row['high'],
             _asked(row), row['seeds'], row['n'], row['clusters'],
             _gate(row['gate']), row['where'], row['reason']] for row in result]
    headers = ('', 'claim', 'verdict', 'effect', 'low', 'high', 'supported when', 'seeds',
               'questions', 'clusters', 'gate', 'where', 'why not')
    told = ('Declared in the experiment file and written to study.json before the run.'
            if result and result[0]['registered'] else
            'The study declared no claims of its own: these are the paper\'s, with default '
            'thresholds of this program.')
    parts = [page.paragraph(told), page.table(headers, rows), page.paragraph(
        'Effects are differences of accuracy (1 is all questions), b a rank correlation. A claim '
        'is judged by its whole 95 % interval; each on its own, so that of many claims about '
        'nothing some would be called supported. Fewer seeds than declared: inconclusive.', 'soft')]
    for row in result:
        if row['by_size']:
            parts.append(f'<details><summary>{page.escape(row["id"])} by size</summary>'
                         + page.table(('size', 'effect', 'low', 'high', 'questions'), [
                             [size, x['value'], x['low'], x['high'], x['n']]
                             for size, x in row['by_size'].items()]) + '</details>')
    return ''.join(parts)


def _gate(said):
    """Return what a gate said; of a reasoner's only the verdict, as the top of the report has the
    rest.
    """
    return said.partition(':')[0] if said.startswith('failed (') else said


def _asked(row):
    at = f'{row["threshold"]:g}'
    return (f'within ±{at}' if row['test'] == 'equivalent' else f'above {at}') + (
        f', {row["needs_seeds"]} seeds' if row['needs_seeds'] > 1 else '')


def shares(result: Any, out: Path) -> str:
    """Return Shapley shares with interactions, and items by class, of every kind of text and
    mode.
    """
    svg = figures.save(share_figures.waterfall, result['macro'], out, 'shares')
    rows = [[name, scale, *(found.shares.get(side) for side in ('perception', 'reasoner')),
             found.interactions.get(('perception', 'reasoner')), found.total,
             ', '.join(' x '.join(group) for group in found.flagged)]
            for name, of in result['scales'].items() for scale, found in of.items()]
    parts = [page.figure(svg, 'Mean over families: what perception and the reasoner add from '
                         'smallest to largest, each averaged over both orders, so that they sum '
                         'to the total. Grey: what only both together do; where it is larger than '
                         'an interval, the shares depend on the order. shares.png, shares.csv'),
             page.table(('setting', 'scale', 'perception', 'reasoner', 'interaction', 'total',
                         'flagged'), rows, True)]
    names = list(next(iter(result['classes'].values()), {}).get('share', {}))
    for what, title in (('share', 'Questions by class'),
                        ('change', 'What classes add to the drop')):
        table = [[name, *(of[what][kind] for kind in names)]
                 for name, of in result['classes'].items()]
        parts.append(f'<h3>{title}</h3>' + page.table(('setting', *names), table))
    return ''.join(parts) + page.paragraph(
        'A question has one class in each setting by which of the four pairs of largest and '
        'smallest had it right; what classes add sums to the drop.', 'soft')


def families(result: Any, out: Path) -> str:
    """Return the P x R grid of every family, small multiples."""
    svg = figures.save(share_figures.grid_families, result, out, 'grid_families')
    return page.figure(svg, f'{result["panel"]}: accuracy and half the 95 % interval by family. '
                            'grid_families.png, grid_families.csv')


def flips(result: Any, out: Path) -> str:
    """Return shares of questions that change between the ends."""
    names = list(next(iter(result.values())))
    return page.table(('from largest to smallest', *names), [
        [setting, *of.values()] for setting, of in result.items()]) + page.paragraph(
        'Shares of all questions, the mean over families. Right to wrong less wrong to right is '
        'the drop; many of both say that answers change without a drop.', 'soft')


def pareto(result: Any, out: Path) -> str:
    """Return the frontier for every cost that is known, the first one open."""
    parts = []
    for place, (cost, found) in enumerate(result['costs'].items()):
        svg = figures.save(share_figures.pareto, found, out, f'pareto_{cost}')
        on = [row for row in found['rows'] if row['on']]
        rest = [row for row in found['rows'] if not row['on'] and row['probability'] > COSTS_SHOWN]
        table = page.table(('number', 'way', found['unit'], 'accuracy', 'probability'), [
            [on.index(row) + 1 if row['on'] else None, row['way'], f'{row["cost"]:.3g}',
             row['accuracy'], row['probability']] for row in on + rest])
        text = (f'Accuracy against {found["unit"]}. Numbers are those of the table; probability: '
                'share of resamples in which a way is on the frontier. '
                f'pareto_{cost}.png, pareto_{cost}.csv')
        inner = page.figure(svg, text) + table
        parts.append(inner if not place else f'<details><summary>{page.escape(found["unit"])}'
                     f'</summary>{inner}</details>')
    parts += [page.paragraph(f'Skipped: {cost}: {reason}.', 'skip')
              for cost, reason in result['skipped'].items()]
    return ''.join(parts) + page.paragraph(
        'Inference: one tile and its tokens are read, texts and thoughts are written; prompts and '
        'questions are left out, as their tokens are not recorded. A pair costs both models.',
        'soft')


def layers(result: Any, out: Path) -> str:
    """Return probes by relative depth, and those without a depth as a table."""
    parts = []
    if result['curves']:
        svg = figures.save(share_figures.layers, result, out, 'layers')
        parts.append(page.figure(svg, 'By relative depth of the language model, bands: 95 % over '
                                      'pictures. layers.png, layers.csv'))
    if result['others']:
        count = f'{len(result["others"]):,} numbers without a depth'
        parts.append(f'<details><summary>{count}</summary>' + page.table(
            ('run', 'task', 'site', 'metric', 'value', 'low', 'high', 'n'), result['others'])
            + '</details>')
    return ''.join(parts)


def ledger(result: Any, out: Path) -> str:
    """Return what small sizes lose against the largest, from the picture to the answer."""
    svg = figures.save(probe_figures.ledger_bars, result, out, 'ledger')
    table = page.table(('size', 'step', f'lost against {result.large}'), [
        [size, step, families['macro']] for size, steps in result.losses.items()
        for step, families in steps.items()])
    return page.figure(svg, 'Accuracy lost at each step, the mean over families, 95 %; the steps '
                            'sum to the drop. ledger.png, ledger.csv') + table + page.bullets(
        result.notes)

"""Sections of the report on claims, shares of the drop, flips, costs, layers, ledger, as HTML."""
from functools import partial
from pathlib import Path
from typing import Any

from downscale.output import page
from downscale.report import claim_table, figures, probe_figures, share_figures
from downscale.report.item_links import ItemLinks

COSTS_SHOWN = .05   # ways below this probability of being on the frontier are in the CSV only


def claims(result: Any, out: Path) -> str:
    """Return all facts behind the claims of `claims.judge`, and write them as claims.csv."""
    plain = [dict(row) for row in result]
    for row in plain:
        del row['by_size']  # a dict, which no column of a CSV can hold
    if plain:
        figures.write_csv(plain, out, 'claims')
    origin = ('Declared in the experiment file and written to study.json before the run.'
              if result and result[0]['registered'] else
              'The study declared no claims of its own: these are the paper\'s, with default '
              'thresholds of this program.')
    return page.details('Effect, threshold, seeds and gate of every claim', page.paragraph(
        f'{origin} Effects are differences of accuracy (1 is all questions), b a rank '
        'correlation. A claim is judged by its whole 95 % interval, each on its own; of many '
        'claims about nothing some would be called supported, hence p beside it, adjusted for '
        'all of them: that the effect lies just where the claim turns. Fewer seeds than '
        'declared: inconclusive.', 'soft') + claim_table.in_full(result))


def shares(result: Any, out: Path, links: ItemLinks) -> str:
    """Return Shapley shares, interactions and items by class, of every kind of text and mode."""
    svg = figures.save(partial(share_figures.shares, links=links), result['macro'], out, 'shares')
    rows = []
    for name, scales in result['scales'].items():
        for scale, parts in scales.items():
            flagged = map(' x '.join, parts.flagged)
            rows.append([name, scale, parts.shares.get('perception'), parts.shares.get('reasoner'),
                         parts.interactions.get(('perception', 'reasoner')), parts.total,
                         ', '.join(flagged)])
    parts = [page.figure(svg, 'Mean over families: what perception and the reasoner add from '
                         'smallest to largest, each averaged over both orders, so that they sum '
                         'to the total. Grey: what only both together do; where it is larger than '
                         'an interval, the shares depend on the order. shares.png, shares.csv'),
             _shares_tables(result, rows)]
    return ''.join(parts)


def _shares_tables(result, rows):
    """Return the shares on every scale and the questions by class, folded."""
    parts = [page.table(('setting', 'scale', 'perception', 'reasoner', 'interaction', 'total',
                         'flagged'), rows, True)]
    names = list(next(iter(result['classes'].values()), {}).get('share', {}))
    for what, title in (('share', 'Questions by class'),
                        ('change', 'What classes add to the drop')):
        table = []
        for name, classes in result['classes'].items():
            table.append([name, *(classes[what][kind] for kind in names)])
        parts.append(f'<h3>{title}</h3>' + page.table(('setting', *names), table))
    parts.append(page.paragraph(
        'A question has one class in each setting by which of the four pairs of largest and '
        'smallest had it right; what classes add sums to the drop.', 'soft'))
    return page.details('Tables: scales, and questions by class', ''.join(parts))


def families(result: Any, out: Path, links: ItemLinks) -> str:
    """Return the P x R grid of every family, small multiples."""
    svg = figures.save(partial(share_figures.grid_families, links=links), result, out,
                       'grid_families')
    text = (f'{result["panel"]}: accuracy by family, and below it the 95 % interval. '
            'grid_families.png, grid_families.csv')
    return page.details(f'The grid of each of {len(result["families"])} families',
                        page.figure(svg, text))


def flips(result: Any, out: Path) -> str:
    """Return shares of questions that change between the ends."""
    names = list(next(iter(result.values())))
    return page.details('Shares of questions', page.table(('from largest to smallest', *names), [
        [setting, *of.values()] for setting, of in result.items()]) + page.paragraph(
        'Shares of all questions, the mean over families. Right to wrong less wrong to right is '
        'the drop; many of both say that answers change without a drop.', 'soft'))


def pareto(result: Any, out: Path) -> str:
    """Return the frontier for every cost that is known."""
    parts = []
    for cost, frontier in result['costs'].items():
        svg = figures.save(share_figures.pareto, frontier, out, f'pareto_{cost}')
        unit = frontier['unit']
        ways = frontier['rows']
        on = [row for row in ways if row['on']]
        rest = [row for row in ways if not row['on'] and row['probability'] > COSTS_SHOWN]
        # Numbers are those of the figure, which counts the frontier from its cheapest way.
        numbers = [*range(1, len(on) + 1), *[None for _ in rest]]
        rows = [[number, row['way'], f'{row["cost"]:.3g}', row['accuracy'], row['probability']]
                for number, row in zip(numbers, on + rest)]
        table = page.table(('number', 'way', unit, 'accuracy', 'probability'), rows)
        text = (f'Accuracy against {unit}. Numbers are those of the table; probability: '
                'share of resamples in which a way is on the frontier. '
                f'pareto_{cost}.png, pareto_{cost}.csv')
        inner = page.figure(svg, text) + table
        parts.append(page.details(unit, inner))
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
        text = ('By relative depth of the language model, bands: 95 % over pictures. layers.png, '
                'layers.csv')
        parts.append(page.details('Probes by depth', page.figure(svg, text)))
    if result['others']:
        count = f'{len(result["others"]):,} numbers without a depth'
        headers = ('run', 'task', 'site', 'metric', 'value', 'low', 'high', 'n')
        parts.append(page.details(count, page.table(headers, result['others'])))
    return ''.join(parts)


def ledger(result: Any, out: Path) -> str:
    """Return what small sizes lose against the largest, from the picture to the answer."""
    svg = figures.save(probe_figures.ledger_bars, result, out, 'ledger')
    rows = []
    for size, steps in result.losses.items():
        rows += [[size, step, families['macro']] for step, families in steps.items()]
    table = page.table(('size', 'step', f'lost against {result.large}'), rows)
    return page.figure(svg, 'Accuracy lost at each step, the mean over families, 95 %; the steps '
                            'sum to the drop. ledger.png, ledger.csv') + page.details(
                            'Table', table) + page.bullets(result.notes)

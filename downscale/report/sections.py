"""The sections of the report as HTML, from the numbers of `measures`, `gate` and `health`."""
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from downscale.analysis import drops
from downscale.analysis.completeness import LIMIT
from downscale.analysis.drops import FEW_TASKS
from downscale.analysis.flips import PREFERRED
from downscale.analysis.floors import GUESSERS
from downscale.analysis.measures import Scored
from downscale.output import page
from downscale.report import (
    claim_sections,
    claim_table,
    factor_section,
    figures,
    gallery,
    health_section,
    law_sections,
    learnt_section,
    pair_figures,
)
from downscale.report.item_links import NO_ITEMS, ItemLinks
from downscale.report.summary import panel_sentence, say_drops

METHODS = (
    'Intervals are 95 % intervals from a bootstrap over pictures: all questions about one picture '
    'are drawn together, and every model and family sees the same drawn pictures, so differences '
    'are paired. From three training seeds on they are t intervals over seeds and pictures, with '
    'Satterthwaite\'s degrees; else intervals cover pictures only, and those of rank '
    'correlations with the drop cover families only. Below 30 pictures (in a '
    'mean over families an effective number) a t interval is joined to it, and where every '
    'resample agrees it is widened, so no interval has zero width; a difference of fewer than six '
    'pictures is as unsure as their sign test. What lacks planned seeds is over those that all it '
    'compares have, with fewer degrees; with one of three or more it may be '
    'anything. Repeats and seeds are averaged '
    'per question. A completed answer is not truncated, was parsed, and closed its thought where '
    'it had one; each model completes other '
    'questions, so accuracies on completed answers are not paired, and a high one beside many '
    'uncompleted answers says little. report.json holds every number with its interval, counts, '
    'seeds and method.')
TESTS = {
    drops.MCNEMAR: 'p is exact McNemar over questions, as if independent, adjusted by Holm over '
                   'families; the interval respects pictures.',
    drops.TWO_WAY: 'p is that of the interval beside it, over seeds and pictures, adjusted by Holm '
                   'over families: a clear drop may be one of many that were looked at.'}
ENDINGS = (
    'Accuracy on completed answers with its interval; below it accuracy on all answers, and the '
    'per cent of all answers that are truncated / unparsed / unclosed (an open thought; – where '
    'none was asked for). Shares are means over families, as the accuracy is. Where some answers '
    'are not completed, intervals of the others are over pictures only.')


# Sections by what a reader asks, in the order of the page: (name of the part, title).
GROUPS = (
    ('With the picture', (('accuracy', 'Accuracy by family and size'),
                          ('learnt', 'Skills that are there or not'),
                          ('drops', 'Drop from the largest to the smallest size'),
                          ('reliance', 'Reliance on the picture'))),
    ('Split in two', (('gate', 'Gate'), ('grid', 'Perception × reasoner'),
                      ('families', 'Perception × reasoner by family'),
                      ('shares', 'Whose fault is the drop'), ('flips', 'Answers that change'))),
    ('Size and cost', (('ways', 'Accuracy against bytes'), ('repairs', 'Repairs side by side'),
                       ('hidden', 'Texts read with the question hidden'),
                       ('readers', 'Reasoners side by side'),
                       ('factors', 'Along what was varied'),
                       ('pareto', 'Accuracy against cost'),
                       ('laws', 'Laws of size'),
                       ('law_families', 'Laws of size and steps by family'),
                       ('isoflop', 'Best size of a compute budget'),
                       ('rates', 'Learning rates'))),
    ('Inside the model', (('layers', 'Layers'), ('ledger', 'Where it is lost'),
                          ('losses', 'Training by stage'))),
    ('Records', (('gallery', 'Samples by class'), ('judged', 'How each claim is judged'),
                 ('health', 'Health'), ('methods', 'How the numbers are made'))))


def sidebar_and_body(s: Scored, results: dict[str, Any], skipped: dict[str, str],
                     out: Path, links: ItemLinks = NO_ITEMS) -> tuple[str, str]:
    """Return the contents and all sections under the first screen as HTML; figures are in `out`.

    A part without data has no section: the last one says which are absent, and why.
    """
    bodies = _bodies(s, results, skipped, out, links)
    top = [('answer', 'Answer')]
    if results.get('claims'):
        top.append(('claims', 'Claims'))
    if any(results.get('gallery', {}).values()):
        top.append(('look', 'Six questions to look at'))
    groups = [('First', top)]
    parts = []
    for group, entries in GROUPS:
        there = [(name, title) for name, title in entries if bodies.get(name)]
        if there:
            groups.append((group, there))
        parts += [page.section(name, title, bodies[name]) for name, title in there]
    return page.contents(groups), ''.join(parts)


def _bodies(s, results, skipped, out, links):
    """Return {name of a section: its HTML}, '' for one that has nothing to show."""
    warned = results['warnings']
    visual = results.get('answer', {'kinds': {}})['kinds'].get('visual', {'families': ()})
    renders = {'accuracy': partial(_accuracy_html, links=links),
               'drops': partial(_drops_html, links=links),
               'grid': partial(_grid_html, modes=results['gate']['modes'], links=links),
               'learnt': learnt_section.html, 'factors': factor_section.html,
               'ways': factor_section.ways, 'repairs': factor_section.repairs,
               'hidden': factor_section.hidden, 'readers': factor_section.readers,
               'reliance': partial(_reliance_html, visual=visual['families']),
               'families': partial(claim_sections.families, links=links),
               'shares': partial(claim_sections.shares, links=links),
               'flips': claim_sections.flips, 'pareto': claim_sections.pareto,
               'law_families': law_sections.families,
               'laws': law_sections.laws, 'isoflop': law_sections.isoflop,
               'rates': law_sections.rates, 'layers': claim_sections.layers,
               'ledger': claim_sections.ledger, 'losses': _losses_html,
               'gallery': lambda result, out: page.details('All samples',
                                                           gallery.cards(result, links))}
    bodies = {'gate': _gate_html(results['gate']),
              'judged': claim_sections.claims(results['claims'], out)
              if results.get('claims') else '',
              'health': health_section.html(s, results, skipped),
              'methods': page.paragraph(METHODS) + page.paragraph(
                  f'Input {s.study.input_hash[:12]}.', 'soft')}
    for name, render in renders.items():
        if name in results:
            bodies[name] = render(results[name], out)
    for name in bodies:
        # a drop is a difference of the accuracies above it
        about = 'accuracy' if name == 'drops' else name
        if name != 'health' and bodies[name]:
            bodies[name] = health_section.warning(warned, about) + bodies[name]
    return bodies


def _gate_html(verdict):
    rows = []
    for task, modes in verdict['families'].items():
        rows += [[task, mode, x['passes'], x['margin'], x['accuracy'], x['completion'], x['floor'],
                  x['guesser'], x['margin'].n, x['margin'].clusters] for mode, x in modes.items()]
    text = ('The gate asks whether the largest reasoner, given the true caption, is above every '
            'guess in every family: the lower end of the 95 % interval of score - floor must be '
            'above zero. The floor is the highest of the informed guess, the majority answer by '
            'wording and the best constant answer. Without that, a low score of a pair says '
            'nothing about perception.')
    if not rows:
        return page.paragraph(text)
    headers = ('family', 'mode', 'passes', 'score - floor', 'accuracy', 'completed answers',
               'floor', 'which is the', 'items', 'pictures')
    table = page.table(headers, rows) + page.paragraph(f'Completed answers: {ENDINGS}', 'soft')
    return page.paragraph(claim_table.margin(verdict)) + page.details(
        'What the gate asks, and every family', page.paragraph(text) + table)


def _with_macro(result):
    """Return (name, row) of every family, then of the mean over families."""
    return [*result['families'].items(), ('macro mean', result['macro'])]


def _accuracy_html(result, out, links):
    svg = figures.save(partial(figures.accuracy, links=links), result, out, 'accuracy')
    rows = []
    for name, row in _with_macro(result):
        by_size = list(row['sizes'].values())
        guesses = [row[guess] for guess in (*GUESSERS, 'floor')]
        rows.append([name, *by_size, *guesses, by_size[0].n])
    headers = ('family', *result['macro']['sizes'], *GUESSERS.values(), 'floor', 'items')
    caption = ('The model sees the picture and answers by itself. Bands: 95 %. The '
               'macro mean is the plain mean over families. accuracy.png, accuracy.csv')
    ended = [[name, *row['completion'].values()] for name, row in _with_macro(result)]
    mean = result['macro']['sizes']
    small = next(iter(mean))
    large = list(mean)[-1]
    gist = (f'In the mean over families {mean[small].value:.2f} of the answers of {small} are '
            f'right, and {mean[large].value:.2f} of those of {large}.')
    return page.paragraph(gist) + page.figure(svg, caption) + page.details(
        'Table, and completed answers', page.table(headers, rows) + '<h3>Completed answers</h3>'
        + page.paragraph(ENDINGS, 'soft')
        + page.table(('family', *result['macro']['sizes']), ended))


def _drops_html(result, out, links):
    svg = figures.save(partial(figures.drops, links=links), result, out, 'drops')
    tested = any(row.get('p_holm') is not None for row in result['families'].values())
    rows = []
    for name, row in _with_macro(result):
        p_value = [row.get('p_holm')] if tested else []
        rows.append([name, row['absolute'], row['relative_chance'], *p_value, row['absolute'].n,
                     row['absolute'].clusters])
    caption = (f'{result["large"]} minus {result["small"]}, paired on the same pictures. Right: '
               'the drop as a share of (largest - floor); more than 1 where the smallest is below '
               'the floor. In brackets: questions. '
               'Grey bars: interval includes 0. drops.png, drops.csv')
    headers = ['family', 'drop', 'share of above chance', 'items', 'pictures']
    note = 'Scores that are shares of an answer have no McNemar test: the interval is the test.'
    if tested:
        headers.insert(3, f'p ({result["test"]}, Holm)')
        note = TESTS[result['test']]
    lines = []
    say_drops(result, lines.append)
    return page.paragraph(' '.join(lines)) + page.figure(svg, caption) + page.details(
        'Table', page.table(headers, rows, sign=True) + page.paragraph(note, 'soft'))


def _reliance_html(result, out, visual):
    svg = figures.save(figures.reliance, result, out, 'reliance')
    conditions = result['conditions']
    caption = (f'Reliance of {result["large"]} on the picture against the drop. The accuracy of '
               'the largest model is on both axes, which alone pulls the points towards a rising '
               'line. ')
    if result['relation']:
        caption += 'The slope from split halves is free of that. Ringed: far from the line. '
    caption += 'reliance.png, reliance.csv'
    parts = [page.paragraph(_exchanged(result, visual)), page.figure(svg, caption)]
    relation = _relation_html(result['relation'])
    rows = []
    for task, drop in result['drop'].items():
        by_condition = [families.get(task) for families in conditions.values()]
        if None not in by_condition:
            rows.append([task, *by_condition, drop])
    headers = ('family', *(f'image - {c}' for c in conditions), 'drop')
    title = 'Table, and the slope' if result['relation'] else 'Table'
    parts.append(page.details(title, page.table(headers, rows, True) + relation))
    for condition in result['missing']:
        parts.append(page.paragraph(f'Skipped: no {condition} condition for {result["large"]}.',
                                    'skip'))
    return ''.join(parts)


def _exchanged(result, visual):
    """Return what the largest size loses without its picture or with another one, in words."""
    ways = {'blind': 'Without the picture', 'shuffled': 'With the picture of another question'}
    lines = []
    for condition, losses in result['conditions'].items():
        asked = [task for task in losses if task in visual]
        loses = [task for task in asked if losses[task].low > 0]
        flat = [task for task in asked if task not in loses]
        if not asked:
            continue
        way = f'{ways[condition]} {result["large"]}'
        if not loses:
            lines.append(f'{way} answers no worse in any visual family as far as the intervals '
                         'tell: its answers do not depend on what it sees.')
        elif flat:
            lines.append(f'{way} clearly loses in {len(loses)} of {len(asked)} visual families; '
                         f'no loss is clear in {", ".join(flat)}.')
        else:
            lines.append(f'{way} clearly loses in every visual family.')
    return ' '.join(lines)


def _relation_html(relation):
    """Return how reliance and drop go together: a row a condition and way to split the pictures."""
    rows = []
    for condition, splits in relation.items():
        rows += [[f'image - {condition}', split, trend.spearman, trend.slope, len(trend.tasks)]
                 for split, trend in splits.items()]
    if not rows:
        return page.paragraph(f'Skipped: a relation needs {FEW_TASKS} families.', 'skip')
    return page.table(('reliance', 'axes from', 'Spearman', 'slope', 'families'), rows, True) \
        + page.paragraph('Split halves: the axes are from disjoint halves of the pictures, so that '
                         'noise in the largest model is not on both. Intervals are over families.',
                         'soft')


def _grid_html(result, out, modes, links):
    svg = figures.save(partial(pair_figures.grid, links=links), result, out, 'grid')
    leads = 'what its pair has wrong' if links.of_pairs else 'the table below'
    parts = [page.paragraph(_first_panel(result, modes)),
             page.figure(svg, 'Mean over families. Perception writes a text, the reasoner answers '
                         'from it; gold: from the true text. Small: the 95 % interval. !: '
                         f'more than {100 * LIMIT:.0f} % of the answers in some family are '
                         f'truncated, unparsed or unclosed. A cell leads to {leads}. '
                         'grid.png, grid.csv'),
             page.details('Completed answers of the pairs', _grid_endings_html(result))]
    rows = []
    for name, panel in result.items():
        for side in ('perception', 'reasoner'):
            if side in panel['marginal']:
                drop = panel['marginal'][side]
                rows += [[name, side, task, x] for task, x in _with_macro(drop)]
    if not rows:
        return ''.join(parts) + page.paragraph(
            'Skipped: marginal drops need the corners of the grid (largest with smallest on both '
            'sides).', 'skip')
    svg = figures.save(partial(pair_figures.marginals, links=links), result, out, 'marginals')
    table = page.table(('setting', 'what shrinks', 'family', 'drop'), rows, True)
    parts.append(page.details('What shrinking one side costs, by family', page.figure(
        svg, 'Drop when one side shrinks from largest to smallest and the other stays at its '
        'largest. marginals.png, marginals.csv') + table))
    return ''.join(parts)


def _first_panel(result, modes):
    """Return what each side costs in the first of `PREFERRED` that has all corners, in words.

    '' where the gate fails in every mode: the claims say why such pairs are not read.
    """
    for name in PREFERRED:
        marginal = result.get(', '.join(name), {}).get('marginal')
        if marginal and modes.get(name[1], {}).get('interpretable'):
            return panel_sentence(', '.join(name), marginal)
    return ''


def _grid_endings_html(result):
    r_sizes = list(dict.fromkeys(chain.from_iterable(panel['r_sizes']
                                                     for panel in result.values())))
    rows = []
    for name, panel in result.items():
        ended = {(cell['p'], cell['r']): cell['completion'] for cell in panel['cells']}
        for p in ('gold', *reversed(panel['p_sizes'])):
            cells = [ended.get((p, r)) for r in r_sizes]
            if any((p, r) in ended for r in r_sizes):
                rows.append([name, p, *cells])
    headers = ('setting', 'perception', *(f'reasoner {r}' for r in r_sizes))
    # Cells of the figure lead to this place.
    return ('<div id="completed">' + page.paragraph(ENDINGS, 'soft') + page.table(headers, rows)
            + '</div>')


def _losses_html(result, out):
    svg = figures.save(figures.losses, result, out, 'losses')
    rows = [list(row.values()) for row in result['last']]
    text = ('The last value of every size, the mean over its runs, stands to the right. Curves '
            f'longer than {figures.POINTS} points are drawn as means of neighbours; losses.csv has '
            'every point. losses.png')
    return page.details('Curves and last losses', page.figure(svg, text) + page.table(
        ('stage', 'run', 'steps', 'last loss'), rows))

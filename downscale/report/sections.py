"""The sections of the report as HTML, from the numbers of `measures`, `gate` and `health`."""
from itertools import chain
from pathlib import Path
from typing import Any

from downscale.analysis.completeness import LIMIT, sentence
from downscale.analysis.drops import FEW_TASKS
from downscale.analysis.floors import GUESSERS
from downscale.analysis.measures import Scored
from downscale.output import page
from downscale.report import claim_sections, figures, gallery, law_sections

METHODS = (
    'Intervals are 95 % intervals from a bootstrap over pictures: all questions about one picture '
    'are drawn together, and every model and family sees the same drawn pictures, so differences '
    'are paired. From three training seeds on, seeds are redrawn as well, as a t variable, in '
    'whatever compares the same seeds; else intervals cover pictures only, and those of rank '
    'correlations with the drop cover families only. Below 30 pictures (in a '
    'mean over families an effective number) a t interval is joined to it, and where every '
    'resample agrees it is widened, so no interval has zero width; a difference of fewer than six '
    'pictures is as unsure as their sign test. What lacks planned seeds is over those that all it '
    'compares have, as a t variable with fewer degrees; with one of three or more it may be '
    'anything. Repeats and seeds are averaged '
    'per question. A completed answer is not truncated, was parsed, and closed its thought where '
    'it had one; each model completes other '
    'questions, so accuracies on completed answers are not paired, and a high one beside many '
    'uncompleted answers says little. report.json holds every number with its interval, counts, '
    'seeds and method.')
ENDINGS = (
    'Accuracy on completed answers with its interval; below it accuracy on all answers, and the '
    'per cent of all answers that are truncated / unparsed / unclosed (an open thought; – where '
    'none was asked for). Shares are means over families, as the accuracy is. Where some answers '
    'are not completed, intervals of the others are over pictures only.')


def body(s: Scored, results: dict[str, Any], skipped: dict[str, str], summary: dict[str, Any],
         out: Path) -> str:
    """Return the report between its gate and its end as HTML; the figures are in `out`."""
    study = s.study
    warned = results['warnings']
    sizes = ', '.join(f'{z.name} ({figures.short_count(z.n_total)})' for z in s.sizes)
    title = page.escape(str(study.meta.get('name', 'study')))
    about = (f'{len(s.resamples.clusters):,} pictures and facts · sizes {sizes} · input '
             f'{study.input_hash[:12]}')
    parts = [f'<h1>{title}</h1>', page.paragraph(about, 'soft'), _warnings_html(warned),
             page.bullets(summary['sentences']),
             page.details('How the numbers are made', page.paragraph(METHODS)),
             '<h2>Gate</h2>', _warning_html(warned, 'gate'), _gate_html(results['gate'])]
    sections = (('claims', 'Claims', claim_sections.claims),
                ('accuracy', 'Accuracy by family and size', _accuracy_html),
                ('drops', 'Drop from the largest to the smallest size', _drops_html),
                ('reliance', 'Reliance on the picture', _reliance_html),
                ('grid', 'Perception × reasoner', _grid_html),
                ('families', 'Perception × reasoner by family', claim_sections.families),
                ('shares', 'Whose fault is the drop', claim_sections.shares),
                ('flips', 'Answers that change', claim_sections.flips),
                ('pareto', 'Accuracy against cost', claim_sections.pareto),
                ('laws', 'Laws of size', law_sections.laws),
                ('isoflop', 'Best size of a compute budget', law_sections.isoflop),
                ('rates', 'Learning rates', law_sections.rates),
                ('layers', 'Layers', claim_sections.layers),
                ('ledger', 'Where it is lost', claim_sections.ledger),
                ('losses', 'Training loss by stage', _losses_html),
                ('gallery', 'Samples by class', lambda result, out: gallery.cards(result)))
    for name, title, render in sections:
        # a drop is a difference of the accuracies above it
        about = 'accuracy' if name == 'drops' else name
        parts.append(f'<h2>{title}</h2>' + _warning_html(warned, about))
        parts.append(render(results[name], out) if name in results else
                     page.paragraph(f'Skipped: {skipped[name]}.', 'skip'))
    parts += ['<h2>Health</h2>', _health_html(s, results, skipped)]
    return ''.join(parts)


def _warnings_html(warned):
    """Return the box above the report that names all groups of answers with too many faults."""
    titles = {'gate': 'Gate', 'accuracy': 'Accuracy by family and size',
              'grid': 'Perception × reasoner', 'runs': 'Runs', 'health': 'All answers',
              'texts': 'Texts written by perception models'}
    if not warned:
        return ''
    lead = (f'More than {100 * LIMIT:.0f} % of some answers are truncated, unparsed or unclosed, '
            'so a low accuracy there may be one of finishing, not of seeing or reasoning. Groups '
            'of answers with such a share in some family:')
    return '<div class="warn">' + page.paragraph(lead) + page.bullets(
        [f'{titles[part]}: {sentence(groups)}.' for part, groups in warned.items()]) + '</div>'


def _warning_html(warned, part):
    """Return the warning of one section, '' where it needs none."""
    if part not in warned:
        return ''
    return page.paragraph(f'Shares above {100 * LIMIT:.0f} %: {sentence(warned[part])}.', 'warn')


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
    headers = ('family', 'mode', 'passes', 'score - floor', 'accuracy', 'completed answers',
               'floor', 'which is the', 'items', 'pictures')
    if not rows:
        return page.paragraph(text)
    return page.paragraph(text) + page.table(headers, rows) + page.paragraph(
        f'Completed answers: {ENDINGS}', 'soft')


def _with_macro(result):
    """Return (name, row) of every family, then of the mean over families."""
    return [*result['families'].items(), ('macro mean', result['macro'])]


def _accuracy_html(result, out):
    svg = figures.save(figures.accuracy, result, out, 'accuracy')
    rows = []
    for name, row in _with_macro(result):
        by_size = list(row['sizes'].values())
        guesses = [row[guess] for guess in (*GUESSERS, 'floor')]
        rows.append([name, *by_size, *guesses, by_size[0].n])
    headers = ('family', *result['macro']['sizes'], *GUESSERS.values(), 'floor', 'items')
    caption = ('The model sees the picture and answers by itself. Bands: 95 %. The '
               'macro mean is the plain mean over families. accuracy.png, accuracy.csv')
    ended = [[name, *row['completion'].values()] for name, row in _with_macro(result)]
    return page.figure(svg, caption) + page.table(headers, rows) + (
        '<h3>Completed answers</h3>' + page.paragraph(ENDINGS, 'soft')
        + page.table(('family', *result['macro']['sizes']), ended))


def _drops_html(result, out):
    svg = figures.save(figures.drops, result, out, 'drops')
    rows = [[name, row['absolute'], row['relative_chance'], row.get('p_holm'), row['absolute'].n,
             row['absolute'].clusters] for name, row in _with_macro(result)]
    caption = (f'{result["large"]} minus {result["small"]}, paired on the same pictures. Right: '
               'the drop as a share of (largest - floor). In brackets: questions. '
               'Grey bars: interval includes 0. drops.png, drops.csv')
    headers = ('family', 'drop', 'share of above chance', 'p (McNemar, Holm)', 'items', 'pictures')
    html = page.figure(svg, caption) + page.table(headers, rows, sign=True)
    if all(row[3] is None for row in rows):
        return html
    return html + page.paragraph(
        'p is exact McNemar over questions, as if independent, adjusted by Holm over families; the '
        'interval respects pictures.', 'soft')


def _reliance_html(result, out):
    svg = figures.save(figures.reliance, result, out, 'reliance')
    conditions = result['conditions']
    parts = [page.figure(svg, f'Reliance of {result["large"]} on the picture against the drop. '
                         'The accuracy of the largest model is on both axes, which alone pulls '
                         'the points towards a rising line; the slope from split halves is free '
                         'of that. Ringed: far from the line. reliance.png, reliance.csv')]
    rows = []
    for task, drop in result['drop'].items():
        by_condition = [families.get(task) for families in conditions.values()]
        if None not in by_condition:
            rows.append([task, *by_condition, drop])
    parts.append(page.table(('family', *(f'image - {c}' for c in conditions), 'drop'), rows, True))
    parts.append(_relation_html(result['relation']))
    for condition in result['missing']:
        parts.append(page.paragraph(f'Skipped: no {condition} condition for {result["large"]}.',
                                    'skip'))
    return ''.join(parts)


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


def _grid_html(result, out):
    svg = figures.save(figures.grid, result, out, 'grid')
    parts = [page.figure(svg, 'Mean over families. Perception writes a text, the reasoner answers '
                         'from it; gold: from the true text. ± is half the 95 % interval. !: '
                         f'more than {100 * LIMIT:.0f} % of the answers in some family are '
                         'truncated, unparsed or unclosed. A cell leads to the table below. '
                         'grid.png, grid.csv'), _grid_endings_html(result)]
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
    svg = figures.save(figures.marginals, result, out, 'marginals')
    parts.append(page.figure(svg, 'Drop when one side shrinks from largest to smallest and the '
                             'other stays at its largest. marginals.png, marginals.csv'))
    table = page.table(('setting', 'what shrinks', 'family', 'drop'), rows, True)
    parts.append(page.details('Marginal drops as a table', table))
    return ''.join(parts)


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
    # Cells of the figure lead to this heading.
    return ('<h3 id="completed">Completed answers of the pairs</h3>'
            + page.paragraph(ENDINGS, 'soft') + page.table(headers, rows))


def _losses_html(result, out):
    svg = figures.save(figures.losses, result, out, 'losses')
    rows = [list(row.values()) for row in result['last']]
    return page.figure(svg, f'Curves longer than {figures.POINTS} points are drawn as means of '
                       'neighbours; losses.csv has every point. losses.png') + page.details(
        'Last losses', page.table(('stage', 'run', 'steps', 'last loss'), rows))


def _health_html(s, results, skipped):
    warned = results['warnings']
    unfinished = [list(stage.values()) for stage in s.study.unfinished]
    parts = ['<h3>Unfinished or failed stages</h3>',
             _table_or_none(('run', 'stage', 'reason'), unfinished,
                            'None: every stage has finished.'),
             '<h3>Missing evaluations</h3>',
             _table_or_none(('evaluation', 'what is missing'),
                            [list(row) for row in results['missing']], 'None.'),
             '<h3>Runs</h3>' + _warning_html(warned, 'runs')]
    if 'runs' in results:
        parts.append(page.table(('run', 'size', 'seed', 'n_total', 'n_nonembed', 'n_vision',
                                 'macro accuracy', 'completed answers'),
                                [list(row.values()) for row in results['runs']]))
    if results['health']:
        parts.append('<h3>All answers</h3>' + _warning_html(warned, 'health')
                     + _answers_html(results['health']))
    if results['texts']:
        parts.append('<h3>Texts written by perception models</h3>' + _warning_html(warned, 'texts')
                     + page.table(('run', 'text', 'texts', 'truncated', 'mean tokens'),
                                  [list(row.values()) for row in results['texts']]))
    parts.append('<h3>Speed</h3>' + _throughput_html(results['throughput']))
    if s.study.notes or skipped:
        reasons = [f'{name} skipped: {reason}.' for name, reason in skipped.items()]
        parts.append('<h3>Notes</h3>' + page.bullets([*s.study.notes, *reasons]))
    return ''.join(parts)


def _table_or_none(headers, rows, nothing):
    """Return a table, or a paragraph with the text `nothing` where it has no rows."""
    return page.table(headers, rows) if rows else page.paragraph(nothing)


def _answers_html(rows):
    who = ('way', 'condition', 'text', 'mode', 'size')
    ended = []
    for row in rows:
        x = row['completion']
        ended.append([*(row[name] for name in who), row['answers'], x.accuracy, x.completed,
                      x.n_completed, x.truncated, x.unparsed, x.unclosed])
    columns = (*who, 'items', 'pictures', 'mean_tokens', 'mean_think_tokens', 'forced', 'nll_gold')
    lengths = [list(map(row.get, columns)) for row in rows]
    return page.table((*who, 'answers', 'accuracy', 'on completed', 'completed', 'truncated',
                       'unparsed', 'unclosed'), ended) + page.paragraph(
        'Accuracy and shares are means over families. Unclosed: the thought was still open at the '
        'end.', 'soft') + page.details('Lengths and likelihoods', page.table(
            (*who, 'items', 'pictures', 'mean tokens', 'of thought', 'closed at the budget',
             'gold NLL'), lengths))


def _throughput_html(result):
    measured = result['evaluations']
    absent = result['absent']
    names = ('tokens', 'seconds', 'tokens_per_second', 'rows', 'slot_occupancy', 'padding_waste',
             'compiles', 'compile_seconds')
    parts = []
    if measured:
        rows = []
        for key, row in measured.items():
            rows.append([key, *(row[name] for name in names)])
        headers = ('evaluation', *(name.replace('_', ' ') for name in names))
        parts.append(page.table(headers, rows))
        parts.append(page.paragraph(
            'Slot occupancy: the share of decoding slots that held an unfinished row. Padding '
            'waste: the share of what was computed for nothing but padding.', 'soft'))
    if absent or not measured:
        which = f': {", ".join(absent[:5])}' if absent else ''
        more = ', …' if len(absent) > 5 else ''
        parts.append(page.paragraph(
            f'No throughput.json beside {len(absent)} of {len(absent) + len(measured)} evaluations'
            f'{which}{more}.', 'skip'))
    return ''.join(parts)

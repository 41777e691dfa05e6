"""`write_report`: one offline HTML file, its numbers as JSON, and a PNG and CSV per figure."""
import dataclasses
import json
import math
import os
from pathlib import Path

from downscale.analysis import figures, gallery, gate, measures, page
from downscale.analysis.measures import Missing
from downscale.analysis.stats import Interval
from downscale.analysis.tables import load_study
from downscale.evaluate.items import TableError

METHODS = (
    'Intervals are 95 % intervals from a bootstrap over pictures: all questions about one picture '
    'are drawn together, and every model and family sees the same drawn pictures, so differences '
    'are paired. Below 30 pictures a t interval is joined to it, and where every resample agrees '
    'it is widened, so no interval has zero width. Repeats and seeds are averaged per question.')


def write_report(study_dir, out_dir=None, bootstraps=2000, seed=0):
    """report.html, report.json and the figures are in `out_dir` (default: study_dir/report).

    Returns the path of report.html. The same input gives the same report.json, byte for byte.
    Parts without data are named in the report with the reason; a table that breaks its schema
    raises `TableError`.
    """
    study = load_study(study_dir)
    out = Path(out_dir) if out_dir else Path(study_dir) / 'report'
    out.mkdir(parents=True, exist_ok=True)
    s = measures.scored(study, bootstraps, seed)
    results, skipped = _results(s)
    summary = _summary(s, results)
    body = _body(s, results, skipped, summary, out)
    numbers = {'input_hash': study.input_hash, 'level': 0.95, 'bootstraps': bootstraps,
               'seed': seed, 'study': {key: study.meta.get(key) for key in
                                       ('name', 'seed', 'config_hash')},
               'summary': summary, 'skipped': skipped, 'notes': list(study.notes),
               'unfinished': list(study.unfinished), **_without_bulk(results)}
    _replace(out / 'report.json', json.dumps(_plain(numbers), indent=1, sort_keys=True,
                                             allow_nan=False) + '\n')
    title = f'{study.meta.get("name", "study")} — downscale report'
    verdict = results['gate']
    _replace(out / 'report.html',
             page.page(title, verdict['line'], verdict['interpretable'], body))
    return out / 'report.html'


def _results(s):
    """Every part that has data, and the reason for every part that has none."""
    parts = {'gate': gate.gate, 'accuracy': measures.accuracy, 'drops': measures.drops,
             'reliance': measures.reliance, 'grid': measures.grid, 'losses': measures.losses,
             'gallery': gallery.samples, 'health': measures.health,
             'texts': measures.texts, 'runs': measures.runs}
    results, skipped = {}, {}
    for name, compute in parts.items():
        try:
            results[name] = compute(s)
        except (Missing, TableError) as reason:
            skipped[name] = str(reason)
    if 'gate' not in results:
        results['gate'] = {'interpretable': False, 'modes': {}, 'families': {}, 'reasoner': '',
                           'line': f'Not interpretable on the reasoning side: {skipped["gate"]}'}
    return results, skipped


def _summary(s, results):
    """A few facts and the sentences generated from them."""
    found = {'name': s.study.meta.get('name'), 'interpretable': results['gate']['interpretable'],
             'sizes': [size.name for size in s.sizes], 'sentences': []}
    say = found['sentences'].append
    if 'accuracy' in results:
        found['macro'] = results['accuracy']['macro']['sizes']
    if 'drops' in results:
        found.update(_say_drops(results['drops'], say))
    for name, panel in results.get('grid', {}).items():
        _say_panel(name, panel['marginal'], results['gate'], say)
    seeds = max((len(size.seeds) for size in s.sizes), default=0)
    found['seeds_per_size'] = seeds
    if seeds <= 1:
        say('There is one seed per size: intervals cover the choice of questions and pictures, '
            'not of training seeds. A second seed could move any number by more than they say.')
    else:
        say(f'Up to {seeds} seeds per size are averaged; intervals still cover pictures only, '
            'see the table of runs for the spread between seeds.')
    if s.study.unfinished:
        say(f'Failed or unfinished stages: {len(s.study.unfinished)} (listed under Health).')
    return found


def _say_drops(drops, say):
    large, small, macro = drops['large'], drops['small'], drops['macro']['absolute']
    verdict = '' if macro.clear else ': no clear effect'
    say(f'From {large} to {small} the accuracy in the mean over families drops by '
        f'{gate.signed(macro)}{verdict} (1.00 is all questions).')
    rows = drops['families']
    falls = [task for task, row in rows.items() if row['absolute'].low > 0]
    rises = [task for task, row in rows.items() if row['absolute'].high < 0]
    flat = [task for task in rows if task not in falls + rises]
    if falls:
        lead = drops.get('lead')
        settled = '' if lead is None else '; its lead over the next family is ' + (
            'clear' if lead.low > 0 else 'not settled') + f' ({gate.signed(lead)})'
        say(f'The largest drop is in {falls[0]}: {gate.signed(rows[falls[0]]["absolute"])}'
            f'{settled}.')
    if rises:
        say(f'The smallest model is better in {", ".join(rises)}.')
    if flat:
        say(f'No clear effect (the interval includes 0) in {", ".join(flat)}.')
    return {'largest': large, 'smallest': small, 'macro_drop': macro, 'no_clear_effect': flat,
            'largest_drop': {'family': falls[0], 'drop': rows[falls[0]]['absolute']}
            if falls else None}


def _say_panel(name, marginal, verdict, say):
    models = {'perception': 'perception model', 'reasoner': 'reasoner'}
    sides = [f'shrinking the {models[side]} alone costs {gate.signed(marginal[side]["macro"])}'
             + ('' if marginal[side]['macro'].clear else ' (no clear effect)')
             for side in models if side in marginal]
    if not sides:
        return
    between = marginal.get('perception_minus_reasoner')
    if between is not None:
        word = 'no clear difference between the two' if not between.clear else \
            'perception costs more' if between.value > 0 else 'the reasoner costs more'
        sides.append(f'{word} ({gate.signed(between)})')
    mode = name.split(', ')[1]
    warn = '' if verdict['modes'].get(mode, {}).get('interpretable') else \
        ' [not interpretable: the gate fails in this mode]'
    say(f'Decoupled, {name}: ' + '; '.join(sides) + f'.{warn}')


def _body(s, results, skipped, summary, out):
    study = s.study
    sizes = ', '.join(f'{z.name} ({figures.short_count(z.n_total)})' for z in s.sizes)
    parts = [f'<h1>{page.escape(str(study.meta.get("name", "study")))}</h1>',
             page.paragraph(f'{len(s.resamples.clusters):,} pictures · sizes {sizes} · '
                            f'input {study.input_hash[:12]}', 'soft'),
             page.bullets(summary['sentences']),
             '<details><summary>How the numbers are made</summary>', page.paragraph(METHODS),
             '</details>', _gate_html(results['gate'])]
    sections = (('accuracy', 'Accuracy by family and size', _accuracy_html),
                ('drops', 'Drop from the largest to the smallest size', _drops_html),
                ('reliance', 'Reliance on the picture', _reliance_html),
                ('grid', 'Perception × reasoner', _grid_html),
                ('losses', 'Training loss by stage', _losses_html),
                ('gallery', 'Samples', lambda result, out: gallery.cards(result)))
    for name, title, render in sections:
        parts.append(f'<h2>{title}</h2>')
        parts.append(render(results[name], out) if name in results else
                     page.paragraph(f'Skipped: {skipped[name]}.', 'skip'))
    parts += ['<h2>Health</h2>', _health_html(s, results, skipped)]
    return ''.join(parts)


def _gate_html(verdict):
    rows = [[task, mode, x['passes'], x['margin'], x['accuracy'], x['chance'], x['margin'].n,
             x['margin'].clusters] for task, modes in verdict['families'].items()
            for mode, x in modes.items()]
    text = ('The gate asks whether the largest reasoner, given the true caption, is above an '
            'informed guess in every family: the lower end of the 95 % interval of score - chance '
            'must be above zero. Without that, a low score of a pair says nothing about '
            'perception.')
    headers = ('family', 'mode', 'passes', 'score - chance', 'accuracy', 'chance', 'items',
               'pictures')
    return '<h2>Gate</h2>' + page.paragraph(text) + (page.table(headers, rows) if rows else '')


def _accuracy_html(result, out):
    svg = figures.save(figures.accuracy, result, out, 'accuracy')
    rows = [[name, *row['sizes'].values(), row['chance'], row['majority'],
             next(iter(row['sizes'].values())).n] for name, row in
            [*result['families'].items(), ('macro mean', result['macro'])]]
    headers = ('family', *result['macro']['sizes'], 'chance', 'majority', 'items')
    caption = ('The model sees the picture and answers by itself. Bands: 95 % over pictures. The '
               'macro mean is the plain mean over families. accuracy.png, accuracy.csv')
    return page.figure(svg, caption) + page.table(headers, rows)


def _drops_html(result, out):
    svg = figures.save(figures.drops, result, out, 'drops')
    rows = [[name, row['absolute'], row['relative_chance'], row.get('p_holm'), row['absolute'].n,
             row['absolute'].clusters] for name, row in
            [*result['families'].items(), ('macro mean', result['macro'])]]
    caption = (f'{result["large"]} minus {result["small"]}, paired on the same pictures. Right: '
               'the drop as a share of (largest - chance). Grey bars: interval includes 0. '
               'drops.png, drops.csv')
    headers = ('family', 'drop', 'share of above chance', 'p (McNemar, Holm)', 'items', 'pictures')
    note = page.paragraph('p is exact McNemar over questions, as if independent, adjusted by Holm '
                          'over families; the interval respects pictures.', 'soft')
    return page.figure(svg, caption) + page.table(headers, rows, sign=True) + note


def _reliance_html(result, out):
    svg = figures.save(figures.reliance, result, out, 'reliance')
    conditions = list(result['conditions'])
    parts = [page.figure(svg, f'Reliance of {result["large"]} on the picture against the drop. '
                         'The accuracy of the largest model is on both axes, which alone pulls '
                         'the points towards a rising line. reliance.png, reliance.csv')]
    tasks = [task for task in result['drop']
             if all(task in found for found in result['conditions'].values())]
    rows = [[task, *(result['conditions'][c][task] for c in conditions), result['drop'][task]]
            for task in tasks]
    parts.append(page.table(('family', *(f'image - {c}' for c in conditions), 'drop'), rows, True))
    for condition, x in result['spearman'].items():
        parts.append(page.paragraph(
            f'Rank correlation with image - {condition}: ' + (
                'not given (fewer than 4 families, or no spread)' if x is None else
                f'{x["value"]:+.2f} over {x["families"]} families, from disjoint halves of the '
                'pictures; with so few families this describes, it does not prove') + '.', 'soft'))
    for condition in result['missing']:
        parts.append(page.paragraph(f'Skipped: no {condition} condition for {result["large"]}.',
                                    'skip'))
    return ''.join(parts)


def _grid_html(result, out):
    svg = figures.save(figures.grid, result, out, 'grid')
    parts = [page.figure(svg, 'Mean over families. Perception writes a text, the reasoner answers '
                         'from it; gold: from the true text. ± is half the 95 % interval. '
                         'grid.png, grid.csv')]
    rows = []
    for name, panel in result.items():
        for side in ('perception', 'reasoner'):
            if side in panel['marginal']:
                drop = panel['marginal'][side]
                rows += [[name, side, task, x] for task, x in
                         [*drop['families'].items(), ('macro mean', drop['macro'])]]
    if not rows:
        return parts[0] + page.paragraph('Skipped: marginal drops need the corners of the grid '
                                         '(largest with smallest on both sides).', 'skip')
    svg = figures.save(figures.marginals, result, out, 'marginals')
    parts.append(page.figure(svg, 'Drop when one side shrinks from largest to smallest and the '
                             'other stays at its largest. marginals.png, marginals.csv'))
    parts.append('<details><summary>Marginal drops as a table</summary>' + page.table(
        ('setting', 'what shrinks', 'family', 'drop'), rows, True) + '</details>')
    return ''.join(parts)


def _losses_html(result, out):
    svg = figures.save(figures.losses, result, out, 'losses')
    rows = [list(row.values()) for row in result['last']]
    return page.figure(svg, f'Curves longer than {figures.POINTS} points are drawn as means of '
                       'neighbours; losses.csv has every point. losses.png') + (
        '<details><summary>Last losses</summary>'
        + page.table(('stage', 'run', 'steps', 'last loss'), rows) + '</details>')


def _health_html(s, results, skipped):
    headers = ('way', 'condition', 'text', 'mode', 'size', 'answers', 'items', 'pictures',
               'parse failed', 'truncated', 'mean tokens', 'gold NLL')
    health = [list(row.values()) for row in results['health']]
    parts = ['<h3>Unfinished or failed stages</h3>']
    parts.append(page.table(('run', 'stage', 'reason'), [list(u.values()) for u in
                                                         s.study.unfinished])
                 if s.study.unfinished else page.paragraph('None: every stage has finished.'))
    parts.append('<h3>Runs</h3>')
    if 'runs' in results:
        parts.append(page.table(('run', 'size', 'seed', 'n_total', 'n_nonembed', 'n_vision',
                                 'macro accuracy'), [list(r.values()) for r in results['runs']]))
    if health:
        parts.append('<h3>Answers</h3>' + page.table(headers, health))
    if results['texts']:
        parts.append('<h3>Texts written by perception models</h3>' + page.table(
            ('run', 'text', 'texts', 'truncated', 'mean tokens'),
            [list(row.values()) for row in results['texts']]))
    if s.study.notes or skipped:
        parts.append('<h3>Notes</h3>' + page.bullets(
            [*s.study.notes, *(f'{name} skipped: {reason}.' for name, reason in skipped.items())]))
    return ''.join(parts)


def _without_bulk(results):
    """Results as report.json holds them: no curves (the CSV has them), no pictures."""
    kept = dict(results)
    if 'losses' in kept:
        kept['losses'] = kept['losses']['last']
    if 'gallery' in kept:
        kept['gallery'] = {kind: [sample['item_id'] for sample in found]
                           for kind, found in kept['gallery'].items()}
    return kept


def _plain(value):
    """JSON values; floats are rounded so that the order of a sum cannot change the bytes."""
    if isinstance(value, Interval):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _replace(path, text):
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)

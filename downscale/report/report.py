"""`write_report`: one offline HTML file, its numbers as JSON, and a PNG and CSV per figure."""
import json
from pathlib import Path

from downscale.analysis import (
    absent,
    accuracy,
    claims,
    completeness,
    drops,
    flips,
    gate,
    grids,
    health,
    layers,
    ledger,
    measures,
    study_laws,
)
from downscale.analysis.measures import Missing
from downscale.output import page
from downscale.output.plain import plain
from downscale.report import gallery, sections
from downscale.results.items import TableError
from downscale.results.study import load_study
from downscale.results.throughput import throughput
from downscale.runtime.files import PathLike, write_bytes
from downscale.statistics.bootstrap import FEW_SEEDS


def write_report(study_dir: PathLike, out_dir: PathLike | None = None, bootstraps: int = 2000,
                 seed: int = 0) -> Path:
    """Write report.html, report.json and the figures; return the path of report.html.

    `out_dir` is study_dir/report when it is not given. The same input gives the same report.json,
    byte for byte. Parts without data are named in the report with the reason; a table that breaks
    its schema raises `TableError`.
    """
    study = load_study(study_dir)
    out = Path(out_dir) if out_dir else Path(study_dir) / 'report'
    out.mkdir(parents=True, exist_ok=True)
    s = measures.scored(study, bootstraps, seed)
    results, skipped = _results(s)
    summary = _summary(s, results)
    body = sections.body(s, results, skipped, summary, out)
    numbers = {'input_hash': study.input_hash, 'level': 0.95, 'bootstraps': bootstraps,
               'seed': seed, 'study': {key: study.meta.get(key) for key in
                                       ('name', 'seed', 'config_hash')},
               'summary': summary, 'skipped': skipped, 'notes': list(s.study.notes),
               'unfinished': list(study.unfinished), **_without_bulk(results)}
    text = json.dumps(plain(numbers, _rounded), indent=1, sort_keys=True, allow_nan=False) + '\n'
    write_bytes(out / 'report.json', text.encode())
    title = f'{study.meta.get("name", "study")} — downscale report'
    verdict = results['gate']
    gone = absent.sentence(results['missing'])
    line = ' '.join(filter(None, (verdict['line'], gone)))
    html = page.page(title, line, verdict['interpretable'] and not gone, body)
    write_bytes(out / 'report.html', html.encode())
    return out / 'report.html'


def _results(s):
    """Return every part that has data, and the reason for every part that has none."""
    parts = {'gate': gate.gate, 'accuracy': accuracy.by_family, 'drops': drops.by_family,
             'reliance': drops.reliance, 'grid': grids.grid, 'losses': accuracy.losses,
             'gallery': gallery.samples, 'health': health.health, 'texts': health.texts,
             'runs': health.runs, 'throughput': throughput, 'claims': claims.judge,
             'families': flips.families, 'shares': flips.shares, 'flips': study_laws.flips,
             'pareto': flips.frontiers, 'laws': study_laws.laws, 'isoflop': study_laws.budgets,
             'rates': study_laws.rates, 'layers': layers.layers,
             'ledger': ledger.of_study}
    results = {}
    skipped = {}
    for name, compute in parts.items():
        try:
            results[name] = compute(s)
        except (Missing, TableError) as reason:
            skipped[name] = str(reason)
    if 'gate' not in results:
        results['gate'] = {'interpretable': False, 'modes': {}, 'families': {}, 'reasoner': '',
                           'line': f'Not interpretable on the reasoning side: {skipped["gate"]}'}
    try:
        results['missing'] = absent.absent(s)
    except TableError as reason:
        results['missing'] = [('what should be there', str(reason))]
    for name in ('health', 'texts'):   # lists that other parts go through
        results.setdefault(name, [])
    results['warnings'] = completeness.warnings(results)
    return results, skipped


def _summary(s, results):
    """Return a few facts and the sentences generated from them."""
    summary = {'name': s.study.meta.get('name'),
               'interpretable': results['gate']['interpretable'],
               'sizes': [size.name for size in s.sizes], 'sentences': []}
    say = summary['sentences'].append
    if s.study.meta.get('data', {}).get('asked') == 0:
        say('This study asks nothing: it has neither evaluation.scenes nor evaluation.benchmarks.')
    if results['missing']:
        say(absent.sentence(results['missing']))
    if 'accuracy' in results:
        summary['macro'] = results['accuracy']['macro']['sizes']
    if 'drops' in results:
        summary.update(_say_drops(results['drops'], say))
    for name, panel in results.get('grid', {}).items():
        _say_panel(name, panel['marginal'], results['gate'], say)
    seeds = max((len(size.seeds) for size in s.sizes), default=0)
    summary['seeds_per_size'] = seeds
    if seeds <= 1:
        say('There is one seed per size: intervals cover the choice of questions and pictures, '
            'not of training seeds. A second seed could move any number by more than they say.')
    else:
        fewest = min(len(size.seeds) for size in s.sizes)
        count = str(seeds) if fewest == seeds else f'{fewest} to {seeds}'
        say(f'{count} seeds per size are averaged; intervals cover pictures' + (
            ' and seeds where all that is compared has the same three or more.'
            if fewest >= FEW_SEEDS else ' only, see the table of runs for the spread between seeds.'
        ))
    verdicts = [row['verdict'] for row in results.get('claims', ())]
    if verdicts:
        say('Claims: ' + ', '.join(f'{verdicts.count(verdict)} {verdict}' for verdict in
                                   claims.VERDICTS if verdict in verdicts) + '.')
    if s.study.unfinished:
        say(f'Failed or unfinished stages: {len(s.study.unfinished)} (listed under Health).')
    return summary


def _say_drops(drops, say):
    """Say how large the drop is and where; return the facts of it for the summary."""
    large = drops['large']
    small = drops['small']
    macro = drops['macro']['absolute']
    verdict = '' if macro.clear else ': no clear effect'
    say(f'From {large} to {small} the accuracy in the mean over families drops by '
        f'{gate.signed(macro)}{verdict} (1.00 is all questions).')
    rows = drops['families']
    falls = [task for task, row in rows.items() if row['absolute'].low > 0]
    rises = [task for task, row in rows.items() if row['absolute'].high < 0]
    flat = [task for task in rows if task not in falls + rises]
    if falls:
        lead = drops.get('lead')
        settled = ''
        if lead is not None:
            word = 'clear' if lead.low > 0 else 'not settled'
            settled = f'; its lead over the next family is {word} ({gate.signed(lead)})'
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
    """Say what shrinking each side costs in one setting of the decoupled test."""
    models = {'perception': 'perception model', 'reasoner': 'reasoner'}
    sides = [f'shrinking the {models[side]} alone costs {gate.signed(marginal[side]["macro"])}'
             + ('' if marginal[side]['macro'].clear else ' (no clear effect)')
             for side in models if side in marginal]
    if not sides:
        return
    between = marginal.get('perception_minus_reasoner')
    if between is not None:
        word = 'perception costs more' if between.value > 0 else 'the reasoner costs more'
        if not between.clear:
            word = 'no clear difference between the two'
        sides.append(f'{word} ({gate.signed(between)})')
    mode = name.split(', ')[1]
    warn = '' if verdict['modes'].get(mode, {}).get('interpretable') else \
        ' [not interpretable: the gate fails in this mode]'
    say(f'Decoupled, {name}: ' + '; '.join(sides) + f'.{warn}')


def _without_bulk(results):
    """Return results as report.json holds them: no curves (the CSV has them), no pictures."""
    kept = dict(results)
    if 'losses' in kept:
        kept['losses'] = kept['losses']['last']
    if 'laws' in kept:
        kept['laws'] = {title: _without(part, 'curve') for title, part in kept['laws'].items()}
    if 'families' in kept:
        grids = {}
        for task, cells in kept['families']['families'].items():
            grids[task] = [{'p': p, 'r': r, 'accuracy': x} for (p, r), x in cells.items()]
        kept['families'] = {**kept['families'], 'families': grids}
    if 'gallery' in kept:
        ids = {}
        for kind, samples in kept['gallery'].items():
            ids[kind] = [sample['item_id'] for sample in samples]
        kept['gallery'] = ids
    return kept


def _without(part, name):
    """Return a dict without one key."""
    return {key: value for key, value in part.items() if key != name}


def _rounded(value):
    """Return a float rounded so that the order of a sum cannot change the bytes."""
    return float(f'{round(value, 12):.9g}')



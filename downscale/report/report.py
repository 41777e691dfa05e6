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
    repairs,
    study_laws,
)
from downscale.analysis.measures import Missing
from downscale.analysis.varied import (
    data_laws,
    hidden,
    levels,
    reader_table,
    repair_table,
    ways,
)
from downscale.output import page
from downscale.output.plain import plain
from downscale.report import first_screen, gallery, item_links, sections
from downscale.report.item_links import NO_ITEMS
from downscale.report.summary import summary
from downscale.results.items import TableError
from downscale.results.study import load_study
from downscale.results.throughput import throughput
from downscale.runtime.copies import results_beside
from downscale.runtime.files import PathLike, write_bytes


def write_report(study_dir: PathLike, out_dir: PathLike | None = None, bootstraps: int = 2000,
                 seed: int = 0) -> Path:
    """Write report.html, report.json, the figures and `items/`; return the path of report.html.

    `out_dir` is study_dir/report when it is not given, of gs://.../NAME it is NAME/report in the
    working folder. The same input gives the same report.json,
    byte for byte. Parts without data are named in the report with the reason; a table that breaks
    its schema raises `TableError`.
    """
    study = load_study(study_dir)
    out = Path(out_dir) if out_dir else results_beside(study_dir) / 'report'
    out.mkdir(parents=True, exist_ok=True)
    s = measures.scored(study, bootstraps, seed)
    results, skipped = _results(s)
    links = _links(study.root, out, results, skipped)
    facts = summary(s, results)
    title = f'{study.meta.get("name", "study")} — downscale report'
    top = first_screen.html(s, results, out, links)
    sidebar, body = sections.sidebar_and_body(s, results, skipped, out, links)
    numbers = {'input_hash': study.input_hash, 'level': 0.95, 'bootstraps': bootstraps,
               'seed': seed, 'study': {key: study.meta.get(key) for key in
                                       ('name', 'seed', 'config_hash')},
               'summary': facts, 'skipped': skipped, 'notes': list(s.study.notes),
               'unfinished': list(study.unfinished), **_without_bulk(results)}
    text = json.dumps(plain(numbers, _rounded), indent=1, sort_keys=True, allow_nan=False) + '\n'
    write_bytes(out / 'report.json', text.encode())
    html = page.page_with_sidebar(title, sidebar, top + body)
    write_bytes(out / 'report.html', html.encode())
    return out / 'report.html'


def _results(s):
    """Return every part that has data, and the reason for every part that has none."""
    parts = {'gate': gate.gate, 'answer': accuracy.by_kind, 'accuracy': accuracy.by_family,
             'learnt': accuracy.learnt,
             'drops': drops.by_family, 'reliance': drops.reliance, 'grid': grids.grid,
             'losses': accuracy.losses,
             'gallery': gallery.samples, 'health': health.health, 'texts': health.texts,
             'runs': health.runs,
             'constant': health.constant, 'throughput': throughput, 'claims': claims.judge,
             'factors': levels.by_level, 'families': flips.families, 'shares': flips.shares,
             'flips': study_laws.flips, 'pareto': flips.frontiers, 'laws': study_laws.laws,
             'law_families': data_laws.by_family, 'isoflop': study_laws.budgets,
             'rates': study_laws.rates, 'ways': ways.by_bytes, 'repairs': repair_table.side_by_side,
             'hidden': hidden.by_arm, 'readers': reader_table.by_reader,
             'layers': layers.layers, 'ledger': ledger.of_study}
    if not s.study.meta.get('factors'):
        del parts['factors'], parts['law_families']
    if not ways.has_ways(s.study.meta):
        del parts['ways']
    if not repairs.has_repairs(s):
        del parts['repairs']
    if s.study.hidden is None:
        del parts['hidden']
    if not reader_table.has_readers(s):
        del parts['readers']
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


def _links(root, out, results, skipped):
    """Write the items beside the report; return the links to them, none where that fails."""
    shown = set()
    for samples in results.get('gallery', {}).values():
        shown.update(sample['item_id'] for sample in samples)
    ends = {setting: (panel['p_sizes'], panel['r_sizes'])
            for setting, panel in results.get('grid', {}).items()}
    try:
        return item_links.write_items(root, out, shown, ends)
    except ValueError as reason:
        skipped['items'] = str(reason)
        return NO_ITEMS


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



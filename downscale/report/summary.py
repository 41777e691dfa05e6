"""A few facts of a study and the sentences generated from them, as report.json keeps them."""
from collections.abc import Callable
from typing import Any

from downscale.analysis import absent, claims, gate
from downscale.analysis.measures import Scored
from downscale.statistics.two_way import FEW_SEEDS


def summary(s: Scored, results: dict[str, Any]) -> dict[str, Any]:
    """Return a few facts and the sentences generated from them."""
    facts = {'name': s.study.meta.get('name'),
             'interpretable': results['gate']['interpretable'],
             'sizes': [size.name for size in s.sizes], 'sentences': []}
    say = facts['sentences'].append
    if s.study.meta.get('data', {}).get('asked') == 0:
        say('This study asks nothing: it has neither evaluation.scenes nor evaluation.benchmarks.')
    if results['missing']:
        say(absent.sentence(results['missing']))
    if 'accuracy' in results:
        facts['macro'] = results['accuracy']['macro']['sizes']
    if 'drops' in results:
        facts.update(say_drops(results['drops'], say))
    for name, panel in results.get('grid', {}).items():
        text = panel_sentence(name, panel['marginal'])
        mode = name.split(', ')[1]
        if text and not results['gate']['modes'].get(mode, {}).get('interpretable'):
            text += ' [not interpretable: the gate fails in this mode]'
        if text:
            say(text)
    seeds = max((len(size.seeds) for size in s.sizes), default=0)
    facts['seeds_per_size'] = seeds
    say(about_seeds(s))
    verdicts = [row['verdict'] for row in results.get('claims', ())]
    if verdicts:
        say('Claims: ' + ', '.join(f'{verdicts.count(verdict)} {verdict}' for verdict in
                                   claims.VERDICTS if verdict in verdicts) + '.')
    if s.study.unfinished:
        say(f'Failed or unfinished stages: {len(s.study.unfinished)} (listed under Health).')
    return facts


def about_seeds(s: Scored) -> str:
    """Return what intervals cover in a study of so many seeds."""
    seeds = max((len(size.seeds) for size in s.sizes), default=0)
    if seeds <= 1:
        return ('There is one seed per size: intervals cover the choice of questions and pictures, '
                'not of training seeds. A second seed could move any number by more than they say.')
    fewest = min(len(size.seeds) for size in s.sizes)
    count = str(seeds) if fewest == seeds else f'{fewest} to {seeds}'
    return f'{count} seeds per size are averaged; intervals cover pictures' + (
        ' and seeds where all that is compared has the same three or more.'
        if fewest >= FEW_SEEDS else ' only, see the table of runs for the spread between seeds.')


def say_drops(drops: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
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


def panel_sentence(name: str, marginal: dict[str, Any]) -> str:
    """Return what shrinking each side costs in one setting of the decoupled test; '' if unknown."""
    models = {'perception': 'perception model', 'reasoner': 'reasoner'}
    sides = [f'shrinking the {models[side]} alone costs {gate.signed(marginal[side]["macro"])}'
             + ('' if marginal[side]['macro'].clear else ' (no clear effect)')
             for side in models if side in marginal]
    if not sides:
        return ''
    between = marginal.get('perception_minus_reasoner')
    if between is not None:
        word = 'perception costs more' if between.value > 0 else 'the reasoner costs more'
        if not between.clear:
            word = 'no clear difference between the two'
        sides.append(f'{word} ({gate.signed(between)})')
    return f'Decoupled, {name}: ' + '; '.join(sides) + '.'

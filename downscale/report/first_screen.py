"""What the report begins with: question, answer, one figure, the claims, six questions to look at.
"""
from functools import partial
from pathlib import Path
from typing import Any

from downscale.analysis import absent, completeness, health
from downscale.analysis.flips import PREFERRED
from downscale.analysis.measures import Scored
from downscale.output import page
from downscale.report import claim_table, figures, first_figure, gallery
from downscale.report.axes import short_count
from downscale.report.item_links import NO_ITEMS, ItemLinks
from downscale.report.summary import about_seeds

QUESTION = 'What does a vision-language model lose when its language model is made smaller?'
WHAT = {'visual': 'questions that need the picture', 'knowledge': 'questions that do not'}
UNCLEAR = 'shows no clear fall'
CARDS = 6
CEILING = .97   # from here on a size has nearly all right, so that a difference could not show
GUESSES_EXPLAINED = ('The informed guess knows all that the question gives away; the best guess '
                     'is the highest of it and the most frequent answer. ')
WAYS = {0: 'no clear difference', 1: 'perception costs more', -1: 'reasoning costs more'}


def html(s: Scored, results: dict[str, Any], out: Path, links: ItemLinks = NO_ITEMS) -> str:
    """Return the top of the page, its question as the heading; the figure is saved in `out`."""
    name = str(s.study.meta.get('name', 'study'))
    sentences = ' '.join(filter(None, (_first(results), _second(results))))
    parts = [f'<div id="answer"><h1>{page.escape(QUESTION)}</h1>',
             page.paragraph(f'Study {name}: {_sizes(s)}.', 'soft'),
             page.paragraph(sentences, 'answer'), _doubts(s, results)]
    if 'answer' in results:
        svg = figures.save(partial(first_figure.answer, links=links), results['answer'], out,
                           'answer')
        parts.append(page.figure(svg, _caption(s, results['answer'])))
    parts.append('</div>')
    if results.get('claims'):
        parts.append(page.section('claims', 'Claims', claim_table.compact(
            results['claims'], results['gate'], links)))
    elif not results['gate']['interpretable']:
        parts.append(page.paragraph(claim_table.gate_reason(results['gate']), 'soft'))
    chosen = gallery.choose(results.get('gallery', {}), CARDS)
    if chosen:
        parts.append(page.section('look', 'Six questions to look at',
                                  gallery.small_cards(chosen, links) + _all_items(links)))
    return ''.join(parts)


def _all_items(links):
    """Return a link to all items, and which these are where they are not all."""
    if not links.items():
        return ''
    link = page.link(links.items(), f'Look at {_count(len(links.numbers), "question")} one by one')
    others = 'Claims, and the dots, bars and cells of figures, lead to theirs.'
    return f'<p>{link}. <span class="soft">{others} {page.escape(links.note)}</span></p>'


def _sizes(s):
    """Return how many sizes, seeds and pictures there are, in words."""
    seeds = max((len(size.seeds) for size in s.sizes), default=0)
    return (f'{_count(len(s.sizes), "size")}, {_count(seeds, "training seed")}, '
            f'{_count(len(s.resamples.clusters), "picture or fact", "pictures and facts")}')


def _count(number, name, several=''):
    """Return a number and what it counts, which stands in the plural but for one."""
    return f'{number:,} {name if number == 1 else several or name + "s"}'


def _first(results):
    """Return the sentence on what is lost between the ends; why there is none where there is none.
    """
    answer = results.get('answer')
    if answer is None:
        return 'No model was asked with the picture, so this study has no answer yet.'
    sizes = answer['sizes']
    large = list(sizes)[-1]
    small = list(sizes)[0]
    if large == small:
        return f'One size only ({large}) was asked with the picture, so that nothing is compared.'
    losses = [_change(part, WHAT[kind]) for kind, part in answer['kinds'].items()]
    lead = (f'From {large} ({short_count(sizes[large])} parameters) to {small} '
            f'({short_count(sizes[small])}), accuracy {" and ".join(losses)}')
    if len(losses) > 1 and not any(part['drop'].clear for part in answer['kinds'].values()):
        lead = lead.replace(f' and {UNCLEAR}', ' or')
    x = answer['difference']
    if x is None:
        return lead + '.'
    if not x.clear:
        return f'{lead}; which of the two loses more is open, the difference is {_ends(x)}.'
    return f'{lead}; {"seeing" if x.value > 0 else "knowing"} loses more, by {_size(x)}.'


def _change(part, what):
    """Return how accuracy on `what` changed, from its drop; a ceiling is called one."""
    x = part['drop']
    if not x.clear:
        ceiling = min(size.value for size in part['sizes'].values()) >= CEILING
        at = ', at the ceiling in every size' if ceiling else ''
        return f'{UNCLEAR} on {what} ({_ends(x)}{at})'
    return f'{"falls" if x.value > 0 else "rises"} by {_size(x)} on {what}'


def _ends(x):
    """Return a difference and its interval."""
    return f'{x.value:.2f} [{x.low:.2f} to {x.high:.2f}]'


def _size(x):
    """Return a difference without its sign, and its interval."""
    low, high = sorted((abs(x.low), abs(x.high)))
    return f'{abs(x.value):.2f} [{low:.2f} to {high:.2f}]'


def _second(results):
    """Return the sentence on which side of the chain loses; without pairs, on the largest drop.

    Where the gate fails in a mode its pairs are left out: the claims say why.
    """
    sides = _sides(results)
    if sides:
        return sides
    drops = results.get('drops')
    if not drops:
        return ''
    family, row = next(iter(drops['families'].items()))
    if not row['absolute'].clear:
        return 'No single family of questions loses clearly.'
    return f'The largest drop of a family is {_size(row["absolute"])}, in {family}.'


def _sides(results):
    """Return what each side of the chain costs when it alone is small, '' where nothing tells it.

    It is told of the first of `PREFERRED`; then which settings come out otherwise, if any does.
    """
    marginals = {}
    for kind, mode in PREFERRED:
        marginal = results.get('grid', {}).get(f'{kind}, {mode}', {}).get('marginal', {})
        passed = results['gate']['modes'].get(mode, {}).get('interpretable')
        if passed and 'perception_minus_reasoner' in marginal:
            marginals[kind, mode] = marginal
    if not marginals:
        return ''
    first, *others = marginals
    sees = _ends(marginals[first]['perception']['macro'])
    reasons = _ends(marginals[first]['reasoner']['macro'])
    between = {setting: marginal['perception_minus_reasoner']
               for setting, marginal in marginals.items()}
    line = (f'With seeing and reasoning split between two models ({_setting(first)}), shrinking '
            f'the one that sees costs {sees} and shrinking the one that reasons {reasons}: '
            f'{_costs_more(between[first])}.')
    otherwise = {}
    for setting in others:
        way = _way(between[setting])
        if way != _way(between[first]):
            otherwise.setdefault(WAYS[way], []).append(_setting(setting))
    if not otherwise:
        return line
    settings_by_way = '; '.join(f'{way} with {" and with ".join(settings)}'
                                for way, settings in otherwise.items())
    return f'{line} Other settings come out otherwise: {settings_by_way}.'


def _way(between):
    """Return the sign of a clear difference, 0 for none."""
    return (between.value > 0) - (between.value < 0) if between.clear else 0


def _costs_more(between):
    """Return which side costs more, and by how much."""
    way = _way(between)
    return f'{WAYS[way]}, by {_size(between)}' if way else f'{WAYS[way]} ({_ends(between)})'


def _setting(setting):
    """Return a kind of text and a mode in words."""
    kind, mode = setting
    return f'{kind}s {"and thinking" if mode == "think" else "answered at once"}'


def _doubts(s, results):
    """Return what the reader has to know before the numbers: what is missing or has failed."""
    lines = []
    if s.study.meta.get('data', {}).get('asked') == 0:
        lines.append('This study asks nothing: it has neither evaluation.scenes nor '
                     'evaluation.benchmarks.')
    if results['missing']:
        lines.append(absent.sentence(results['missing']))
    if s.study.unfinished:
        count = _count(len(s.study.unfinished), 'stage')
        lines.append(f'{count} not finished: still to run, or failed.')
    if 'health' in results['warnings']:
        lines.append(completeness.most(results['health']))
    if results.get('constant'):
        lines.append(health.constant_sentence(results['constant']))
    if not lines:
        return ''
    text = ' '.join(map(page.escape, lines))
    return f'<p class="warn">{text} <a href="#health">More under Health.</a></p>'


def _caption(s, answer):
    """Return what the first figure shows, and what its intervals cover."""
    kinds = [f'{kind}: {", ".join(part["families"])}' for kind, part in answer['kinds'].items()]
    guesses = [part['guesses'] for part in answer['kinds'].values()]
    known = any(guess['chance'] is not None for guess in guesses)
    return (f'Each model sees the picture and answers by itself. A dot is one trained model, the '
            f'line the mean over families and seeds with its 95 % interval. {"; ".join(kinds)}. '
            f'{GUESSES_EXPLAINED if known else ""}{about_seeds(s)} answer.png, answer.csv')

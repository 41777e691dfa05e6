"""The claims of a study as a reader meets them: a compact table, and all facts behind each."""
from collections.abc import Sequence
from typing import Any

from downscale.output import page
from downscale.report.item_links import NO_ITEMS, ItemLinks

MARKS = {'supported': ('good', '✓'), 'contradicted': ('bad', '✗'), 'inconclusive': ('open', '○'),
         'not interpretable': ('soft', '–')}
WORDS = {'direct': 'answering directly', 'think': 'thinking first'}
RANKS = 'drop_by_reliance'   # the one contrast that is no difference of accuracies
LISTED = 4    # families that a sentence names


def compact(rows: Sequence[dict[str, Any]], gate: dict[str, Any],
            links: ItemLinks = NO_ITEMS) -> str:
    """Return a row a claim, and under them once why some were not decided.

    The text of a claim leads to the questions that it is about.
    """
    reach = _reach(rows)
    body = ''.join(_row(row, reach, links.of_claim(row['contrast'])) for row in rows)
    head = ('<th>verdict<th>claim<th>effect, 95 % interval<th class="bar"><span></span>'
            '<th>all claims (Holm)')
    notes = ''.join(f'<li>{page.escape(note)}' for note in [*_notes(rows, gate), *weak(rows)])
    return (f'<table class="claims"><thead><tr>{head}<tbody>{body}</table>'
            + (f'<ul class="notes">{notes}</ul>' if notes else '')
            + '<p class="notes">Each claim has questions, sizes and conditions of its own, so an '
              'effect may differ from the numbers above. '
              '<a href="#judged">How each claim is judged</a></p>')


def _row(row, reach, address):
    kind, mark = MARKS[row['verdict']]
    effect = _interval(row)
    name = page.escape(row['id'])
    text = page.link(address, page.escape(row['text']))
    return (f'<tr id="claim-{name}"><td class="verdict {kind}">{mark} {page.escape(row["verdict"])}'
            f'<td class="text">{text} <span class="soft">({name})</span>'
            f'<td class="effect">{page.escape(effect)}<td class="bar">{_bar(row, reach)}'
            f'<td class="soft">{page.escape(_p(row["p_holm"]))}')


def _p(value):
    """Return a p value as the page prints it, '' where there is no test."""
    if value != value:
        return ''
    return 'p < 0.001' if value < .0005 else f'p {page.number(value, 3)}'  # never zero


def _interval(row):
    """Return an effect and its interval; an en dash for a number that is not known."""
    value, low, high = (page.number(row[key], 2, True) for key in ('effect', 'low', 'high'))
    if value == '–':
        return value
    return f'{value} [{low} to {high}]'


def _reach(rows):
    """Return the largest distance from zero that any bar of the table has to show."""
    ends = [abs(row[end]) for row in rows for end in ('low', 'high', 'effect')
            if row[end] is not None and row['contrast'] != RANKS]
    return max([.1, *(min(end, 1) for end in ends if end == end)])   # without what is NaN


def _bar(row, reach):
    """Return the effect as a dot on a line with zero in the middle; the band is its threshold."""
    if row['effect'] is None or row['low'] != row['low']:
        return ''
    if row['contrast'] == RANKS:
        return '<span class="soft">rank correlation</span>'

    def at(value):
        return 80 + 74 * max(-1, min(1, value / reach))
    band = ''
    if row['threshold']:
        left = at(-row['threshold'] if row['test'] == 'equivalent' else 0)
        band = (f'<rect x="{left:.1f}" y="2" width="{at(row["threshold"]) - left:.1f}" height="14"'
                ' fill="currentColor" opacity=".14"/>')
    return ('<svg viewBox="0 0 160 18" role="img" aria-label="effect and interval">'
            f'{band}<path d="M80 1V17" stroke="currentColor" opacity=".5"/>'
            f'<path d="M{at(row["low"]):.1f} 9H{at(row["high"]):.1f}" stroke="currentColor" '
            f'stroke-width="2"/><circle cx="{at(row["effect"]):.1f}" cy="9" r="4" '
            'fill="currentColor"/></svg>')


def _notes(rows, gate):
    """Return why claims were not decided, each reason once with all claims that it touches."""
    by_reason = {}
    for row in rows:
        if row['verdict'] == 'not interpretable' and row['gate'].startswith('failed ('):
            reason = gate_reason(gate)
        else:
            reason = row['reason'].replace('failed: ', 'not interpretable: ', 1)
        if reason and row['verdict'] not in ('supported', 'contradicted'):
            by_reason.setdefault(reason, []).append(row['id'])
    return [f'{", ".join(ids)}: {reason.removesuffix(".").replace("+-", "±")}.'
            for reason, ids in by_reason.items()]


def weak(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line that names the decided claims whose adjusted p is .05 or more, or none."""
    decided = [row for row in rows if row['verdict'] in ('supported', 'contradicted')]
    names = [row['id'] for row in decided if row['p_holm'] >= .05]
    if not names:
        return []
    return [f'{", ".join(names)}: decided by the interval, but adjusted for all claims of this '
            'table (Holm) p is .05 or more.']


def gate_reason(gate: dict[str, Any]) -> str:
    """Return in one sentence why pairs of perception and reasoner may not be read."""
    if not gate['reasoner']:
        return 'Pairs are not interpretable: no reasoner was evaluated on true descriptions.'
    count = len(gate['families'])
    fails = {}   # families: the modes that fail in them
    parts = []
    for mode, facts in gate['modes'].items():
        if not facts['measured']:
            parts.append(f'was not asked {WORDS[mode]}')
        elif facts['failing']:
            fails.setdefault(tuple(facts['failing']), []).append(WORDS[mode])
    for failing, modes in fails.items():
        names = ', '.join(failing[:LISTED]) + (', …' if len(failing) > LISTED else '')
        parts.append(f'does not clearly beat guessing in {len(failing)} of {count} families '
                     f'({names}) {" or ".join(modes)}')
    return (f'Pairs are not interpretable: given the true description, the largest reasoner '
            f'({gate["reasoner"]}) {" and ".join(parts)}, so that a wrong answer says nothing '
            'about what was seen.')


def in_full(rows: Sequence[dict[str, Any]]) -> str:
    """Return a card a claim with all that it was judged by."""
    return page.cards(f'<div class="card facts">{_facts(row)}</div>' for row in rows)


def _facts(row):
    """Return one claim with everything that it was judged by, as HTML."""
    kind, mark = MARKS[row['verdict']]
    facts = [('effect', _interval(row)), ('supported if', _asked(row)),
             ('by itself', _p(row['p'])), ('with all claims (Holm)', _p(row['p_holm'])),
             ('seeds', str(row['seeds'])),
             ('questions', f'{row["n"]:,} in {row["clusters"]:,} clusters'),
             ('gate', row['gate'].partition(':')[0]), ('where', row['where'])]
    if row['reason'] and not row['gate'].startswith('failed ('):
        facts.append(('why', row['reason']))
    for size, x in row['by_size'].items():
        facts.append((size, _interval({'effect': x['value'], **x})))
    pairs = page.terms((name, page.escape(text)) for name, text in facts if text)
    return (f'<div class="q">{page.escape(row["id"])}: {page.escape(row["text"])}</div>'
            f'<div class="{kind}">{mark} {page.escape(row["verdict"])}</div><dl>{pairs}</dl>')


def _asked(row):
    """Return when a claim counts as supported, in words."""
    at = f'{row["threshold"]:g}'
    within = f'within ±{at}' if row['test'] == 'equivalent' else f'above {at}'
    seeds = f', {row["needs_seeds"]} seeds' if row['needs_seeds'] > 1 else ''
    return within + seeds


def margin(gate: dict[str, Any]) -> str:
    """Return by how much the gate fails where it fails, as the table of the gate sums it up."""
    lines = []
    for mode, facts in gate['modes'].items():
        if facts['measured']:
            count = len(gate['families']) - len(facts['failing'])
            lines.append(f'{count} of {len(gate["families"])} families {WORDS[mode]}')
    return f'Above every guess in {" and ".join(lines)}.' if lines else ''

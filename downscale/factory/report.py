"""What a factory run made, in figures and pictures: `report.json` and one offline `report.html`.

Everything here is read off rows, so an interrupted run ends with the same bytes.
"""
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from downscale.data.images import decode, open_under
from downscale.factory.factory import STEPS, Factory
from downscale.factory.quality import CHECKS
from downscale.output import page
from downscale.results.samples import lines
from downscale.runtime.files import write_bytes, write_json
from downscale.statistics.bootstrap import Interval
from downscale.statistics.proportions import wilson

SHOWN = 6  # accepted pictures in the gallery, and of each check that rejects
SIDE = 256  # pixels of a picture
CUT = 1200  # letters of a text


def write_report(factory: Factory, prices: Sequence[float] | None = None) -> Path:
    """Write `report.json` and `report.html` of a finished run, and return the path of the page.

    `prices` are dollars per million tokens (read, written) of the teacher, None where unknown.
    """
    to = Path(factory.to)
    texts = {}
    for step in STEPS:
        path = to / f'{step}.jsonl'
        if path.is_file():
            texts[step] = {row['doc_id']: row for _, row in lines(path)}
    rows = [row for _, row in lines(to / 'quality.jsonl')]
    value = figures(rows, texts, factory, prices)
    write_json(to / 'report.json', value)
    write_bytes(to / 'report.html', _page(value, rows, texts, factory).encode())
    return to / 'report.html'


def figures(rows: Sequence[dict[str, Any]], texts: Mapping[str, dict[str, dict[str, Any]]],
            factory: Factory, prices: Sequence[float] | None = None) -> dict[str, Any]:
    """Return all figures of the report as JSON.

    `rows` are those of `quality.jsonl`, `texts` {step: {image: row}}.
    """
    skipped = Counter(record.reason for record in factory.skipped)
    source = {'pictures': len(factory.items),
              'pairs': sum(len(item.pairs) for item in factory.items),
              'skipped': dict(sorted(skipped.items()))}
    checks = {}
    for name in CHECKS:
        passed = [not row['checks'][name] for row in rows if name in row['checks']]
        if passed:
            checks[name] = _share(passed)
    # A kind counts once a picture, however many of its statements have it.
    kinds = Counter()
    for row in rows:
        for name, reasons in row['checks'].items():
            kinds.update({f'{name}: {kind_of(name, reason)}' for reason in reasons})
    return {'settings': factory.settings(), 'source': source,
            'accepted': _share([row['accepted'] for row in rows]), 'checks': checks,
            'reasons': dict(sorted(kinds.items())),
            'tokens': {step: _tokens(step, texts[step].values(), prices) for step in texts}}


def kind_of(check: str, reason: str) -> str:
    """Return what a reason has in common with others of its check."""
    if check == 'reply':
        return reason
    if check == 'leak':
        return reason.split()[0]
    if ':' in reason and check != 'contradiction':
        return reason.partition(':')[0]
    return 'another is said'


def _share(passed):
    low, high = wilson(sum(passed), len(passed))
    return {'n': len(passed), 'passed': sum(passed), 'low': low, 'high': high,
            'share': sum(passed) / len(passed) if passed else None}


def _tokens(step, rows, prices):
    """Return the tokens of a step's rows as the teacher counted them, and what they cost."""
    rows = list(rows)
    counted = [row for row in rows if None not in (row['tokens_in'], row['tokens_out'])]
    read = sum(row['tokens_in'] for row in counted)
    written = sum(row['tokens_out'] for row in counted)
    # The judge may be another model, whose prices nobody gave.
    dollars = None
    if prices is not None and step != 'judgements' and len(counted) == len(rows):
        dollars = round((read * prices[0] + written * prices[1]) / 1e6, 6)
    return {'rows': len(rows), 'uncounted': len(rows) - len(counted), 'read': read,
            'written': written, 'dollars': dollars}


# --- the page ---------------------------------------------------------------------------------

def _page(value, rows, texts, factory):
    """Return the page of `figures`, with a gallery."""
    accepted = value['accepted']
    line = f'{accepted["passed"]} of {accepted["n"]} pictures passed every check'
    parts = ['<h1>Data for visual extraction tuning</h1>', _origin(value['source'], factory),
             '<h2>Checks</h2>', page.paragraph(
                 'Share of pictures that pass, with its 95 % interval (Wilson). A text that is cut '
                 'off, a refusal, a loop or rubbish is judged no further.'),
             _table_of_checks(value), '<h2>Reasons</h2>', _table_of_reasons(value['reasons']),
             '<h2>Tokens</h2>', page.paragraph(
                 'Of the replies that were kept, as the teacher counted them; dollars at the given '
                 'prices. What failed attempts cost is not known here.'),
             _table_of_tokens(value['tokens']), '<h2>Gallery</h2>',
             _gallery(rows, texts, factory)]
    return page.page('Data for visual extraction tuning', line, accepted['passed'] > 0,
                     ''.join(parts))


def _origin(source, factory):
    skipped = ', '.join(f'{count} {reason}' for reason, count in source['skipped'].items())
    teacher = ', '.join(f'{name} {value}' for name, value in factory.teacher.settings.items())
    return page.paragraph(f'{source["pairs"]} questions about {source["pictures"]} pictures; '
                          f'left out: {skipped or "none"}. Teacher: {teacher}.', 'soft')


def _table_of_checks(value):
    rows = [(name, CHECKS[name], share) for name, share in value['checks'].items()]
    rows.append(('all', 'every check', value['accepted']))
    return page.table(('check', 'what it asks', 'judged', 'failed', 'passed'), [
        (name, asks, share['n'], share['n'] - share['passed'], _interval(share))
        for name, asks, share in rows])


def _table_of_reasons(reasons):
    if not reasons:
        return page.paragraph('None.')
    return page.table(('reason', 'pictures'), list(reasons.items()))


def _table_of_tokens(tokens):
    return page.table(('step', 'replies', 'uncounted', 'read', 'written', 'dollars'), [
        (step, sums['rows'], sums['uncounted'], sums['read'], sums['written'], sums['dollars'])
        for step, sums in tokens.items()])


def _interval(share):
    if share['share'] is None:
        return None
    return Interval(value=share['share'], low=share['low'], high=share['high'], n=share['n'],
                    clusters=share['n'], method='Wilson')


def _gallery(rows, texts, factory):
    """Return cards of pictures, of each class the first `SHOWN` in an order that means nothing."""
    items = {item.image: item for item in factory.items}
    mixed = sorted(rows, key=lambda row: hashlib.sha256(row['doc_id'].encode()).hexdigest())
    parts = [_cards('Accepted', [row for row in mixed if row['accepted']], items, texts, factory)]
    for name in CHECKS:
        rejected = [row for row in mixed if row['checks'].get(name)]
        parts.append(_cards(f'Rejected: {name}', rejected, items, texts, factory))
    return ''.join(parts)


def _cards(title, rows, items, texts, factory):
    """Return the cards of the first rows of one kind under a title; '' without any."""
    if not rows:
        return ''
    cards = [_card(row, items[row['doc_id']], texts, factory.root) for row in rows[:SHOWN]]
    return f'<h3>{escape(title)}</h3>' + page.cards(cards)


def _card(row, item, texts, root):
    asked = ''.join(f'<dt>{page.cut(question, CUT)}<dd>{page.cut(answer, CUT)}'
                    for question, answer in item.pairs)
    written = page.terms((step, page.cut(rows[item.image]['text'], CUT))
                         for step, rows in texts.items() if item.image in rows)
    verdict = page.terms(((f'✗ {name}', page.cut('; '.join(some), CUT))
                          for name, some in row['checks'].items() if some), 'bad')
    verdict = verdict or page.terms([('✓', 'every check')], 'good')
    return page.card(
        f'<img src="{_picture(root, item.image)}" alt="">', item.image,
        f'<dl>{verdict}</dl>' + page.details(f'{len(item.pairs)} questions', f'<dl>{asked}</dl>')
        + page.details('what was written', f'<dl>{written}</dl>'))


def _picture(root, name):
    """Return a small copy of a picture as a data address; '' for one that cannot be read."""
    try:
        image = decode(open_under(root, name))
    except ValueError:
        return ''
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, 'PNG')
    return page.picture_address(out.getvalue())

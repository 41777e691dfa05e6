"""What a factory run made, in figures and pictures: `report.json` and one offline `report.html`.

Everything here is read off rows, so an interrupted run ends with the same bytes.
"""
import hashlib
import io
from collections import Counter
from html import escape
from pathlib import Path

from downscale.data.images import decode, open_under
from downscale.factory.quality import CHECKS
from downscale.output import page
from downscale.results.samples import lines
from downscale.runtime.files import write_bytes, write_json
from downscale.statistics.bootstrap import Interval, wilson

STEPS = ('statements', 'information', 'descriptions', 'judgements')
SHOWN = 6  # accepted pictures in the gallery, and of each check that rejects
# pixels of a picture, letters of a text
SIDE = 256
CUT = 1200


def write_report(factory, prices=None):
    """Return the path of `report.html` below `factory.to`, written with `report.json` from a
    finished run.

    `prices` are dollars per million tokens (read, written) of the teacher, None where unknown.
    """
    to = Path(factory.to)
    texts = {step: {row['doc_id']: row for _, row in lines(to / f'{step}.jsonl')}
             for step in STEPS if (to / f'{step}.jsonl').is_file()}
    rows = [row for _, row in lines(to / 'quality.jsonl')]
    found = figures(rows, texts, factory, prices)
    write_json(to / 'report.json', found)
    write_bytes(to / 'report.html', _page(found, rows, texts, factory).encode())
    return to / 'report.html'


def figures(rows, texts, factory, prices=None):
    """Return all figures of the report as JSON."""
    return {'settings': factory.settings(),
            'source': {'pictures': len(factory.items),
                       'pairs': sum(len(item.pairs) for item in factory.items),
                       'skipped': dict(sorted(Counter(
                           one.reason for one in factory.skipped).items()))},
            'accepted': _share([row['accepted'] for row in rows]),
            'checks': {name: _share([not row['checks'][name] for row in rows
                                     if name in row['checks']]) for name in CHECKS
                       if any(name in row['checks'] for row in rows)},
            'reasons': dict(sorted(Counter(
                f'{name}: {kind}' for row in rows for name, reasons in row['checks'].items()
                for kind in {kind_of(name, reason) for reason in reasons}).items())),
            'tokens': {step: _tokens(step, texts[step].values(), prices) for step in texts}}


def kind_of(check, reason):
    """Return what a reason has in common with others of its check."""
    if check == 'reply':
        return reason
    return reason.split()[0] if check == 'leak' else reason.partition(':')[0] \
        if ':' in reason and check != 'contradiction' else 'another is said'


def _share(passed):
    low, high = wilson(sum(passed), len(passed))
    return {'n': len(passed), 'passed': sum(passed), 'low': low, 'high': high,
            'share': sum(passed) / len(passed) if passed else None}


def _tokens(step, rows, prices):
    """Return tokens of a step's rows as the teacher counted them, and what they cost at its
    prices.
    """
    rows = list(rows)
    counted = [row for row in rows if None not in (row['tokens_in'], row['tokens_out'])]
    read, written = (sum(row[name] for row in counted) for name in ('tokens_in', 'tokens_out'))
    known = prices is not None and step != 'judgements' and len(counted) == len(rows)
    return {'rows': len(rows), 'uncounted': len(rows) - len(counted), 'read': read,
            'written': written,
            'dollars': round((read * prices[0] + written * prices[1]) / 1e6, 6) if known else None}


# --- the page ---------------------------------------------------------------------------------

def _page(found, rows, texts, factory):
    share = found['accepted']
    source = found['source']
    line = f'{share["passed"]} of {share["n"]} pictures passed every check'
    skipped = ', '.join(f'{n} {reason}' for reason, n in source['skipped'].items()) or 'none'
    parts = ['<h1>Data for visual extraction tuning</h1>',
             page.paragraph(f'{source["pairs"]} questions about {source["pictures"]} pictures; '
                            f'left out: {skipped}. Teacher: {_who(factory.teacher)}.', 'soft'),
             '<h2>Checks</h2>', page.paragraph(
                 'Share of pictures that pass, with its 95 % interval (Wilson). A text that is cut '
                 'off, a refusal, a loop or rubbish is judged no further.'),
             page.table(('check', 'what it asks', 'judged', 'failed', 'passed'), [
                 (name, CHECKS[name], one['n'], one['n'] - one['passed'], _interval(one))
                 for name, one in (*found['checks'].items(),)]
                 + [('all', 'every check', share['n'], share['n'] - share['passed'],
                     _interval(share))]),
             '<h2>Reasons</h2>', page.table(('reason', 'pictures'), list(
                 found['reasons'].items())) if found['reasons'] else page.paragraph('None.'),
             '<h2>Tokens</h2>', page.paragraph(
                 'Of the replies that were kept, as the teacher counted them; dollars at the given '
                 'prices. What failed attempts cost is not known here.'),
             page.table(('step', 'replies', 'uncounted', 'read', 'written', 'dollars'), [
                 (step, *(one[name] for name in ('rows', 'uncounted', 'read', 'written',
                                                 'dollars')))
                 for step, one in found['tokens'].items()]),
             '<h2>Gallery</h2>', _gallery(rows, texts, factory)]
    return page.page('Data for visual extraction tuning', line, share['passed'] > 0,
                     ''.join(parts))


def _who(teacher):
    return ', '.join(f'{name} {value}' for name, value in teacher.settings.items())


def _interval(share):
    if share['share'] is None:
        return None
    return Interval(value=share['share'], low=share['low'], high=share['high'], n=share['n'],
                    clusters=share['n'], method='Wilson')


def _gallery(rows, texts, factory):
    items = {item.image: item for item in factory.items}
    mixed = sorted(rows, key=lambda row: hashlib.sha256(row['doc_id'].encode()).hexdigest())
    classes = [('Accepted', [row for row in mixed if row['accepted']])]
    classes += [(f'Rejected: {name}', [row for row in mixed if row['checks'].get(name)])
                for name in CHECKS]
    parts = []
    for title, some in classes:
        if some:
            parts.append(f'<h3>{escape(title)}</h3>' + page.cards(
                _card(row, items[row['doc_id']], texts, factory.root) for row in some[:SHOWN]))
    return ''.join(parts)


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

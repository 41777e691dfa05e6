"""What `downscale data show` shows of a built mixture: lines for a terminal, a page of samples."""
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from downscale.data.corpora.mixture import Corpus, epoch_order
from downscale.data.row_files import shown
from downscale.output.page import (
    card,
    cards,
    cut,
    page,
    paragraph,
    picture_address,
    table,
    terms,
)
from downscale.runtime.files import write_bytes

PICTURE_BYTES = 400_000
TEXT_LENGTH = 1200
FORMATS = {b'\x89PNG': 'png', b'\xff\xd8\xff': 'jpeg', b'GIF8': 'gif', b'RIFF': 'webp',
           b'BM': 'bmp'}


def lines(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield the manifest as a person reads it."""
    epoch = manifest['epoch']
    yield (f'{manifest["mixture"]["name"]}: {epoch["conversations"]:,} conversations an epoch, '
           f'{manifest["mixture"]["order"]}, hash {manifest["hash"]}')
    for name, source in manifest['sources'].items():
        yield from _source_lines(name, source, epoch['sources'][name])
    if not manifest['encoder']:
        yield '  tokens are not counted; build with --tokenizer tokenizer.json'


def _source_lines(name, source, count):
    """Yield what the manifest says of a source, `count` being its conversations in an epoch."""
    size = f'{source["bytes"] / 1e6:,.1f} MB'
    yield (f'  {name}: {source["accepted"]:,} of {source["rows"]:,} rows ({source["subset"]}), '
           f'{count:,} an epoch, {source["pictures"]:,} pictures, {size}; '
           f'licence: {source["licence"]}')
    if source['tokens']:
        yield '    tokens: ' + ', '.join(
            f'{kind} {value["sum"]:,} (mean {value["mean"]:,.0f}, most {value["max"]:,})'
            for kind, value in source['tokens'].items())
    # Folders of older versions do not tell these two.
    if source.get('without_picture'):
        yield f'    rows without a picture: {source["without_picture"]:,}'
    if source.get('left_out'):
        yield '    columns left out (rows that had them): ' + ', '.join(
            f'{shown(name, 40)} {count:,}' for name, count in source['left_out'].items())
    if source['rejected']:
        yield '    rejected: ' + ', '.join(f'{reason} {count:,}'
                                           for reason, count in source['rejected'].items())


def write_page(folder: Path, path: Path, samples: int = 24) -> None:
    """Write an offline HTML page to `path`: the manifest as tables and samples of every source."""
    corpus = Corpus(folder)
    manifest = corpus.manifest
    body = [f'<h1>{escape(corpus.mixture.name)}</h1>', *map(paragraph, lines(manifest))]
    headers = ('source', 'rows', 'accepted', 'an epoch', 'pictures', 'MB', 'subset', 'licence')
    rows = []
    rejected = []
    count = 0
    for name, source in manifest['sources'].items():
        per_epoch = manifest['epoch']['sources'][name]
        rows.append((name, source['rows'], source['accepted'], per_epoch, source['pictures'],
                     source['bytes'] / 1e6, source['subset'], source['licence']))
        rejected += [(name, *row) for row in source['rejected_first']]
        count += sum(source['rejected'].values())
    body += ['<h2>Sources</h2>', table(headers, rows)]
    if rejected:
        body += ['<h2>Rejected rows</h2>', paragraph(
            'The first of each source; all are in rejected.jsonl.', 'soft'),
            table(('source', 'id', 'reason', 'detail'), rejected)]
    body += ['<h2>Samples</h2>', *_samples(corpus, samples)]
    line = f'{len(corpus):,} records, {count:,} rejected'
    write_bytes(path, page(corpus.mixture.name, line, not count, ''.join(body)).encode())


def _samples(corpus, count):
    """Yield cards of the first records of each source in training order, about `count` in all."""
    # In training order, so that the page shows what a stage sees first.
    each = max(1, count // len(corpus.mixture.sources))
    order = epoch_order(corpus.mixture, corpus.counts)
    chosen = []
    for k in range(len(corpus.mixture.sources)):
        chosen.append(order[(order >= corpus.starts[k]) & (order < corpus.starts[k + 1])][:each])
    corpus.fetch(np.concatenate(chosen))
    for source, inside in zip(corpus.mixture.sources, chosen, strict=True):
        yield f'<h3>{escape(source.name)}</h3>'
        yield cards(_card(corpus.record(index)) for index in inside)


def _card(record):
    """Return the card of a record: its pictures, its id and its turns."""
    pictures = ''.join(map(_picture, record.talk.images))
    turns = terms((turn.role, cut(turn.text, TEXT_LENGTH)) for turn in record.talk.turns)
    return card(pictures, record.id, f'<dl>{turns}</dl>')


def _picture(data):
    """Return a picture inside the page, or words where it is large or no browser shows it."""
    kind = next((kind for start, kind in FORMATS.items() if data.startswith(start)), None)
    if kind is None or len(data) > PICTURE_BYTES:
        return f'<span class="soft">picture of {len(data):,} bytes left out</span>'
    return f'<img alt="" src="{picture_address(data, kind)}">'

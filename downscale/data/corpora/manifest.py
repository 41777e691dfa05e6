"""The manifest of a build: which records came from where, what they take, what was left out."""
import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from downscale.data.corpora.build_settings import Settings
from downscale.data.corpora.mixture import Mixture, epoch_order, key_of, per_epoch
from downscale.runtime.files import write_bytes, write_json

SHOWN = 20  # rejected rows that the manifest names; `rejected.jsonl` names all


def write_manifest(to: Path, mixture: Mixture, settings: Settings,
                   sources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Write the manifest and the rejected rows of a build into `to`, and return the manifest.

    `sources` holds, by name, how many `rows` a source has, the ids of its `doubled` ones, and the
    JSON of its `shards`.
    """
    counts = {}
    shards = []
    lines = []
    for name, source in sources.items():
        counts[name] = sum(shard['records'] for shard in source['shards'])
        shards += [shard for shard in source['shards'] if shard['records']]
        for row_id, reason, detail in _rejected(source):
            line = {'source': name, 'id': row_id, 'reason': reason, 'detail': detail}
            lines.append(json.dumps(line, ensure_ascii=False) + '\n')
    write_bytes(to / 'rejected.jsonl', ''.join(lines).encode())
    order = epoch_order(mixture, counts)
    epoch = {'conversations': len(order), 'sources': per_epoch(mixture, counts),
             'order': hashlib.sha256(order.tobytes()).hexdigest()[:32]}
    facts = {source.name: _facts(source, sources[source.name], to, settings)
             for source in mixture.sources}
    value = {'mixture': mixture_json(mixture), 'hash': _hash_of(shards),
             'encoder': encoder_key(mixture, settings), 'length': settings.length,
             'sources': facts, 'epoch': epoch, 'shards': list(map(_listed, shards))}
    write_json(to / 'manifest.json', value)
    return value


def _facts(source, made, to, settings):
    """Return what the manifest says of a source, of which `made` is what the build made."""
    shards = made['shards']
    rejected = _rejected(made)
    costs = np.concatenate([np.load(to / shard['costs']) for shard in shards])
    subset = 'all rows' if source.take is None else \
        f'the first {source.take:,} usable rows of a permutation by seed {source.seed}'
    tokens = _token_statistics(costs) if settings.tokenizer else None
    reasons = Counter(reason for _, reason, _ in rejected)
    totals = Counter()
    aside = Counter()
    for shard in shards:
        totals.update({name: shard[name] for name in ('pictures', 'blank', 'bytes')})
        # A column that was always empty stays, with 0.
        aside.update(shard['aside'])
    counted = {
        'rows': made['rows'], 'accepted': len(costs), 'pictures': totals['pictures'],
        'without_picture': totals['blank'], 'left_out': dict(sorted(aside.items())),
        'rejected': dict(sorted(reasons.items())), 'rejected_first': rejected[:SHOWN]}
    return counted | {
        'licence': source.licence, 'obtain': source.obtain, 'subset': subset,
        'bytes': totals['bytes'], 'hash': _hash_of(shards), 'tokens': tokens}


def _hash_of(shards):
    """Return a hash of every record of these shards, in order, made of the hash of each shard."""
    hashes = ''.join(shard['hash'] for shard in shards)
    return hashlib.sha256(hashes.encode()).hexdigest()[:32]


def _listed(shard):
    """Return what the manifest lists of a shard."""
    return {name: shard[name] for name in ('file', 'costs', 'source', 'records', 'bytes', 'hash')}


def encoder_key(mixture: Mixture, settings: Settings) -> str:
    """Return the short name of the encoder that counts the tokens of a build, '' without one."""
    encoder = settings.encoder(mixture.stage)
    return '' if encoder is None else key_of(encoder)


def mixture_json(mixture: Mixture) -> dict[str, Any]:
    """Return the mixture as JSON.

    What most sources leave out is not written: older folders had none of it, and stay equal.
    """
    # Through JSON, so that it equals what is read from a file: lists, not tuples.
    value = json.loads(json.dumps(dataclasses.asdict(mixture)))
    for source in value['sources']:
        for name in ('ignore', 'text_rows'):
            if not source[name]:
                del source[name]
    return value


def _rejected(made):
    """Return [id, reason, detail] of every rejected row of a source."""
    rows = [[name, 'duplicate', f'another row of id {name!r} is equal']
            for name in made['doubled']]
    for shard in made['shards']:
        rows += shard['rejected']
    return rows


def _token_statistics(costs):
    """Return sum, mean and quantiles of the tokens of a source: text, image and supervised."""
    tokens, _, of_pictures, learnt = costs.T.astype(np.int64)
    columns = {'text': tokens - of_pictures, 'image': of_pictures, 'supervised': learnt,
               'all': tokens}
    return {name: _statistics(column) for name, column in columns.items()}


def _statistics(column):
    return {'sum': int(column.sum()), 'mean': round(float(column.mean()), 1),
            'median': float(np.median(column)), 'p95': float(np.quantile(column, 0.95)),
            'max': int(column.max())}

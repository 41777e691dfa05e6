"""Is a study fit to be analysed? Its schemas, pairing, unfinished runs and endings of answers."""
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downscale.analysis import absent, claims, costs, measures
from downscale.analysis.completeness import LIMIT, completion
from downscale.results.endings import FAULTS
from downscale.results.items import TableError, read_items, read_texts
from downscale.results.probes import SCHEMAS
from downscale.results.probes import read as read_probes
from downscale.results.study import load_study, pair
from downscale.results.study_file import read_object, study_errors


def validate(root: Path) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """Return (errors, notes, rates): lines of text, and a dict per way of answering.

    Errors break a schema or a pairing and make numbers wrong or impossible; notes are runs that
    failed and shares above the limit. Every file is looked at, also after a first error.
    """
    errors = [*_meta_errors(root), *_table_errors(root)]
    if errors:
        return errors, [], []
    try:
        study = load_study(root)
    except TableError as error:
        return [str(error)], [], []
    if 'claims' in study.meta:
        try:
            claims.read(study.meta['claims'])
        except ValueError as error:
            errors.append(f'study.json: {error}')
    errors += _pairing_errors(study)
    notes = [f'{one["run_id"]}/{one["stage"]}: {one["reason"]}' for one in study.unfinished]
    if not len(study.items['score']):
        notes.append('no evaluation has items')
    s = measures.scored(study, 2)
    try:
        gone = absent.absent(s)
        costs.stages_of(s)
    except TableError as error:
        gone = []
        errors = [*errors, str(error)]
    notes += [f'missing: {name}: {what}' for name, what in gone]
    rates, more = _rates(s)
    return errors, [*notes, *study.notes, *more], rates


def _meta_errors(root):
    path = root / 'study.json'
    try:
        meta = read_object(path)
    except TableError as error:
        return [str(error)]
    return [f'{root}: no study.json, so this is no study folder'] if meta is None \
        else list(study_errors(path, meta))


def _table_errors(root):
    for name, read in (('items', read_items), ('texts', read_texts)):
        for path in sorted(root.glob(f'evaluations/*/{name}.parquet')):
            try:
                read(path, Counter())
            except TableError as error:
                yield str(error)
    for name in SCHEMAS:
        try:
            if (root / f'{name}.parquet').is_file():
                read_probes(root, name)
        except TableError as error:
            yield str(error)


def _pairing_errors(study):
    """Yield cells whose items are not those of the first of their kind: joint, or with a
    reasoner.
    """
    for decoupled in (False, True):
        cells = sorted(cell for cell in study.cells if bool(cell.r_run) == decoupled)
        for cell in cells[1:]:
            try:
                pair(study, [cells[:1], [cell]])
            except TableError as error:
                yield str(error)


def _rates(s):
    """Return (a dict per cell: who, answers and shares of bad endings, lines on what is above the
    limit).
    """
    s = measures.with_apart(s)
    rows = []
    notes = []
    for cell in sorted(s.study.cells):
        _, ended = completion(s, [cell])
        who = ' '.join(filter(None, (cell.p_run, cell.r_run and f'-> {cell.r_run}', cell.text_kind,
                                     'think' if cell.thinking else 'direct', cell.condition)))
        rows.append({'who': who, 'answers': ended.answers,
                     **{kind: getattr(ended, kind) for kind in FAULTS}})
        for kind in FAULTS:
            over = {task: kinds[kind] for task, kinds in ended.over.items() if kind in kinds}
            if over:
                worst = max(over, key=over.get)
                notes.append(f'{who}: {kind} over {LIMIT:.0%} in {len(over)} families, most in '
                             f'{worst} ({over[worst]:.1%})')
    return rows, notes


def lines(errors: Sequence[str], notes: Sequence[str],
          rates: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the findings as lines of text: errors, notes, then shares over all answers."""
    yield from (f'error: {line}' for line in errors)
    yield from (f'note: {line}' for line in notes)
    if rates:
        answers = np.array([row['answers'] for row in rates])
        shares = ', '.join(f'{np.average([row[kind] or 0 for row in rates], weights=answers):.2%} '
                           f'{kind}' for kind in FAULTS)
        yield f'{len(rates)} groups of answers, {answers.sum():,} answers: {shares}'
    yield f'{len(errors)} errors, {len(notes)} notes'

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
    # Tables that break their schema cannot be loaded, and what follows would only repeat them.
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
    notes = [f'{stage["run_id"]}/{stage["stage"]}: {stage["reason"]}'
             for stage in study.unfinished]
    if not len(study.items['score']):
        notes.append('no evaluation has items')
    s = measures.scored(study, 2)   # shares need no draws
    missing = []
    # Both read the experiment.json of stages, which nothing above has opened.
    try:
        missing = absent.absent(s)
        costs.stages_of(s)
    except TableError as error:
        missing = []
        errors.append(str(error))
    notes += [f'missing: {name}: {what}' for name, what in missing]
    rates, over = _rates(s)
    return errors, [*notes, *study.notes, *over], rates


def _meta_errors(root):
    """Return what is wrong with study.json."""
    path = root / 'study.json'
    try:
        meta = read_object(path)
    except TableError as error:
        return [str(error)]
    if meta is None:
        return [f'{root}: no study.json, so this is no study folder']
    return list(study_errors(path, meta))


def _table_errors(root):
    """Yield the first fault of each table."""
    for name, read in (('items', read_items), ('texts', read_texts)):
        for path in sorted(root.glob(f'evaluations/*/{name}.parquet')):
            # One error a table: its reader stops at the first, and the next table is read on.
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
    """Yield what is wrong with cells whose items are not those of the first cell of their kind.

    Joint cells are one kind, those with a reasoner another, with the question hidden a third.
    """
    kinds = [(study, [cell for cell in study.cells if bool(cell.r_run) == decoupled])
             for decoupled in (False, True)]
    if study.hidden is not None:
        kinds.append((study.hidden, list(study.hidden.cells)))
    for of, cells in kinds:
        cells = sorted(cells)
        # Cells that each have the items of the first have those of one another.
        for cell in cells[1:]:
            try:
                pair(of, [cells[:1], [cell]])
            except TableError as error:
                yield str(error)


def _rates(s):
    """Return (rows, lines): how the answers of each cell ended, and what is above the limit.

    A row has who answered, how many answers there are, and the share of each bad ending.
    """
    # Runs that are in no number of sizes may have unfinished answers as well.
    s = measures.with_apart(s)
    rows = []
    over = []
    for cell in sorted(s.study.cells):
        _, ended = completion(s, [cell])
        mode = 'think' if cell.thinking else 'direct'
        reasoner = f'-> {cell.r_run}' if cell.r_run else ''
        who = ' '.join(filter(None, (cell.p_run, reasoner, cell.text_kind, mode, cell.condition)))
        rows.append({'who': who, 'answers': ended.answers,
                     **{kind: getattr(ended, kind) for kind in FAULTS}})
        for kind in FAULTS:
            shares = {task: kinds[kind] for task, kinds in ended.over.items() if kind in kinds}
            if shares:
                worst = max(shares, key=shares.get)
                over.append(f'{who}: {kind} over {LIMIT:.0%} in {len(shares)} families, most in '
                            f'{worst} ({shares[worst]:.1%})')
    return rows, over


def lines(errors: Sequence[str], notes: Sequence[str],
          rates: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the findings as lines of text: errors, notes, then shares over all answers."""
    yield from (f'error: {line}' for line in errors)
    yield from (f'note: {line}' for line in notes)
    if rates:
        # Weighed by answers: this line is about all of them, not about the mean group.
        answers = np.array([row['answers'] for row in rates])
        shares = []
        for kind in FAULTS:
            of_kind = [row[kind] or 0 for row in rates]   # None: no thought was asked for
            shares.append(f'{np.average(of_kind, weights=answers):.2%} {kind}')
        yield f'{len(rates)} groups of answers, {answers.sum():,} answers: {", ".join(shares)}'
    yield f'{len(errors)} errors, {len(notes)} notes'

"""The cells of a perception x reasoner grid: accuracy, what stands beside it, and a table."""
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from downscale.evaluate.runs import ChainModel
from downscale.evaluate.scoring.sample_files import read_samples
from downscale.output.plain import plain
from downscale.output.text import aligned
from downscale.results.endings import FAULTS, completed, faults
from downscale.statistics.bootstrap import mean_ci

if TYPE_CHECKING:
    from downscale.evaluate.chain_steps import Written
    from downscale.evaluate.extract_think import Chain


def information_name(informer: ChainModel) -> str:
    """Return the name of the samples that say what to look at."""
    return f'information-{informer.name}'


def description_name(perception: ChainModel) -> str:
    """Return the name of the samples of one perception model."""
    return f'describe-{perception.name}'


def file_name(perception: ChainModel, reasoner: ChainModel, mode: str) -> str:
    """Return the name of the samples of one cell."""
    return f'answer-{reasoner.name}-from-{perception.name}-{mode}'


def joint_name(run: ChainModel) -> str:
    """Return the name of the samples of one model that sees the pictures and answers by itself."""
    return f'answer-{run.name}-joint'


def summary(chain: 'Chain', written: 'Written') -> list[dict[str, Any]]:
    """Return one dict per cell of a finished chain; `written` holds the descriptions."""
    cells = []
    for perception in chain.perceptions:
        descriptions = written[description_name(perception)].values()
        cut = np.mean([record['truncated'] for record in descriptions])
        for reasoner in chain.reasoners:
            for mode in chain.plan.reason:
                path = Path(chain.out) / f'{file_name(perception, reasoner, mode)}.jsonl'
                cells.append({'perception': perception.name, 'reasoner': reasoner.name,
                              'mode': mode, **measured(read_samples(path)),
                              'descriptions_truncated': float(cut)})
    return cells


def measured(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return accuracy with its interval over clusters, shares of faults, accuracy on the rest.

    Rows without a right answer in the data count in the shares only. A row is completed when it
    was not cut off, held an answer, and closed its thought. Numbers that do not exist are None.
    Several replies to a question count as one, with their mean score; `replies` then counts all.
    """
    # Shares are over all rows; accuracy is over those with a right answer in the data.
    flags = faults([row['truncated'] for row in rows], [row['parse_ok'] for row in rows],
                   [row['close'] for row in rows])
    judged = [row for row in rows if row['score'] is not None]
    scored = _of_questions(judged)
    done = _of_questions([row for row, whole in zip(rows, completed(flags))
                          if whole and row['score'] is not None])
    asked = {row['doc_id'] for row in rows}
    cell = {'n': len(asked), 'scored': len(scored), 'accuracy': None, 'low': None, 'high': None,
            'clusters': 0, 'method': 'none'}
    # The replies to a question are no further questions: n and the interval count it once.
    if len(asked) < len(rows):
        cell['replies'] = len(rows)
    if scored:
        mean = mean_ci([row['score'] for row in scored],
                       [row['doc']['cluster'] for row in scored], bounds=(0, 1))
        cell |= {'accuracy': mean.value, 'low': plain(mean.low), 'high': plain(mean.high),
                 'clusters': mean.clusters, 'method': mean.method}
    cell |= {name: float(np.mean(flags[name])) for name in FAULTS}
    cell['completed'] = len(done)
    cell['accuracy_completed'] = _mean_score(done) if done else None
    families = {}
    for row in scored:
        families.setdefault(row['doc']['family'], []).append(row)
    cell['families'] = {name: {'n': len(of_one), 'accuracy': _mean_score(of_one)}
                        for name, of_one in sorted(families.items())}
    return cell


def _mean_score(rows):
    return float(np.mean([row['score'] for row in rows]))


def _of_questions(rows):
    """Return a row for each question, with the mean score of its replies."""
    scores = {}
    for row in rows:
        scores.setdefault(row['doc_id'], []).append(row['score'])
    # Read from the end, so that the first row of a question is what stays.
    first = {row['doc_id']: row for row in reversed(rows)}
    return [{**first[name], 'score': float(np.mean(part))} for name, part in scores.items()]


def table(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a short table for a person, with what its columns mean."""
    names = ('perception', 'reasoner', 'mode')
    rows = [[*names, 'n', 'accuracy', '95 %', *FAULTS, 'completed']]
    rows += [_table_row(cell, names) for cell in cells]
    yield from aligned(rows, left=range(len(names)))
    if any(cell['scored'] < cell['n'] for cell in cells):
        yield 'n: rows whose right answer is in the data, of all'
    several = {cell['replies'] // cell['n'] for cell in cells if 'replies' in cell}
    if several:
        yield f'n: questions; the score of one is the mean over {max(several)} replies'
    yield ('truncated: cut off at a limit; unparsed: no answer to read; unclosed: the thought '
           'never ended; completed: accuracy on the rest')
    cut = {cell['perception']: cell['descriptions_truncated'] for cell in cells}
    for name, share in cut.items():
        if share:
            yield (f'{100 * share:.1f} % of the descriptions of {name} were cut off; give more '
                   '--describe-tokens')


def _table_row(cell, names):
    reach = '' if cell['low'] is None else f'{cell["low"]:.3f}-{cell["high"]:.3f}'
    known = '' if cell['scored'] == cell['n'] else f'{cell["scored"]} of '
    return [*(cell[name] for name in names), f'{known}{cell["n"]}', _shown(cell['accuracy']),
            reach, *(f'{100 * cell[name]:.1f} %' for name in FAULTS),
            _shown(cell['accuracy_completed'])]


def _shown(value):
    return '-' if value is None else f'{value:.3f}'

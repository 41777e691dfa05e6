"""The cells of a perception x reasoner grid: accuracy, what stands beside it, and a table."""
import numpy as np

from downscale.evaluate.scoring.sample_files import read_samples
from downscale.output.plain import plain
from downscale.output.text import aligned
from downscale.statistics.bootstrap import mean_ci

SHARES = ('truncated', 'unparsed', 'unclosed')


def file_name(perception, reasoner, mode):
    """Return the samples of one cell."""
    return f'answer-{reasoner.name}-from-{perception.name}-{mode}'


def joint_name(run):
    """Return the samples of one model that sees the pictures and answers by itself."""
    return f'answer-{run.name}-joint'


def summary(chain, told):
    """Return one dict per cell of a finished chain; `told` holds the descriptions by perception
    model.
    """
    found = []
    for perception in chain.perceptions:
        cut = np.mean([record['truncated'] for record in told[perception.name].values()])
        for reasoner in chain.reasoners:
            for mode in chain.plan.reason:
                rows = read_samples(
                    chain.out / f'{file_name(perception, reasoner, mode)}.jsonl')
                found.append({'perception': perception.name, 'reasoner': reasoner.name,
                              'mode': mode, **measured(rows),
                              'descriptions_truncated': float(cut)})
    return found


def measured(rows):
    """Return accuracy with its interval over clusters, shares of what went wrong, accuracy on the
    rest.

    Rows without a right answer in the data count in the shares only. A row is completed when it
    was not cut off, held an answer, and closed its thought. Numbers that do not exist are None.
    Several replies to a question count as one, with their mean score; `replies` then counts all.
    """
    judged = [row for row in rows if row['score'] is not None]
    scored = _of_questions(judged)
    completed = _of_questions([row for row in judged if not row['truncated'] and row['parse_ok']
                               and row['close'] != 'open'])
    asked = {row['doc_id'] for row in rows}
    found = {'n': len(asked), 'scored': len(scored), 'accuracy': None, 'low': None, 'high': None,
             'clusters': 0, 'method': 'none'}
    if len(asked) < len(rows):
        found['replies'] = len(rows)
    if scored:
        at = mean_ci([row['score'] for row in scored],
                     [row['doc']['cluster'] for row in scored], bounds=(0, 1))
        found |= {'accuracy': at.value, 'low': plain(at.low), 'high': plain(at.high),
                  'clusters': at.clusters, 'method': at.method}
    wrong = {'truncated': [row['truncated'] for row in rows],
             'unparsed': [not row['parse_ok'] for row in rows],
             'unclosed': [row['close'] == 'open' for row in rows]}
    families = {}
    for row in scored:
        families.setdefault(row['doc']['family'], []).append(row['score'])
    return {**found, **{name: float(np.mean(wrong[name])) for name in SHARES},
            'completed': len(completed),
            'accuracy_completed': float(np.mean([row['score'] for row in completed]))
            if completed else None,
            'families': {name: {'n': len(scores), 'accuracy': float(np.mean(scores))}
                         for name, scores in sorted(families.items())}}


def _of_questions(rows):
    """Return a row for each question, with the mean score of its replies."""
    scores = {}
    for row in rows:
        scores.setdefault(row['doc_id'], []).append(row['score'])
    first = {row['doc_id']: row for row in reversed(rows)}
    return [{**first[name], 'score': float(np.mean(part))} for name, part in scores.items()]


def table(cells):
    """Yield the lines of a short table for a person, with what its columns mean."""
    names = ('perception', 'reasoner', 'mode')
    rows = [[*names, 'n', 'accuracy', '95 %', *SHARES, 'completed']]
    for cell in cells:
        reach = '' if cell['low'] is None else f'{cell["low"]:.3f}-{cell["high"]:.3f}'
        known = '' if cell['scored'] == cell['n'] else f'{cell["scored"]} of '
        rows.append([*(cell[name] for name in names), f'{known}{cell["n"]}',
                     _shown(cell['accuracy']), reach,
                     *(f'{100 * cell[name]:.1f} %' for name in SHARES),
                     _shown(cell['accuracy_completed'])])
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


def _shown(value):
    return '-' if value is None else f'{value:.3f}'

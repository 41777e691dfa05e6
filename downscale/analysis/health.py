"""Counts, lengths and endings of answers and texts, one row per trained run, and constant answers.
"""
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from downscale.analysis.completeness import FaultShare, completion
from downscale.analysis.measures import Scored, joint_cells, of_run, one, with_apart
from downscale.statistics import bootstrap

ALIKE = .9         # a larger share of one answer is told
FEW_ANSWERS = 10   # of fewer nothing is told
NAMED = 3          # runs and families in a sentence


def health(s: Scored) -> list[dict[str, Any]]:
    """Return endings, accuracy, lengths and counts for every way of answering and size."""
    # With its place in front, so that sizes are sorted by parameters and not by name.
    home = {}
    for order, size in enumerate(s.sizes):
        home.update((run, (order, size.name)) for run in size.runs)
    groups = {}
    for cell in s.study.cells:
        key = (_way(cell), cell.condition, cell.text_kind, cell.thinking,
               *home[cell.r_run or cell.p_run])
        groups.setdefault(key, []).append(cell)
    return [_health_row(s, key, groups[key]) for key in sorted(groups)]


def _way(cell):
    """Return the way in which a cell answers: alone, as a pair, or from the true text."""
    if cell.condition == 'gold_text':
        return 'gold text'
    return 'decoupled' if cell.r_run else 'joint'


def _health_row(s, key, cells):
    """Return the row of the `cells` of one way of answering and size."""
    way, condition, text, thinking, _, size = key
    index = np.concatenate([s.study.cells[cell] for cell in cells])
    answers = {name: column[index] for name, column in s.study.items.items()}
    # NaN stands where the likelihood of the gold answer was not computed.
    nll = answers['nll_gold'][np.isfinite(answers['nll_gold'])]
    row = {
        'way': way, 'condition': condition, 'text': text,
        'mode': 'think' if thinking else 'direct', 'size': size,
        'answers': len(answers['score']), 'items': len(set(answers['item_id'])),
        'pictures': len(set(answers['cluster_id'])),
        'completion': completion(s, cells)[1]}
    # no fault, but many of them say that the budget of thought is short
    row['forced'] = float(np.mean(answers['close'] == 'forced')) if thinking else None
    row['mean_tokens'] = float(np.mean(answers['n_gen_tokens']))
    row['mean_think_tokens'] = float(np.mean(answers['n_think_tokens'])) if thinking else None
    row['nll_gold'] = float(nll.mean()) if len(nll) else None
    return row


def constant(s: Scored) -> list[dict[str, Any]]:
    """Return a row for each run and family in which it answers nearly all questions alike.

    It is asked with the picture and answers by itself. A family whose right answers are nearly all
    alike, or of few questions, is left out: there one answer can be the skill.
    """
    rows = []
    for size in s.sizes:
        for cell in joint_cells(s, size, 'image'):
            answers = {name: s.study.items[name][s.study.cells[cell]]
                       for name in ('task', 'pred', 'gold')}
            for task in sorted(set(answers['task'])):
                of_task = answers['task'] == task
                answer, share = _most_common(answers['pred'][of_task])
                _, truth = _most_common(answers['gold'][of_task])
                if of_task.sum() >= FEW_ANSWERS and share > ALIKE >= truth:
                    rows.append({'run_id': cell.p_run, 'size': size.name, 'family': task,
                                 'answer': answer, 'share': share})
    return rows


def _most_common(texts):
    """Return the most common text, and its share."""
    (text, count), = Counter(texts.tolist()).most_common(1)
    return text, count / len(texts)


def constant_sentence(rows: Sequence[dict[str, Any]]) -> str:
    """Return who answers nearly all questions of a family alike; the first few by name."""
    named = [f'{row["run_id"]} says “{row["answer"][:24]}” to {100 * row["share"]:.0f} % of '
             f'{row["family"]}' for row in rows[:NAMED]]
    more = f', and {len(rows) - NAMED} more of runs and families' if len(rows) > NAMED else ''
    return f'Answers that hardly vary: {"; ".join(named)}{more}.'


def texts(s: Scored) -> list[dict[str, Any]]:
    """Return truncation and length of what every perception run wrote."""
    columns = s.study.texts
    rows = []
    for run, kind in sorted(set(zip(columns['p_run'], columns['text_kind'], strict=True))):
        written = (columns['p_run'] == run) & (columns['text_kind'] == kind)
        rows.append({'p_run': run, 'text_kind': kind, 'texts': int(written.sum()),
                     'truncated': FaultShare(np.mean(columns['truncated'][written].astype(bool))),
                     'mean_tokens': float(np.mean(columns['n_tokens'][written]))})
    return rows


def runs(s: Scored) -> list[dict[str, Any]]:
    """Return one row per trained run with its own macro accuracy, so that seeds can be compared.

    Runs that a sweep has made are rows of their own.
    """
    s = with_apart(s)
    seeds = {}
    for run in s.study.meta['runs']:
        seeds.setdefault(run['run_id'], run['seed'])
    rows = []
    for size in s.sizes:
        for run in size.runs:
            cells = [cell for cell in joint_cells(s, size, 'image') if cell.p_run == run]
            score = None
            ended = None
            if cells:
                # A run has one cell at most of one condition and mode.
                means = of_run(s, cells[0])
                score = one(bootstrap.macro(means), 0, 0)
                _, ended = completion(s, cells, means)
            rows.append({'run_id': run, 'size': size.name, 'seed': seeds[run],
                         'n_total': size.n_total, 'n_nonembed': size.n_nonembed,
                         'n_vision': size.n_vision, 'macro': score, 'completion': ended})
    return rows

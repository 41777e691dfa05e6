"""Counts, lengths and endings of answers and texts, and one row per trained run."""
from typing import Any

import numpy as np

from downscale.analysis.completeness import FaultShare, completion
from downscale.analysis.measures import Scored, joint_cells, of_run, one, with_apart
from downscale.statistics import bootstrap


def health(s: Scored) -> list[dict[str, Any]]:
    """Return endings, accuracy, lengths and counts for every way of answering and size."""
    home = {run: (order, size.name) for order, size in enumerate(s.sizes) for run in size.runs}
    groups = {}
    for cell in s.study.cells:
        way = 'gold text' if cell.condition == 'gold_text' else \
            'decoupled' if cell.r_run else 'joint'
        order, name = home[cell.r_run or cell.p_run]
        key = (way, cell.condition, cell.text_kind, cell.thinking, order, name)
        groups.setdefault(key, []).append(cell)
    rows = []
    for key in sorted(groups):
        index = np.concatenate([s.study.cells[cell] for cell in groups[key]])
        here = {name: column[index] for name, column in s.study.items.items()}
        nll = here['nll_gold'][np.isfinite(here['nll_gold'])]
        rows.append({
            'way': key[0], 'condition': key[1], 'text': key[2],
            'mode': 'think' if key[3] else 'direct', 'size': key[5],
            'answers': len(here['score']), 'items': len(set(here['item_id'])),
            'pictures': len(set(here['cluster_id'])),
            'completion': completion(s, groups[key])[1],
            # no fault, but many of them say that the budget of thought is short
            'forced': float(np.mean(here['close'] == 'forced')) if key[3] else None,
            'mean_tokens': float(np.mean(here['n_gen_tokens'])),
            'mean_think_tokens': float(np.mean(here['n_think_tokens'])) if key[3] else None,
            'nll_gold': float(nll.mean()) if len(nll) else None})
    return rows


def texts(s: Scored) -> list[dict[str, Any]]:
    """Return truncation and length of what every perception run wrote."""
    columns = s.study.texts
    rows = []
    for run, kind in sorted(set(zip(columns['p_run'], columns['text_kind'], strict=True))):
        here = (columns['p_run'] == run) & (columns['text_kind'] == kind)
        rows.append({'p_run': run, 'text_kind': kind, 'texts': int(here.sum()),
                     'truncated': FaultShare(np.mean(columns['truncated'][here].astype(bool))),
                     'mean_tokens': float(np.mean(columns['n_tokens'][here]))})
    return rows


def runs(s: Scored) -> list[dict[str, Any]]:
    """Return one row per trained run with its own macro accuracy, so that seeds can be compared,
    and what a sweep has changed.
    """
    s = with_apart(s)
    rows = []
    for size in s.sizes:
        for run in size.runs:
            cells = [cell for cell in joint_cells(s, size, 'image') if cell.p_run == run]
            score = ended = None
            if cells:
                means = of_run(s, cells[0])
                score, (_, ended) = one(bootstrap.macro(means), 0, 0), completion(s, cells, means)
            seed = next(r['seed'] for r in s.study.meta['runs'] if r['run_id'] == run)
            rows.append({'run_id': run, 'size': size.name, 'seed': seed,
                         'n_total': size.n_total, 'n_nonembed': size.n_nonembed,
                         'n_vision': size.n_vision, 'macro': score, 'completion': ended})
    return rows

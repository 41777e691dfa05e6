"""Ways to a small model, side by side: what each point answers right, against its bytes.

A way is how models came to their sizes: trained at it, pruned and healed, quantised. Bytes are what
the language model takes to store (`accounting.stored_bytes`).
"""
from dataclasses import replace
from typing import Any

from downscale.analysis import accuracy, measures
from downscale.analysis.contrasts import families_of, over
from downscale.analysis.measures import Missing, Scored

KINDS = ('visual', 'knowledge')


def has_ways(meta: dict[str, Any]) -> bool:
    """Return whether the runs of a study came to their sizes in more than one way."""
    return len({run.get('way', '') for run in meta['runs']}) > 1


def by_bytes(s: Scored) -> dict[str, Any]:
    """Return the accuracy of every point of every way: a dict of 'kinds', 'floor' and 'points'.

    'points' are dicts way, size, bytes, n_total, seeds, and 'accuracy' {kind of family: Interval};
    by way, and within one by bytes; 'floor' is {kind: accuracy of the best guess}. `Missing` unless
    two ways were asked with the picture.
    """
    groups = {}
    for run in s.study.meta['runs']:
        # What a point changes beside its size makes it another one.
        groups.setdefault((run.get('way', ''), run['size'], run.get('changes', '')), []).append(run)
    whole = s.whole or s.study
    kinds = {kind: tasks for kind, tasks in zip(KINDS, families_of(s), strict=True) if tasks}
    points = []
    for (way, size, changes), runs in groups.items():
        sizes = measures.sizes_among(whole.meta, {run['run_id'] for run in runs})
        of_runs = replace(s, study=whole, sizes=sizes)
        # In the whole study: runs of other ways are left out of the one that sizes are told by.
        cells = measures.joint_cells(of_runs, sizes[0], 'image')
        if not cells:
            continue
        answers = {}
        for kind, tasks in kinds.items():
            answers[kind] = over(of_runs, [cells], ((1,), tasks))
        point = {'way': way, 'size': f'{size} {changes}'.strip(), 'bytes': runs[0].get('bytes', 0)}
        points.append({**point, 'n_total': sizes[0].n_total, 'seeds': len(cells),
                       'accuracy': answers})
    ways = list(dict.fromkeys(point['way'] for point in points))
    if len(ways) < 2:
        raise Missing('no two ways to a small model were asked with the picture')
    # Lines are drawn through them in this order.
    points.sort(key=lambda point: (ways.index(point['way']), point['bytes'], point['size']))
    usual = accuracy.by_kind(s)['kinds']
    floor = {kind: usual[kind]['guesses']['floor'] for kind in kinds}
    return {'kinds': list(kinds), 'floor': floor, 'points': points}

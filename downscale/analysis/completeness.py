"""How many answers were cut off, unparsed or left in an open thought, and accuracy without them.

A low accuracy may come from answers that were never finished, so these shares stand beside every
accuracy of the report, with the accuracy on completed answers. A completed answer is not
truncated, was parsed, and closed its thought where it had one.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from downscale.results.endings import FAULTS, completed, faults
from downscale.results.study import Cell
from downscale.statistics import bootstrap

if TYPE_CHECKING:
    from downscale.analysis.measures import Scored

LIMIT = .05   # a larger share raises a warning


class FaultShare(float):
    """A share of answers that should be near zero."""

    @property
    def over(self) -> bool:
        """Whether it is above `LIMIT`; exactly at it is not (means of equal shares may round)."""
        return self > LIMIT + 1e-9


@dataclass(frozen=True, kw_only=True)
class Completion:
    """How the answers behind one accuracy ended; `unclosed` is None where no thought was asked for.

    `accuracy` is over all answers and `completed` over completed ones (None without any). `over`
    maps each family in which a share is above `LIMIT` to {kind: share}.
    """
    truncated: FaultShare
    unparsed: FaultShare
    unclosed: FaultShare | None
    accuracy: bootstrap.Interval
    completed: bootstrap.Interval | None
    answers: int
    n_completed: int
    over: dict


def completion(s: 'Scored', cells: Sequence[Cell],
               means: bootstrap.Means | None = None) -> tuple[dict[str, Completion], Completion]:
    """Return ({family: Completion}, Completion of the macro mean over families) of these cells.

    The accuracy is that of `means` (a row; by default over seeds as in every other table). Cells
    (seeds) and the repeats of an item weigh as in it; a mean over families counts each family
    alike. Accuracy on completed answers is a ratio of sums over pictures, and where all are
    completed the accuracy itself.
    """
    from downscale.analysis.measures import means_of, one  # they stand on this page
    means = bootstrap.with_macro(means_of(s, [cells])[1] if means is None else means)
    accuracy = {task: one(means, 0, column) for column, task in enumerate(means.groups)}
    rows, weights = _weighed(s, cells)
    items = {name: s.study.items[name][rows] for name in ('score', 'truncated', 'parse_ok',
                                                          'close')}
    ended = faults(items['truncated'], items['parse_ok'], items['close'])
    done = completed(ended)
    thinking = any(cell.thinking for cell in cells)
    parts = {}
    codes, first, place = np.unique(s.study.codes['task'][rows], return_index=True,
                                    return_inverse=True)
    finished = _means(s, rows, place, weights * done, items['score'], done.astype(float))
    whole = np.bincount(place, weights)
    for column, task in enumerate(s.study.items['task'][rows[first]]):
        shares = {kind: FaultShare(np.bincount(place, weights * flags)[column] / whole[column])
                  for kind, flags in ended.items() if thinking or kind != 'unclosed'}
        here = place == column
        parts[task] = (shares, finished[column], int(here.sum()), int((here & done).sum()))
    return ({task: _completion({task: part}, accuracy[task]) for task, part in parts.items()},
            _completion(parts, accuracy['macro']))


def _weighed(s, cells):
    """Return rows of the cells, and weights under which every item of a cell counts once."""
    rows = []
    weights = []
    for cell in cells:
        index = s.study.cells[cell]
        _, place, repeats = np.unique(s.study.codes['item_id'][index], return_inverse=True,
                                      return_counts=True)
        rows.append(index)
        weights.append(1 / repeats[place])
    return np.concatenate(rows), np.concatenate(weights)


def _means(s, rows, place, weights, score, kept):
    """Return (mean score of the kept rows, its draws, items, clusters) of each group; NaN where
    none is.

    `place` [rows] is the group of each row. The ranks of clusters are the columns of resamples.
    """
    groups = place.max() + 1
    clusters = len(s.resamples.clusters)
    key = s.study.codes['cluster_id'][rows] * groups + place
    top, bottom, seen = (np.bincount(key, values, clusters * groups).reshape(clusters, groups)
                         for values in (weights * score, weights, kept))
    drawn = s.resamples.weights @ np.concatenate([top, bottom], axis=1)
    with np.errstate(invalid='ignore'):
        value = top.sum(axis=0) / bottom.sum(axis=0)
        draws = drawn[:, :groups] / drawn[:, groups:]
    item = np.unique(s.study.codes['item_id'][rows[kept > 0]] * groups + place[kept > 0])
    items = np.bincount(item % groups, minlength=groups)
    return list(zip(value, draws.T, items, np.count_nonzero(seen, axis=0), strict=True))


def _completion(parts, accuracy):
    """Return one `Completion` of the plain mean over the families in `parts`."""
    shares, dones, answers, completed = zip(*parts.values(), strict=True)
    all_done = sum(answers) == sum(completed)
    means = {kind: FaultShare(np.mean([share[kind] for share in shares])) for kind in shares[0]}
    over = {task: {kind: share for kind, share in part[0].items() if share.over}
            for task, part in parts.items()}
    return Completion(
        truncated=means['truncated'],
        unparsed=means['unparsed'],
        unclosed=means.get('unclosed'),
        accuracy=accuracy,
        completed=accuracy if all_done else _interval(dones),
        answers=sum(answers),
        n_completed=sum(completed),
        over={task: kinds for task, kinds in over.items() if kinds},
    )


def _interval(means):
    """Return the mean of family means; None when a family has no answer left to take a mean of."""
    values, draws, items, clusters = zip(*means, strict=True)
    if not all(np.isfinite(values)):
        return None
    return bootstrap.interval(np.mean(values), np.mean(draws, axis=0), sum(items), min(clusters),
                              bounds=(0, 1))


def _printed(results):
    """Yield (part, place, {family: {kind: share above the limit}}) of every share that is
    printed.
    """
    for modes in results['gate']['families'].values():
        yield from (('gate', mode, row['completion'].over) for mode, row in modes.items())
    for row in results.get('accuracy', {'families': {}})['families'].values():
        yield from (('accuracy', size, x.over) for size, x in row['completion'].items())
    for name, panel in results.get('grid', {}).items():
        for cell in panel['cells']:
            yield 'grid', f'{name}, {cell["p"]} with {cell["r"]}', cell['completion'].over
    for row in results.get('runs', ()):
        if row['completion'] is not None:
            yield 'runs', row['run_id'], row['completion'].over
    for row in results['health']:
        # only the joint way has several conditions, and only the others have a text
        names = ('way', 'condition' if row['way'] == 'joint' else 'text', 'mode', 'size')
        yield 'health', ', '.join(row[name] for name in names), row['completion'].over
    for row in results['texts']:
        share = row['truncated']
        yield ('texts', f'{row["text_kind"]} of {row["p_run"]}',
               {'': {'truncated': share}} if share.over else {})


def warnings(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return {part: one dict per kind of share that is above the limit anywhere in that part}.

    `groups` of `of` groups of answers are above it in some family; `worst` names the highest.
    """
    of = {}
    hits = {}
    for part, place, over in _printed(results):
        of[part] = of.get(part, 0) + 1
        for kind in FAULTS:
            found = [(share[kind], ', '.join(filter(None, (place, task))))
                     for task, share in over.items() if kind in share]
            if found:
                hits.setdefault(part, {}).setdefault(kind, []).append(max(found, key=_share))
    return {part: [{'kind': kind, 'groups': len(found), 'of': of[part],
                    'share': max(found, key=_share)[0], 'worst': max(found, key=_share)[1]}
                   for kind, found in kinds.items()] for part, kinds in hits.items()}


def _share(hit):
    return hit[0]   # so that the first of equal ones is named


def sentence(found: Iterable[dict[str, Any]]) -> str:
    """Return the warnings of one part as a sentence."""
    return '; '.join(f'{x["kind"]} in {x["groups"]} of {x["of"]} groups, most in '
                     f'{x["worst"]} ({100 * x["share"]:.1f} %)' for x in found)

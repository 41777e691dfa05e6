"""How many answers were cut off, unparsed or left in an open thought, and accuracy without them.

A low accuracy may come from answers that were never finished, so these shares stand beside every
accuracy of the report, with the accuracy on completed answers. A completed answer is not
truncated, was parsed, and closed its thought where it had one.
"""
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from downscale.analysis.measures import Scored, means_of, one
from downscale.results.endings import FAULTS, completed, faults
from downscale.results.study import Cell
from downscale.statistics import bootstrap

LIMIT = .05   # a larger share raises a warning
NAMED = 3     # groups of answers that a warning names


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


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """How the answers of one family ended: {kind: share}, and what the completed ones score.

    `value` and `draws` [B] are mean scores of completed answers, NaN where there is none; `items`
    and `clusters` are those that have one.
    """
    shares: dict
    value: float
    draws: np.ndarray
    items: int
    clusters: int
    answers: int
    completed: int


def completion(s: Scored, cells: Sequence[Cell],
               means: bootstrap.Means | None = None) -> tuple[dict[str, Completion], Completion]:
    """Return ({family: Completion}, Completion of the macro mean over families) of these cells.

    The accuracy is that of `means` (a row; by default over seeds as in every other table). Cells
    (seeds) and the repeats of an item weigh as in it; a mean over families counts each family
    alike. Accuracy on completed answers is a ratio of sums over pictures, and where all are
    completed the accuracy itself.
    """
    if means is None:
        _, means = means_of(s, [cells])
    means = bootstrap.with_macro(means)
    accuracy = {task: one(means, 0, column) for column, task in enumerate(means.groups)}
    endings = _endings(s, cells)
    return ({task: _completion({task: ending}, accuracy[task]) for task, ending in endings.items()},
            _completion(endings, accuracy['macro']))


def _endings(s, cells):
    """Return {family: _Ending} of the answers of these cells."""
    rows, weights = _weighed(s, cells)
    items = {name: s.study.items[name][rows] for name in ('score', 'truncated', 'parse_ok',
                                                          'close')}
    ended = faults(items['truncated'], items['parse_ok'], items['close'])
    done = completed(ended)
    # A cell with thoughts among them is enough: the answers of the others are closed in any case.
    if not any(cell.thinking for cell in cells):
        del ended['unclosed']   # no thought was asked for
    _, first, place = np.unique(s.study.codes['task'][rows], return_index=True,
                                return_inverse=True)
    whole = np.bincount(place, weights)
    sums = {kind: np.bincount(place, weights * flags) for kind, flags in ended.items()}
    finished = _means(s, rows, place, weights * done, items['score'], done.astype(float))
    endings = {}
    for column, task in enumerate(s.study.items['task'][rows[first]]):
        value, draws, count, clusters = finished[column]
        shares = {kind: FaultShare(of_kind[column] / whole[column])
                  for kind, of_kind in sums.items()}
        of_task = place == column
        endings[task] = _Ending(shares=shares, value=value, draws=draws, items=count,
                                clusters=clusters, answers=int(of_task.sum()),
                                completed=int((of_task & done).sum()))
    return endings


def _weighed(s, cells):
    """Return rows of the cells, and weights under which every item of a cell counts once."""
    rows = []
    weights = []
    for cell in cells:
        index = s.study.cells[cell]
        _, place, repeats = np.unique(s.study.codes['item_id'][index], return_inverse=True,
                                      return_counts=True)
        rows.append(index)
        weights.append(1 / repeats[place])   # repeats of an item together count once
    return np.concatenate(rows), np.concatenate(weights)


def _means(s, rows, place, weights, score, kept):
    """Return (mean score of the kept rows, its draws, items, clusters) of each group of rows.

    `place` [rows] is the group of each row. A group without kept rows has NaN.
    """
    groups = place.max() + 1
    clusters = len(s.resamples.clusters)
    # Cluster and group as one number, so that one count sums over both.
    key = s.study.codes['cluster_id'][rows] * groups + place

    def by_cluster(values):
        """Return the sums [clusters, groups]; ranks of clusters are the columns of resamples."""
        return np.bincount(key, values, clusters * groups).reshape(clusters, groups)
    top = by_cluster(weights * score)
    bottom = by_cluster(weights)
    drawn = s.resamples.weights @ np.concatenate([top, bottom], axis=1)
    # A ratio of sums, redrawn as one: a picture with more completed answers weighs more.
    with np.errstate(invalid='ignore'):
        value = top.sum(axis=0) / bottom.sum(axis=0)
        draws = drawn[:, :groups] / drawn[:, groups:]
    # An item that several seeds answered is one item.
    item = np.unique(s.study.codes['item_id'][rows[kept > 0]] * groups + place[kept > 0])
    items = np.bincount(item % groups, minlength=groups)
    seen = np.count_nonzero(by_cluster(kept), axis=0)
    return list(zip(value, draws.T, items, seen, strict=True))


def _completion(endings, accuracy):
    """Return one `Completion` of the plain mean over the families in `endings`."""
    parts = list(endings.values())
    answers = sum(part.answers for part in parts)
    completed = sum(part.completed for part in parts)
    shares = {}
    for kind in parts[0].shares:
        # Families weigh alike, as in the accuracy beside it.
        shares[kind] = FaultShare(np.mean([part.shares[kind] for part in parts]))
    over = {}
    for task, part in endings.items():
        kinds = {kind: share for kind, share in part.shares.items() if share.over}
        if kinds:
            over[task] = kinds
    return Completion(
        truncated=shares['truncated'],
        unparsed=shares['unparsed'],
        unclosed=shares.get('unclosed'),
        accuracy=accuracy,
        # Where nothing is left out it is the accuracy, whose interval may cover seeds as well.
        completed=accuracy if completed == answers else _interval(parts),
        answers=answers,
        n_completed=completed,
        over=over,
    )


def _interval(parts):
    """Return the mean of family means; None when a family has no answer left to take a mean of."""
    values = [part.value for part in parts]
    if not all(np.isfinite(values)):
        return None
    # These draws are over pictures, so that this interval never covers seeds.
    return bootstrap.interval(
        np.mean(values), np.mean([part.draws for part in parts], axis=0),
        sum(part.items for part in parts), min(part.clusters for part in parts), bounds=(0, 1))


def _printed(results):
    """Yield (part, place, {family: {kind: share above the limit}}) of every printed share."""
    for modes in results['gate']['families'].values():
        for mode, row in modes.items():
            yield 'gate', mode, row['completion'].over
    for row in results.get('accuracy', {'families': {}})['families'].values():
        for size, x in row['completion'].items():
            yield 'accuracy', size, x.over
    for name, panel in results.get('grid', {}).items():
        for cell in panel['cells']:
            yield 'grid', f'{name}, {cell["p"]} with {cell["r"]}', cell['completion'].over
    for row in results.get('runs', ()):
        if row['completion'] is not None:
            yield 'runs', row['run_id'], row['completion'].over
    for row in results['health']:
        # Only the joint way has several conditions, and only the others have a text.
        names = ('way', 'condition' if row['way'] == 'joint' else 'text', 'mode', 'size')
        yield 'health', ', '.join(row[name] for name in names), row['completion'].over
    for row in results['texts']:
        share = row['truncated']
        yield ('texts', f'{row["text_kind"]} of {row["p_run"]}',
               {'': {'truncated': share}} if share.over else {})


def warnings(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return {part: one dict per kind of share that is above the limit anywhere in that part}.

    `groups` of `of` groups of answers are above it in some family; `worst` names the highest, whose
    share is given, and `next` those that follow.
    """
    printed = Counter()
    hits = {}
    for part, place, over in _printed(results):
        printed[part] += 1
        for kind in FAULTS:
            shares = [(share[kind], ', '.join(filter(None, (place, task))))
                      for task, share in over.items() if kind in share]
            if shares:
                # A group of answers counts once, however many of its families are above the limit.
                hits.setdefault(part, {}).setdefault(kind, []).append(max(shares, key=_share))
    return {part: _warnings_of(kinds, printed[part]) for part, kinds in hits.items()}


def _warnings_of(kinds, of):
    """Return a warning for each kind of share, of {kind: (share, place) of each group above}."""
    rows = []
    for kind, groups in kinds.items():
        groups = sorted(groups, key=_share, reverse=True)
        share, worst = groups[0]
        rows.append({'kind': kind, 'groups': len(groups), 'of': of, 'share': share,
                     'worst': worst, 'next': [place for _, place in groups[1:NAMED]]})
    return rows


def most(groups: Sequence[dict[str, Any]]) -> str:
    """Return in how many groups of answers too many did not end, and how those were asked."""
    over = [row for row in groups if row['completion'].over]
    ways = dict.fromkeys(f'{row["way"]}, {row["condition"]}' for row in over)
    named = '; '.join(ways)
    return (f'In {len(over)} of {len(groups)} groups of answers ({named}) more than '
            f'{100 * LIMIT:.0f} % were cut off, unparsed or left open in some family.')


def _share(hit):
    return hit[0]   # so that the first of equal ones is named


def sentence(part: Iterable[dict[str, Any]]) -> str:
    """Return the warnings of one part as a sentence."""
    return '; '.join(f'{x["kind"]} in {x["groups"]} of {x["of"]} groups, most in {x["worst"]} '
                     f'({100 * x["share"]:.1f} %){_next(x["next"])}' for x in part)


def _next(places):
    """Return the groups behind the worst one."""
    return f', then in {" and in ".join(places)}' if places else ''

"""The loss ledger: from the picture to the answer, where small models lose against the largest.

Every column is a number an item: whether a probe reads the answer at a site, whether the largest
reasoner can answer from what this size wrote, and whether this size answers. Columns are other
instruments, so levels of two columns do not compare; what small loses against large in one column
does, and its change from column to column is where that happens.
"""
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from downscale.analysis import gate, measures
from downscale.analysis.measure_rows import Row
from downscale.analysis.measures import MODES, Missing, Scored
from downscale.results.items import TableError
from downscale.results.probes import NO_DEPTH, hits, read
from downscale.results.study import pair
from downscale.results.text_kinds import TEXT_KINDS
from downscale.statistics import bootstrap

FLOOR = 'question alone'
SITES = {FLOOR: ('question', NO_DEPTH), 'tower': ('vision', NO_DEPTH),
         'connector': ('connector', NO_DEPTH), 'middle of the LLM': ('image', 0.5),
         'answer position': ('answer', 1.0)}
WRITTEN = 'written'
ANSWERED = 'answered'
# What is lost between a column and the one before it.
STEPS = {'tower': 'tower', 'connector': 'connector', 'middle of the LLM': 'early LLM',
         'answer position': 'to the answer position', WRITTEN: 'known but not said',
         ANSWERED: 'said but not used'}
UNSAID = 'known but not used'  # the last step where nothing was written for a reader


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """`levels` {size: {column: {family or 'macro': Interval}}}, `losses` {size: {step: {...}}} of
    every size but the largest, whose steps add up to its 'total' in every family."""
    large: str
    levels: dict
    losses: dict
    notes: tuple


def of_study(s: Scored) -> Ledger:
    """Return the `Ledger` of a scored study whose folder holds its probes; `Missing` without
    them.
    """
    if not (s.study.root / 'probe_items.parquet').is_file():
        raise Missing('no probe_items.parquet; `downscale analyze probe` writes it')
    return ledger(s, read(s.study.root, 'probe_items'))


def ledger(s: Scored, table: pa.Table) -> Ledger:
    """Return the `Ledger` of a scored study and its `probe_items`; `Missing` or `TableError` with
    the reason where a size cannot be compared with another.
    """
    probed = set(table['run_id'].unique().to_pylist())
    groups = {}
    left_out = []
    for size in s.sizes:
        cells = measures.joint_cells(s, size, 'image')
        held = [cell for cell in cells if cell.p_run in probed]
        left_out += [cell.p_run for cell in cells if cell not in held]
        if held:
            groups[size] = held
    if len(groups) < 2:
        raise Missing(f'a ledger needs two sizes that were probed and answered with the picture, '
                      f'found {len(groups)}; run `downscale analyze probe {s.study.root}`')
    written, said = _written(s, groups)
    notes = [gate.gate(s)['line'], said, 'columns are other instruments: compare sizes within one, '
             'and losses from one to the next']
    if left_out:
        notes.append(f'runs without probes are left out: {", ".join(sorted(left_out))}')
    sizes, (parts, planned) = list(groups), _by_seed(s, groups, written)
    notes.append(f'intervals cover the choice of pictures{" and of seeds" * (len(parts) > 1)}')
    paired = pair(s.study, [cells for part in parts for of in part for cells in of.values()])
    probes = [_probes(table, answers, paired) for answers, _ in parts]
    keep = np.all([kept for _, kept in probes], axis=0)
    skipped = sorted(set(paired.task[~keep]))
    if skipped:
        notes.append(f'skipped: {", ".join(skipped)}: no probe at every site')
    if not keep.any():
        raise Missing('no family was probed at every site')
    columns = [*SITES, *([WRITTEN] if written else []), ANSWERED]
    scores = paired.scores.reshape(len(parts), -1, len(sizes), len(keep))  # answered, then written
    values = np.concatenate([[*found[size], *scores[part, ::-1, k]]
                             for part, (found, _) in enumerate(probes)
                             for k, size in enumerate(sizes)])
    means = bootstrap.with_macro(bootstrap.over_seeds(bootstrap.group_means(
        values[:, keep], paired.task[keep], paired.cluster_id[keep], s.resamples),
                len(parts), s.resamples, planned))
    unread = _unread(means, (len(sizes) - 1) * len(columns), columns)
    if unread:
        notes.append(f'what is lost before {" and ".join(unread)} cannot show: not even of '
                     f'{sizes[-1].name} do probes read more there than from the question alone')
    return Ledger(large=sizes[-1].name, levels=_levels(means, sizes, columns),
                  losses=_losses(means, sizes, columns), notes=tuple(notes))


def _written(s, groups):
    """Return ({size: cells of the fixed reader on this size's texts}, what it is or why there is
    none).

    The reader is the largest reasoner, of each seed its own, with the kind of text and the mode in
    which it reads gold texts best: that choice knows nothing of the sizes compared.
    """
    seed = {run['run_id']: run['seed'] for run in s.study.meta['runs']}
    best = None
    for kind in TEXT_KINDS:
        for mode, thinking in MODES.items():
            pairs = measures.pair_groups(s, kind, thinking)
            readers = [size.name for size in s.sizes if any(r == size.name for _, r in pairs)]
            runs = {cell.p_run for cells in groups.values() for cell in cells}
            own = {size: [cell for cell in pairs.get((size.name, readers[-1]), ())
                          if seed[cell.p_run] == seed[cell.r_run] and cell.p_run in runs]
                   for size in groups} if readers else {}
            gold = pairs.get(('gold', readers[-1])) if readers else None
            if gold and all(len(own[size]) == len(cells) for size, cells in groups.items()):
                x = measures.one(bootstrap.macro(measures.means_of(s, [gold])[1]), 0, 0)
                if best is None or x.value > best[0].value:
                    best = x, own, f'{readers[-1]} on {kind}, {mode}'
    if best is None:
        return {}, f'{WRITTEN}: skipped: no reasoner read gold texts and those of every size'
    x, own, name = best
    return own, (f'{WRITTEN}: what {name} answers from; on gold texts it is right in {x.value:.3f} '
                 f'[{x.low:.3f}, {x.high:.3f}] of the items (mean over families)')


def _by_seed(s, groups, written):
    """Return [(cells that answered, cells of the reader)] by size, for each seed that all sizes
    have, and how many were planned; once for all runs where fewer than `stats.FEW_SEEDS` were.
    """
    planned = measures.planned_seeds(s, [*groups.values(), *written.values()])
    sides = [{size: measures.by_seed(s, cells) for size, cells in side.items()}
             for side in (groups, written)]
    shared = set.intersection(*(set(found) for side in sides for found in side.values()))
    if not bootstrap.covers_seeds(len(shared), planned):
        return [(groups, written)], 1
    if not shared:
        raise Missing('no seed was probed and has answered at every size')
    return [tuple({size: found[seed] for size, found in side.items()} for side in sides)
            for seed in sorted(shared)], planned


def _probes(table, groups, paired):
    """Return ({size: [hits of each site]} in the order of `paired`, which items have all of them).

    `TableError` with counts where probes saw items that the study's table lacks.
    """
    found = {}
    keep = np.ones(len(paired.item_id), bool)
    for size, cells in groups.items():
        found[size] = []
        for site, depth in SITES.values():
            runs = []
            for cell in cells:
                held = hits(table, cell.p_run, site, depth)
                foreign = sorted(set(held) - set(paired.item_id))
                if foreign:
                    raise TableError(f'pairing: {cell.p_run} was probed on {len(foreign)} items '
                                     f'that it was not asked, first {foreign[:3]}; probe again')
                runs.append([held.get(item, np.nan) for item in paired.item_id])
            found[size].append(np.mean(runs, axis=0))
            keep &= np.isfinite(found[size][-1])
    # A family counts with all of its items or not at all.
    return found, ~np.isin(paired.task, paired.task[~keep])


def _unread(means, first, columns):
    """Return the probed columns of the largest size, whose rows begin at `first`, that are not
    clearly above its floor in the mean over families.
    """
    found = []
    macro = means.groups.index('macro')
    for column in SITES:
        weights = np.zeros(len(means.value))
        weights[first + columns.index(column)] += 1
        weights[first + columns.index(FLOOR)] -= 1
        if column != FLOOR and not bootstrap.contrast(means, weights, macro, (-1, 1)).low > 0:
            found.append(column)
    return found


def _levels(means, sizes, columns):
    return {size.name: {column: {task: measures.one(means, k * len(columns) + c, place)
                                 for place, task in enumerate(means.groups)}
                        for c, column in enumerate(columns)}
            for k, size in enumerate(sizes)}


def _losses(means, sizes, columns):
    """Return what each smaller size loses to the largest, step by step: paired, one set of
    resamples.
    """
    found = {}
    chain = [column for column in columns if column != FLOOR]
    for k, size in enumerate(sizes[:-1]):
        def gap(column, k=k):
            weights = np.zeros(len(sizes) * len(columns))
            weights[(len(sizes) - 1) * len(columns) + columns.index(column)] = 1
            weights[k * len(columns) + columns.index(column)] = -1
            return weights

        steps = {}
        before = 0
        for column in chain:
            name = UNSAID if column == ANSWERED and WRITTEN not in chain else STEPS[column]
            steps[name] = gap(column) - before
            before = gap(column)
        steps['total'] = before
        found[size.name] = {name: {task: bootstrap.contrast(means, weights, place, (-2, 2))
                                   for place, task in enumerate(means.groups)}
                            for name, weights in steps.items()}
    return found


def ledger_rows(found: Ledger) -> tuple[list[Row], list[str]]:
    """Return the numbers of a `Ledger` as `Row`s, and its notes."""
    rows = [_row('levels', size, task, column, x) for size, columns in found.levels.items()
            for column, tasks in columns.items() for task, x in tasks.items()]
    rows += [_row('losses', f'{found.large} - {size}', task, step, x)
             for size, steps in found.losses.items() for step, tasks in steps.items()
             for task, x in tasks.items()]
    return rows, list(found.notes)


def _row(table, setting, task, what, x):
    return Row(table=table, setting=setting, family=task, what=what, value=x.value, low=x.low,
               high=x.high, n=x.n, clusters=x.clusters, method=x.method, seeds=x.seeds)

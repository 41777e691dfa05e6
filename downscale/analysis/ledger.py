"""The loss ledger: from the picture to the answer, where small models lose against the largest.

Every column holds one number for each item: whether a probe reads the answer at a site, whether the
largest reasoner can answer from what this size wrote, and whether this size answers. Columns are
different instruments, so the levels of two columns do not compare. What a small size loses against
the largest in one column does, and its change from column to column is where that happens.
"""
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from downscale.analysis import gate, measures
from downscale.analysis.measures import MODES, Missing, Row, Scored
from downscale.results.items import TableError
from downscale.results.probes import NO_DEPTH, hits, read
from downscale.results.study import pair
from downscale.results.text_kinds import TEXT_KINDS
from downscale.statistics import bootstrap
from downscale.statistics.two_way import Seeds

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
    """What each size reaches in every column, and what it loses from column to column.

    `levels` {size: {column: {family or 'macro': Interval}}}, `losses` {size: {step: {...}}} of
    every size but the largest, whose steps add up to its 'total' in every family.
    """
    large: str
    levels: dict
    losses: dict
    notes: tuple


def of_study(s: Scored) -> Ledger:
    """Return the `Ledger` of a scored study whose folder holds probes; `Missing` without them."""
    if not (s.study.root / 'probe_items.parquet').is_file():
        raise Missing('no probe_items.parquet; `downscale analyze probe` writes it')
    return ledger(s, read(s.study.root, 'probe_items'))


def ledger(s: Scored, table: pa.Table) -> Ledger:
    """Return the `Ledger` of a scored study and its `probe_items`.

    `Missing` or `TableError` with the reason where a size cannot be compared with another.
    """
    # 1. Who is compared: sizes that were probed and asked, each seed by itself.
    groups, left_out = _probed(s, table)
    written, line = _written(s, groups)
    sizes = list(groups)
    parts, planned = _by_seed(s, groups, written)
    # 2. The items that all of them have, those of families with a probe at every site.
    cells = []
    for answers, read_by in parts:
        cells += [*answers.values(), *read_by.values()]
    paired = pair(s.study, cells)
    probes = [_probes(table, answers, paired) for answers, _ in parts]
    keep = np.all([kept for _, kept in probes], axis=0)
    skipped = sorted(set(paired.task[~keep]))
    if not keep.any():
        raise Missing('no family was probed at every site')
    # 3. Their means: one row for each seed, size and column.
    columns = [*SITES, *([WRITTEN] if written else []), ANSWERED]
    scores = paired.scores.reshape(len(parts), -1, len(sizes), len(keep))  # answered, then written
    values = []
    for part, (hits_of, _) in enumerate(probes):
        for place, size in enumerate(sizes):
            # The columns lead from the picture to the answer: sites, then written, then answered.
            values += [*hits_of[size], *scores[part, ::-1, place]]
    means = bootstrap.group_means(np.array(values)[:, keep], paired.task[keep],
                                  paired.cluster_id[keep], s.resamples)
    means = bootstrap.with_macro(bootstrap.over_seeds(means, len(parts), s.resamples, planned))
    # 4. What a reader has to know.
    notes = [gate.gate(s)['line'], line, 'columns are other instruments: compare sizes within one, '
             'and losses from one to the next']
    if left_out:
        notes.append(f'runs without probes are left out: {", ".join(sorted(left_out))}')
    seeds = ' and of seeds' if len(parts) > 1 else ''
    notes.append(f'intervals cover the choice of pictures{seeds}')
    if skipped:
        notes.append(f'skipped: {", ".join(skipped)}: no probe at every site')
    unread = _unread(means, (len(sizes) - 1) * len(columns), columns)
    if unread:
        notes.append(f'what is lost before {" and ".join(unread)} cannot show: not even of '
                     f'{sizes[-1]} do probes read more there than from the question alone')
    return Ledger(large=sizes[-1], levels=_levels(means, sizes, columns),
                  losses=_losses(means, sizes, columns), notes=tuple(notes))


def _probed(s, table):
    """Return {size: cells of the runs that were probed}, and the runs that were not.

    `Missing` unless there are two sizes.
    """
    probed = set(table['run_id'].unique().to_pylist())
    groups = {}
    left_out = []
    for size in s.sizes:
        cells = measures.joint_cells(s, size, 'image')
        known = [cell for cell in cells if cell.p_run in probed]
        left_out += [cell.p_run for cell in cells if cell not in known]
        if known:
            groups[size.name] = known
    if len(groups) < 2:
        raise Missing(f'a ledger needs two sizes that were probed and answered with the picture, '
                      f'found {len(groups)}; run `downscale analyze probe {s.study.root}`')
    return groups, left_out


def _written(s, groups):
    """Return ({size: cells of the fixed reader on this size's texts}, a line that says what it is).

    The reader is the largest reasoner, of each seed its own, with the kind of text and the mode in
    which it reads gold texts best: that choice knows nothing of the sizes compared. Without one
    there are no cells, and the line says why.
    """
    best = None
    for kind in TEXT_KINDS:
        for mode, thinking in MODES.items():
            pairs = measures.pair_groups(s, kind, thinking)
            names = {r for _, r in pairs}
            readers = [size.name for size in s.sizes if size.name in names]
            gold = pairs.get(('gold', readers[-1])) if readers else None
            cells = _read_by(s, groups, pairs, readers[-1]) if gold else None
            if cells:
                x = measures.one(bootstrap.macro(measures.means_of(s, [gold])[1]), 0, 0)
                if best is None or x.value > best[0].value:
                    best = x, cells, f'{readers[-1]} on {kind}, {mode}'
    if best is None:
        return {}, f'{WRITTEN}: skipped: no reasoner read gold texts and those of every size'
    x, cells, name = best
    return cells, (f'{WRITTEN}: what {name} answers from; on gold texts it is right in '
                   f'{x.value:.3f} [{x.low:.3f}, {x.high:.3f}] of the items (mean over families)')


def _read_by(s, groups, pairs, reader):
    """Return {size: cells in which `reader` read its texts}, each run read by that of its seed.

    None unless it has read those of every run in `groups`.
    """
    seed = {run['run_id']: run['seed'] for run in s.study.meta['runs']}
    runs = set()
    for cells in groups.values():
        runs.update(cell.p_run for cell in cells)
    read_by = {}
    for size, cells in groups.items():
        # A text is read by the reader of its own seed, or two trainings would be mixed.
        read_by[size] = [cell for cell in pairs.get((size, reader), ())
                         if seed[cell.p_run] == seed[cell.r_run] and cell.p_run in runs]
        if len(read_by[size]) != len(cells):
            return None
    return read_by


def _by_seed(s, groups, written):
    """Return ([(cells that answered, cells of the reader) by size] for each seed, seeds planned).

    The seeds are those that all sizes have; all runs count as one seed where fewer than
    `FEW_SEEDS` were planned.
    """
    planned = measures.planned_seeds(s, [*groups.values(), *written.values()])
    answered = {size: measures.by_seed(s, cells) for size, cells in groups.items()}
    read_by = {size: measures.by_seed(s, cells) for size, cells in written.items()}
    shared = set.intersection(*map(set, [*answered.values(), *read_by.values()]))
    # Too few seeds to be drawn: runs are averaged, and intervals are over pictures only.
    if not Seeds(count=len(shared), planned=planned).wanted:
        return [(groups, written)], 1
    if not shared:
        raise Missing('no seed was probed and has answered at every size')
    parts = []
    for seed in sorted(shared):
        parts.append(({size: cells[seed] for size, cells in answered.items()},
                      {size: cells[seed] for size, cells in read_by.items()}))
    return parts, planned


def _probes(table, groups, paired):
    """Return ({size: [hits of each site]} in the order of `paired`, which items have all of them).

    `TableError` with counts where probes saw items that the study's table lacks.
    """
    hits_of = {}
    keep = np.ones(len(paired.item_id), bool)
    for size, cells in groups.items():
        hits_of[size] = []
        for site, depth in SITES.values():
            runs = []
            for cell in cells:
                by_item = hits(table, cell.p_run, site, depth)
                foreign = sorted(set(by_item) - set(paired.item_id))
                if foreign:
                    raise TableError(f'pairing: {cell.p_run} was probed on {len(foreign)} items '
                                     f'that it was not asked, first {foreign[:3]}; probe again')
                runs.append([by_item.get(item, np.nan) for item in paired.item_id])
            hits_of[size].append(np.mean(runs, axis=0))
            keep &= np.isfinite(hits_of[size][-1])
    # A family counts with all of its items or not at all.
    return hits_of, ~np.isin(paired.task, paired.task[~keep])


def _unread(means, first, columns):
    """Return the probed columns in which the largest size is not clearly above its own floor.

    Its rows begin at `first`; compared is the mean over families.
    """
    unread = []
    macro = means.groups.index('macro')
    for column in SITES:
        weights = np.zeros(len(means.value))
        weights[first + columns.index(column)] += 1
        weights[first + columns.index(FLOOR)] -= 1
        if column != FLOOR and not bootstrap.contrast(means, weights, macro, (-1, 1)).low > 0:
            unread.append(column)
    return unread


def _levels(means, sizes, columns):
    """Return {size: {column: {family: Interval}}} of means with a row for each size and column."""
    levels = {}
    rows = iter(range(len(sizes) * len(columns)))
    for size in sizes:
        levels[size] = {}
        for column in columns:
            row = next(rows)
            levels[size][column] = {task: measures.one(means, row, place)
                                    for place, task in enumerate(means.groups)}
    return levels


def _losses(means, sizes, columns):
    """Return what each smaller size loses to the largest, step by step.

    All is paired: contrasts of the same means under one set of resamples.
    """
    losses = {}
    chain = [column for column in columns if column != FLOOR]
    large = (len(sizes) - 1) * len(columns)
    for k, size in enumerate(sizes[:-1]):
        steps = {}
        before = 0
        for column in chain:
            gap = np.zeros(len(sizes) * len(columns))
            gap[large + columns.index(column)] = 1
            gap[k * len(columns) + columns.index(column)] = -1
            name = UNSAID if column == ANSWERED and WRITTEN not in chain else STEPS[column]
            # Differences of neighbouring gaps, so that the steps add up to the last gap, the total.
            steps[name] = gap - before
            before = gap
        steps['total'] = before
        losses[size] = {}
        for name, weights in steps.items():
            losses[size][name] = {task: bootstrap.contrast(means, weights, place, (-2, 2))
                                  for place, task in enumerate(means.groups)}
    return losses


def ledger_rows(found: Ledger) -> tuple[list[Row], list[str]]:
    """Return the numbers of a `Ledger` as `Row`s, and its notes."""
    rows = []
    for size, columns in found.levels.items():
        rows += _rows('levels', size, columns)
    for size, steps in found.losses.items():
        rows += _rows('losses', f'{found.large} - {size}', steps)
    return rows, list(found.notes)


def _rows(table, setting, intervals):
    """Return a `Row` for each of the intervals {column or step: {family: Interval}}."""
    rows = []
    for what, by_family in intervals.items():
        for family, x in by_family.items():
            rows.append(Row(table=table, setting=setting, family=family, what=what, value=x.value,
                            low=x.low, high=x.high, n=x.n, clusters=x.clusters, method=x.method,
                            seeds=x.seeds))
    return rows

"""Which answers stand side by side: a view is a list of columns, each a cell of a run by seed."""
from collections.abc import Sequence
from dataclasses import dataclass, replace

from downscale.analysis import measures
from downscale.analysis.measures import GOLD, MODES
from downscale.results.items import CONDITIONS, HIDDEN
from downscale.results.study import Cell
from downscale.results.text_kinds import TEXT_KINDS
from downscale.view.runs import Run

SHOWN = {'image': 'with the picture', 'blind': 'without a picture',
         'shuffled': 'with the picture of another question'}


def _explained(s, size, condition):
    """Return the cells of a size that explained, where others of the study answered at once."""
    cells = measures.explained_cells(s, size, condition)
    return [] if cells == measures.joint_cells(s, size, condition) else cells


# How sizes answer by themselves: name of the view: (how its title goes on, which cells).
ALONE = {'sizes': ('', measures.joint_cells), 'explained': (', explained', _explained)}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: its heading, and who answered in it under each seed."""
    label: str
    run: Run
    cells: dict[int, Cell]

    def cell(self, seed: int | None) -> Cell | None:
        """Return the cell of a seed, by default the lowest; None where that seed is absent."""
        return self.cells[min(self.cells)] if seed is None else self.cells.get(seed)


@dataclass(frozen=True, kw_only=True)
class View:
    """Columns to compare, by a name that an address can hold."""
    name: str
    title: str
    columns: tuple[Column, ...]


def first_chosen(view: View, *labels: str) -> tuple[Column, ...]:
    """Return the columns of a view, those with these labels before all others."""
    return tuple(sorted(view.columns, key=lambda column: column.label not in labels))


def views_of(runs: Sequence[Run]) -> dict[str, View]:
    """Return {name: view} of all that can be compared in some runs, sizes with pictures first."""
    views = {}
    for run in runs:
        prefix = f'{run.name}: ' if len(runs) > 1 else ''
        for name, title, columns in (*_sizes(run), *_pairs(run), *_conditions(run)):
            columns = [Column(label=prefix + label, run=run, cells=cells)
                       for label, cells in columns]
            first = views.get(name, View(name=name, title=title, columns=()))
            views[name] = View(name=name, title=title, columns=(*first.columns, *columns))
    order = [f'sizes-{condition}' for condition in CONDITIONS]
    return dict(sorted(views.items(), key=lambda pair: (pair[0] not in order)))


def _first(seeded):
    """Return {seed: its first cell} of {seed: cells}; a pair within one seed is the first."""
    return {seed: cells[0] for seed, cells in sorted(seeded.items())}


def _sizes(run):
    """Yield (name, title, columns) for each condition that sizes answered by themselves."""
    s = run.scored
    for name, (how, cells_of) in ALONE.items():
        for condition in SHOWN:
            columns = []
            for size in s.sizes:
                cells = cells_of(s, size, condition)
                if cells:
                    columns.append((size.name, _first(measures.by_seed(s, cells))))
            if columns:
                yield f'{name}-{condition}', f'Sizes {SHOWN[condition]}{how}', columns


def _conditions(run):
    """Yield (name, title, columns) for each size that was asked in several ways."""
    s = run.scored
    for size in s.sizes:
        columns = []
        for how, cells_of in ALONE.values():
            for condition in SHOWN:
                cells = cells_of(s, size, condition)
                if cells:
                    columns.append((f'{condition}{how}', _first(measures.by_seed(s, cells))))
        if len(columns) > 1:
            yield f'size-{size.name}', f'Conditions of {size.name}', columns


def _pairs(run):
    """Yield (name, title, columns) for each kind of text and mode that reasoners answered from."""
    s = run.scored
    order = {size.name: place for place, size in enumerate(s.sizes)}
    order[GOLD] = len(order)
    seed_of = measures.seed_of_run(s)
    ways = {'direct': (s, 'answer at once'), 'think': (s, 'think, then answer'),
            HIDDEN: (replace(s, study=s.study.hidden), 'answer at once, the question hidden')}
    for kind in TEXT_KINDS:
        for mode, (of, how) in ways.items():
            groups = measures.pair_groups(of, kind, MODES.get(mode, False))
            columns = []
            for p, r in sorted(groups, key=lambda pair: (order[pair[1]], order[pair[0]])):
                # A pair within one seed comes first; the report counts no other ones as corners.
                cells = sorted(groups[p, r], key=lambda cell: bool(cell.p_run)
                               and seed_of[cell.p_run] != seed_of[cell.r_run])
                columns.append((f'{p} → {r}', _first(measures.by_seed(s, cells))))
            if columns:
                yield f'{kind}-{mode}', f'Reasoners read the {kind} and {how}', columns

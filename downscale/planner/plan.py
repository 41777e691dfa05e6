"""The plan of a study: every program compiled for its topology, what fits, what it takes and costs.

`Plan.run` compiles (`pool.py`), turns facts into rows (`row`) and, where it is asked for and a
program does not fit, compiles smaller ones until one does (`nearest.py`). A row is a plain dict:
the table and plan.json say the same.
"""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from downscale.config import Experiment
from downscale.planner import bounds, nearest
from downscale.planner.formulas import formula, parameters
from downscale.planner.hardware import Chip
from downscale.planner.pool import Pool, key_of, versions
from downscale.planner.programs import ProgramRequest, Use, Wish, uses
from downscale.planner.topologies import PRICES_AS_OF, topology
from downscale.runtime.files import PathLike
from downscale.runtime.progress import Bars

GIB = 2 ** 30
AGREE = 0.01  # relative difference between formula and compiled FLOPs that counts as equal

Row = dict[str, Any]  # one program of one cell, as `row` makes it


class Plan:
    """What `cells` need on the named topologies, narrowed by a `Wish`.

    `refuse(request)` raises ValueError where a mesh does not divide a parameter. All of it is
    checked here, before anything is compiled: one-line ValueErrors. Facts are kept in `folder`;
    `jobs` programs are compiled at once, none for longer than `limit` seconds.
    """

    def __init__(self, cells: Sequence[Experiment], places: Iterable[str], wish: Wish,
                 refuse: Callable[[ProgramRequest], None], folder: PathLike, jobs: int,
                 limit: float, bars: Bars) -> None:
        if jobs < 1 or limit <= 0:
            raise ValueError(f'--jobs {jobs} must be at least 1 and --limit {limit:g} above 0')
        self.versions = versions()  # no compiler, no plan
        self.refuse = refuse
        self.folder = Path(folder)
        self.propose = wish.propose
        self.uses: list[Use] = []
        for place in map(topology, places):
            self.uses += uses(cells, place, wish)
        if not self.uses:
            raise ValueError('nothing to plan: no cell has a program of the kind that is asked for')
        # Once a program: to check one takes as long as to trace its model.
        programs = {key_of(use.request): use for use in self.uses}
        for use in programs.values():
            try:
                refuse(use.request)
            except ValueError as error:
                raise ValueError(f'{_title(use)}: {error}') from None
        self.pool = Pool(self.folder / 'programs', jobs, limit, bars)

    def run(self) -> dict[str, Any]:
        """Compile all programs and return the plan, a dict of plain values.

        'cells' holds the rows of all programs in the order of the cells; 'method', 'prices_as_of'
        and 'versions' what they rest on, 'proposed' whether proposals were asked for. Seeds of one
        size share programs, and a program that does not fit is made smaller once.
        """
        facts = self.pool.facts([(_title(use), use.request) for use in self.uses])
        rows = [row(use, facts[key_of(use.request)]) for use in self.uses]
        lacking = [(use, planned) for use, planned in zip(self.uses, rows)
                   if self.propose and planned['fits'] is False]
        fitting = self._fitting({_same(use): (use, planned) for use, planned in lacking})
        for use, planned in lacking:
            planned['proposal'] = fitting.get(_same(use))
        return {'cells': rows, 'proposed': self.propose, 'method': bounds.METHOD,
                'prices_as_of': PRICES_AS_OF, 'versions': self.versions}

    def _fitting(self, lacking):
        """Return {key: row of the nearest program that fits, with its 'change'}.

        `lacking` is {key: (use, row)} of what does not fit. It is made smaller round by round, so
        that the programs of a round are compiled side by side; a key is absent where
        `nearest.TRIES` rounds find nothing.
        """
        fitting = {}
        open_rows = dict(lacking)
        for _ in range(nearest.TRIES):
            tried = {}  # key: (use of the smaller program, the change in words)
            for key, (use, planned) in open_rows.items():
                request = nearest.smaller(use, planned['hbm_gib'], planned['hbm_limit_gib'],
                                          self._divides)
                if request is not None:
                    # The change is told from the program that was asked for, not the last try.
                    first = lacking[key][0]
                    tried[key] = (replace(first, request=request),
                                  nearest.change(first.request, request))
            facts = self.pool.facts([(f'{_title(lacking[key][0])} with {change}', use.request)
                                     for key, (use, change) in tried.items()])
            open_rows = {}
            for key, (use, change) in tried.items():
                planned = row(use, facts[key_of(use.request)])
                if planned['fits']:
                    fitting[key] = {**planned, 'change': change}
                elif planned['fits'] is False:  # None: it failed, and is not tried again
                    open_rows[key] = (use, planned)
        return fitting

    def _divides(self, request):
        """Return whether a request's mesh divides every parameter and has devices enough."""
        try:
            self.refuse(request)
        except ValueError:
            return False
        return request.devices <= topology(request.topology).devices


def _same(use):
    """Return what makes two uses fit alike: the program, and what is held beside it."""
    return key_of(use.request), use.beside_bytes


def _title(use):
    """Return the name of a program for people: what asks for it, and where."""
    request = use.request
    long = f' at {request.length}' if request.length else ''
    return f'{use.name}{long} on {request.topology}'


# --- rows -------------------------------------------------------------------------------------

# What a row says of a compiled program, in the order of plan.json; None where it is not known.
NEEDS = ('hbm_gib', 'hbm_limit_gib', 'fits', 'flops_formula', 'flops_compiled', 'estimated_cycles',
         'collective_bytes', 'compile_s', 'cpu_s', 'step_s', 'mfu_bound', 'chip_hours', 'usd',
         'usd_spot', 'proposal', 'error')


def row(use: Use, facts: dict[str, Any]) -> Row:
    """Return one program of one cell: what was asked, and, where it was compiled, what it needs.

    Per chip, where the name says nothing else. `fits` is None where the compiler failed, and
    `error` says why. Times and prices are intervals (from, to) by `bounds.METHOD`.
    """
    request = use.request
    place = topology(request.topology)
    served = request.kind != 'train'
    asked = request
    if served and facts.get('room') and request.length:
        # The engine rounds lengths up to those of its programs.
        asked = replace(request, length=facts['room'])
    planned = _asked(use, asked, facts, place)
    if planned['error']:
        return planned
    if facts['hbm_gib'] is not None:
        planned['hbm_gib'] = facts['hbm_gib'] + use.beside_bytes / GIB
    planned['fits'] = facts.get('fits', True) and planned['hbm_gib'] <= planned['hbm_limit_gib']
    priced = formula(asked)
    per_chip = None
    if priced:
        per_chip = {name: count / request.chips for name, count in priced.items()}
        planned['flops_formula'] = per_chip['total']
    # The compiler gives no facts of a program that does not fit, but may say its memory.
    if 'memory_bytes' in facts:
        planned |= _compiled(use, facts, per_chip, place.chip)
    return planned


def _asked(use, asked, facts, place):
    """Return a row in which whatever only a compiled program tells is None.

    `asked` is the request of `use` with the length that was compiled.
    """
    request = use.request
    rows = request.rows
    if request.kind == 'train':
        rows = rows // request.accumulate
    columns = {
        'name': use.name, 'kind': request.kind, 'topology': place.name, 'chips': request.chips,
        'mesh': list(request.mesh), 'per_chip_batch': rows / request.chips,
        'accumulate': request.accumulate, 'remat': request.cell['remat'],
    }
    sizes = {
        'rows': request.rows, 'length': asked.length, 'tiles': request.tiles,
        'slots': request.slots, 'tokens_per_step': _tokens(asked),
        'parameters': parameters(request),
    }
    needs = dict.fromkeys(NEEDS)
    needs['hbm_limit_gib'] = facts.get('hbm_limit_gib') or place.hbm_gib
    for name in ('compile_s', 'cpu_s', 'error'):
        needs[name] = facts.get(name)
    return columns | sizes | needs


def _tokens(request):
    """Return tokens that one step reads or writes on all devices, or patches of a tile."""
    if request.kind == 'see':
        vision = request.cell['vision']
        return (vision['image'] // vision['patch']) ** 2
    return request.rows * (1 if request.kind == 'decode' else request.length)


def _compiled(use: Use, facts: dict[str, Any], per_chip: dict[str, float] | None,
              chip: Chip) -> Row:
    """Return the part of a row that only a compiled program tells."""
    flops = facts['flops'] * chip.devices
    cycles = facts['estimated_cycles']
    if facts['endless_loops']:
        cycles = facts['endless_cycles']  # a step of decoding; the rest is done once a call
    # The compiler does not see into a Pallas kernel: the formula's attention stands for it.
    inside = per_chip['attention'] if facts['kernels'] and per_chip else 0
    whole = flops + inside
    served = use.request.kind != 'train'
    bound = bounds.interval(facts, whole / chip.devices, chip, served)
    agree = None
    mfu = None
    if per_chip:
        agree = abs(whole - per_chip['total']) <= AGREE * per_chip['total']
        mfu = per_chip['model'] / (bound['step_s'][0] * chip.flops)
    columns = {
        'flops_compiled': whole,
        'flops_in_kernels': inside,
        'flops_agree': agree,
        'kernels': facts['kernels'],
        'estimated_cycles': cycles,
        'cycles_once': facts['estimated_cycles'] - cycles,
        'peak_cycles': flops / chip.flops * chip.clock,
        'uncosted_flops': facts['uncosted_flops'],
    }
    for name, part in (('collective_bytes', 'bytes'), ('collective_counts', 'count')):
        columns[name] = {kind: moved[part] for kind, moved in facts['collectives'].items()}
    for name in ('largest_all_reduce', 'memory_bytes', 'lower_s'):
        columns[name] = facts[name]
    columns |= {**bound, 'mfu_bound': mfu}
    if use.steps:
        columns |= bounds.price(bound['step_s'], use.steps, use.request.chips, chip)
    return columns

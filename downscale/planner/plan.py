"""The plan of a study: every program compiled for its topology, what fits, what it takes and costs.

`Plan.run` compiles (`pool.py`), turns facts into rows (`row`) and, for what does not fit, compiles
smaller programs until one does (`nearest.py`). A row is a plain dict: the table and plan.json say
the same.
"""
from dataclasses import replace
from pathlib import Path

from downscale.planner import bounds, nearest
from downscale.planner.pool import Pool, key_of, versions
from downscale.planner.programs import formula, parameters, uses
from downscale.planner.topologies import PRICES_AS_OF, topology

GIB = 2 ** 30
AGREE = 0.01  # relative difference between formula and compiled FLOPs that counts as equal


class Plan:
    """What `cells` need on the named topologies, narrowed by a `Wish`.

    `refuse(request)` raises ValueError where a mesh does not divide a parameter. All of it is
    checked here, before anything is compiled: one-line ValueErrors. Facts are kept in `folder`;
    `jobs` programs are compiled at once, none for longer than `limit` seconds.
    """

    def __init__(self, cells, places, wish, refuse, folder, jobs, limit, bars):
        if jobs < 1 or limit <= 0:
            raise ValueError(f'--jobs {jobs} must be at least 1 and --limit {limit:g} above 0')
        self.versions = versions()  # no compiler, no plan
        self.refuse, self.folder = refuse, Path(folder)
        self.uses = [use for place in map(topology, places) for use in uses(cells, place, wish)]
        if not self.uses:
            raise ValueError('nothing to plan: no cell has a program of the kind that is asked for')
        for use in {key_of(use.request): use for use in self.uses}.values():
            try:
                refuse(use.request)
            except ValueError as error:
                raise ValueError(f'{_title(use)}: {error}') from None
        self.pool = Pool(self.folder / 'programs', jobs, limit, bars)

    def run(self):
        """Return {'cells': the rows of all programs, in the order of the cells, and what they rest
        on}.

        Seeds of one size share programs, and a program that does not fit is made smaller once.
        """
        found = self.pool.facts([(_title(use), use.request) for use in self.uses])
        rows = [row(use, found[key_of(use.request)]) for use in self.uses]
        lacking = [(use, planned) for use, planned in zip(self.uses, rows)
                   if planned['fits'] is False]
        fitting = self._fitting({_same(use): (use, planned) for use, planned in lacking})
        for use, planned in lacking:
            planned['proposal'] = fitting.get(_same(use))
        return {'cells': rows, 'method': bounds.METHOD, 'prices_as_of': PRICES_AS_OF,
                'versions': self.versions}

    def _fitting(self, lacking):
        """Return {key: row of the nearest program that fits, with its `change`} of {key: (use,
        row)}.

        What does not fit is made smaller round by round, so that the programs of a round are
        compiled side by side; a key is absent where `nearest.TRIES` rounds find nothing.
        """
        found = {}
        at = dict(lacking)
        for _ in range(nearest.TRIES):
            smaller = {key: nearest.smaller(use, planned['hbm_gib'], planned['hbm_limit_gib'],
                                            self._divides)
                       for key, (use, planned) in at.items()}
            tried = {key: replace(lacking[key][0], request=request)
                     for key, request in smaller.items() if request is not None}
            said = {key: nearest.change(lacking[key][0].request, use.request)
                    for key, use in tried.items()}
            facts = self.pool.facts([(f'{_title(lacking[key][0])} with {said[key]}', use.request)
                                     for key, use in tried.items()])
            rows = {key: row(use, facts[key_of(use.request)]) for key, use in tried.items()}
            found |= {key: {**planned, 'change': said[key]} for key, planned in rows.items()
                      if planned['fits']}
            at = {key: (tried[key], planned) for key, planned in rows.items()
                  if planned['fits'] is False}
        return found

    def _divides(self, request):
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

def row(use, facts):
    """Return one program of one cell: what was asked, and, where it was compiled, what it needs.

    Per chip, where the name says nothing else. `fits` is None where the compiler failed, and
    `error` says why. Times and prices are intervals (from, to) by `bounds.METHOD`.
    """
    request = use.request
    place = topology(request.topology)
    served = request.kind != 'train'
    # The engine rounds lengths up to those of its programs.
    asked = replace(request, length=facts['room']) if served and facts.get('room') \
        and request.length else request
    micro = (request.rows if served else request.rows // request.accumulate) / request.chips
    found = {
        'name': use.name, 'kind': request.kind, 'topology': place.name, 'chips': request.chips,
        'mesh': list(request.mesh), 'per_chip_batch': micro, 'accumulate': request.accumulate,
        'remat': request.cell['remat'], 'rows': request.rows, 'length': asked.length,
        'tiles': request.tiles, 'slots': request.slots, 'tokens_per_step': _tokens(asked),
        'parameters': parameters(request), 'hbm_gib': None,
        'hbm_limit_gib': facts.get('hbm_limit_gib') or place.hbm_gib, 'fits': None,
        'flops_formula': None, 'flops_compiled': None, 'estimated_cycles': None,
        'collective_bytes': None, 'compile_s': facts.get('compile_s'),
        'cpu_s': facts.get('cpu_s'), 'step_s': None,
        'mfu_bound': None, 'chip_hours': None, 'usd': None, 'usd_spot': None, 'proposal': None,
        'error': facts.get('error')}
    if found['error']:
        return found
    if facts['hbm_gib'] is not None:
        found['hbm_gib'] = facts['hbm_gib'] + use.beside_bytes / GIB
    found['fits'] = facts.get('fits', True) and found['hbm_gib'] <= found['hbm_limit_gib']
    priced = formula(asked)
    per_chip = {name: count / request.chips for name, count in priced.items()} if priced else None
    found['flops_formula'] = per_chip and per_chip['total']
    if 'memory_bytes' in facts:
        found |= _compiled(use, facts, per_chip, place.chip, served)
    return found


def _tokens(request):
    """Return tokens that one step reads or writes, on all devices; the patches of a tile count as
    such.
    """
    if request.kind == 'see':
        vision = request.cell['vision']
        return (vision['image'] // vision['patch']) ** 2
    return request.rows * (1 if request.kind == 'decode' else request.length)


def _compiled(use, facts, per_chip, chip, served):
    """Return the part of a row that only a compiled program tells."""
    flops = facts['flops'] * chip.devices
    cycles = facts['estimated_cycles']
    if facts['endless_loops']:
        cycles = facts['endless_cycles']  # a step of decoding; the rest is done once a call
    inside = per_chip['attention'] if facts['kernels'] and per_chip else 0
    bound = bounds.interval(facts, (flops + inside) / chip.devices, chip, served)
    steps = bound['step_s']
    found = {
        'flops_compiled': flops + inside, 'flops_in_kernels': inside,
        'flops_agree': per_chip and abs(flops + inside - per_chip['total'])
        <= AGREE * per_chip['total'],
        'kernels': facts['kernels'], 'estimated_cycles': cycles,
        'cycles_once': facts['estimated_cycles'] - cycles,
        'peak_cycles': flops / chip.flops * chip.clock, 'uncosted_flops': facts['uncosted_flops'],
        'collective_bytes': {kind: part['bytes'] for kind, part in facts['collectives'].items()},
        'collective_counts': {kind: part['count'] for kind, part in facts['collectives'].items()},
        'largest_all_reduce': facts['largest_all_reduce'], 'memory_bytes': facts['memory_bytes'],
        'lower_s': facts['lower_s'], **bound,
        'mfu_bound': per_chip and per_chip['model'] / (steps[0] * chip.flops)}
    if use.steps:
        found |= bounds.price(steps, use.steps, use.request.chips, chip)
    return found

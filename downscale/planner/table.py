"""A plan as text: one table a topology, and below it a line for whatever needs a word."""
from collections.abc import Iterable
from typing import Any

from downscale.output.text import aligned
from downscale.planner.bounds import summed
from downscale.planner.topologies import topology

HEAD = ('program', 'mesh', 'rows/chip', 'length', 'GiB', 'fits', 'Mcycles', 'TFLOP', 'moved GiB',
        'step ms', 'MFU <=', 'chip-hours', '$', 'CPU s')
GIB = 2 ** 30


def lines(plan: dict[str, Any]) -> list[str]:
    """Return the lines of a plan (see `plan.Plan.run`), equal rows of several seeds as one."""
    # One table a topology, in the order in which they were asked for.
    text = []
    for name in dict.fromkeys(row['topology'] for row in plan['cells']):
        every = [row for row in plan['cells'] if row['topology'] == name]
        rows = _merged(every)
        place = topology(name)
        text += ['', f'{name}: {place.chips} chips, {place.hbm_gib:g} GiB a device, figures per '
                 'chip', *aligned([HEAD, *map(_cells, rows)])]
        for row in rows:
            text += _remarks(row, plan['proposed'])
        text += _sums(every)
    return text + [
        '', f'step ms: not measured; {plan["method"]}.',
        'Mcycles: the compiler\'s own estimate, uncalibrated, without kernels and collectives; it '
        'ranks programs and is no time.',
        f'$: on demand, prices of {plan["prices_as_of"]}, an estimate.']


def _merged(rows):
    """Return the rows with those that differ in the cell's name only as one that counts them."""
    groups = {}
    for row in rows:
        same = {key: value for key, value in row.items() if key != 'name'}
        stage = row['name'].rpartition('/')[2]
        # A row holds dicts and lists, which cannot be keys; their text can.
        groups.setdefault(repr((stage, same)), []).append(row)
    merged = []
    for first, *others in groups.values():
        more = f' +{len(others)}' if others else ''
        merged.append({**first, 'name': first['name'] + more})
    return merged


def _number(value):
    """Return a number with three digits, and all of those before the point."""
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def span(values: Iterable[float]) -> str:
    """Return 'a-b', or one figure where both ends read the same."""
    # A dict keeps the order of its keys and each of them once.
    return '-'.join(dict.fromkeys(map(_number, values)))


def _or_dash(value, form):
    """Return a number in the format `form`, '-' where it is not known."""
    return '-' if value is None else format(value, form)


def _cells(row):
    """Return the cells of one row of the table, as text; '-' where nothing is known."""
    micro = f' x{row["accumulate"]}' if row['accumulate'] > 1 else ''
    tiles = f'+{row["tiles"]}t' if row['tiles'] > 0 else ''
    asked = (row['name'], 'x'.join(map(str, row['mesh'])), f'{row["per_chip_batch"]:g}{micro}',
             f'{row["length"]}{tiles}')
    fits = {True: 'yes', False: 'NO', None: '?'}[row['fits']]
    cycles = row['estimated_cycles']
    moved = row['collective_bytes']
    if moved is not None:
        moved = sum(moved.values()) / GIB
    step = '-'
    if row['step_s'] is not None:
        step = span(1e3 * end for end in row['step_s'])
    needs = (_or_dash(row['hbm_gib'], '.2f'), fits, _or_dash(cycles and cycles / 1e6, '.1f'),
             _flops(row), _or_dash(moved, '.2f'), step, _or_dash(row['mfu_bound'], '.2f'))
    costs = ('-' if row[name] is None else span(row[name]) for name in ('chip_hours', 'usd'))
    return (*asked, *needs, *costs, _or_dash(row['cpu_s'], '.0f'))


def _flops(row):
    """Return compiled TFLOP, marked where they differ from the formula's.

    Where nothing was compiled those of the formula stand in brackets.
    """
    if row['flops_compiled'] is None:
        return '-' if row['flops_formula'] is None else f'({row["flops_formula"] / 1e12:.3g})'
    mark = {True: '', False: ' !', None: ' ?'}[row['flops_agree']]
    return f'{row["flops_compiled"] / 1e12:.3g}{mark}'


def _remarks(row, proposed):
    """Yield what a row's figures do not say themselves."""
    name = row['name']
    if row['error']:
        yield f'{name}: {row["error"]}'
    if row['fits'] is False:
        yield _misfit(row, proposed)
    if row['flops_compiled'] is None:
        return
    if row['flops_agree'] is False:
        yield (f'{name}: compiled FLOPs {row["flops_compiled"]:.4g}, formula '
               f'{row["flops_formula"]:.4g} (!)')
    if row['cycles_once']:
        yield (f'{name} at {row["length"]}: {row["cycles_once"] / 1e6:.1f} Mcycles more once for '
               'every 32 steps')
    if row['kernels']:
        yield (f'{name}: {row["flops_in_kernels"]:.3g} FLOPs of attention run in kernels '
               f'({", ".join(row["kernels"])}) and are counted by formula')


def _misfit(row, proposed):
    """Return by how much a program is too large, and with what change it fits."""
    over = ''
    if row['hbm_gib'] is not None:
        over = (f': {row["hbm_gib"]:.2f} of {row["hbm_limit_gib"]:.2f} GiB, '
                f'{row["hbm_gib"] - row["hbm_limit_gib"]:.2f} too many')
    near = row['proposal']
    remedy = 'nothing smaller that was tried fits'
    if not proposed:
        remedy = 'the same command with --propose compiles what does'
    elif near:
        remedy = f'fits, compiled, at {near["hbm_gib"]:.2f} GiB with {near["change"]}'
    return f'{row["name"]} does not fit{over}; {remedy}'


def _sums(rows):
    """Yield what all stages of all cells take and cost, at the least and at the most."""
    stages = {}
    for row in rows:
        # What a stage writes to learn from is part of it (`programs.uses`).
        if row['kind'] == 'train' or row['name'].endswith(' writes'):
            stages.setdefault(row['name'], []).append(row)
    timed = [(shapes, _known(shapes, 'chip_hours')) for shapes in stages.values()]
    priced = [shapes for shapes, hours in timed if len(hours) == len(shapes)]
    if not priced:
        return
    hours = summed(_known(shapes, 'chip_hours') for shapes in priced)
    usd = summed(filter(None, (_known(shapes, 'usd') for shapes in priced)))
    lacking = len(stages) - len(priced)
    price = f', {span(usd)} $' if usd[1] else ''
    without = f', without {lacking} that have no time' if lacking else ''
    yield f'all stages of all cells: {span(hours)} chip-hours{price}{without}'


def _known(shapes, key):
    """Return the spans `key` of the shapes of a stage, without those that are not known."""
    return [row[key] for row in shapes if row[key]]

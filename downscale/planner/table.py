"""A plan as text: one table a topology, and below it a line for whatever needs a word."""
from downscale.output.text import aligned
from downscale.planner.topologies import topology

HEAD = ('program', 'mesh', 'rows/chip', 'length', 'GiB', 'fits', 'Mcycles', 'TFLOP', 'moved GiB',
        'step ms', 'MFU <=', 'chip-hours', '$', 'CPU s')


def lines(plan):
    """Return the lines of a plan (see `plan.Plan.run`), equal rows of several seeds as one."""
    found = []
    for name in dict.fromkeys(row['topology'] for row in plan['cells']):
        rows = _merged([row for row in plan['cells'] if row['topology'] == name])
        place = topology(name)
        found += ['', f'{name}: {place.chips} chips, {place.hbm_gib:g} GiB a device, figures per '
                  'chip', *aligned([HEAD, *map(_cells, rows)])]
        found += [line for row in rows for line in _remarks(row)]
        found += _sums([row for row in plan['cells'] if row['topology'] == name])
    return found + [
        '', f'step ms: not measured; {plan["method"]}.',
        'Mcycles: the compiler\'s own estimate, uncalibrated, without kernels and collectives; it '
        'ranks programs and is no time.',
        f'$: on demand, prices of {plan["prices_as_of"]}, an estimate.']


def _merged(rows):
    """Return rows that differ in the cell's name only, as one that counts them."""
    groups = {}
    for row in rows:
        same = {key: value for key, value in row.items() if key != 'name'}
        stage = row['name'].rpartition('/')[2]
        groups.setdefault(repr((stage, same)), []).append(row)
    return [{**group[0], 'name': group[0]['name'] + f' +{len(group) - 1}' * (len(group) > 1)}
            for group in groups.values()]


def _number(value):
    """Return three digits, and all of those before the point."""
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def span(values):
    """Return 'a-b', or one figure where both ends read the same."""
    return '-'.join(dict.fromkeys(map(_number, values)))


def _cells(row):
    """Return the cells of one row of the table, as text; '-' where nothing is known."""
    moved = row['collective_bytes']
    return (
        row['name'], 'x'.join(map(str, row['mesh'])),
        f'{row["per_chip_batch"]:g}' + f' x{row["accumulate"]}' * (row['accumulate'] > 1),
        f'{row["length"]}' + f'+{row["tiles"]}t' * (row['tiles'] > 0),
        '-' if row['hbm_gib'] is None else f'{row["hbm_gib"]:.2f}',
        {True: 'yes', False: 'NO', None: '?'}[row['fits']],
        '-' if row['estimated_cycles'] is None else f'{row["estimated_cycles"] / 1e6:.1f}',
        _flops(row), '-' if moved is None else f'{sum(moved.values()) / 2 ** 30:.2f}',
        '-' if row['step_s'] is None else span([1e3 * end for end in row['step_s']]),
        '-' if row['mfu_bound'] is None else f'{row["mfu_bound"]:.2f}',
        '-' if row['chip_hours'] is None else span(row['chip_hours']),
        '-' if row['usd'] is None else span(row['usd']),
        '-' if row['cpu_s'] is None else f'{row["cpu_s"]:.0f}')


def _flops(row):
    """Return compiled TFLOP (the formula's, where nothing was compiled), marked where the two
    differ.
    """
    if row['flops_compiled'] is None:
        return '-' if row['flops_formula'] is None else f'({row["flops_formula"] / 1e12:.3g})'
    mark = {True: '', False: ' !', None: ' ?'}[row['flops_agree']]
    return f'{row["flops_compiled"] / 1e12:.3g}{mark}'


def _remarks(row):
    """Yield what a row's figures do not say themselves."""
    name = row['name']
    if row['error']:
        yield f'{name}: {row["error"]}'
    if row['fits'] is False:
        over = '' if row['hbm_gib'] is None else \
            f': {row["hbm_gib"]:.2f} of {row["hbm_limit_gib"]:.2f} GiB, ' \
            f'{row["hbm_gib"] - row["hbm_limit_gib"]:.2f} too many'
        near = row['proposal']
        yield f'{name} does not fit{over}; ' + (
            f'fits, compiled, at {near["hbm_gib"]:.2f} GiB with {near["change"]}' if near
            else 'nothing smaller that was tried fits')
    if row['flops_compiled'] is not None and row['flops_agree'] is False:
        yield (f'{name}: compiled FLOPs {row["flops_compiled"]:.4g}, formula '
               f'{row["flops_formula"]:.4g} (!)')
    if row['flops_compiled'] is not None and row['cycles_once']:
        yield (f'{name} at {row["length"]}: {row["cycles_once"] / 1e6:.1f} Mcycles more once for '
               'every 32 steps')
    if row['flops_compiled'] is not None and row['kernels']:
        yield (f'{name}: {row["flops_in_kernels"]:.3g} FLOPs of attention run in kernels '
               f'({", ".join(row["kernels"])}) and are counted by formula')


def _sums(rows):
    """Yield what all stages of all cells take and cost, at the least and at the most.

    A stage of several shapes takes something between its cheapest and its dearest.
    """
    stages = {}
    for row in rows:
        if row['kind'] == 'train':
            stages.setdefault(row['name'], []).append(row)
    priced = [shapes for shapes in stages.values() if all(row['chip_hours'] for row in shapes)]
    if not priced:
        return

    def sum_of(key):
        ends = [[row[key] for row in shapes if row[key]] for shapes in priced]
        return [sum(pick(end[at] for end in shapes) for shapes in ends if shapes)
                for at, pick in enumerate((min, max))]
    usd = sum_of('usd')
    lacking = len(stages) - len(priced)
    yield (f'all stages of all cells: {span(sum_of("chip_hours"))} chip-hours'
           + f', {span(usd)} $' * bool(usd[1])
           + f', without {lacking} that have no time' * (lacking > 0))

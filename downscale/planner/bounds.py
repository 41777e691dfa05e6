"""What the facts of a program allow one to say about its time and price: intervals, with a method.

Nothing here was measured on a chip. The lower end of a step's interval is what the slowest of three
resources needs at its peak; the upper end is their sum, as if nothing overlapped.
"""
METHOD = ('max (lower end) and sum (upper end) of compute = matmul FLOPs / peak, memory = bytes of '
          'arguments and outputs once and temporaries twice / HBM bandwidth, communication = bytes '
          'that a ring moves / ICI bandwidth')
SECONDS = 3600


def interval(facts, flops, chip, serving):
    """Return {'compute_s', 'memory_s', 'communication_s', 'step_s': (from, to)} of one device's
    step.

    `flops` are those of one device, kernels included. A served program updates its cache in place:
    of what it is given back nothing but the rest is written.
    """
    size = facts['memory_bytes']
    share = chip.devices
    written = size['output'] - (size['alias'] if serving else 0)
    parts = {'compute_s': flops / (chip.flops / share),
             'memory_s': (size['argument'] + written + 2 * size['temp'])
             / (chip.hbm_bandwidth / share),
             'communication_s': facts['wire_bytes'] / (chip.ici_bandwidth / share)}
    return parts | {'step_s': (max(parts.values()), sum(parts.values()))}


def price(step_s, steps, chips, chip):
    """Return {'chip_hours', 'usd', 'usd_spot'} of `steps` steps on `chips` chips, each (from, to).

    The spot interval ends with the dearest region seen; dollars are None where no price is known.
    """
    hours = tuple(steps * seconds * chips / SECONDS for seconds in step_s)
    dollars = chip.usd and tuple(chip.usd * amount for amount in hours)
    spot = chip.usd_spot and tuple(usd * amount for usd, amount in zip(chip.usd_spot, hours))
    return {'chip_hours': hours, 'usd': dollars, 'usd_spot': spot}

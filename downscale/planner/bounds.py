"""What the facts of a program allow one to say about its time and price: intervals, with a method.

Nothing here was measured on a chip. The lower end of a step's interval is what the slowest of three
resources needs at its peak; the upper end is their sum, as if nothing overlapped.
"""
from collections.abc import Iterable, Sequence
from typing import Any

from downscale.planner.hardware import Chip

METHOD = ('max (lower end) and sum (upper end) of compute = matmul FLOPs / peak, memory = bytes of '
          'arguments and outputs once and temporaries twice / HBM bandwidth, communication = bytes '
          'that a ring moves / ICI bandwidth, without what crosses slices')
SECONDS = 3600

Span = tuple[float, float]  # from the least to the most


def interval(facts: dict[str, Any], flops: float, chip: Chip, serving: bool) -> dict[str, Any]:
    """Return {'compute_s', 'memory_s', 'communication_s', 'step_s': (from, to)} of one device.

    `facts` are those of `hlo.facts`; `flops` are those of one device, kernels included.
    """
    size = facts['memory_bytes']
    share = chip.devices
    # A served program updates its cache in place: the aliased part of its output is not written.
    written = size['output'] - (size['alias'] if serving else 0)
    parts = {'compute_s': flops / (chip.flops / share),
             'memory_s': (size['argument'] + written + 2 * size['temp'])
             / (chip.hbm_bandwidth / share),
             'communication_s': facts['wire_bytes'] / (chip.ici_bandwidth / share)}
    return parts | {'step_s': (max(parts.values()), sum(parts.values()))}


def price(step_s: Span, steps: int, chips: float, chip: Chip) -> dict[str, Span | None]:
    """Return {'chip_hours', 'usd', 'usd_spot'} of `steps` steps on `chips` chips, each (from, to).

    The spot interval ends with the dearest region seen; dollars are None where no price is known.
    """
    least, most = (steps * seconds * chips / SECONDS for seconds in step_s)
    dollars = None
    if chip.usd:
        dollars = (chip.usd * least, chip.usd * most)
    spot = None
    if chip.usd_spot:
        cheapest, dearest = chip.usd_spot
        spot = (cheapest * least, dearest * most)
    return {'chip_hours': (least, most), 'usd': dollars, 'usd_spot': spot}


def summed(stages: Iterable[Sequence[Span]]) -> Span:
    """Return the sum over stages, each given as the spans of its shapes.

    A stage of several shapes takes something between its cheapest and its dearest.
    """
    # Lists, so that one `sum` adds them up: it may round otherwise than one `+=` after another.
    least = []
    most = []
    for spans in stages:
        starts, ends = zip(*spans)
        least.append(min(starts))
        most.append(max(ends))
    return sum(least), sum(most)

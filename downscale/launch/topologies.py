"""TPU slices that can be planned for: their chips, limits, speeds and prices.

Peak FLOP/s, HBM and ICI bandwidth, per chip: the Cloud TPU documentation of v5e, v5p, v6e and
tpu7x, read in August 2026; bandwidths of tpu7x are unverified. ICI counts both directions. Clocks
follow from the peak and the number of multipliers. `hbm_gib` is what the compiler lets a program
use. Prices: SkyPilot's catalogue v8, gcp/vms.csv at commit 006059e0, US regions, dollars per
chip-hour, as of `PRICES_AS_OF`; they depend on region and date, and every figure made of them is an
estimate. The catalogue has none for tpu7x.
"""
import math
import re
from dataclasses import dataclass

PRICES_AS_OF = '2026-08'


@dataclass(frozen=True)
class Chip:
    """One chip: FLOP/s (bf16), bytes/s, Hz, dollars per hour (on demand; spot from, to).

    `devices` is how many JAX devices a chip shows; its memory and speed are shared among them.
    """
    flops: float
    hbm_gib: float
    hbm_bandwidth: float
    ici_bandwidth: float
    clock: float
    devices: int = 1
    usd: float | None = None
    usd_spot: tuple[float, float] | None = None


CHIPS = {
    'v5e': Chip(197e12, 15.75, 819e9, 400e9, 1.5e9, usd=1.20, usd_spot=(0.24, 0.60)),
    'v5p': Chip(459e12, 95.74, 2765e9, 1200e9, 1.75e9, usd=4.20, usd_spot=(0.84, 1.68)),
    'v6e': Chip(918e12, 31.25, 1638e9, 800e9, 1.75e9, usd=2.70, usd_spot=(0.54, 1.35)),
    'tpu7x': Chip(2307e12, 189.5, 7400e9, 1200e9, 2.2e9, devices=2),
}
_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = ('1x1x1', '2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8',
          '8x8x16', '8x16x16')
SHAPES = {'v5e': _FLAT, 'v6e': _FLAT, 'v5p': _CUBES, 'tpu7x': _CUBES}


@dataclass(frozen=True)
class Topology:
    """`slices` slices of one generation and shape; `name` is how it is written."""
    name: str
    generation: str
    shape: str
    slices: int

    @property
    def chip(self):
        return CHIPS[self.generation]

    @property
    def chips(self):
        return self.slices * math.prod(int(side) for side in self.shape.split('x'))

    @property
    def devices(self):
        """JAX devices of all slices."""
        return self.chips * self.chip.devices

    @property
    def hbm_gib(self):
        """GiB that a program may use on one device."""
        return self.chip.hbm_gib / self.chip.devices

    def least(self, devices):
        """The smallest slice of this generation, of at least one host, that has `devices`."""
        whole = [topology(f'{self.generation}:{shape}') for shape in SHAPES[self.generation]]
        return next(place for place in whole if place.chips >= 4 and place.devices >= devices)


def topology(name):
    """The `Topology` called `name`: 'v5e:16x16', or '2xv5e:16x16' for two such slices.

    ValueError listing the known ones of that generation, or the generations.
    """
    found = re.fullmatch(r'(?:(\d+)x)?(\w+):([\dx]+)', name)
    slices, generation, shape = found.groups() if found else (None, name.partition(':')[0], '')
    if generation not in CHIPS:
        raise ValueError(f'unknown topology {name!r}; a generation ({", ".join(CHIPS)}) and a '
                         'shape are meant, as v5e:16x16 or, for two slices, 2xv5e:16x16')
    if shape not in SHAPES[generation] or slices == '0':
        raise ValueError(f'unknown topology {name!r}; known of {generation} are '
                         f'{", ".join(f"{generation}:{shape}" for shape in SHAPES[generation])}, '
                         'and several slices as 2xNAME')
    return Topology(name, generation, shape, int(slices or 1))

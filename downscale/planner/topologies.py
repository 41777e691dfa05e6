"""TPU slices: their chips, machines and limits, by name; the numbers are in `hardware.json`."""
import math
import re
from dataclasses import dataclass

from downscale.planner import hardware

PRICES_AS_OF = hardware.table()['as_of']
SHAPES = {name: tuple(found['shapes']) for name, found in hardware.table()['generations'].items()}


@dataclass(frozen=True, kw_only=True)
class Topology:
    """`slices` slices of one generation and shape; `name` is how it is written."""
    name: str
    generation: str
    shape: str
    slices: int

    @property
    def chip(self):
        return hardware.chip(self.generation)

    @property
    def machine(self):
        return hardware.machine(self.generation)

    @property
    def chips(self):
        return self.slices * math.prod(int(side) for side in self.shape.split('x'))

    @property
    def hosts(self):
        """Virtual machines of all slices; a slice of fewer chips than a machine has is one."""
        return self.slices * max(1, self.chips // self.slices // self.machine.chips)

    @property
    def accelerator_type(self):
        """What the TPU API calls one slice: 'v5litepod-16', 'v5p-128'."""
        each = {'chips': 1, 'cores': 2}[self.machine.counts]
        return f'{self.machine.prefix}-{self.chips // self.slices * each}'

    @property
    def devices(self):
        """JAX devices of all slices."""
        return self.chips * self.chip.devices

    @property
    def hbm_gib(self):
        """GiB that a program may use on one device."""
        return self.chip.hbm_gib / self.chip.devices

    def least(self, devices):
        """Return the smallest slice of this generation, of at least one host, that has
        `devices`.
        """
        whole = [topology(f'{self.generation}:{shape}') for shape in SHAPES[self.generation]]
        return next(place for place in whole if place.chips >= 4 and place.devices >= devices)


def topology(name):
    """Return the `Topology` called `name`: 'v5e:16x16', or '2xv5e:16x16' for two such slices.

    ValueError listing the known ones of that generation, or the generations.
    """
    found = re.fullmatch(r'(?:(\d+)x)?(\w+):([\dx]+)', name)
    slices, generation, shape = found.groups() if found else (None, name.partition(':')[0], '')
    if generation not in SHAPES:
        raise ValueError(f'unknown topology {name!r}; a generation ({", ".join(SHAPES)}) and a '
                         'shape are meant, as v5e:16x16 or, for two slices, 2xv5e:16x16')
    if shape not in SHAPES[generation] or slices == '0':
        raise ValueError(f'unknown topology {name!r}; known of {generation} are '
                         f'{", ".join(f"{generation}:{shape}" for shape in SHAPES[generation])}, '
                         'and several slices as 2xNAME')
    return Topology(name=name, generation=generation, shape=shape, slices=int(slices or 1))

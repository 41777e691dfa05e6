"""TPU slices: their chips, machines and limits, by name; the numbers are in `hardware.json`."""
import math
import re
from dataclasses import dataclass

from downscale.planner import hardware
from downscale.planner.hardware import Chip, Machine

PRICES_AS_OF = hardware.table()['as_of']
SHAPES = {name: tuple(figures['shapes'])
          for name, figures in hardware.table()['generations'].items()}
ZONES = {name: tuple(figures['zones']) for name, figures in hardware.table()['generations'].items()}


@dataclass(frozen=True, kw_only=True)
class Topology:
    """`slices` slices of one generation and shape; `name` is how it is written."""
    name: str
    generation: str
    shape: str
    slices: int

    @property
    def chip(self) -> Chip:
        """What one of its chips can do."""
        return hardware.chip(self.generation)

    @property
    def machine(self) -> Machine:
        """The virtual machine that holds its chips."""
        return hardware.machine(self.generation)

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slices * math.prod(int(side) for side in self.shape.split('x'))

    @property
    def hosts(self) -> int:
        """Virtual machines of all slices; a slice of fewer chips than a machine has is one."""
        return self.slices * max(1, self.chips // self.slices // self.machine.chips)

    @property
    def accelerator_type(self) -> str:
        """What the TPU API calls one slice: 'v5litepod-16', 'v5p-128'."""
        each = {'chips': 1, 'cores': 2}[self.machine.counts]  # a v5p-128 has 64 chips
        return f'{self.machine.prefix}-{self.chips // self.slices * each}'

    @property
    def devices(self) -> int:
        """JAX devices of all slices."""
        return self.chips * self.chip.devices

    @property
    def hbm_gib(self) -> float:
        """GiB that a program may use on one device."""
        return self.chip.hbm_gib / self.chip.devices

    def least(self, devices: int) -> 'Topology':
        """Return the smallest slice of this generation, at least one host, that has `devices`."""
        whole = [topology(f'{self.generation}:{shape}') for shape in SHAPES[self.generation]]
        return next(place for place in whole if place.chips >= 4 and place.devices >= devices)


def topology(name: str) -> Topology:
    """Return the `Topology` called `name`: 'v5e:16x16', or '2xv5e:16x16' for two such slices.

    ValueError listing the known ones of that generation, or the generations.
    """
    # A name without a shape may still name a generation, for a better message.
    match = re.fullmatch(r'(?:(\d+)x)?(\w+):([\dx]+)', name)
    slices, generation, shape = match.groups() if match else (None, name.partition(':')[0], '')
    if generation not in SHAPES:
        raise ValueError(f'unknown topology {name!r}; a generation ({", ".join(SHAPES)}) and a '
                         'shape are meant, as v5e:16x16 or, for two slices, 2xv5e:16x16')
    if shape not in SHAPES[generation] or slices == '0':
        known = ', '.join(f'{generation}:{shape}' for shape in SHAPES[generation])
        raise ValueError(f'unknown topology {name!r}; known of {generation} are {known}, and '
                         'several slices as 2xNAME')
    return Topology(name=name, generation=generation, shape=shape, slices=int(slices or 1))

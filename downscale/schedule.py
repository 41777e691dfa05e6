"""The curve of the learning rate over the steps of a stage."""
import math
from dataclasses import dataclass
from typing import Annotated

from downscale.values import COUNT, Range, check

# Of a stage; 1 is more likely meant as one step than as all of them.
WARMUP = Annotated[float, Range(0, 1, 'the share of the steps in which the rate climbs, 0.03 for 3 '
                                'per cent; not a number of steps', without=(1,))]
FINAL = Annotated[float, Range(0, 1, 'the share of the peak rate that the last step has')]


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over a share of the steps, then cosine to `final` of the peak rate."""
    steps: Annotated[int, Range(1, COUNT, 'steps of the stage')]
    warmup: Annotated[float, Range(0, 1, 'the share of the steps in which the rate climbs')] = 0.03
    final: FINAL = 0.0

    def __post_init__(self):
        check(self)

    def factor(self, step: int) -> float:
        """Return the share of the peak rate at `step` (0-based), in (0, 1]."""
        # At least one step, so that no step has rate 0 and none divides by 0.
        warmup = max(1, round(self.warmup * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        # `done` stays below 1: even with `final` 0 the last step still moves the weights.
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))

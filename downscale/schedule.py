"""The curve of the learning rate over the steps of a stage."""
import math
from dataclasses import dataclass
from typing import Annotated

from downscale.values import COUNT, Range, check

# Of a stage; 1 is more likely meant as one step than as all of them.
WARMUP = Annotated[float, Range(0, 1, 'the share of the steps in which the rate climbs, 0.03 for 3 '
                                'per cent; not a number of steps', without=(1,))]
DECAY = Annotated[float, Range(0, 1, 'the share of the steps, the last ones, in which the rate '
                               'falls in a line, after a constant one; 0 is a cosine over all',
                               without=(1,))]
FINAL = Annotated[float, Range(0, 1, 'the share of the peak rate that the last step has')]


def leaves(steps: int, decay: float) -> int:
    """Return the step behind which the rate falls over a share `decay` of `steps`."""
    return steps - max(1, round(decay * steps))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up over a share of the steps, then cosine to `final` of the peak rate.

    With `decay` the rate is constant, and falls in a line over that share of the steps, the last.
    """
    steps: Annotated[int, Range(1, COUNT, 'steps of the stage')]
    warmup: Annotated[float, Range(0, 1, 'the share of the steps in which the rate climbs')] = 0.03
    final: FINAL = 0.0
    decay: DECAY = 0.0

    def __post_init__(self):
        check(self)
        if self.decay and self.warmup_steps > self.constant_until:
            raise ValueError(f'of {self.steps} steps the rate climbs in {self.warmup_steps} and '
                             f'falls behind {self.constant_until}; lower `warmup` or `decay`')

    @property
    def warmup_steps(self) -> int:
        """How many steps the rate climbs: at least one, so that no step has rate 0."""
        return max(1, round(self.warmup * self.steps))

    @property
    def constant_until(self) -> int:
        """The step behind which the rate falls in a line; that of the last where it does not."""
        return leaves(self.steps, self.decay) if self.decay else self.steps

    def factor(self, step: int) -> float:
        """Return the share of the peak rate at `step` (0-based), in (0, 1]."""
        warmup = self.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        # `done` stays below 1: even with `final` 0 the last step still moves the weights.
        if self.decay:
            begin = self.constant_until
            done = max(0, step - begin) / (self.steps - begin)
            return 1 - (1 - self.final) * done
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))

"""Every knob of a stage of a cell, frozen, and what follows from them: its shapes and schedule."""
import dataclasses
from dataclasses import dataclass
from typing import Annotated

from downscale.data.buckets import BATCH, LENGTH, TILES, Shape, in_order
from downscale.data.scenes.conversations import (
    BLIND,
    LOSS_NORM,
    SHARE,
    STAGE,
    TURNS,
    Recipe,
)
from downscale.schedule import DECAY, FINAL, WARMUP, Schedule, leaves
from downscale.stage_table import GROUPS, STAGES, StageKind
from downscale.values import COUNT, Choice, Range, Several, check

# The newline may come from a parent, but it learns with `language` and has no rate of its own.
_GROUP = Annotated[str, Choice(GROUPS, 'group')]
BY = ('influence', 'position')
# Fields of a stage that cuts and of no other, with what they are there.
OF_SHRINKING = {'by': 'influence', 'bits': 0, 'group': 32}
TRAINS = 'the groups that a stage trains'
PARENTED = Annotated[str, Choice((*GROUPS, 'image_newline_D'), 'group')]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a cell. `batch` is global; `rates` are peak learning rates by group.

    `buckets` are smaller shapes of batches for what does not need `length` and `tiles`; `steps`
    counts the batches of all shapes. See `pipeline.Recipe` for what they do to the loss.
    `mixture` is the folder of a mixture built from published sets (`downscale data build`); without
    it the stage is trained on the scene world. `blind` is the share of its conversations that are
    asked without their pictures, so that a question without one is nothing new.
    `decay` is the share of the steps, the last ones, in which the rate falls in a line after a
    constant one; 0 is a cosine over all. `forks` are smaller numbers of steps: each becomes a cell
    that goes on from this run's checkpoint with a decay of its own, as if it had been trained for
    so many steps from the start. `trunk` is the cell that such a fork left; no study sets it.
    A stage 'shrink' reads `steps` batches to tell which layers to keep `by` their 'influence', and
    which neurons and heads; by 'position' layers are evenly spaced. `bits`, which no study sets,
    are those of the cell's size, with a scale for each `group` of inputs.
    """
    name: STAGE
    steps: Annotated[int, Range(1, COUNT, 'steps of the stage')]
    batch: BATCH
    length: LENGTH
    tiles: TILES
    rates: dict[_GROUP, Annotated[float, Range(
        0, 1e38, 'peak learning rate of a group; leave a group out of `trainable` to freeze it',
        without=(0,))]]
    trainable: Annotated[tuple[_GROUP, ...], Several(0, TRAINS)]
    parents: dict[PARENTED, str]
    warmup: WARMUP = 0.05
    final: FINAL = 0.1
    decay: DECAY = 0.0
    forks: Annotated[tuple[Annotated[int, Range(1, COUNT, 'steps of a fork')], ...], Several(
        0, 'numbers of steps at which short decays end')] = ()
    trunk: str = ''
    replay: dict[STAGE, SHARE] = dataclasses.field(default_factory=dict)
    loss_norm: LOSS_NORM = 'token'
    turns: TURNS = 6
    blind: BLIND = 0.0
    save_every: Annotated[int, Range(1, COUNT, 'steps from one checkpoint to the next')] = 200
    buckets: tuple[Shape, ...] = ()
    mixture: str = ''
    by: Annotated[str, Choice(BY, 'way to choose layers')] = 'influence'
    bits: Annotated[int, Range(0, 8, 'bits of a weight; 0 is a float')] = 0
    group: Annotated[int, Range(1, 2 ** 20, 'inputs of a weight matrix with one scale')] = 32

    def __post_init__(self):
        check(self)
        if self.kind.loss != 'none':
            Several(1, TRAINS).check(self.trainable, f'stage {self.name}: trainable')
            misplaced = [name for name, value in OF_SHRINKING.items()
                         if vars(self)[name] != value]
            if misplaced:
                raise ValueError(f'stage {self.name}: {", ".join(misplaced)} is for the stage '
                                 'shrink alone; leave it out')
        elif self.trainable or self.rates:
            raise ValueError(f'stage {self.name} trains nothing; leave out trainable and rates')
        # A rate for a group that is frozen does no harm.
        lacking = sorted(set(self.trainable) - set(self.rates))
        if lacking:
            raise ValueError(f'stage {self.name} trains {lacking} without a rate in `rates`')
        # Replayed stages and the tower's captions are drawn from the scene world.
        if self.blind and (self.mixture or not self.kind.answers):
            raise ValueError(f'stage {self.name}: `blind` is the share of questions about '
                             'scenes without their picture, in a stage that answers; leave it out')
        if self.mixture and (self.kind.rows == 'captioned' or self.replay):
            raise ValueError(f'stage {self.name}: a mixture is neither for the tower stage nor for '
                             '`replay`; give its sources their shares in the mixture')
        # Made here for their own checks, before work starts.
        assert self.recipe and self.shape and self.schedule
        self._check_buckets()
        self._check_forks()

    def _check_forks(self):
        if self.forks and not self.decay:
            raise ValueError(f'stage {self.name}: forks leave a constant rate; give `decay`, the '
                             'share of the steps in which it falls, such as 0.2')
        for steps in self.forks:
            if steps >= self.steps:
                raise ValueError(f'stage {self.name}: a fork of {steps} steps does not end before '
                                 f'the stage, which has {self.steps} and is itself the last point; '
                                 'leave it out')
            begin = leaves(steps, self.decay)
            if begin < self.schedule.warmup_steps:
                raise ValueError(f'stage {self.name}: the fork of {steps} steps leaves at step '
                                 f'{begin}, while the rate climbs until '
                                 f'{self.schedule.warmup_steps}; lower `warmup` or raise the fork')
        if len(set(self.kept)) < len(self.forks):
            raise ValueError(f'stage {self.name}: two of the forks {list(self.forks)} leave at one '
                             'step; keep one')

    def forked(self, trunk: str = '') -> tuple['Stage', ...]:
        """Return the stage of each fork, from the checkpoints of the cell called `trunk`."""
        # A share of fewer steps: all of them climb in the steps in which the trunk does.
        climb = self.schedule.warmup_steps
        return tuple(dataclasses.replace(self, steps=steps, warmup=climb / steps, forks=(),
                                         trunk=trunk) for steps in self.forks)

    def _check_buckets(self):
        if self.buckets and self.kind.rows == 'captioned':
            raise ValueError(f'stage {self.name} has one picture and its caption in a row, and one '
                             'shape; leave out its buckets')
        sizes = [(bucket.length, bucket.tiles) for bucket in self.buckets]
        for size in sizes:
            where = f'stage {self.name}: a bucket of {size[0]} tokens and {size[1]} tiles'
            # A bucket of the stage's own size would be the same program twice.
            if not self.shape.holds(*size) or size == (self.length, self.tiles):
                raise ValueError(f'{where} is not smaller than the stage\'s rows of {self.length} '
                                 f'tokens and {self.tiles} tiles; raise `length` or `tiles`, or '
                                 'leave it out')
            if sizes.count(size) > 1:
                raise ValueError(f'{where} occurs {sizes.count(size)} times; keep one')

    @property
    def kind(self) -> StageKind:
        """What is true of every stage of this name."""
        return STAGES[self.name]

    @property
    def recipe(self) -> Recipe:
        """What of the stage decides which conversations its batches hold."""
        return Recipe(
            stage=self.name,
            replay=tuple(self.replay.items()),
            loss_norm=self.loss_norm,
            turns=self.turns,
            blind=self.blind,
        )

    @property
    def shape(self) -> Shape:
        """The largest shape of its batches."""
        return Shape(self.batch, self.length, self.tiles)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of all batches, from the smallest to `shape`."""
        return in_order((*self.buckets, self.shape))

    @property
    def schedule(self) -> Schedule:
        """The course of its learning rates."""
        return Schedule(steps=self.steps, warmup=self.warmup, final=self.final, decay=self.decay)

    @property
    def first_step(self) -> int:
        """The step at which it begins: 0, or that at which a fork leaves its trunk."""
        return self.schedule.constant_until if self.trunk else 0

    @property
    def kept(self) -> tuple[int, ...]:
        """The steps whose checkpoints its forks go on from, which none takes the place of."""
        return tuple(leaves(steps, self.decay) for steps in self.forks)

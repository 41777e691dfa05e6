"""Every knob of a stage of a cell, frozen, and what follows from them: its shapes and schedule."""
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from downscale.data.buckets import BATCH, LENGTH, TILES, Shape, in_order
from downscale.data.chat import CHATS
from downscale.data.scenes.conversations import (
    BLIND,
    LOSS_NORM,
    SHARE,
    STAGE,  # those of which the scene world has conversations
    TURNS,
    Recipe,
)
from downscale.schedule import DECAY, FINAL, WARMUP, Schedule, leaves
from downscale.stage_table import GROUPS, READERS, STAGES, StageKind
from downscale.values import COUNT, Choice, Range, Several, check

# The newline may come from a parent, but it learns with `language` and has no rate of its own.
_GROUP = Annotated[str, Choice(GROUPS, 'group')]
BY = ('influence', 'position')
# Fields of a stage that cuts and of no other, with what they are there.
OF_SHRINKING = {'by': 'influence', 'bits': 0, 'group': 32}
TRAINS = 'the groups that a stage trains'
PARENTED = Annotated[str, Choice((*GROUPS, 'image_newline_D'), 'group')]


TEXT_STAGES = ('text', *READERS)  # whose models answer from texts
METHODS = ('grpo', 'rejection', 'dpo', 'distil')
# Fields of `PolicySettings` that are about descriptions, and who reads them.
OF_DESCRIPTIONS = ('reasoners', 'think', 'answer', 'budget', 'leak_price', 'questions')
_SHARE = Range(0, 1e6, 'share of a reward')


def is_stage(reasoner: str) -> bool:
    """Return whether one of `PolicySettings.reasoners` is a stage, and not a folder."""
    return reasoner.rpartition('/')[2] in TEXT_STAGES


def reader_of(stages: Iterable['Stage']) -> str:
    """Return the stage of a cell that answers from texts, the last one tuned to; '' without."""
    names = {stage.name for stage in stages}
    return next((name for name in READERS if name in names), '')


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """How the stage 'perceive' learns from what it writes itself (`downscale/policy/`).

    For each question it writes `group` descriptions of at most `write` tokens, at `temperature` and
    under a `budget` of words where the world has some. Each is worth the share of the `reasoners`
    that answer rightly from it (a stage such as 'reason' or 'w96d4/reason', or the folder of an
    imported model; `think` tokens of thought at most, 0: none, and `answer` of answer), less
    `length_price` for one of `write` tokens, less `leak_price` for one that hands the answer over.
    `method` says what is learnt: 'grpo' (arXiv 2402.03300) prefers what is better than its group,
    with ratios cut at 1 - `clip[0]` and 1 + `clip[1]` (arXiv 2503.14476); 'rejection' the best of a
    group that answers; 'dpo' the best over the worst (arXiv 2305.18290); 'distil' what the stage's
    `teacher` would write next at each place of it, and no reasoner is asked. `kl` weighs, in
    'grpo', the distance from what the stage starts from, and is the beta of 'dpo'; 0 asks for no
    such distance. Of `tries` times as many questions those are kept first whose group disagrees.
    `updates` steps are taken with what was written at once. `questions` is a file of one's own
    questions, in the place of those of the scenes. `scrambled` is a control: every group is paid
    what the next group of its batch earned, so that rewards say nothing about what was written.

    The stage 'practise' does the same with thoughts: it reads a true caption or extraction with a
    question, writes a thought and an answer of together at most `write` tokens, and is paid where
    that answer is right. `reasoners`, `think`, `answer`, `budget`, `leak_price` and `questions` are
    not for it.
    """
    reasoners: Annotated[tuple[str, ...], Several(1, 'who answers from what is written')] = (
        'reason',)
    method: Annotated[str, Choice(METHODS, 'method')] = 'grpo'
    group: Annotated[int, Range(2, 1024, 'descriptions of one question')] = 8
    temperature: Annotated[float, Range(0, 10, 'temperature', without=(0,))] = 1.0
    write: Annotated[int, Range(1, 2 ** 20, 'tokens of a description at most')] = 64
    think: Annotated[int, Range(0, 2 ** 20, 'tokens of a thought at most; 0 is none')] = 0
    answer: Annotated[int, Range(1, 2 ** 20, 'tokens of an answer at most')] = 8
    budget: Annotated[int, Range(0, 10_000, 'words of a description; 0 is no budget')] = 0
    length_price: Annotated[float, _SHARE] = 0.0
    leak_price: Annotated[float, _SHARE] = 1.0
    clip: tuple[float, float] = (0.2, 0.28)
    kl: Annotated[float, Range(0, 1e6, 'weight of the distance from the start')] = 0.01
    tries: Annotated[int, Range(1, 64, 'questions that are tried for one that is kept')] = 1
    updates: Annotated[int, Range(1, 1024, 'steps with what was written at once')] = 1
    questions: str = ''
    scrambled: bool = False

    @property
    def measures(self) -> bool:
        """Whether the distance from the start is measured."""
        return bool(self.kl) and self.method != 'distil'

    def __post_init__(self):
        check(self)
        low, high = self.clip
        if not (0 <= low < 1 and high >= 0):
            raise ValueError(f'policy.clip {self.clip} must be how far below 1, at most all of it, '
                             'and how far above 1 a ratio may go')
        if self.method == 'dpo' and not self.kl:
            raise ValueError("policy.kl is the beta of 'dpo', and 0 would teach nothing; give it "
                             'a value such as 0.1')
        if self.scrambled and self.method == 'distil':
            raise ValueError("policy.scrambled mixes up rewards, and 'distil' has none; leave it "
                             'out, or choose another method')


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
    `teacher` names a model that the stage learns from: a stage of this study, 'w96d4/extract' of
    the cell of that size and of this seed, 'w96d4-s0/extract' of one cell whatever the seed,
    'instruct' of this cell, or the folder of a model. `distil` is the share of the loss that is the
    divergence from it, KL(teacher || student); the rest is cross-entropy. At 0 it is told only.
    A stage 'shrink' reads `steps` batches to tell which layers to keep `by` their 'influence', and
    which neurons and heads; by 'position' layers are evenly spaced. `bits`, which no study sets,
    are those of the cell's size, with a scale for each `group` of inputs.
    """
    name: Annotated[str, Choice(tuple(STAGES), 'stage')]
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
    policy: PolicySettings = PolicySettings()
    teacher: str = ''
    distil: Annotated[float, Range(0, 1, 'share of the loss that is the divergence from the teacher'
                                   )] = 1.0
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
        if self.teacher and self.kind.loss not in ('tokens', 'policy'):
            raise ValueError(f'stage {self.name} learns no distribution over the next token; leave '
                             'out its `teacher`')
        if self.distil != 1 and not self.teacher:
            raise ValueError(f'stage {self.name}: distil = {self.distil:g} is the share of a loss '
                             'that comes from a teacher; give `teacher`, or leave it out')
        # A rate for a group that is frozen does no harm.
        lacking = sorted(set(self.trainable) - set(self.rates))
        if lacking:
            raise ValueError(f'stage {self.name} trains {lacking} without a rate in `rates`')
        # Replayed stages and the tower's captions are drawn from the scene world.
        # To explain without a picture would be to invent one.
        if self.blind and (self.mixture or not self.kind.answers or self.kind.explains):
            raise ValueError(f'stage {self.name}: `blind` is the share of questions about scenes '
                             'without their picture, in a stage that answers at once; leave it out')
        if self.mixture and self.kind.explains:
            raise ValueError(f'stage {self.name} writes what a question needs before it answers, '
                             'and the rows of a mixture do not tell that; leave `mixture` out')
        if self.mixture and (self.kind.rows == 'captioned' or self.replay):
            raise ValueError(f'stage {self.name}: a mixture is neither for the tower stage nor for '
                             '`replay`; give its sources their shares in the mixture')
        # Made here for their own checks, before work starts.
        assert self.shape and self.schedule
        assert self.kind.rows == 'written' or self.recipe
        self._check_buckets()
        self._check_forks()
        self._check_policy()

    @property
    def thinks(self) -> bool:
        """Whether its conversations about made-up scenes, or those it replays, hold thoughts."""
        return not self.mixture and any(STAGES[name].thinks for name in (self.name, *self.replay))

    def check_chat(self, chat: str) -> None:
        """Raise ValueError where a chat, a name of `CHATS`, would drop thoughts that are learnt."""
        # What is left of an earlier reply would teach to answer at once.
        if self.thinks and self.turns > 1 and chat in CHATS and any(CHATS[chat].thought):
            raise ValueError(f'stage {self.name}: chat {chat!r} keeps the thought of the last '
                             f'reply alone, and this stage learns one in each of {self.turns}; set '
                             'its turns to 1, or choose another chat')

    def _check_policy(self):
        policy = self.policy
        if self.kind.rows != 'written':
            if policy != PolicySettings():
                raise ValueError(f'stage {self.name} learns from given texts; `policy` is for the '
                                 "stages 'perceive' and 'practise'")
            return
        misplaced = [name for name in OF_DESCRIPTIONS
                     if vars(policy)[name] != vars(PolicySettings())[name]]
        if self.kind.reads and misplaced:
            raise ValueError(f'stage {self.name}: policy.{", ".join(misplaced)} is about '
                             'descriptions and who reads them; it answers itself: leave it out')
        if self.mixture or self.replay or self.buckets or self.forks:
            raise ValueError(f'stage {self.name} writes its rows itself; leave out mixture, '
                             'replay, buckets and forks (`policy.questions` names own questions)')
        if (policy.method == 'distil') != bool(self.teacher):
            raise ValueError(f"stage {self.name}: the method 'distil' learns from a `teacher`, and "
                             'no other does; give both or neither')
        if self.batch % policy.group:
            raise ValueError(f'stage {self.name}: batch {self.batch} is no whole number of groups '
                             f'of {policy.group} ({self.batch} % {policy.group} = '
                             f'{self.batch % policy.group})')
        if policy.scrambled and self.batch == policy.group:
            raise ValueError(f'stage {self.name}: policy.scrambled pays a group what another of '
                             f'its batch earned, and a batch of {self.batch} rows is one group of '
                             f'{policy.group}; raise batch or lower policy.group')
        # Between two writings the model that wrote is gone: nothing could be resumed there.
        for name, value in (('steps', self.steps), ('save_every', self.save_every)):
            if value % policy.updates:
                raise ValueError(f'stage {self.name}: {name} {value} must be a multiple of '
                                 f'policy.updates {policy.updates}, for what was written is not '
                                 'saved')

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
    def judges(self) -> tuple[str, ...]:
        """The reasoners that say what its own texts are worth."""
        asks = self.kind.writes and self.kind.rows == 'written' and self.policy.method != 'distil'
        return self.policy.reasoners if asks else ()

    @property
    def kind(self) -> StageKind:
        """What is true of every stage of this name."""
        return STAGES[self.name]

    @property
    def loss(self) -> str:
        """A key of `train.step.LOSSES`, or 'none'; what a teacher says is learnt as a text is."""
        return 'tokens' if self.policy.method == 'distil' else self.kind.loss

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

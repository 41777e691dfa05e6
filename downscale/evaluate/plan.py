"""What an extract-think chain is told to do, checked before any work."""
from dataclasses import dataclass

from downscale.evaluate.prompts import KINDS, MODES
from downscale.generate.engine import Decoding
from downscale.generate.sampling import Sampling
from downscale.values import unknown


@dataclass(frozen=True, kw_only=True)
class ChainPlan:
    """What decides the texts beside data, prompts and models; limits are tokens.

    `temperature`, `top_k`, `top_p`, `ban_reflexive`, `nudge`, `reference_compat` and `repeats` are
    the reasoner's: descriptions are written greedily and once (arXiv 2511.17487, its code).
    """
    describe_tokens: int
    think_tokens: int
    answer_tokens: int
    describe: str = 'caption'
    reason: tuple[str, ...] = ('think',)
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repeats: int = 1
    ban_reflexive: bool = False
    nudge: float = 0.0
    reference_compat: bool = False

    def __post_init__(self) -> None:
        if self.describe not in KINDS:
            raise ValueError(unknown('description', self.describe, KINDS))
        for mode in self.reason:
            if mode not in MODES:
                raise ValueError(unknown('mode', mode, MODES))
        # Two cells of one mode would be one file.
        if len(set(self.reason)) != len(self.reason) or not self.reason:
            raise ValueError(f'modes {list(self.reason)} must name each mode once')
        for name, least in (('think_tokens', 0), ('answer_tokens', 1), ('describe_tokens', 1),
                            ('repeats', 1), ('seed', 0)):
            if getattr(self, name) < least:
                raise ValueError(f'{name} {getattr(self, name)} must be at least {least}')
        if self.repeats > 1 and self.temperature == 0:
            # Greedy repeats would cost as much and say nothing about chance.
            raise ValueError(f'{self.repeats} greedy repeats would be equal; give a temperature or '
                             'one repeat')
        assert self.decoding(())  # made for its own checks, before work starts

    def decoding(self, banned: tuple[int, ...]) -> Decoding:
        """Return how a reasoner writes; `banned` are the reflexive ids of its vocabulary."""
        return Decoding(sampling=Sampling(self.temperature, self.top_k, self.top_p),
                        seed=self.seed, banned_thinking=banned, nudge=self.nudge,
                        reference_compat=self.reference_compat)

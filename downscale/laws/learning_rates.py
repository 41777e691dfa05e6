"""Which learning rate a size is trained with: one rule, the same for every size.

The rate with the lowest final loss, averaged over seeds; of equal ones the smaller. A best rate at
the end of the grid is an alarm: the grid says nothing of what lies beyond.
"""
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LAST = 0.1  # share of the steps whose mean loss counts as final


@dataclass(frozen=True)
class RateRun:
    """A finished run; `loss` is its final loss in nats a token, `math.inf` where it diverged."""
    lr: float
    seed: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class RateChoice:
    """The chosen rate, its mean loss, and the grid that it was chosen from.

    `grid` holds (rate, mean loss) from the lowest rate on. `edge` says at which end of it the rate
    lies: 'lowest', 'highest', or '' where all is well.
    """
    lr: float
    loss: float
    grid: tuple[tuple[float, float], ...]
    edge: str

    @property
    def rates(self) -> tuple[float, ...]:
        """The rates of the grid."""
        return tuple(lr for lr, _ in self.grid)

    @property
    def place(self) -> int:
        """The position of the chosen rate in the grid."""
        return self.rates.index(self.lr)


def choose(runs: Sequence[RateRun]) -> RateChoice:
    """Return the `RateChoice` among the runs of one size.

    A rate at which any seed diverged has an infinite mean. ValueError where rates differ in their
    seeds (their means would not be comparable), a run occurs twice, or every rate diverged.
    """
    losses = {}
    for run in runs:
        by_seed = losses.setdefault(run.lr, {})
        if run.seed in by_seed:
            raise ValueError(f'lr {run.lr:g} has two runs of seed {run.seed}; give each once')
        by_seed[run.seed] = run.loss if math.isfinite(run.loss) else math.inf
    if not losses:
        raise ValueError('no runs to choose a learning rate from')
    seeds = {lr: sorted(by_seed) for lr, by_seed in losses.items()}
    # A rate that lacks its worst seed would look better than it is.
    wanted = seeds[min(seeds)]
    for lr, trained in seeds.items():
        if trained != wanted:
            raise ValueError(f'lr {lr:g} has seeds {trained}, lr {min(seeds):g} {wanted}; '
                             'train the missing ones, so that means compare')
    # `fsum` rounds once, so that the order of the runs cannot decide between two rates.
    grid = tuple((lr, math.fsum(losses[lr].values()) / len(losses[lr])) for lr in sorted(losses))
    lr, loss = min(grid, key=lambda point: (point[1], point[0]))
    if loss == math.inf:
        raise ValueError(f'every rate of {[lr for lr, _ in grid]} diverged; sweep lower ones')
    edge = ''
    if lr == grid[-1][0]:
        edge = 'highest'
    if lr == grid[0][0]:   # a grid of a single rate ends here as well
        edge = 'lowest'
    return RateChoice(lr=lr, loss=loss, grid=grid, edge=edge)


def choose_all(runs: Mapping[str, Sequence[RateRun]]) -> tuple[dict[str, RateChoice], list[str]]:
    """Return ({size: `RateChoice`}, alarms as lines) of {size: its runs}.

    ValueError names the size whose runs give no choice.
    """
    choices = {}
    alarms = []
    for size, trained in runs.items():
        try:
            choices[size] = choice = choose(trained)
        except ValueError as error:
            raise ValueError(f'{size}: {error}') from None
        if choice.edge:
            alarms.append(f'{size}: lr {choice.lr:g} is the {choice.edge} of '
                          f'{len(choice.grid)}; sweep beyond it before this size is compared')
    return choices, alarms


def moved(choices: Mapping[str, RateChoice]) -> int:
    """Return by how many steps of their common grid the chosen rates of the sizes lie apart.

    ValueError when the sizes were swept over different grids.
    """
    grids = {choice.rates for choice in choices.values()}
    if len(grids) > 1:
        raise ValueError(f'sizes {list(choices)} were swept over {len(grids)} different grids')
    places = [choice.place for choice in choices.values()]
    return max(places) - min(places)

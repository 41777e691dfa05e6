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
    """The chosen rate, its mean loss, the grid as (rate, mean loss) from the lowest rate on, and
    whether it lies at an end of that grid ('lowest', 'highest', or '' where all is well)."""
    lr: float
    loss: float
    grid: tuple[tuple[float, float], ...]
    edge: str

    @property
    def place(self) -> int:
        """The position of the chosen rate in the grid."""
        return [lr for lr, _ in self.grid].index(self.lr)


def choose(runs: Sequence[RateRun]) -> RateChoice:
    """Return the `RateChoice` among the runs of one size.

    A rate at which any seed diverged has an infinite mean. ValueError where rates differ in their
    seeds (their means would not be comparable), a run occurs twice, or every rate diverged.
    """
    losses = {}
    for run in runs:
        mine = losses.setdefault(run.lr, {})
        if run.seed in mine:
            raise ValueError(f'lr {run.lr:g} has two runs of seed {run.seed}; give each once')
        mine[run.seed] = run.loss if math.isfinite(run.loss) else math.inf
    if not losses:
        raise ValueError('no runs to choose a learning rate from')
    seeds = {lr: sorted(mine) for lr, mine in losses.items()}
    for lr, own in seeds.items():
        if own != seeds[min(seeds)]:
            raise ValueError(f'lr {lr:g} has seeds {own}, lr {min(seeds):g} {seeds[min(seeds)]}; '
                             'train the missing ones, so that means compare')
    grid = tuple((lr, math.fsum(losses[lr].values()) / len(losses[lr])) for lr in sorted(losses))
    lr, loss = min(grid, key=lambda point: (point[1], point[0]))
    if loss == math.inf:
        raise ValueError(f'every rate of {[lr for lr, _ in grid]} diverged; sweep lower ones')
    edge = 'lowest' if lr == grid[0][0] else 'highest' if lr == grid[-1][0] else ''
    return RateChoice(lr=lr, loss=loss, grid=grid, edge=edge)


def choose_all(runs: Mapping[str, Sequence[RateRun]]) -> tuple[dict[str, RateChoice], list[str]]:
    """Return ({size: `RateChoice`}, alarms as lines) of {size: its runs}; ValueError names the
    size.
    """
    found = {}
    alarms = []
    for size, mine in runs.items():
        try:
            found[size] = choice = choose(mine)
        except ValueError as error:
            raise ValueError(f'{size}: {error}') from None
        if choice.edge:
            alarms.append(f'{size}: lr {choice.lr:g} is the {choice.edge} of '
                          f'{len(choice.grid)}; sweep beyond it before this size is compared')
    return found, alarms


def moved(choices: Mapping[str, RateChoice]) -> int:
    """By how many steps of their common grid the chosen rates of the sizes lie apart.

    ValueError when the sizes were swept over different grids.
    """
    grids = {tuple(lr for lr, _ in choice.grid) for choice in choices.values()}
    if len(grids) > 1:
        raise ValueError(f'sizes {list(choices)} were swept over {len(grids)} different grids')
    places = [choice.place for choice in choices.values()]
    return max(places) - min(places)

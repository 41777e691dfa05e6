"""How sure a number over seeds and pictures is: two crossed variances, degrees, and their rows.

Every seed answers the same pictures, so that a mean over k seeds varies by three parts:

    seeds / k  +  pictures  +  what one seed does on one picture / k

The spread between seeds shows the first and the third, redrawn pictures the second and the third.
The third is therefore taken off once, else quiet seeds would have it twice. The degrees of freedom
of the sum are Satterthwaite's (Biometrics 2:110, 1946), with the third part on the side of the
seeds as well: few seeds that agree by luck would else have the degrees of many pictures.

So that any number has such an interval, a ratio or a share as well, the draws of a mean over seeds
are rows of three kinds, from which numbers are made element by element: the mean under redrawn
pictures; the same with seeds that weigh unequally; and the mean without one seed (the jackknife).
Letters of axes: B resamples, R compared groups, S seeds, G families, N rows.
"""
from dataclasses import dataclass

import numpy as np

FEW_SEEDS = 3  # fewer training seeds show no spread between them


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """How many training seeds a number is over, of how many `planned`.

    `blocks` counts the groups of models whose seeds vary independently of each other: 1 where a
    seed is one draw for all that is compared.
    """
    count: int = 1
    planned: int = 1
    blocks: int = 1

    @property
    def wanted(self) -> bool:
        """Whether an interval has to cover the choice of seeds.

        It has to where `FEW_SEEDS` are there or were planned: if only those that are there
        counted, an interval would narrow when seeds go missing.
        """
        return max(self.count, self.planned) >= FEW_SEEDS

    @property
    def shown(self) -> bool:
        """Whether draws are the rows of this page: seeds have to be covered, and can be."""
        return self.wanted and self.count > 1


ONE_SEED = Seeds()


def directions(count: int, draws: int, seed: int | tuple = 0) -> np.ndarray:
    """Return random weights [draws, count] of seeds that add up to 0, their squares to 1."""
    lever_BS = np.random.default_rng([count, *np.atleast_1d(seed)]).standard_normal((draws, count))
    lever_BS -= lever_BS.mean(axis=1, keepdims=True)
    return lever_BS / np.sqrt(np.square(lever_BS).sum(axis=1, keepdims=True))


def rows(value_RSG: np.ndarray, draws_RSBG: np.ndarray, lever_BS: np.ndarray,
         block_R: np.ndarray) -> np.ndarray:
    """Return the rows [N, R, G] of means over seeds, N = 2 B + blocks x S; see the page.

    `value_RSG` and `draws_RSBG` are those of each seed, `lever_BS` from `directions`, `block_R`
    numbers the block of each group from 0 on.
    """
    count = value_RSG.shape[1]
    mean_RG = value_RSG.mean(axis=1)
    pictures_BRG = np.moveaxis(draws_RSBG.mean(axis=1), 1, 0)
    # Of the seeds' own values nothing is added here: they are in the rows of the third kind.
    apart = np.einsum('BS,RSBG->BRG', lever_BS, draws_RSBG)
    apart -= np.einsum('BS,RSG->BRG', lever_BS, value_RSG)
    without_SRG = np.moveaxis((mean_RG[:, None] * count - value_RSG) / (count - 1), 1, 0)
    left_out = [np.where((block_R == block)[None, :, None], without_SRG, mean_RG)
                for block in range(block_R.max() + 1)]
    return np.concatenate([pictures_BRG, pictures_BRG + apart / np.sqrt(count), *left_out])


def fixed(value: np.ndarray, draws: np.ndarray, seeds: Seeds) -> np.ndarray:
    """Return the rows of what no seed moves: `value` [...] with its `draws` [B, ...]."""
    if not seeds.shown:
        return draws
    alike = np.broadcast_to(value, (seeds.blocks * seeds.count, *np.shape(value)))
    return np.concatenate([draws, draws, alike])


def covariance(rows: np.ndarray, seeds: Seeds, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (covariance [m, m], degrees of freedom [m]) of numbers whose rows are [N, m].

    Draws that are not finite are left out. Degrees are infinite where nothing varies.
    """
    count = seeds.count
    left_out = rows[len(rows) - seeds.blocks * count:].reshape(seeds.blocks, count, -1)
    pictures, unequal = rows[:len(rows) - seeds.blocks * count].reshape(2, -1, rows.shape[1])
    there = np.isfinite(pictures).all(axis=1) & np.isfinite(unequal).all(axis=1)
    if not there.sum() > 1:
        return np.full((rows.shape[1],) * 2, np.nan), np.full(rows.shape[1], np.nan)
    # 1. Seeds, block by block: the variance of a jackknife.
    apart = left_out - left_out.mean(axis=1, keepdims=True)
    of_seeds = np.einsum('ZSm,ZSn->Zmn', apart, apart) * (count - 1) / count
    # 2. Pictures beyond what the seeds have shown already. A bootstrap's variance is short.
    scale = clusters / (clusters - 1)
    of_both = np.atleast_2d(np.cov((unequal - pictures)[there].T)) * scale
    extra = _positive(np.atleast_2d(np.cov(pictures[there].T)) * scale - of_both)
    # 3. Their sum, and how many degrees it has.
    total = of_seeds.sum(axis=0) + extra
    seeds_Zm = np.einsum('Zmm->Zm', of_seeds)
    # Blocks have of the third part as much as they have of the seeds': what is in no number, none.
    with np.errstate(invalid='ignore', divide='ignore'):
        share_Zm = np.nan_to_num(seeds_Zm / seeds_Zm.sum(axis=0), nan=1 / seeds.blocks)
    seeds_Zm = seeds_Zm + share_Zm * np.diag(of_both)
    below = (seeds_Zm ** 2).sum(axis=0) / (count - 1) + np.diag(extra) ** 2 / (clusters - 1)
    with np.errstate(invalid='ignore', divide='ignore'):
        degrees = (seeds_Zm.sum(axis=0) + np.diag(extra)) ** 2 / below
    return total, np.where(below > 0, degrees, np.inf)


def _positive(matrix):
    """Return the nearest matrix that is a covariance: no variance in it is negative."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 0)) @ vectors.T


def error(rows: np.ndarray, seeds: Seeds, clusters: int) -> tuple[float, float]:
    """Return (standard error, degrees of freedom) of one number with the rows [N]."""
    total, degrees = covariance(np.asarray(rows)[:, None], seeds, clusters)
    return float(np.sqrt(total[0, 0])), float(degrees[0])


def reach(standard_error: float, degrees: float, level: float = .95) -> float:
    """Return half the width of the t interval."""
    from scipy.special import stdtrit
    return float(stdtrit(degrees, (1 + level) / 2) * standard_error) if standard_error > 0 else 0.


def sample(rows: np.ndarray, seeds: Seeds, seed: int | tuple = 0) -> np.ndarray:
    """Return draws [B, ...] over pictures and seeds at once, for what asks how often something is.

    Seeds scatter about their mean like a t variable with count - 1 degrees: for normal seeds the
    exact interval of their mean.
    """
    if not seeds.shown:
        return rows
    count = seeds.count
    split = len(rows) - seeds.blocks * count
    pictures = rows[:split // 2]
    left_out = rows[split:].reshape(seeds.blocks, count, *rows.shape[1:])
    # A mean without one seed is as far from the mean, times count - 1, as that seed.
    apart = (left_out.mean(axis=1, keepdims=True) - left_out) * (count - 1)
    draws = pictures
    for block, of_block in enumerate(apart):
        rng = np.random.default_rng([block, count, *np.atleast_1d(seed)])
        # A normal direction over the root of a chi-square is what makes the sums t distributed.
        chi_square_B1 = rng.chisquare(count - 1, (len(pictures), 1))
        lever_BS = rng.standard_normal((len(pictures), count)) / np.sqrt(count * chi_square_B1)
        draws = draws + np.tensordot(lever_BS, of_block, 1)
    return draws

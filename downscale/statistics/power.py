"""What a study can see before it is run: smallest effects, and how likely an equivalence is shown.

All is for a t interval over seeds and pictures (`two_way`), with a spread between seeds that is
assumed: measured ones of the micro study lie between .02 and .07, at the size where a skill appears
near .2.
"""
import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

# The share of questions in which two models differ under every seed: it varies by as much.
TURNED = .2
SURE = .8   # a power of 80 %


def error(seeds: int, seed_sd: float, questions: int, pictures: int) -> tuple[float, float]:
    """Return (standard error, degrees of freedom) of a difference of two accuracies.

    `seed_sd` is its standard deviation between seeds. With one seed it covers pictures only.
    """
    of_pictures = TURNED / questions
    of_seeds = seed_sd ** 2 / seeds if seeds > 1 else 0.
    below = of_pictures ** 2 / max(pictures - 1, 1) + of_seeds ** 2 / max(seeds - 1, 1)
    return float((of_seeds + of_pictures) ** .5), (of_seeds + of_pictures) ** 2 / below


def smallest_effect(standard_error: float, degrees: float, power: float = SURE,
                    level: float = .95) -> float:
    """Return the smallest true difference whose interval leaves out zero with this power."""
    from scipy.optimize import brentq
    from scipy.stats import nct
    reach = stdtrit(degrees, (1 + level) / 2)
    # A t variable is away from zero by the effect in standard errors: the non-central t.
    effect = brentq(lambda away: nct.sf(reach, degrees, away) - power, 0, 100)
    return float(effect * standard_error)


def equivalence(standard_error: float, degrees: float, threshold: float,
                level: float = .95) -> float:
    """Return how likely the interval is within +-threshold where there is no difference at all."""
    from scipy.stats import chi2
    reach = stdtrit(degrees, (1 + level) / 2)
    # Over the spread that a study may happen to see, by 999 quantiles of its square.
    seen = np.sqrt(chi2.ppf(np.arange(1, 1000) / 1000, degrees) / degrees)
    room = np.maximum(threshold / standard_error - reach * seen, 0)
    return float(np.mean(2 * ndtr(room) - 1))


def smallest_rank_correlation(families: int, power: float = SURE, level: float = .95) -> float:
    """Return the smallest Spearman correlation over families seen with this power; 1 if none is.

    By Fisher's z with the error of Bonett and Wright 2000 (Psychometrika 65:23).
    """
    if families < 4:
        return 1.
    ranks = np.linspace(0, .999, 1000)
    away = np.arctanh(ranks) / np.sqrt((1 + ranks ** 2 / 2) / (families - 3))
    seen = away >= ndtri((1 + level) / 2) + ndtri(power)
    return float(ranks[np.argmax(seen)]) if seen.any() else 1.

"""Intervals of shares of independent trials: one, and the difference of two that are paired."""
import numpy as np
from numpy.typing import ArrayLike


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (low, high) for one proportion of independent trials."""
    if n == 0:
        return 0.0, 1.0
    from scipy import stats
    z = stats.norm.ppf((1 + level) / 2)
    share = successes / n
    # The shares p with |share - p| <= z sqrt(p (1 - p) / n) lie between the roots of a quadratic.
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    reach = z / scale * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - reach)), min(1.0, float(centre + reach))


def newcombe(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return Newcombe's interval (low, high) of the difference of two paired shares that are right.

    Method 10 of Newcombe 1998 (Statistics in Medicine 17:2635): Wilson's limits of each share, put
    together with the correlation of the pairs. Items stand alone; a picture with several questions
    needs `bootstrap.paired_difference`.
    """
    first = np.asarray(first) > 0.5
    second = np.asarray(second) > 0.5
    n = len(first)
    both = int(np.sum(first & second))
    neither = int(np.sum(~first & ~second))
    won = int(np.sum(first & ~second))
    lost = int(np.sum(~first & second))
    margins = float((both + won) * (lost + neither)) * float((both + lost) * (won + neither))
    product = both * neither - won * lost
    if product > 0:
        product = max(product - n / 2, 0)  # continuity; a negative correlation stays as it is
    phi = product / np.sqrt(margins) if margins else 0.0
    p = (both + won) / n
    q = (both + lost) / n
    p_low, p_high = wilson(both + won, n, level)
    q_low, q_high = wilson(both + lost, n, level)
    # The difference is lowest where the first share is low and the second high, and conversely.
    down = _joined(p - p_low, q_high - q, phi)
    up = _joined(p_high - p, q - q_low, phi)
    return float(p - q - down), float(p - q + up)


def _joined(a, b, phi):
    """Return the reach of a difference from the reaches of its two sides, correlated by `phi`."""
    return (a * a - 2 * phi * a * b + b * b) ** .5

"""How sure a score is: Wilson for single right or wrong rows, clusters, and means over strata."""
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import ndtri

from downscale.statistics.bootstrap import mean_ci
from downscale.statistics.proportions import wilson


def mean_of(scores: Sequence[float], clusters: Sequence[str]) -> dict[str, Any]:
    """Return {'value', 'low', 'high', 'method', 'clusters'} of a mean.

    Bounds that do not exist are None. Rows of one cluster (a picture) move together. Where every
    row is its own cluster and right or wrong the interval is Wilson's.
    """
    alone = len(set(clusters)) == len(clusters)
    if alone and set(scores) <= {0.0, 1.0}:
        low, high = wilson(sum(scores), len(scores))
        return {'value': float(np.mean(scores)), 'low': low, 'high': high, 'method': 'Wilson',
                'clusters': len(scores)}
    mean = mean_ci(scores, clusters, bounds=(0, 1))
    low, high = (None if math.isnan(bound) else bound for bound in (mean.low, mean.high))
    return {'value': mean.value, 'low': low, 'high': high, 'method': mean.method,
            'clusters': mean.clusters}


def macro_of(scores: Sequence[float], strata: Sequence, level: float = 0.95) -> dict[str, Any]:
    """Return the plain mean over strata means, with its standard error and normal interval.

    `se` is sqrt(sum w^2 s^2 / n). A stratum of one row has no variance of its own, so that
    there is no interval then; where no row differs from its stratum the interval is Wilson's for as
    many rows.
    """
    parts = {}
    for score, stratum in zip(scores, strata, strict=True):
        parts.setdefault(stratum, []).append(score)
    weight = 1 / len(parts)
    value = sum(weight * float(np.mean(part)) for part in parts.values())
    known = all(len(part) > 1 for part in parts.values())
    se = math.sqrt(sum(weight ** 2 * np.var(part, ddof=1) / len(part)
                       for part in parts.values())) if known else None
    if se is None:
        low = None
        high = None
        method = 'none (a stratum has one row)'
    elif se < 1e-12:
        # All right or all wrong: a normal interval of no width would claim certainty.
        low, high = wilson(value * len(scores), len(scores), level)
        method = 'Wilson, no variance within strata'
    else:
        reach = ndtri((1 + level) / 2) * se
        low = max(0.0, value - reach)
        high = min(1.0, value + reach)
        method = 'stratified'
    means = {name: {'n': len(part), 'mean': float(np.mean(part))}
             for name, part in sorted(parts.items())}
    return {'value': value, 'se': se, 'low': low, 'high': high, 'method': method, 'strata': means}

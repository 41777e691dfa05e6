"""How many rows of a step are summed alike: matrix products on CPU are not independent of them.

XLA on CPU adds up a product over K terms in another order from some number of rows on: 33 where K
is 576, five where it is 960, none where it is 1,024 or more (jax 0.10.2, x86). Nothing documents
these numbers, so they are found out here, on the machine that decodes. Steps then stay on one side.
"""
from functools import cache

import jax
import numpy as np

USUAL = 16
FEWER, MORE = (8, 4, 2), (24, 32, 48, 64, 96, 128, 192, 256)


def alike(widths):
    """(fewest, most) rows of a step on one device whose products over each of `widths` are summed
    as those of 16 rows; most None: any number, fewest 2 and most None away from CPU."""
    if jax.default_backend() != 'cpu':
        return 2, None
    found = [_alike(width) for width in sorted(set(widths))]
    return max(low for low, _ in found), min((high for _, high in found if high), default=None)


@cache
def _alike(width):
    rng = np.random.default_rng(0)
    x_BD = rng.standard_normal((MORE[-1], width), np.float32)
    w_DF = rng.standard_normal((width, 512), np.float32)  # narrow products hide the change
    product = jax.jit(lambda x_BD, w_DF: x_BD @ w_DF)
    usual = np.asarray(product(x_BD[:USUAL], w_DF))

    def last(counts):
        """The last of `counts` rows before a product is summed otherwise; None if all are alike."""
        kept = USUAL
        for count in counts:
            few = min(count, USUAL)
            if not np.array_equal(np.asarray(product(x_BD[:count], w_DF))[:few], usual[:few]):
                return kept
            kept = count
        return None

    return last(FEWER) or FEWER[-1], last(MORE)

"""How many rows of a step are summed alike: matrix products on CPU are not independent of them.

XLA on CPU adds up a product in another order from some number of rows on: for wide outputs 33 where
576 terms are summed, five where it is 960, none from 1,024 (jax 0.10.2, x86). Nothing documents
these numbers, so they are found out here, on the machine that decodes. Steps then stay on one side.
"""
from collections.abc import Iterable
from functools import cache

import jax
import numpy as np

# The counts to try around the usual one: fewer, then more, each list away from it.
USUAL = 16
FEWER = (8, 4, 2)
MORE = (24, 32, 48, 64, 96, 128, 192, 256)
WIDEST = 2048  # outputs: a wider product changes where this one does


def alike(products: Iterable[tuple[int, int]], wanted: int) -> tuple[int, int | None]:
    """Return (fewest, most) rows of a step on one device that are summed as those of 16 rows.

    `products` are the (terms, outputs) of every matrix product of a row, `wanted` the rows that one
    would like; most is None where all of them are summed alike. (2, None) away from CPU.
    """
    if jax.default_backend() != 'cpu':
        return 2, None
    # Counts are tried up to the first that holds all the rows wanted: each try is a compilation.
    counts = MORE[:sum(count < wanted for count in MORE) + 1] if wanted > USUAL else ()
    # The narrowest limits of all products hold for a row, which goes through each of them.
    limits = [_alike(terms, min(outputs, WIDEST), counts)
              for terms, outputs in sorted(set(products))]
    return max(low for low, _ in limits), min((high for _, high in limits if high), default=None)


@cache
def _alike(terms, outputs, counts):
    """Return (fewest, most of `counts` or None) rows whose product is summed as that of 16."""
    rng = np.random.default_rng(0)
    x_BD = rng.standard_normal((max(USUAL, *counts, 0), terms), np.float32)
    w_DF = rng.standard_normal((terms, outputs), np.float32)
    product = jax.jit(lambda x_BD, w_DF: x_BD @ w_DF)
    usual = np.asarray(product(x_BD[:USUAL], w_DF))

    def last(counts):
        """Return the last of `counts` rows that is summed alike; None where all are."""
        kept = USUAL
        for count in counts:
            few = min(count, USUAL)
            if not np.array_equal(np.asarray(product(x_BD[:count], w_DF))[:few], usual[:few]):
                return kept
            kept = count
        return None

    return last(FEWER) or FEWER[-1], last(counts)

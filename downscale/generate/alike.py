"""How many rows a step may have: the matrix products of a CPU sum some numbers of rows otherwise.

XLA on CPU adds up a product in another order for other numbers of rows. Weights times rows, as a
step multiplies them (`layers.product`), of 2 to 24 and of 33 to 48 rows are summed alike; 16 and 33
to 48 alone where 2,560 terms are summed (jax 0.10.2, x86 with AVX-512). Nothing documents these
numbers, so they are found out here, on the machine that decodes.
"""
from collections.abc import Iterable
from functools import cache

import jax
import numpy as np

from downscale.model.layers import product

USUAL = 16  # rows as which all others have to be summed
# What is tried where the rows that are wanted are summed otherwise: more first, then fewer.
COUNTS = (2, 4, 8, 16, 24, 36, 48, 64, 96, 128, 192, 256)
WIDEST = 2048  # outputs: a wider product changes where this one does


def alike(products: Iterable[tuple[int, int]], wanted: int) -> int:
    """Return the rows of a step on one device that are summed as those of 16 rows.

    They are at least 2, and the nearest above the rows that one would like, or the most there are.
    `products` are the (terms, outputs) of every matrix product of a row. Away from CPU all numbers
    will do.
    """
    wanted = max(wanted, 2)
    if jax.default_backend() != 'cpu':
        return wanted
    shapes = sorted({(terms, min(outputs, WIDEST)) for terms, outputs in products})
    more = [count for count in COUNTS if count > wanted]
    fewer = [count for count in reversed(COUNTS) if count < wanted]
    for count in (wanted, *more, *fewer):
        if all(_summed_alike(*shape, count) for shape in shapes):
            return count
    return USUAL


@cache
def _summed_alike(terms, outputs, count):
    """Return whether each of `count` rows is summed as it is among 16."""
    if count == USUAL:
        return True
    rng = np.random.default_rng(0)
    groups = -(-count // USUAL)
    x_BD = rng.standard_normal((groups * USUAL, terms), np.float32)
    w_FD = rng.standard_normal((outputs, terms), np.float32)
    usual = np.concatenate([_multiplied(part_BD, w_FD) for part_BD in np.split(x_BD, groups)])
    return np.array_equal(_multiplied(x_BD[:count], w_FD), usual[:count])


@jax.jit
def _multiplied(x_BD, w_FD):
    """Return the product of rows and a turned weight, as a step of decoding computes it."""
    return product('BD,DF->BF', x_BD, w_FD.T, exact=True, few=True)

"""Points that lie on a law: losses over sizes and token counts, and isoFLOP curves."""
import numpy as np

TRUE = {'E': 1.69, 'A': 406.4, 'B': 410.7, 'alpha': 0.34, 'beta': 0.28}
BUDGETS = (1e18, 3e18, 1e19, 3e19, 1e20)


def surface(sizes=6, lengths=5):
    """Inputs [n, 2] on a grid of sizes and token counts, and their loss without noise."""
    n = np.repeat(np.geomspace(4e7, 1.6e10, sizes), lengths)
    d = np.tile(np.geomspace(5e8, 5e11, lengths), sizes)
    return np.stack([n, d], axis=1), 1.69 + 406.4 * n ** -0.34 + 410.7 * d ** -0.28


X, LOSS = surface()


def planted(shifts=(1,) * 5, noise=0.0, sizes=9, seed=0):
    """Sizes, losses, budgets with best size 0.1 C^0.5; `shifts` moves what is sampled."""
    x, y, budget = [], [], []
    for compute, shift in zip(BUDGETS, shifts, strict=True):
        best = 0.1 * compute ** 0.5
        here = best * shift * np.geomspace(0.2, 5, sizes)
        x, y = [*x, *here], [*y, *(2.5 + 0.1 * np.log(here / best) ** 2)]
        budget += [compute] * sizes
    return np.array(x), np.array(y) + noise * np.random.default_rng(seed).standard_normal(
        len(y)), np.array(budget)

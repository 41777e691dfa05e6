"""How alike two sets of features of the same items are, without the bias of wide layers."""
import numpy as np

ROUNDING = 1e-12


def cka(first: np.ndarray, second: np.ndarray) -> float:
    """Return the unbiased linear centred kernel alignment of two features [items, width].

    Both are of the same items. It is 1 for features that are equal up to rotation and scale, and
    about 0 for independent ones of any width (the biased estimate would be .84 for widths 1024 and
    2048 of 256 items). NaN where no two items of a side are more alike than others: its own term
    is then zero but for rounding, of either sign.
    """
    kernels = _kernels(first, second)
    terms = [_hsic(k, k) for k in kernels]
    if any(term <= ROUNDING * np.mean(k * k) for term, k in zip(terms, kernels, strict=True)):
        return np.nan
    return float(_hsic(*kernels) / np.sqrt(terms[0]) / np.sqrt(terms[1]))


def _kernels(first, second):
    """Return the kernels of both sides; ValueError unless they have the same four or more items."""
    if len(first) != len(second) or len(first) < 4:
        raise ValueError(f'HSIC needs the same four or more items on both sides, '
                         f'found {len(first)} and {len(second)}')
    return _kernel(first), _kernel(second)


def _kernel(features):
    """Return the products [items, items] of centred features, with an empty diagonal."""
    features = np.asarray(features, dtype=np.float64)
    spread = features - features.mean(axis=0)  # changes no estimate, and saves digits
    if np.linalg.norm(spread) <= ROUNDING * np.linalg.norm(features):
        spread = np.zeros_like(spread)  # what is left of a constant is rounding
    kernel = spread @ spread.T
    np.fill_diagonal(kernel, 0)
    return kernel


def _hsic(k, m):
    """Return the unbiased estimate of HSIC of two kernels (Song et al. 2012, JMLR 13:1393).

    It may be negative, and needs at least four items.
    """
    n = len(k)
    k_sums = k.sum(axis=0)
    m_sums = m.sum(axis=0)
    # tr(KM) + 1'K1 1'M1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'KM1, kernels without diagonals.
    whole = np.sum(k * m) + k_sums.sum() * m_sums.sum() / ((n - 1) * (n - 2))
    return float((whole - 2 * (k_sums @ m_sums) / (n - 2)) / (n * (n - 3)))


def knn_overlap(first: np.ndarray, second: np.ndarray, k: int = 10) -> float:
    """Return the mean share of an item's `k` nearest others that both features have in common.

    Features are [items, width] of the same items; independent ones share about k / (items - 1).
    Nearness is the cosine of centred features (mutual k-NN, Huh et al. 2405.07987). NaN where a
    side does not vary. ValueError with `k` or fewer items.
    """
    if len(first) != len(second) or len(first) <= k:
        raise ValueError(f'{k} neighbours need the same {k + 1} or more items on both sides, found '
                         f'{len(first)} and {len(second)}')
    near = []
    for features in (first, second):
        features = np.asarray(features, dtype=np.float64)
        spread = features - features.mean(axis=0)
        if np.linalg.norm(spread) <= ROUNDING * np.linalg.norm(features):
            return np.nan
        spread /= np.maximum(np.linalg.norm(spread, axis=1, keepdims=True), ROUNDING)
        alike = spread @ spread.T
        np.fill_diagonal(alike, -np.inf)
        # Which are the nearest counts, not their order, so that nothing is sorted.
        near.append(np.argpartition(-alike, k - 1, axis=1)[:, :k])
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*near, strict=True)]))

"""Which layers of a decoder stay: evenly spaced ones, named ones, or those that change most.

The influence of a block is how far it turns what passes through it: 1 - the mean cosine similarity
of its input and its output over tokens (ShortGPT, Men et al., arXiv 2403.03853, section 3.2).
"""
import numpy as np

from downscale.values import shown


def kept_layers(text: str, N: int) -> list[int]:
    """Return the layers that `text` asks for, of `N`: a count, or a list such as '0,2,5'.

    A count keeps those of `spaced`. ValueError in one line for what cannot be kept.
    """
    numbers = [part.strip() for part in text.split(',')]
    if not all(part.isdecimal() and len(part) < 10 for part in numbers):
        raise ValueError(f'--layers {text[:60]}: give how many layers to keep, as 15, or their '
                         'numbers from 0, as 0,2,5')
    layers = [int(part) for part in numbers]
    # One number is a count, several are the layers themselves.
    if len(layers) == 1:
        count, = layers
        if not 2 <= count <= N:
            raise ValueError(f'--layers {count}: keep 2 to {N} of the {N} layers')
        return spaced(count, N)
    if layers != sorted(set(layers)) or layers[-1] >= N:
        raise ValueError(f'--layers {text[:60]}: give each layer once, in order, from 0 to {N - 1}')
    return layers


def spaced(count: int, N: int) -> list[int]:
    """Return `count` of `N` layers evenly spaced, the first and the last included.

    They are layer round(k (N-1) / (count-1)) for each k; a single one is the first.
    """
    return [round(k * (N - 1) / max(count - 1, 1)) for k in range(count)]


def influential(influence_N: np.ndarray, count: int) -> list[int]:
    """Return the `count` layers of most influence, in their order; of equal ones the later stay.

    ValueError where an influence is no number, as of a model that diverged.
    """
    if not np.isfinite(influence_N).all():
        raise ValueError(f'influences of blocks {shown(influence_N.tolist())} must be numbers; the '
                         'model computes none on these texts')
    order = np.argsort(influence_N, kind='stable')
    return sorted(order[len(influence_N) - count:].tolist())

"""The laws that size is thought to follow, in coordinates in which they can be fitted.

A law knows its parameters, its prediction with the gradient for many parameter vectors at once,
and where to start. Inputs are logs about their mean: with raw logs a coefficient and its exponent
are nearly the same direction (condition 3.5e11 of the Hessian for the five-parameter law).
"""
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, nnls
from scipy.special import expit

FLOOR = 25.0  # a term e^-25 of the smallest loss is zero
# Starts about what is published: 0.34 and 0.28 for model and data (arXiv 2203.15556).
EXPONENTS = (0.1, 0.3, 0.6, 1.2)


@dataclass(frozen=True, kw_only=True)
class Additive:
    """y = E + A x1^-alpha (+ B x2^-beta): power law of one input, Chinchilla form of two.

    Fitted on log y (Hoffmann et al., arXiv 2203.15556, section D.2). A vector of parameters is
    (log E, log coefficients at the mean input, exponents).
    """
    name: str
    axes: int
    delta: float = 1e-3
    scale: str = 'log y'

    @property
    def names(self) -> tuple[str, ...]:
        """The natural parameters, in the order of `natural`."""
        return ('E', *'AB'[:self.axes], *('alpha', 'beta')[:self.axes])

    @property
    def positive(self) -> tuple[str, ...]:
        """The parameters whose intervals are made on the log scale."""
        return tuple('AB'[:self.axes])

    def target(self, y: np.ndarray) -> np.ndarray:
        """Return what residuals are taken of; ValueError unless all of `y` is positive."""
        if np.any(y <= 0):
            raise ValueError(f'row {int(np.argmax(y <= 0)) + 1}: y = {y[np.argmax(y <= 0)]:g}, but '
                             f'the {self.name} form is fitted on log y; give a positive loss')
        return np.log(y)

    def value(self, target: np.ndarray) -> np.ndarray:
        """Return the inverse of `target`."""
        return np.exp(target)

    def model(self, theta: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the targets [S, n] of vectors [S, p] at inputs u [n, axes], and the gradients.

        Gradients are [S, n, p].
        """
        k = self.axes
        # The log of a sum of exponentials, taken from its largest term so that none overflows.
        terms = np.empty((len(theta), len(u), 1 + k))
        # [S, n, 1 + axes]: the log of E, then of each term that falls with its input.
        terms[..., 0] = theta[:, :1]
        terms[..., 1:] = theta[:, None, 1:k + 1] - theta[:, None, k + 1:] * u
        top = terms.max(axis=2, keepdims=True)
        shares = np.exp(terms - top)
        whole = shares.sum(axis=2, keepdims=True)
        shares /= whole
        # The slope of the log of a sum: each term's share of it times the term's own (1 or -u).
        return ((top + np.log(whole))[..., 0],
                np.concatenate([shares, -shares[..., 1:] * u], axis=2))

    def bounded(self, theta: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return `theta` with vanished terms kept at a finite log, where they no longer count."""
        low = target.min() - FLOOR
        theta = theta.copy()
        theta[:, :self.axes + 1] = np.maximum(theta[:, :self.axes + 1], low)
        return theta

    def grid(self, u: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return starting vectors [S, p] over floors, coefficients and exponents."""
        k = self.axes
        low = target.min()
        mean = target.mean()
        starts = []
        # E starts below the lowest loss, which it bounds, and a term at a share of the mean loss.
        for floor, share in itertools.product((0.2, 0.6, 0.95), (0.03, 0.3)):
            logs = [low + np.log(floor), *[mean + np.log(share)] * k]
            starts += [[*logs, *exponents] for exponents in itertools.product(EXPONENTS, repeat=k)]
        return np.array(starts)

    def natural(self, theta: np.ndarray, centre: np.ndarray) -> dict[str, np.ndarray]:
        """Return {name: natural parameter [S]} of vectors [S, p] about the mean logs `centre`."""
        k = self.axes
        theta = np.atleast_2d(theta)
        # From the mean input to an input of 1, by alpha for each unit of the log.
        raw = theta[:, 1:k + 1] + theta[:, k + 1:] * centre
        with np.errstate(over='ignore'):
            return dict(zip(self.names, [np.exp(theta[:, 0]), *np.exp(raw).T, *theta[:, k + 1:].T],
                            strict=True))

    def internal(self, natural: dict[str, float], centre: np.ndarray) -> np.ndarray:
        """Return the vector [p] of natural parameters; the inverse of `natural`."""
        values = np.array([natural[name] for name in self.names], dtype=float)
        k = self.axes
        exponents = values[self.axes + 1:]
        return np.concatenate([np.log(values[:1]), np.log(values[1:k + 1]) - exponents * centre,
                               exponents])

    def derived(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Return a = beta / (alpha + beta) of two inputs: the optimal x1 grows as compute^a."""
        if self.axes == 1:
            return {}
        alpha, beta = np.atleast_2d(theta)[:, -2:].T
        return {'a': beta / (alpha + beta)}

    def project(self, u: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
        """Return [the least-squares vector [p]] by variable projection of y itself, not of its log.

        E, A and B are found by non-negative least squares for every pair of exponents, so only
        the exponents are searched. It is a start and a cross-check, not the Huber fit.
        """
        def linear(exponents):
            design = np.column_stack([np.ones(len(y)), np.exp(-u * exponents)])
            # Scaled alike: columns differ by orders of magnitude with the exponents.
            length = np.linalg.norm(design, axis=0)
            terms = nnls(design / length, y)[0] / length
            return terms, design @ terms - y

        def residuals(exponents):
            return linear(exponents)[1]

        starts = sorted(itertools.product((0.05, *EXPONENTS, 2.0), repeat=self.axes),
                        key=lambda start: np.sum(residuals(start) ** 2))
        # Bounded, because a term with an exponent of zero would be the floor once more.
        solutions = [least_squares(residuals, start, jac='3-point', bounds=(1e-4, 10), xtol=1e-15,
                                   ftol=1e-15, gtol=1e-15) for start in starts[:2]]
        best = min(solutions, key=lambda solution: solution.cost)
        # What was found to be zero needs a finite log as well, the one that `bounded` gives it.
        terms = np.maximum(linear(best.x)[0], y.min() * np.exp(-FLOOR))
        return [np.concatenate([np.log(terms), best.x])]

    def faults(self, theta: np.ndarray, target: np.ndarray) -> Iterator[str]:
        """Yield what is wrong with a fitted vector as a law, as sentences."""
        k = self.axes
        # Half-way down to where `bounded` holds a term that has vanished.
        low = target.min() - FLOOR / 2
        for name, log_term in zip(self.names[:k + 1], theta[:k + 1], strict=True):
            if log_term < low:
                yield f'{name} has gone to zero: these points do not need this term'
        for name, exponent in zip(self.names[k + 1:], theta[k + 1:], strict=True):
            if exponent <= 0:
                yield f'{name} = {exponent:.3g} is not positive: loss grows along this input'


@dataclass(frozen=True, kw_only=True)
class Saturating:
    """acc = c + (1 - c) s with odds s / (1 - s) = (x / half)^slope and a known chance floor c.

    Fitted on accuracy itself. A vector of parameters is (log odds at the mean input, slope).
    """
    chance: float = 0.0
    name: str = 'saturating'
    axes: int = 1
    delta: float = 1e-2
    scale: str = 'y'
    names: tuple = ('half', 'slope')
    positive: tuple = ('half',)

    def __post_init__(self):
        if not 0 <= self.chance < 1:
            raise ValueError(f'chance {self.chance:g} must be at least 0 and below 1')

    def target(self, y: np.ndarray) -> np.ndarray:
        """Return what residuals are taken of; ValueError unless all of `y` is an accuracy."""
        bad = (y < 0) | (y > 1)
        if np.any(bad):
            raise ValueError(f'row {int(np.argmax(bad)) + 1}: y = {y[np.argmax(bad)]:g} is no '
                             'accuracy between 0 and 1')
        return y

    def value(self, target: np.ndarray) -> np.ndarray:
        """Return the inverse of `target`."""
        return target

    def model(self, theta: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the targets [S, n] of vectors [S, 2] at inputs u [n, 1], and the gradients.

        Gradients are [S, n, 2].
        """
        s = expit(theta[:, :1] + theta[:, 1:] * u[:, 0])
        change = (1 - self.chance) * s * (1 - s)
        return self.chance + (1 - self.chance) * s, np.stack([change, change * u[:, 0]], axis=2)

    def bounded(self, theta: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return `theta` as it is; nothing here can vanish."""
        return theta

    def grid(self, u: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return starting vectors [S, 2] over the log odds at the mean input and the slope."""
        return np.array(list(itertools.product((-3.0, -1.0, 0.0, 1.0, 3.0),
                                               (-3.0, -1.0, -0.3, 0.3, 1.0, 3.0))))

    def natural(self, theta: np.ndarray, centre: np.ndarray) -> dict[str, np.ndarray]:
        """Return `half` (the x at half-way) and `slope`, name -> [S], of vectors [S, 2]."""
        theta = np.atleast_2d(theta)
        # A flat curve has no half-way point: what is not finite is left out of intervals.
        with np.errstate(over='ignore', divide='ignore', invalid='ignore'):
            return {'half': np.exp(centre[0] - theta[:, 0] / theta[:, 1]), 'slope': theta[:, 1]}

    def internal(self, natural: dict[str, float], centre: np.ndarray) -> np.ndarray:
        """Return the vector [2] of natural parameters; the inverse of `natural`."""
        # At x = half the log odds are zero, and they rise by the slope per log of x.
        slope = natural['slope']
        return np.array([slope * (centre[0] - np.log(natural['half'])), slope])

    def derived(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Return nothing: this law has no further quantity."""
        return {}

    def project(self, u: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
        """Return no cross-check: no parameter is linear here."""
        return []

    def faults(self, theta: np.ndarray, target: np.ndarray) -> Iterator[str]:
        """Yield what is wrong with a fitted vector as a law, as sentences."""
        # The law does not go below chance, so that such points say little of its slope.
        if np.mean(target <= self.chance) > 0.5:
            yield f'more than half of the points lie at or below chance ({self.chance:g})'


POWER = Additive(name='power', axes=1)
CHINCHILLA = Additive(name='chinchilla', axes=2)


Law = Additive | Saturating

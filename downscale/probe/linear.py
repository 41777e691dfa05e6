"""Linear probes of what a pass holds: logistic regression, with a control on shuffled labels.

They are told apart by (site, depth, label): where they read, and what. Needs no JAX.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import optimize, special

from downscale.probe.readout import Site
from downscale.results.probes import NO_DEPTH
from downscale.statistics.bootstrap import Column

RIDGE = 1e-3
STEPS = 100  # of a fit, at most
NAMED = 'which object is named'


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Linear readers of features [items, width]: one learnt on labels, one on `shuffled` labels."""
    names: np.ndarray
    mean_W: np.ndarray
    spread_W: np.ndarray
    weights: np.ndarray
    shuffled: np.ndarray

    def log_shares(self, x: np.ndarray) -> list[np.ndarray]:
        """Return what both make of other items: log-probabilities [items, names] each."""
        x = _features(x, self.mean_W, self.spread_W)
        return [special.log_softmax(x @ weights, axis=1)
                for weights in (self.weights, self.shuffled)]

    def score(self, x: np.ndarray, labels: Column) -> 'Probed':
        """Return how both do on other items."""
        told, control = (self.names[share.argmax(axis=1)] == np.asarray(labels)
                         for share in self.log_shares(x))
        return Probed(hits=told.astype(float), shuffled=control.astype(float),
                      chance=most_frequent(labels))


@dataclass(frozen=True, kw_only=True)
class Probed:
    """One probe: `hits` [items] of it and of one trained on `shuffled` labels; `chance` is what
    guessing earns: the most frequent label, or any object of a scene."""
    hits: np.ndarray
    shuffled: np.ndarray
    chance: float


def fit(x: np.ndarray, labels: Column, seed: int) -> Probe:
    """Return a `Probe` of features [items, width]: multinomial logistic regression."""
    names, place = np.unique(np.asarray(labels), return_inverse=True)
    # Columns of one scale, so that the ridge weighs all alike.
    mean_W, spread_W = x.mean(axis=0), x.std(axis=0) + 1e-6
    x = _features(x, mean_W, spread_W)
    # A control that has as many of each label, and nothing else in common with the items.
    order = np.random.default_rng(seed).permutation(len(place))
    weights, shuffled = (_logistic(x, place, len(names)) for place in (place, place[order]))
    return Probe(names=names, mean_W=mean_W, spread_W=spread_W, weights=weights, shuffled=shuffled)


def _features(x, mean_W, spread_W):
    """Return features [items, width + 1] of one scale, the last of them 1."""
    return np.column_stack([(x - mean_W) / spread_W, np.ones(len(x))]).astype(np.float64)


def _logistic(x, place, labels):
    """Return the weights [width, labels] of a logistic regression with a ridge."""
    items, width = x.shape
    hot = np.eye(labels)[place]

    def loss(flat):
        weights = flat.reshape(width, labels)
        share = special.softmax(x @ weights, axis=1)
        slope = x.T @ (share - hot) / items + 2 * RIDGE * weights
        right = np.maximum(share[np.arange(items), place], 1e-300)
        return RIDGE * (weights ** 2).sum() - np.log(right).mean(), slope.ravel()
    found = optimize.minimize(loss, np.zeros(width * labels), jac=True, method='L-BFGS-B',
                              options={'maxiter': STEPS})
    return found.x.reshape(width, labels)


def most_frequent(labels: Column) -> float:
    """Return the share of the most frequent label: what always guessing it earns."""
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    return float(counts.max() / counts.sum())


def own_sites(seen: dict[str, np.ndarray]) -> dict[Site, np.ndarray]:
    """Return {(site, depth): [things, width]} of what `interchange.read` found of things."""
    return {('tower', NO_DEPTH): seen['own patches'],
            ('connector', NO_DEPTH): seen['own connected'],
            **_by_depth('own patches', seen['own tokens'])}


def answer_sites(seen: dict[str, np.ndarray]) -> dict[Site, np.ndarray]:
    """Return {('answer', depth): [items, D]} of what `interchange.read` found."""
    return _by_depth('answer', seen['answer'])


def _by_depth(site, x_KnD):
    return {(site, k / max(1, len(x_KnD) - 1)): x_nD for k, x_nD in enumerate(x_KnD)}


def items_at(columns: dict[Any, Any], where: Any) -> dict[Any, np.ndarray]:
    """Return {key: the items at `where`} of what sites hold, or of labels."""
    return {key: np.asarray(column)[where] for key, column in columns.items()}


def fit_all(sites: dict[Site, np.ndarray], labels: dict[str, Column],
            seed: int) -> dict[tuple[str, float, str], Probe]:
    """Return {(site, depth, label): `Probe`}; `labels` {name: that of each item}."""
    return {(*site, name): fit(x, label, seed)
            for (site, x), (name, label) in product(sites.items(), labels.items())}


def score_all(probes: dict[tuple[str, float, str], Probe], sites: dict[Site, np.ndarray],
              labels: dict[str, Column]) -> dict[tuple[str, float, str], Probed]:
    """Return {(site, depth, label): `Probed`} of other items, for the given sites and labels."""
    return {(*site, name): probes[*site, name].score(x, label)
            for (site, x), (name, label) in product(sites.items(), labels.items())}


def find_all(probes: dict[tuple[str, float, str], Probe], sites: dict[Site, np.ndarray],
             counts: Sequence[int], asked: Sequence[int],
             words: Sequence[dict[str, str]]) -> dict[tuple[str, float, str], Probed]:
    """Return {(site, depth, NAMED): `Probed`}: is the object found that a scene's question names?

    The rows of `sites` are the objects of scene after scene, `counts` of each; of each scene
    `asked` is the place of the asked one among them, and `words` {label: value} are what it is
    called. It is found where the probes of these labels give it the largest probability.
    """
    parts = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    chance = float(np.mean(1 / np.array(counts)))
    scored = {}
    for site, x in sites.items():
        hits = np.zeros((2, len(parts)))
        for n, (part, called) in enumerate(zip(parts, words)):
            hits[:, n] = _is_found(probes, site, x[part], called, asked[n])
        scored[*site, NAMED] = Probed(hits=hits[0], shuffled=hits[1], chance=chance)
    return scored


def _is_found(probes, site, x, called, asked):
    """Return whether the probes find the object of a scene that is `called` so, and whether their
    controls do."""
    # The probe, and its control.
    total = np.zeros((2, len(x)))
    for label, value in called.items():
        probe = probes[*site, label]
        # A value that no probe was taught names nothing.
        if value not in probe.names:
            return False, False
        column, = np.flatnonzero(probe.names == value)
        total += [share[:, column] for share in probe.log_shares(x)]
    return total.argmax(axis=1) == asked

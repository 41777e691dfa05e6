"""One model made smaller: layers, neurons and heads are cut, then its matrices quantised.

Only the group `language` changes; tower, connector and newline are carried along. Every layer
keeps as many neurons and heads as every other, since layers are stacked, but each its own. A model
of muP becomes one of the standard parametrisation that computes the same: what muP multiplies by
goes into the weights, so that a cut depth changes no multiplier.
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from downscale.accounting import stored_bytes, totals
from downscale.model.vlm import Vlm
from downscale.shrink.depth import influential, spaced
from downscale.shrink.measure import measure
from downscale.shrink.quantise import check_group, quantise
from downscale.sizes import Growth, LanguageConfig

CUT = {'N': 'layers', 'F': 'hidden units', 'H': 'query heads'}


@dataclass(frozen=True, kw_only=True)
class Shrinking:
    """How a decoder is made smaller: `after` are its sizes then.

    `layers` are those that are kept; without them it is as many as `after` has, evenly spaced
    where `by` is 'position', those of most influence where it is 'influence'. `bits` 0 leaves
    floats; else 8 or 4, with a scale for each `group` of inputs.
    """
    after: LanguageConfig
    by: str = 'influence'
    layers: tuple[int, ...] = ()
    bits: int = 0
    group: int = 0

    def check(self, before: LanguageConfig) -> None:
        """Raise ValueError where `after` is not cut from `before`, or groups do not divide."""
        for letter, what in CUT.items():
            kept = vars(self.after)[letter]
            there = vars(before)[letter]
            if kept > there:
                raise ValueError(f'cannot keep {kept} {what}: the model has {there}')
        if self.after.H * before.K != before.H * self.after.K:
            raise ValueError(f'{self.after.H} query heads on {self.after.K} key/value heads cannot '
                             f'be cut from {before.H} on {before.K}; they go in whole groups')
        wanted = replace(before, **{letter: vars(self.after)[letter] for letter in 'NFHK'})
        if wanted != self.after:
            others = sorted(name for name in vars(wanted)
                            if vars(wanted)[name] != vars(self.after)[name])
            raise ValueError(f'only layers, hidden units and heads are cut, and {", ".join(others)}'
                             ' would change as well')
        if self.bits:
            check_group(self.after, self.bits, self.group)

    def reads(self, before: LanguageConfig) -> bool:
        """Return whether texts decide what is cut."""
        chosen = self.after.N < before.N and self.by == 'influence' and not self.layers
        return chosen or (self.after.F, self.after.H) != (before.F, before.H)


def shrink(model: Vlm, params: dict[str, Any], how: Shrinking, batches: Iterable[dict[str, Any]],
           report: Callable[[int], object] = lambda done: None
           ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (parameters of the smaller model, what was done: plain values for JSON).

    `model` is of the standard parametrisation (see `folded`), `params` its numpy arrays by group.
    `batches` are read only where texts decide. ValueError as `Shrinking.check` and `measure`.
    """
    before = model.language
    how.check(before)
    # Once, on the whole model: what is left after a cut would be measured otherwise, but a measure
    # for each layer that goes would take as many passes.
    activity = measure(model, params, batches, report) if how.reads(before) else None
    layers = list(how.layers) or spaced(how.after.N, before.N)
    if activity is not None and how.by == 'influence' and not how.layers:
        layers = influential(activity.influence_N, how.after.N)
    language = dict(params['language'])
    language['blocks'] = cut(language['blocks'], before, how.after, layers, activity)
    # Last: scales are those of the weights that stay.
    if how.bits:
        language = quantise(language, how.bits, how.group)
    sizes = {letter: vars(how.after)[letter] for letter in 'NFHK'}
    done = {'layers': layers, 'sizes': sizes, 'bits': how.bits}
    if how.bits:
        done['group'] = how.group
    done['parameters'] = totals(how.after)['n_total']
    done['bytes'] = stored_bytes(how.after, how.bits, how.group)
    if activity is not None:
        done |= {'tokens': activity.tokens, 'influence': activity.influence_N.tolist()}
    return {**params, 'language': language}, done


def cut(blocks: dict[str, Any], before: LanguageConfig, after: LanguageConfig, layers: list[int],
        activity: Any) -> dict[str, Any]:
    """Return stacked `blocks` with these layers, and of each its most active neurons and heads.

    `activity` may be None where neither neurons nor heads are cut.
    """
    blocks = {part: {name: np.asarray(leaf)[layers] for name, leaf in leaves.items()}
              for part, leaves in blocks.items()}
    if after.F < before.F:
        kept_NF = most(activity.neurons_NF[layers], after.F)
        blocks['mlp'] = {name: taken(leaf, name, {'F': kept_NF})
                         for name, leaf in blocks['mlp'].items()}
    if after.K < before.K:
        kept_NK = most(activity.heads_NK[layers], after.K)
        # Query heads k G to (k + 1) G - 1 share key/value head k.
        G = before.H // before.K
        kept_NH = (kept_NK[:, :, None] * G + np.arange(G)).reshape(len(layers), -1)
        blocks['attention'] = {name: taken(leaf, name, {'K': kept_NK, 'H': kept_NH})
                               for name, leaf in blocks['attention'].items()}
    return blocks


def most(activity: np.ndarray, count: int) -> np.ndarray:
    """Return, of each row [N, any], the places of the `count` largest, ascending."""
    return np.sort(np.argsort(activity, axis=1, kind='stable')[:, -count:], axis=1)


def taken(leaf: np.ndarray, name: str, kept: dict[str, np.ndarray]) -> np.ndarray:
    """Return a stacked leaf with the places [N, count] that are `kept` of each of its axes."""
    axes = 'N' + name.rpartition('_')[2]
    for letter, places in kept.items():
        if letter in axes[1:]:
            axis = axes.index(letter)
            shape = [1] * leaf.ndim
            shape[0], shape[axis] = places.shape
            leaf = np.take_along_axis(leaf, places.reshape(shape), axis)
    return leaf


def folded(language: dict[str, Any], growth: Growth, tie: bool) -> dict[str, Any]:
    """Return the group `language` of a muP model with `growth` multiplied into its weights.

    Branches take 1 / l, the embedding what it is multiplied by, and the last gain what the head
    reads; where the embedding is the head, that gain makes up for it.
    """
    blocks = {part: dict(leaves) for part, leaves in language['blocks'].items()}
    for part, name in (('attention', 'o_HED'), ('mlp', 'down_FD')):
        blocks[part][name] = blocks[part][name] * np.float32(growth.residual)
    gain = growth.output / growth.input if tie else growth.output
    scale_D = language['final_norm']['scale_D'] * np.float32(gain)
    return {**language, 'blocks': blocks, 'final_norm': {'scale_D': scale_D},
            'embedding_VD': language['embedding_VD'] * np.float32(growth.input)}

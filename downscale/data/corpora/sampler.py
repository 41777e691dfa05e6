"""Training on a corpus: which record stands where in an epoch, planned from costs alone.

Every process plans every global batch, so nothing but the costs of a record may be needed for that;
records are read, decoded and tokenised by the process that trains on them.
"""
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from downscale.data.buckets import Shape, in_order, waiting
from downscale.data.corpora.mixture import Corpus, epoch_order
from downscale.data.pipeline import Drawn, encoded
from downscale.data.scenes.conversations import Recipe
from downscale.data.tokens import Encoder

MOST_LEFT_OUT = 0.05  # share of an epoch that may be too long for a stage's rows


class CorpusSampler:
    """Positions -> records of a corpus, as `pipeline.stream` asks for them; see `Sampler`.

    Records that no row of `shape` holds, and those without a supervised token, are left out of
    every epoch and counted in `left_out`. ValueError when that is more than a twentieth.
    """

    def __init__(self, corpus: Corpus, encoder: Encoder, recipe: Recipe, shape: Shape,
                 buckets: Sequence[Shape] = ()) -> None:
        self.corpus = corpus
        self.encoder = encoder
        self.recipe = recipe
        self.shape = shape
        self.shapes = in_order((*buckets, shape))
        self.costs = corpus.costs(encoder)
        # A record is never cut: what does not fit is left out and counted.
        long = (self.costs[:, 0] > shape.length) | (self.costs[:, 1] > shape.tiles)
        self.left_out = {'too long': int(long.sum()),
                         'nothing supervised': int((~long & (self.costs[:, 3] == 0)).sum())}
        self.kept = ~long & (self.costs[:, 3] > 0)
        if (~self.kept).mean() > MOST_LEFT_OUT:
            tokens, tiles = self.costs[:, :2].max(0)
            raise ValueError(
                f'{corpus.folder}: {(~self.kept).sum()} of {len(corpus)} records do not fit rows '
                f'of {shape.length} tokens and {shape.tiles} tiles, or have nothing to learn '
                f'(largest {tokens} and {tiles}); raise `length` and `tiles` of the stage, or '
                'build with another --length')
        if not len(self):
            raise ValueError(f'{corpus.folder}: an epoch of the mixture holds no record; give its '
                             'sources more `epochs`')

    def __len__(self):
        return len(self.order(0, 0))

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return the records of an epoch that are trained on, in order."""
        order = epoch_order(self.corpus.mixture, self.corpus.counts, seed, epoch)
        return order[self.kept[order]]

    def sequence(self, seed: int) -> '_Sequence':
        """Return the endless sequence of `Drawn`, by position."""
        return _Sequence(self, seed)

    def sizes(self, seed: int) -> np.ndarray:
        """Return the tokens and tiles of each conversation of the first epoch, int32 [n, 2]."""
        return self.costs[self.order(seed, 0), :2]

    def realised(self, seed: int) -> dict[str, int]:
        """Return {source: conversations of the first epoch}, as they come."""
        return self._by_source(self.order(seed, 0))

    def seen(self, seed: int, state: dict[str, Any]) -> dict[str, int]:
        """Return {source: conversations in all batches so far}.

        `state` is that of a stream's iterator.
        """
        sequence = self.sequence(seed)
        past = set(range(state['next'])).difference(waiting(state))
        return self._by_source([sequence[position].number for position in sorted(past)])

    def _by_source(self, numbers):
        which = np.searchsorted(self.corpus.starts, np.asarray(numbers, int), 'right') - 1
        return {source.name: int((which == k).sum())
                for k, source in enumerate(self.corpus.mixture.sources)}

    def read(self, drawn: Drawn) -> Drawn:
        """Return `drawn` with its conversation, whose record is read here."""
        # Only now, by the process that trains on it: planning needs the costs alone.
        record = self.corpus.record(drawn.number)
        return dataclasses.replace(drawn, where=f'{record.source} {record.id}', talk=record.talk)

    def make(self, drawn: Drawn) -> dict[str, np.ndarray | None]:
        """Return the arrays of one conversation that was read."""
        return encoded(drawn, self.encoder, self.recipe.loss_norm)


class _Sequence:
    """Position -> `Drawn`, from the costs alone: no record is read."""

    def __init__(self, sampler, seed):
        self.sampler = sampler
        self.seed = seed
        self.epochs = {}

    def __getitem__(self, position):
        # Epochs may differ in length: which records fill a part of a source changes.
        epoch = 0
        while position >= len(order := self._order(epoch)):
            position -= len(order)
            epoch += 1
        number = int(order[position])
        tokens, tiles = self.sampler.costs[number, :2].tolist()
        return Drawn(where=f'record {number}', talk=None, tokens=tokens, tiles=tiles, number=number)

    def _order(self, epoch):
        if epoch not in self.epochs:
            self.epochs[epoch] = self.sampler.order(self.seed, epoch)
        return self.epochs[epoch]


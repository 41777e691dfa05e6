"""How a stage draws its conversations from the scenes of a split."""
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from downscale.data import measure
from downscale.data.buckets import Shape, in_order, smallest
from downscale.data.pipeline import Drawn, encoded, shuffled
from downscale.data.records import Conversation, Example
from downscale.data.scenes.conversations import Recipe, without_pictures
from downscale.data.scenes.kinds import AnyWorld, kind_of
from downscale.data.scenes.world import Scene
from downscale.data.tokens import Encoder

if TYPE_CHECKING:  # it starts TFDS
    from downscale.data.scenes.dataset import SceneSource


class Library:
    """The examples of a source, each parsed once: parsing costs more than training on a row."""

    def __init__(self, source: 'SceneSource') -> None:
        self.source = source
        self._examples = {}
        self._scenes = {}

    def __len__(self):
        return len(self.source)

    def example(self, index: int) -> Example:
        """Return example `index`, the same object every time."""
        if index not in self._examples:
            self._examples[index] = self.source[index]
        return self._examples[index]

    def scenes(self, index: int) -> tuple[Scene, ...]:
        """Return the scene graph of each picture of example `index`."""
        if index not in self._scenes:
            self._scenes[index] = self.source.scenes(index)
        return self._scenes[index]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """What makes the conversations of one stage: of an index and grain's generator for it.

    `buckets` are the smaller shapes beside `shape`, which takes what they do not hold.
    """
    recipe: Recipe
    library: Library
    encoder: Encoder
    world: AnyWorld
    shape: Shape
    buckets: tuple[Shape, ...] = ()

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """All shapes of batches, from the smallest to the largest."""
        return in_order((*self.buckets, self.shape))

    def __call__(self, index, rng):
        return self.make(self.draw(index, rng))

    def sequence(self, seed: int) -> Any:
        """Return the endless sequence of `Drawn`, by position; every epoch has another order."""
        return shuffled(self.count, self.draw, seed)

    @property
    def count(self) -> int:
        """How many conversations an epoch has."""
        return kind_of(self.world).count(self.world, self.recipe.stage, len(self.library),
                                         self.recipe.turns)

    def draw(self, index: int, rng: np.random.Generator) -> Drawn:
        """Return the `Drawn` of example `index`; no pixel is touched."""
        # What stands behind the scenes is of this stage alone: nothing is replayed in its place.
        stage = self.recipe.draw(rng) if index < len(self.library) else self.recipe.stage
        gap = self.encoder.chat.after_pictures
        talk = kind_of(self.world).conversation(stage, self.library, index, rng, self.world,
                                                self.recipe.turns, gap)
        if stage == self.recipe.stage and self.recipe.blind and rng.random() < self.recipe.blind:
            talk = without_pictures(talk, gap)
        return self.measured(talk, f'{stage} example {index}')

    def measured(self, talk: Conversation, where: str) -> Drawn:
        """Return the `Drawn` of a conversation; ValueError when no bucket holds it."""
        # From texts and headers: every process measures all, and decodes its own rows only.
        tokens, tiles = measure.cost(self.encoder, talk, where)
        if smallest(self.shapes, tokens, tiles) is None:
            raise ValueError(
                f'{where}: {tokens} tokens and {tiles} tiles of {len(talk.images)} images do not '
                f'fit a row of {self.shape.length} tokens and {self.shape.tiles} tiles, and an '
                'example is never cut inside an image; raise `length` or `tiles` of the stage')
        return Drawn(where=where, talk=talk, tokens=tokens, tiles=tiles)

    def read(self, drawn: Drawn) -> Drawn:
        """Return `drawn`, which holds its conversation already."""
        return drawn

    def make(self, drawn: Drawn) -> dict[str, np.ndarray | None]:
        """Return arrays of one conversation."""
        return encoded(drawn, self.encoder, self.recipe.loss_norm)

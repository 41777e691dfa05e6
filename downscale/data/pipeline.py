"""Conversations to batches: one deterministic, packed, checkpointable grain stream.

Every process reads the same stream of global batches and keeps its own rows, so neither order nor
position depends on how many processes there are.
A row holds several conversations up to `length` tokens and `tiles` image tiles; `segments`
numbers them from 1 (0 is padding), `positions` restart in each, and nothing attends across.
"""
from dataclasses import dataclass
from functools import partial

import grain
import numpy as np

from downscale.data import images
from downscale.data.mixture import MIXTURES
from downscale.data.scenes import World
from downscale.data.tokens import Encoder


@dataclass(frozen=True)
class Shape:
    """The static shape of a batch: rows over all processes, tokens and image tiles per row."""
    batch: int
    length: int
    tiles: int

    def __post_init__(self):
        for name in ('batch', 'length'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} {getattr(self, name)} must be at least 1')


@dataclass(frozen=True)
class Share:
    """Which rows of every batch are kept: `blocks` of the `ways` equal parts along the rows."""
    ways: int = 1
    blocks: tuple[int, ...] = (0,)

    def rows(self, batch):
        """Indices of the rows kept; ValueError with the arithmetic when rows do not divide."""
        if batch % self.ways:
            raise ValueError(f'global batch {batch} does not divide over {self.ways} groups of '
                             f'devices ({batch} % {self.ways} = {batch % self.ways}); the nearest '
                             f'is {max(1, round(batch / self.ways)) * self.ways}')
        return np.arange(batch).reshape(self.ways, -1)[list(self.blocks)].ravel()


class Library:
    """The examples of a source, each parsed once: parsing costs more than training on a row."""

    def __init__(self, source):
        self.source, self._examples, self._scenes = source, {}, {}

    def __len__(self):
        return len(self.source)

    def example(self, index):
        if index not in self._examples:
            self._examples[index] = self.source[index]
        return self._examples[index]

    def scenes(self, index):
        if index not in self._scenes:
            self._scenes[index] = self.source.scenes(index)
        return self._scenes[index]


@dataclass(frozen=True)
class Recipe:
    """How a stage samples: its mixture, replayed stages with their shares, and the loss norm.

    `loss_norm` 'token' weighs supervised tokens equally, 'example' conversations equally.
    `turns` is the most questions of one conversation.
    """
    stage: str
    replay: tuple[tuple[str, float], ...] = ()
    loss_norm: str = 'token'
    turns: int = 6

    def __post_init__(self):
        if self.loss_norm not in ('token', 'example'):
            raise ValueError(f"loss_norm {self.loss_norm!r} must be 'token' or 'example'")
        unknown = sorted({self.stage, *dict(self.replay)} - set(MIXTURES))
        if unknown:
            raise ValueError(f'unknown stages {unknown}; known are {sorted(MIXTURES)}')
        if not 0 <= sum(dict(self.replay).values()) < 1:
            raise ValueError(f'replay shares {dict(self.replay)} must sum to less than 1')

    def draw(self, rng):
        """The stage whose mixture makes the next conversation."""
        point = rng.random()
        for stage, share in self.replay:
            point -= share
            if point < 0:
                return stage
        return self.stage


@dataclass(frozen=True)
class Sampler:
    """Index and grain's generator for it -> the encoded conversation of one stage."""
    recipe: Recipe
    library: Library
    encoder: Encoder
    world: World
    shape: Shape

    def __call__(self, index, rng):
        stage = self.recipe.draw(rng)
        talk = MIXTURES[stage](self.library, index, rng, self.world, self.recipe.turns)
        return self.encoded(talk, f'{stage} example {index}')

    def encoded(self, talk, where):
        """Arrays of one conversation; ValueError when it does not fit or supervises nothing."""
        placed, tiles = self.encoder.layout.cut(talk.images, where)
        arrays = self.encoder.encode(talk.turns, pictures=placed)
        n, cut = len(arrays['tokens']), sum(picture.tiles for picture in placed)
        if n > self.shape.length or cut > self.shape.tiles:
            raise ValueError(
                f'{where}: {n} tokens and {cut} tiles of {len(placed)} images do not fit a row of '
                f'{self.shape.length} tokens and {self.shape.tiles} tiles, and an example is never '
                'cut inside an image; raise `length` or `tiles` of the stage')
        supervised = arrays['weights'].sum()
        if supervised == 0:
            raise ValueError(f'{where}: none of its {n} tokens is supervised; nothing to learn')
        if self.recipe.loss_norm == 'example':
            arrays['weights'] /= supervised
        if self.shape.tiles:
            vision = self.encoder.layout.vision
            empty = np.zeros((0, vision.P, vision.Q), np.uint8)
            arrays['tiles'] = empty if tiles is None else tiles
            return arrays
        return {name: arrays[name] for name in ('tokens', 'weights')}


def packed_row(row, patches):
    """A packed row with segments, positions and an image_index that counts the row's own tiles."""
    out = {'tokens': row['tokens'], 'weights': row['weights'],
           'segments': row['tokens_segment_ids'], 'positions': row['tokens_positions']}
    if 'tiles' in row:
        tiles = len(row['tiles'])
        first = np.zeros(out['segments'].max(initial=0) + 1, np.int32)
        for slot in range(tiles - 1, -1, -1):
            first[row['tiles_segment_ids'][slot]] = slot
        index, segments = row['image_index'], out['segments'][:, None]
        shifted = np.where(index >= 0, index + first[segments] * patches, -1)
        shifted = np.where(index == images.NEWLINE, tiles * patches, shifted)
        # Padding positions hold index 0, which would name the first patch.
        out['image_index'] = np.where(segments > 0, shifted, -1).astype(np.int32)
        if 'image_weight' in row:
            out['image_weight'] = row['image_weight']
        out['tiles'] = images.normalise(row['tiles'])
    return out


def pair_row(arrays, length):
    """One picture and its padded caption, for the contrastive stage: nothing is packed."""
    text = arrays['weights'] > 0
    tokens = arrays['tokens'][text]
    pad = (0, length - len(tokens))
    return {'tokens': np.pad(tokens, pad), 'segments': np.pad(np.ones_like(tokens), pad),
            'tiles': images.normalise(arrays['tiles'][0])}


def stacked(rows, kept, finish):
    """The batch of `rows[kept]`, finished here so that only kept pixels become floats."""
    done = [finish(rows[k]) for k in kept]
    return {name: np.stack([row[name] for row in done]) for name in done[0]}


def stream(sampler, seed, share=Share()):
    """The endless grain dataset of batches, with the rows of `share`; `iter()` of it can be saved.

    Leaves of a batch: tokens, segments, positions int32 [B, L], weights float32 [B, L] and, where
    the shape has tiles, tiles float32 [B, I, P, Q], image_index int32 [B, L, C] and, for C > 1,
    image_weight float32 [B, L, C]. The contrastive stage gives tokens, segments [B, L] and tiles
    [B, P, Q]. ValueError when the rows do not divide.
    """
    shape, layout = sampler.shape, sampler.encoder.layout
    kept = share.rows(shape.batch)
    data = grain.MapDataset.range(len(sampler.library)).seed(seed).shuffle().repeat()
    data = data.random_map(sampler, seed=seed)
    # One reader thread: parsing holds the interpreter lock, more would only contend for it.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=shape.batch)
    data = data.to_iter_dataset(options)
    if sampler.recipe.stage == 'tower':
        finish = partial(pair_row, length=shape.length)
    else:
        lengths = {'tokens': shape.length, 'weights': shape.length}
        if shape.tiles:
            lengths |= {'image_index': shape.length, 'tiles': shape.tiles}
            if images.corners(layout.pictures) > 1:
                lengths['image_weight'] = shape.length
        data = grain.experimental.FirstFitPackIterDataset(
            data, length_struct=lengths, num_packing_bins=min(16, shape.batch))
        finish = partial(packed_row, patches=layout.vision.P if shape.tiles else 0)
    return data.batch(shape.batch, batch_fn=lambda rows: stacked(rows, kept, finish))

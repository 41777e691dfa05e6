"""The one small model, data set and tokenizer that the tests share; each is made once a process."""
import tempfile
from functools import cache
from pathlib import Path

import jax

from downscale.data.buckets import Shape
from downscale.data.chat import CHATS
from downscale.data.pipeline import stream
from downscale.data.scenes.conversations import Recipe
from downscale.data.scenes.dataset import build, source
from downscale.data.scenes.facts import vocabulary
from downscale.data.scenes.sampler import Library, Sampler
from downscale.data.scenes.world import World
from downscale.data.tokens import Encoder, Layout, load_tokenizer, train_tokenizer
from downscale.model.vlm import Vlm
from downscale.sizes import LANGUAGE, Pictures, VisionConfig, scale

WORLD = World(grid=2, min_objects=2, max_objects=3, n_facts=8)
COUNTS = {'train': 24, 'validation': 4, 'test': 8}
ROWS = 320
VISION = VisionConfig(layers=1, W=32, H=2, F=64, patch=20, image=40)
PADDED = Pictures('padded')
_folder = tempfile.TemporaryDirectory(prefix='downscale-tests-')  # removed when Python ends


def language(depth=1):
    return scale(LANGUAGE['micro']['w64d2'], 32, depth, ROWS)


def model(depth=1):
    return Vlm(language(depth), VISION)


@cache
def data():
    """The folder of the data set; a quarter of the examples are triples of pictures."""
    return build(WORLD, Path(_folder.name) / 'data', COUNTS, similarity_share=0.25)


@cache
def library(split='train'):
    return Library(source(data(), split))


@cache
def tokenizer():
    path = Path(_folder.name) / 'tokenizer.json'
    return load_tokenizer(train_tokenizer(vocabulary(WORLD), path), ROWS)


def encoder(pictures=PADDED, chat='micro'):
    return Encoder(tokenizer(), CHATS[chat], Layout(VISION, pictures))


def sampler(stage, batch=8, length=176, tiles=3, examples=None, pictures=PADDED, **recipe):
    return Sampler(
        recipe=Recipe(stage=stage, **recipe),
        library=examples or library(),
        encoder=encoder(pictures),
        world=WORLD,
        shape=Shape(batch, length, tiles),
    )


def batches(stage, seed=0, **shape):
    """A fresh checkpointable iterator of batches."""
    return iter(stream(sampler(stage, **shape), seed))


def quick(function):
    """`function` under jit, optimised little: here compiling costs more than running."""
    return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0,
                                               'xla_llvm_disable_expensive_passes': True})

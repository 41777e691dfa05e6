"""Is the world learnable? One text-only reasoner reads gold descriptions, in every family.

Command:   downscale study experiments/lookup.py
Hardware:  2 CPU cores
Time:      13 minutes on one busy core
Expect:    thinking over the exhaustive caption, at least 0.97 in every family; without a thought an
           informed guess in compare, content, count, read and similarity.
"""
from ml_collections import ConfigDict


def get_config(arg=''):
    """The study's settings; `arg` is the seed (default 0)."""
    del arg
    common = dict(batch=8, length=176, tiles=0, rates=dict(language=4e-3), turns=6, save_every=500)
    return ConfigDict(dict(
        study='lookup', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=2, W=64, H=4, F=192, patch=20, image=80),
        parametrisation=dict(input=8.0, output=4.0),
        world=dict(min_objects=2, max_objects=4, n_facts=32, jitter_px=0),
        data=dict(train=8000, validation=32, test=160, similarity_share=0.2),
        stages=dict(text=dict(steps=500, **common),
                    reason=dict(steps=6000, replay=dict(text=0.2), **common)),
        evaluation=dict(scenes=160, batch=128, write=64, think=104, texts=['caption']),
        unroll=8))


def sweep(arg=''):
    """The largest size of the smoke study."""
    return [dict(size='w64d4', seed=int(arg or 0))]

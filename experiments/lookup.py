"""Is the world learnable? One text-only reasoner looks things up in gold descriptions.

Command:   downscale study experiments/lookup.py
Hardware:  2 CPU cores
Time:      10 to 16 minutes
Expect:    at least 0.9 on attribute, position, content and read, thinking, from the exhaustive
           caption (0.99 to 1.0 seen); ground and relation 0.8; compare, count and similarity at an
           informed guess; without a thought only content and fact are learnt.
"""
from ml_collections import ConfigDict


def get_config(arg=''):
    """The study's settings; `arg` is the seed (default 0)."""
    del arg
    rates = dict(language=1e-2)
    common = dict(batch=16, length=128, tiles=0, rates=rates, turns=6, save_every=500)
    return ConfigDict(dict(
        study='lookup', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=2, W=64, H=4, F=192, patch=20, image=80),
        world=dict(min_objects=2, max_objects=4, n_facts=32),
        data=dict(train=8000, validation=32, test=128),
        stages=dict(text=dict(steps=1000, **common),
                    reason=dict(steps=15000, replay=dict(text=0.1), **common)),
        evaluation=dict(scenes=128, batch=128, write=64, think=64, texts=['caption']),
        unroll=8))


def sweep(arg=''):
    """The largest size of the smoke study."""
    return [dict(size='w64d4', seed=int(arg or 0))]

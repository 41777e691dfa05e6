"""What is lost first when the language model gets small? Micro sizes, or Qwen3 by argument.

Command:   downscale study experiments/llm_downscale.py          (micro, CPU)
           downscale study experiments/llm_downscale.py:qwen3    (0.6B to 8B, TPU)
Hardware:  micro: 2 CPU cores for some hours; qwen3: a TPU slice
Expect:    nothing known yet. The Qwen3 sizes start from random values here: they show what the
           programs need, and give no scientific result without imported weights.
"""
from ml_collections import ConfigDict

MICRO = ('w32d2', 'w64d2', 'w64d4', 'w128d4')
QWEN3 = ('0.6b', '1.7b', '4b', '8b')


def get_config(arg=''):
    """The study's settings for `arg` 'micro' (default) or 'qwen3'."""
    if arg not in ('', 'micro', 'qwen3'):
        raise ValueError(f'llm_downscale:{arg}: the argument must be micro or qwen3')
    large = arg == 'qwen3'
    text = dict(batch=64 if large else 16, length=256 if large else 128, tiles=0, turns=6)
    picture = dict(text, tiles=3)
    slow, fast = (1e-5, 1e-3) if large else (3e-3, 3e-3)
    rates = dict(language=slow, connector=slow, tower=2e-6 if large else 1e-3)
    return ConfigDict(dict(
        study=f'llm_downscale_{arg or "micro"}', platform='' if large else 'cpu',
        family='qwen3' if large else 'micro', vocabulary=0 if large else 320,
        vision=dict(layers=2, W=64, H=4, F=192, patch=20, image=80),
        world=dict(min_objects=2, max_objects=4, n_facts=64),
        data=dict(train=4000, validation=128, test=256),
        stages=dict(
            tower=dict(steps=1000, batch=32, length=48, tiles=1, rates=dict(tower=1e-3)),
            text=dict(steps=4000, rates=rates, **text),
            align=dict(steps=200, rates=dict(connector=fast), **picture),
            instruct=dict(steps=2000, rates=rates, **picture),
            caption=dict(steps=500, rates=rates, **picture),
            extract=dict(steps=500, rates=rates, **picture),
            reason=dict(steps=2000, rates=rates, **text)),
        evaluation=dict(scenes=256, batch=128, write=64, think=64),
        dtype='bfloat16' if large else 'float32', remat='full' if large else 'none',
        unroll=1 if large else 8))


def sweep(arg=''):
    """One cell per size."""
    return [dict(size=size, seed=0) for size in (QWEN3 if arg == 'qwen3' else MICRO)]

"""What is lost first when the language model gets small? Micro sizes, or Qwen3 by argument.

Command:   downscale study experiments/llm_downscale.py             (micro, CPU)
           downscale study experiments/llm_downscale.py:qwen3       (0.6B to 8B, TPU)
           downscale study experiments/llm_downscale.py:dry         (of test_real_studies.py)
Hardware:  micro: 2 CPU cores for some hours; qwen3: one TPU host (more: downscale launch); dry:
           2 CPU cores, a minute
Data:      qwen3: experiments/mixtures/{align_blip558k,instruct_single574k,instruct_multi459k}.py
           built below data/built/, test files of CoIN below data/coin/, models imported; see
           docs/tutorials/published_data.md
Expect:    nothing known yet. Of the paper's sixteen tasks (section 3.2) the eight of CoIN are
           asked, with the picture and without.
"""
from ml_collections import ConfigDict

from downscale.experiment import recipe

MICRO = ('w32d2', 'w64d2', 'w64d4', 'w128d4')


def get_config(arg=''):
    """The study's settings for `arg` 'micro' (default), 'qwen3' or 'dry'."""
    if arg not in ('', 'micro', 'qwen3', 'dry'):
        raise ValueError(f'llm_downscale:{arg}: the argument must be micro, qwen3 or dry')
    if arg in ('qwen3', 'dry'):
        return ConfigDict(recipe.study(
            f'llm_downscale_{arg}', ('align', 'instruct', 'interleave'),
            dict(benchmarks={f'coin-{name}': f'data/coin/{folder}/test.json'
                             for folder, name in recipe.COIN.items()},
                 images={f'coin-{name}': 'data/coin/pictures' for name in recipe.COIN.values()},
                 texts=()), arg == 'dry'))
    text = dict(batch=12, length=176, tiles=0, turns=6)
    picture = dict(batch=16, length=128, tiles=3, turns=6)
    rates = dict(language=4e-3, connector=3e-3, tower=1e-3)
    return ConfigDict(dict(
        study='llm_downscale_micro', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=2, W=64, H=4, F=192, patch=20, image=80),
        parametrisation=dict(input=8.0, output=4.0),
        world=dict(min_objects=2, max_objects=4, n_facts=64),
        data=dict(train=4000, validation=128, test=256),
        stages=dict(
            tower=dict(steps=1000, batch=32, length=48, tiles=1, rates=dict(tower=4e-3)),
            text=dict(steps=4000, rates=rates, **text),
            align=dict(steps=200, rates=dict(connector=3e-3), **picture),
            instruct=dict(steps=2000, rates=rates, **picture),
            caption=dict(steps=500, rates=rates, **picture),
            extract=dict(steps=500, rates=rates, **picture),
            reason=dict(steps=2000, rates=rates, **text)),
        evaluation=dict(scenes=256, batch=128, write=64, think=104), unroll=8))


def sweep(arg=''):
    """One cell per size."""
    if arg in ('qwen3', 'dry'):
        return recipe.points(recipe.DRY_SIZES if arg == 'dry' else recipe.SIZES)
    return [dict(size=size, seed=0) for size in MICRO]

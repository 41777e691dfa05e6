"""A study of three small sizes with every stage and every family, for tests of study files."""
from ml_collections import ConfigDict

SIZES = ('w32d2', 'w64d2', 'w64d4')


def get_config(arg=''):
    """The study's settings; `arg` is the seed (default 0)."""
    del arg
    image, patch = 80, 20
    text = dict(batch=12, length=176, tiles=0, turns=6)
    picture = dict(batch=16, length=128, tiles=3, turns=5)
    rates = dict(language=4e-3, connector=3e-3, tower=1e-3)
    return ConfigDict(dict(
        study='smoke', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=2, W=64, H=4, F=192, patch=patch, image=image),
        parametrisation=dict(input=8.0, output=4.0),
        world=dict(min_objects=2, max_objects=4, n_facts=32),
        data=dict(train=400, validation=16, test=32),
        stages=dict(
            tower=dict(steps=40, batch=32, length=48, tiles=1, rates=dict(tower=4e-3)),
            text=dict(steps=120, rates=rates, **text),
            align=dict(steps=15, rates=rates, **picture),
            instruct=dict(steps=40, rates=rates, **picture),
            caption=dict(steps=15, rates=rates, **picture),
            extract=dict(steps=15, rates=rates, **picture),
            reason=dict(steps=40, rates=rates, **text)),
        evaluation=dict(scenes=32, batch=128, write=64, think=104),
        unroll=8))


def sweep(arg=''):
    """One cell per size."""
    return [dict(size=size, seed=int(arg or 0)) for size in SIZES]

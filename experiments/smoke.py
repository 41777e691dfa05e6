"""What breaks first when the language model gets small? Three sizes, every stage, some minutes.

The world is small enough to be learnt in the time: two or three objects on nine cells, four shapes,
sixteen facts, and three families of questions: what stands in a cell, where a shape stands, and
facts that need no picture. One seed, so that the intervals cover other pictures, not other seeds:
what is found here is a demonstration, and docs/results/smoke.md has five seeds of it.

Command:   make smoke        (or: downscale study experiments/smoke.py)
           downscale study experiments/smoke.py:1 --out runs/smoke1       (another seed)
Hardware:  2 CPU cores, 3 GiB of memory
Time:      3.5 minutes of two idle cores, 2.3 where its programs were compiled before
Expect:    facts are known by every size; what has to be seen is read by w64d4 and hardly by w32d1,
           so claim a is supported, about +0.5
"""
from ml_collections import ConfigDict

SIZES = ('w32d1', 'w64d2', 'w64d4')
CLAIMS = (
    dict(id='a', text='Downscaling hurts visual tasks more than knowledge', seeds=1,
         contrast='visual_minus_knowledge', gate='joint'),
    dict(id='c', text='Perception falls as much as reasoning', seeds=1, test='equivalent',
         threshold=0.05, contrast='perception_minus_reasoning', mode='think'))
_SEES = ('language', 'tower', 'connector', 'image_newline_D')


def get_config(arg=''):
    """The study's settings; `arg` is the seed (default 0)."""
    del arg
    text = dict(batch=16, length=96, tiles=0, turns=4, rates=dict(language=4e-3))
    picture = dict(batch=16, length=72, tiles=1, turns=4,
                   rates=dict(language=6e-3, connector=6e-3, tower=1e-3))
    # Both writers start from the model that answers, and see as many examples.
    writer = {**picture, 'steps': 100, 'parents': {name: 'instruct' for name in _SEES}}
    return ConfigDict(dict(
        study='smoke', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=2, W=64, H=4, F=192, patch=20, image=60),
        parametrisation=dict(kind='mup', base_width=64, base_depth=4, input=8.0, output=4.0),
        world=dict(grid=3, n_shapes=4, n_colors=4, n_chars=2, min_objects=2, max_objects=3,
                   n_facts=16, jitter_px=0, families=('position', 'content', 'fact')),
        data=dict(train=3000, validation=16, test=96, similarity_share=0.0),
        stages=dict(
            tower=dict(steps=300, batch=32, length=32, tiles=1, rates=dict(tower=4e-3)),
            text=dict(steps=200, **text),
            align=dict(steps=250, trainable=('language', 'tower', 'connector'), **picture),
            instruct=dict(steps=800, replay=dict(align=0.1), **picture),
            caption=writer, extract=dict(writer),
            reason=dict(steps=300, replay=dict(text=0.05), **text)),
        evaluation=dict(scenes=64, batch=128, write=48, think=64),
        claims=CLAIMS, unroll=8))


def sweep(arg=''):
    """One cell per size."""
    return [dict(size=size, seed=int(arg or 0)) for size in SIZES]

"""What repairs the perception of a small model: more examples, its own best texts, or RL?

In the world of the smoke study. Every size is tuned to extract, and goes on from there in three
ways that cost about as many FLOPs: more of the same examples (`extract` with more steps, from
where it began; 5 % more by the report's count), rejection sampling, and GRPO, both judged by the
size's own reasoner. What they write is read by every reasoner.

Command:   downscale study experiments/micro_repair.py            (two sizes, three seeds)
           downscale study experiments/micro_repair.py:quick      (one size, one seed)
Hardware:  2 CPU cores, 4 GiB
Time:      `quick` 7 to 8 minutes of a busy core, with first settings; the study not measured
Expect:    in that one run more extraction was best, and both others did not lift position; the
           settings here were not run to their end
"""
from ml_collections import ConfigDict

from downscale.experiment.sweeps import axis, product, union

SIZES = ('w32d2', 'w64d2')
ARGUMENTS = ('', 'quick')
_SEES = ('language', 'tower', 'connector', 'image_newline_D')
EXTRACT, PERCEIVE = 100, 60
# A step of `perceive` has eight times the rows and 2.3 times the passes of one of `extract`.
MORE = EXTRACT + 18 * PERCEIVE


def get_config(arg=''):
    """The study's settings for `arg` '' (the study) or 'quick'."""
    if arg not in ARGUMENTS:
        raise ValueError(f'micro_repair:{arg}: the argument must be quick')
    text = dict(batch=16, length=96, tiles=0, turns=4, rates=dict(language=4e-3))
    picture = dict(batch=16, length=72, tiles=1, turns=4,
                   rates=dict(language=6e-3, connector=6e-3, tower=1e-3))
    return ConfigDict(dict(
        study='micro_repair', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=2, W=64, H=4, F=192, patch=20, image=60),
        parametrisation=dict(kind='mup', base_width=64, base_depth=4, input=8.0, output=4.0),
        world=dict(grid=3, n_shapes=4, n_colors=4, n_chars=2, min_objects=2, max_objects=3,
                   n_facts=16, jitter_px=0, families=('position', 'content', 'fact')),
        data=dict(train=3000, validation=16, test=160, similarity_share=0.0),
        stages=dict(
            tower=dict(steps=300, batch=32, length=32, tiles=1, rates=dict(tower=4e-3)),
            text=dict(steps=300, **text),
            align=dict(steps=250, trainable=('language', 'tower', 'connector'), **picture),
            instruct=dict(steps=800, replay=dict(align=0.1), **picture),
            extract={**picture, 'steps': EXTRACT,
                     'parents': dict.fromkeys(_SEES, '{size}/instruct')},
            reason=dict(steps=500, replay=dict(text=0.05), **text),
            perceive=dict(
                steps=PERCEIVE, batch=128, length=72, tiles=1, warmup=0.1, save_every=30,
                rates=dict(language=1e-3, connector=1e-3, tower=1e-4),
                parents=dict.fromkeys(_SEES, '{size}/extract'),
                policy=dict(reasoners=('{size}/reason',), group=4, write=32, answer=4))),
        evaluation=dict(scenes=160, batch=128, write=48, think=64, conditions=('image', 'blind'),
                        texts=('extraction', 'perceived')),
        unroll=8))


def sweep(arg=''):
    """Each size and seed as a cell of its own, and two that go on from it in another way."""
    cells = product(axis('size', SIZES[:1] if arg == 'quick' else SIZES),
                    axis('seed', (0,) if arg == 'quick' else (0, 1, 2)))
    return union(
        cells,
        product(cells, [{'stages': ('perceive',), 'stages.perceive.policy.method': 'rejection'}]),
        product(cells, [{'stages': ('extract',), 'stages.extract.steps': MORE}]))

"""How else does one model become small? Trained, distilled, pruned and healed, or quantised.

The world, the steps and the questions are those of `smoke.py`; nobody writes or reasons. w64d4 is
trained, as are smaller sizes. From it layers are cut (those of least influence), half the hidden
units and half the heads, each healed for a quarter of the steps of instruct; and its weights take 8
or 4 bits, as do those of one that was pruned and healed. w64d4-d4 has lost nothing and is healed
all the same: what it gains is training, not pruning. Distilled sizes have the steps of trained
ones and learn from w64d4 alone, what it would say next in text, alignment and instruct; they pay
for its reading too. The report sets accuracy against the bytes of the language model, a line a way.

Command:   downscale study experiments/shrink.py               (seed 0)
           downscale study experiments/shrink.py:3             (three seeds)
           downscale study experiments/shrink.py:dry           (every way once, tiny)
Hardware:  2 CPU cores, 3 GiB of memory
Time:      14 minutes of one core, a seed
Expect:    of seed 0, 64 pictures: 4 bits cost next to nothing, and so do a layer and 4 bits after
           healing; see docs/results/shrink/README.md
"""
from ml_collections import ConfigDict

from downscale.experiment.sweeps import axis, product, union

TRAINED = ('w64d4', 'w64d3', 'w64d2', 'w32d2')
PRUNED = ('w64d4-d4', 'w64d4-d3', 'w64d4-d2', 'w64d4-f96', 'w64d4-d3-f96', 'w64d4-h2')
QUANTISED = ('w64d4-int8', 'w64d4-int4', 'w64d4-d3-int4')
DRY = ('w64d2', 'w32d2'), ('w32d2-d1',), ('w32d2-int8', 'w32d2-d1-int4')


def get_config(arg=''):
    """The study's settings for `arg`: '', a number of seeds, or 'dry' (tiny)."""
    if arg not in ('', 'dry') and not (arg.isdecimal() and 1 <= int(arg) <= 99):
        raise ValueError(f'shrink:{arg}: the argument must be a number of seeds, or dry')
    text = dict(batch=16, length=96, tiles=0, turns=4, rates=dict(language=4e-3))
    picture = dict(batch=16, length=72, tiles=1, turns=4,
                   rates=dict(language=6e-3, connector=6e-3, tower=1e-3))
    # What is cut computes as standard; at the base size its rates are those of muP.
    heal = {**picture, 'rates': dict(language=3e-3, connector=3e-3, tower=5e-4)}
    measured = {key: picture[key] for key in ('batch', 'length', 'tiles', 'turns')}
    stages = dict(
        tower=dict(steps=300, batch=32, length=32, tiles=1, rates=dict(tower=4e-3)),
        text=dict(steps=200, **text),
        align=dict(steps=250, trainable=('language', 'tower', 'connector'), **picture),
        instruct=dict(steps=800, replay=dict(align=0.1), **picture),
        shrink=dict(steps=8, **measured),
        heal=dict(steps=200, **heal))
    if arg == 'dry':
        stages = {name: {**settings, 'steps': 4} for name, settings in stages.items()}
    few = arg == 'dry'
    return ConfigDict(dict(
        study='shrink_dry' if few else 'shrink', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=2, W=64, H=4, F=192, patch=20, image=60),
        parametrisation=dict(kind='mup', base_width=64, base_depth=4, input=8.0, output=4.0),
        world=dict(grid=3, n_shapes=4, n_colors=4, n_chars=2, min_objects=2, max_objects=3,
                   n_facts=16, jitter_px=0, families=('position', 'content', 'fact')),
        data=dict(train=100 if few else 3000, validation=16, test=16 if few else 96,
                  similarity_share=0.0),
        stages=stages,
        evaluation=dict(scenes=8 if few else 64, batch=128, conditions=['image', 'blind'],
                        texts=[]),
        unroll=1 if few else 8))


def sweep(arg=''):
    """All sizes, each by its own way, a seed after the other."""
    trained, pruned, quantised = DRY if arg == 'dry' else (TRAINED, PRUNED, QUANTISED)
    taught = {f'stages.{stage}.teacher': f'{trained[0]}/{stage}'
              for stage in ('text', 'align', 'instruct')}
    ways = union(axis('size', trained),
                 product(axis('size', trained[1:]), [taught | dict(label='distilled')]),
                 product(axis('size', pruned), [dict(stages=('shrink', 'heal'))]),
                 product(axis('size', quantised), [dict(stages=('shrink',))]))
    seeds = range(int(arg) if arg.isdecimal() else 1)
    return product(axis('seed', seeds), ways)

"""What breaks first when the language model gets small? Three widths, two depths, three seeds.

Every size from random values in muP, at rates of pilots of the base w64d4; perception and
reasoners in all pairs; captions whole and cut to the length of an extraction. What is claimed, by
which number it is judged and against which threshold stands in `CLAIMS`, written before the run.
What can be known without looking is decided by how many facts there are to learn, so their number
is an axis: facts32 and facts512 train the two ends of the ladder in worlds of other counts.

Its effects are those of a step count, not of a size. With four times the steps of text, align and
instruct (two seeds) w32d2 goes from 0.13-0.19 to 1.00 in position and from 0.44-0.47 to 0.63-0.70
in the mean of families; a rate of 0.016 there makes it worse. The ledger's place of the loss is
doubtful at the smallest size, and claim c depends on families that leave nothing to reason about.

Command:   downscale study experiments/micro_study.py                (the study: 128 facts)
           downscale study experiments/micro_study.py:facts32        (and :facts512)
           downscale study experiments/micro_study.py:rates          (rates, widths 32 to 128)
           downscale study experiments/micro_study.py:dry            (all of it, tiny)
Hardware:  2 CPU cores, 4 GiB
Time:      32 to 50 minutes a seed, facts32 18 minutes and facts512 14 (beside other work), the
           rates 7; each command continues where it was stopped
Expect:    docs/results/micro_study/: the gate is met; at these steps what is seen falls
           most, of 128 facts nothing, of 512 half; with four times the steps far less; best rate
           0.016 at every width (text stage alone, 300 steps)
"""
from ml_collections import ConfigDict

from downscale.experiment.sweeps import axis, product

WIDTHS, DEPTHS, SEEDS = (32, 64, 96), (2, 4), (0, 1, 2)
FACTS = {'': 128, 'facts32': 32, 'facts512': 512, 'rates': 128, 'dry': 8}
RATES = tuple(4e-3 * 2.0 ** power for power in range(-3, 5))
CLAIMS = (
    dict(id='a', text='Downscaling hurts visual tasks more than knowledge',
         contrast='visual_minus_knowledge', gate='joint'),
    dict(id='b', text='The drop tracks reliance on the picture', contrast='drop_by_reliance',
         gate='joint'),
    dict(id='c', text='Perception falls as much as reasoning', test='equivalent', threshold=0.05,
         contrast='perception_minus_reasoning', mode='think'),
    dict(id='d1', text='Extraction tuning beats captioning at equal examples',
         contrast='extraction_minus_caption', mode='think'),
    dict(id='d2', text='Extraction tuning beats captioning at equal tokens',
         contrast='extraction_minus_caption_equal_tokens', mode='think'),
    dict(id='e', text='Step-by-step answers help', contrast='thinking', mode='think'),
    dict(id='f', text='Extract+Think beats end-to-end', contrast='chain_minus_joint',
         mode='think'))
_SEES = ('language', 'tower', 'connector', 'image_newline_D')


def get_config(arg=''):
    """The study's settings for `arg` '' (the study), 'facts32', 'facts512', 'rates' or 'dry'."""
    if arg not in FACTS:
        raise ValueError(f'micro_study:{arg}: the argument must be facts32, facts512, rates or dry')
    few = arg == 'dry'
    # Most rows are short; those of three pictures are the long ones.
    text = dict(batch=8, length=176, tiles=0, turns=6, rates=dict(language=4e-3), save_every=500,
                buckets=[dict(batch=16, length=88, tiles=0)])
    picture = dict(batch=8, length=128, tiles=3, turns=3, save_every=500,
                   rates=dict(language=4e-3, connector=4e-3, tower=1e-3),
                   buckets=[dict(batch=24, length=56, tiles=1)])
    # Both writers start from the model that answers, and see as many examples.
    writer = {**picture, 'parents': {name: 'instruct' for name in _SEES}}
    stages = dict(
        tower=dict(steps=1000, batch=32, length=48, tiles=1, rates=dict(tower=4e-3)),
        text=dict(steps=600, **text),
        align=dict(steps=1500, trainable=('language', 'tower', 'connector'), **picture),
        instruct=dict(steps=1500, replay=dict(align=0.3), **picture),
        caption=dict(steps=300, **writer),
        extract=dict(steps=400, **writer | dict(buckets=[dict(batch=16, length=72, tiles=1)])),
        reason=dict(steps=6500, replay=dict(text=0.05), **text))
    if arg == 'rates':
        stages['text']['steps'] = 300
    kept = {'rates': ('text',), 'facts32': ('tower', 'text', 'align', 'instruct')}
    kept = kept.get(arg.replace('512', '32'), tuple(stages))
    return ConfigDict(dict(
        study=f'micro_study_{arg}' if arg else 'micro_study', platform='cpu', family='micro',
        vocabulary=384, vision=dict(layers=2, W=64, H=4, F=192, patch=20, image=80),
        parametrisation=dict(kind='mup', base_width=64, base_depth=4, input=8.0, output=4.0),
        world=dict(min_objects=2, max_objects=4, n_facts=FACTS[arg], jitter_px=0),
        data=dict(train=60 if few else 8000, validation=16, test=16 if few else 128,
                  similarity_share=0.2),
        stages={name: {**stages[name], **(dict(steps=4) if few else {})} for name in kept},
        evaluation=dict(scenes=4 if few else 96, batch=128, write=64, think=104,
                        texts=['caption', 'extraction', 'brief']),
        claims=CLAIMS, unroll=8))


def sweep(arg=''):
    """Every width, depth and seed; the ends of the ladder for another count of facts."""
    if arg == 'rates':
        return product(axis('size', ('w32d2', 'w64d2', 'w128d2')), axis('seed', SEEDS[:2]),
                       axis('stages.text.rates.language', RATES))
    sizes = {'dry': ('w32d2', 'w32d4'), '': [f'w{width}d{depth}' for width in WIDTHS
                                             for depth in DEPTHS]}
    return product(axis('size', sizes.get(arg, ('w32d2', 'w96d4'))),
                   axis('seed', SEEDS[:1] if arg == 'dry' else SEEDS))

"""What breaks first when perception is more than one token? A first draft of the second study.

In the first world a patch was a cell and a thing was a token. Here 6 to 12 things lie anywhere,
some alike, some partly covered, before a background of lines; a thing covers four to nine
patches. Five sizes span two decades of non-embedding parameters. Chains of one to four steps ask
for the same field over the same scene, so that steps are the only difference; facts are told
equally often, whatever their number; writers are trained under budgets; a tenth of what instruct
asks comes without its picture, so that a blind question is nothing new. The steps are a first
guess: nothing of this has been run but `small`.

Command:   downscale study experiments/micro2.py                (the study)
           downscale study experiments/micro2.py:small          (one cell, fewer things)
           downscale study experiments/micro2.py:dry            (all of it, tiny)
Hardware:  2 CPU cores, 4 GiB
Time:      not measured; `small` takes about two hours of one core
Expect:    not known; of `small`, see docs/concepts/clutter.md
"""
from ml_collections import ConfigDict

from downscale.experiment.sweeps import axis, product

SIZES = ('w32d1', 'w32d2', 'w64d4', 'w96d4', 'w160d4')
ARGUMENTS = ('', 'small', 'dry')
# Fewer things of fewer kinds; places, patches and families are those of the study.
SMALL = dict(min_objects=4, max_objects=6, n_shapes=12, n_colors=6, n_chars=4, strokes=4,
             n_facts=16, exposures=40)
CLAIMS = (
    dict(id='a', text='Downscaling hurts visual tasks more than knowledge',
         contrast='visual_minus_knowledge', gate='joint'),
    dict(id='c', text='Perception falls as much as reasoning', test='equivalent', threshold=0.05,
         contrast='perception_minus_reasoning', mode='think'),
    dict(id='d1', text='Extraction tuning beats captioning at equal examples',
         contrast='extraction_minus_caption', mode='think'),
    dict(id='e', text='Step-by-step answers help', contrast='thinking', mode='think'),
    dict(id='f', text='Extract+Think beats end-to-end', contrast='chain_minus_joint',
         mode='think'))
_SEES = ('language', 'tower', 'connector', 'image_newline_D')


def get_config(arg=''):
    """The study's settings for `arg` '' (the study), 'small' or 'dry'."""
    if arg not in ARGUMENTS:
        raise ValueError(f'micro2:{arg}: the argument must be small or dry')
    small = arg == 'small'
    text = dict(batch=8, length=288, tiles=0, turns=4, rates=dict(language=4e-3), save_every=500)
    # A picture is 64 tokens; a row holds one, and what is asked about it.
    picture = dict(batch=16, length=192, tiles=1, turns=3, save_every=500,
                   rates=dict(language=4e-3, connector=4e-3, tower=1e-3))
    writer = {**picture, 'length': 256, 'parents': {name: 'instruct' for name in _SEES}}
    stages = dict(
        tower=dict(steps=2000, batch=32, length=160, tiles=1, rates=dict(tower=4e-3)),
        text=dict(steps=2000, **text),
        align=dict(steps=3000, trainable=('language', 'tower', 'connector'), **picture),
        instruct=dict(steps=6000, blind=0.1, replay=dict(align=0.2), **picture),
        caption=dict(steps=1000, **writer), extract=dict(steps=1000, **writer),
        reason=dict(steps=8000, replay=dict(text=0.05), **text))
    if small:
        steps = dict(tower=3000, text=4000, align=1500, instruct=4000, reason=10_000)
        stages = {name: {**stages[name], 'steps': steps[name]} for name in steps}
        stages['tower']['length'] = 112
        for name in ('align', 'instruct'):
            stages[name]['length'] = 144
    if arg == 'dry':
        stages = {name: {**settings, 'steps': 4} for name, settings in stages.items()}
    few = arg == 'dry'
    world = dict(kind='clutter', n_facts=128, exposures=100)
    return ConfigDict(dict(
        study=f'micro2_{arg}' if arg else 'micro2', platform='cpu', family='micro',
        vocabulary=640, vision=dict(layers=2, W=64, H=4, F=192, patch=12, image=96),
        parametrisation=dict(kind='mup', base_width=64, base_depth=4, input=8.0, output=4.0),
        world=world | (SMALL if small else {}) | (dict(n_facts=8, exposures=2) if few else {}),
        data=dict(train=60 if few else 4000 if small else 16_000, validation=16,
                  test=16 if few else 128, similarity_share=0.0),
        stages=stages,
        evaluation=dict(scenes=4 if few else 64 if small else 96, batch=128, write=96, think=128,
                        texts=['caption', 'extraction']),
        claims=() if small else CLAIMS, unroll=8))


def sweep(arg=''):
    """Five sizes with three seeds; one cell where it is `small`, two where it is dry."""
    sizes = {'small': ('w64d4',), 'dry': SIZES[:2]}.get(arg, SIZES)
    return product(axis('size', sizes), axis('seed', (0, 1, 2) if arg == '' else (0,)))

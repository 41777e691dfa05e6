"""What repairs a small model's perception: more examples, its own best texts, RL, one model?

In the world of the smoke study, with few things. Every size is tuned a little to write captions and
extractions. From there four ways go on that cost about as many training FLOPs, within a tenth: more
of the same examples (`extract` or `caption` with more steps), rejection sampling, and GRPO, both
judged by the size's own reasoner. What they write is read by every reasoner. And one model that
writes what it sees and then answers (`explain`) stands against the pair of extraction and reasoner,
and against the model that answers at once (`interleave`: as many steps more).

What follows was written down before the first run of these settings. All claims are about visual
families, thinking readers, the mean over both sizes, five seeds; two-sided 95 % intervals over
seeds and pictures; none is adjusted for the others. A claim whose sides differ in training FLOPs by
over a tenth is not decided unless the cheaper side wins. Nothing is left out; the run ends when all
cells are there. `quick` is seed 0 of the smaller size, and was run first.

`late` was written after that, and before its own first run. GRPO had begun near the guess, under
one setting, without a control. Here it begins behind 400 steps of extraction, with the same
setting: a pilot of another seed, at ten settings from 1,120 steps on (rates 0.0003 to 0.003, with
and without `kl`, groups of 8, `tries` of 2, temperature 1.5, 180 steps), had found none that does
better, and none that raised greedy texts of w32d2 by more than 0.02 where extraction added 0.07.
Beside it stand extraction of as many FLOPs, the control whose rewards are scrambled, and readers
from whom the question is hidden. One claim, `grpo`; of the control it is asked whether GRPO gains
more than it over the extraction that both begin with.

Command:   downscale study experiments/micro_repair.py            (two sizes, five seeds)
           downscale study experiments/micro_repair.py:quick      (one size, one seed)
           downscale study experiments/micro_repair.py:late       (two sizes, five seeds)
Hardware:  2 CPU cores, 4 GiB
Time:      46 minutes of two cores that did other work too; `late` 25
Expect:    claims about GRPO, rejection sampling and pairs contradicted, the one about explaining
           open, in `late` GRPO above its control and contradicted again; see
           docs/results/repair/README.md
"""
from ml_collections import ConfigDict

from downscale.experiment.sweeps import axis, product, union

SIZES = ('w32d2', 'w64d2')
ARGUMENTS = ('', 'quick', 'late')
_SEES = ('language', 'tower', 'connector', 'image_newline_D')
WRITE, LATE, PERCEIVE = 100, 400, 60
# A step of `perceive` has eight times the rows and 2.3 times the passes of one of `extract`.
MORE = WRITE + 17 * PERCEIVE
# As many FLOPs as the pair spends on `extract` and `reason`; a row to explain in is longer.
EXPLAIN, INTERLEAVE = 500, 660
CLAIMS = (
    dict(id='grpo', text='GRPO beats more extraction at equal FLOPs',
         contrast='grpo_minus_extraction', mode='think', seeds=5),
    dict(id='rejection', text='Rejection sampling beats more extraction at equal FLOPs',
         contrast='rejection_minus_extraction', mode='think', seeds=5),
    dict(id='explain', text='One model answers better behind what it wrote, at equal FLOPs',
         contrast='explained_minus_joint', gate='joint', mode='think', seeds=5),
    dict(id='pair', text='Two models beat one that writes and answers, at equal FLOPs',
         contrast='chain_minus_explained', mode='think', seeds=5),
    dict(id='chain', text='Two models beat one that answers at once, at equal FLOPs',
         contrast='chain_minus_joint_equal_flops', mode='think', seeds=5))


def get_config(arg=''):
    """The study's settings for `arg` '' (the study), 'quick' or 'late'."""
    if arg not in ARGUMENTS:
        raise ValueError(f'micro_repair:{arg}: the argument must be quick or late')
    text = dict(batch=16, length=96, tiles=0, turns=4, rates=dict(language=4e-3))
    picture = dict(batch=16, length=72, tiles=1, turns=4,
                   rates=dict(language=6e-3, connector=6e-3, tower=1e-3))
    writer = {**picture, 'parents': dict.fromkeys(_SEES, '{size}/instruct')}
    config = ConfigDict(dict(
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
            interleave=dict(steps=INTERLEAVE, **picture),
            caption=dict(steps=WRITE, **writer), extract=dict(steps=WRITE, **writer),
            explain=dict(steps=EXPLAIN, **picture | {'length': 96}),
            reason=dict(steps=500, replay=dict(text=0.05), **text),
            perceive=dict(
                steps=PERCEIVE, batch=128, length=72, tiles=1, warmup=0.1, save_every=30,
                rates=dict(language=1e-3, connector=1e-3, tower=1e-4),
                parents=dict.fromkeys(_SEES, '{size}/extract'),
                policy=dict(reasoners=('{size}/reason',), group=4, write=32, answer=4))),
        evaluation=dict(scenes=160, batch=128, write=48, think=64, conditions=('image', 'blind'),
                        texts=('caption', 'extraction', 'perceived')),
        claims=CLAIMS if arg == '' else (), unroll=8))
    if arg == 'late':
        config.study = 'micro_repair_late'
        config.claims = CLAIMS[:1]
        for name in ('interleave', 'caption', 'explain'):
            del config.stages[name]
        config.stages.extract.steps = LATE
        config.evaluation.texts = ('extraction', 'perceived')
        config.evaluation.question_hidden = True
    return config


def sweep(arg=''):
    """Each size and seed as a cell of its own, and two that go on from it in another way."""
    cells = product(axis('size', SIZES[:1] if arg == 'quick' else SIZES),
                    axis('seed', (0,) if arg == 'quick' else range(5)))
    if arg == 'late':
        return union(
            cells,
            product(cells, [{'stages': ('perceive',), 'stages.perceive.policy.scrambled': True},
                            {'stages': ('extract',), 'stages.extract.steps': LATE + MORE - WRITE}]))
    return union(
        cells,
        product(cells, [{'stages': ('perceive',), 'stages.perceive.policy.method': 'rejection'}]),
        product(cells, [{'stages': ('caption', 'extract'), 'stages.caption.steps': MORE,
                         'stages.extract.steps': MORE}]))

"""What does visual extraction tuning of the full model need? SigLIP so400m, connector and Qwen3.

Command:   downscale plan experiments/extraction_tuning.py                    (four sizes, one seed)
           downscale plan experiments/extraction_tuning.py:1.7b,8b/0,1,2 --topology v5p:4x4x4
           downscale plan experiments/extraction_tuning.py:0.6b --text-only --per-chip-batch 4 \\
               --seq 2048 --topology v5e:4x4 --only train
Hardware:  the plan: 2 CPU cores; training: a TPU slice
Expect:    nothing trained yet: the pictures of this repository are rendered scenes. The shapes are
           those of the 382K examples of arXiv 2511.17487: pictures of at most 8,765 tokens in 37
           tiles, packed 2.8 to a row, so that 530 steps of 256 rows are one epoch. This is the
           direct variant of the paper: the connector learns captions (3 to a row), then all learns
           to extract.
"""
from ml_collections import ConfigDict

SIZES = ('0.6b', '1.7b', '4b', '8b')


def get_config(arg=''):
    """The study's settings, the same for every size and seed (see `sweep` for `arg`)."""
    sweep(arg)
    rates = dict(language=1e-5, connector=1e-5, tower=2e-6)
    return ConfigDict(dict(
        study='extraction_tuning', platform='', family='qwen3', vocabulary=0, chat='chatml',
        vision=dict(layers=26, W=1152, H=16, F=4304, patch=14, image=384),
        pictures=dict(mode='anyres'),
        stages=dict(
            align=dict(steps=730, batch=256, length=2432, tiles=3, warmup=0.03, final=0.0,
                       parents={}, rates=dict(connector=1e-3)),
            extract=dict(steps=530, batch=256, length=9216, tiles=37, warmup=0.03, final=0.0,
                         parents=dict.fromkeys(('language', 'tower', 'connector'), 'align'),
                         rates=rates)),
        evaluation=dict(batch=50, write=1024, think=4096),
        optimizer=dict(b2=0.999), mesh=dict(data=1, fsdp=-1, tensor=1),
        dtype='bfloat16', remat='full'))


def sweep(arg=''):
    """One cell per size and seed of `arg`, 'SIZE,SIZE/SEED,SEED'; all sizes and seed 0 by default.
    """
    sizes, _, seeds = arg.partition('/')
    if not all(seed.isdecimal() for seed in (seeds or '0').split(',')):
        raise ValueError(f'extraction_tuning:{arg}: seeds must be numbers, as in 0.6b,8b/0,1')
    return [dict(size=size, seed=int(seed)) for seed in (seeds or '0').split(',')
            for size in (sizes.split(',') if sizes else SIZES)]

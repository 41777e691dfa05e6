"""The recipe of arXiv 2511.17487 as study settings; what neither paper nor code says is ours.

From the paper and the code it follows (LLaVA-OneVision, LLaVA-NeXT): which stage trains what on
what; rates 1e-3 for the connector alone, else 1e-5 and 2e-6 for the tower; AdamW with betas 0.9 and
0.999, no weight decay, clipping at 1; warm-up over 3 % of the steps, cosine to 0; one epoch; bf16.
Inferred: conversations weigh equally (`loss_norm`).
Ours: stages 3 and 4 (captions, extraction) repeat the settings of stage 2, theirs are not
published. Rows are packed, so that a batch counts rows: 256 hold about 700 pictures with AnyRes
tiling, and 770 in stage 1 (LLaVA-OneVision: 512 examples, 256 for 7B). Steps are those of one
epoch at 2.8 conversations a row (3 in stage 1); `downscale data world STUDY --padding` counts
them for the data that is there.
"""
import itertools
from collections.abc import Sequence
from typing import Any

from downscale.values import unknown

BUILT = 'data/built'
ALL = ('language', 'tower', 'connector')
FULL = dict(language=1e-5, connector=1e-5, tower=2e-6)
# name: (mixture, stage that it starts from, steps of one epoch)
STAGES = {'align': ('align', None, 730), 'instruct': ('single', 'align', 800),
          'interleave': ('multi', 'instruct', 640), 'caption': ('caption', 'interleave', 1330),
          'extract': ('extraction', 'caption', 530)}
SIZES = ('0.6b', '1.7b', '4b', '8b')
# What stands for each size in a dry run.
TINY = {'0.6b': 'w32d2', '1.7b': 'w64d2', '4b': 'w32d3', '8b': 'w64d3'}
DRY_SIZES = ('w32d2', 'w64d2')
COIN = {'ScienceQA': 'scienceqa', 'TextVQA': 'textvqa', 'GQA': 'gqa', 'VQAv2': 'vqav2',
        'VizWiz': 'vizwiz', 'OCRVQA': 'ocrvqa', 'ImageNet': 'imagenet', 'Grounding': 'grounding'}
# The six sets in multiple-choice form, and what no model was trained on.
CHOICE = {'vmcbench-six': 'data/vmcbench/test.parquet', 'mmstar': 'data/mmstar/mmstar.parquet'}
INFORMATION = {'vmcbench-six': 'data/vmcbench/information.json',
               'mmstar': 'data/mmstar/information.json'}


def study(name: str, stages: Sequence[str], evaluation: dict[str, Any],
          dry: bool) -> dict[str, Any]:
    """Return the settings of a study whose cells pass `stages` of `STAGES`, one from another.

    With `dry` everything is the same but what makes it large: models, rows and steps.
    """
    settings = {}
    before = None
    for stage in stages:
        mixture, parent, steps = STAGES[stage]
        # A study may leave stages out: the next one then starts from the one before it.
        parent = parent if parent in stages else before
        # The newline of tiles has no parent in `align`, which sees pictures in one tile.
        groups = ALL if stage in ('align', 'instruct') or parent == 'align' else \
            (*ALL, 'image_newline_D')
        # One picture of stage 1 is short; AnyRes cuts those of the others into many tiles.
        room = dict(length=2432, tiles=3) if stage == 'align' else dict(length=9216, tiles=37)
        size = dict(steps=steps, batch=256)
        if dry:
            room = dict(length=1024, tiles=48)
            size = dict(steps=2, batch=4)
        settings[stage] = dict(
            **size, warmup=0.03, final=0.0, loss_norm='example', mixture=f'{BUILT}/{mixture}',
            rates=dict(connector=1e-3) if stage == 'align' else FULL,
            parents=dict.fromkeys(groups, parent) if parent else {}, **room)
        before = stage
    # SigLIP so400m at 384 pixels, without its last layer.
    tower = dict(layers=26, W=1152, H=16, F=4304, patch=14, image=384)
    rows = dict(batch=50, answer=1024, write=1024, think=4096, pictures=24)
    if dry:
        tower = dict(layers=2, W=32, H=2, F=64, patch=14, image=56)
        rows = dict(batch=8, answer=4, write=8, think=8, pictures=2)
    asked = dict(conditions=('image', 'blind'), **evaluation, **rows)
    return dict(study=name, platform='cpu' if dry else '', chat='chatml',
                family='micro' if dry else 'qwen3', vocabulary=400 if dry else 0, vision=tower,
                # On CPU, XLA aborts where bfloat16 is summed over devices.
                dtype='float32' if dry else 'bfloat16', remat='full',
                mesh=dict(data=1, fsdp=-1, tensor=1), pictures=dict(mode='anyres'), stages=settings,
                optimizer=dict(b2=0.999), evaluation=asked)


def points(sizes: Sequence[str], seeds: Sequence[int] = (0,),
           readers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return one cell per size and seed, each from its imported language model and shared tower.

    `readers` are sizes that only read: their language model answers, untrained.
    """
    cells = []
    for seed, size in itertools.product(seeds, (*sizes, *readers)):
        imports = dict(language=f'models/qwen3-{size}', tower='models/siglip-so400m')
        point = dict(size=size, seed=seed, imports=imports)
        cells.append(point | dict(stages=()) if size in readers else point)
    return cells


def parsed(name: str, arg: str) -> tuple[bool, tuple[str, ...], tuple[int, ...]]:
    """Return (whether it is a dry run, sizes, seeds) of 'SIZE,SIZE/SEED,SEED'.

    'dry' names two tiny sizes, and 'dry,0.6b,4b' those that stand for sizes. ValueError in one line
    for seeds that are no numbers, and for sizes that nothing stands for.
    """
    sizes, _, seeds = arg.partition('/')
    if not all(seed.isdecimal() for seed in (seeds or '0').split(',')):
        raise ValueError(f'{name}:{arg}: seeds must be numbers, as in 0.6b,8b/0,1')
    chosen = tuple(sizes.split(',')) if sizes else SIZES
    dry = chosen[0] == 'dry'
    if dry:
        for size in chosen[1:]:
            if size not in TINY:
                raise ValueError(f'{name}:{arg}: {unknown("size", size, list(TINY))}')
        chosen = tuple(TINY[size] for size in chosen[1:]) or DRY_SIZES
    return dry, chosen, tuple(int(seed) for seed in (seeds or '0').split(','))


def twin(arg: str) -> str:
    """Return the argument of the dry run that has the cells of `arg`, each of a tiny size."""
    sizes, _, seeds = arg.partition('/')
    if sizes.split(',')[0] == 'dry':
        return arg
    return f'dry,{sizes or ",".join(SIZES)}/{seeds or 0}'

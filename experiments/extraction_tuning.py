"""What does visual extraction tuning give? SigLIP so400m, connector and Qwen3; the direct variant.

Command:   downscale plan experiments/extraction_tuning.py                    (four sizes, one seed)
           downscale plan experiments/extraction_tuning.py:1.7b,8b/0,1,2 --topology v5p:4x4x4
           downscale plan experiments/extraction_tuning.py:0.6b --text-only --per-chip-batch 4 \\
               --seq 2048 --topology v5e:4x4 --only train
           downscale study experiments/extraction_tuning.py        (with data and models)
           downscale study experiments/extraction_tuning.py:dry    (of test_real_studies.py)
Hardware:  the plan: 2 CPU cores; training: one TPU host (more: downscale launch)
Data:      experiments/mixtures/{align_blip558k,extraction382k}.py built below data/built/, the
           files of VMCBench and MMStar below data/, models/qwen3-SIZE and models/siglip-so400m
           imported; see
           docs/tutorials/published_data.md
Expect:    nothing trained yet at this scale: no published data was at hand. Settings: see
           `downscale/experiment/recipe.py`. This is the paper's variant without instruction tuning
           and captions: the connector learns captions (3 to a row), then all learns to extract.
           Shapes are those of the 382K examples: pictures of at most 8,765 tokens in 37 tiles, 2.8
           to a row, 530 steps of 256 rows an epoch. Reasoners are the stock language models.
"""
from ml_collections import ConfigDict

from downscale.experiment import recipe


def get_config(arg=''):
    """The study's settings, the same for every size and seed (see `sweep` for `arg`)."""
    dry, _, _ = recipe.parsed('extraction_tuning', arg)
    return ConfigDict(recipe.study(
        'extraction_tuning', ('align', 'extract'),
        dict(benchmarks=recipe.CHOICE, information=recipe.INFORMATION, texts=('extraction',)), dry))


def sweep(arg=''):
    """One cell per size and seed of `arg`, 'SIZE,SIZE/SEED,SEED'; all sizes and seed 0 by default.
    """
    _, sizes, seeds = recipe.parsed('extraction_tuning', arg)
    return recipe.points(sizes, seeds)


def twin(arg=''):
    """The argument that makes the tiny twin of `arg`, for a rehearsal."""
    return recipe.twin(arg)

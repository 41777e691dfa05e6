"""What breaks when only perception, or only reasoning, gets small? The P x R grid of the paper.

Command:   downscale study experiments/decoupled_grid.py            (four sizes, one seed)
           downscale study experiments/decoupled_grid.py:dry        (of test_real_studies.py)
Hardware:  one TPU host (more: downscale launch); the dry run 2 CPU cores, a minute
Data:      experiments/mixtures/{align_blip558k,instruct_single574k,instruct_multi459k}.py built
           below data/built/, VMCBench and MMStar below data/, models imported; see
           docs/tutorials/published_data.md
Expect:    nothing trained yet at this scale: no published data was at hand. Each size is trained as
           a model that sees (stages 1, 2a, 2b) and, untrained, reads what every size has written
           (arXiv 2511.17487, section 3.3). What to look at comes from one file for all cells.
"""
from ml_collections import ConfigDict

from downscale.experiment import recipe


def get_config(arg=''):
    """The study's settings, the same for every size and seed (see `sweep` for `arg`)."""
    dry, _, _ = recipe.parsed('decoupled_grid', arg)
    return ConfigDict(recipe.study(
        'decoupled_grid', ('align', 'instruct', 'interleave'),
        dict(benchmarks=recipe.CHOICE, information=recipe.INFORMATION, texts=('extraction',)), dry))


def sweep(arg=''):
    """One cell per size and seed of `arg`, 'SIZE,SIZE/SEED,SEED'; all sizes and seed 0 by default.
    """
    _, sizes, seeds = recipe.parsed('decoupled_grid', arg)
    return recipe.points(sizes, seeds)


def twin(arg=''):
    """The argument that makes the tiny twin of `arg`, for a rehearsal."""
    return recipe.twin(arg)

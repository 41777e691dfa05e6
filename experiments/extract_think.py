"""Does Extract+Think repair it? All five stages, then reasoners of all sizes read the texts.

Command:   downscale study experiments/extract_think.py            (0.6B and 1.7B see, 4B reads)
           downscale study experiments/extract_think.py:dry        (of test_real_studies.py)
Hardware:  one TPU host (more: downscale launch); the dry run 2 CPU cores, a minute
Data:      all of experiments/mixtures built below data/built/, VMCBench and MMStar below data/,
           models imported; see
           docs/tutorials/published_data.md
Expect:    nothing trained yet at this scale: no published data was at hand. arXiv 2511.17487, table
           2, has 0.6B with 1.7B and 1.7B with 4B; here every pair of sizes is asked, with captions
           and extractions, directly and thinking (4,096 tokens of thought).
"""
from ml_collections import ConfigDict

from downscale.experiment import recipe


def get_config(arg=''):
    """The study's settings; `arg` is 'dry' or empty."""
    dry, _, _ = recipe.parsed('extract_think', arg)
    return ConfigDict(recipe.study(
        'extract_think', tuple(recipe.STAGES),
        dict(benchmarks=recipe.CHOICE, information=recipe.INFORMATION), dry))


def sweep(arg=''):
    """Two sizes that see and read, and one that only reads."""
    _, sizes, seeds = recipe.parsed('extract_think', arg)
    return recipe.points(sizes[:2], seeds, sizes[2:3])


def twin(arg=''):
    """The argument that makes the tiny twin of `arg`, for a rehearsal."""
    return recipe.twin(arg)

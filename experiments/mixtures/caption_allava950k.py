"""Stage 3, captions: ALLaVA-4V, 950K, one epoch; a baseline, and where extraction tuning starts.

Build:   downscale data build experiments/mixtures/caption_allava950k.py --root data --to \\
             data/built/caption --tokenizer models/qwen3-0.6b/tokenizer.json
Paper:   arXiv 2511.17487, section 4.1; which rows make 950K is not published: all of both parts.
"""
from downscale.data.corpora.mixture import Mixture
from downscale.data.corpora.sources import Source

OBTAIN = ('huggingface.co/datasets/FreedomIntelligence/ALLaVA-4V: the caption JSON of LAION and of '
          'VFLAN, and the pictures below allava/ under the paths that they name')


def get_mixture(arg=''):
    """Captions of both parts, all rows."""
    return Mixture('caption_allava950k', tuple(
        Source(f'allava_{part.lower()}', f'allava/ALLaVA-Caption-{part}-4V.json', images='allava',
               licence='CC BY-NC 4.0; pictures keep theirs', obtain=OBTAIN)
        for part in ('LAION', 'VFLAN')))

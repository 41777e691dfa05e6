"""Stage 1, the connector learns captions: BLIP558K (LCS-558K), one epoch.

Build:   downscale data build experiments/mixtures/align_blip558k.py --root data --to \\
             data/built/align --tokenizer models/qwen3-0.6b/tokenizer.json
Paper:   arXiv 2511.17487, section 3.1; LLaVA's pretraining set.
"""
from downscale.data.corpora.mixture import Mixture
from downscale.data.corpora.sources import Source


def get_mixture(arg=''):
    """One source, all rows."""
    return Mixture('align_blip558k', stage='align', sources=(
        Source('blip558k', 'llava_pretrain/blip_laion_cc_sbu_558k.json', images='llava_pretrain',
               licence='captions CC BY 4.0 by BLIP; pictures of LAION, CC3M and SBU keep theirs',
               obtain='huggingface.co/datasets/liuhaotian/LLaVA-Pretrain: the JSON, and images.zip '
                      'unpacked beside it'),))

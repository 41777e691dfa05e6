"""Stage 4, visual extraction tuning: the 382K examples released with the paper, one epoch.

Build:   downscale data build experiments/mixtures/extraction382k.py --root data --to \\
             data/built/extraction --tokenizer models/qwen3-0.6b/tokenizer.json
Own:     what `downscale data extract` wrote is built by own.py beside this file.
Paper:   arXiv 2511.17487, section 4.1: six sets of CoIN, without ImageNet and Grounding.
"""
from downscale.data.corpora.mixture import Mixture
from downscale.data.corpora.sources import Source

SETS = ('ScienceQA', 'TextVQA', 'GQA', 'VizWiz', 'VQAv2', 'OCRVQA')
OBTAIN = ('huggingface.co/datasets/markendo/Visual-Extraction-Tuning-382K: one JSON a set, named '
          'as here; its pictures are those of CoIN, below coin/pictures/')


def get_mixture(arg=''):
    """All rows of all six sets."""
    return Mixture('extraction382k', stage='extract', sources=tuple(
        Source(f'extraction_{name.lower()}', f'extraction/{name}.json', images='coin/pictures',
               licence='see its page; texts by Qwen3-VL-8B-Instruct', obtain=OBTAIN)
        for name in SETS))

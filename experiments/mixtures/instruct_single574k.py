"""Stage 2a, instruction tuning on single pictures: the eight sets of CoIN, 574K, one epoch.

Build:   downscale data build experiments/mixtures/instruct_single574k.py --root data --to \\
             data/built/single --tokenizer models/qwen3-0.6b/tokenizer.json
Paper:   arXiv 2511.17487, table 1. Rows as CoIN gives them; the numbers below are the paper's.
"""
from downscale.data.corpora.mixture import Mixture
from downscale.data.corpora.sources import Source

SETS = {  # name: (thousands of rows in the paper, licence of the set behind it)
    'OCRVQA': (165, 'book covers of Amazon, for research'),
    'ImageNet': (130, 'non-commercial research, image-net.org'),
    'VQAv2': (82.8, 'questions CC BY 4.0; pictures of COCO keep theirs'),
    'GQA': (72.1, 'CC BY 4.0'),
    'Grounding': (55.9, 'RefCOCO: Apache-2.0; pictures of COCO keep theirs'),
    'TextVQA': (34.6, 'CC BY 4.0'),
    'VizWiz': (20.5, 'CC BY 4.0'),
    'ScienceQA': (12.7, 'CC BY-NC-SA 4.0'),
}
OBTAIN = ('huggingface.co/datasets/Zacks-Chen/CoIN (code: github.com/zackschen/CoIN): the folder '
          'Instructions_Original as coin/, and the pictures of each set below coin/pictures/ under '
          'the paths that its JSON names')


def coin(name, **more):
    """The source of one set of CoIN."""
    return Source(name.lower(), f'coin/{name}/train.json', images='coin/pictures',
                  licence=SETS[name][1], obtain=OBTAIN, **more)


def get_mixture(arg=''):
    """All rows of all eight sets."""
    return Mixture('instruct_single574k', tuple(coin(name) for name in SETS))

"""easy-VQA: questions about pictures of one coloured shape.

Build:   python experiments/smollm_easyvqa.py data/packages --to data/easy_vqa
         downscale data build experiments/mixtures/easy_vqa.py --root data/easy_vqa --to \\
             data/built/easy_vqa --tokenizer models/smollm2-135m-d8/tokenizer.json
"""
from downscale.data.corpus import Mixture
from downscale.data.sources import Source


def get_mixture(arg=''):
    """One source, all rows."""
    return Mixture('easy_vqa', sources=(
        Source('easy_vqa', 'train.json', images='train', licence='MIT',
               obtain='the package easy-vqa; see experiments/smollm_easyvqa.py'),))

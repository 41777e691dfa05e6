"""easy-VQA: pictures of one coloured shape, named in two words and asked about.

Build:   python experiments/smollm_easyvqa.py data/packages --to data/easy_vqa
         downscale data build experiments/mixtures/easy_vqa.py --root data/easy_vqa --to \\
             data/built/easy_vqa --tokenizer models/smollm2-135m-d8/tokenizer.json
         downscale data build experiments/mixtures/easy_vqa.py:captions --root data/easy_vqa --to \\
             data/built/easy_vqa_captions --tokenizer models/smollm2-135m-d8/tokenizer.json
"""
from downscale.data.corpora.mixture import Mixture
from downscale.data.corpora.sources import Source

OBTAIN = 'the package easy-vqa; see experiments/smollm_easyvqa.py'


def get_mixture(arg=''):
    """Captions and about as many questions an epoch; of `captions`, those alone."""
    if arg not in ('', 'captions'):
        raise ValueError(f'easy_vqa:{arg}: the argument must be captions, or none')
    captions = Source('captions', 'captions.json', images='train', licence='MIT', obtain=OBTAIN)
    if arg:
        return Mixture('easy_vqa_captions', sources=(captions,))
    # A caption names color and shape at once. Of questions alone nothing beyond their text was
    # learnt in 64 steps.
    questions = Source('questions', 'train.json', epochs=0.1, images='train', licence='MIT',
                       obtain=OBTAIN)
    return Mixture('easy_vqa', sources=(captions, questions))

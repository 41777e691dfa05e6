"""One file of your own in a published form, such as what `downscale data extract` has written.

Build:   downscale data build experiments/mixtures/own.py:runs/extraction/training.json,pictures \\
             --root . --to data/built/mine --tokenizer models/qwen3-0.6b/tokenizer.json
"""
from downscale.data.corpora.mixture import Mixture
from downscale.data.corpora.sources import Source


def get_mixture(arg=''):
    """All rows of FILE, its pictures below IMAGES: `arg` is 'FILE,IMAGES', both below --root, and
    perhaps names of columns that may be left out: 'FILE,IMAGES,COLUMN,COLUMN'."""
    file, images, *ignore = *arg.split(','), ''
    if not file:
        raise ValueError('own.py: say which file, as own.py:FILE,IMAGES')
    return Mixture('own', stage='extract', sources=(
        Source('own', file, images=images, licence='your own', obtain='it is your own',
               ignore=tuple(filter(None, ignore))),))

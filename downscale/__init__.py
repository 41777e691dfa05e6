"""Downscaling the language model of a multimodal model: what breaks first, and how to repair it."""
import sys

from downscale.moved import Finder

sys.meta_path.append(Finder())  # last: it is asked only for what no file holds


def __getattr__(name):
    """Return `downscale.load`, imported on first use so that `import downscale` stays instant."""
    if name == 'load':
        from downscale.stages.loading import load
        return load
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

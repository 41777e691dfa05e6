"""Does an imported checkpoint compute what its original computed? A folder that says so itself.

The folder holds `config.json`, `model.safetensors` (the `llava_qwen_3` layout or any other that
`convert/` reads), `image.png`, and `expected.npz` with what the original code gave in float32:
pixel_values [I, 3, size, size], vision_features_head and projected_head (first patches of every
tile), input_ids (-200 marks the picture), inputs_embeds_shape / _head / _tail, logits_last (last
positions of the picture prompt), text_ids and text_logits, greedy_ids after the picture prompt,
single_tile_embeds_shape (the flat, connector-stage layout). Arrays that are absent are not checked.
"""
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from downscale.convert.source import open_source, place
from downscale.data import images
from downscale.generate.engine import Prompt, decode, padded
from downscale.generate.engine import Bucket
from downscale.model.vision import Connector, Tower
from downscale.model.vlm import Vlm, splice

PICTURE = -200  # the reference's mark of a picture among token ids
TOLERANCE = 1e-4
LEVEL = 1 / 255


def relative_error(ours, theirs):
    """Largest absolute difference as a share of the largest expected magnitude."""
    theirs = np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return float('inf')
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))

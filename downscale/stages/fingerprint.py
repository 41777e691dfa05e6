"""What a checkpoint is, told by its content: the same after a move, another after more training."""
import hashlib
import json
from pathlib import Path

import jax
import numpy as np

from downscale import config
from downscale.data.templates import Origin
from downscale.stages.loading import tokenizer_path
from downscale.train.checkpoint import latest
from downscale.train.lazy_leaves import open_leaves
from downscale.values import hash_of

WHOLE = 2 ** 22  # leaves up to this many numbers are read whole, larger ones where they lie
# windows of a file, and their bytes
PROBES = 16
PROBE = 2 ** 16
SMALL = 2 ** 12  # files below this hold no part of a large leaf, but times and random names


def fingerprint(folder: Path) -> str:
    """Return a short hash that names the newest checkpoint of a run folder and how it is asked.

    It covers the experiment, the step, the tokenizer, the chat format and the pictures' layout,
    every leaf of up to 2^22 numbers, and where a leaf is larger, size and evenly spread parts of
    each larger file of the step. Those files have random names and borders, so a large model that
    is trained twice has two fingerprints; a small one has the same. No weight goes to a device.
    """
    folder = Path(folder)
    experiment = config.load(folder)
    step = Path(latest(folder))
    # A large leaf is not read: parts of the files that hold it stand for its numbers.
    leaves, any_large = _leaves(folder)
    files = _large_files(step) if any_large else []
    tokens = tokenizer_path(folder, experiment)
    content = [
        json.loads((folder / 'experiment.json').read_text()), step.name, leaves, files,
        _digest(tokens.read_bytes()) if tokens.is_file() else '',
        experiment.chat_of(folder.name).hash,
        repr(experiment.layout(folder.name))]
    published = experiment.published
    # Of an import it is part of the experiment; of what was trained from one it is not.
    if published not in (Origin(), experiment.origin):
        content.append(repr(published))
    return hash_of(content)


def _leaves(folder):
    """Return ({name: [shape, dtype, digest of its numbers]}, whether some had too many for one)."""
    leaves = {}
    any_large = False
    for path, leaf in jax.tree_util.tree_leaves_with_path(open_leaves(folder)):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        leaves[name] = [list(leaf.shape), str(leaf.dtype)]
        if np.prod(leaf.shape) <= WHOLE:
            # The numbers and not the file: chunks and names of files differ between two equal runs.
            leaves[name].append(_digest(np.ascontiguousarray(leaf.read()).tobytes()))
        else:
            any_large = True
    return leaves, any_large


def _large_files(step):
    """Return the sorted `_probed` of the files of a step that hold numbers."""
    return sorted(_probed(path) for path in (step / 'params').rglob('*')
                  if path.is_file() and path.stat().st_size >= SMALL)


def _digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


def _probed(path):
    """Return [size, digest of evenly spread windows] of a file."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        # From the first byte to the last: a file that was continued has another digest.
        for start in np.linspace(0, max(size - PROBE, 0), PROBES).astype(int):
            file.seek(start)
            digest.update(file.read(PROBE))
    return [size, digest.hexdigest()[:16]]

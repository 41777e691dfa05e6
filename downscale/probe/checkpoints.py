"""A checkpoint as an analysis sees it: checked against its own config, read a leaf at a time.

Needs JAX, and no accelerator: whatever mesh wrote the checkpoint, its leaves come back as numpy.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from scipy.sparse.linalg import svds

from downscale.config import Experiment, load
from downscale.letters import axes_of
from downscale.runtime.files import PathLike
from downscale.stages.loading import abstract_of, model_of
from downscale.stages.models import Model
from downscale.train.checkpoint import compare, latest, load_params, stored_leaves
from downscale.train.lazy_leaves import StoredLeaf
from downscale.values import unknown

SMALL = 32  # below this width a whole decomposition is as fast as the largest value alone


@dataclass(frozen=True, kw_only=True)
class CheckpointView:
    """The newest checkpoint of a run folder; nothing is read before it is asked for.

    `leaves` maps names such as 'language/final_norm/scale_D' to (shape, dtype).
    """
    folder: Path
    config: Experiment
    stage: str
    step_folder: epath.Path
    leaves: dict[str, tuple[tuple[int, ...], str]]
    target: dict[str, Any] = field(repr=False)

    @property
    def step(self) -> int:
        """The step that was saved."""
        return int(self.step_folder.name)

    @property
    def model(self) -> Model:
        """The module whose parameters these are."""
        return model_of(self.config, self.stage)

    def leaf(self, name: str) -> np.ndarray:
        """Return one leaf as numpy; KeyError naming the nearest when there is none of that name."""
        if name not in self.leaves:
            raise KeyError(unknown('leaf', name, list(self.leaves)))
        shape, dtype = self.leaves[name]
        return StoredLeaf(
            step_folder=self.step_folder, name=name, shape=shape, dtype=np.dtype(dtype)
        ).read()

    def params(self, groups: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the parameters as nested numpy, only the `groups` named (all by default)."""
        for name in groups or ():
            if name not in self.target:
                raise ValueError(unknown('group', name, list(self.target)))
        return load_params(self.folder, self.target, groups)


def open_checkpoint(path: PathLike) -> CheckpointView:
    """Return the `CheckpointView` of a run folder, its metadata read and every leaf checked.

    ValueError listing the first leaves whose path, shape or dtype is not that of the model that
    `experiment.json` describes; FileNotFoundError where there is no checkpoint. Parameters that
    were trained here are float32; an import keeps the dtypes that it came with.
    """
    folder = Path(path)
    config = load(folder)
    step = latest(folder)
    stored = stored_leaves(step)
    target = abstract_of(model_of(config, folder.name), stored)
    # None: an import is read in whatever dtypes it has.
    wanted = {name: 'float32' for name in stored} if config.stages else None
    compare(stored, target, step, wanted)
    return CheckpointView(
        folder=folder,
        config=config,
        stage=folder.name,
        step_folder=step,
        leaves=stored,
        target=target,
    )


def diff(after: CheckpointView,
         before: CheckpointView) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """Return (rows, groups): how far the weights of one checkpoint are from those of another.

    Both are read leaf by leaf. A row holds leaf, group, `change` = ||W - W0|| / ||W0||, the `rank`
    of W and `change_rank` of W - W0: the stable rank ||A||_F^2 / ||A||_2^2, its median over layers
    where they are stacked, None for vectors and for what did not change. `groups` maps a group to
    its change. ValueError listing the leaves that only one has, or with another shape.
    """
    compare(after.leaves, before.target, after.folder)
    rows = []
    sums = {}
    for name in sorted(after.leaves):
        new = after.leaf(name).astype(np.float64)
        old = before.leaf(name).astype(np.float64)
        group = name.split('/')[0]
        moved = np.sum((new - old) ** 2)
        size = np.sum(old ** 2)
        total = sums.setdefault(group, np.zeros(2))
        total += moved, size
        rows.append({'leaf': name, 'group': group, 'change': _ratio(moved, size),
                     'rank': _stable_rank(name, new), 'change_rank': _stable_rank(name, new - old)})
    return rows, {group: _ratio(*total) for group, total in sums.items()}


def _ratio(moved, size):
    """Return the root of two sums' ratio; None where a leaf that was all zeros has moved."""
    if not size:
        return None if moved else 0.0
    return float(np.sqrt(moved / size))


def _stable_rank(name, leaf):
    """Return the stable rank of a leaf, its median over layers; None for vectors and zeros."""
    axes = axes_of(name.rpartition('/')[2])
    layers = leaf if leaf.ndim > len(axes) else leaf[None]
    if len(axes) < 2:
        return None
    # Heads are read by o_HED and written by q_DHE: inputs first, outputs last.
    inputs = 2 if axes.startswith('HE') and len(axes) > 2 else 1
    ranks = [_rank(layer.reshape(int(np.prod(layer.shape[:inputs])), -1)) for layer in layers]
    ranks = [rank for rank in ranks if rank is not None]
    return float(np.median(ranks)) if ranks else None


def _rank(matrix):
    """Return ||A||_F^2 / ||A||_2^2 of a matrix, None of zeros."""
    whole = float(np.sum(matrix ** 2))
    if not whole:
        return None
    if min(matrix.shape) <= SMALL:
        return whole / float(np.linalg.norm(matrix, 2)) ** 2
    largest = svds(matrix, k=1, return_singular_vectors=False, random_state=0)[0]
    return whole / float(largest) ** 2

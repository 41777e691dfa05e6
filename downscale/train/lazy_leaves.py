"""Leaves that are read as they are written or placed, so that no model is ever held as a whole.

An import writes its leaves with `save_leaves` from the files of another format, an export reads
those of a step with `open_leaves`, and `place` puts either on devices.
"""
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging as absl_logging

from downscale.runtime.files import PathLike, absolute, whole, write_json
from downscale.train import checkpoint, checksums

READERS = 2  # threads that read and write chunks
WRITE_BYTES = 2 ** 18  # one call for 32 MiB costs the kernel three times the time


class _Lazy:
    """A leaf that is written in parts; by this type orbax finds the handler for it."""

    def __init__(self, leaf):
        self.leaf = leaf
        self.shape = tuple(leaf.shape)
        self.dtype = np.dtype(leaf.dtype)

    def write(self, folder, corner):
        """Write the chunk at `corner` of the grid as zarr 2 keeps it: its values, padded."""
        chunk = self.leaf.chunk
        part = self.leaf.read(tuple(
            slice(at * step, min(at * step + step, size))
            for at, step, size in zip(corner, chunk, self.shape)))
        if part.shape != tuple(chunk):
            # zarr 2 stores whole chunks, also at the far edges, where the array ends within one.
            part = np.pad(part, [(0, step - size) for step, size in zip(chunk, part.shape)])
        path = os.path.join(folder, '.'.join(map(str, corner)))
        data = memoryview(part.reshape(-1).view(np.uint8))
        with open(path, 'wb', buffering=0) as file:
            for start in range(0, len(data), WRITE_BYTES):
                file.write(data[start:start + WRITE_BYTES])
        return path


class _LazyHandler(ocp.type_handlers.NumpyHandler):
    """A handler that writes numpy's layout chunk by chunk, and never holds a whole leaf.

    tensorstore writes the description of an array; its own way with values copies each of them into
    fresh pages first, and takes three times as long.
    """

    async def serialize(self, values, infos, args=None):
        # Orbax makes each array through `_open_and_write`, which here leaves its chunks for later.
        self._chunks = []
        await self._background_serialize(values, infos, args or [ocp.SaveArgs()] * len(values))
        with ThreadPoolExecutor(READERS) as pool:
            for path in pool.map(lambda chunk: _Lazy.write(*chunk), self._chunks):
                # Synced here while the next are read and turned: half the time of one by one.
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        return []

    async def _open_and_write(self, value, tspec, ts_context):
        # The chunks of the source's own leaf: each is read once and written once.
        spec = {**tspec, 'metadata': {**tspec['metadata'], 'chunks': value.leaf.chunk}}
        await tensorstore.open(tensorstore.Spec(spec), create=True, open=True, context=ts_context)
        counts = [-(-size // step) for size, step in zip(value.shape, value.leaf.chunk)]
        grid = product(*map(range, counts))
        self._chunks += [(value, tspec['kvstore']['path'], corner) for corner in grid]


def save_leaves(folder: Path, leaves: dict[str, Any], meta: dict[str, Any], step: int = 0) -> None:
    """Write `leaves` as the parameters of step `step` of `folder`, in their own dtypes, and `meta`.

    `leaves` is a nested dict; a leaf has `shape`, `dtype`, `chunk` (a shape) and `read(index)`, and
    is never held as a whole. Raises FileExistsError when the step is there already.
    """
    path = absolute(folder) / 'checkpoints' / str(step)
    if path.exists():
        raise FileExistsError(f'{path} is there already; give another folder or remove it')
    registry = ocp.type_handlers.create_type_handler_registry((_Lazy, _LazyHandler()))
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)  # orbax warns: no shard database to merge
    try:
        with whole(path) as partial:
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False,
                                                  type_handler_registry=registry)
            (partial / 'params').mkdir(parents=True)
            # pyrefly: ignore[bad-argument-type]
            handler.save(partial / 'params',
                         args=ocp.args.PyTreeSave(jax.tree.map(_Lazy, leaves)))
            handler.close()
            write_json(partial / 'meta' / 'metadata', meta)
            checksums.write(partial)
    finally:
        absl_logging.set_verbosity(verbosity)


@dataclass(frozen=True, kw_only=True)
class StoredLeaf:
    """A leaf of a stored step: `shape` and `dtype` now, its values on `read`."""
    step_folder: PathLike
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self) -> np.ndarray:
        """Return the leaf as a numpy array; nothing else of the step is read."""
        # A tree of this leaf alone, nested as in the step: orbax restores what such a tree names.
        leaf: Any = jax.ShapeDtypeStruct(self.shape, self.dtype)
        for key in reversed(self.name.split('/')):
            leaf = {key: leaf}
        return jax.tree.leaves(checkpoint.read_leaves(self.step_folder, leaf))[0]


def open_leaves(folder: PathLike) -> dict[str, Any]:
    """Return the nested dict of `StoredLeaf` of the newest step under `folder`; nothing is read."""
    step_folder = checkpoint.latest(folder)
    tree = {}
    for name, (shape, dtype) in checkpoint.stored_leaves(step_folder).items():
        node = tree
        *path, last = name.split('/')
        for key in path:
            node = node.setdefault(key, {})
        node[last] = StoredLeaf(
            step_folder=step_folder, name=name, shape=shape, dtype=np.dtype(dtype)
        )
    return tree


def place(leaves: Any, shardings: Any) -> Any:
    """Return `leaves` as jax arrays with these shardings; each device reads its own part.

    A leaf has `shape`, `dtype` and `read(index)`; the two trees are alike.
    """
    return jax.tree.map(lambda leaf, sharding: jax.make_array_from_callback(
        leaf.shape, sharding, leaf.read), leaves, shardings)

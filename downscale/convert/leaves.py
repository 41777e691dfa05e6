"""One of our leaves, lazily: published tensors turned into our axes, whole or a part at a time."""
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from downscale.convert.names import LeafEntry, inputs_of
from downscale.convert.shards import Tensor
from downscale.letters import axes_of

# What is read, turned and written at once. Smaller files cost a sync each, larger ones memory.
CHUNK_BYTES = 32 * 2 ** 20
TILE = 16


def turn(source: np.ndarray, target: np.ndarray) -> None:
    """Fill the matrix `target` with the transposed matrix `source`, tile by tile.

    numpy alone strides across one of the two: a tenth of the speed. So do wider tiles, and its
    copy of bfloat16, which it does not know, is slower than one of integers.
    """
    plain = np.dtype(f'u{source.dtype.itemsize}')
    source = source.view(plain)
    target = target.view(plain)
    for start in range(0, len(source), TILE):
        target[:, start:start + TILE] = source[start:start + TILE].T


@dataclass(frozen=True, eq=False, kw_only=True)
class Leaf:
    """A leaf of our tree in a published checkpoint: `shape` and `dtype` now, values on `read`.

    `tensors` holds one published tensor, or one per layer where axis N leads. `chunk` is the shape
    that is read at once at no extra cost; it divides the leaf into a regular grid.
    """
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    kind: str
    stacked: bool
    tensors: tuple[Tensor, ...]

    @property
    def axes(self) -> str:
        """The axis letters without N."""
        return axes_of(self.name.rpartition('/')[2])

    @property
    def chunk(self) -> tuple[int, ...]:
        """The shape of a part of about `CHUNK_BYTES`, cut along N or the first axis of theirs."""
        # Cut where theirs is read in part: at layers, or at rows, our first output axis.
        axis = 0 if self.stacked or self.kind == 'copy' else inputs_of(self.axes)
        if self.kind == 'patch' or axis == len(self.shape):
            return self.shape
        size = self.shape[axis]
        row_bytes = math.prod(self.shape) // size * self.dtype.itemsize
        rows = min(size, max(1, CHUNK_BYTES // row_bytes))
        # Equal parts, so that the last one is not mostly padding.
        parts = math.ceil(size / rows)
        return (*self.shape[:axis], math.ceil(size / parts), *self.shape[axis + 1:])

    def of_layers(self, layers: Sequence[int]) -> 'Leaf':
        """Return the same leaf of these layers alone; axis N leads it."""
        return replace(self, shape=(len(layers), *self.shape[1:]),
                       tensors=tuple(self.tensors[layer] for layer in layers))

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Return a new array of the part `index`: slices, of all axes or of the first ones."""
        index = (*index, *[slice(None)] * (len(self.shape) - len(index)))
        spans = [slice(*span.indices(size)) for span, size in zip(index, self.shape)]
        out = np.empty([span.stop - span.start for span in spans], self.dtype)
        if not self.stacked:
            self._fill(self.tensors[0], spans, out)
        else:
            for row, tensor in enumerate(self.tensors[spans[0]]):
                self._fill(tensor, spans[1:], out[row])
        return out

    def _fill(self, tensor, spans, out):
        """Fill `out` with the part `spans` of one tensor turned into our axes."""
        shape = self.shape[1:] if self.stacked else self.shape
        if self.kind == 'patch':
            # [W, colour, row, column] to [row, column, colour, W], the order of `images.patchify`.
            array = tensor.read().transpose(2, 3, 1, 0).reshape(shape)
            out[...] = array[tuple(spans)]
        elif self.kind == 'copy':
            # Where the first axes are not the same (heads side by side), all of it is read.
            rows = spans[0] if tensor.shape[0] == shape[0] else slice(0, tensor.shape[0])
            array = tensor.read(rows.start, rows.stop).reshape(-1, *shape[1:])
            rest = spans if array.shape[0] == shape[0] else [slice(None), *spans[1:]]
            out[...] = array[tuple(rest)]
        else:
            self._fill_linear(tensor, spans, out, shape)

    def _fill_linear(self, tensor, spans, out, shape):
        """Fill `out` from a matrix of theirs, [out, in], of which only some rows are read.

        Those hold the span of our first output axis; `inner` rows belong to each step along it.
        """
        cut = inputs_of(self.axes)
        inner = math.prod(shape[cut + 1:])
        array = tensor.read(spans[cut].start * inner, spans[cut].stop * inner)
        # 1. A whole part along the other axes is one transposed matrix.
        if all(out.shape[i] == size for i, size in enumerate(shape) if i != cut):
            turn(array, out.reshape(array.shape[1], array.shape[0]))
            return
        # 2. Else: their axes apart, inputs first, then the part.
        array = array.reshape(-1, *shape[cut + 1:], *shape[:cut])
        order = (*range(array.ndim - cut, array.ndim), *range(array.ndim - cut))
        spans = [*spans[:cut], slice(None), *spans[cut + 1:]]
        out[...] = array.transpose(order)[tuple(spans)]


def published(entry: LeafEntry, layer: np.ndarray) -> np.ndarray:
    """Return one layer of our leaf (numpy, without N) as the published tensor, contiguous."""
    axes = axes_of(entry.leaf.rpartition('/')[2])
    if entry.kind == 'copy':
        return np.ascontiguousarray(layer.reshape(entry.theirs))
    out = np.empty(entry.theirs, layer.dtype)
    if entry.kind == 'patch':
        width, colours, patch, _ = entry.theirs
        out[...] = layer.reshape(patch, patch, colours, width).transpose(3, 2, 0, 1)
    else:
        turn(layer.reshape(math.prod(layer.shape[:inputs_of(axes)]), -1), out)
    return out

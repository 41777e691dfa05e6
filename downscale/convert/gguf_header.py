"""The header of a GGUF file, read with plain file reads that notice a short or damaged file.

Layout (ggml, docs/gguf.md): magic, version, counts, metadata as (key, type, value), tensors as
(name, dimensions, type, offset), then aligned data.
"""
import os
import struct
from pathlib import Path
from typing import Any

# Type of a value -> its code in `struct`.
_SCALARS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q',
            12: 'd'}
_STRING = 8
_ARRAY = 9


# The package's own reader takes seven times as long (1.6 s for 49,152 tokens) and maps the file,
# whose pages then count as memory of this process.
class GgufHeader:
    """Metadata {key: value}, tensors {name: (shape, type, offset from `data`)}, start of data.

    ValueError in one line when the file is no GGUF file, truncated or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.size = os.path.getsize(path)
        with open(path, 'rb') as self.file:
            if self.file.read(4) != b'GGUF':
                raise ValueError('this is not a GGUF file; give a .gguf file')
            version = self.scalar('I')
            if version not in (2, 3):
                raise ValueError(f'GGUF version {version} is not known; known are 2 and 3, '
                                 'little-endian')
            tensors = self.scalar('Q')
            pairs = self.scalar('Q')
            self.metadata = dict(self.pair() for _ in range(pairs))
            self.tensors = dict(self.tensor() for _ in range(tensors))
            self.data = self.file.tell()
        alignment = self.metadata.get('general.alignment', 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f'the file is damaged: its alignment is {str(alignment)[:40]}')
        self.data += -self.data % alignment
        self.alignment = alignment

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes; more than there are is refused before memory is taken."""
        if count > self.size - self.file.tell():
            raise ValueError(f'the file is truncated or damaged: its header asks for more than its '
                             f'{self.size:,} bytes; download it again')
        return self.file.read(count)

    def scalar(self, code: str) -> Any:
        """Return the next number, of a code of `struct`."""
        return struct.unpack('<' + code, self.take(struct.calcsize('<' + code)))[0]

    def string(self) -> str:
        """Return the next text."""
        # Damaged bytes become replacement characters, and then a name or key that nothing has.
        return self.take(self.scalar('Q')).decode(errors='replace')

    def value(self, kind: int) -> Any:
        """Return the next value of type `kind`: a text, a list or a number."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise ValueError(f'the file is damaged: a value has type {kind}; download it again')
        return self.scalar(_SCALARS[kind])

    def array(self) -> list:
        """Return the next list, of numbers or of texts."""
        kind = self.scalar('I')
        count = self.scalar('Q')
        if kind in _SCALARS:
            code = _SCALARS[kind]
            data = self.take(count * struct.calcsize('<' + code))
            return list(struct.unpack(f'<{count}{code}', data))
        if kind != _STRING:  # lists of lists are of no use here, and may be endless
            raise ValueError(f'the file is damaged: a list has values of type {kind}; '
                             'download it again')
        return [self.string() for _ in range(count)]

    def pair(self) -> tuple[str, Any]:
        """Return the next (key, value) of the metadata."""
        key = self.string()
        return key, self.value(self.scalar('I'))

    def tensor(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        """Return the next (name, (shape, type, offset)) of a tensor."""
        name = self.string()
        rank = self.scalar('I')
        shape = tuple(self.scalar('Q') for _ in range(rank))[::-1]  # stored innermost first
        return name, (shape, self.scalar('I'), self.scalar('Q'))

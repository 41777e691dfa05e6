"""Rows of published data: text files, Parquet, TFDS; opened whole or a part at a time.

Every table has `len`, `name(i)` (an id), `group(i)` (the set that a row says it is from, or ''),
`digests(indices)` (to tell a second copy of a row from a second row of its name) and
`part(indices)`, both of ascending indices; a part can be sent to another process and gives its rows
there, as dicts in the names that `sources.py` reads.
"""
import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from downscale.data import row_files
from downscale.data.corpora.columns import IDS

METADATA = ('metadata.jsonl', 'metadata.csv', 'metadata.tsv', 'metadata.json', 'metadata.parquet')


class FileRows:
    """The rows of one file, read whole by `files.read`; a bad row is one of them."""

    def __init__(self, path: Path) -> None:
        self.paths = (path,)
        self.rows = [row for _, row in row_files.read(path)]

    def __len__(self):
        return len(self.rows)

    def name(self, index: int) -> str:
        return name_of(self.rows[index], index)

    def group(self, index: int) -> str:
        return _group(self.rows[index])

    def digests(self, indices: Iterable[int]) -> Iterable[bytes]:
        return map(_digest, self.part(indices))

    def part(self, indices: Iterable[int]) -> list:
        return [self.rows[index] for index in indices]


def name_of(row: Any, index: int) -> str:
    """Return the id of a row, 'row7' where it has none."""
    name = None
    if isinstance(row, dict):
        name = next((row[key] for key in IDS if row.get(key) not in (None, '')), None)
    # pandas turns a column of whole numbers with a gap into floats.
    if isinstance(name, float) and name.is_integer():
        name = int(name)
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        return f'row{index}'
    return str(name).encode('utf-8', 'replace').decode()


def _digest(row):
    return hashlib.sha256(repr(row).encode('utf-8', 'replace')).digest()


def _group(row):
    """Return the set that a row says it is from, '' where it says none."""
    if not isinstance(row, dict):
        return ''
    about = row.get('metadata')
    from_metadata = about.get('dataset') if isinstance(about, dict) else None
    name = row.get('data_source', from_metadata)
    return name if isinstance(name, str) else ''


class Parquet:
    """The rows of Parquet files; a part is read where it is used, a row group at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        import pyarrow.parquet as pq
        self.paths = tuple(paths)
        self.counts = []
        for path in self.paths:
            try:
                file = pq.ParquetFile(path)
            except Exception as error:  # pyarrow raises several kinds
                raise row_files.fault(path, f'is no readable Parquet file ({error})') from None
            names = file.schema_arrow.names
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:  # a dict of them would keep the last
                raise row_files.fault(path, f'names a column twice: {twice}')
            self.counts.append(file.metadata.num_rows)
        self.starts = np.cumsum([0, *self.counts])

    def __len__(self):
        return int(self.starts[-1])

    @cached_property
    def heads(self) -> list[dict[str, Any]]:
        """The columns that name rows and their sets, of all rows."""
        import pyarrow.parquet as pq
        heads = []
        for path in self.paths:
            file = pq.ParquetFile(path)
            names = [name for name in (*IDS, 'data_source', 'metadata')
                     if name in file.schema_arrow.names]
            # Without a column to read, Parquet tells no rows.
            heads += file.read(names).to_pylist() if names else [{}] * file.metadata.num_rows
        return heads

    def name(self, index: int) -> str:
        return name_of(self.heads[index], index)

    def group(self, index: int) -> str:
        return _group(self.heads[index])

    def digests(self, indices: Iterable[int]) -> Iterable[bytes]:
        return map(_digest, self.part(indices))

    def part(self, indices: Iterable[int]) -> Iterable:
        return _ParquetPart(self.paths, tuple(self.starts.tolist()), tuple(indices))


@dataclass(frozen=True)
class _ParquetPart:
    """Rows `indices` (ascending) of several files, read as they are walked through.

    It is sent to other processes, so it holds paths and no open file.
    """
    paths: tuple[Path, ...]
    starts: tuple[int, ...]
    indices: tuple[int, ...]

    def __iter__(self):
        import pyarrow.parquet as pq
        wanted = np.asarray(self.indices)
        # There is one more start than files: the number of all rows.
        for path, start in zip(self.paths, self.starts):
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                inside = wanted[(wanted >= start) & (wanted < end)] - start
                if len(inside):
                    yield from file.read_row_group(group).take(inside).to_pylist()
                start = end


class Prepared:
    """The examples of a prepared TFDS data set, read without TensorFlow."""

    def __init__(self, folder: Path, kind: str, split: str) -> None:
        self.paths = (folder,)
        self.kind = kind
        self.split = split

    def __len__(self):
        return len(_data_source(self.paths[0], self.kind, self.split))

    def name(self, index: int) -> str:
        return f'{self.split}-{index}'

    def group(self, index: int) -> str:
        return ''

    def digests(self, indices: Iterable[int]) -> Iterable[str]:
        return map(self.name, indices)

    def part(self, indices: Iterable[int]) -> Iterable:
        return _PreparedPart(
            folder=self.paths[0], kind=self.kind, split=self.split, indices=tuple(indices)
        )


@dataclass(frozen=True, kw_only=True)
class _PreparedPart:
    folder: Path
    kind: str
    split: str
    indices: tuple[int, ...]

    def __iter__(self):
        examples = _data_source(self.folder, self.kind, self.split)
        return (TFDS[self.kind](examples[index]) for index in self.indices)


@cache
def _data_source(folder, kind, split):
    """Return the examples of a split of a prepared folder, by number, pictures as bytes."""
    import tensorflow_datasets as tfds
    try:
        builder = tfds.builder_from_directory(str(folder))
    except Exception as error:  # TFDS raises several kinds
        raise FileNotFoundError(f'{folder} is no prepared TFDS folder ({error}); prepare {kind} '
                                "with file_format='array_record'") from None
    if split not in builder.info.splits:
        raise ValueError(f'{folder} has no split {split!r}; there are '
                         f'{", ".join(builder.info.splits)}')
    return builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})


# --- TFDS: rows in the names above; text comes as bytes, a sequence of dicts as a dict of lists --

def _clevr(example):
    asked = example['question_answer']
    texts = [{'user': question.decode(), 'assistant': answer.decode()}
             for question, answer in zip(asked['question'], asked['answer'], strict=True)]
    return _picture(example) | {'texts': texts}


def _coco_captions(example):
    texts = [text.decode() for text in example['captions']['text']]
    # One of five by a fixed rule: another epoch sees the same.
    return _picture(example) | {'caption': texts[zlib.crc32(texts[0].encode()) % len(texts)]}


def _ai2dcaption(example):
    return _picture(example) | {'caption': example['caption'].decode()}


def _ref_coco(example):
    """Return a row in which each phrase asks for its box, in shares of width and height.

    A box is [x0, y0, x1, y1].
    """
    things = example['objects']
    texts = []
    for box, phrases in zip(things['bbox'], things['refexp']['raw'], strict=True):
        y0, x0, y1, x1 = (float(edge) for edge in box)  # TFDS has the rows first
        answer = f'[{x0:.2f},{y0:.2f},{x1:.2f},{y1:.2f}]'
        texts += [{'user': GROUND.format(phrase.decode()), 'assistant': answer}
                  for phrase in phrases]
    return _picture(example) | {'texts': texts}


def _picture(example):
    return {'image': {'bytes': bytes(example['image'])}}


GROUND = 'Where is "{}"? Give its box as [x0,y0,x1,y1], in shares of width and height.'
TFDS = {'clevr': _clevr, 'coco_captions': _coco_captions, 'ai2dcaption': _ai2dcaption,
        'ref_coco': _ref_coco}

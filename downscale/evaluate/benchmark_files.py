"""Published files of questions: parquet shards, TSV with pictures inside, JSON and CSV beside them.

A reader yields an `Entry` per question. Pictures are calls that read when they are made: nothing
but one group of rows of a parquet file is held, and no path leaves its folder.
"""
import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from downscale.data import row_files
from downscale.data.images import open_under
from downscale.data.records import IMAGE
from downscale.evaluate.scoring.targets import Target

Picture = Callable[[], bytes | None]  # reads a picture; None where the data has none
NO_PICTURE = 64  # a shorter TSV picture is the index of the row that holds it (VLMEvalKit)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One question: its row in the data, its id, and its pictures as calls that return bytes.

    `target` is None where the data has no answer, `strata` its axes from broad to fine.
    """
    row: int
    id: str
    question: str
    pictures: tuple[Picture, ...]
    target: Target | None
    family: str = ''
    strata: tuple[str, ...] = ()


def entry(row: int, name: object, question: object, pictures: Iterable[Picture],
          target: Target | None, family: object = '', strata: Iterable[object] = ()) -> Entry:
    """Return an `Entry` whose question has no image marks: pictures are put in front."""
    text = str(question).replace(f'{IMAGE}\n', '').replace(IMAGE, '').strip()
    axes = tuple(map(str, strata))
    return Entry(
        row=row,
        id=str(name),
        question=text,
        pictures=tuple(pictures),
        target=target,
        family=str(family),
        strata=axes,
    )


def check_columns(path: Path | str, names: Sequence[str], needed: Iterable[str]) -> None:
    """Raise ValueError naming the columns of `needed` that are not in `names`."""
    gone = [name for name in needed if name not in names]
    if gone:
        raise ValueError(f'{path} has no {", ".join(map(repr, gone))}; it has '
                         f'{row_files.shown(", ".join(map(repr, names)), 120)}')


# --- parquet ----------------------------------------------------------------------------------

def parquet_rows(path: Path, needed: Sequence[str], image: str | None = 'image'
                 ) -> Iterator[tuple[int, dict[str, Any], Picture]]:
    """Yield (number, row without its picture, call that reads it) of a file or a folder's shards.

    The files of a folder must be one split ('dev-00000-of-00002.parquet').
    """
    # Rows are numbered through all shards; pictures are read by group and place when shown.
    number = 0
    for file in _shards(Path(path)):
        opened = _opened(file)
        names = opened.schema_arrow.names
        check_columns(file, names, [*needed, image] if image else needed)
        columns = [name for name in names if name != image]
        for group in range(opened.num_row_groups):
            rows = opened.read_row_group(group, columns=columns).to_pylist()
            for k, row in enumerate(rows):
                yield number, row, partial(_picture, str(file), group, k, image)
                number += 1


def _opened(file):
    try:
        return pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise row_files.fault(file, f'no readable parquet file ({error})') from None


def _shards(path):
    if path.is_file():
        return [path]
    files_there = sorted(path.glob('*.parquet')) if path.is_dir() else []
    if not files_there:
        raise FileNotFoundError(f'no parquet file {path}, nor any in a folder of that name')
    # Two splits of one set would be two data sets under one name.
    splits = sorted({file.stem.split('-')[0] for file in files_there})
    if len(splits) > 1:
        raise ValueError(f'{path} holds several splits ({", ".join(splits)}); give one file, or a '
                         'folder with one split')
    return files_there


# Pictures are asked for in the order of the rows: the next is mostly in the same group.
@lru_cache(maxsize=2)
def _group(file, group, image):
    return pq.ParquetFile(file).read_row_group(group, columns=[image]).column(image)


def _picture(file, group, k, image):
    value = _group(file, group, image)[k].as_py()
    return value.get('bytes') if isinstance(value, dict) else value


def joined_rows(path: Path, needed: Sequence[str], questions: str, images: str
                ) -> Iterator[tuple[int, dict[str, Any], Picture]]:
    """Yield what `parquet_rows` yields, of one folder of questions and one of pictures.

    Their names below `path` end in `questions` and `images`. Pictures are found by their `id` from
    the questions' `imageId` (GQA).
    """
    def below(end):
        folders = [folder for folder in sorted(Path(path).glob(f'*{end}')) if folder.is_dir()]
        if len(folders) != 1:
            raise FileNotFoundError(f'{path} must hold one folder *{end}, not {len(folders)}')
        return folders[0]

    pictures = {}
    for _, row, picture in parquet_rows(below(images), ['id']):
        if str(row['id']) in pictures:
            raise ValueError(f'{below(images)}: picture {row["id"]!r} is there twice')
        pictures[str(row['id'])] = picture
    for number, row, _ in parquet_rows(below(questions), needed, image=None):
        yield number, row, pictures.get(str(row['imageId']), lambda: None)


# --- text files ---------------------------------------------------------------------------------

def tsv_rows(path: Path, needed: Sequence[str]
             ) -> Iterator[tuple[int, dict[str, Any], Picture]]:
    """Yield (number, row without its picture, call that decodes it) of a TSV with pictures.

    Pictures are base64. ValueError in one line for a file that is no such TSV.
    """
    path = _there(path)
    with open(path, 'rb') as file:
        header = file.readline().decode('utf-8-sig').rstrip('\r\n').split('\t')
    check_columns(path, header, [*needed, 'image'])
    try:
        # One block: a picture of base64 is longer than the blocks that are read by default.
        table = pa_csv.read_csv(
            path, pa_csv.ReadOptions(block_size=path.stat().st_size + 1),
            pa_csv.ParseOptions(delimiter='\t', newlines_in_values=True),
            pa_csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())))
    except pa.ArrowInvalid as error:
        raise row_files.fault(path, f'no readable TSV ({error})') from None
    images = table.column('image')
    rows = table.drop_columns(['image']).to_pylist()
    # VLMEvalKit stores a picture once; further questions about it hold the index of the first.
    places = {row['index']: k for k, row in enumerate(rows)}

    def decoded(k, index):
        text = images[k].as_py()
        if text and len(text) < NO_PICTURE and text != index and text in places:
            text = images[places[text]].as_py()
        try:
            return base64.b64decode(text, validate=True) or None
        except ValueError:
            return None

    for number, row in enumerate(rows):
        yield number, row, partial(decoded, number, row['index'])


def json_list(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, object) of a JSON list of objects; ValueError names a wrong one's number."""
    for number, (where, value) in enumerate(row_files.read_whole(_there(path))):
        check_columns(f'{path}, {where}', list(value), needed)
        yield number, value


def csv_rows(path: Path, needed: Sequence[str]
             ) -> Iterator[tuple[int, dict[str, str], list[str]]]:
    """Yield (number, {column: text}, [texts by place]) of a CSV file with a header."""
    for number, (_, row) in enumerate(row_files.read_whole(_there(path))):
        check_columns(path, list(row), needed)
        yield number, row, list(row.values())


def textvqa_answers(path: Path) -> dict[str, list[str]]:
    """Return {question id: the answers of ten people} of TextVQA's annotation file."""
    try:
        rows = json.loads(path.read_bytes())['data']
        return {str(row['question_id']): list(map(str, row['answers'])) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: no annotations of TextVQA ({error!r})') from None


def number_of(text: str, where: str) -> float:
    """Return the number in a CSV value; ValueError names where it stands."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'{where}: {text!r} is no number') from None


def beside(root: Path, names: Iterable[str]) -> list[Picture]:
    """Return calls that read picture files inside the folder `root`."""
    return [partial(_read, root, name) for name in names]


def _read(root, name):
    try:
        return open_under(root, name)
    except FileNotFoundError:
        return None


def _there(path):
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}')
    return path

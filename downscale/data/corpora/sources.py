"""Published data as it lies on disk -> records: JSON, JSONL, CSV, TSV, Parquet, folders, TFDS.

What the columns of a row mean is `columns.py`. Pictures are paths below the source's folder of
pictures, {bytes, path}, bytes, base64 or `data:` texts. A row that cannot be used is `Rejected`
with one of `REASONS`; nothing is repaired by guessing.
"""
import base64
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgpack

from downscale.data import images, measure
from downscale.data.corpora.cells import Rejected
from downscale.data.corpora.columns import Parts, parts_of
from downscale.data.corpora.tables import METADATA, TFDS, FileRows, Parquet, Prepared
from downscale.data.records import IMAGE, Conversation, Record, Turn
from downscale.data.row_files import FORMS, fault, shown
from downscale.runtime.files import PathLike
from downscale.values import COUNT, Choice, Range, Several, check

# Text may not speak for another turn: in data these would become the chat's own tokens.
CHAT_TOKENS = ('<|im_start|>', '<|im_end|>', '<|endoftext|>')
TEXT_ROWS = 'Source(text_rows=True) takes rows of text'
# Other models' marks of a picture or video: left in the text they would be learnt as words.
MARKS = ('<|image|>', '<|image_1|>', '<|image_pad|>', '<|vision_start|>', '<image_placeholder>',
         '<ImageHere>', '<video>')
# How the base64 of a picture begins: PNG, JPEG, GIF, WebP, BMP, TIFF of both orders.
BASE64 = ('iVBORw0KGgo', '/9j/', 'R0lGOD', 'UklGR', 'Qk', 'SUkqA', 'TU0AK')
MOST_TEXT = 400_000  # characters of one record, about 10^5 tokens
_ODD = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]')
_TOKENS = re.compile('|'.join(map(re.escape, (*CHAT_TOKENS, *MARKS))))


@dataclass(frozen=True)
class Source:
    """Where a published set lies below the root of all data, and how much of it is taken.

    `path` is a .json, .jsonl, .ndjson, .csv, .tsv or .parquet file, a folder of Parquet files or
    one with a metadata file, or (`tfds`) a prepared TFDS folder; `images` is the folder of its
    pictures. `take` rows are chosen by `seed` (None: all), of those only that name one of the sets
    `only` in `data_source` or `metadata.dataset` (empty: all); each is seen `epochs` times an epoch
    of the mixture. `ask` is what is asked where a row holds a caption only. `ignore` are columns
    that are left out though they may matter; `text_rows` says that rows without a picture are meant
    to be so though others show one. `licence` and `obtain` are notes for people.
    """
    name: str
    path: str
    _: KW_ONLY
    licence: str
    obtain: str
    images: str = ''
    tfds: Annotated[str, Choice(('', *TFDS), 'tfds')] = ''
    split: str = 'train'
    only: Annotated[tuple[str, ...], Several(0, 'the sets whose rows are taken')] = ()
    take: Annotated[int | None, Range(1, COUNT, 'rows that are taken; None is all')] = None
    seed: Annotated[int, Range(0, 2 ** 32 - 1, 'seed by which rows are taken')] = 0
    epochs: Annotated[float, Range(0, 10_000, 'how often a record is seen in an epoch of the '
                                   'mixture', without=(0,))] = 1.0
    ask: str = 'Describe the image.'
    ignore: Annotated[tuple[str, ...], Several(0, 'columns that may be left out')] = ()
    text_rows: bool = False

    def __post_init__(self):
        if not re.fullmatch(r'[A-Za-z0-9_.+-]+', self.name):
            raise ValueError(f'source name {self.name!r} may hold letters, digits and _.+- only')
        check(self)


# --- rows -------------------------------------------------------------------------------------

def record_of(row: Any, name: str, source: Source, folder: PathLike) -> Record:
    """Return the `Record` called `name` of one row; `Rejected` where it cannot be used.

    Its pictures are read, and decoded once.
    """
    return record_from(parts_of(row, source.ask, source.ignore), name, source, folder)


def record_from(parts: Parts, name: str, source: Source, folder: PathLike) -> Record:
    """Return the `Record` of the `Parts` of a row; `Rejected` where it cannot be used."""
    if not parts.pictures and not source.text_rows and (parts.captioned or parts.pointer):
        lost = f'{parts.pointer!r} tells of one' if parts.pointer else 'a caption without one'
        raise Rejected('no picture', f'{lost}; {TEXT_ROWS}')
    pictures = tuple(picture if isinstance(picture, bytes) else picture_of(picture, folder)
                     for picture in parts.pictures)
    turns = _marked(parts.turns, len(pictures))
    check_texts(turns)
    for k, data in enumerate(pictures):
        try:
            # Stages plan with the size in the header: what it tells must be so.
            size = measure.picture_size(data, f'picture {k}')
            if size != images.decode(data, f'picture {k}').size:
                raise ValueError(f'picture {k}: its header tells another size')
        except ValueError as error:
            raise Rejected('unreadable image', str(error)) from None
    return Record(name, source.name, Conversation(pictures, turns))


def _marked(turns, count):
    """Return `turns` whose image marks are as many as the pictures.

    Where there are none, marks are put in front of the first user turn. `Rejected` for any other
    number.
    """
    marks = sum(turn.text.count(IMAGE) for turn in turns)
    first = next((k for k, turn in enumerate(turns) if turn.role == 'user'), None)
    if count and not marks and first is not None:
        front = (IMAGE + '\n') * count
        turns = list(turns)
        turns[first] = dataclasses.replace(turns[first], text=front + turns[first].text)
    elif marks != count:
        raise Rejected('image marks', f'{marks} marks {IMAGE} for {count} pictures')
    return tuple(turns)


def check_texts(turns: Sequence[Turn]) -> None:
    """Raise `Rejected` unless a reply can be learnt and no text holds what none may."""
    if not any(turn.supervised and turn.text.strip() for turn in turns):
        raise Rejected('no answer', 'no reply that could be learnt')
    for turn in turns:
        if len(turn.text) > MOST_TEXT:
            raise Rejected('too long', f'{len(turn.text):,} characters in one turn')
        odd = _ODD.search(turn.text)
        if odd and '\ud800' <= odd[0] <= '\udfff':
            raise Rejected('bad text', 'half a surrogate pair')
        if odd:
            raise Rejected('bad text', f'control character {odd[0]!r}')
        token = _TOKENS.search(turn.text)
        if token and token[0] in MARKS:
            raise Rejected('image marks', f'{token[0]} in the text; {IMAGE} is the mark here')
        if token:
            raise Rejected('chat token', f'{token[0]} in the text')


def picture_of(name: str, folder: PathLike) -> bytes:
    """Return the bytes of picture file `name` below `folder`, or of the picture that it encodes.

    `Rejected` where there is none.
    """
    if inside(name):
        return _decoded(name)
    if '\x00' in name:
        raise Rejected('image path', f'{shown(name)!r} holds a NUL')
    if '://' in name:
        raise Rejected('image path', f'{shown(name)!r} is not fetched; put the picture into a '
                       'folder and give its path')
    try:
        # pyrefly: ignore[bad-argument-type]
        return images.open_under(folder, name)
    except FileNotFoundError as error:
        raise Rejected('missing image', str(error)) from None
    except (ValueError, OSError) as error:
        raise Rejected('image path', str(error)) from None


def inside(text: str) -> bool:
    """Return whether a text is a picture itself, as base64, and no path."""
    # '/9j/', the start of a JPEG, may begin a short path as well.
    return text.startswith('data:') or len(text) >= 64 and text.startswith(BASE64)


def _decoded(text):
    """Return the bytes of a `data:` text, or of base64 alone; `Rejected` where it is neither."""
    head, comma, body = text.partition(',') if text.startswith('data:') else ('', ',', text)
    if not comma or head and not head.endswith(';base64'):
        raise Rejected('unreadable image', f'{shown(head, 40)!r} is no data:image/...;base64,')
    try:
        return base64.b64decode(''.join(body.split()), validate=True)
    except ValueError as error:
        raise Rejected('unreadable image', f'{shown(text, 30)!r} is no base64 ({error})') from None


def open_rows(source: Source, root: Path) -> FileRows | Parquet | Prepared:
    """Return the table of a `Source` below `root`.

    FileNotFoundError says how the set is obtained.
    """
    path = under(root, source.path, source)
    if source.tfds:
        return Prepared(path, source.tfds, source.split)
    if path.is_dir():
        about = [name for name in METADATA if (path / name).is_file()]
        if len(about) > 1:
            raise fault(path, f'holds {" and ".join(about)}; name one of them as the path')
        if about and about[0].endswith('.parquet'):
            return Parquet([path / about[0]])
        if about:
            return FileRows(path / about[0])
        parts = sorted(path.glob('*.parquet'))
        if not parts:
            raise FileNotFoundError(f'{path} holds neither Parquet files nor one of '
                                    f'{", ".join(METADATA)}')
        return Parquet([under(root, part.relative_to(Path(root).resolve()), source)
                        for part in parts])
    if path.suffix.lower() in ('.parquet', '.pq'):
        return Parquet([path])
    if path.suffix.lower() in FORMS:
        return FileRows(path)
    raise fault(path, f'source {source.name}: it must be {", ".join(FORMS)}, .parquet or a folder')


def under(root: Path, name: PathLike, source: Source) -> Path:
    """Return the path of `name` inside `root`.

    ValueError where it leaves the root; FileNotFoundError, which says how to obtain it, where it is
    not there.
    """
    root = Path(root).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f'source {source.name}: {name} leaves the root {root}')
    if not path.exists():
        raise FileNotFoundError(f'source {source.name}: no {name} in {root}. To obtain it: '
                                f'{source.obtain}')
    return path


# --- stored records ---------------------------------------------------------------------------

def pack(record: Record) -> bytes:
    """Return the bytes of a `Record`; equal records, equal bytes."""
    talk = record.talk
    return msgpack.packb({'id': record.id, 'source': record.source, 'images': list(talk.images),
                          'turns': [[turn.role, turn.text] for turn in talk.turns]})


def unpack(data: bytes) -> Record:
    """Return the `Record` of `pack`'s bytes."""
    value = msgpack.unpackb(data)
    turns = tuple(
        Turn(role=role, text=text, supervised=role == 'assistant') for role, text in value['turns']
    )
    return Record(value['id'], value['source'], Conversation(tuple(value['images']), turns))

"""Files of one's own questions: JSON, JSON lines, CSV, TSV or Parquet, one question a row.

A row is {"id", "question", "images", "answer"?, "options"?, "information"?, "family"?, "scorer"?}.
`images` are paths, {bytes, path}, base64 or `data:` texts, and [] where there are none (a set
without pictures needs no such key); columns of pictures and of options may have the other names
that `data build` knows (`columns.py`). `answer` is a text, a whole number, a list of accepted
texts, a box of four numbers or, with options, a letter, the text of one or its number from 0. The
scorers that count votes (vqa, vqav2) want the answers of ten people as that list and are refused
for any other. Every key is known or refused with the nearest one; an empty cell is as good as no
key. Pictures are read when they are shown, not before.
"""
import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from downscale.data import measure, row_files
from downscale.data.corpora import columns
from downscale.data.corpora.cells import Rejected, empty
from downscale.data.corpora.options import LETTERS, letter_of, options_in, several, with_options
from downscale.data.corpora.sources import check_texts, inside, picture_of
from downscale.data.records import Turn
from downscale.data.row_files import fault, shown
from downscale.evaluate.scoring.boxes import is_box
from downscale.evaluate.scoring.table import SCORERS, unfit
from downscale.evaluate.scoring.targets import Target
from downscale.runtime import copies
from downscale.runtime.files import PathLike
from downscale.values import unknown

SUFFIXES = (*row_files.FORMS, '.parquet')
TEXTS = ('question', 'information', 'family', 'scorer')
FIELDS = ('id', *TEXTS, 'images', 'answer', 'answers', 'options', 'choices')
_MARK = re.compile(r'<image[ _]?\d*>')


@dataclass(frozen=True, kw_only=True)
class OwnQuestion:
    """One row, checked; `pictures` is a call that returns the bytes of each.

    `target` is None where the row has no answer, `scorer` '' where the default judges.
    """
    id: str
    text: str
    pictures: Callable[[], tuple[bytes, ...]]
    target: Target | None
    information: str | None
    family: str
    scorer: str


def own_questions(path: PathLike, images: PathLike | None = None, limit: int | None = None,
                  scorer: str = '') -> list[OwnQuestion]:
    """Return the first `limit` `OwnQuestion`s of a file.

    `images` is the folder of their pictures, without one that of the file; `scorer` judges where a
    row names none. FileNotFoundError or ValueError in one line with the number of the line or
    entry.
    """
    path = Path(path)
    questions = []
    first = {}
    pictured = None
    if scorer and scorer not in SCORERS:
        raise ValueError(unknown('scorer', scorer, list(SCORERS)))
    if not path.is_file():
        raise FileNotFoundError(f'no file of questions {path}')
    _fetch_pictures(path, Path(images or path.parent), limit)
    for where, row, again in islice(_rows(path), limit):
        try:
            question = _question(row, again, Path(images or path.parent), scorer)
            # A row that forgot its pictures would be asked blind and count as one without any.
            if pictured not in (None, _tells(row)):
                raise Rejected('no picture', "'images' is in some rows and not in all; give [] for "
                               'a question without a picture')
            pictured = _tells(row)
            if question.id in first:
                raise Rejected('duplicate', f'id {shown(question.id)!r} stands in '
                               f'{first[question.id]} already')
        except Rejected as error:
            raise fault(path, f'{where}: {error}') from None
        first[question.id] = where
        questions.append(question)
    if not questions:
        raise ValueError(f'{path} holds no question')
    return questions


def _fetch_pictures(path, folder, limit):
    """Fetch the pictures that rows name, where the file is a copy of one in a bucket."""
    if not copies.is_copy(path):
        return
    files = []
    for _, row, _ in islice(_rows(path), limit):
        with contextlib.suppress(Rejected):  # told with its row
            cells, _ = columns.pictures_in(row)
            files += [folder / cell for cell in cells.values()
                      if isinstance(cell, str) and not inside(cell)]
    copies.fetch(files)


# --- rows -------------------------------------------------------------------------------------

def _rows(path):
    """Yield (where it stands, row, call that reads it again) of every row of a file."""
    if path.suffix.lower() != '.parquet':
        for where, row in row_files.read_whole(path):
            yield where, row, partial(dict, row)
        return
    try:
        opened = pq.ParquetFile(path)
        number = 0
        for group in range(opened.num_row_groups):
            for k, row in enumerate(_group(str(path), group).to_pylist()):
                number += 1
                yield f'entry {number}', row, partial(_again, str(path), group, k)
    except (pa.ArrowException, OSError) as error:
        raise fault(path, f'no readable Parquet file ({error})') from None


# Rows are asked in order, so that two groups are all that is read again and again.
@lru_cache(maxsize=2)
def _group(path, group):
    return pq.ParquetFile(path).read_row_group(group)


def _again(path, group, k):
    row, = _group(path, group).slice(k, 1).to_pylist()
    return row


# --- one row ----------------------------------------------------------------------------------

def _question(row, again, folder, scorer):
    """Return the `OwnQuestion` of a row; raise `Rejected` where it cannot be asked."""
    # 1. What is asked, and what is right.
    filled = _checked(row)
    text = filled['question']
    target = None
    _, options = options_in(filled)
    letters = list(zip(LETTERS, options))
    if options and len(letters) != len(options) or len(options) == 1:
        raise Rejected('unclear answer', f'{len(options)} options; 2 to {len(LETTERS)} are '
                       'read')
    if options:
        text = with_options(text, letters)
    answers = _answers(filled, letters)
    if answers:
        target = Target(
            answers=answers, choices=tuple((letter, option) for letter, (_, option) in letters)
        )
    # 2. Its texts, by the rule of published data: what a tokenizer cannot take is refused here.
    check_texts(
        [Turn(role='user', text=f'{text} {filled.get("information", "")}', supervised=True)]
    )
    # 3. Its pictures: every header is read now, so that none fails after hours of work.
    pictures = partial(_pictures, again, folder)
    for number, data in enumerate(pictures(), 1):
        try:
            measure.picture_size(data, f'picture {number}')
        except ValueError as error:
            raise Rejected('unreadable image', error) from None
    return OwnQuestion(id=str(filled['id']), text=text, pictures=pictures, target=target,
                       information=filled.get('information'), family=filled.get('family', ''),
                       scorer=_scorer(filled.get('scorer', scorer), target))


def _checked(row):
    """Return the cells of a row that hold something, every one known and of its type."""
    for name in row:
        if name in columns.VIDEOS:
            raise Rejected('video', f'{name!r}: videos are not read')
        picture = name in columns.PICTURES or columns.NUMBERED.fullmatch(name)
        if name not in FIELDS and not picture and name not in LETTERS:
            hint = unknown('field', shown(name, 40), FIELDS)
            raise Rejected('unknown field', hint.removeprefix('unknown field '))
    filled = {name: value for name, value in row.items() if not empty(value)}
    for name in ('id', 'question'):
        if name not in filled:
            raise Rejected('missing field', f'{name!r} is empty' if name in row else repr(name))
    if not isinstance(filled['id'], (str, int)) or isinstance(filled['id'], bool):
        raise Rejected('wrong type', f'id must be a text or whole number, not {_short(row["id"])}')
    for name in TEXTS:
        if name in filled and not isinstance(filled[name], str):
            raise Rejected('wrong type', f'{name} must be a text, not {_short(filled[name])}')
        mark = _MARK.search(filled.get(name, ''))
        if mark:
            raise Rejected('image marks', f'{name} holds the image mark {mark[0]}; leave it out, '
                           'pictures are put in front')
    return filled


def _tells(row):
    """Return whether a row says which pictures it has, or by an empty list that it has none."""
    cells = [value for name, value in row.items()
             if name in columns.PICTURES or columns.NUMBERED.fullmatch(name)]
    return any(isinstance(value, list) or not empty(value) for value in cells)


def _short(value):
    return shown(repr(value))


def _pictures(again, folder):
    """Return the bytes of the pictures of a row."""
    row = {name: value for name, value in again().items() if not empty(value)}
    # A cell may hold the bytes themselves (Parquet), base64, or a path below the folder.
    cells, _ = columns.pictures_in(row)
    return tuple(cell if isinstance(cell, bytes) else picture_of(cell, folder)
                 for cell in cells.values())


def _answers(filled, letters):
    """Return the right answers as texts, of options as letters; () where there are none."""
    # VQA has both: `answer` is what most people said, `answers` all of them.
    answer = filled.get('answer', filled.get('answers'))
    if answer is None:
        return ()
    if 'answer' in filled and 'answers' in filled:
        accepted = several(filled['answers'])
        if answer not in accepted and answer != filled['answers']:
            raise Rejected('unclear answer', f'answer {_short(answer)} is none of answers')
        answer = accepted
    if letters:
        return tuple(letter_of(letters, part) for part in several(answer))
    if isinstance(answer, (str, int)) and not isinstance(answer, bool):
        return (str(answer),)
    if is_box(answer):
        return (json.dumps(answer),)
    parts = answer if isinstance(answer, list) else []
    # VQA's annotations keep each person's answer in an object of its own.
    texts = [part.get('answer') if isinstance(part, dict) else part for part in parts]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise Rejected('wrong type', 'answer must be a text, a whole number, a list of texts or a '
                       f'box of four numbers, not {_short(answer)}')
    return tuple(texts)


def _scorer(name, target):
    """Return `name`, or raise `Rejected` where it cannot judge such a target.

    '' is the default, which judges all.
    """
    if not name or target is None:
        return name
    if name not in SCORERS:
        hint = unknown('scorer', name, list(SCORERS))
        raise Rejected('unknown scorer', hint.removeprefix('unknown scorer '))
    if unfit(name, target):
        raise Rejected('other scorer', unfit(name, target))
    return name

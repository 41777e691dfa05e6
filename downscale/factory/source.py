"""What the factory starts from: questions with answers about pictures, read as `data build` reads.
"""
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from downscale.data import row_files
from downscale.data.corpora.cells import Rejected
from downscale.data.corpora.columns import parts_of
from downscale.data.corpora.sources import check_texts, inside
from downscale.data.corpora.tables import name_of
from downscale.data.images import digest, open_under
from downscale.data.measure import picture_size
from downscale.data.records import IMAGE


@dataclass(frozen=True, kw_only=True)
class Pictured:
    """One picture (a path below the root, and its digest) with all questions about it.

    `ids` are those of the records that asked them; `pairs` are (question, answer), each once.
    """
    image: str
    picture: str
    ids: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Skipped:
    """A record or picture that is no work for the factory, and why."""
    id: str
    reason: str


def read(path: Path, root: Path, limit: int | None = None,
         ignore: Sequence[str] = ()) -> tuple[tuple[Pictured, ...], tuple[Skipped, ...]]:
    """Return (`Pictured` of the first `limit` pictures, sorted by path; `Skipped` records).

    Records that show one picture are joined. Those that `data build` would reject are skipped with
    its reason; the columns `ignore` may hold anything. ValueError or FileNotFoundError in one line
    for a file that cannot be read.
    """
    # 1. Records by the picture that they show.
    by_image = {}
    skipped = []
    for index, (where, row) in enumerate(row_files.read(path)):
        name = where if isinstance(row, row_files.BadRow) else name_of(row, index)
        try:
            image, pairs = _checked(row, ignore)
        except Rejected as error:
            skipped.append(Skipped(name, str(error)))
            continue
        by_image.setdefault(image, []).append((name, pairs))
    # 2. Pictures that can be read, with each of their questions once.
    items = []
    for image in sorted(by_image)[:limit]:
        ids = tuple(dict.fromkeys(name for name, _ in by_image[image]))
        pairs = {}  # a set that keeps their order
        for _, pairs_of_record in by_image[image]:
            pairs |= dict.fromkeys(pairs_of_record)
        try:
            data = open_under(root, image)
            picture_size(data, image)  # the header: every start reads all pictures
        except (ValueError, OSError) as error:
            skipped.append(Skipped(ids[0], f'picture: {_short(error)}'))
            continue
        asked = [question for question, _ in pairs]
        if len(set(asked)) < len(asked):
            skipped.append(Skipped(ids[0], 'one question with two answers'))
            continue
        items.append(Pictured(image=image, picture=digest(data), ids=ids, pairs=tuple(pairs)))
    return tuple(items), tuple(skipped)


def _short(error):
    """Return the kind of an error without its paths, which differ between machines."""
    if isinstance(error, FileNotFoundError):
        return 'there is none'
    return 'leaves its folder' if 'leaves its folder' in str(error) else 'unreadable'


def _checked(row, ignore):
    """Return (image, (question, answer) pairs) of one record.

    `Rejected` with the reason of `data build`, or where the factory cannot use it.
    """
    parts = parts_of(row, '', ignore)
    if not parts.pictures:
        raise Rejected('no picture', 'the record shows none')
    if len(parts.pictures) > 1:
        raise Rejected('image marks', f'{len(parts.pictures)} pictures; one is described')
    image, = parts.pictures
    if not isinstance(image, str) or inside(image):
        raise Rejected('image path', 'the picture stands in the row; put it into a file and give '
                       'its path')
    pairs = []
    question = None
    check_texts(parts.turns)
    for turn in parts.turns:
        text = turn.text.replace(IMAGE, '').strip()
        if turn.role == 'user':
            question = bare_question(text)
        elif turn.role == 'assistant' and question and text:
            pairs.append((question, text))
            question = None
    if not pairs:
        raise Rejected('no answer', 'no question with an answer')
    return image, pairs


# What LLaVA's sets append so that a model answers in a form; a description has no use for it.
_FORM = re.compile(r'\s*answer (?:the question )?(?:using|with) (?:a single word|the option|one)'
                   r'[^\n]*$', re.IGNORECASE)


def bare_question(text: str) -> str:
    """Return a question without the request at its end for a form of answer."""
    return _FORM.sub('', text).strip()
